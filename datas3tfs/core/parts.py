"""Cut an upload into parts that others put through presigned URLs, and recognise the cut afterwards.

Not for streams of our own (objects/parts.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from datas3tfs.core.model import Part
from datas3tfs.errors import Invalid

PART_SIZE = 20 * 2**20  # bytes; what the Go clients cut uploads into, whatever the server says
LEAST_PART, LARGEST_PART = 5 * 2**20, 5 * 2**30  # bytes; S3's limits, of all parts but the last
MOST_PARTS = 10_000  # S3's limit
_STEP = 2**20  # larger parts are whole MiB
_CANDIDATES = 4  # how many of the lengths that parts have are tried


def part_count(size: int, part_size: int) -> int:
    """Return how many parts *size* bytes are."""
    return -(-size // part_size)


def part_length(size: int, part_size: int, number: int) -> int:
    """Return the bytes of part *number* (from 1); none if there is no such part."""
    return max(0, min(part_size, size - part_size * (number - 1)))


def check_part_size(size: int, part_size: int) -> None:
    """Raise Invalid, saying what would be possible, if *size* bytes cannot be put in such parts."""
    if not LEAST_PART <= part_size <= LARGEST_PART:
        raise Invalid(f"part_size {part_size}: S3 takes parts from {LEAST_PART} to {LARGEST_PART} bytes")
    if part_count(size, part_size) > MOST_PARTS:
        raise Invalid(
            f"{size} bytes are more than {MOST_PARTS} parts of {part_size} bytes, which is S3's limit: "
            f"ask for a part_size of at least {_least_part_size(size)}, or split the archive"
        )


def likely_part_size(size: int, parts: Sequence[Part]) -> int:
    """Return the part size under which most of *parts* are such as they must be: nobody has written down
    which one the client was given."""
    common = [length for length, _ in Counter(part.size for part in parts).most_common(_CANDIDATES)]
    # The last part says it, too, if it alone has arrived.
    last = [(size - part.size) // (part.number - 1) for part in parts[-1:] if part.number > 1]
    candidates = [max(PART_SIZE, _least_part_size(size)), *common, *last]
    possible = [
        candidate
        for candidate in dict.fromkeys(candidates)
        if LEAST_PART <= candidate <= LARGEST_PART and part_count(size, candidate) <= MOST_PARTS
    ]
    return max(possible, key=lambda candidate: len(usable_parts(size, candidate, parts)))


def usable_parts(size: int, part_size: int, parts: Sequence[Part]) -> list[Part]:
    """Return those of *parts* that are as long as they must be."""
    return [part for part in parts if part.size == part_length(size, part_size, part.number) > 0]


def _least_part_size(size: int) -> int:
    return max(LEAST_PART, -(-size // MOST_PARTS // _STEP) * _STEP)

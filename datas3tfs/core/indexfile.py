"""The index as an object in S3: `zstd(records)`, then a skippable frame with header and tail.

Whoever decompresses the object with any zstd decoder gets the 16-byte records and nothing else, as
PRODUCT section 3 promises. Indices written by others are accepted: raw records, or zstd frames without
our skippable frame; those lack names, times and checksums and come back as `BareRecords`.
"""

from __future__ import annotations

from dataclasses import dataclass

from datas3tfs.core import zstdframes
from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.index import HEADER_SIZE, MAGIC, RECORD_SIZE, IndexHeader, check_records
from datas3tfs.errors import Corrupt

_ALLOWANCE = 1 << 24  # header and the largest table of extensions (65,536 × 235 bytes), both rounded up


@dataclass(frozen=True, slots=True)
class BareRecords:
    """An index that holds just the records; the rest must be learnt from the TAR's headers."""

    records: bytes


def encode_index_file(flat: bytes) -> bytes:
    """Return the object for the flat index *flat* (as IndexBuilder makes it)."""
    header = IndexHeader.decode(flat[:HEADER_SIZE])
    stop = HEADER_SIZE + RECORD_SIZE * header.count
    payload = flat[:HEADER_SIZE] + zstdframes.compress(flat[stop:])
    return zstdframes.compress(flat[HEADER_SIZE:stop]) + zstdframes.skippable_frame(payload)


def index_file_limit(count: int, object_size: int) -> int:
    """Return how many bytes the index of *count* datapoints in *object_size* bytes can have at most."""
    return 32 * count + 4 * (object_size // CHUNK + count) + _ALLOWANCE


def decode_index_file(raw: bytes, *, count: int, object_size: int) -> bytes | BareRecords:
    """Return the flat index, or just the records if that is all there is.

    The flat index still has to pass `open_index`. Raises Corrupt if the object is damaged, expands
    beyond what it can be, or holds another number of records.
    """
    expected = RECORD_SIZE * count
    if not raw.startswith(zstdframes.MAGIC) and raw[:4] != zstdframes.SKIPPABLE_MAGIC:
        return _bare(raw, expected, object_size)
    frames, payloads = zstdframes.split(raw)
    records = b""
    for frame in frames:
        records += zstdframes.decompress(frame, expected - len(records))
    ours = [payload for payload in payloads if payload.startswith(MAGIC)]
    if not ours:
        return _bare(records, expected, object_size)
    if len(records) != expected or len(ours) != 1:
        raise Corrupt(f"index has {len(records)} bytes of records, expected {expected}")
    header = IndexHeader.decode(ours[0][:HEADER_SIZE])
    if header.tail_size > index_file_limit(count, object_size):
        raise Corrupt("index claims impossible columns")
    tail = zstdframes.decompress(ours[0][HEADER_SIZE:], header.tail_size)
    return ours[0][:HEADER_SIZE] + records + tail


def _bare(records: bytes, expected: int, object_size: int) -> BareRecords:
    if len(records) != expected:
        raise Corrupt(f"index has {len(records)} bytes of records, expected {expected}")
    check_records(records, object_size)
    return BareRecords(records)

"""Files as blocking iterators of chunks, for engine/threads.py to drive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datas3tfs.errors import Invalid

READ_SIZE = 4 * 1024 * 1024


def file_chunks(path: Path, *, size: int | None = None) -> Iterator[bytes]:
    """Yield a file's bytes. Raises Invalid, naming it, if it cannot be read or is not *size* long."""
    left = size
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(READ_SIZE):
                left = None if left is None else left - len(chunk)
                yield chunk
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc
    if left:
        raise Invalid(f"{path}: has changed size while it was read")

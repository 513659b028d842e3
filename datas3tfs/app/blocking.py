"""Drive blocking iterators (files being read, archives being scanned) from worker threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import trio

from datas3tfs.errors import Invalid

READ_SIZE = 4 * 1024 * 1024


async def in_thread(
    chunks: Iterator[bytes], advance: Callable[[int], None] = lambda amount: None
) -> AsyncIterator[bytes]:
    """Yield what *chunks* yields, each step made in a worker thread; *advance* is told every length."""
    while (chunk := await trio.to_thread.run_sync(next, chunks, None)) is not None:
        advance(len(chunk))
        yield chunk


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

"""Drive blocking iterators (files being read, archives being scanned) from worker threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import trio


async def in_thread(
    chunks: Iterator[bytes], advance: Callable[[int], None] = lambda amount: None
) -> AsyncIterator[bytes]:
    """Yield what *chunks* yields, each step made in a worker thread; *advance* is told every length."""
    while (chunk := await trio.to_thread.run_sync(next, chunks, None)) is not None:
        advance(len(chunk))
        yield chunk

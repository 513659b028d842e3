"""Cut a stream of bytes into the parts of an upload.

Not for sending them (upload.py). Concurrency: plan_parts is pure; a Cutter belongs to one task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from datas3tfs.core.parts import MOST_PARTS
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid

_STEP = 1 << 20  # larger parts are whole MiB


def plan_parts(size: int, part_size: int) -> list[Span]:
    """Return where each part of *size* bytes lies: *part_size* each, or larger if S3's limit asks so.

    Nothing is one empty part.
    """
    least = -(-size // MOST_PARTS)
    step = max(part_size, -(-least // _STEP) * _STEP)
    return [Span(start, min(start + step, size)) for start in range(0, max(size, 1), step)]


class Cutter:
    """Takes exactly as many bytes from *chunks* as it is asked for."""

    def __init__(self, key: str, chunks: AsyncIterator[bytes], size: int) -> None:
        self._key = key
        self._chunks = chunks
        self._size = size
        self._rest = memoryview(b"")

    async def take(self, length: int) -> bytes:
        """Return the next *length* bytes. Raises Invalid if there are fewer, or what *chunks* raises."""
        pieces: list[memoryview] = []
        while length:
            if not self._rest:
                self._rest = memoryview(await self._next())
            piece = self._rest[:length]
            self._rest = self._rest[len(piece) :]
            length -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    async def end(self) -> None:
        """Raise Invalid if there is more."""
        rest: bytes | memoryview | None = self._rest
        while rest is not None and not len(rest):
            rest = await anext(self._chunks, None)
        if rest is not None:
            raise Invalid(f"{self._key}: more than the {self._size} bytes announced were given")

    async def _next(self) -> bytes:
        chunk = await anext(self._chunks, None)
        if chunk is None:
            raise Invalid(f"{self._key}: fewer than the {self._size} bytes announced were given")
        return chunk

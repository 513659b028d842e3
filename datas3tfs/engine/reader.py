"""Read datapoints: plan, get the pieces, check them, hand out views.

Every byte that leaves here has come from the right object at the right length, behind the TAR header
of the right datapoint, and matches its CRC32C where the index has one. What fails is fetched again
(a proxy may have mangled it) and then reported as Corrupt. Every read ends within the time limit.
"""

from __future__ import annotations

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.reads import Piece, plan_read
from datas3tfs.core.spans import Span
from datas3tfs.engine.blocks import BlockPool, ObjectRef
from datas3tfs.engine.check import check_header, check_piece
from datas3tfs.engine.prefetcher import Prefetcher
from datas3tfs.engine.tree import OpenDatapoint
from datas3tfs.errors import Corrupt, NotFound, Unavailable

_ATTEMPTS = 3  # at bytes that fail their checks; what is wrong three times is wrong in the object


class Reader:
    """Reads open datapoints."""

    def __init__(self, pool: BlockPool, prefetcher: Prefetcher, timeout: float, counters: Counters) -> None:
        self._pool = pool
        self._prefetcher = prefetcher
        self._timeout = timeout
        self._counters = counters

    async def read(self, file: OpenDatapoint, offset: int, size: int) -> bytes | memoryview:
        """Return up to *size* bytes of content from *offset* on, fewer only at the end.

        Raises Corrupt, Unavailable (also when *timeout* seconds were not enough).
        """
        pieces = plan_read(file.entry, offset, size)
        if not pieces:
            return b""
        ref = ObjectRef(file.dataset.bucket_id, file.datarange.data_key, file.datarange.size)
        needed = Span(pieces[0].span.start, pieces[-1].span.stop)
        self._prefetcher.observe(file, needed)
        if len(pieces) > 1:
            self._pool.gather(ref, needed)
        wanted = Span(offset, min(offset + size, file.entry.size)).shifted(file.entry.content.start)
        with trio.move_on_after(self._timeout):
            parts = [await self._part(file, ref, piece, wanted) for piece in pieces]
            return parts[0] if len(parts) == 1 else b"".join(parts)
        raise Unavailable(f"{ref.key}: {file.entry.name} could not be read within {self._timeout:g} s")

    async def _part(self, file: OpenDatapoint, ref: ObjectRef, piece: Piece, wanted: Span) -> memoryview:
        """Return what *wanted* (in the object) has in common with the content of *piece*, checked."""
        data = await self._checked(file, ref, piece)
        part = wanted.intersection(piece.content).shifted(-piece.span.start)
        return data[part.start : part.stop]

    async def _checked(self, file: OpenDatapoint, ref: ObjectRef, piece: Piece) -> memoryview:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._attempt(file, ref, piece)
            except NotFound as exc:
                raise Corrupt(f"{file.entry.name}: its object is gone ({exc})") from exc
            except Corrupt as exc:
                self._counters.add("read.corrupt")
                self._pool.drop(ref, piece.span.start)
                if attempt == _ATTEMPTS:
                    raise Corrupt(f"{ref.key}: {exc}") from exc
        raise AssertionError("the loop returns or raises")

    async def _attempt(self, file: OpenDatapoint, ref: ObjectRef, piece: Piece) -> memoryview:
        # Before the first piece from the middle of a large datapoint, its headers are checked too.
        entry, header = file.entry, None
        if piece.number and not file.header_checked:
            header = self._pool.ask(ref, entry.header, keep=False)
        serial, data = await self._pool.get(ref, piece.span)
        if header is not None:
            _, blocks = await self._pool.wait(header, entry.header)
            check_header(entry, bytes(blocks))
        if file.checked != (serial, piece.number):
            check_piece(file.index, file.slot, entry, piece, data)
            file.checked = (serial, piece.number)
        file.header_checked = True
        return data

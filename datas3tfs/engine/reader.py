"""Read datapoints: plan, get the pieces, check them, hand out views.

Every byte that leaves here has come from the right object at the right length, behind the TAR header
of the right datapoint, and matches its CRC32C where the index has one: blocks.py sees to that. What fails
is fetched again (a proxy may have mangled it) and then reported as Corrupt. Every read ends within the
time limit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import trio

from datas3tfs.core.checking import check_header
from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.counters import Counters
from datas3tfs.core.index import Entry
from datas3tfs.core.reads import Piece, piece, plan_read
from datas3tfs.core.spans import Span
from datas3tfs.engine.blocks import BlockPool, ObjectRef
from datas3tfs.engine.prefetcher import Prefetcher
from datas3tfs.engine.tree import OpenDatapoint, Tree
from datas3tfs.errors import Corrupt, NotFound, Unavailable

T = TypeVar("T")
_Part: TypeAlias = tuple[int, memoryview]  # where it begins in the object, and bytes

_MOVES = 4  # places that one read tries
_ATTEMPTS = 3  # at bytes that fail their checks; what is wrong three times is wrong in the object
# A read that has just failed for lack of an answer fails again at once: the kernel asks once more for
# what its read-ahead did not get, and the caller would wait twice as long as promised.
_AGAIN_SECONDS = 2.0
_REMEMBERED = 4096  # such failures


class Reader:
    """Reads open datapoints."""

    def __init__(
        self, tree: Tree, pool: BlockPool, prefetcher: Prefetcher, timeout: float, counters: Counters
    ) -> None:
        self._tree = tree
        self._pool = pool
        self._prefetcher = prefetcher
        self._timeout = timeout
        self._counters = counters
        self._failed: dict[tuple[ObjectRef, int], tuple[float, Unavailable]] = {}

    async def read(self, file: OpenDatapoint, offset: int, size: int) -> bytes | memoryview:
        """Return up to *size* bytes of content from *offset* on, fewer only at the end.

        Raises Corrupt, Unavailable (also when *timeout* seconds were not enough).
        """
        here = file.here
        pieces = plan_read(here.entry, offset, size)
        if not pieces:
            return b""
        self._observe(here, pieces)  # before anything is fetched: what is fetched ahead begins with it
        found = self._at_hand(here, pieces, offset, size)
        if found is not None:
            return found
        self._raise_if_failed(file.ref, pieces)
        try:
            return await self._found(file, lambda here: self._content(here, offset, size))
        except Unavailable as exc:
            error = Unavailable(f"datapoint {file.entry.name}: {exc}")
            self._remember(file.ref, pieces, error)
            raise error from exc

    def read_at_hand(self, file: OpenDatapoint, offset: int, size: int) -> bytes | memoryview | None:
        """Return what `read` would, if it would not wait; None, with nothing noted, if it might."""
        here = file.here
        pieces = plan_read(here.entry, offset, size)
        if not pieces:
            return b""
        found = self._at_hand(here, pieces, offset, size)
        if found is not None:
            self._observe(here, pieces)
        return found

    def expect(self, file: OpenDatapoint) -> None:
        """Take note that a datapoint was opened; of a small one there may be no read, if what was fetched
        ahead is in the kernel already."""
        if 0 < file.entry.size <= CHUNK:
            self._prefetcher.observe(file, Span(file.entry.header.start, file.entry.content.stop))

    async def check_empty(self, file: OpenDatapoint) -> None:
        """Check the header of a datapoint without content, which is never read. Raises as `read`."""
        try:
            await self._found(file, lambda here: self._checked(here, here.ref, piece(here.entry, 0)))
        except Unavailable as exc:
            raise Unavailable(f"datapoint {file.entry.name}: {exc}") from exc

    async def _found(self, file: OpenDatapoint, work: Callable[[OpenDatapoint], Awaitable[T]]) -> T:
        """Return what *work* returns of *file*, in time. If its object is gone, of where it is now: a merge
        may have replaced it since it was opened."""
        with trio.move_on_after(self._timeout):
            for _ in range(_MOVES):
                here = file.here
                try:
                    return await work(here)
                except NotFound as exc:
                    if here.moved is None:
                        here.moved = await self._tree.relocate(here, exc)
                        self._counters.add("read.moved")
            raise Unavailable(f"{file.here.datarange.data_key}: replaced again and again")
        raise Unavailable(f"{file.here.datarange.data_key}: no answer within {self._timeout:g} s")

    async def _content(self, file: OpenDatapoint, offset: int, size: int) -> bytes | memoryview:
        pieces = plan_read(file.entry, offset, size)
        ref = file.ref
        if len(pieces) > 1:
            self._pool.gather(ref, Span(pieces[0].span.start, pieces[-1].span.stop))
        parts = [(one.span.start, await self._checked(file, ref, one)) for one in pieces]
        if len(parts) > 1:  # by now they may be in one
            parts = self._parts_at_hand(ref, pieces) or parts
        return _joined(file.entry, parts, offset, size)

    def _observe(self, file: OpenDatapoint, pieces: list[Piece]) -> None:
        self._prefetcher.observe(file, Span(pieces[0].span.start, pieces[-1].span.stop))

    def _at_hand(
        self, file: OpenDatapoint, pieces: list[Piece], offset: int, size: int
    ) -> bytes | memoryview | None:
        """Return what is read if all of it is in memory and right: most reads, and so without any waiting."""
        if pieces[0].number and not file.header_checked:
            return None
        parts = self._parts_at_hand(file.ref, pieces)
        if parts is None:
            return None
        file.header_checked = True
        return _joined(file.entry, parts, offset, size)

    def _parts_at_hand(self, ref: ObjectRef, pieces: list[Piece]) -> list[_Part] | None:
        """Return the bytes of *pieces*: in one part, most often."""
        starts = [one.span.start for one in pieces]
        data = self._pool.at_hand(ref, Span(starts[0], pieces[-1].span.stop), starts)
        if data is not None:
            return [(starts[0], data)]
        if len(pieces) == 1:
            return None
        parts = list[_Part]()
        for one in pieces:
            if (data := self._pool.at_hand(ref, one.span, (one.span.start,))) is None:
                return None
            parts.append((one.span.start, data))
        return parts

    async def _checked(self, file: OpenDatapoint, ref: ObjectRef, piece: Piece) -> memoryview:
        for attempt in range(1, _ATTEMPTS + 1):
            joined = self._pool.has(ref, piece.span)
            try:
                return await self._attempt(file, ref, piece)
            except Unavailable:
                if not joined or attempt == _ATTEMPTS:  # what began before us may have failed long ago
                    raise
            except Corrupt as exc:
                self._counters.add("read.corrupt")
                self._pool.drop(ref, piece.span.start)
                self._pool.drop(ref, file.entry.header.start)
                if attempt == _ATTEMPTS:
                    raise Corrupt(f"{ref.key}: {exc}") from exc
        raise AssertionError("the loop returns or raises")

    async def _attempt(self, file: OpenDatapoint, ref: ObjectRef, piece: Piece) -> memoryview:
        # Before the first piece from the middle of a large datapoint, its headers are checked too.
        entry, header = file.entry, None
        if piece.number and not file.header_checked:
            header = self._pool.ask(ref, entry.header, keep=False)
        data = await self._pool.get(ref, piece.span)
        if header is not None:
            check_header(entry, bytes(await self._pool.wait(header, entry.header)))
        file.header_checked = True
        return data

    def _raise_if_failed(self, ref: ObjectRef, pieces: list[Piece]) -> None:
        for one in pieces:
            failed_at, error = self._failed.get((ref, one.span.start), (0.0, None))
            if error is not None and trio.current_time() - failed_at < _AGAIN_SECONDS:
                raise Unavailable(*error.args) from error

    def _remember(self, ref: ObjectRef, pieces: list[Piece], error: Unavailable) -> None:
        if len(self._failed) >= _REMEMBERED:
            self._failed.clear()
        self._failed.update({(ref, one.span.start): (trio.current_time(), error) for one in pieces})


def _joined(entry: Entry, parts: list[_Part], offset: int, size: int) -> bytes | memoryview:
    """Return *size* bytes of content from *offset* on out of *parts*, which follow each other."""
    start = entry.content.start + offset
    stop = min(start + size, entry.content.stop)
    wanted = [data[max(0, start - position) : stop - position] for position, data in parts]
    return wanted[0] if len(wanted) == 1 else b"".join(wanted)

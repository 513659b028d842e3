"""Stream a datarange's bytes in order, checked, with a few range requests in flight.

What `download-tar` and `verify` share. Not for the mount: it reads by piece, through the pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import trio

from datas3tfs.core import tar
from datas3tfs.core.index import Index
from datas3tfs.core.model import Datarange
from datas3tfs.core.reads import cut, pieces_in
from datas3tfs.core.spans import Span
from datas3tfs.engine.check import check_piece
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.errors import Corrupt, Datas3tError
from datas3tfs.ports import ObjectStore

_REQUEST = 8 * 1024 * 1024
_ATTEMPTS = 3  # at bytes that fail their checks: they may have been mangled on the way
_IN_FLIGHT = 4  # memory: this times the request


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive bytes of an object, no piece of a datapoint cut in two, and (key, what is wrong) of
    every piece that failed its checks, however often it was fetched."""

    span: Span
    data: bytes
    problems: list[tuple[int, str]]


class _Slot:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.stretch: Stretch | None = None
        self.error: Datas3tError | None = None


def span_of(index: Index, slots: Span) -> Span:
    """Return the bytes of the datapoints *slots*: first header to last padding, whole blocks."""
    start = index.record(slots.start)[0]
    offset, blocks, size = index.record(slots.last)
    stop = offset + blocks * tar.BLOCK + tar.padded(size)
    return Span(start, min(stop, index.object_size))


@asynccontextmanager
async def open_stretches(
    store: ObjectStore, datarange: Datarange, index: Index, slots: Span
) -> AsyncIterator[AsyncIterator[Stretch]]:
    """Iterate over the bytes of *slots* in order; leaving cancels what is in flight."""
    whole = span_of(index, slots)
    spans = cut(index, whole, _REQUEST)
    spans[-1] = Span(spans[-1].start, whole.stop)  # the last piece's padding belongs to the TAR

    async def fetch(span: Span, slot: _Slot) -> None:
        try:
            for _ in range(_ATTEMPTS):
                data = await store.get_range(datarange.data_key, span, datarange.size)
                slot.stretch = Stretch(span, data, _problems_in(index, span, data))
                if not slot.stretch.problems:
                    break
        except Datas3tError as exc:
            slot.error = exc
        slot.done.set()

    async def stretches() -> AsyncGenerator[Stretch, None]:
        waiting: deque[tuple[Span, _Slot]] = deque()
        upcoming = iter(spans)
        while True:
            while len(waiting) < _IN_FLIGHT and (span := next(upcoming, None)) is not None:
                waiting.append((span, _Slot()))
                nursery.start_soon(fetch, *waiting[-1])
            if not waiting:
                return
            _, slot = waiting.popleft()
            await slot.done.wait()
            if slot.error is not None or slot.stretch is None:
                raise slot.error or AssertionError("the fetch has left neither bytes nor an error")
            yield slot.stretch

    async with background_nursery() as nursery, aclosing(stretches()) as ordered:
        yield ordered


def _problems_in(index: Index, span: Span, data: bytes) -> list[tuple[int, str]]:
    view = memoryview(data)
    problems: list[tuple[int, str]] = []
    for slot, entry, piece in pieces_in(index, span):
        part = piece.span.shifted(-span.start)
        try:
            check_piece(index, slot, entry, piece, view[part.start : part.stop])
        except Corrupt as exc:
            problems.append((entry.key, str(exc)))
    return problems

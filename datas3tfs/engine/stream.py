"""Stream dataranges' bytes in order, checked, with a few range requests in flight.

What `download-tar`, `verify` and the compactor share. Not for the mount: it reads by piece, through the pool.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from datas3tfs.core import tar
from datas3tfs.core.checking import find_problems
from datas3tfs.core.index import Index
from datas3tfs.core.model import Datarange
from datas3tfs.core.reads import cut, piece_start, piece_stop
from datas3tfs.core.spans import Span
from datas3tfs.engine.ordered import open_ordered
from datas3tfs.errors import Corrupt
from datas3tfs.ports import ObjectStore

_REQUEST = 8 * 1024 * 1024
_ATTEMPTS = 3  # at bytes that fail their checks: they may have been mangled on the way
_IN_FLIGHT = 4  # memory: this times the request
_BYTES_IN_FLIGHT = _IN_FLIGHT * _REQUEST
_MOST_IN_FLIGHT = 16  # small ones, of many small dataranges


@dataclass(frozen=True, slots=True)
class Section:
    """Some datapoints of a datarange: *slots* of its index."""

    datarange: Datarange
    index: Index
    slots: Span

    @property
    def span(self) -> Span:
        """Their bytes."""
        return span_of(self.index, self.slots)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive bytes of an object, no piece of a datapoint cut in two, and (key, what is wrong) of
    every piece that failed its checks, however often it was fetched. *section* counts from 0."""

    section: int
    span: Span
    data: bytes
    problems: list[tuple[int, str]]


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
    async with open_sections(store, [Section(datarange, index, slots)]) as stretches:
        yield stretches


@asynccontextmanager
async def open_sections(
    store: ObjectStore, sections: Sequence[Section]
) -> AsyncIterator[AsyncIterator[Stretch]]:
    """Iterate over the bytes of one section after the other; leaving cancels what is in flight."""
    largest = max(min(section.span.length, _REQUEST) for section in sections)
    in_flight = min(max(_BYTES_IN_FLIGHT // largest, _IN_FLIGHT), _MOST_IN_FLIGHT)
    calls = (partial(_fetched, store, *request) for request in _requests(sections))
    async with open_ordered(calls, in_flight) as stretches:
        yield stretches


async def fetch_checked(store: ObjectStore, section: Section, span: Span) -> bytes:
    """Return the bytes *span* of the object, every datapoint's piece in it checked. Raises Corrupt,
    Unavailable, NotFound."""
    index = section.index
    wide = Span(piece_start(index, span.start), piece_stop(index, span.stop))
    stretch = await _fetched(store, 0, section, wide)
    for _, problem in stretch.problems:
        raise Corrupt(f"{section.datarange.data_key}: {problem}")
    return stretch.data[span.start - wide.start : span.stop - wide.start]


def _requests(sections: Iterable[Section]) -> Iterator[tuple[int, Section, Span]]:
    for number, section in enumerate(sections):
        whole = section.span
        spans = cut(section.index, whole, _REQUEST)
        spans[-1] = Span(spans[-1].start, whole.stop)  # the last piece's padding belongs to the TAR
        for span in spans:
            yield number, section, span


async def _fetched(store: ObjectStore, number: int, section: Section, span: Span) -> Stretch:
    datarange = section.datarange
    for attempt in range(1, _ATTEMPTS + 1):
        data = await store.get_range(datarange.data_key, span, datarange.size)
        problems = find_problems(section.index, span, data)
        if not problems or attempt == _ATTEMPTS:
            break
    first = section.index.first
    return Stretch(number, span, data, [(first + one.slot, one.text) for one in problems])

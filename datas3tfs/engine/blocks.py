"""Bytes of objects in memory: fetched once, kept until the budget needs the room.

An extent is what one range request brings; it is in the pool from the moment it is asked for, so two
readers never fetch the same bytes, and a reader waits for a prefetch under way. Fetches run in the
pool's nursery: a reader that gives up does not take the bytes away from the others.
Extents are never cut inside a piece (core/reads.py), which is what readers ask for; all pieces of an
extent are checked at once when it has come.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.extents import Extents
from datas3tfs.core.index import Index
from datas3tfs.core.model import BucketId, Datarange, Dataset, DatasetId
from datas3tfs.core.spans import Span
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.errors import Corrupt, Datas3tError, Unavailable
from datas3tfs.ports import BlockSource

log = logging.getLogger(__name__)

# A free stretch shorter than this holds no header block: it is the padding between two extents.
_PADDING = 512


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A TAR object, as far as fetching goes, and what it should hold."""

    dataset_id: DatasetId = field(compare=False)
    bucket_id: BucketId
    key: str
    size: int
    index: Index = field(compare=False, repr=False)


def object_ref(dataset: Dataset, datarange: Datarange, index: Index) -> ObjectRef:
    """Return where the datapoints of *datarange* lie."""
    return ObjectRef(dataset.id, dataset.bucket_id, datarange.data_key, datarange.size, index)


@dataclass(slots=True)
class Extent:
    """The bytes of one range request: on their way, then *data* or *error*.

    *problems* tells of the pieces that are not right, by where they begin. *is_pushed*: the small
    files in it went to the kernel's page cache as well."""

    ref: ObjectRef
    span: Span
    serial: int
    is_ahead: bool  # of readers
    done: trio.Event = field(default_factory=trio.Event)
    data: memoryview | None = None
    problems: dict[int, str] = field(default_factory=dict)
    error: Datas3tError | None = None
    is_pushed: bool = False


class BlockPool:
    """Extents of all objects under one budget of bytes; made by `open_pool`."""

    def __init__(self, nursery: trio.Nursery, source: BlockSource, budget: int, counters: Counters) -> None:
        self._nursery = nursery
        self._source = source
        self._budget = budget
        self._counters = counters
        self._objects: dict[ObjectRef, Extents[Extent]] = {}
        self._recent: OrderedDict[int, Extent] = OrderedDict()  # fetched ones, least recently used first
        self._serials = itertools.count()
        self._used = 0  # bytes of all extents, those on their way included
        self._coming = 0  # bytes of those on their way
        self.when_ahead: Callable[[Extent], None] = lambda extent: None  # hears of what has come so

    @property
    def used(self) -> int:
        """Bytes held or on their way."""
        return self._used

    async def get(self, ref: ObjectRef, span: Span) -> memoryview:
        """Return the bytes *span*, a piece, which is right. Raises Corrupt, and what the store raises."""
        extent = self.ask(ref, span)
        data = await self.wait(extent, span)
        if (problem := extent.problems.get(span.start)) is not None:
            raise Corrupt(problem)
        return data

    def at_hand(self, ref: ObjectRef, span: Span, starts: Collection[int]) -> memoryview | None:
        """Return the bytes *span*, pieces that begin at *starts*, if they are here in one, and right."""
        extent = self._covering(ref, span)
        if extent is None or extent.data is None or not extent.problems.keys().isdisjoint(starts):
            return None
        self._counters.add("read.hit")
        self._recent.move_to_end(extent.serial)
        at = span.start - extent.span.start
        return extent.data[at : at + span.length]

    def ask(self, ref: ObjectRef, span: Span, *, keep: bool = True) -> Extent:
        """Return the extent with the bytes *span*; fetch it if it is not there. Unless *keep*, what
        is fetched goes to those who wait for this very extent only."""
        extent = self._covering(ref, span)
        if extent is None:
            self._counters.add("read.miss")
            return self._start(ref, span, keep=keep)
        self._counters.add("read.wait" if extent.data is None else "read.hit")
        return extent

    async def wait(self, extent: Extent, span: Span) -> memoryview:
        """Wait for an extent; return the bytes *span*, right or not. Raises what the store raises."""
        await extent.done.wait()
        if extent.error is not None:
            raise type(extent.error)(*extent.error.args) from extent.error
        assert extent.data is not None
        if extent.serial in self._recent:
            self._recent.move_to_end(extent.serial)
        return extent.data[span.start - extent.span.start :][: span.length]

    def passed(self, ref: ObjectRef, position: int) -> None:
        """Take note that who reads forwards has come to *position*. What is two extents back has been read.
        If it is in the page cache as well, its memory is better used again at once, while the next bytes
        come, than when the budget is spent."""
        for _ in range(2):
            found = self._objects[ref].at(position) if ref in self._objects else None
            if found is None:
                return
            position = found[0].start - _PADDING
        found = self._objects[ref].at(position)
        if found is not None and found[1].is_pushed:
            self._remove(found[1])

    def gather(self, ref: ObjectRef, span: Span) -> None:
        """Fetch what of *span* is neither here nor on its way, for a reader who wants all of it."""
        wanted = span
        while wanted := self._free(ref, wanted):
            self._counters.add("read.miss")
            self._start(ref, wanted)
            wanted = Span(wanted.stop, span.stop)

    def request(self, ref: ObjectRef, span: Span) -> bool:
        """Fetch ahead what of *span* is neither here nor on its way; say whether there was room.

        At most half of the budget may be on its way, so that what readers are using stays.
        """
        wanted = span
        while wanted := self._free(ref, wanted):
            if wanted.length < _PADDING:
                wanted = Span(wanted.stop, span.stop)
                continue
            if self._coming + wanted.length > self._budget // 2:
                self._counters.add("prefetch.refused")
                return False
            self._counters.add("prefetch.request")
            self._counters.add("prefetch.bytes", wanted.length)
            self._start(ref, wanted, is_ahead=True)
            wanted = Span(wanted.stop, span.stop)
        return True

    def has(self, ref: ObjectRef, span: Span) -> bool:
        """Say whether the bytes *span* are here or on their way."""
        return self._covering(ref, span) is not None

    def drop(self, ref: ObjectRef, position: int) -> None:
        """Forget the extent at *position*: its bytes have turned out wrong."""
        found = self._objects[ref].at(position) if ref in self._objects else None
        if found is not None and found[1].done.is_set():
            self._remove(found[1])

    def _free(self, ref: ObjectRef, span: Span) -> Span:
        return self._objects[ref].free(span) if ref in self._objects else span

    def _covering(self, ref: ObjectRef, span: Span) -> Extent | None:
        found = self._objects[ref].at(span.start) if ref in self._objects else None
        return found[1] if found is not None and found[0].covers(span) else None

    def _start(self, ref: ObjectRef, span: Span, *, keep: bool = True, is_ahead: bool = False) -> Extent:
        extent = Extent(ref, span, next(self._serials), is_ahead)
        if keep and self._free(ref, span) == span:  # what lies across another cannot be kept
            self._objects.setdefault(ref, Extents()).insert(span, extent)
            self._used += span.length
            self._coming += span.length
            self._evict()
        self._nursery.start_soon(self._fetch, extent)
        return extent

    async def _fetch(self, extent: Extent) -> None:
        try:
            ref, span = extent.ref, extent.span
            data = await self._source.load(ref.bucket_id, ref.key, span, ref.size, extent.is_ahead)
            extent.problems = await self._source.problems(ref.index, span, data)
            extent.data = data
        except Datas3tError as exc:
            extent.error = exc
        except Exception as exc:  # a bug, or input nobody thought of; it must not end the mount
            log.exception("%s: unexpected failure; please report it", extent.ref.key)
            extent.error = Unavailable(f"{extent.ref.key}: unexpected failure ({type(exc).__name__})")
        finally:
            extent.done.set()
            if self._kept(extent):
                self._coming -= extent.span.length
                if extent.data is None:
                    self._remove(extent)
                else:
                    self._recent[extent.serial] = extent
                    if extent.is_ahead:
                        self.when_ahead(extent)

    def _kept(self, extent: Extent) -> bool:
        found = self._objects[extent.ref].at(extent.span.start) if extent.ref in self._objects else None
        return found is not None and found[1] is extent

    def _evict(self) -> None:
        while self._used > self._budget and self._recent:
            self._remove(next(iter(self._recent.values())))

    def _remove(self, extent: Extent) -> None:
        extents = self._objects[extent.ref]
        extents.remove(extent.span)
        if not extents:
            del self._objects[extent.ref]
        self._recent.pop(extent.serial, None)
        self._used -= extent.span.length


@asynccontextmanager
async def open_pool(source: BlockSource, budget: int, counters: Counters) -> AsyncIterator[BlockPool]:
    """Own the fetches under way; leaving cancels them."""
    async with background_nursery() as nursery:
        yield BlockPool(nursery, source, budget, counters)

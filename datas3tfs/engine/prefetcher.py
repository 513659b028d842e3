"""Fetch ahead what the planner thinks worth having, as few large range requests.

The planner (core/prefetch.py) speaks of linear positions; here they become spans of objects that cut
no piece in two. What lies in the object just read is asked for at once, before the read itself looks
for its bytes; what lies in the following objects needs their indices first, so a task does that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.index import Index
from datas3tfs.core.model import Datarange, DatasetId
from datas3tfs.core.prefetch import PrefetchLimits, PrefetchPlanner
from datas3tfs.core.reads import cut
from datas3tfs.core.spans import Span
from datas3tfs.engine.blocks import BlockPool, object_ref
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.snapshot import Snapshot
from datas3tfs.engine.tree import OpenDatapoint
from datas3tfs.errors import Datas3tError

_REQUEST = 8 * 1024 * 1024  # bytes per range request: about 1 GB/s on one core, 80 datapoints of 100 KiB


class Prefetcher:
    """Observes reads and fills the pool; made by `open_prefetcher`."""

    def __init__(
        self, nursery: trio.Nursery, pool: BlockPool, indices: Indices, limits: PrefetchLimits
    ) -> None:
        self._nursery = nursery
        self._pool = pool
        self._indices = indices
        self._limits = limits
        self._planners: dict[DatasetId, PrefetchPlanner] = {}
        # Hears of every read; says whether it was announced, and so is somebody else's to fetch ahead.
        self.is_announced: Callable[[OpenDatapoint], bool] = lambda file: False

    @property
    def ahead(self) -> int:
        """Bytes fetched ahead beyond where readers in order were last seen."""
        return sum(planner.ahead for planner in self._planners.values())

    def observe(self, file: OpenDatapoint, read: Span) -> None:
        """Take note that *read* (a span of the object) of *file* is wanted now."""
        file.is_in_order = False
        if self.is_announced(file) and file.entry.size <= CHUNK:
            return
        planner = self._planners.setdefault(file.dataset.id, PrefetchPlanner(self._limits))
        worth = planner.observe(read.shifted(file.base))
        file.is_in_order = planner.is_forwards
        if file.is_in_order:
            self._pool.passed(file.ref, read.start)
        if worth is None:
            return
        later: list[tuple[Datarange, Span]] = []
        objects = file.snapshot.objects_in(worth)
        if worth.start < read.start + file.base:  # backwards: the nearest first
            objects.reverse()
        for datarange, span in objects:
            index = file.index if datarange.id == file.datarange.id else self._indices.peek(datarange)
            if index is not None and not later:
                self._request(file.snapshot, datarange, index, span)
            else:
                later.append((datarange, span))
        if later:
            self._nursery.start_soon(self._fetch_later, file.snapshot, later)

    async def _fetch_later(self, snapshot: Snapshot, parts: list[tuple[Datarange, Span]]) -> None:
        for datarange, span in parts:
            try:
                index = await self._indices.of(snapshot.dataset.bucket_id, datarange)
            except Datas3tError:
                return  # whoever really reads there will be told
            self._request(snapshot, datarange, index, span)

    def _request(self, snapshot: Snapshot, datarange: Datarange, index: Index, span: Span) -> None:
        ref = object_ref(snapshot.dataset, datarange, index)
        for stretch in cut(index, span, _REQUEST):
            if not self._pool.request(ref, stretch):
                return


@asynccontextmanager
async def open_prefetcher(
    pool: BlockPool, indices: Indices, limits: PrefetchLimits
) -> AsyncIterator[Prefetcher]:
    """Own the tasks that fetch ahead; leaving cancels them."""
    async with background_nursery() as nursery:
        yield Prefetcher(nursery, pool, indices, limits)

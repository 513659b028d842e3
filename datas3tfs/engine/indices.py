"""Indices of dataranges: from memory, else from the disk cache, else from S3.

What is in memory is a view of a mapped file; the number of open ones is bounded because the kernel
limits a process's mappings. A failure is remembered for a moment, so that a thousand lookups in a
broken datarange are not a thousand downloads.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.index import Index, open_index
from datas3tfs.core.indexfile import BareRecords, decode_index_file, index_file_limit
from datas3tfs.core.model import BucketId, Datarange, DatarangeId
from datas3tfs.core.tar import BLOCK
from datas3tfs.engine.learn import learn_index
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.singleflight import SingleFlight
from datas3tfs.errors import Corrupt, NotFound
from datas3tfs.ports import IndexCache, ObjectStore, Stores

# vm.max_map_count is 65,530 by default, for the whole process; this leaves most of it to others.
_OPEN_LIMIT = 8192
_ATTEMPTS = 3  # at an index that fails its checks: it may have been mangled on the way
_FAILURE_SECONDS = 30.0  # how long a corrupt index stays corrupt without another look


class ObjectGone(Corrupt):
    """An object of a datarange is not there: it is lost, or the datarange was replaced since it was found."""


class Indices:
    """Hands out indices; made by `open_indices`."""

    def __init__(
        self, nursery: trio.Nursery, cache: IndexCache, stores: Stores, counters: Counters, patience: float
    ) -> None:
        self._cache = cache
        self._stores = stores
        self._counters = counters
        self._open: OrderedDict[DatarangeId, Index] = OrderedDict()
        self._met: set[DatarangeId] = set()  # those that were ever handed out, whatever became of them
        self._failed: dict[DatarangeId, tuple[float, Corrupt]] = {}
        self._flights: SingleFlight[DatarangeId, Index] = SingleFlight(nursery, patience)

    def peek(self, datarange: Datarange) -> Index | None:
        """Return the index if it is in memory."""
        return self._open.get(datarange.id)

    def has_met(self, datarange: Datarange) -> bool:
        """Say whether the index was handed out before: then others may have been told what it says."""
        return datarange.id in self._met

    async def of(self, bucket_id: BucketId, datarange: Datarange) -> Index:
        """Return the index of *datarange*. Raises Corrupt (ObjectGone), Unavailable."""
        if (index := self._open.get(datarange.id)) is not None:
            self._open.move_to_end(datarange.id)
            return index
        self._raise_if_failed(datarange.id)
        index = await self._flights.run(
            datarange.id, datarange.index_key, lambda: self._load(bucket_id, datarange)
        )
        self._open[datarange.id] = index
        self._met.add(datarange.id)
        while len(self._open) > _OPEN_LIMIT:
            self._open.popitem(last=False)
        return index

    async def fresh(self, bucket_id: BucketId, datarange: Datarange) -> Index:
        """Return the index as it is in S3 now, whatever is cached. Raises Corrupt, Unavailable."""
        return await self._from_store(bucket_id, datarange)

    async def retire(self, datarange: Datarange) -> Index | None:
        """Drop an index from memory (its datarange is gone) and return it if it was known here."""
        self._failed.pop(datarange.id, None)
        self._met.discard(datarange.id)
        return self._open.pop(datarange.id, None) or await self._from_disk(datarange)

    async def _load(self, bucket_id: BucketId, datarange: Datarange) -> Index:
        try:
            return await self._from_disk(datarange) or await self._from_store(bucket_id, datarange)
        except Corrupt as exc:
            self._failed[datarange.id] = (trio.current_time(), exc)
            raise

    async def _from_disk(self, datarange: Datarange) -> Index | None:
        key = cache_key(datarange)
        buffer = await self._cache.get(key)
        if buffer is None:
            self._counters.add("cache.index_miss")
            return None
        try:
            index = _opened(buffer, datarange)
        except Corrupt:
            self._counters.add("cache.index_damaged")
            await self._cache.discard(key)
            return None
        self._counters.add("cache.index_hit")
        return index

    async def _from_store(self, bucket_id: BucketId, datarange: Datarange) -> Index:
        if datarange.size < datarange.count * BLOCK:  # what follows trusts the count with memory
            raise Corrupt(f"{datarange.data_key}: too short for {datarange.count} datapoints")
        store = await self._stores.store(bucket_id)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                flat = await self._fetch(store, datarange)
                break
            except NotFound as exc:
                raise ObjectGone(f"an object of the datarange is gone: {exc}") from exc
            except Corrupt as exc:
                self._counters.add("index.corrupt")
                if attempt == _ATTEMPTS:
                    raise Corrupt(f"{datarange.index_key}: {exc}") from exc
        return _opened(await self._cache.put(cache_key(datarange), flat), datarange)

    async def _fetch(self, store: ObjectStore, datarange: Datarange) -> bytes:
        """Return the flat index, checked. Raises NotFound, Corrupt, Unavailable."""
        raw = await store.get(datarange.index_key, index_file_limit(datarange.count, datarange.size))
        decoded = decode_index_file(raw, count=datarange.count, object_size=datarange.size)
        if isinstance(decoded, BareRecords):
            self._counters.add("index.learnt")
            decoded = await learn_index(store, datarange, decoded.records)
        _opened(memoryview(decoded), datarange)
        return decoded

    def _raise_if_failed(self, datarange_id: DatarangeId) -> None:
        failed_at, error = self._failed.get(datarange_id, (0.0, None))
        if error is None:
            return
        if trio.current_time() - failed_at < _FAILURE_SECONDS:
            raise type(error)(*error.args) from error
        del self._failed[datarange_id]


def _opened(buffer: memoryview, datarange: Datarange) -> Index:
    return open_index(buffer, first=datarange.keys.start, count=datarange.count, object_size=datarange.size)


def cache_key(datarange: Datarange) -> str:
    """Return the disk cache's key: everything that tells one generation of a range from another.

    The catalog's id alone would not do (a cache directory may serve several catalogs), nor the
    object's key alone (the Go servers reuse theirs); the moment of the commit settles it.
    """
    identity = (
        f"{datarange.id}\n{datarange.created_ns}\n{datarange.data_key}\n{datarange.index_key}\n"
        f"{datarange.keys.start}\n{datarange.keys.stop}\n{datarange.size}"
    )
    return hashlib.sha256(identity.encode()).hexdigest()


@asynccontextmanager
async def open_indices(
    cache: IndexCache, stores: Stores, counters: Counters, patience: float = math.inf
) -> AsyncIterator[Indices]:
    """Own the loads under way; leaving cancels them. Nobody waits longer than *patience* seconds."""
    async with background_nursery() as nursery:
        yield Indices(nursery, cache, stores, counters, patience)

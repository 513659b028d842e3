"""The buckets' stores, one per bucket, made once; and the two things done to a bucket as such.

Not for what a store does (store.py). Concurrency: the event loop's; `store`
looks again after its only wait, so that a bucket asked for twice at once still has one store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from random import random as system_random

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Bucket as RegisteredBucket
from datas3tfs.core.model import BucketId, BucketSpec
from datas3tfs.errors import Unavailable
from datas3tfs.objects.bucket import Bucket
from datas3tfs.objects.retries import Retrier
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.store import RetryingStore
from datas3tfs.objects.translate import quiet_libraries

Lookup = Callable[[BucketId], Awaitable[RegisteredBucket]]


class S3Stores:
    """ports.Stores and ports.WholeStores over S3; made by `open_stores`."""

    def __init__(
        self, lookup: Lookup, settings: S3Settings, counters: Counters, random: Callable[[], float]
    ) -> None:
        self._lookup = lookup
        self.settings = settings
        self._counters = counters
        self._retrier = Retrier(settings, counters, random)
        self._gets = trio.CapacityLimiter(settings.parallel_gets)
        self._calls = trio.CapacityLimiter(settings.parallel_calls)
        self._places = trio.Semaphore(settings.parts_at_once)
        self._buckets: list[Bucket] = []
        self._stores: dict[BucketId, RetryingStore] = {}

    async def store(self, bucket_id: BucketId) -> RetryingStore:
        """See ports.WholeStores; raises what the lookup raises."""
        if bucket_id not in self._stores:
            spec = (await self._lookup(bucket_id)).spec
            if bucket_id not in self._stores:
                self._stores[bucket_id] = self.of(spec)
        return self._stores[bucket_id]

    def of(self, spec: BucketSpec) -> RetryingStore:
        """Return a new store for *spec*, registered or not."""
        return RetryingStore(self.bucket(spec), self.settings, self._retrier, self._places)

    def bucket(self, spec: BucketSpec) -> Bucket:
        """Return a new bucket, without retries, that closes with these stores."""
        bucket = Bucket(spec, self.settings, self._counters, self._gets, self._calls)
        self._buckets.append(bucket)
        return bucket

    def close(self) -> None:
        """Close all connections that are idle."""
        for bucket in self._buckets:
            bucket.close()


@asynccontextmanager
async def open_stores(
    lookup: Lookup,
    settings: S3Settings,
    counters: Counters,
    random: Callable[[], float] = system_random,
) -> AsyncIterator[S3Stores]:
    """Hold the stores of the buckets that *lookup* knows (catalog's `bucket`)."""
    quiet_libraries()
    stores = S3Stores(lookup, settings, counters, random)
    try:
        yield stores
    finally:
        stores.close()


async def check_bucket(spec: BucketSpec, settings: S3Settings, counters: Counters) -> None:
    """Ask S3 once whether the bucket can be listed. Raises Unavailable (and says why), Invalid (endpoint)."""
    with _lone(spec, settings, counters) as bucket:
        await _once(spec, settings, bucket.check)


async def create_bucket(spec: BucketSpec, settings: S3Settings, counters: Counters) -> None:
    """Create the bucket in S3 unless it is there and can be listed. Raises Unavailable, Invalid."""
    with _lone(spec, settings, counters) as bucket:
        await _once(spec, settings, bucket.create)
        await _once(spec, settings, bucket.check)


async def _once(spec: BucketSpec, settings: S3Settings, attempt: Callable[[], Awaitable[None]]) -> None:
    with trio.move_on_after(settings.attempt_timeout):
        return await attempt()
    raise Unavailable(f"bucket {spec.name}: no answer within {settings.attempt_timeout:.1f} s")


@contextmanager
def _lone(spec: BucketSpec, settings: S3Settings, counters: Counters) -> Iterator[Bucket]:
    quiet_libraries()
    limiter = trio.CapacityLimiter(1)
    bucket = Bucket(spec, settings, counters, limiter, limiter)
    try:
        yield bucket
    finally:
        bucket.close()

"""The one place that tries again.

Only Unavailable is tried again; everything else would come out the same. Not for S3 itself
(bucket.py). Each attempt has a timeout and all of them together another: whatever the server does,
an operation ends. Concurrency: the event loop's; attempts of one operation follow each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.spans import Span
from datas3tfs.errors import Unavailable
from datas3tfs.objects.bucket import Bucket
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.upload import upload

T = TypeVar("T")


class Retrier:
    """Exponential back-off with full jitter; *random* returns floats from 0 to 1."""

    def __init__(self, settings: S3Settings, counters: Counters, random: Callable[[], float]) -> None:
        self._settings = settings
        self._counters = counters
        self._random = random

    async def run(self, what: str, attempt: Callable[[], Awaitable[T]], volume: int = 0) -> T:
        """Return what *attempt* returns, which moves about *volume* bytes.

        Raises Unavailable, saying what was tried and for how long; anything else as it comes.
        """
        begun = trio.current_time()
        allowance = self._settings.allowance(volume)
        end = begun + self._settings.io_timeout + allowance
        patience = self._settings.attempt_timeout + allowance
        tries = 0
        while True:
            tries += 1
            failure = Unavailable(f"no answer within {patience:.1f} s")
            try:
                with trio.move_on_at(min(end, trio.current_time() + patience)):
                    return await attempt()
            except Unavailable as exc:
                failure = exc
            self._counters.add("s3.error")
            pause = self._pause(tries)
            now = trio.current_time()
            if now + pause >= end:
                spent = f"{tries} attempt{'s' if tries > 1 else ''} in {now - begun:.1f} s"
                raise Unavailable(f"{what}: gave up after {spent}; last: {failure}") from failure
            self._counters.add("s3.retry")
            await trio.sleep(pause)

    def _pause(self, tries: int) -> float:
        ceiling = self._settings.first_pause * 2.0 ** min(tries - 1, 30)
        return self._random() * min(self._settings.longest_pause, ceiling)


class RetryingStore:
    """A bucket as ports.ObjectStore: every call of bucket.Bucket, tried again where that helps."""

    def __init__(self, bucket: Bucket, settings: S3Settings, retrier: Retrier) -> None:
        self._bucket = bucket
        self._settings = settings
        self._retrier = retrier

    async def get_range(self, key: str, span: Span, total: int) -> bytes:
        """See ports.ObjectStore."""
        what = f"read {key} bytes {span.start}..{span.stop}"
        return await self._retrier.run(what, lambda: self._bucket.get_range(key, span, total), span.length)

    async def get(self, key: str, limit: int) -> bytes:
        """See ports.ObjectStore."""
        volume = min(limit, self._settings.part_size)  # a generous limit is no reason to wait for hours
        return await self._retrier.run(f"read {key}", lambda: self._bucket.get(key, limit), volume)

    async def size(self, key: str) -> int:
        """See ports.ObjectStore."""
        return await self._retrier.run(f"look up {key}", lambda: self._bucket.size(key))

    async def put(self, key: str, body: bytes) -> None:
        """See ports.ObjectStore."""
        await self._retrier.run(f"store {key}", lambda: self._bucket.put(key, body), len(body))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], size: int) -> None:
        """See ports.ObjectStore. The stream runs once; it is the parts that are tried again."""
        await upload(self._bucket, self._retrier.run, self._settings, key, chunks, size)

    async def delete(self, key: str) -> None:
        """See ports.ObjectStore."""
        await self._retrier.run(f"delete {key}", lambda: self._bucket.delete(key))

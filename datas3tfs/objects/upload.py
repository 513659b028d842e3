"""Store a stream as one object: in one request if it is small, else in parallel parts.

Not for retries themselves: each request goes through the *run* it is given. The object appears whole
or not at all, because nothing becomes an object before the stream has proved to be as long as
announced, and an upload that fails is aborted.

Concurrency: one task reads the stream, up to `parts_in_flight` others send; the reader waits for a
place before it takes the next part into memory. The first failure stops all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import trio

from datas3tfs.core.spans import Span
from datas3tfs.errors import Datas3tError
from datas3tfs.objects.bucket import Bucket, PartTag, UploadHandle
from datas3tfs.objects.parts import Cutter, plan_parts
from datas3tfs.objects.settings import S3Settings

# Servers put parts together when asked to complete: AWS within seconds, others copy at disk speed.
_ASSEMBLY_RATE = 64  # times S3Settings.slowest_rate: 16 MiB/s

T = TypeVar("T")


class Run(Protocol):
    """Try something until it works or time is up; see retries.Retrier.run."""

    async def __call__(self, what: str, attempt: Callable[[], Awaitable[T]], volume: int = 0) -> T: ...


async def upload(
    bucket: Bucket, run: Run, settings: S3Settings, key: str, chunks: AsyncIterator[bytes], size: int
) -> None:
    """Store *size* bytes from *chunks*; raises as ports.ObjectStore.put_stream does."""
    cutter = Cutter(key, chunks, size)
    try:
        if size <= settings.part_size:
            body = await cutter.take(size)
            await cutter.end()
            await run(f"store {key}", lambda: bucket.put(key, body), size)
        else:
            await _in_parts(bucket, run, settings, key, cutter, size)
    finally:
        close = getattr(chunks, "aclose", None)  # a generator keeps its resources until closed
        if close is not None:
            await close()


async def _in_parts(
    bucket: Bucket, run: Run, settings: S3Settings, key: str, cutter: Cutter, size: int
) -> None:
    handle: UploadHandle | None = None
    try:
        handle = await run(f"begin {key}", lambda: bucket.begin(key))
        sender = _Sender(bucket, run, key, handle, plan_parts(size, settings.part_size))
        tags = await sender.send(cutter, settings.parts_in_flight)
        await _complete(bucket, run, key, handle, tags, size)
    except BaseException:
        # Shielded, for this is most needed when cancelled. What it leaves behind, `delete` finds.
        with trio.move_on_after(settings.attempt_timeout, shield=True), suppress(Datas3tError):
            # Without a handle, one may have been made that we were not told of.
            for left in [handle] if handle else await bucket.unfinished(key):
                await bucket.abort(key, left)
        raise


class _Sender:
    """Sends the parts of one upload."""

    def __init__(self, bucket: Bucket, run: Run, key: str, handle: UploadHandle, parts: list[Span]) -> None:
        self._bucket = bucket
        self._run = run
        self._key = key
        self._handle = handle
        self._parts = parts
        self._tags: dict[int, PartTag] = {}
        self._failure: Exception | None = None

    async def send(self, cutter: Cutter, in_flight: int) -> list[PartTag]:
        """Return the tags of all parts. Raises the first failure, as it is."""
        places = trio.Semaphore(in_flight)
        async with trio.open_nursery() as nursery:
            try:
                for number, part in enumerate(self._parts, start=1):
                    await places.acquire()
                    nursery.start_soon(self._part, number, await cutter.take(part.length), places, nursery)
                await cutter.end()
            except Exception as exc:
                self._fail(exc, nursery)
        if self._failure is not None:
            raise self._failure
        return [self._tags[number] for number in range(1, len(self._parts) + 1)]

    async def _part(
        self, number: int, body: bytearray, places: trio.Semaphore, nursery: trio.Nursery
    ) -> None:
        what = f"store {self._key} part {number} of {len(self._parts)}"
        try:
            self._tags[number] = await self._run(
                what, lambda: self._bucket.put_part(self._key, self._handle, number, body), len(body)
            )
        except Exception as exc:
            self._fail(exc, nursery)
        finally:
            places.release()

    def _fail(self, exc: Exception, nursery: trio.Nursery) -> None:
        """Keep the first failure and stop the others: raising it here would wrap it in a group."""
        if self._failure is None:
            self._failure = exc
        nursery.cancel_scope.cancel()


async def _complete(
    bucket: Bucket, run: Run, key: str, handle: UploadHandle, tags: list[PartTag], size: int
) -> None:
    """Make the parts an object. If an answer was lost, the second try finds the upload gone: then look."""
    uncertain = False

    async def attempt() -> None:
        nonlocal uncertain
        if uncertain and await _is_there(bucket, key, size):
            return
        uncertain = True
        await bucket.complete(key, handle, tags)

    await run(f"complete {key}", attempt, size // _ASSEMBLY_RATE)


async def _is_there(bucket: Bucket, key: str, size: int) -> bool:
    try:
        return await bucket.size(key) == size
    except Datas3tError:
        return False

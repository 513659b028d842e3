"""Store a stream as one object: in one request if it is small, else in parallel parts.

Not for retries themselves: each request goes through the *run* it is given. The object appears whole
or not at all, because nothing becomes an object before the stream has proved to be as long as
announced, and an upload that fails is aborted.

Concurrency: one task reads the stream, up to `parts_in_flight` others send; the reader waits for a
place before it takes the next part into memory, also for one of those that all uploads share. Who has
one of these waits for its stream and for S3 alone, never for another. The first failure stops all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol, TypeVar

import trio

from datas3tfs.core.spans import Span
from datas3tfs.errors import Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.objects.bucket import Bucket
from datas3tfs.objects.multipart import Multiparts, PartTag, UploadHandle
from datas3tfs.objects.parts import Cutter, plan_parts
from datas3tfs.objects.settings import S3Settings

# Servers put parts together when asked to complete: AWS within seconds, others copy at disk speed.
ASSEMBLY_RATE = 64  # times S3Settings.slowest_rate: 16 MiB/s

T = TypeVar("T")


class Run(Protocol):
    """Try something until it works or time is up; see retries.Retrier.run."""

    async def __call__(self, what: str, attempt: Callable[[], Awaitable[T]], volume: int = 0) -> T: ...


async def upload(
    bucket: Bucket,
    run: Run,
    settings: S3Settings,
    shared: trio.Semaphore,
    key: str,
    chunks: AsyncIterator[bytes],
    size: int,
) -> None:
    """Store *size* bytes from *chunks*, a place of *shared* for each part in memory; raises as
    ports.ObjectStore.put_stream does."""
    cutter = Cutter(key, chunks, size)
    try:
        if size <= settings.part_size:
            async with shared:
                body = await cutter.take(size)
                await cutter.end()
                await run(f"store {key}", lambda: bucket.put(key, body), size)
        else:
            await _in_parts(bucket, run, settings, shared, key, cutter, size)
    finally:
        close = getattr(chunks, "aclose", None)  # a generator keeps its resources until closed
        if close is not None:
            await close()


async def _in_parts(
    bucket: Bucket,
    run: Run,
    settings: S3Settings,
    shared: trio.Semaphore,
    key: str,
    cutter: Cutter,
    size: int,
) -> None:
    handle: UploadHandle | None = None
    try:
        handle = await run(f"begin {key}", lambda: bucket.multiparts.begin(key))
        sender = _Sender(bucket.multiparts, run, key, handle, plan_parts(size, settings.part_size))
        tags = await sender.send(cutter, trio.Semaphore(settings.parts_in_flight), shared)
        with _dropped(key):
            await complete(bucket, run, key, handle, list(enumerate(tags, start=1)), size)
    except BaseException:
        # Shielded, for this is most needed when cancelled. What it leaves behind, `delete` finds.
        with trio.move_on_after(settings.attempt_timeout, shield=True), suppress(Datas3tError):
            # Without a handle, one may have been made that we were not told of.
            for left in [handle] if handle else await bucket.multiparts.unfinished(key):
                await bucket.multiparts.abort(key, left)
        raise


class _Sender:
    """Sends the parts of one upload."""

    def __init__(
        self, multiparts: Multiparts, run: Run, key: str, handle: UploadHandle, parts: list[Span]
    ) -> None:
        self._multiparts = multiparts
        self._run = run
        self._key = key
        self._handle = handle
        self._parts = parts
        self._tags: dict[int, PartTag] = {}
        self._failure: Exception | None = None

    async def send(self, cutter: Cutter, own: trio.Semaphore, shared: trio.Semaphore) -> list[PartTag]:
        """Return the tags of all parts. Raises the first failure, as it is."""
        async with trio.open_nursery() as nursery:
            try:
                for number, part in enumerate(self._parts, start=1):
                    with ExitStack() as places:
                        for semaphore in (own, shared):
                            await semaphore.acquire()
                            places.callback(semaphore.release)
                        body = await cutter.take(part.length)
                        nursery.start_soon(self._part, number, body, places.pop_all(), nursery)
                await cutter.end()
            except Exception as exc:
                self._fail(exc, nursery)
        if self._failure is not None:
            raise self._failure
        return [self._tags[number] for number in range(1, len(self._parts) + 1)]

    async def _part(self, number: int, body: bytes, places: ExitStack, nursery: trio.Nursery) -> None:
        what = f"store {self._key} part {number} of {len(self._parts)}"
        try:
            with _dropped(self._key):
                self._tags[number] = await self._run(
                    what, lambda: self._multiparts.put_part(self._key, self._handle, number, body), len(body)
                )
        except Exception as exc:
            self._fail(exc, nursery)
        finally:
            places.close()

    def _fail(self, exc: Exception, nursery: trio.Nursery) -> None:
        """Keep the first failure and stop the others: raising it here would wrap it in a group."""
        if self._failure is None:
            self._failure = exc
        nursery.cancel_scope.cancel()


async def complete(
    bucket: Bucket, run: Run, key: str, handle: UploadHandle, tags: Sequence[tuple[int, PartTag]], size: int
) -> None:
    """Make the parts, (number, tag) ascending, the object *key* of *size* bytes, unless it is there.

    If an answer was lost, the second try looks first; if the upload is gone, any try does. Raises
    NotFound (no such upload, nor such an object), Invalid (S3 refuses the parts), Unavailable.
    """
    uncertain = False

    async def attempt() -> None:
        nonlocal uncertain
        if uncertain and await _is_there(bucket, key, size):
            return
        uncertain = True
        try:
            await bucket.multiparts.complete(key, handle, tags)
        except NotFound:
            if not await _is_there(bucket, key, size):
                raise

    await run(f"complete {key}", attempt, size // ASSEMBLY_RATE)


async def _is_there(bucket: Bucket, key: str, size: int) -> bool:
    try:
        return await bucket.size(key) == size
    except NotFound:
        return False


@contextmanager
def _dropped(key: str) -> Iterator[None]:
    """Whoever streams knows no parts: that somebody aborted the upload, or S3 lost some, is an outage."""
    try:
        yield
    except (NotFound, Invalid) as exc:
        raise Unavailable(f"store {key}: S3 has dropped the upload: {exc}") from exc

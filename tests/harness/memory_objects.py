"""Memory twins of ports.ObjectStore and ports.Stores, and a decorator that fails on demand.

Held to the same contract as the S3 adapter (tests/contract/test_object_store.py). Not for timing: a
call here waits only at a checkpoint. Concurrency: the event loop's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from datas3tfs.core.model import BucketId
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Invalid, NotFound
from datas3tfs.ports import ObjectStore

T = TypeVar("T")


class MemoryStore:
    """A bucket as a dict; `objects` may be looked at and damaged. `gets` lists the ranges read."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.gets: list[tuple[str, Span]] = []

    async def get_range(self, key: str, span: Span, total: int) -> bytes:
        """See ports.ObjectStore."""
        if span.start < 0 or span.stop > total:
            raise Corrupt(f"{key}: bytes {span.start}..{span.stop} asked for, but it has {total}")
        await trio.lowlevel.checkpoint()
        if not span:
            return b""
        body = self._object(key)
        if len(body) != total:
            raise Corrupt(f"{key}: {len(body)} bytes long, must be {total}")
        self.gets.append((key, span))
        return body[span.start : span.stop]

    async def get(self, key: str, limit: int) -> bytes:
        """See ports.ObjectStore."""
        await trio.lowlevel.checkpoint()
        body = self._object(key)
        if len(body) > limit:
            raise Corrupt(f"{key}: {len(body)} bytes long, at most {limit} expected")
        self.gets.append((key, Span(0, len(body))))
        return body

    async def size(self, key: str) -> int:
        """See ports.ObjectStore."""
        await trio.lowlevel.checkpoint()
        return len(self._object(key))

    async def put(self, key: str, body: bytes) -> None:
        """See ports.ObjectStore."""
        await trio.lowlevel.checkpoint()
        self.objects[key] = bytes(body)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], size: int) -> None:
        """See ports.ObjectStore."""
        await trio.lowlevel.checkpoint()
        body = bytearray()
        try:
            async for chunk in chunks:
                body += chunk
                if len(body) > size:
                    break
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        if len(body) != size:
            word = "more" if len(body) > size else "fewer"
            raise Invalid(f"{key}: {word} than the {size} bytes announced were given")
        self.objects[key] = bytes(body)

    async def delete(self, key: str) -> None:
        """See ports.ObjectStore."""
        await trio.lowlevel.checkpoint()
        self.objects.pop(key, None)

    def _object(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound(f"{key}: no such object")
        return self.objects[key]


class MemoryStores:
    """ports.Stores over a dict of stores; a bucket that is not in it does not exist."""

    def __init__(self, stores: Mapping[BucketId, ObjectStore]) -> None:
        self._stores = dict(stores)

    async def store(self, bucket_id: BucketId) -> ObjectStore:
        """See ports.Stores."""
        await trio.lowlevel.checkpoint()
        if bucket_id not in self._stores:
            raise NotFound(f"bucket {bucket_id}: not registered")
        return self._stores[bucket_id]


class FailingStore:
    """Passes calls on to *inner*, except those it was told to fail.

    `fail("put", 2, Unavailable("…"))` makes the second put from the start raise instead; with
    *after* the call takes effect first and then raises, as when an answer is lost. `before_each` is
    awaited before every call (to block, to count, to crash).
    """

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._plans: dict[tuple[str, int], tuple[BaseException, bool]] = {}
        self.calls: Counter[str] = Counter()
        self.before_each: Callable[[str, str], Awaitable[None]] | None = None

    def fail(self, method: str, nth: int, error: BaseException, *, after: bool = False) -> None:
        """Let the *nth* call (from 1) of *method* raise *error*."""
        self._plans[method, nth] = (error, after)

    async def get_range(self, key: str, span: Span, total: int) -> bytes:
        """See ports.ObjectStore."""
        return await self._pass("get_range", key, lambda: self._inner.get_range(key, span, total))

    async def get(self, key: str, limit: int) -> bytes:
        """See ports.ObjectStore."""
        return await self._pass("get", key, lambda: self._inner.get(key, limit))

    async def size(self, key: str) -> int:
        """See ports.ObjectStore."""
        return await self._pass("size", key, lambda: self._inner.size(key))

    async def put(self, key: str, body: bytes) -> None:
        """See ports.ObjectStore."""
        await self._pass("put", key, lambda: self._inner.put(key, body))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], size: int) -> None:
        """See ports.ObjectStore."""
        await self._pass("put_stream", key, lambda: self._inner.put_stream(key, chunks, size))

    async def delete(self, key: str) -> None:
        """See ports.ObjectStore."""
        await self._pass("delete", key, lambda: self._inner.delete(key))

    async def _pass(self, method: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls[method] += 1
        error, after = self._plans.pop((method, self.calls[method]), (None, False))
        if self.before_each is not None:
            await self.before_each(method, key)
        if error is not None and not after:
            raise error
        result = await call()
        if error is not None:
            raise error
        return result

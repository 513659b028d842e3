"""Memory twins of ports.WholeStore and ports.WholeStores, and a decorator that fails on demand.

Held to the same contracts as the S3 adapter (tests/contract/test_object_store.py, test_shared_store.py).
A test plays the client that was given presigned URLs with `client_get` and `client_put`. Not for
timing: a call here waits only at a checkpoint. Concurrency: the event loop's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import trio

from datas3tfs.core.model import BucketId, Found, Part
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Invalid, NotFound, Unavailable
from datas3tfs.ports import WholeStore

MIB = 1 << 20
MODIFIED_NS = 1_700_000_000 * 10**9  # of an object that was put into `objects` past the methods

T = TypeVar("T")


class Refused(Exception):
    """What a client sees of a presigned URL that does not work: *status* as S3's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


@dataclass
class Multipart:
    """A multipart upload that is not completed."""

    key: str
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Permit:
    """What a presigned URL allows."""

    method: str
    key: str
    multipart: str | None = None
    number: int = 0


def tag_of(body: bytes) -> str:
    """Return the ETag, quotes included, of an object or a part put in one request."""
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


class MemoryStore:
    """A bucket as a dict; `objects` may be looked at and damaged. `gets` lists the ranges read."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, int] = {}  # nanoseconds since the epoch; to be set by tests
        self.gets: list[tuple[str, Span]] = []
        self.multiparts: dict[str, Multipart] = {}  # by id
        self.least_part = 5 * MIB  # S3's rule for all parts but the last; tests may lower it
        self.can_copy = True  # False: as rclone's server
        self._permits: dict[str, _Permit] = {}  # by URL
        self._serial = 0

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
        for multipart in [name for name, upload in self.multiparts.items() if upload.key == key]:
            del self.multiparts[multipart]

    # For others

    async def get_url(self, key: str) -> str:
        """See ports.SharedStore."""
        await trio.lowlevel.checkpoint()
        return self._url(_Permit("GET", key))

    async def put_url(self, key: str) -> str:
        """See ports.SharedStore."""
        await trio.lowlevel.checkpoint()
        return self._url(_Permit("PUT", key))

    async def begin_multipart(self, key: str) -> str:
        """See ports.SharedStore."""
        await trio.lowlevel.checkpoint()
        self._serial += 1
        multipart = f"multipart-{self._serial}"
        self.multiparts[multipart] = Multipart(key)
        return multipart

    async def part_urls(self, key: str, multipart: str, numbers: Sequence[int]) -> list[str]:
        """See ports.SharedStore."""
        await trio.lowlevel.checkpoint()
        return [self._url(_Permit("PUT", key, multipart, number)) for number in numbers]

    async def parts(self, key: str, multipart: str) -> list[Part]:
        """See ports.SharedStore."""
        await trio.lowlevel.checkpoint()
        arrived = sorted(self._multipart(key, multipart).parts.items())
        return [Part(number, len(body), tag_of(body)) for number, body in arrived]

    async def complete_multipart(
        self, key: str, multipart: str, tags: Sequence[tuple[int, str]], size: int
    ) -> None:
        """See ports.SharedStore."""
        await trio.lowlevel.checkpoint()
        if multipart not in self.multiparts and len(self.objects.get(key, b"")) == size > 0:
            return
        parts = self._multipart(key, multipart).parts
        numbers = [number for number, _ in tags]
        if not numbers or numbers != sorted(set(numbers)):
            raise Invalid(f"{key}: the parts are not in order")
        if any(number not in parts or tag_of(parts[number]) != _quoted(tag) for number, tag in tags):
            raise Invalid(f"{key}: a part is not there, or another one")
        if any(len(parts[number]) < self.least_part for number in numbers[:-1]):
            raise Invalid(f"{key}: a part is too small")
        self.objects[key] = b"".join(parts[number] for number in numbers)
        del self.multiparts[multipart]

    async def abort_multipart(self, key: str, multipart: str) -> None:
        """See ports.SharedStore."""
        await trio.lowlevel.checkpoint()
        self.multiparts.pop(multipart, None)

    async def abort_unfinished(self, key: str) -> None:
        """See ports.SharedStore."""
        await trio.lowlevel.checkpoint()
        self.multiparts = {name: upload for name, upload in self.multiparts.items() if upload.key != key}

    # Parts and listings

    async def put_part(self, key: str, multipart: str, number: int, body: bytes) -> str:
        """See ports.PartStore."""
        await trio.lowlevel.checkpoint()
        self._multipart(key, multipart).parts[number] = bytes(body)
        return tag_of(body)

    async def copy_part(self, key: str, multipart: str, number: int, source: str, span: Span) -> str | None:
        """See ports.PartStore."""
        await trio.lowlevel.checkpoint()
        if not self.can_copy:
            return None
        parts = self._multipart(key, multipart).parts
        body = self._object(source)
        if not 0 <= span.start < span.stop <= len(body) or len(body) <= self.least_part:
            raise Unavailable(f"{source}: {span.start}..{span.stop} of {len(body)} bytes cannot be copied")
        parts[number] = body[span.start : span.stop]
        return tag_of(body[span.start : span.stop])

    async def listed(self, prefix: str) -> AsyncIterator[Found]:
        """See ports.Listing."""
        for key in sorted(self.objects):
            if key.startswith(prefix):
                await trio.lowlevel.checkpoint()
                if key in self.objects:
                    yield Found(key, len(self.objects[key]), self.modified.get(key, MODIFIED_NS))

    # What the client does

    def client_get(self, url: str, span: Span | None = None) -> bytes:
        """GET the URL, or the bytes *span* of what it names. Raises Refused (403, 404, 416)."""
        permit = self._permit("GET", url)
        if permit.key not in self.objects:
            raise Refused(404, "NoSuchKey")
        body = self.objects[permit.key]
        if span is None:
            return body
        if span.start >= len(body):
            raise Refused(416, "InvalidRange")
        return body[span.start : span.stop]

    def client_put(self, url: str, body: bytes) -> str:
        """PUT *body* to the URL and return its ETag. Raises Refused (403, 404)."""
        permit = self._permit("PUT", url)
        if permit.multipart is None:
            self.objects[permit.key] = bytes(body)
        elif permit.multipart not in self.multiparts:
            raise Refused(404, "NoSuchUpload")
        else:
            self.multiparts[permit.multipart].parts[permit.number] = bytes(body)
        return tag_of(body)

    def expire_urls(self) -> None:
        """End the life of every URL handed out so far."""
        self._permits.clear()

    def _url(self, permit: _Permit) -> str:
        self._serial += 1
        url = f"memory://store/{quote(permit.key)}?method={permit.method}&signature={self._serial}"
        self._permits[url] = permit
        return url

    def _permit(self, method: str, url: str) -> _Permit:
        permit = self._permits.get(url)
        if permit is None or permit.method != method:
            raise Refused(403, "AccessDenied")
        return permit

    def _multipart(self, key: str, multipart: str) -> Multipart:
        upload = self.multiparts.get(multipart)
        if upload is None or upload.key != key:
            raise NotFound(f"{key}: no such multipart upload")
        return upload

    def _object(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound(f"{key}: no such object")
        return self.objects[key]


def _quoted(tag: str) -> str:
    return f'"{tag.strip(chr(34))}"'  # S3 takes an ETag with and without its quotes


class MemoryStores:
    """ports.WholeStores over a dict of stores; a bucket that is not in it does not exist."""

    def __init__(self, stores: Mapping[BucketId, WholeStore]) -> None:
        self._stores = dict(stores)

    async def store(self, bucket_id: BucketId) -> WholeStore:
        """See ports.WholeStores."""
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

    def __init__(self, inner: WholeStore) -> None:
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

    async def get_url(self, key: str) -> str:
        """See ports.SharedStore."""
        return await self._pass("get_url", key, lambda: self._inner.get_url(key))

    async def put_url(self, key: str) -> str:
        """See ports.SharedStore."""
        return await self._pass("put_url", key, lambda: self._inner.put_url(key))

    async def begin_multipart(self, key: str) -> str:
        """See ports.SharedStore."""
        return await self._pass("begin_multipart", key, lambda: self._inner.begin_multipart(key))

    async def part_urls(self, key: str, multipart: str, numbers: Sequence[int]) -> list[str]:
        """See ports.SharedStore."""
        return await self._pass("part_urls", key, lambda: self._inner.part_urls(key, multipart, numbers))

    async def parts(self, key: str, multipart: str) -> list[Part]:
        """See ports.SharedStore."""
        return await self._pass("parts", key, lambda: self._inner.parts(key, multipart))

    async def complete_multipart(
        self, key: str, multipart: str, tags: Sequence[tuple[int, str]], size: int
    ) -> None:
        """See ports.SharedStore."""
        complete = self._inner.complete_multipart
        await self._pass("complete_multipart", key, lambda: complete(key, multipart, tags, size))

    async def abort_multipart(self, key: str, multipart: str) -> None:
        """See ports.SharedStore."""
        await self._pass("abort_multipart", key, lambda: self._inner.abort_multipart(key, multipart))

    async def abort_unfinished(self, key: str) -> None:
        """See ports.SharedStore."""
        await self._pass("abort_unfinished", key, lambda: self._inner.abort_unfinished(key))

    async def put_part(self, key: str, multipart: str, number: int, body: bytes) -> str:
        """See ports.PartStore."""
        return await self._pass("put_part", key, lambda: self._inner.put_part(key, multipart, number, body))

    async def copy_part(self, key: str, multipart: str, number: int, source: str, span: Span) -> str | None:
        """See ports.PartStore."""
        copy = self._inner.copy_part
        return await self._pass("copy_part", key, lambda: copy(key, multipart, number, source, span))

    async def listed(self, prefix: str) -> AsyncIterator[Found]:
        """See ports.Listing. What is told to fail fails before (with *after*: after) the whole listing."""

        async def everything() -> list[Found]:
            return [found async for found in self._inner.listed(prefix)]

        for found in await self._pass("listed", prefix, everything):
            yield found

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

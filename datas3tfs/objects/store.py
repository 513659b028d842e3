"""A bucket as ports.WholeStore: what bucket.py, multipart.py and listing.py do, tried again where that helps.

Not for deciding what helps (retries.py), nor for cutting a stream into parts (upload.py). URLs for others
are signed anew each time, so that each lives for all of `url_life`. Concurrency: the event loop's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import trio

from datas3tfs.core.model import Found, Part
from datas3tfs.core.spans import Span
from datas3tfs.objects.bucket import Bucket
from datas3tfs.objects.listing import Page, Place
from datas3tfs.objects.multipart import PartTag, UploadHandle
from datas3tfs.objects.retries import Retrier
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.upload import ASSEMBLY_RATE, complete, upload


class RetryingStore:
    """One bucket, whole. *places*: for parts that are in memory, shared with other stores."""

    def __init__(
        self, bucket: Bucket, settings: S3Settings, retrier: Retrier, places: trio.Semaphore
    ) -> None:
        self._bucket = bucket
        self._multiparts = bucket.multiparts
        self._settings = settings
        self._run = retrier.run
        self._places = places

    # ports.ObjectStore

    async def get_range(self, key: str, span: Span, total: int) -> bytes:
        """See ports.ObjectStore."""
        what = f"read {key} bytes {span.start}..{span.stop}"
        return await self._run(what, lambda: self._bucket.get_range(key, span, total), span.length)

    async def get_range_by(
        self, key: str, span: Span, total: int, fetch: Callable[[str], Awaitable[memoryview]]
    ) -> memoryview:
        """Do that by *fetch*, which gets a signed address and may be called again; see bucket.py."""
        what = f"read {key} bytes {span.start}..{span.stop}"
        return await self._run(what, lambda: self._bucket.get_range_by(key, span, total, fetch), span.length)

    async def get(self, key: str, limit: int) -> bytes:
        """See ports.ObjectStore."""
        volume = min(limit, self._settings.part_size)  # a generous limit is no reason to wait for hours
        return await self._run(f"read {key}", lambda: self._bucket.get(key, limit), volume)

    async def size(self, key: str) -> int:
        """See ports.ObjectStore."""
        return await self._run(f"look up {key}", lambda: self._bucket.size(key))

    async def put(self, key: str, body: bytes) -> None:
        """See ports.ObjectStore."""
        await self._run(f"store {key}", lambda: self._bucket.put(key, body), len(body))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], size: int) -> None:
        """See ports.ObjectStore. The stream runs once; it is the parts that are tried again."""
        await upload(self._bucket, self._run, self._settings, self._places, key, chunks, size)

    async def delete(self, key: str) -> None:
        """See ports.ObjectStore."""
        await self._run(f"delete {key}", lambda: self._bucket.delete(key))

    # ports.SharedStore

    async def get_url(self, key: str) -> str:
        """See ports.SharedStore. Raises Invalid (endpoint)."""
        await trio.lowlevel.checkpoint()
        return self._bucket.signer.url("GET", key, self._settings.url_life)

    async def put_url(self, key: str) -> str:
        """See ports.SharedStore. Raises Invalid (endpoint)."""
        await trio.lowlevel.checkpoint()
        return self._bucket.signer.url("PUT", key, self._settings.url_life)

    async def begin_multipart(self, key: str) -> UploadHandle:
        """See ports.SharedStore. A lost answer leaves an upload without parts, for `delete` to find."""
        return await self._run(f"begin {key}", lambda: self._multiparts.begin(key))

    async def part_urls(self, key: str, multipart: UploadHandle, numbers: Sequence[int]) -> list[str]:
        """See ports.SharedStore. Thousands take a while: they are signed in a thread."""

        def sign() -> list[str]:
            queries = ({"uploadId": multipart, "partNumber": str(number)} for number in numbers)
            return [self._bucket.signer.url("PUT", key, self._settings.url_life, query) for query in queries]

        return await trio.to_thread.run_sync(sign, abandon_on_cancel=True)

    async def parts(self, key: str, multipart: UploadHandle) -> list[Part]:
        """See ports.SharedStore."""
        return await self._run(f"list parts of {key}", lambda: self._multiparts.parts(key, multipart))

    async def complete_multipart(
        self, key: str, multipart: UploadHandle, tags: Sequence[tuple[int, PartTag]], size: int
    ) -> None:
        """See ports.SharedStore."""
        await complete(self._bucket, self._run, key, multipart, tags, size)

    async def abort_multipart(self, key: str, multipart: UploadHandle) -> None:
        """See ports.SharedStore."""
        await self._run(f"abort {key}", lambda: self._multiparts.abort(key, multipart))

    async def abort_unfinished(self, key: str) -> None:
        """See ports.SharedStore."""
        for left in await self._run(f"list uploads of {key}", lambda: self._multiparts.unfinished(key)):
            await self.abort_multipart(key, left)

    # ports.PartStore

    async def put_part(self, key: str, multipart: UploadHandle, number: int, body: bytes) -> PartTag:
        """See ports.PartStore."""
        what = f"store {key} part {number}"
        return await self._run(
            what, lambda: self._multiparts.put_part(key, multipart, number, body), len(body)
        )

    async def copy_part(
        self, key: str, multipart: UploadHandle, number: int, source: str, span: Span
    ) -> PartTag | None:
        """See ports.PartStore. A server that cannot is asked once only."""
        return await self._run(
            f"copy {source} bytes {span.start}..{span.stop} to {key} part {number}",
            lambda: self._multiparts.copy_part(key, multipart, number, source, span),
            span.length // ASSEMBLY_RATE,
        )

    # ports.Listing

    async def listed(self, prefix: str) -> AsyncIterator[Found]:
        """See ports.Listing."""
        place: Place | None = Place()
        while place is not None:
            page = await self._page(prefix, place)
            for found in page.found:
                yield found
            place = page.then

    async def _page(self, prefix: str, place: Place) -> Page:
        return await self._run(f"list {prefix}", lambda: self._bucket.listings.page(prefix, place))

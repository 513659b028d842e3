"""One bucket, one request per call: what S3 can do, in our words and with our errors.

Not for retries (store.py) nor for cutting a stream into parts (upload.py): a failed call here has
failed. Concurrency: the event loop's; each call waits for one worker thread, and on cancellation
returns at once (calls.py). An upload left behind may still arrive, which is harmless because an object
key is never used for other bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import BucketSpec
from datas3tfs.core.spans import Span
from datas3tfs.errors import NotFound, Unavailable
from datas3tfs.objects.answers import check_asked
from datas3tfs.objects.calls import Calls, confirmed
from datas3tfs.objects.download import Downloads
from datas3tfs.objects.fetching import Denied
from datas3tfs.objects.listing import Listings
from datas3tfs.objects.multipart import BINARY, Multiparts
from datas3tfs.objects.presigned import PresignedUrls
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.signing import Signer

B = TypeVar("B", bytes, memoryview)


class Bucket:
    """Single attempts on one bucket."""

    def __init__(
        self,
        spec: BucketSpec,
        settings: S3Settings,
        counters: Counters,
        gets: trio.CapacityLimiter,
        calls: trio.CapacityLimiter,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._counters = counters
        self._calls = Calls(spec, settings, calls)
        self.multiparts = Multiparts(self._calls, counters, settings.page)
        self.listings = Listings(self._calls, counters, settings.page)
        self.signer = Signer(spec)
        self._urls = PresignedUrls(settings.presign_life, settings.presigned_limit)
        self._downloads = Downloads(settings, gets, tls=spec.endpoint_url.startswith("https://"))

    def close(self) -> None:
        """Close idle connections."""
        self._downloads.close()
        self._calls.close()

    # Reading

    async def get_range(self, key: str, span: Span, total: int) -> bytes:
        """See ports.ObjectStore."""
        check_asked(key, span, total)
        if not span:
            return b""
        return await self._read(key, lambda url: self._downloads.span(url, key, span, total))

    async def get_range_by(self, key: str, span: Span, total: int, fetch: Callable[[str], Awaitable[B]]) -> B:
        """Do that by *fetch*, which is given a signed address and does what `Downloads.span` does."""
        check_asked(key, span, total)
        return await self._read(key, fetch)

    async def get(self, key: str, limit: int) -> bytes:
        """See ports.ObjectStore."""
        return await self._read(key, lambda url: self._downloads.whole(url, key, limit))

    async def size(self, key: str) -> int:
        """See ports.ObjectStore."""
        self._counters.add("s3.head")
        answer = await self._calls(key, "head_object", Key=key)
        if "ContentLength" not in answer:
            raise Unavailable(f"{key}: the answer does not tell its length")
        return int(answer["ContentLength"])

    # Writing

    async def put(self, key: str, body: bytes | bytearray) -> None:
        """See ports.ObjectStore."""
        self._counters.add("s3.put")
        answer = await self._calls(key, "put_object", Key=key, Body=body, ContentType=BINARY)
        confirmed(key, answer, "ETag")
        self._counters.add("s3.put_bytes", len(body))

    async def delete(self, key: str) -> None:
        """See ports.ObjectStore. Uploads go first: none of them can then become the object again."""
        for handle in await self.multiparts.unfinished(key):
            await self.multiparts.abort(key, handle)
        self._counters.add("s3.delete")
        with suppress(NotFound):  # AWS says 204 then, others may not
            await self._calls(key, "delete_object", Key=key)

    # The bucket itself

    async def check(self) -> None:
        """List one object, to see whether bucket and credentials work. Raises Unavailable, Invalid."""
        self._counters.add("s3.list")
        await self._calls(f"bucket {self._spec.name}", "list_objects_v2", MaxKeys=1)

    async def create(self) -> None:
        """Create the bucket unless it is there. Raises Unavailable, Invalid."""
        asked: dict[str, Any] = {}
        if self._spec.region != "us-east-1":  # AWS refuses its default region to be named
            asked["CreateBucketConfiguration"] = {"LocationConstraint": self._spec.region}
        # 409: BucketAlreadyOwnedByYou, BucketAlreadyExists; whether it is usable, `check` tells.
        await self._calls(f"bucket {self._spec.name}", "create_bucket", tolerate={409}, **asked)

    async def _read(self, key: str, fetch: Callable[[str], Awaitable[B]]) -> B:
        """Fetch through the kept address, or a new one if there is none or S3 denies the kept one."""
        url = self._urls.get(key, trio.current_time())
        if url is not None:
            try:
                return await self._counted(fetch(url))
            except Denied:
                self._urls.discard(key)
        url = self.signer.url("GET", key, self._settings.presign_life)
        self._urls.remember(key, url, trio.current_time())
        return await self._counted(fetch(url))

    async def _counted(self, fetching: Awaitable[B]) -> B:
        self._counters.add("s3.get")
        body = await fetching
        self._counters.add("s3.get_bytes", len(body))
        return body

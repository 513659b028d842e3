"""One bucket, one request per call: what S3 can do, in our words and with our errors.

Not for retries (retries.py) nor for cutting a stream into parts (upload.py): a failed call here has
failed. Concurrency: the event loop's; each call waits for one worker thread, and on cancellation
returns at once. A thread left behind ends through its socket's timeouts; an upload it carries may
still arrive, which is harmless because an object key is never used for other bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import trio
from botocore.exceptions import ClientError

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import BucketSpec
from datas3tfs.core.spans import Span
from datas3tfs.errors import NotFound, Unavailable
from datas3tfs.objects.answers import check_asked
from datas3tfs.objects.client import Client
from datas3tfs.objects.download import Denied, Downloads
from datas3tfs.objects.presigned import PresignedUrls
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.translate import status_of, translated

T = TypeVar("T")
UploadHandle = str  # S3's UploadId
PartTag = str  # S3's ETag of a part

# A server says nothing while it puts a large object together; how long to wait for that is decided
# above (upload.py), by the object's size. The socket must only end some time if nobody waits any more.
_ASSEMBLY_SILENCE = 900.0
_BINARY = "application/octet-stream"
_CANNOT_LIST = frozenset({400, 404, 405, 501})  # rclone: 404 NoSuchUpload where there are none


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
        self._calls = calls
        self._client = Client(spec, settings, settings.silence)
        self._patient = Client(spec, settings, _ASSEMBLY_SILENCE)
        self._urls = PresignedUrls(settings.presign_life, settings.presigned_limit)
        self._downloads = Downloads(settings, gets, tls=spec.endpoint_url.startswith("https://"))

    def close(self) -> None:
        """Close idle connections."""
        self._downloads.close()
        self._client.close()
        self._patient.close()

    # Reading

    async def get_range(self, key: str, span: Span, total: int) -> bytes:
        """See ports.ObjectStore."""
        check_asked(key, span, total)
        if not span:
            return b""
        return await self._read(key, lambda url: self._downloads.span(url, key, span, total))

    async def get(self, key: str, limit: int) -> bytes:
        """See ports.ObjectStore."""
        return await self._read(key, lambda url: self._downloads.whole(url, key, limit))

    async def size(self, key: str) -> int:
        """See ports.ObjectStore."""
        self._counters.add("s3.head")
        answer = await self._call(key, "head_object", Key=key)
        if "ContentLength" not in answer:
            raise Unavailable(f"{key}: the answer does not tell its length")
        return int(answer["ContentLength"])

    # Writing

    async def put(self, key: str, body: bytes | bytearray) -> None:
        """See ports.ObjectStore."""
        self._counters.add("s3.put")
        answer = await self._call(key, "put_object", Key=key, Body=body, ContentType=_BINARY)
        _confirmed(key, answer, "ETag")
        self._counters.add("s3.put_bytes", len(body))

    async def begin(self, key: str) -> UploadHandle:
        """Begin a multipart upload. Raises Unavailable."""
        self._counters.add("s3.multipart")
        answer = await self._call(key, "create_multipart_upload", Key=key, ContentType=_BINARY)
        return _confirmed(key, answer, "UploadId")

    async def put_part(self, key: str, handle: UploadHandle, number: int, body: bytes | bytearray) -> PartTag:
        """Store part *number* (from 1). Raises Unavailable."""
        self._counters.add("s3.put")
        asked: dict[str, Any] = {"Key": key, "UploadId": handle, "PartNumber": number, "Body": body}
        answer = await self._call(key, "upload_part", **asked)
        tag = _confirmed(key, answer, "ETag")
        self._counters.add("s3.put_bytes", len(body))
        return tag

    async def complete(self, key: str, handle: UploadHandle, tags: list[PartTag]) -> None:
        """Make the parts one object. Raises Unavailable."""
        self._counters.add("s3.multipart")
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, start=1)]
        asked: dict[str, Any] = {"Key": key, "UploadId": handle, "MultipartUpload": {"Parts": parts}}
        await self._call(key, "complete_multipart_upload", client=self._patient, **asked)

    async def abort(self, key: str, handle: UploadHandle) -> None:
        """Drop a multipart upload and its parts; it may be gone already. Raises Unavailable."""
        self._counters.add("s3.multipart")
        await self._call(key, "abort_multipart_upload", tolerate={404}, Key=key, UploadId=handle)

    async def unfinished(self, key: str) -> list[UploadHandle]:
        """Return the unfinished multipart uploads of exactly *key*; [] if the server cannot say."""
        found: list[UploadHandle] = []
        more: dict[str, Any] = {}
        while True:
            self._counters.add("s3.list")
            page = await self._call(key, "list_multipart_uploads", tolerate=_CANNOT_LIST, Prefix=key, **more)
            found += [upload["UploadId"] for upload in page.get("Uploads", []) if upload["Key"] == key]
            if not page.get("IsTruncated") or "NextUploadIdMarker" not in page:
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def delete(self, key: str) -> None:
        """See ports.ObjectStore. Uploads go first: none of them can then become the object again."""
        for handle in await self.unfinished(key):
            await self.abort(key, handle)
        self._counters.add("s3.delete")
        with suppress(NotFound):  # AWS says 204 then, others may not
            await self._call(key, "delete_object", Key=key)

    # The bucket itself

    async def check(self) -> None:
        """List one object, to see whether bucket and credentials work. Raises Unavailable, Invalid."""
        self._counters.add("s3.list")
        await self._call(f"bucket {self._spec.name}", "list_objects_v2", MaxKeys=1)

    async def create(self) -> None:
        """Create the bucket unless it is there. Raises Unavailable, Invalid."""
        asked: dict[str, Any] = {}
        if self._spec.region != "us-east-1":  # AWS refuses its default region to be named
            asked["CreateBucketConfiguration"] = {"LocationConstraint": self._spec.region}
        # 409: BucketAlreadyOwnedByYou, BucketAlreadyExists; whether it is usable, `check` tells.
        await self._call(f"bucket {self._spec.name}", "create_bucket", tolerate={409}, **asked)

    async def _read(self, key: str, fetch: Callable[[str], Awaitable[bytes]]) -> bytes:
        """Fetch through the kept address, or a new one if there is none or S3 denies the kept one."""
        url = self._urls.get(key, trio.current_time())
        if url is not None:
            try:
                return await self._counted(fetch(url))
            except Denied:
                self._urls.discard(key)
        now = trio.current_time()
        with translated(key):
            url = await trio.to_thread.run_sync(
                self._client.presign, key, abandon_on_cancel=True, limiter=self._calls
            )
        self._urls.remember(key, url, now)
        return await self._counted(fetch(url))

    async def _counted(self, fetching: Awaitable[bytes]) -> bytes:
        self._counters.add("s3.get")
        body = await fetching
        self._counters.add("s3.get_bytes", len(body))
        return body

    async def _call(
        self,
        subject: str,
        method: str,
        *,
        tolerate: frozenset[int] | set[int] = frozenset(),
        client: Client | None = None,
        **asked: Any,
    ) -> dict[str, Any]:
        """Run one boto3 *method* in a thread; an answer with a status in *tolerate* counts as empty."""

        def work() -> dict[str, Any]:
            with translated(subject):
                try:
                    call = getattr((client or self._client)(), method)
                    answer: dict[str, Any] = call(Bucket=self._spec.bucket, **asked)
                except ClientError as exc:
                    if status_of(exc) not in tolerate:
                        raise
                    return {}
                return answer

        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._calls)


def _confirmed(key: str, answer: Any, word: str) -> str:
    """Return what only S3 itself says when it has done as asked: a page from a proxy with status 200
    must not count as stored. Raises Unavailable."""
    value = answer.get(word)
    if not isinstance(value, str) or not value:
        raise Unavailable(f"{key}: the answer does not confirm the upload (no {word})")
    return value

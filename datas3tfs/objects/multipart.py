"""The multipart uploads of one bucket, one request per call (a listing: one per page).

Not for retries (retries.py), nor for cutting a stream into parts (upload.py). Concurrency: the event
loop's; see calls.py. A part that arrives late is harmless: it is the same part again, or its
upload is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Part
from datas3tfs.core.spans import Span
from datas3tfs.errors import NotFound, Unavailable
from datas3tfs.objects.calls import Calls, Reply, confirmed

UploadHandle = str  # S3's UploadId
PartTag = str  # S3's ETag of a part

BINARY = "application/octet-stream"
_CANNOT_LIST = frozenset({400, 404, 405, 501})  # rclone: 404 NoSuchUpload where there are none
_CANNOT_COPY = frozenset({405, 501})  # MethodNotAllowed, NotImplemented


class Multiparts:
    """Single attempts. What concerns an upload that is completed, aborted or never was raises NotFound."""

    def __init__(self, calls: Calls, counters: Counters, page: int) -> None:
        self._calls = calls
        self._counters = counters
        self._page = page  # how many parts to list at once
        self._copies: bool | None = None  # whether the server can copy parts; None: it was not asked yet

    async def begin(self, key: str) -> UploadHandle:
        """Begin a multipart upload. Raises Unavailable."""
        self._counters.add("s3.multipart")
        answer = await self._calls(key, "create_multipart_upload", Key=key, ContentType=BINARY)
        return confirmed(key, answer, "UploadId")

    async def put_part(self, key: str, handle: UploadHandle, number: int, body: bytes | bytearray) -> PartTag:
        """Store part *number* (from 1). Raises NotFound, Unavailable."""
        self._counters.add("s3.put")
        asked: dict[str, Any] = {"Key": key, "UploadId": handle, "PartNumber": number, "Body": body}
        tag = confirmed(key, await self._calls(key, "upload_part", **asked), "ETag")
        self._counters.add("s3.put_bytes", len(body))
        return tag

    async def copy_part(
        self, key: str, handle: UploadHandle, number: int, source: str, span: Span
    ) -> PartTag | None:
        """See ports.PartStore. Raises NotFound (*source*, or the upload), Unavailable."""
        if self._copies is None:
            self._copies = await self._try_copying(key, source)
        if not self._copies:
            return None
        result = (await self._copy(key, handle, number, source, span)).get("CopyPartResult", {})
        return confirmed(source, result, "ETag")

    async def _try_copying(self, key: str, source: str) -> bool:
        """Say whether the server copies at all, by copying a byte to an upload that is dropped again.

        Not to the one that counts: a server that does not know the header x-amz-copy-source stores a
        part without content, and may refuse to let it be replaced (rclone's).

        Of several parts that ask at once the first to know may have the others cancelled: what they have
        begun must not stay, so beginning and dropping are shielded. Each ends by the socket's timeouts.
        """
        with trio.CancelScope(shield=True):
            handle = await self.begin(key)
        try:
            return _knows_copies(source, await self._copy(key, handle, 1, source, Span(0, 1)))
        finally:
            with trio.CancelScope(shield=True):
                await self.abort(key, handle)

    async def _copy(self, key: str, handle: UploadHandle, number: int, source: str, span: Span) -> Reply:
        self._counters.add("s3.copy")
        return await self._calls(
            source,
            "upload_part_copy",
            patient=True,
            tolerate=_CANNOT_COPY,
            Key=key,
            UploadId=handle,
            PartNumber=number,
            CopySource={"Bucket": self._calls.bucket, "Key": source},
            CopySourceRange=f"bytes={span.start}-{span.last}",
        )

    async def parts(self, key: str, handle: UploadHandle) -> list[Part]:
        """Return the parts that have arrived, by number. Raises NotFound, Unavailable."""
        found: list[Part] = []
        more: dict[str, Any] = {"MaxParts": self._page}
        while True:
            self._counters.add("s3.list")
            page = await self._calls(key, "list_parts", Key=key, UploadId=handle, **more)
            confirmed(key, page, "UploadId")
            parts = _ascending(key, found, [_part(key, entry) for entry in page.get("Parts", [])])
            found += parts
            if not page.get("IsTruncated"):
                return found
            marker = page.get("NextPartNumberMarker")  # the last part listed, or the next one (rclone's)
            if not parts or not isinstance(marker, int):
                raise Unavailable(f"{key}: the server's list of parts does not end")
            more["PartNumberMarker"] = marker

    async def complete(self, key: str, handle: UploadHandle, tags: Sequence[tuple[int, PartTag]]) -> None:
        """Make the parts, (number, tag) ascending, one object. Raises NotFound, Invalid, Unavailable."""
        self._counters.add("s3.multipart")
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in tags]
        asked: dict[str, Any] = {"Key": key, "UploadId": handle, "MultipartUpload": {"Parts": parts}}
        answer = await self._calls(key, "complete_multipart_upload", patient=True, **asked)
        confirmed(key, answer, "ETag")

    async def abort(self, key: str, handle: UploadHandle) -> None:
        """Drop a multipart upload and its parts; it may be gone already. Raises Unavailable."""
        self._counters.add("s3.multipart")
        with suppress(NotFound):
            await self._calls(key, "abort_multipart_upload", Key=key, UploadId=handle)

    async def unfinished(self, key: str) -> list[UploadHandle]:
        """Return the unfinished multipart uploads of exactly *key*; [] if the server cannot say."""
        found: list[UploadHandle] = []
        more: dict[str, Any] = {}
        while True:
            self._counters.add("s3.list")
            page = await self._calls(key, "list_multipart_uploads", tolerate=_CANNOT_LIST, Prefix=key, **more)
            found += [upload["UploadId"] for upload in page.get("Uploads", []) if upload["Key"] == key]
            if not page.get("IsTruncated") or "NextUploadIdMarker" not in page:
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _knows_copies(source: str, answer: Reply) -> bool:
    """Say whether *answer* is that of a server which copied. Raises Unavailable if it is not S3's."""
    if not answer:
        return False  # one of _CANNOT_COPY
    if answer.get("CopyPartResult", {}).get("ETag"):
        return True
    if "etag" in answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}):
        return False  # it stored what it took for a part
    raise Unavailable(f"{source}: the answer does not confirm the copy (no CopyPartResult)")


def _part(key: str, entry: Reply) -> Part:
    number, size = entry.get("PartNumber"), entry.get("Size")
    if not isinstance(number, int) or not isinstance(size, int) or size < 0:
        raise Unavailable(f"{key}: the server's list of parts makes no sense")
    return Part(number, size, confirmed(key, entry, "ETag"))


def _ascending(key: str, before: list[Part], parts: list[Part]) -> list[Part]:
    numbers = [part.number for part in before[-1:] + parts]
    if numbers != sorted(set(numbers)) or (numbers and numbers[0] < 1):
        raise Unavailable(f"{key}: the server's list of parts is not in order")
    return parts

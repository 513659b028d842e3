"""Upload one datarange: begin, store its parts and its index through URLs, complete; or give it up.

The server holds the keys from the beginning and shows the datarange when it has checked everything; in
between nobody sees anything. What fails is cancelled, within a bounded time even if one is being stopped
oneself, unless it is to be resumed.

Concurrency: the parts of an upload are stored by tasks of its own, as many at once as the client has places;
the first failure stops the others. URLs that have expired are renewed by one task for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from datas3tfs.client.bodies import InMemory, UploadBody
from datas3tfs.client.flow import Places
from datas3tfs.client.resumption import ResumeFile
from datas3tfs.client.server import Server
from datas3tfs.client.storage import Advance, Body, Refused, Storage
from datas3tfs.client.tuning import Tuning
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.wire.answers import DatarangeInfo, UploadGrant

log = logging.getLogger(__name__)

_RENEWALS = 3  # of one URL, in a row: if S3 refuses fresh ones too, it is not because they are old


@dataclass(frozen=True, slots=True)
class Uploader:
    """Uploads to one server."""

    server: Server
    storage: Storage
    places: Places
    tuning: Tuning

    async def upload(
        self, dataset: str, body: UploadBody, advance: Advance, kept: ResumeFile | None = None
    ) -> DatarangeInfo:
        """Upload *body*; *advance* hears of bytes. With *kept*, go on with the upload named there if there is
        one, and leave what fails to be resumed.

        Raises Conflict (keys taken), NotFound (dataset), Invalid (the source has changed, or the server
        finds it wrong), Unavailable; nothing is visible then.
        """
        grant = await self._begin(dataset, body, kept)
        if isinstance(grant, DatarangeInfo):
            return grant
        upload_id = grant.datarange_upload_id
        try:
            tags = await _Session(self, grant, body, advance).store()
            done = await self.server.complete(upload_id, tags)
        except BaseException as exc:
            final = kept is None or isinstance(exc, Invalid | Conflict | NotFound)
            if final and await self._cancel(upload_id, kept) and isinstance(exc, Unavailable):
                return await self._found(dataset, body.keys)  # it was completed, only the answer was lost
            raise
        if kept is not None:
            kept.forget()
        return done

    async def _begin(
        self, dataset: str, body: UploadBody, kept: ResumeFile | None
    ) -> UploadGrant | DatarangeInfo:
        """Begin the upload, or go on with the one that is *kept*; return it, or the datarange that it was."""
        upload_id = None if kept is None else kept.upload_id()
        if upload_id is not None and kept is not None:
            try:
                return await self.server.resume(upload_id)
            except (NotFound, Conflict) as exc:
                log.debug("upload %d cannot be resumed: %s", upload_id, exc)
            try:
                done = await self.server.complete(upload_id, None)
                kept.forget()
                return done
            except (NotFound, Conflict):
                kept.forget()  # it is gone: begin anew
        grant = await self.server.start(dataset, body.keys, body.size)
        if kept is not None:
            kept.remember(grant.datarange_upload_id)
        return grant

    async def _cancel(self, upload_id: int, kept: ResumeFile | None) -> bool:
        """Give the upload up; return whether it turns out to be committed."""
        with anyio.move_on_after(self.tuning.cancel_limit, shield=True) as scope:
            try:
                await self.server.cancel(upload_id)
            except Conflict:
                return True
            except NotFound:
                pass
            except Datas3tError as exc:
                log.warning("upload %d is left to expire: %s", upload_id, exc)
        if scope.cancelled_caught:
            log.warning("upload %d is left to expire: the server did not answer in time", upload_id)
        elif kept is not None:
            kept.forget()
        return False

    async def _found(self, dataset: str, keys: Span) -> DatarangeInfo:
        """Return the datarange of exactly *keys*. Raises NotFound: it is gone again."""
        for one in await self.server.dataranges(dataset):
            if (one.min_datapoint_key, one.max_datapoint_key) == (keys.start, keys.last):
                return one
        raise NotFound(f"dataset {dataset} has no datarange of keys {keys.start} to {keys.last} any more")


class _Meter:
    """Tells how far something has come, every byte once, however often it is begun anew."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._highest = 0

    def reached(self, position: int) -> None:
        """Take note that bytes up to *position* have been sent."""
        if position > self._highest:
            self._advance(position - self._highest)
            self._highest = position


class _Session:
    """Stores the TAR and the index of one upload."""

    def __init__(self, uploader: Uploader, grant: UploadGrant, body: UploadBody, advance: Advance) -> None:
        self._uploader = uploader
        self._grant = grant
        self._body = body
        self._advance = advance
        self._renewing = anyio.Lock()
        self._tags: dict[int, str] = {}
        self._failure: Exception | None = None

    async def store(self) -> list[str] | None:
        """Store everything; return the parts' tags in order, None if there are no parts."""
        if self._grant.use_direct_put:
            await self._store_whole()
        else:
            await self._store_parts()
        index = await self._body.index()
        what = f"store the index of {self._grant.object_key}"
        await self._put(what, lambda grant: grant.presigned_index_put_url, InMemory(index), lambda at: None)
        return [self._tags[number] for number in sorted(self._tags)] or None

    async def _store_whole(self) -> None:
        size = self._body.size
        await self._uploader.places.take()
        try:
            part = await self._body.part(Span(0, size))
            what, reached = f"store {self._grant.object_key}", _Meter(self._advance).reached
            await self._put(what, lambda grant: grant.presigned_data_put_url, part, reached)
        finally:
            self._uploader.places.give_back()

    async def _store_parts(self) -> None:
        parts = self._parts()
        arrived = {one.number: one for one in self._grant.uploaded_parts or ()}
        async with anyio.create_task_group() as tasks:
            try:
                for number, span in enumerate(parts, 1):
                    if number in arrived and arrived[number].size == span.length:
                        self._tags[number] = arrived[number].etag
                        self._advance(span.length)
                    else:
                        await self._send(number, span, tasks)
            except Exception as exc:
                self._fail(exc, tasks)
        if self._failure is not None:
            raise self._failure

    def _parts(self) -> list[Span]:
        """Return what each URL is for. Raises Unavailable if there are not as many as parts."""
        size, step = self._body.size, self._grant.part_size
        parts = [Span(at, min(at + step, size)) for at in range(0, size, step)]
        granted = len(self._grant.presigned_multipart_upload_urls or ())
        if granted != len(parts):
            raise Unavailable(f"the server grants {granted} URLs for {len(parts)} parts")
        return parts

    async def _send(self, number: int, span: Span, tasks: TaskGroup) -> None:
        """Wait for a place and let a task store the part."""
        await self._uploader.places.take()
        try:
            part = await self._body.part(span)
        except BaseException:
            self._uploader.places.give_back()
            raise
        tasks.start_soon(self._store_part, number, part, tasks)

    async def _store_part(self, number: int, part: Body, tasks: TaskGroup) -> None:
        what, reached = f"store {self._grant.object_key} part {number}", _Meter(self._advance).reached

        def url_of(grant: UploadGrant) -> str | None:
            urls = grant.presigned_multipart_upload_urls or []
            return urls[number - 1] if number <= len(urls) else None

        try:
            self._tags[number] = await self._put(what, url_of, part, reached)
        except Exception as exc:
            self._fail(exc, tasks)
        finally:
            self._uploader.places.give_back()

    def _fail(self, exc: Exception, tasks: TaskGroup) -> None:
        """Keep the first failure and stop the others: raising it here would wrap it in a group."""
        if self._failure is None:
            self._failure = exc
        tasks.cancel_scope.cancel()

    async def _put(
        self,
        what: str,
        url_of: Callable[[UploadGrant], str | None],
        body: Body,
        reached: Callable[[int], None],
    ) -> str:
        """Store through a URL, a fresh one if S3 refuses it."""
        refusal: Refused | None = None
        for _ in range(_RENEWALS):
            grant = self._grant
            url = url_of(grant)
            if url is None:
                raise Unavailable(f"{what}: the server grants no URL for it")
            try:
                return await self._uploader.storage.put(what, url, body, reached)
            except Refused as exc:
                refusal = exc
            await self._renew(grant)
        raise Unavailable(f"{what}: {refusal}")

    async def _renew(self, grant: UploadGrant) -> None:
        """Get fresh URLs, unless another task has since *grant*."""
        async with self._renewing:
            if self._grant is grant:
                self._grant = await self._uploader.server.resume(grant.datarange_upload_id)

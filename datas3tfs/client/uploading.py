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
from contextlib import closing
from dataclasses import dataclass
from enum import Enum, auto

import anyio
from anyio.abc import TaskGroup

from datas3tfs.client.bodies import InMemory, UploadBody
from datas3tfs.client.flow import Places
from datas3tfs.client.ledger import Begun, Ledger
from datas3tfs.client.resumption import ResumeFile
from datas3tfs.client.retrying import Tries
from datas3tfs.client.server import Server
from datas3tfs.client.storage import Advance, Body, Refused, Storage
from datas3tfs.client.tuning import Tuning
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.wire.answers import DatarangeInfo, UploadGrant

log = logging.getLogger(__name__)

_RENEWALS = 3  # of one URL, in a row: if S3 refuses fresh ones too, it is not because they are old


class _Fate(Enum):
    """What became of an upload that was given up."""

    GONE = auto()
    COMMITTED = auto()  # it was too late
    UNKNOWN = auto()  # it may be in flight until it expires


@dataclass(frozen=True, slots=True)
class Uploader:
    """Uploads to one server."""

    server: Server
    storage: Storage
    places: Places
    tuning: Tuning
    ledger: Ledger

    async def upload(
        self, dataset: str, body: UploadBody, advance: Advance, kept: ResumeFile | None = None
    ) -> DatarangeInfo:
        """Upload *body*; *advance* hears of bytes. With *kept*, go on with the upload named there if there is
        one, and leave what fails to be resumed.

        Raises Conflict (keys taken), NotFound (dataset), Invalid (the source has changed, or the server
        finds it wrong), Unavailable; nothing is visible then.
        """
        if kept is not None:
            return await self._resumable(dataset, body, advance, kept)
        begun = Begun.anew(dataset, body.keys, body.size)
        with self.ledger.noted(begun) as strike:
            return await self._at_once(begun, body, advance, strike)

    async def give_up_dead(self) -> int:
        """Give up what processes of this machine have begun before they were killed; return how much."""
        count = 0
        with closing(self.ledger.left_behind()) as found:
            for begun, strike in found:
                what = f"upload of keys {begun.keys.start} to {begun.keys.last} of {begun.dataset}"
                try:
                    await self._take_back(begun)
                except Invalid as exc:  # not with this token
                    log.warning("%s, left behind by a process that was killed: %s", what, exc)
                    continue
                log.info("%s, left behind by a process that was killed: given up", what)
                strike()
                count += 1
        return count

    async def _take_back(self, begun: Begun) -> None:
        await self.server.take_back(begun.dataset, begun.keys, begun.size, begun.attempt)

    async def _at_once(
        self, begun: Begun, body: UploadBody, advance: Advance, strike: Callable[[], None]
    ) -> DatarangeInfo:
        """Upload, or give it all up; *strike* tells when nothing is left to be given up by others."""
        upload_id, tries = None, Tries()
        try:
            grant = await self.server.start(begun.dataset, begun.keys, begun.size, begun.attempt, tries=tries)
            upload_id = grant.datarange_upload_id
            done = await self._store(grant, body, advance)
        except BaseException as exc:
            was_refused = upload_id is None and isinstance(exc, Datas3tError) and not tries.lost
            fate = _Fate.GONE if was_refused else await self._give_up(upload_id or begun)
            if fate is not _Fate.UNKNOWN:
                strike()
            if fate is _Fate.COMMITTED and isinstance(exc, Unavailable):
                return await self._found(begun.dataset, body.keys)  # only the answer was lost
            raise
        strike()
        return done

    async def _resumable(
        self, dataset: str, body: UploadBody, advance: Advance, kept: ResumeFile
    ) -> DatarangeInfo:
        """Upload, and leave it as it is if it fails in a way that may pass."""
        grant = await self._begin(dataset, body, kept)
        if isinstance(grant, DatarangeInfo):
            return grant
        try:
            done = await self._store(grant, body, advance)
        except (Invalid, Conflict, NotFound):
            if await self._give_up(grant.datarange_upload_id) is _Fate.GONE:
                kept.forget()
            raise
        kept.forget()
        return done

    async def _store(self, grant: UploadGrant, body: UploadBody, advance: Advance) -> DatarangeInfo:
        tags = await _Session(self, grant, body, advance).store()
        return await self.server.complete(grant.datarange_upload_id, tags)

    async def _begin(self, dataset: str, body: UploadBody, kept: ResumeFile) -> UploadGrant | DatarangeInfo:
        """Begin the upload, or go on with the one that is *kept*; return it, or the datarange that it was."""
        begun = kept.found()
        if begun is not None and begun.upload_id:
            try:
                return await self.server.resume(begun.upload_id)
            except (NotFound, Conflict) as exc:
                log.debug("upload %d cannot be resumed: %s", begun.upload_id, exc)
            try:
                done = await self.server.complete(begun.upload_id, None)
                kept.forget()
                return done
            except (NotFound, Conflict):
                begun = None  # it is gone: begin anew
        begun = begun or kept.begin()
        try:
            grant = await self.server.start(dataset, body.keys, body.size, begun.attempt)
        except (Invalid, Conflict, NotFound):
            kept.forget()
            raise
        kept.remember(begun, grant.datarange_upload_id)
        return grant

    async def _give_up(self, which: int | Begun) -> _Fate:
        """Give an upload up, by its id or because it may have begun; return what became of it."""
        what = f"upload {which}" if isinstance(which, int) else f"upload of keys from {which.first_key} on"
        with anyio.move_on_after(self.tuning.cancel_limit, shield=True):
            try:
                if isinstance(which, int):
                    await self.server.cancel(which)
                else:
                    await self._take_back(which)
            except Conflict:
                return _Fate.COMMITTED
            except NotFound:
                pass
            except Datas3tError as exc:
                log.warning("%s is left to expire: %s", what, exc)
                return _Fate.UNKNOWN
            return _Fate.GONE
        log.warning("%s is left to expire: the server did not answer in time", what)
        return _Fate.UNKNOWN

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

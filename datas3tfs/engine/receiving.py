"""Receive dataranges that others put into S3 themselves, through presigned URLs.

    start (intent in Postgres: keys claimed, all objects named) → URLs → the client puts TAR and index
      → complete: put the parts together, inspect both, PUT an index of our own → publish

The client's index lies beside the final one, because its URL is valid for longer than the upload takes:
what readers trust is written by us. Whoever completes may do so again after any failure that was not the
upload's own fault, and gets the same answer however often. What is wrong with the upload itself ends it:
the keys are free again and the objects doomed. The crash table is in docs/CONCURRENCY.md.

An aggregate is the same for dataranges that exist: it claims no keys but *replaces* what holds them.

Concurrency: any number of servers; Postgres decides. No state but how much is inspected at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from datas3tfs.core.compaction import check_sources
from datas3tfs.core.model import BucketId, Datarange, PendingUpload, Upload, UploadId, UploadIntent
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.parts import PART_SIZE, check_part_size, likely_part_size, usable_parts
from datas3tfs.core.spans import Span
from datas3tfs.core.tar import END_OF_ARCHIVE
from datas3tfs.core.uploadcheck import InspectionLimits, check_announced
from datas3tfs.engine.granting import AggregateGrant, Grant, Source, sign_grant, sign_source
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.inspection import Inspector
from datas3tfs.engine.nurseries import side_by_side
from datas3tfs.engine.writer import Writer
from datas3tfs.errors import Conflict, Datas3tError, Invalid, NotFound
from datas3tfs.ports import CatalogReader, Uploads, WholeStore, WholeStores

__all__ = ["AggregateGrant", "Grant", "Receiver", "Source"]

log = logging.getLogger(__name__)

_AT_ONCE = 8  # indices fetched, URLs signed
_SHOWN = 3  # uploads in an error


class Receiver:
    """Starts uploads by others, and commits them."""

    def __init__(
        self,
        reader: CatalogReader,
        uploads: Uploads,
        stores: WholeStores,
        indices: Indices,
        limits: InspectionLimits | None = None,
    ) -> None:
        self._reader = reader
        self._uploads = uploads
        self._stores = stores
        self._indices = indices
        self._writer = Writer(uploads, stores)
        self._limits = limits or InspectionLimits()
        self._inspector = Inspector(indices, self._limits)

    async def start(
        self,
        dataset: str,
        keys: Span,
        size: int,
        part_size: int | None = None,
        *,
        attempt: UUID | None = None,
    ) -> Grant:
        """Claim *keys* for a TAR of *size* bytes; return where to put it. Who heard no answer asks again with
        the same *attempt*, and gets the same upload.

        Raises Conflict (keys taken), NotFound (dataset), Invalid (cannot be), Unavailable.
        """
        check_announced(keys, size)
        check_part_size(size, part_size or PART_SIZE)
        found = await self._reader.overlap(dataset, keys)
        what = f"datapoints {keys.start} to {keys.last} of {dataset}"
        taken = f"{what}: datarange overlaps with existing dataranges"
        if found.dataranges:
            raise Conflict(taken)
        name = None if attempt is None else str(attempt)
        intent = UploadIntent(found.dataset_id, keys, size, presigned=True, attempt=name)
        try:
            return await self._begin(intent, found.bucket_id, size, part_size or PART_SIZE)
        except Conflict as exc:
            holders = await self._uploads.in_flight(found.dataset_id, keys)
            raise Conflict(f"{taken} or with {_named(holders) or f'an upload ({exc})'}") from exc

    async def resume(self, upload_id: UploadId) -> Grant:
        """Return fresh URLs for an upload that was started, and which parts are there; it lives on.

        Raises NotFound, Conflict (it is gone, or its parts have been put together), Unavailable.
        """
        await self._pending(upload_id, is_aggregate=False)
        await self._uploads.renew(upload_id)
        pending = await self._uploads.pending(upload_id)
        store = await self._stores.store(pending.upload.bucket_id)
        key, size = pending.upload.data_key, pending.upload.intent.size
        if pending.multipart is None:
            return await sign_grant(store, pending, size, PART_SIZE)
        try:
            parts = await store.parts(key, pending.multipart)
        except NotFound as exc:
            raise Conflict(f"upload {upload_id}: its parts have been put together already") from exc
        part_size = likely_part_size(size, parts)
        return await sign_grant(store, pending, size, part_size, usable_parts(size, part_size, parts))

    async def complete(self, upload_id: UploadId, tags: Sequence[str] | None = None) -> Datarange:
        """Commit an upload; *tags* are those of its parts, in order; without them S3 is asked.

        Repeating it gives the same answer. Raises Conflict (not all is there yet, or the upload is gone),
        NotFound (there was never such an upload), Invalid (what was uploaded is wrong; it is abandoned),
        Corrupt and Unavailable (nothing has changed, try again).
        """
        return await self._complete(upload_id, tags, is_aggregate=False)

    async def cancel(self, upload_id: UploadId) -> None:
        """Give an upload up; it may be gone. Raises Conflict (it is published), NotFound, Unavailable."""
        await self._cancel(upload_id, is_aggregate=False)

    async def start_aggregate(self, dataset: str, keys: Span) -> AggregateGrant:
        """Return the dataranges that hold exactly *keys*, and where to put the one that replaces them.

        Raises Invalid (fewer than two, or not whole ones), NotFound (dataset), Conflict (they have just
        changed), Corrupt, Unavailable.
        """
        if not keys or keys.start < 0 or keys.stop > KEY_LIMIT:
            raise Invalid(f"keys {keys.start} to {keys.last}: not a range of keys below 2^63")
        found = await self._reader.overlap(dataset, keys)
        check_sources(dataset, keys, found.dataranges)
        size = await self._merged_size(found.bucket_id, found.dataranges)
        check_announced(keys, size)
        check_part_size(size, PART_SIZE)
        store = await self._stores.store(found.bucket_id)
        sources = await side_by_side(partial(sign_source, store), found.dataranges, _AT_ONCE)
        replaced = tuple(datarange.id for datarange in found.dataranges)
        intent = UploadIntent(found.dataset_id, keys, 0, presigned=True, replaces=replaced)
        return AggregateGrant(await self._begin(intent, found.bucket_id, size, PART_SIZE), sources)

    async def complete_aggregate(self, upload_id: UploadId, tags: Sequence[str] | None = None) -> Datarange:
        """Commit an aggregate in the place of its sources, if it holds all that they do and they are all
        still there. See `complete`; a failure leaves the sources as they are."""
        return await self._complete(upload_id, tags, is_aggregate=True)

    async def cancel_aggregate(self, upload_id: UploadId) -> None:
        """Give an aggregate up; see `cancel`. The sources stay as they are."""
        await self._cancel(upload_id, is_aggregate=True)

    # Starting

    async def _begin(self, intent: UploadIntent, bucket_id: BucketId, size: int, part_size: int) -> Grant:
        """Record *intent* for about *size* bytes and sign its URLs; if that fails, nothing is left."""
        upload = await self._writer.begin(intent, bucket_id)
        try:
            store = await self._stores.store(bucket_id)
            # What one URL can put, and so can put again, must be small enough to be scanned as a whole.
            if size >= min(part_size, self._limits.scanned):
                await self._begin_multipart(store, upload)
            return await sign_grant(store, await self._uploads.pending(upload.id), size, part_size)
        except BaseException:
            await self._writer.abandon(upload)
            raise

    async def _begin_multipart(self, store: WholeStore, upload: Upload) -> None:
        """Begin a multipart upload, unless an earlier start of the same attempt has."""
        multipart = await store.begin_multipart(upload.data_key)
        if await self._uploads.remember_multipart(upload.id, multipart) != multipart:
            await store.abort_multipart(upload.data_key, multipart)

    async def _merged_size(self, bucket_id: BucketId, sources: Sequence[Datarange]) -> int:
        """Return how long the TAR of all of them is when a client has copied their entries. The Go client
        cuts what it has made into as many parts as it was given URLs: this must be exact."""
        found = await side_by_side(partial(self._indices.of, bucket_id), sources, _AT_ONCE)
        return sum(index.footprint() for index in found) + len(END_OF_ARCHIVE)

    # Completing

    async def _complete(
        self, upload_id: UploadId, tags: Sequence[str] | None, *, is_aggregate: bool
    ) -> Datarange:
        try:
            pending = await self._pending(upload_id, is_aggregate=is_aggregate)
            return await self._commit(pending, tags)
        except (Conflict, Invalid):
            # Somebody else may have completed it, before or meanwhile.
            datarange = await self._uploads.published(upload_id)
            if datarange is None:
                raise
            return datarange

    async def _commit(self, pending: PendingUpload, tags: Sequence[str] | None) -> Datarange:
        upload = pending.upload
        try:
            await self._uploads.renew(upload.id)
            async with self._writer.kept_alive(upload.id):
                size = await self._receive(pending, tags)
            return await self._publish(pending, size)
        except Conflict:
            await self._forget_index(upload)
            raise

    async def _forget_index(self, upload: Upload) -> None:
        """Delete the index that may have been stored when the upload was gone already, and swept."""
        try:
            if await self._is_abandoned(upload.id):
                store = await self._stores.store(upload.bucket_id)
                await store.delete(upload.index_key)
        except Datas3tError as exc:
            log.warning("%s: may be left behind: %s", upload.index_key, exc)

    async def _is_abandoned(self, upload_id: UploadId) -> bool:
        """Say whether an upload is gone for good, and with it its object keys."""
        try:
            await self._uploads.pending(upload_id)
        except Conflict:
            return await self._uploads.published(upload_id) is None
        return False

    async def _receive(self, pending: PendingUpload, tags: Sequence[str] | None) -> int:
        """Inspect what was uploaded and store its index; return the size of the TAR."""
        upload = pending.upload
        store = await self._stores.store(upload.bucket_id)
        sources = await self._sources(pending)
        try:
            if pending.multipart is not None:
                await _put_together(store, pending, pending.multipart, tags)
            size = await _checked_size(store, pending, self._limits.scanned)
            if upload.intent.replaces:
                index = await self._inspector.inspect_aggregate(store, upload, size, sources)
            else:
                index = await self._inspector.inspect(store, upload, size)
        except NotFound as exc:
            raise Conflict(f"upload {upload.id}: not all of it has been uploaded ({exc})") from exc
        except Invalid as exc:
            log.info("upload %d is refused: %s", upload.id, exc)
            await self._writer.abandon(upload)
            raise
        await store.put(upload.index_key, index)
        return size

    async def _sources(self, pending: PendingUpload) -> list[Datarange]:
        """Return the dataranges that an aggregate replaces; [] if it is none. Raises Conflict."""
        wanted = set(pending.upload.intent.replaces)
        if not wanted:
            return []
        committed = await self._reader.dataranges(pending.upload.intent.dataset_id)
        sources = [datarange for datarange in committed if datarange.id in wanted]
        if len(sources) != len(wanted):
            await self._writer.abandon(pending.upload)
            raise Conflict(f"aggregate {pending.upload.id}: its sources have changed meanwhile")
        return sources

    async def _publish(self, pending: PendingUpload, size: int) -> Datarange:
        try:
            return await self._uploads.publish(pending.upload.id, size)
        except Conflict:
            # It is gone, or its sources are: what was merged is of no use any more.
            await self._writer.abandon(pending.upload)
            raise

    async def _cancel(self, upload_id: UploadId, *, is_aggregate: bool) -> None:
        try:
            pending = await self._pending(upload_id, is_aggregate=is_aggregate)
            await self._uploads.abandon(upload_id)
        except Conflict:
            pending = None
        if await self._uploads.published(upload_id) is not None:
            raise Conflict(f"upload {upload_id}: it is published already")
        if pending is not None and pending.multipart is not None:
            await self._abort(pending, pending.multipart)

    async def _abort(self, pending: PendingUpload, multipart: str) -> None:
        """Free what the parts take at once; if that cannot be now, the sweeper does it."""
        try:
            store = await self._stores.store(pending.upload.bucket_id)
            await store.abort_multipart(pending.upload.data_key, multipart)
        except Datas3tError as exc:
            log.warning("%s: parts are left to the sweeper: %s", pending.upload.data_key, exc)

    async def _pending(self, upload_id: UploadId, *, is_aggregate: bool) -> PendingUpload:
        """Return an upload in flight. Raises NotFound (never, or of another kind), Conflict (gone)."""
        pending = await self._uploads.pending(upload_id)
        intent = pending.upload.intent
        if not intent.presigned or bool(intent.replaces) != is_aggregate:
            raise NotFound(f"upload {upload_id}: there is none of this id")
        return pending


def _named(holders: Sequence[PendingUpload]) -> str:
    """Return which uploads hold keys, and until when; "" if there are none."""
    claiming = [one for one in holders if not one.upload.intent.replaces]
    return ", ".join(_described(one) for one in claiming[:_SHOWN])


def _described(pending: PendingUpload) -> str:
    keys = pending.upload.intent.keys
    until = datetime.fromtimestamp(pending.expires_ns // 10**9, UTC).isoformat()
    return (
        f"upload {pending.upload.id} of datapoints {keys.start} to {keys.last}, in flight until it is "
        f"completed or cancelled, or expires at {until}"
    )


async def _put_together(
    store: WholeStore, pending: PendingUpload, multipart: str, tags: Sequence[str] | None
) -> None:
    """Make an object of the parts, unless that was done before: then what lies there is looked at.

    Raises Conflict if parts are missing, Invalid if S3 refuses them."""
    key, size = pending.upload.data_key, pending.upload.intent.size
    try:
        numbered = list(enumerate(tags or (), 1))
        if not numbered or not size:
            parts = await store.parts(key, multipart)
            numbered = numbered or [(part.number, part.tag) for part in parts]
            wanted = {number for number, _ in numbered}
            arrived = sum(part.size for part in parts if part.number in wanted)
            if arrived < size or not parts:
                raise Conflict(f"upload {pending.upload.id}: {arrived} of {size} bytes have been uploaded")
            size = size or arrived
        await store.complete_multipart(key, multipart, numbered, size)
    except NotFound:
        log.info("%s: its parts have been put together before", key)
    # A start that died before it could say which multipart upload it had begun has left that one.
    with suppress(Datas3tError):
        await store.abort_unfinished(key)


async def _checked_size(store: WholeStore, pending: PendingUpload, most_at_once: int) -> int:
    """Return the size of the object. Raises Invalid if it is not what it must be, NotFound."""
    upload = pending.upload
    size = await store.size(upload.data_key)
    if upload.intent.size and size != upload.intent.size:
        raise Invalid(f"upload {upload.id}: {upload.intent.size} bytes were announced, {size} were uploaded")
    if pending.multipart is None and size > most_at_once:
        raise Invalid(f"upload {upload.id}: {size} bytes were put at once, more than {most_at_once}")
    check_announced(upload.intent.keys, size)
    return size

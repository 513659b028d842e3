"""Commit a datarange: the one way by which data becomes visible.

    begin (intent in Postgres: keys claimed, both objects named) → nothing lies there? confirm
      → PUT the TAR → PUT the index → publish (one transaction; the intent must still be there)

Whatever happens before `publish` leaves an intent that names what may lie in S3; here it is abandoned
if that can still be done, else it expires, and either way the sweeper deletes the objects. The crash
table is in docs/CONCURRENCY.md. Begin and the keeping alive serve receiving.py, too, where others put
the objects, and compactor.py.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from datas3tfs.core.model import BucketId, Datarange, Dataset, Upload, UploadId, UploadIntent
from datas3tfs.core.names import staged_index_key
from datas3tfs.core.spans import Span
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.errors import Datas3tError, NotFound, Unavailable
from datas3tfs.ports import ObjectStore, Stores, Uploads

log = logging.getLogger(__name__)

_RENEW_SECONDS = 60.0  # an intent expires after ten minutes without renewal
_TOO_LATE_SECONDS = 500.0
_ABANDON_SECONDS = 10.0  # at most, when the writer itself is being cancelled


class Writer:
    """Commits dataranges."""

    def __init__(self, uploads: Uploads, stores: Stores) -> None:
        self._uploads = uploads
        self._stores = stores

    async def commit(
        self, dataset: Dataset, keys: Span, size: int, body: AsyncIterator[bytes], index: Callable[[], bytes]
    ) -> Datarange:
        """Upload and publish one datarange; return it.

        *body* yields the TAR, *size* bytes; *index*, asked once the body is stored, returns the index
        object. Raises Conflict (keys taken), Unavailable, Invalid, and what *body* raises; nothing is
        visible then.
        """
        upload = await self.begin(UploadIntent(dataset.id, keys, size), dataset.bucket_id)
        try:
            return await self.finish(upload, body, index)
        except BaseException:
            await self.abandon(upload)
            raise

    async def check(self, bucket_id: BucketId) -> None:
        """Raise Unavailable if the bucket cannot be used, whatever the reason: it is not the data's fault."""
        try:
            await self._stores.store(bucket_id)
        except Datas3tError as exc:
            raise Unavailable(str(exc)) from exc

    async def begin(self, intent: UploadIntent, bucket_id: BucketId) -> Upload:
        """Record the intent under object names where nothing lies; an attempt that is repeated returns what
        was recorded before. Raises Conflict (keys taken), NotFound (dataset), Unavailable; nothing is left
        then."""
        store = await self._stores.store(bucket_id)
        upload = await self._uploads.begin(intent)
        try:
            if intent.attempt is not None and (await self._uploads.pending(upload.id)).confirmed:
                return upload  # what lies there is its own
            while await self._is_taken(store, upload):
                await self._uploads.abandon(upload.id)  # unconfirmed, so it dooms nothing
                upload = await self._uploads.begin(intent, fresh=True)
            await self._uploads.confirm(upload.id)
        except BaseException:
            await self.abandon(upload)
            raise
        return upload

    async def finish(
        self, upload: Upload, body: AsyncIterator[bytes], index: Callable[[], bytes]
    ) -> Datarange:
        """Upload and publish what was begun; see `commit`. On any error, `abandon` is the caller's."""
        store = await self._stores.store(upload.bucket_id)
        async with self.kept_alive(upload.id):
            await store.put_stream(upload.data_key, body, upload.intent.size)
            await store.put(upload.index_key, index())
        return await self._uploads.publish(upload.id)

    async def published(self, upload: Upload) -> Datarange | None:
        """Return what became of an upload whose outcome is unknown; None if it is abandoned.

        Raises Unavailable: still unknown."""
        await self._uploads.abandon(upload.id)  # does nothing if it was published
        return await self._uploads.published(upload.id)

    async def abandon(self, upload: Upload) -> None:
        """Give an upload up, in a bounded time; if Postgres is away it is left to expire."""
        with trio.move_on_after(_ABANDON_SECONDS, shield=True):
            try:
                await self._uploads.abandon(upload.id)
            except Datas3tError as exc:
                log.warning("%s: left to expire: %s", upload.data_key, exc)

    @asynccontextmanager
    async def kept_alive(self, upload_id: UploadId) -> AsyncIterator[None]:
        """Renew an upload for as long as the block runs, however long that is. The block is cancelled, and
        Conflict raised, if the upload is gone; Unavailable, if it must be."""
        async with background_nursery() as nursery:
            nursery.start_soon(self._renew, upload_id)
            yield

    async def _is_taken(self, store: ObjectStore, upload: Upload) -> bool:
        """Say whether something lies at the upload's object keys: the catalog names none twice, but a
        bucket can be older than its catalog."""
        keys = [upload.data_key, upload.index_key]
        if upload.intent.presigned:
            keys.append(staged_index_key(upload.data_key))
        for key in keys:
            if await _exists(store, key):
                return True
        return False

    async def _renew(self, upload_id: UploadId) -> None:
        """Renew for ever. Postgres may be away for a while: until it is too late, that is no reason to
        throw away an upload. Raises Conflict if the intent is gone, Unavailable if it must be."""
        renewed = trio.current_time()
        while True:
            await trio.sleep(_RENEW_SECONDS)
            try:
                await self._uploads.renew(upload_id)
                renewed = trio.current_time()
            except Unavailable as exc:
                if trio.current_time() - renewed > _TOO_LATE_SECONDS:
                    raise
                log.warning("upload %d could not be renewed yet: %s", upload_id, exc)


async def _exists(store: ObjectStore, key: str) -> bool:
    try:
        await store.size(key)
    except NotFound:
        return False
    return True

"""ports.Uploads in memory: the part of the catalog's twin from intent to published datarange.

No method waits but at trio's checkpoint, so each is one transaction.
"""

from __future__ import annotations

import time

import trio

from datas3tfs.core.model import (
    Datarange,
    DatarangeId,
    DatasetId,
    HolderId,
    PendingUpload,
    Upload,
    UploadId,
    UploadIntent,
)
from datas3tfs.core.names import index_object_key, staged_index_key
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.memory_leases import check_holder, check_uuid
from tests.harness.memory_state import MemoryState, Unpublished, check_keys, check_size, described


class MemoryUploads(MemoryState):
    """See ports.Uploads."""

    async def begin(self, intent: UploadIntent, *, fresh: bool = False) -> Upload:
        """Record *intent*. Raises Conflict, NotFound, Invalid."""
        await trio.lowlevel.checkpoint()
        _check(intent)
        if intent.holder is not None:
            self.book.check(intent.holder)
        if (begun := self._begun(intent)) is not None:
            return begun
        dataset = self.known_dataset(intent.dataset_id)
        if intent.replaces:
            self.sources(intent)
        else:
            self._take_keys(intent)
        data_key = self.new_name(dataset, intent.keys, fresh)
        upload_id = UploadId(next(self.ids))
        upload = Upload(upload_id, intent, dataset.bucket.id, data_key, index_object_key(data_key))
        self.unpublished[upload_id] = Unpublished(upload, self._new_expiry(intent))
        self.begun.add(upload_id)
        return upload

    def _begun(self, intent: UploadIntent) -> Upload | None:
        for item in self.unpublished.values():
            if intent.attempt is not None and item.upload.intent.attempt == intent.attempt:
                if item.upload.intent != intent:
                    raise Conflict(f"upload {item.upload.id}: this attempt has begun another upload")
                item.expires_at = self._new_expiry(intent)
                return item.upload
        return None

    def _take_keys(self, intent: UploadIntent) -> None:
        self.abandon_now(self._own_overlapping(intent))
        leased = self.book.overlapping(intent.dataset_id, intent.keys)
        taken = self.committed_or_in_flight(intent.dataset_id)
        if any(intent.keys.intersection(keys) for keys in taken) or any(
            item.holder != intent.holder for item in leased
        ):
            raise Conflict(f"{described(intent)}: some of these keys are taken already")
        if intent.holder is not None:
            self.book.carve(intent.holder, intent.dataset_id, intent.keys)

    def _own_overlapping(self, intent: UploadIntent) -> list[UploadId]:
        if intent.holder is None:
            return []
        return [
            key
            for key in self._uploads_of(intent.holder)
            if self.unpublished[key].upload.intent.dataset_id == intent.dataset_id
            and self.unpublished[key].upload.intent.keys.intersection(intent.keys)
        ]

    def _new_expiry(self, intent: UploadIntent) -> float:
        return self.clock() + (self.presigned_lifetime if intent.presigned else self.upload_lifetime)

    def _unpublished(self, upload_id: UploadId) -> Unpublished:
        if upload_id not in self.unpublished:
            raise Conflict(f"upload {upload_id}: it was abandoned, or has expired and was swept")
        return self.unpublished[upload_id]

    async def pending(self, upload_id: UploadId) -> PendingUpload:
        """Return an upload in flight. Raises NotFound, Conflict."""
        await trio.lowlevel.checkpoint()
        if upload_id not in self.begun:
            raise NotFound(f"upload {upload_id}: there is none of this id")
        if self.become(upload_id) is not None:
            raise Conflict(f"upload {upload_id}: it is published")
        return self._pending(self._unpublished(upload_id))

    def _pending(self, item: Unpublished) -> PendingUpload:
        expires_ns = time.time_ns() + int((item.expires_at - self.clock()) * 1e9)
        return PendingUpload(item.upload, item.multipart, item.begun_ns, expires_ns, item.confirmed)

    async def in_flight(self, dataset_id: DatasetId, keys: Span) -> list[PendingUpload]:
        """Return the uploads through URLs that are to have one of *keys*, by key."""
        await trio.lowlevel.checkpoint()
        found = [
            item
            for item in self.unpublished.values()
            if item.upload.intent.presigned
            and item.upload.intent.dataset_id == dataset_id
            and item.upload.intent.keys.intersection(keys)
        ]
        return [self._pending(item) for item in sorted(found, key=lambda one: one.upload.intent.keys.start)]

    async def remember_multipart(self, upload_id: UploadId, multipart: str) -> str:
        """Record S3's id of the presigned multipart upload, if there is none; return the one that counts."""
        await trio.lowlevel.checkpoint()
        if not multipart.isprintable() or not multipart:
            raise Invalid(f"upload {upload_id}: that is not the id of a multipart upload")
        item = self._unpublished(upload_id)
        item.multipart = item.multipart or multipart
        return item.multipart

    async def confirm(self, upload_id: UploadId) -> None:
        """Record that nothing lay at the upload's names. Raises Conflict if it is gone."""
        await trio.lowlevel.checkpoint()
        self._unpublished(upload_id).confirmed = True

    async def renew(self, upload_id: UploadId) -> None:
        """Put off the upload's expiry. Raises Conflict if it is gone."""
        await trio.lowlevel.checkpoint()
        item = self._unpublished(upload_id)
        item.expires_at = self._new_expiry(item.upload.intent)

    async def publish(self, upload_id: UploadId, size: int | None = None) -> Datarange:
        """Make the datarange visible; again if it is already. Raises Conflict if the intent is gone."""
        await trio.lowlevel.checkpoint()
        if size is not None:
            check_size(size)
        if (made := self.become(upload_id)) is not None:
            return made
        item = self._unpublished(upload_id)
        upload, intent = item.upload, item.upload.intent
        merged: set[UploadId] = set()
        if intent.replaces:
            sources = self.sources(intent)
            merged = self.take_away(sources)
            for source in sources:
                self.doom_datarange(source)
        if intent.presigned:
            self.doom_while_urls_live(item, [staged_index_key(upload.data_key)])
        del self.unpublished[upload_id]
        dataset = self.all_datasets[intent.dataset_id]
        self.touch(dataset)
        datarange = Datarange(
            id=DatarangeId(next(self.ids)),
            dataset_id=dataset.id,
            keys=intent.keys,
            data_key=upload.data_key,
            index_key=upload.index_key,
            size=intent.size if size is None else size,
            created_ns=dataset.updated_ns,
        )
        self.committed[upload_id] = datarange
        self.merged |= dict.fromkeys(merged, datarange.id)
        return datarange

    async def abandon(self, upload_id: UploadId) -> None:
        """Forget the intent, give its keys back, doom its objects if it was confirmed. May be gone."""
        await trio.lowlevel.checkpoint()
        self.abandon_now([upload_id] if upload_id in self.unpublished else [])

    async def abandon_expired(self) -> int:
        """Abandon every upload that has expired; return how many."""
        await trio.lowlevel.checkpoint()
        now = self.clock()
        return self.abandon_now([key for key, item in self.unpublished.items() if item.expires_at < now])

    async def abandon_all(self, holder: HolderId) -> int:
        """Abandon every upload of *holder*; return how many."""
        await trio.lowlevel.checkpoint()
        check_holder(holder)
        return self.abandon_now(self._uploads_of(holder))

    def _uploads_of(self, holder: HolderId) -> list[UploadId]:
        return [key for key, item in self.unpublished.items() if item.upload.intent.holder == holder]

    async def published(self, upload_id: UploadId) -> Datarange | None:
        """Return the datarange that came from the upload, or the aggregate that has replaced it."""
        await trio.lowlevel.checkpoint()
        return self.become(upload_id)

    def expire(self, upload_id: UploadId) -> None:
        """Let time pass until the upload's writer counts as dead."""
        self.unpublished[upload_id].expires_at = self.clock() - 1


def _check(intent: UploadIntent) -> None:
    check_keys(intent.keys, "uploaded")
    check_size(intent.size)
    if intent.attempt is not None:
        check_uuid(intent.attempt, "an attempt's UUID")
    if intent.replaces:
        if len(set(intent.replaces)) < max(2, len(intent.replaces)):
            raise Invalid(f"{described(intent)}: an aggregate is made of at least two dataranges, each once")
        if intent.holder is not None:
            raise Invalid(f"{described(intent)}: no journal holds the keys of an aggregate")

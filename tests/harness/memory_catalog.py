"""The catalog's five ports in memory: a twin of Postgres for tests of the engine.

It answers to the same contract suite as the real one (tests/contract/test_catalog.py, test_leases.py).
Not for time limits, outages or hostile rows. No method waits but at trio's checkpoint, so each is one
transaction. Who leases what is in memory_leases.py.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

import trio

from datas3tfs.core.model import (
    Bucket,
    BucketId,
    BucketSpec,
    Datarange,
    DatarangeId,
    Dataset,
    DatasetId,
    Doomed,
    Holder,
    HolderId,
    Lease,
    Upload,
    UploadId,
    UploadIntent,
)
from datas3tfs.core.names import KEY_LIMIT, check_label, data_object_key, index_object_key
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from datas3tfs.ports import CatalogReader, ChangeFeed, Graveyard, Leases, Registry, Uploads
from tests.harness.memory_leases import LeaseBook, check_holder


class MemoryFeed:
    """A subscription: awake once at the beginning, as the real one."""

    def __init__(self) -> None:
        self._changed = trio.Event()
        self.wake()

    def wake(self) -> None:
        """Let wait() return."""
        self._changed.set()

    async def wait(self) -> None:
        """Return when something may have changed since the last return."""
        await self._changed.wait()
        self._changed = trio.Event()


@dataclass(slots=True)
class _Dataset:
    id: DatasetId
    name: str
    bucket: Bucket
    version: int
    updated_ns: int


@dataclass(slots=True)
class _Pending:
    upload: Upload
    expires_at: float  # by the twin's clock
    confirmed: bool = False


class MemoryCatalog:
    """All five ports at once, also by name like catalog.Catalog; the attributes are for tests to look at."""

    def __init__(
        self,
        *,
        upload_lifetime: float = 600.0,
        lease_lifetime: float = 600.0,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.upload_lifetime = upload_lifetime  # seconds of *clock*
        self.clock = clock
        self.all_buckets: dict[BucketId, Bucket] = {}
        self.all_datasets: dict[DatasetId, _Dataset] = {}
        self.committed: dict[UploadId, Datarange] = {}
        self.pending: dict[UploadId, _Pending] = {}
        self.book = LeaseBook(lease_lifetime, clock)
        self.graves: dict[int, Doomed] = {}
        self.installation_id = str(uuid.uuid4())
        self._used_names: set[tuple[BucketId, str]] = set()
        self._ids = itertools.count(1)
        self._feeds: set[MemoryFeed] = set()

    @property
    def reader(self) -> CatalogReader:
        """The committed state."""
        return self

    @property
    def registry(self) -> Registry:
        """Registering."""
        return self

    @property
    def uploads(self) -> Uploads:
        """Uploads."""
        return self

    @property
    def leases(self) -> Leases:
        """Leases."""
        return self

    @property
    def graveyard(self) -> Graveyard:
        """Objects to delete."""
        return self

    # CatalogReader

    async def datasets(self) -> list[Dataset]:
        """Return all datasets, ascending by id."""
        await trio.lowlevel.checkpoint()
        return [self._summary(dataset) for dataset in self.all_datasets.values()]

    async def dataset(self, name: str) -> Dataset:
        """Return the dataset called *name*. Raises NotFound."""
        await trio.lowlevel.checkpoint()
        check_label("dataset", name)
        for dataset in self.all_datasets.values():
            if dataset.name == name:
                return self._summary(dataset)
        raise NotFound(f"dataset {name}: there is none of this name")

    def _summary(self, dataset: _Dataset) -> Dataset:
        held = self._dataranges(dataset.id)
        return Dataset(
            id=dataset.id,
            name=dataset.name,
            bucket_id=dataset.bucket.id,
            bucket_name=dataset.bucket.spec.name,
            version=dataset.version,
            updated_ns=dataset.updated_ns,
            dataranges=len(held),
            datapoints=sum(item.count for item in held),
            total_bytes=sum(item.size for item in held),
            lowest_key=held[0].keys.start if held else None,
            highest_key=held[-1].keys.last if held else None,
        )

    async def dataranges(self, dataset_id: DatasetId) -> list[Datarange]:
        """Return the committed dataranges of a dataset, ascending by key."""
        await trio.lowlevel.checkpoint()
        return self._dataranges(dataset_id)

    def _dataranges(self, dataset_id: DatasetId) -> list[Datarange]:
        held = [item for item in self.committed.values() if item.dataset_id == dataset_id]
        return sorted(held, key=lambda item: item.keys)

    async def bucket(self, bucket_id: BucketId) -> Bucket:
        """Return a bucket with its credentials. Raises NotFound."""
        await trio.lowlevel.checkpoint()
        if bucket_id not in self.all_buckets:
            raise NotFound(f"bucket {bucket_id}: there is none of this id")
        return self.all_buckets[bucket_id]

    def changes(self) -> AbstractAsyncContextManager[ChangeFeed]:
        """Subscribe to changes."""
        return self._subscribe()

    @asynccontextmanager
    async def _subscribe(self) -> AsyncIterator[ChangeFeed]:
        feed = MemoryFeed()
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.remove(feed)

    def remove(self, datarange_id: DatarangeId) -> None:
        """Take a committed datarange away, as another program may; not in any port yet."""
        for upload_id, datarange in list(self.committed.items()):
            if datarange.id == datarange_id:
                del self.committed[upload_id]
                self.all_datasets[datarange.dataset_id].version += 1
        self._wake()

    def _wake(self) -> None:
        for feed in self._feeds:
            feed.wake()

    # Registry

    async def buckets(self) -> list[Bucket]:
        """Return all buckets by name, credentials left empty."""
        await trio.lowlevel.checkpoint()
        shown = [
            replace(bucket, spec=replace(bucket.spec, access_key="", secret_key=""))
            for bucket in self.all_buckets.values()
        ]
        return sorted(shown, key=lambda bucket: bucket.spec.name)

    async def add_bucket(self, spec: BucketSpec) -> Bucket:
        """Register a bucket. Raises Conflict, Invalid."""
        await trio.lowlevel.checkpoint()
        check_label("bucket", spec.name)
        if not spec.endpoint or not spec.bucket:
            raise Invalid(f"bucket {spec.name}: endpoint or bucket is empty")
        for other in self.all_buckets.values():
            if other.spec.name == spec.name:
                raise Conflict(f"bucket {spec.name}: a bucket of this name is registered already")
            if (other.spec.endpoint, other.spec.bucket) == (spec.endpoint, spec.bucket):
                raise Conflict(f"bucket {spec.name}: this bucket of this endpoint is registered already")
        bucket = Bucket(BucketId(next(self._ids)), spec)
        self.all_buckets[bucket.id] = bucket
        return bucket

    async def add_dataset(self, name: str, bucket_name: str) -> DatasetId:
        """Create an empty dataset. Raises Conflict, NotFound, Invalid."""
        await trio.lowlevel.checkpoint()
        check_label("dataset", name)
        check_label("bucket", bucket_name)
        if any(dataset.name == name for dataset in self.all_datasets.values()):
            raise Conflict(f"dataset {name}: a dataset of this name exists already")
        for bucket in self.all_buckets.values():
            if bucket.spec.name == bucket_name:
                made = _Dataset(
                    DatasetId(next(self._ids)), name, bucket, version=0, updated_ns=self._now_ns()
                )
                self.all_datasets[made.id] = made
                self._wake()
                return made.id
        raise NotFound(f"bucket {bucket_name}: there is none of this name")

    async def remove_dataset(self, dataset_id: DatasetId) -> None:
        """Remove an empty dataset. Raises Conflict, NotFound."""
        await trio.lowlevel.checkpoint()
        self._dataset(dataset_id)
        if self._claims(dataset_id):
            raise Conflict(f"dataset {dataset_id}: it is not empty")
        del self.all_datasets[dataset_id]
        self._wake()

    async def installation(self) -> str:
        """Return the UUID that names this catalog."""
        await trio.lowlevel.checkpoint()
        return self.installation_id

    def _dataset(self, dataset_id: DatasetId) -> _Dataset:
        if dataset_id not in self.all_datasets:
            raise NotFound(f"dataset {dataset_id}: there is none of this id")
        return self.all_datasets[dataset_id]

    # Uploads

    async def begin(self, intent: UploadIntent, *, fresh: bool = False) -> Upload:
        """Record *intent*. Raises Conflict, NotFound, Invalid."""
        await trio.lowlevel.checkpoint()
        if not intent.keys or intent.keys.start < 0 or intent.keys.stop > KEY_LIMIT or intent.size < 0:
            raise Invalid(f"keys from {intent.keys.start} to before {intent.keys.stop} cannot be uploaded")
        if intent.holder is not None:
            self.book.check(intent.holder)
        dataset = self._dataset(intent.dataset_id)
        self._abandon(self._own_overlapping(intent))
        leased = self.book.overlapping(dataset.id, intent.keys)
        taken = self._committed_or_in_flight(dataset.id)
        if any(intent.keys.intersection(keys) for keys in taken) or any(
            item.holder != intent.holder for item in leased
        ):
            what = f"keys {intent.keys.start} to {intent.keys.last} of dataset {dataset.id}"
            raise Conflict(f"{what}: some of these keys are taken already")
        if intent.holder is not None:
            self.book.carve(intent.holder, dataset.id, intent.keys)
        data_key = self._new_name(dataset, intent.keys, fresh)
        upload_id = UploadId(next(self._ids))
        upload = Upload(upload_id, intent, dataset.bucket.id, data_key, index_object_key(data_key))
        self.pending[upload_id] = _Pending(upload, self.clock() + self.upload_lifetime)
        return upload

    def _own_overlapping(self, intent: UploadIntent) -> list[UploadId]:
        if intent.holder is None:
            return []
        return [
            key
            for key in self._uploads_of(intent.holder)
            if self.pending[key].upload.intent.dataset_id == intent.dataset_id
            and self.pending[key].upload.intent.keys.intersection(intent.keys)
        ]

    def _claims(self, dataset_id: DatasetId) -> list[Span]:
        leased = [item.lease.keys for item in self.book.held if item.lease.dataset_id == dataset_id]
        return leased + self._committed_or_in_flight(dataset_id)

    def _committed_or_in_flight(self, dataset_id: DatasetId) -> list[Span]:
        uploads = [intent.keys for intent in self._in_flight(dataset_id)]
        return uploads + [item.keys for item in self._dataranges(dataset_id)]

    def _in_flight(self, dataset_id: DatasetId) -> list[UploadIntent]:
        intents = (pending.upload.intent for pending in self.pending.values())
        return [intent for intent in intents if intent.dataset_id == dataset_id]

    def _new_name(self, dataset: _Dataset, keys: Span, fresh: bool) -> str:
        plain = data_object_key(dataset.name, keys, None)
        used = fresh or (dataset.bucket.id, plain) in self._used_names
        name = data_object_key(dataset.name, keys, next(self._ids)) if used else plain
        self._used_names |= {(dataset.bucket.id, plain), (dataset.bucket.id, name)}
        return name

    def _pending(self, upload_id: UploadId) -> _Pending:
        if upload_id not in self.pending:
            raise Conflict(f"upload {upload_id}: it was abandoned, or has expired and was swept")
        return self.pending[upload_id]

    async def confirm(self, upload_id: UploadId) -> None:
        """Record that nothing lay at the upload's names. Raises Conflict if it is gone."""
        await trio.lowlevel.checkpoint()
        self._pending(upload_id).confirmed = True

    async def renew(self, upload_id: UploadId) -> None:
        """Put off the upload's expiry. Raises Conflict if it is gone."""
        await trio.lowlevel.checkpoint()
        self._pending(upload_id).expires_at = self.clock() + self.upload_lifetime

    async def publish(self, upload_id: UploadId) -> Datarange:
        """Make the datarange visible; again if it is already. Raises Conflict if the intent is gone."""
        await trio.lowlevel.checkpoint()
        if upload_id in self.committed:
            return self.committed[upload_id]
        upload = self._pending(upload_id).upload
        del self.pending[upload_id]
        dataset = self.all_datasets[upload.intent.dataset_id]
        dataset.version += 1
        dataset.updated_ns = self._now_ns()
        datarange = Datarange(
            id=DatarangeId(next(self._ids)),
            dataset_id=dataset.id,
            keys=upload.intent.keys,
            data_key=upload.data_key,
            index_key=upload.index_key,
            size=upload.intent.size,
            created_ns=dataset.updated_ns,
        )
        self.committed[upload_id] = datarange
        self._wake()
        return datarange

    async def abandon(self, upload_id: UploadId) -> None:
        """Forget the intent, give its keys back, doom its objects if it was confirmed. May be gone."""
        await trio.lowlevel.checkpoint()
        self._abandon([upload_id] if upload_id in self.pending else [])

    async def abandon_expired(self) -> int:
        """Abandon every upload that has expired; return how many."""
        await trio.lowlevel.checkpoint()
        now = self.clock()
        return self._abandon([key for key, pending in self.pending.items() if pending.expires_at < now])

    async def abandon_all(self, holder: HolderId) -> int:
        """Abandon every upload of *holder*; return how many."""
        await trio.lowlevel.checkpoint()
        check_holder(holder)
        return self._abandon(self._uploads_of(holder))

    def _uploads_of(self, holder: HolderId) -> list[UploadId]:
        return [key for key, pending in self.pending.items() if pending.upload.intent.holder == holder]

    def _abandon(self, upload_ids: list[UploadId]) -> int:
        for upload_id in upload_ids:
            pending = self.pending.pop(upload_id)
            intent = pending.upload.intent
            if intent.holder is not None:
                self.book.add(intent.holder, Lease(intent.dataset_id, intent.keys, accepted=True))
            if pending.confirmed:
                for key in (pending.upload.data_key, pending.upload.index_key):
                    grave = Doomed(next(self._ids), pending.upload.bucket_id, key)
                    self.graves[grave.id] = grave
        return len(upload_ids)

    async def published(self, upload_id: UploadId) -> Datarange | None:
        """Return the datarange that came from the upload, or None."""
        await trio.lowlevel.checkpoint()
        return self.committed.get(upload_id)

    def expire(self, upload_id: UploadId) -> None:
        """Let time pass until the upload's writer counts as dead."""
        self.pending[upload_id].expires_at = self.clock() - 1

    # Leases

    async def enrol(self, holder: HolderId, place: str) -> None:
        """Make *holder* known, or put off its expiry. Raises Invalid."""
        await trio.lowlevel.checkpoint()
        self.book.enrol(holder, place)

    async def take(
        self, holder: HolderId, dataset_id: DatasetId, wanted: Span, *, accepted: bool = False
    ) -> Lease:
        """Lease the first key of *wanted* and the free ones after it. Raises Conflict, NotFound, Invalid."""
        await trio.lowlevel.checkpoint()
        if not wanted or wanted.start < 0 or wanted.stop > KEY_LIMIT:
            raise Invalid(f"keys from {wanted.start} to before {wanted.stop} cannot be leased")
        self.book.check(holder)
        self._dataset(dataset_id)
        own = self.book.at(dataset_id, wanted.start)
        if own is not None and own.holder == holder:
            return self.book.accept(own) if accepted else own.lease
        self._check_free(dataset_id, wanted.start)
        self.book.take_over(holder, dataset_id, wanted)
        taken = [keys.start for keys in self._claims(dataset_id) if keys.start in wanted]
        keys = Span(wanted.start, min(taken, default=wanted.stop))
        return self.book.add(holder, Lease(dataset_id, keys, accepted))

    def _check_free(self, dataset_id: DatasetId, key: int) -> None:
        self.book.check_free(dataset_id, key)
        what = f"key {key} of dataset {dataset_id}"
        for intent in self._in_flight(dataset_id):
            if key in intent.keys:
                by = f" by {self.book.known[intent.holder].place}" if intent.holder else ""
                raise Conflict(f"{what}: it is being uploaded{by}")
        if any(key in item.keys for item in self._dataranges(dataset_id)):
            raise Conflict(f"{what}: it is committed")

    async def accept(self, holder: HolderId, dataset_id: DatasetId, key: int) -> None:
        """Make the lease that holds *key* accepted. Raises Conflict."""
        await trio.lowlevel.checkpoint()
        check_holder(holder)
        own = self.book.at(dataset_id, key)
        if own is None or own.holder != holder:
            raise Conflict(f"key {key} of dataset {dataset_id}: journal {holder} does not lease it")
        self.book.accept(own)

    async def release(self, holder: HolderId, dataset_id: DatasetId, keys: Span) -> None:
        """Free what *holder* leases of *keys*."""
        await trio.lowlevel.checkpoint()
        check_holder(holder)
        self.book.carve(holder, dataset_id, keys)

    async def held(self, holder: HolderId) -> list[Lease]:
        """Return the leases of *holder*, by dataset and key."""
        await trio.lowlevel.checkpoint()
        check_holder(holder)
        return self.book.of(holder)

    async def holders(self) -> list[Holder]:
        """Return all holders, by place."""
        await trio.lowlevel.checkpoint()
        return self.book.holders()

    async def dismiss(self, holder: HolderId) -> None:
        """Free all that *holder* leases and forget it."""
        await trio.lowlevel.checkpoint()
        check_holder(holder)
        self._abandon(self._uploads_of(holder))
        self.book.forget(holder)

    async def drop_expired(self) -> int:
        """Free expired unaccepted leases, forget expired holders without any; return how many keys went."""
        await trio.lowlevel.checkpoint()
        uploading = (pending.upload.intent.holder for pending in self.pending.values())
        return self.book.drop_expired({holder for holder in uploading if holder is not None})

    def expire_holder(self, holder: HolderId) -> None:
        """Let time pass until *holder* counts as dead."""
        self.book.expire(holder)

    # Graveyard

    async def doomed(self, limit: int) -> list[Doomed]:
        """Return up to *limit* objects that are due for deletion."""
        await trio.lowlevel.checkpoint()
        return list(self.graves.values())[:limit]

    async def buried(self, ids: Sequence[int]) -> None:
        """Strike deleted objects off the list."""
        await trio.lowlevel.checkpoint()
        for grave in ids:
            self.graves.pop(grave, None)

    def _now_ns(self) -> int:
        return time.time_ns()

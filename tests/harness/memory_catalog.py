"""The catalog's seven ports in memory: a twin of Postgres for tests of the engine.

It answers to the same contract suite as the real one (tests/contract/test_catalog*.py, test_leases.py).
Not for time limits, outages or hostile rows. No method waits but at trio's checkpoint, so each is one
transaction. What it remembers is in memory_state.py, further ports are in memory_uploads.py and
memory_dataranges.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import trio

from datas3tfs.catalog import Catalog
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
    Overlap,
)
from datas3tfs.core.names import check_label
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from datas3tfs.ports import CatalogReader, ChangeFeed, Graveyard, Leases, Registry, Uploads
from tests.harness.memory_dataranges import MemoryDataranges, MemoryTokens
from tests.harness.memory_leases import check_holder
from tests.harness.memory_state import MemoryFeed, StoredDataset, check_keys
from tests.harness.memory_uploads import MemoryUploads


class MemoryCatalog(MemoryUploads):
    """Five of the ports at once, also by name like catalog.Catalog; *ranges* and *tokens* are the others."""

    def __init__(
        self,
        *,
        upload_lifetime: float = 600.0,
        presigned_lifetime: float = 24 * 3600.0 + 600.0,
        grace: float = 24 * 3600.0 + 600.0,
        lease_lifetime: float = 600.0,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        super().__init__(
            upload_lifetime=upload_lifetime,
            presigned_lifetime=presigned_lifetime,
            grace=grace,
            lease_lifetime=lease_lifetime,
            clock=clock,
        )
        self.ranges = MemoryDataranges(self)  # "dataranges" is a method of CatalogReader
        self.tokens = MemoryTokens()

    def ports(self) -> Catalog:
        """Return the twin as what the application is wired with."""
        return Catalog(self, self, self, self, self, self.ranges, self.tokens)

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

    def _summary(self, dataset: StoredDataset) -> Dataset:
        held = self.dataranges_of(dataset.id)
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
        return self.dataranges_of(dataset_id)

    async def overlap(self, name: str, keys: Span) -> Overlap:
        """Return the committed dataranges of a dataset that have one of *keys*. Raises NotFound."""
        dataset = await self.dataset(name)
        held = self.dataranges_of(dataset.id)
        found = [item for item in held if item.keys.intersection(keys)]
        return Overlap(dataset.id, dataset.bucket_id, found, is_empty=not held)

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
        self.feeds.add(feed)
        try:
            yield feed
        finally:
            self.feeds.remove(feed)

    def remove(self, datarange_id: DatarangeId) -> None:
        """Take a committed datarange away, as another program may, without deleting its objects."""
        self.take_away([item for item in self.committed.values() if item.id == datarange_id])

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
        bucket = Bucket(BucketId(next(self.ids)), spec)
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
                made = StoredDataset(
                    DatasetId(next(self.ids)), name, bucket, version=0, updated_ns=time.time_ns()
                )
                self.all_datasets[made.id] = made
                self.wake()
                return made.id
        raise NotFound(f"bucket {bucket_name}: there is none of this name")

    async def remove_dataset(self, dataset_id: DatasetId) -> None:
        """Remove an empty dataset. Raises Conflict, NotFound."""
        await trio.lowlevel.checkpoint()
        self.known_dataset(dataset_id)
        if self.claims(dataset_id):
            raise Conflict(f"dataset {dataset_id}: it is not empty")
        items = self.unpublished.items()
        self.abandon_now([key for key, item in items if item.upload.intent.dataset_id == dataset_id])
        del self.all_datasets[dataset_id]
        self.wake()

    async def installation(self) -> str:
        """Return the UUID that names this catalog."""
        await trio.lowlevel.checkpoint()
        return self.installation_id

    # Leases

    async def enrol(self, holder: HolderId, place: str, *, alone: bool = False) -> None:
        """Make *holder* known, or put off its expiry. Raises Invalid, Conflict (*alone*, alive elsewhere)."""
        await trio.lowlevel.checkpoint()
        self.book.enrol(holder, place, alone=alone)

    async def take(
        self, holder: HolderId, dataset_id: DatasetId, wanted: Span, *, accepted: bool = False
    ) -> Lease:
        """Lease the first key of *wanted* and the free ones after it. Raises Conflict, NotFound, Invalid."""
        await trio.lowlevel.checkpoint()
        check_keys(wanted, "leased")
        self.book.check(holder)
        self.known_dataset(dataset_id)
        own = self.book.at(dataset_id, wanted.start)
        if own is not None and own.holder == holder:
            return self.book.accept(own) if accepted else own.lease
        self._check_free(dataset_id, wanted.start)
        self.book.take_over(holder, dataset_id, wanted)
        taken = [keys.start for keys in self.claims(dataset_id) if keys.start in wanted]
        keys = Span(wanted.start, min(taken, default=wanted.stop))
        return self.book.add(holder, Lease(dataset_id, keys, accepted))

    def _check_free(self, dataset_id: DatasetId, key: int) -> None:
        self.book.check_free(dataset_id, key)
        what = f"key {key} of dataset {dataset_id}"
        for intent in self.claiming(dataset_id):
            if key in intent.keys:
                by = f" by {self.book.known[intent.holder].place}" if intent.holder else ""
                raise Conflict(f"{what}: it is being uploaded{by}")
        if any(key in item.keys for item in self.dataranges_of(dataset_id)):
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

    async def dismiss(self, holder: HolderId, place: str | None = None) -> None:
        """Free all that *holder* leases and forget it, if it is at *place*."""
        await trio.lowlevel.checkpoint()
        check_holder(holder)
        if place is not None and not self.book.is_at(holder, place):
            return
        self.abandon_now(self._uploads_of(holder))
        self.book.forget(holder)

    async def drop_expired(self) -> int:
        """Free expired unaccepted leases, forget expired holders without any; return how many keys went."""
        await trio.lowlevel.checkpoint()
        uploading = (pending.upload.intent.holder for pending in self.unpublished.values())
        return self.book.drop_expired({holder for holder in uploading if holder is not None})

    def expire_holder(self, holder: HolderId) -> None:
        """Let time pass until *holder* counts as dead."""
        self.book.expire(holder)

    # Graveyard

    async def doomed(self, limit: int) -> list[Doomed]:
        """Return up to *limit* objects that are due for deletion."""
        await trio.lowlevel.checkpoint()
        now = self.clock()
        due = [self.graves[key] for key in self.graves if self.due_at[key] <= now]
        return sorted(due, key=lambda item: (self.due_at[item.id], item.id))[:limit]

    async def buried(self, ids: Sequence[int]) -> None:
        """Strike deleted objects off the list."""
        await trio.lowlevel.checkpoint()
        for grave in ids:
            self.graves.pop(grave, None)

    def let_graves_fall_due(self) -> None:
        """Let time pass until all that is doomed may be deleted."""
        self.due_at = dict.fromkeys(self.due_at, self.clock())

"""What the catalog's twin in memory remembers, and the rules that its ports share.

Not for waiting: plain functions on plain values, so each is one transaction. The ports on top of it are in
memory_catalog.py, memory_uploads.py and memory_dataranges.py; who leases what is in memory_leases.py.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from datas3tfs.core.model import (
    Bucket,
    BucketId,
    Datarange,
    DatarangeId,
    DatasetId,
    Doomed,
    Lease,
    Upload,
    UploadId,
    UploadIntent,
)
from datas3tfs.core.names import KEY_LIMIT, data_object_key, staged_index_key
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.memory_leases import LeaseBook


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
class StoredDataset:
    """A dataset's row."""

    id: DatasetId
    name: str
    bucket: Bucket
    version: int
    updated_ns: int


@dataclass(slots=True)
class Unpublished:
    """An upload in flight."""

    upload: Upload
    expires_at: float  # by the twin's clock
    confirmed: bool = False
    multipart: str | None = None
    begun_ns: int = field(default_factory=time.time_ns)


class MemoryState:
    """All that the twin's ports share; the attributes are for tests to look at."""

    def __init__(
        self,
        *,
        upload_lifetime: float = 600.0,
        presigned_lifetime: float = 24 * 3600.0 + 600.0,
        grace: float = 24 * 3600.0 + 600.0,
        lease_lifetime: float = 600.0,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.upload_lifetime = upload_lifetime  # seconds of *clock*, as the following are
        self.presigned_lifetime = presigned_lifetime
        self.grace = grace
        self.clock = clock
        self.all_buckets: dict[BucketId, Bucket] = {}
        self.all_datasets: dict[DatasetId, StoredDataset] = {}
        # By the upload they came from; those that were adopted by a number that no upload has.
        self.committed: dict[UploadId, Datarange] = {}
        self.unpublished: dict[UploadId, Unpublished] = {}
        self.merged: dict[UploadId, DatarangeId] = {}  # uploads whose dataranges an aggregate replaced
        self.begun: set[UploadId] = set()  # every upload that ever was
        self.book = LeaseBook(lease_lifetime, clock)
        self.graves: dict[int, Doomed] = {}  # due or not
        self.due_at: dict[int, float] = {}  # when, by the twin's clock
        self.used_names: set[tuple[BucketId, str]] = set()
        self.ids = itertools.count(1)
        self.feeds: set[MemoryFeed] = set()
        self.installation_id = str(uuid.uuid4())

    def wake(self) -> None:
        """Let everybody see that something has changed."""
        for feed in self.feeds:
            feed.wake()

    def known_dataset(self, dataset_id: DatasetId) -> StoredDataset:
        """Return a dataset. Raises NotFound."""
        if dataset_id not in self.all_datasets:
            raise NotFound(f"dataset {dataset_id}: there is none of this id")
        return self.all_datasets[dataset_id]

    def dataranges_of(self, dataset_id: DatasetId) -> list[Datarange]:
        """Return the committed dataranges of a dataset, ascending by key."""
        held = [item for item in self.committed.values() if item.dataset_id == dataset_id]
        return sorted(held, key=lambda item: item.keys)

    def claiming(self, dataset_id: DatasetId) -> list[UploadIntent]:
        """Return the intents in flight that hold keys: an aggregate's sources do that for it."""
        intents = (item.upload.intent for item in self.unpublished.values())
        return [intent for intent in intents if intent.dataset_id == dataset_id and not intent.replaces]

    def committed_or_in_flight(self, dataset_id: DatasetId) -> list[Span]:
        """Return the keys that are taken otherwise than by a lease."""
        uploads = [intent.keys for intent in self.claiming(dataset_id)]
        return uploads + [item.keys for item in self.dataranges_of(dataset_id)]

    def claims(self, dataset_id: DatasetId) -> list[Span]:
        """Return the keys that are taken, by whatever."""
        leased = [item.lease.keys for item in self.book.held if item.lease.dataset_id == dataset_id]
        return leased + self.committed_or_in_flight(dataset_id)

    def doom(self, bucket_id: BucketId, key: str, delay: float = 0.0) -> None:
        """Put an object on the list of those to delete, in *delay* seconds of the twin's clock."""
        grave = Doomed(next(self.ids), bucket_id, key)
        self.graves[grave.id] = grave
        self.due_at[grave.id] = self.clock() + delay

    def doom_datarange(self, datarange: Datarange) -> None:
        """Put both objects of a datarange that goes on the list, for when nobody reads them any more."""
        bucket_id = self.all_datasets[datarange.dataset_id].bucket.id
        for key in (datarange.data_key, datarange.index_key):
            self.doom(bucket_id, key, self.grace)

    def doom_while_urls_live(self, item: Unpublished, keys: list[str]) -> None:
        """Put objects that somebody may put on the list: now, and again when no URL for that is valid."""
        delays = [0.0]
        if item.upload.intent.presigned and item.expires_at > self.clock():
            delays.append(item.expires_at - self.clock())
        for delay in delays:
            for key in keys:
                self.doom(item.upload.bucket_id, key, delay)

    def touch(self, dataset: StoredDataset) -> None:
        """Note that a datarange of *dataset* has come or gone."""
        dataset.version += 1
        dataset.updated_ns = time.time_ns()
        self.wake()

    def take_away(self, gone: list[Datarange]) -> set[UploadId]:
        """Remove committed dataranges; return the uploads that they came from."""
        ids = {item.id for item in gone}
        uploads = {key for key, item in self.committed.items() if item.id in ids and key > 0}
        uploads |= {key for key, item_id in self.merged.items() if item_id in ids}
        self.merged = {key: item_id for key, item_id in self.merged.items() if item_id not in ids}
        self.committed = {key: item for key, item in self.committed.items() if item.id not in ids}
        for dataset_id in {item.dataset_id for item in gone}:
            self.touch(self.all_datasets[dataset_id])
        return uploads

    def become(self, upload_id: UploadId) -> Datarange | None:
        """Return what has become of an upload, if it was published and is not removed."""
        by_id = {item.id: item for item in self.committed.values()}
        return self.committed.get(upload_id) or by_id.get(self.merged.get(upload_id, DatarangeId(-1)))

    def sources(self, intent: UploadIntent) -> list[Datarange]:
        """Return the dataranges that an aggregate replaces. Raises Conflict unless they are all there and
        hold exactly its keys."""
        by_id: dict[DatarangeId, Datarange] = {item.id: item for item in self.committed.values()}
        found = [by_id[one] for one in intent.replaces if one in by_id]
        stops = [intent.keys.start, *(item.keys.stop for item in found)]
        if (
            len(found) < len(intent.replaces)
            or any(item.dataset_id != intent.dataset_id for item in found)
            or [item.keys.start for item in found] != stops[:-1]
            or stops[-1] != intent.keys.stop
        ):
            raise Conflict(
                f"{described(intent)}: the dataranges to replace are not there any more, or not these keys"
            )
        return found

    def new_name(self, dataset: StoredDataset, keys: Span, fresh: bool) -> str:
        """Return a TAR's object key that was never handed out."""
        plain = data_object_key(dataset.name, keys, None)
        used = fresh or (dataset.bucket.id, plain) in self.used_names
        name = data_object_key(dataset.name, keys, next(self.ids)) if used else plain
        self.used_names |= {(dataset.bucket.id, plain), (dataset.bucket.id, name)}
        return name

    def abandon_now(self, upload_ids: list[UploadId]) -> int:
        """Abandon these uploads; return how many."""
        for upload_id in upload_ids:
            item = self.unpublished.pop(upload_id)
            intent = item.upload.intent
            if intent.holder is not None:
                self.book.add(intent.holder, Lease(intent.dataset_id, intent.keys, accepted=True))
            if item.confirmed:
                keys = [item.upload.data_key, item.upload.index_key]
                staged = [staged_index_key(item.upload.data_key)] if intent.presigned else []
                self.doom_while_urls_live(item, keys + staged)
        return len(upload_ids)


def described(intent: UploadIntent) -> str:
    """Return words for what *intent* is about."""
    return f"keys {intent.keys.start} to {intent.keys.last} of dataset {intent.dataset_id}"


def check_keys(keys: Span, what: str) -> None:
    """Raise Invalid if there are no such keys to be *what*."""
    if not keys or keys.start < 0 or keys.stop > KEY_LIMIT:
        raise Invalid(f"keys from {keys.start} to before {keys.stop} cannot be {what}")


def check_size(size: int) -> None:
    """Raise Invalid if no object can be *size* bytes long."""
    if not 0 <= size < 2**63:
        raise Invalid(f"{size} is not the size of an object")

"""What the engine needs from the outside world, in words of the product.

Adapters (catalog/, objects/, cache/, journal/) implement these Protocols; tests bring in-memory twins.
Every method is a coroutine that may wait, is cancellable, and raises errors of datas3tfs.errors only:
Unavailable whenever Postgres, S3 or the disk did not answer in time or refused. JournalStore alone is
different: a local write takes less time than a switch to a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from datas3tfs.core.journalrecords import EntryId, Place, Record
from datas3tfs.core.model import (
    Bucket,
    BucketId,
    BucketSpec,
    Datarange,
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
from datas3tfs.core.spans import Span


class ChangeFeed(Protocol):
    """Wakes whoever shows the catalog when it may have changed."""

    async def wait(self) -> None:
        """Return when something may have changed since the last return. Never raises Unavailable:
        while Postgres is away it just does not return (it returns once when Postgres is back)."""
        ...


class CatalogReader(Protocol):
    """The committed state: all a mount needs."""

    async def datasets(self) -> list[Dataset]:
        """Return all datasets, ascending by id."""
        ...

    async def dataset(self, name: str) -> Dataset:
        """Return the dataset called *name*. Raises NotFound, Invalid (no name for a dataset)."""
        ...

    async def dataranges(self, dataset_id: DatasetId) -> list[Datarange]:
        """Return the committed dataranges of a dataset, ascending by key; [] if there are none.

        Raises Corrupt if a row cannot be."""
        ...

    async def bucket(self, bucket_id: BucketId) -> Bucket:
        """Return a bucket with its credentials. Raises NotFound, Invalid (wrong encryption key)."""
        ...

    def changes(self) -> AbstractAsyncContextManager[ChangeFeed]:
        """Subscribe to changes made anywhere; seen within a second of their commit."""
        ...


class Registry(Protocol):
    """Registering buckets and datasets."""

    async def buckets(self) -> list[Bucket]:
        """Return all buckets by name, credentials left empty."""
        ...

    async def add_bucket(self, spec: BucketSpec) -> Bucket:
        """Register a bucket. Raises Conflict (name, or endpoint and bucket, taken), Invalid."""
        ...

    async def add_dataset(self, name: str, bucket_name: str) -> DatasetId:
        """Create an empty dataset. Raises Conflict (name taken), NotFound (bucket), Invalid."""
        ...

    async def remove_dataset(self, dataset_id: DatasetId) -> None:
        """Remove an empty dataset. Raises Conflict (a key of it is taken, by whatever), NotFound."""
        ...

    async def installation(self) -> str:
        """Return the UUID that names this catalog for ever, in its usual form."""
        ...


class Uploads(Protocol):
    """From intent to published datarange; each method is one transaction."""

    async def begin(self, intent: UploadIntent, *, fresh: bool = False) -> Upload:
        """Record *intent*: claim its keys and name two objects never used before in that bucket.

        Keys that the intent's holder has leased pass from the leases to the upload; keys nobody has
        taken are claimed as well. An upload of the holder's own that overlaps is abandoned: a journal
        uploads a key once at a time, so it has not learnt how that one began. *fresh* skips the name
        without a generation (the writer found an object there). Raises Conflict (a key is committed or
        claimed), NotFound (dataset), Invalid (impossible keys). Somebody else's expired lease is as
        good as any: `take` first, or sweep.
        """
        ...

    async def confirm(self, upload_id: UploadId) -> None:
        """Record that nothing lay at the upload's object names: what lies there from now on is its
        own, and is doomed when it is abandoned. Raises Conflict if it is gone."""
        ...

    async def renew(self, upload_id: UploadId) -> None:
        """Put off the upload's expiry. Raises Conflict if it is gone."""
        ...

    async def publish(self, upload_id: UploadId) -> Datarange:
        """Make the datarange visible and forget the intent. Raises Conflict if the intent is gone.

        Publishing again what is published returns the same datarange."""
        ...

    async def abandon(self, upload_id: UploadId) -> None:
        """Forget the intent, free its keys (or, if it has a holder, give them back as one accepted
        lease) and, if it was confirmed, doom both objects. Does nothing if it is gone."""
        ...

    async def abandon_expired(self) -> int:
        """Abandon every upload whose writer has stopped renewing it; return how many."""
        ...

    async def abandon_all(self, holder: HolderId) -> int:
        """Abandon every upload of *holder*, expired or not; return how many. For the journal's owner
        after a crash, who knows that nobody is writing them any more."""
        ...

    async def published(self, upload_id: UploadId) -> Datarange | None:
        """Return the datarange that came from the upload; None if it was not published, or is gone."""
        ...


class Leases(Protocol):
    """Keys that journals hold before they are committed; each method is one transaction.

    All leases of a holder expire together, if it is not enrolled again in time. An expired lease that is
    not accepted may be taken over by anybody; an accepted one never.
    """

    async def enrol(self, holder: HolderId, place: str) -> None:
        """Make the journal at *place* known as *holder*, or put off its expiry."""
        ...

    async def take(
        self, holder: HolderId, dataset_id: DatasetId, wanted: Span, *, accepted: bool = False
    ) -> Lease:
        """Lease the first key of *wanted* and as many of the following as are free, as one lease.

        If *holder* has the first key already, its lease is returned, made accepted if that is asked; it
        may begin before *wanted* and reach beyond. Raises Conflict (the first key is taken: by somebody
        else, or by an upload of one's own), NotFound (dataset, or holder: an expired one without leases
        is forgotten), Invalid.
        """
        ...

    async def accept(self, holder: HolderId, dataset_id: DatasetId, key: int) -> None:
        """Make the lease that holds *key* accepted. Raises Conflict if *holder* does not hold it, or not
        any more: nobody may be told "safe" before this has returned."""
        ...

    async def release(self, holder: HolderId, dataset_id: DatasetId, keys: Span) -> None:
        """Free what *holder* leases of *keys*, if anything; parts of leases outside of them stay."""
        ...

    async def held(self, holder: HolderId) -> list[Lease]:
        """Return the leases of *holder*, by dataset and key; [] if it is unknown."""
        ...

    async def holders(self) -> list[Holder]:
        """Return all journals that are known, by place."""
        ...

    async def dismiss(self, holder: HolderId) -> None:
        """Free all that *holder* leases, accepted or not, abandon its uploads without giving their keys
        back, and forget it; it may be unknown."""
        ...

    async def drop_expired(self) -> int:
        """Free expired leases that are not accepted, and forget expired holders without any; return how
        many keys were freed."""
        ...


class Graveyard(Protocol):
    """The list of objects to delete."""

    async def doomed(self, limit: int) -> list[Doomed]:
        """Return up to *limit* objects that are due for deletion."""
        ...

    async def buried(self, ids: Sequence[int]) -> None:
        """Strike deleted objects off the list."""
        ...


class ObjectStore(Protocol):
    """One bucket. Object content is never trusted: lengths and positions are checked here."""

    async def get_range(self, key: str, span: Span, total: int) -> bytes:
        """Return exactly the bytes *span* of the object *key*, which is *total* bytes long.

        Raises NotFound (no such object), Corrupt (its length is not *total*), Unavailable.
        """
        ...

    async def get(self, key: str, limit: int) -> bytes:
        """Return a whole object of at most *limit* bytes. Raises NotFound, Corrupt (longer), Unavailable."""
        ...

    async def size(self, key: str) -> int:
        """Return an object's length in bytes. Raises NotFound, Unavailable."""
        ...

    async def put(self, key: str, body: bytes) -> None:
        """Store a small object in one request. Raises Unavailable."""
        ...

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], size: int) -> None:
        """Store *size* bytes from *chunks* (of any length), memory flat, in parallel parts if large.

        The object appears whole or not at all. Raises Unavailable; Invalid if *chunks* yields another
        number of bytes than *size*. What *chunks* raises comes out as it is; nothing is left open.
        """
        ...

    async def delete(self, key: str) -> None:
        """Delete an object and any unfinished multipart upload of it; both may be absent."""
        ...


class Stores(Protocol):
    """The buckets' object stores, one client per bucket, made once."""

    async def store(self, bucket_id: BucketId) -> ObjectStore:
        """Return the store of a registered bucket. Raises NotFound, Unavailable, Invalid."""
        ...


class IndexCache(Protocol):
    """Mapped indices on local disk, by key. An entry that is damaged does not exist."""

    async def get(self, key: str) -> memoryview | None:
        """Return the entry, mapped and read-only, or None. It stays readable after eviction."""
        ...

    async def put(self, key: str, content: bytes) -> memoryview:
        """Store *content* and return it, mapped if the disk could store it; if not, that costs a
        warning only."""
        ...

    async def discard(self, key: str) -> None:
        """Forget an entry; it may be absent."""
        ...


class JournalContent(Protocol):
    """The content of one uncommitted file, in a file of its own. Not coroutines; see JournalStore."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of *data*. Raises Full, Unavailable; a part may have been written."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes; fewer only at the end. Raises Unavailable."""
        ...

    def truncate(self, size: int) -> None:
        """Make it *size* bytes long; new bytes are zeros. Raises Full, Unavailable."""
        ...

    def size(self) -> int:
        """Return its length in bytes."""
        ...

    def sync(self) -> None:
        """Make it survive a loss of power. Blocks for long: call it in a thread. Raises Unavailable."""
        ...

    def remove(self) -> None:
        """Take it off the disk; it stays readable and writable until closed."""
        ...

    def close(self) -> None:
        """Close it; nothing may be called any more."""
        ...


class JournalStore(Protocol):
    """A journal's directory: a log of records, and files for large content. Exclusive to one process.

    Nothing here is a coroutine: a call is a few system calls on local files. `append` returns when the
    record would survive SIGKILL; only `sync` blocks for long, to make it survive a loss of power.
    """

    @property
    def holder(self) -> HolderId:
        """The journal's name for ever, under which it holds leases."""
        ...

    @property
    def place(self) -> str:
        """Where it is, for people: "host:/directory"."""
        ...

    @property
    def log_bytes(self) -> int:
        """Bytes of the log on disk, live or not."""
        ...

    def records(self) -> Iterator[tuple[Record, Place]]:
        """Yield all records found when it was opened, oldest first, each with the place it occupies.
        Accepted records come without their inline content: `read` has it if the place is as long as the
        file. To be read to its end before anything is appended."""
        ...

    def has_gaps(self) -> bool:
        """Say whether records are missing, from the log or from what was put aside of it as damaged. To be
        asked after `records`. Raises Unavailable."""
        ...

    def append(self, record: Record) -> Place:
        """Append a record; return its place. Raises Full, Unavailable, Invalid (out of the format's range);
        the log is as before then."""
        ...

    def read(self, place: Place, offset: int, size: int) -> bytes:
        """Return up to *size* bytes of the content inside the Accepted record at *place*, from *offset*
        on; fewer only at the end. Raises Corrupt (it is cut short), Unavailable."""
        ...

    def drop(self, place: Place) -> None:
        """Say that the Accepted record at *place* is not needed any more. The oldest segments are
        deleted as soon as nothing in them is."""
        ...

    def oldest(self) -> int | None:
        """Return the number of the oldest segment that only records still needed keep on disk, the one
        being appended to excepted: append those again, drop the old places, and it goes."""
        ...

    def create_content(self, entry: EntryId) -> JournalContent:
        """Make the (empty) content file of an entry. Raises Full, Unavailable."""
        ...

    def open_content(self, entry: EntryId) -> JournalContent:
        """Open the content file of an entry. Raises NotFound, Unavailable."""
        ...

    def contents(self) -> list[EntryId]:
        """Return which entries have a content file."""
        ...

    def free_bytes(self) -> int:
        """Return how many bytes its disk has left for us."""
        ...

    def sync(self) -> None:
        """Make all that was appended survive a loss of power. Blocks for long: call it in a thread.
        Raises Unavailable."""
        ...

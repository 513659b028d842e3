"""What the engine needs of the catalog: Postgres, or its twin in memory. Each method is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

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
    Overlap,
    PendingUpload,
    Token,
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

    async def overlap(self, name: str, keys: Span) -> Overlap:
        """Return the committed dataranges of the dataset called *name* that have one of *keys*, as they are
        at this moment. Raises NotFound, Invalid (no name for a dataset), Corrupt."""
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
        """Remove an empty dataset. Raises Conflict (a key of it is taken, by whatever), NotFound.

        Aggregates begun in it are abandoned: their sources are gone."""
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

        An aggregate (an intent that *replaces* dataranges) claims nothing, as its sources hold the keys.
        It needs at least two, which must hold the intent's keys exactly; Conflict if they do not now.

        If the intent's *attempt* has begun an upload that is in flight, that one is renewed and returned;
        Conflict if it was begun for another intent. Its writer may have confirmed it and put objects.
        """
        ...

    async def pending(self, upload_id: UploadId) -> PendingUpload:
        """Return an upload in flight. Raises NotFound (no upload ever had that id), Conflict (it is
        published, was abandoned, or has expired and was swept)."""
        ...

    async def in_flight(self, dataset_id: DatasetId, keys: Span) -> list[PendingUpload]:
        """Return the uploads through URLs, expired or not, that are to have one of *keys* of a dataset, by
        key. Raises Corrupt if a row cannot be."""
        ...

    async def remember_multipart(self, upload_id: UploadId, multipart: str) -> str:
        """Record S3's id of the upload's presigned multipart upload, if none is recorded yet; return the one
        that is. Raises Conflict if the upload is gone, Invalid."""
        ...

    async def confirm(self, upload_id: UploadId) -> None:
        """Record that nothing lay at the upload's object names: what lies there from now on is its
        own, and is doomed when it is abandoned. Raises Conflict if it is gone."""
        ...

    async def renew(self, upload_id: UploadId) -> None:
        """Put off the upload's expiry. Raises Conflict if it is gone."""
        ...

    async def publish(self, upload_id: UploadId, size: int | None = None) -> Datarange:
        """Make the datarange visible and forget the intent; *size* replaces that of the intent. Raises
        Conflict if the intent is gone.

        An aggregate takes the place of its sources in the same transaction, and their objects are doomed
        for when nobody reads them any more; Conflict if the sources are not all there still. Publishing
        again what is published returns the same datarange, or the aggregate that has replaced it."""
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
        """Return the datarange that came from the upload, or the aggregate that has replaced it since; None
        if it was not published, or that datarange was removed."""
        ...


class Dataranges(Protocol):
    """Committed dataranges that come and go otherwise than by an upload; each method is one transaction.

    Objects of what goes are deleted when no URL for them is valid any more and no mount can still read them.
    """

    async def handed_out(self, bucket_id: BucketId, data_keys: Sequence[str]) -> set[str]:
        """Return which of *data_keys* this catalog has ever given to an upload of its own, or adopted."""
        ...

    async def adopt(
        self, dataset_id: DatasetId, keys: Span, data_key: str, index_key: str, size: int
    ) -> Datarange:
        """Commit objects that lie in the dataset's bucket already. Raises Conflict (a key is taken, or the
        catalog has handed out *data_key* itself: it is committed, in flight, or to be deleted), NotFound
        (dataset), Invalid."""
        ...

    async def remove(self, dataset_id: DatasetId, keys: Span) -> Datarange:
        """Remove the datarange of exactly *keys*; return it. Raises NotFound."""
        ...

    async def clear(self, dataset_id: DatasetId) -> int:
        """Remove all dataranges of a dataset; return how many. Uploads in flight go on. Raises NotFound."""
        ...


class Tokens(Protocol):
    """Who may use the HTTP API. Only digests are kept: a token cannot be read from the catalog."""

    async def add(self, token: Token, digest: bytes) -> None:
        """Let whoever knows what *digest* (32 bytes) was made from in. Raises Conflict (name taken),
        Invalid. *created_ns* is not looked at."""
        ...

    async def all(self) -> list[Token]:
        """Return all tokens by name."""
        ...

    async def find(self, digest: bytes) -> Token | None:
        """Return whose digest this is."""
        ...

    async def remove(self, name: str) -> None:
        """Forget a token. Raises NotFound."""
        ...


class Leases(Protocol):
    """Keys that journals hold before they are committed; each method is one transaction.

    All leases of a holder expire together, if it is not enrolled again in time. An expired lease that is
    not accepted may be taken over by anybody; an accepted one never.
    """

    async def enrol(self, holder: HolderId, place: str, *, alone: bool = False) -> None:
        """Make the journal at *place* known as *holder*, or put off its expiry. *alone*: raises Conflict,
        naming the place, if it is known at another and has not expired there; nothing changes then."""
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

    async def dismiss(self, holder: HolderId, place: str | None = None) -> None:
        """Free all that *holder* leases, accepted or not, abandon its uploads without giving their keys
        back, and forget it; it may be unknown. With *place*: only if it is known as being there."""
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

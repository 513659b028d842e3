"""What the engine needs from the outside world, in words of the product.

Adapters (catalog/, objects/, cache/) implement these Protocols; tests bring in-memory twins. Every
method is a coroutine that may wait, is cancellable, and raises errors of datas3tfs.errors only:
Unavailable whenever Postgres, S3 or the disk did not answer in time or refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
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


class Uploads(Protocol):
    """From intent to published datarange; each method is one transaction."""

    async def begin(self, intent: UploadIntent, *, fresh: bool = False) -> Upload:
        """Record *intent*: claim its keys and name two objects never used before in that bucket.

        *fresh* skips the name without a generation (the writer found an object there).
        Raises Conflict (a key is committed or claimed), NotFound (dataset), Invalid (impossible keys).
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
        """Forget the intent, free its keys and, if it was confirmed, doom both objects. Does nothing
        if it is gone."""
        ...

    async def abandon_expired(self) -> int:
        """Abandon every upload whose writer has stopped renewing it; return how many."""
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

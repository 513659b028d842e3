"""What the engine needs of buckets, blocks and the cache of indices. Answers are checked by the adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from datas3tfs.core.index import Index
from datas3tfs.core.model import BucketId, Found, Part
from datas3tfs.core.spans import Span


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


class SharedStore(Protocol):
    """One bucket, for what others put and get through presigned URLs: nothing but the host is signed, and
    each lives `url_life` seconds from when it was asked for. Whoever has a URL needs nothing else: it is a
    secret. Answers are checked as an ObjectStore's are; raises Unavailable besides."""

    async def get_url(self, key: str) -> str:
        """Return a URL to get the object *key*, or any range of it."""
        ...

    async def put_url(self, key: str) -> str:
        """Return a URL to put the object *key* in one request."""
        ...

    async def begin_multipart(self, key: str) -> str:
        """Begin a multipart upload; return S3's id of it."""
        ...

    async def part_urls(self, key: str, multipart: str, numbers: Sequence[int]) -> list[str]:
        """Return a URL to put each of the parts *numbers* (from 1)."""
        ...

    async def parts(self, key: str, multipart: str) -> list[Part]:
        """Return the parts that have arrived, by number. Raises NotFound (no such multipart upload: it is
        completed, or was aborted)."""
        ...

    async def complete_multipart(
        self, key: str, multipart: str, tags: Sequence[tuple[int, str]], size: int
    ) -> None:
        """Make the parts, (number, tag) ascending, the object *key* of *size* bytes. Doing it again does
        nothing; whether the object has *size* bytes is looked at only if the upload is gone. Raises NotFound
        (no such multipart upload, nor such an object), Invalid (S3 refuses the parts; some servers drop the
        upload then), Unavailable."""
        ...

    async def abort_multipart(self, key: str, multipart: str) -> None:
        """Drop a multipart upload and its parts; it may be gone already."""
        ...

    async def abort_unfinished(self, key: str) -> None:
        """Drop all multipart uploads of *key* that are not complete, also those that nobody was told of."""
        ...


class PartStore(Protocol):
    """One bucket, for objects made of parts of others."""

    async def put_part(self, key: str, multipart: str, number: int, body: bytes) -> str:
        """Store part *number* (from 1) of a multipart upload; return its tag. Not every server lets a part be
        replaced by another one. Raises NotFound (no such multipart upload), Unavailable."""
        ...

    async def copy_part(self, key: str, multipart: str, number: int, source: str, span: Span) -> str | None:
        """Make the bytes *span* of the object *source* that part, without fetching them; return its tag, or
        None if this store cannot do that: then `put_part` it. At most 5 GiB, and not of an object of 5 MiB or
        less (S3's rules). Raises NotFound (*source*, or no such multipart upload), Unavailable."""
        ...


class Listing(Protocol):
    """One bucket, for looking through it."""

    def listed(self, prefix: str) -> AsyncIterator[Found]:
        """Yield the objects whose keys begin with *prefix*, by key, a page at a time; what comes or goes
        meanwhile may be there or not. Raises Unavailable."""
        ...


class WholeStore(ObjectStore, SharedStore, PartStore, Listing, Protocol):
    """One bucket with all that can be done to it."""


class WholeStores(Protocol):
    """The buckets with all that can be done to them: for servers, not for mounts."""

    async def store(self, bucket_id: BucketId) -> WholeStore:
        """Return the store of a registered bucket. Raises NotFound, Unavailable, Invalid."""
        ...


class Stores(Protocol):
    """The buckets' object stores, one client per bucket, made once."""

    async def store(self, bucket_id: BucketId) -> ObjectStore:
        """Return the store of a registered bucket. Raises NotFound, Unavailable, Invalid."""
        ...


class BlockSource(Protocol):
    """Where blocks of objects come from, and who checks them; what `problems` says holds for what `load`
    gave."""

    async def load(self, bucket_id: BucketId, key: str, span: Span, total: int, ahead: bool) -> memoryview:
        """Return exactly the bytes *span* of the object *key*, which is *total* bytes long; *ahead* of their
        readers. Raises as ObjectStore.get_range does."""
        ...

    async def problems(self, index: Index, span: Span, data: memoryview) -> dict[int, str]:
        """Return what is wrong with *data*, the bytes *span* of the object that *index* is of: where each
        piece begins that is not right, and why (core/checking.py)."""
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

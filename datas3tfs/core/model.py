"""The things the product talks about, as frozen values: bucket, dataset, datarange, upload.

Rows of Postgres become these in catalog/ and nowhere else. One word per idea: see PRODUCT section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NewType

from datas3tfs.core.spans import Span

BucketId = NewType("BucketId", int)
DatasetId = NewType("DatasetId", int)
DatarangeId = NewType("DatarangeId", int)
UploadId = NewType("UploadId", int)
HolderId = NewType("HolderId", str)  # a journal's UUID in its usual form: who holds leases


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """What somebody gives to register a bucket. The keys never show in a repr."""

    name: str
    endpoint: str  # URL with scheme, or host:port whose scheme *use_tls* decides
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    use_tls: bool = False
    region: str = "us-east-1"

    @property
    def endpoint_url(self) -> str:
        """The endpoint with its scheme; one that is written in the endpoint wins over *use_tls*."""
        if "://" in self.endpoint:
            return self.endpoint
        return ("https://" if self.use_tls else "http://") + self.endpoint


@dataclass(frozen=True, slots=True)
class Bucket:
    """A registered bucket: named endpoint, bucket and credentials (decrypted, in memory only)."""

    id: BucketId
    spec: BucketSpec


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset and what it holds in all. *version* changes whenever a datarange comes or goes."""

    id: DatasetId
    name: str
    bucket_id: BucketId
    bucket_name: str
    version: int
    updated_ns: int  # nanoseconds since the epoch
    dataranges: int
    datapoints: int
    total_bytes: int  # of the TAR objects
    lowest_key: int | None
    highest_key: int | None


@dataclass(frozen=True, slots=True)
class Datarange:
    """A contiguous run of keys in one TAR object, committed."""

    id: DatarangeId
    dataset_id: DatasetId
    keys: Span
    data_key: str
    index_key: str
    size: int  # bytes of the TAR object
    created_ns: int

    @property
    def count(self) -> int:
        """How many datapoints."""
        return self.keys.length


@dataclass(frozen=True, slots=True)
class UploadIntent:
    """What a writer is about to upload: recorded in Postgres before the first byte goes to S3."""

    dataset_id: DatasetId
    keys: Span
    size: int  # bytes of the TAR object; 0: only publishing will tell (an aggregate that a client makes)
    holder: HolderId | None = None  # whose leases the keys come from, and go back to if it is abandoned
    presigned: bool = False  # somebody else puts the objects, through URLs that live as long as the upload
    replaces: tuple[
        DatarangeId, ...
    ] = ()  # the dataranges that hold the keys now, in key order: an aggregate
    attempt: str | None = None  # a UUID that a client makes up: beginning again with it is no second upload


@dataclass(frozen=True, slots=True)
class Upload:
    """A recorded intent: it holds the keys, and names both objects, until published or abandoned."""

    id: UploadId
    intent: UploadIntent
    bucket_id: BucketId
    data_key: str
    index_key: str


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """An upload in flight as Postgres has it, for a server that did not begin it itself."""

    upload: Upload
    multipart: str | None  # S3's id of the presigned multipart upload of the TAR; None: there is none
    begun_ns: int  # nanoseconds since the epoch
    expires_ns: int  # when it counts as dead, nanoseconds since the epoch
    confirmed: bool  # what lies at its object names is its own


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a dataset has of some keys."""

    dataset_id: DatasetId
    bucket_id: BucketId
    dataranges: list[Datarange]  # those with a key in common, ascending
    is_empty: bool  # the dataset has no datarange at all


@dataclass(frozen=True, slots=True)
class Found:
    """An object that lies in a bucket."""

    key: str
    size: int  # bytes
    modified_ns: int  # nanoseconds since the epoch


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a multipart upload that has arrived."""

    number: int  # from 1
    size: int  # bytes
    tag: str  # S3's ETag, quotes included


@dataclass(frozen=True, slots=True)
class Token:
    """Who may use the HTTP API, and for what; the token itself is known to its bearer only."""

    name: str
    can_write: bool
    datasets: frozenset[str] | None  # None: all of them, and buckets too
    created_ns: int


@dataclass(frozen=True, slots=True)
class Doomed:
    """An object that nothing refers to any more and that the sweeper is to delete."""

    id: int
    bucket_id: BucketId
    object_key: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Keys that a journal holds before there is a datarange of them. *accepted*: it may hold data that
    somebody was told is safe, so that nobody else may ever take the keys."""

    dataset_id: DatasetId
    keys: Span
    accepted: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """A journal that holds leases, for people to look at."""

    id: HolderId
    place: str  # "host:/directory"
    expired: bool  # not renewed for a while: its mount is dead, or cut off
    renewed_ns: int  # when it was last heard of, nanoseconds since the epoch
    leases: int
    keys: int  # how many keys they hold
    accepted_keys: int  # … of which in accepted leases

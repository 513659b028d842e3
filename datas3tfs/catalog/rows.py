"""Rows of Postgres into values of core.model. A row is hostile until it is checked here. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from uuid import UUID

import asyncpg

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
    PendingUpload,
    Token,
    Upload,
    UploadId,
    UploadIntent,
)
from datas3tfs.core.names import KEY_LIMIT, check_label, printable
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Invalid

Row = asyncpg.Record

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATASET_ID_LIMIT = 1 << 39  # what an inode number has room for
_OBJECT_KEY_LIMIT = 1024  # bytes; S3's own


def dataset(row: Row) -> Dataset:
    """Return a row of the datasets query as a Dataset. Raises Invalid if a name or id in it is not valid."""
    if not 0 < row["id"] < _DATASET_ID_LIMIT:
        raise Invalid(f"a dataset in Postgres has the id {row['id']}")
    return Dataset(
        id=DatasetId(row["id"]),
        name=check_label("dataset", row["name"]),
        bucket_id=BucketId(row["s3_bucket_id"]),
        bucket_name=check_label("bucket", row["bucket_name"]),
        version=row["version"],
        updated_ns=nanoseconds(row["updated_at"]),
        dataranges=row["dataranges"],
        datapoints=int(row["datapoints"]),
        total_bytes=int(row["total_bytes"]),
        lowest_key=row["lowest_key"],
        highest_key=row["highest_key"],
    )


def datarange(row: Row) -> Datarange:
    """Return a row of dataranges as a Datarange. Raises Corrupt if it cannot be one."""
    first, last, size = row["min_datapoint_key"], row["max_datapoint_key"], row["size_bytes"]
    if not 0 <= first <= last < KEY_LIMIT or size < 0:
        raise Corrupt(f"datarange {row['id']} in Postgres has keys {first} to {last} and {size} bytes")
    return Datarange(
        id=DatarangeId(row["id"]),
        dataset_id=DatasetId(row["dataset_id"]),
        keys=Span(first, last + 1),
        data_key=object_key(row["data_object_key"]),
        index_key=object_key(row["index_object_key"]),
        size=size,
        created_ns=nanoseconds(row["created_at"]),
    )


def ascending(dataranges: list[Datarange]) -> list[Datarange]:
    """Return *dataranges* if they ascend without overlap, as everybody above relies on. Raises Corrupt."""
    for before, after in pairwise(dataranges):
        if after.keys.start < before.keys.stop:
            raise Corrupt(f"dataranges {before.id} and {after.id} in Postgres overlap")
    return dataranges


def bucket(row: Row, access_key: str, secret_key: str) -> Bucket:
    """Return a row of s3_buckets with the credentials given. Raises Corrupt or Invalid if it is damaged."""
    for column in ("endpoint", "bucket", "region"):
        if not row[column].isprintable():
            raise Corrupt(f"bucket {row['id']} in Postgres has a control character in its {column}")
    spec = BucketSpec(
        name=check_label("bucket", row["name"]),
        endpoint=row["endpoint"],
        bucket=row["bucket"],
        access_key=access_key,
        secret_key=secret_key,
        use_tls=row["use_tls"],
        region=row["region"],
    )
    return Bucket(id=BucketId(row["id"]), spec=spec)


def doomed(row: Row) -> Doomed:
    """Return a row of objects_to_delete as a Doomed. Raises Corrupt if its object key is not valid."""
    return Doomed(
        id=row["id"], bucket_id=BucketId(row["s3_bucket_id"]), object_key=object_key(row["object_key"])
    )


def lease(dataset_id: DatasetId, row: Row) -> Lease:
    """Return a row with a lease's keys as a Lease. Raises Corrupt if it cannot be one."""
    first, last = row["first_key"], row["last_key"]
    if not 0 <= first <= last < KEY_LIMIT:
        raise Corrupt(f"a lease of dataset {dataset_id} in Postgres has keys {first} to {last}")
    return Lease(dataset_id=dataset_id, keys=Span(first, last + 1), accepted=row["accepted"])


def holder(row: Row) -> Holder:
    """Return a row of the holders query as a Holder."""
    return Holder(
        id=HolderId(str(row["id"])),
        place=printable(row["place"]),
        expired=row["expired"],
        renewed_ns=nanoseconds(row["renewed_at"]),
        leases=row["leases"],
        keys=int(row["keys"]),
        accepted_keys=int(row["accepted_keys"]),
    )


def pending(row: Row) -> PendingUpload:
    """Return a row of datarange_uploads, with its bucket's id, as a PendingUpload. Raises Corrupt."""
    first, last = row["first_datapoint_index"], row["last_datapoint_index"]
    if not 0 <= first <= last < KEY_LIMIT:
        raise Corrupt(f"upload {row['id']} in Postgres has keys {first} to {last}")
    intent = UploadIntent(
        dataset_id=DatasetId(row["dataset_id"]),
        keys=Span(first, last + 1),
        size=row["data_size"],
        holder=None if row["lease_holder"] is None else HolderId(str(row["lease_holder"])),
        presigned=row["staged_index_key"] is not None,
        replaces=tuple(DatarangeId(one) for one in row["replaces"] or ()),
        attempt=None if row["attempt"] is None else str(row["attempt"]),
    )
    upload = Upload(
        id=UploadId(row["id"]),
        intent=intent,
        bucket_id=BucketId(row["s3_bucket_id"]),
        data_key=object_key(row["data_object_key"]),
        index_key=object_key(row["index_object_key"]),
    )
    its = None if row["upload_id"] is None else multipart(upload.id, row["upload_id"])
    begun_ns, expires_ns = nanoseconds(row["created_at"]), nanoseconds(row["expires_at"])
    return PendingUpload(upload, its, begun_ns, expires_ns, row["confirmed"])


def multipart(upload_id: UploadId, text: str) -> str:
    """Return *text* if it may be S3's id of a multipart upload. Raises Corrupt."""
    if not text or not text.isprintable():
        raise Corrupt(f"upload {upload_id} in Postgres has a multipart upload whose id cannot be one")
    return text


def token(row: Row) -> Token:
    """Return a row of api_tokens as a Token. Raises Corrupt if a name in it is not valid."""
    names = row["datasets"]
    try:
        name = check_label("token", row["name"])
        datasets = None if names is None else frozenset(check_label("dataset", one) for one in names)
    except Invalid as exc:
        raise Corrupt(f"a token in Postgres: {exc}") from exc
    return Token(name, row["can_write"], datasets, nanoseconds(row["created_at"]))


def check_holder(text: HolderId) -> None:
    """Raise Invalid if *text* is not a UUID in its usual form."""
    _check_uuid(text, "the id of a journal")


def check_attempt(text: str) -> None:
    """Raise Invalid if *text* is not a UUID in its usual form."""
    _check_uuid(text, "an attempt's UUID")


def _check_uuid(text: str, what: str) -> None:
    try:
        usual: str | None = str(UUID(text))
    except ValueError:
        usual = None
    if text != usual:
        raise Invalid(f"{printable(text)}: not {what}")


def object_key(text: str) -> str:
    """Return *text* if it may be an object's key. Raises Corrupt (empty, too long, control characters)."""
    if not text.isprintable() or not 0 < len(text.encode()) <= _OBJECT_KEY_LIMIT:
        raise Corrupt(f"{printable(text)}: not a valid object key, in Postgres")
    return text


def check_keys(keys: Span, what: str) -> None:
    """Raise Invalid if there are no such keys to be *what*."""
    # Their number is a bigint, too.
    if not keys or keys.start < 0 or keys.stop > KEY_LIMIT or keys.length >= KEY_LIMIT:
        raise Invalid(f"keys from {keys.start} to before {keys.stop} cannot be {what}")


def check_size(size: int) -> None:
    """Raise Invalid if no object can be *size* bytes long."""
    if not 0 <= size < 2**63:
        raise Invalid(f"{size} is not the size of an object")


def check_object_key(text: str) -> None:
    """Raise Invalid if *text* may not be an object's key."""
    if not text.isprintable() or not 0 < len(text.encode()) <= _OBJECT_KEY_LIMIT:
        raise Invalid(f"{printable(text)}: not a valid object key")


def nanoseconds(moment: datetime) -> int:
    """Return *moment* as nanoseconds since the epoch, exactly."""
    passed = moment - _EPOCH
    return ((passed.days * 86400 + passed.seconds) * 1_000_000 + passed.microseconds) * 1000


def check_spec(spec: BucketSpec) -> None:
    """Raise Invalid if *spec* cannot be registered. Quotes no credential."""
    check_label("bucket", spec.name)
    for word, text in (("endpoint", spec.endpoint), ("bucket", spec.bucket), ("region", spec.region)):
        if not 0 < len(text) <= 255 or not text.isprintable() or " " in text:
            raise Invalid(
                f"bucket {spec.name}: {word} is empty, too long or has characters that do not print"
            )
    scheme, separator, rest = spec.endpoint_url.partition("://")
    if scheme not in ("http", "https") or not separator or not rest or "@" in rest:
        raise Invalid(f"bucket {spec.name}: endpoint is not an http(s) URL, or has credentials in it")
    if max(len(spec.access_key), len(spec.secret_key)) > 1024:
        raise Invalid(f"bucket {spec.name}: a credential is longer than 1024 characters")

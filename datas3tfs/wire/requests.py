"""Bodies of requests, field by field as the Go clients send them; what only ours send is optional."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field, StrictBool

from datas3tfs.wire.values import MOST_PARTS, Bytes, Count, Key, Name, Request, RowId, Secret

Tag = Annotated[str, Field(max_length=256)]
NonEmpty = Annotated[str, Field(min_length=1, max_length=1024)]
Tags = Annotated[list[Tag], Field(max_length=MOST_PARTS)]


class AddBucket(Request):
    """Register a bucket."""

    name: Name
    endpoint: Name
    bucket: Name
    access_key: Secret
    secret_key: Secret
    use_tls: StrictBool = False  # only matters if the endpoint has no scheme
    region: Name = "us-east-1"


class AddDataset(Request):
    """Create a dataset in the registered bucket called *bucket*."""

    name: Name
    bucket: Name


class StartUpload(Request):
    """Begin to upload a datarange."""

    datas3t_name: Name
    first_datapoint_index: Key
    number_of_datapoints: Count
    data_size: Annotated[Bytes, Field(gt=0)]
    part_size: Annotated[int, Field(strict=True, ge=5 * 2**20, le=5 * 2**30)] | None = None  # None: 20 MiB
    attempt: UUID | None = None  # the same when this is asked again because the answer was lost


class CompleteUpload(Request):
    """Commit an upload. *upload_ids* are the parts' ETags in order; without them, S3 is asked."""

    datarange_upload_id: RowId
    upload_ids: Tags | None = None
    describe: StrictBool = False  # answer with the datarange, not with nothing


class UploadReference(Request):
    """Name an upload: to cancel it, or to go on with it."""

    datarange_upload_id: RowId


class Download(Request):
    """Ask where the datapoints from *first_datapoint* to *last_datapoint*, included, lie."""

    datas3t_name: Name
    first_datapoint: Key
    last_datapoint: Key
    checksums: StrictBool = False  # say the CRC32C of each datapoint, too


class ImportBucket(Request):
    """Commit what lies in a registered bucket and the catalog does not know."""

    bucket_name: Name


class DatasetReference(Request):
    """Name a dataset: to clear or to delete it."""

    name: Name


class Aggregate(Request):
    """Make one datarange of those that hold exactly these keys, both included."""

    datas3t_name: Name
    first_datapoint_index: Key
    last_datapoint_index: Key


class CompleteAggregate(Request):
    """Commit an aggregate that a client has made."""

    aggregate_upload_id: RowId
    upload_ids: Tags | None = None


class AggregateReference(Request):
    """Name an aggregate: to cancel it."""

    aggregate_upload_id: RowId


class DeleteDatarange(Request):
    """Delete the datarange of exactly these keys, both included."""

    datas3t_name: Name
    first_datapoint_key: Key
    last_datapoint_key: Key


class Nothing(Request):
    """What has nothing to say."""


class DatasetQuery(Request):
    """The query of a GET that asks for a dataset's content."""

    datas3t_name: NonEmpty
    must_exist: bool = False  # 404 if there is no such dataset; otherwise it is empty, as in the Go servers

"""Bodies of answers: the field names of both Go generations side by side, and a few more for our client."""

from __future__ import annotations

from datas3tfs.wire.values import Answer


class BucketInfo(Answer):
    """A registered bucket. Credentials are never shown."""

    name: str
    endpoint: str
    bucket: str
    use_tls: bool
    region: str


class DatasetInfo(Answer):
    """A dataset and what it holds; unfinished uploads do not count."""

    datas3t_name: str
    dataset_name: str  # the same; what datas3t2 calls it
    bucket_name: str
    datarange_count: int
    total_datapoints: int
    lowest_datapoint: int  # 0 if there is none
    highest_datapoint: int  # 0 if there is none
    total_bytes: int


class UploadedPart(Answer):
    """A part that has arrived already."""

    number: int  # from 1
    size: int  # bytes
    etag: str


class UploadGrant(Answer):
    """Where to put an upload. Without *use_direct_put* there is a URL for each *part_size* bytes."""

    datarange_id: int  # to be sent back as datarange_upload_id
    datarange_upload_id: int  # the same
    object_key: str
    first_datapoint_index: int
    use_direct_put: bool
    presigned_multipart_upload_urls: list[str] | None = None
    presigned_data_put_url: str | None = None
    presigned_index_put_url: str
    part_size: int  # bytes; the last part is what is left
    uploaded_parts: list[UploadedPart] | None = None  # only when one goes on with an upload
    expires_at: str  # ISO 8601: from then on the URLs are of no use


class UploadInfo(Answer):
    """An upload in flight: it holds its keys until it is completed or cancelled, or expires. An aggregate's
    keys are held by what it is to replace."""

    datarange_upload_id: int
    is_aggregate: bool
    first_datapoint_index: int
    number_of_datapoints: int
    data_size: int  # bytes that were announced; 0 for an aggregate
    object_key: str
    begun_at: str  # ISO 8601
    expires_at: str  # … unless somebody goes on with it


class UploadList(Answer):
    """The uploads in flight to a dataset, by key."""

    uploads: list[UploadInfo]


class Segment(Answer):
    """Part of a download: GET *presigned_url* with the header `Range: {range}`. Whole TAR entries."""

    presigned_url: str
    range: str  # "bytes=FIRST-LAST"
    object_key: str
    first_datapoint: int
    last_datapoint: int
    crc32c: list[int | None] | None = None  # of each datapoint's content, None where unknown; if asked for


class DownloadGrant(Answer):
    """Where the datapoints that exist of those asked for lie, by key."""

    download_segments: list[Segment]


class DatarangeInfo(Answer):
    """A datarange; ends are inclusive."""

    datarange_id: int
    data_object_key: str
    index_object_key: str
    min_datapoint_key: int
    max_datapoint_key: int
    size_bytes: int


class DatarangeList(Answer):
    """All dataranges of a dataset, by key."""

    dataranges: list[DatarangeInfo]


class SkippedObject(Answer):
    """An object that was not imported, and why."""

    object_key: str
    reason: str


class Imported(Answer):
    """What an import has found."""

    imported_datas3ts: list[str]  # datasets that got at least one datarange
    imported_count: int  # how many those are
    imported_dataranges: int
    skipped: list[SkippedObject]  # at most 1,000 of them
    skipped_count: int


class Cleared(Answer):
    """What was removed."""

    dataranges_deleted: int
    objects_scheduled: int


class Deleted(Answer):
    """It is gone. Nothing more is said of it."""


class Health(Answer):
    """The server is well."""

    status: str  # "ok"


class SourceDatarange(DatarangeInfo):
    """A datarange to be merged, and where to get it."""

    presigned_data_url: str
    presigned_index_url: str


class AggregateGrant(Answer):
    """What to merge, and where to put the result."""

    aggregate_upload_id: int
    object_key: str
    source_datarange_download_urls: list[SourceDatarange]
    use_direct_put: bool
    presigned_multipart_upload_urls: list[str] | None = None
    presigned_data_put_url: str | None = None
    presigned_index_put_url: str
    part_size: int


class Problem(Answer):
    """What went wrong: RFC 9457 (problem details)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str

"""From the words of the product to those of the wire: ends become inclusive here, and only here. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from datas3tfs.core.model import Datarange, PendingUpload
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.spans import Span
from datas3tfs.engine.locating import Located
from datas3tfs.engine.receiving import AggregateGrant, Grant, Source
from datas3tfs.errors import Invalid
from datas3tfs.wire import answers


def inclusive(first: int, last: int) -> Span:
    """Return the keys from *first* to *last*, both included. Raises Invalid if there are none."""
    if last < first:
        raise Invalid(f"datapoints {first}-{last}: the last comes before the first")
    return Span(first, last + 1)


def counted(first: int, count: int) -> Span:
    """Return *count* keys from *first* on. Raises Invalid if some are beyond the largest."""
    if first + count > KEY_LIMIT:
        raise Invalid(f"{count} datapoints from {first} on: keys end at {KEY_LIMIT - 1}")
    return Span(first, first + count)


def datarange_info(datarange: Datarange) -> answers.DatarangeInfo:
    """Return what is shown of a datarange."""
    return answers.DatarangeInfo(
        datarange_id=datarange.id,
        data_object_key=datarange.data_key,
        index_object_key=datarange.index_key,
        min_datapoint_key=datarange.keys.start,
        max_datapoint_key=datarange.keys.last,
        size_bytes=datarange.size,
    )


def upload_info(pending: PendingUpload) -> answers.UploadInfo:
    """Return what is shown of an upload in flight."""
    upload = pending.upload
    return answers.UploadInfo(
        datarange_upload_id=upload.id,
        is_aggregate=bool(upload.intent.replaces),
        first_datapoint_index=upload.intent.keys.start,
        number_of_datapoints=upload.intent.keys.length,
        data_size=upload.intent.size,
        object_key=upload.data_key,
        begun_at=_iso(pending.begun_ns),
        expires_at=_iso(pending.expires_ns),
    )


def _iso(moment_ns: int) -> str:
    return datetime.fromtimestamp(moment_ns // 10**9, UTC).isoformat()


def upload_grant(grant: Grant, *, again: bool = False) -> answers.UploadGrant:
    """Return where to put an upload; *again*: what has arrived of it, too."""
    upload = grant.upload
    parts = [answers.UploadedPart(number=one.number, size=one.size, etag=one.tag) for one in grant.done]
    return answers.UploadGrant(
        datarange_id=upload.id,
        datarange_upload_id=upload.id,
        object_key=upload.data_key,
        first_datapoint_index=upload.intent.keys.start,
        use_direct_put=grant.put_url is not None,
        presigned_multipart_upload_urls=grant.part_urls or None,
        presigned_data_put_url=grant.put_url,
        presigned_index_put_url=grant.index_url,
        part_size=grant.part_size,
        uploaded_parts=parts if again else None,
        expires_at=_iso(grant.expires_ns),
    )


def aggregate_grant(granted: AggregateGrant) -> answers.AggregateGrant:
    """Return what to merge, and where to put it."""
    grant = granted.grant
    return answers.AggregateGrant(
        aggregate_upload_id=grant.upload.id,
        object_key=grant.upload.data_key,
        source_datarange_download_urls=[_source(one) for one in granted.sources],
        use_direct_put=grant.put_url is not None,
        presigned_multipart_upload_urls=grant.part_urls or None,
        presigned_data_put_url=grant.put_url,
        presigned_index_put_url=grant.index_url,
        part_size=grant.part_size,
    )


def _source(source: Source) -> answers.SourceDatarange:
    return answers.SourceDatarange(
        **datarange_info(source.datarange).model_dump(),
        presigned_data_url=source.data_url,
        presigned_index_url=source.index_url,
    )


def segment(located: Located) -> answers.Segment:
    """Return where some datapoints lie."""
    return answers.Segment(
        presigned_url=located.url,
        range=f"bytes={located.span.start}-{located.span.last}",
        object_key=located.datarange.data_key,
        first_datapoint=located.keys.start,
        last_datapoint=located.keys.last,
        crc32c=located.crcs,
    )

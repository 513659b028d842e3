"""Learn from a TAR's headers what a bare index lacks: names and times (and that it tells the truth).

The Go implementations write records only. Headers are read in few, large range requests: a gap of up
to a mebibyte is read through, because another request costs more than that transfer.
"""

from __future__ import annotations

from functools import partial

import trio

from datas3tfs.core import tar
from datas3tfs.core.index import RECORD_SIZE, unpack_record
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.model import Datarange
from datas3tfs.core.names import parse_datapoint_name
from datas3tfs.core.spans import Span, coalesce
from datas3tfs.errors import Corrupt, Invalid
from datas3tfs.ports import ObjectStore

_GAP = 1024 * 1024
_LIMIT = 8 * 1024 * 1024  # per request


async def learn_index(store: ObjectStore, datarange: Datarange, records: bytes) -> bytes:
    """Return the flat index of *datarange*, from its *records* and its TAR's headers.

    Raises Corrupt if a header is not that of the datapoint the record says it is. Checksums stay
    unknown: they would take the contents too.
    """
    builder = IndexBuilder()
    count = len(records) // RECORD_SIZE
    headers = (_header_span(records, slot) for slot in range(count))
    for request in coalesce(headers, gap=_GAP, limit=_LIMIT):
        data = await store.get_range(datarange.data_key, request, datarange.size)
        # In a thread: there may be thousands of small datapoints in one request.
        await trio.to_thread.run_sync(_learn_all, builder, datarange, records, request, data)
    return await trio.to_thread.run_sync(
        partial(builder.finish, first=datarange.keys.start, object_size=datarange.size)
    )


def _learn_all(
    builder: IndexBuilder, datarange: Datarange, records: bytes, request: Span, data: bytes
) -> None:
    """Learn from all headers that are wholly in *request*, from where *builder* has got to."""
    count = len(records) // RECORD_SIZE
    while len(builder) < count and request.covers(span := _header_span(records, len(builder))):
        blocks = data[span.start - request.start : span.stop - request.start]
        _learn(builder, datarange, records, blocks)


def _header_span(records: bytes, slot: int) -> Span:
    offset, blocks, _ = unpack_record(records, RECORD_SIZE * slot)
    return Span(offset, offset + blocks * tar.BLOCK)


def _learn(builder: IndexBuilder, datarange: Datarange, records: bytes, blocks: bytes) -> None:
    slot = len(builder)
    key = datarange.keys.start + slot
    offset, header_blocks, size = unpack_record(records, RECORD_SIZE * slot)
    try:
        member = tar.parse_group(blocks)
        name = parse_datapoint_name(member.name)
        if (name.key, member.size) != (key, size) or member.kind not in tar.REGULAR:
            raise Invalid(f"{name} of {member.size} bytes is there, not key {key} of {size}")
        builder.add(
            offset=offset,
            header_blocks=header_blocks,
            size=size,
            mtime_ns=member.mtime_ns,
            extension=name.extension,
            crc=None,
        )
    except Invalid as exc:
        raise Corrupt(f"{datarange.data_key}: index record {slot} leads astray ({exc})") from None

"""Look at an uploaded object, as far as its size allows, and make the index that goes with it.

What is judged and how is core/uploadcheck.py; here it is fetched, in few large requests, and the work
is done in worker threads. Small objects are read as a whole; of larger ones every header; of the
largest, those of a sample (InspectionLimits). Aggregates are read as a whole whatever their size, because
what they replace is deleted.

Concurrency: a limited number of objects is inspected at a time, small ones apart from large ones, which
take long. Memory: for each of them up to four requests of 8 MiB, and 100 bytes for each datapoint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from datas3tfs.core.index import HAS_CRC, Index, open_index
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file, index_file_limit
from datas3tfs.core.model import Datarange, Upload
from datas3tfs.core.names import printable, staged_index_key
from datas3tfs.core.scan import scan
from datas3tfs.core.spans import Span
from datas3tfs.core.uploadcheck import (
    ClientIndex,
    HeaderCheck,
    InspectionLimits,
    check_against,
    check_announced,
    check_same,
    read_client_index,
)
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.ordered import open_ordered
from datas3tfs.errors import Corrupt, Invalid
from datas3tfs.ports import ObjectStore

_REQUEST = 8 << 20
_IN_FLIGHT = 4
_SMALL_AT_ONCE = 4  # objects that are read as a whole …
_LARGE_AT_ONCE = 2  # … and others, and aggregates


class Inspector:
    """Inspects uploads, a few at a time."""

    def __init__(self, indices: Indices, limits: InspectionLimits) -> None:
        self._indices = indices
        self._limits = limits
        self._small = trio.Semaphore(_SMALL_AT_ONCE)
        self._large = trio.Semaphore(_LARGE_AT_ONCE)

    async def inspect(self, store: ObjectStore, upload: Upload, size: int) -> bytes:
        """Return the index object for *upload*, whose TAR of *size* bytes lies in *store*, and beside it
        the index its uploader sent.

        Raises Invalid, naming what is wrong with either; NotFound (one is not there), Corrupt, Unavailable.
        """
        keys = upload.intent.keys
        is_small = size <= self._limits.scanned
        async with self._small if is_small else self._large:
            theirs = await _client_index(store, upload, size)
            return await _judge(store, upload.data_key, keys, size, theirs, self._limits)

    async def inspect_aggregate(
        self, store: ObjectStore, upload: Upload, size: int, sources: Sequence[Datarange]
    ) -> bytes:
        """Return the index object for an aggregate that a client has made of *sources*, if it holds every
        datapoint of theirs as it was. Raises as `inspect` does."""
        async with self._large:
            theirs = await _client_index(store, upload, size)
            index = await scan_object(store, upload.data_key, upload.intent.keys, size)
            await trio.to_thread.run_sync(check_against, theirs, index)
            for source in sources:
                known = await self._source_index(store, upload, source)
                await trio.to_thread.run_sync(check_same, index, known)
            return await _encoded(index)

    async def _source_index(self, store: ObjectStore, upload: Upload, source: Datarange) -> Index:
        """Return a source's index with checksums. Raises Corrupt."""
        index = await self._indices.of(upload.bucket_id, source)
        if index.header.flags & HAS_CRC:
            return index
        try:
            return await scan_object(store, source.data_key, source.keys, source.size)
        except Invalid as exc:
            raise Corrupt(f"{source.data_key}: {exc}") from exc


async def inspect_object(
    store: ObjectStore, key: str, keys: Span, size: int, raw_index: bytes, limits: InspectionLimits
) -> bytes:
    """Return the index object for the TAR *key* of *keys*, *size* bytes, if *raw_index* is right for it.

    Raises Invalid, naming what is wrong with either; NotFound, Corrupt, Unavailable. For the importer, who
    decides how much is inspected at a time."""
    check_announced(keys, size)
    theirs = await trio.to_thread.run_sync(read_client_index, raw_index, keys, size)
    return await _judge(store, key, keys, size, theirs, limits)


async def _judge(
    store: ObjectStore, key: str, keys: Span, size: int, theirs: ClientIndex, limits: InspectionLimits
) -> bytes:
    if size > limits.scanned:
        return await _check_headers(store, key, theirs, size, every=size <= limits.headers)
    index = await scan_object(store, key, keys, size)
    await trio.to_thread.run_sync(check_against, theirs, index)
    return await _encoded(index)


async def scan_object(store: ObjectStore, key: str, keys: Span, size: int) -> Index:
    """Return the index of the TAR *key*, from reading all of its *size* bytes in flat memory.

    Raises Invalid if it is not an archive of exactly the datapoints *keys*; NotFound, Corrupt, Unavailable.
    """
    spans = (Span(start, min(start + _REQUEST, size)) for start in range(0, size, _REQUEST))
    async with _fetched(store, key, spans, size) as chunks:

        async def following() -> bytes | None:
            return await anext(chunks, None)

        def pulled() -> Iterator[bytes]:
            while (chunk := trio.from_thread.run(following)) is not None:
                yield chunk

        flat = await trio.to_thread.run_sync(_scanned, pulled(), keys, size)
    return open_index(memoryview(flat), first=keys.start, count=keys.length, object_size=size)


def _scanned(chunks: Iterator[bytes], keys: Span, size: int) -> bytes:
    builder = IndexBuilder()
    for found in scan(chunks):
        key = keys.start + len(builder)
        if found.name.key != key or key not in keys:
            raise Invalid(
                f"{printable(str(found.name))}: is in the archive, but keys {keys.start} to {keys.last} "
                "were announced"
            )
        builder.add(
            offset=found.offset,
            header_blocks=found.header_blocks,
            size=found.size,
            mtime_ns=found.mtime_ns,
            extension=found.name.extension,
            crc=found.crc,
            chunk_crcs=found.chunk_crcs,
        )
    if len(builder) != keys.length:
        raise Invalid(f"the archive holds {len(builder)} datapoints, {keys.length} were announced")
    return builder.finish(first=keys.start, object_size=size)


async def _client_index(store: ObjectStore, upload: Upload, size: int) -> ClientIndex:
    key, keys = staged_index_key(upload.data_key), upload.intent.keys
    limit = index_file_limit(keys.length, size)
    if (length := await store.size(key)) > limit:
        raise Invalid(f"the index has {length} bytes, that of such an archive has at most {limit}")
    raw = await store.get(key, limit)
    return await trio.to_thread.run_sync(read_client_index, raw, keys, size)


async def _check_headers(
    store: ObjectStore, key: str, theirs: ClientIndex, size: int, *, every: bool
) -> bytes:
    check = await trio.to_thread.run_sync(partial(HeaderCheck, theirs, size, every=every))
    async with _fetched(store, key, check.requests, size) as chunks:
        for request in check.requests:
            await trio.to_thread.run_sync(check.look, request, await anext(chunks))
    return await trio.to_thread.run_sync(check.finish)


def _fetched(
    store: ObjectStore, key: str, spans: Iterator[Span] | Sequence[Span], size: int
) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    return open_ordered((partial(store.get_range, key, span, size) for span in spans), _IN_FLIGHT)


async def _encoded(index: Index) -> bytes:
    return await trio.to_thread.run_sync(lambda: encode_index_file(bytes(index.flat)))

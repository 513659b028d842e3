"""Ingest and upload through a Writer, without the API: for whoever has the catalog and the stores at hand.

Commands go through the client (app/clients.py); tests fill their stacks with this, in a fraction of the time.
What becomes of files is the client's: client/sources.py, client/scanning.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import trio

from datas3tfs.client import sources as gathering
from datas3tfs.client.scanning import ScannedTar
from datas3tfs.client.scanning import scan_tar as scan_tar_now
from datas3tfs.client.sources import Batch, Source, file_chunks, find_sources
from datas3tfs.core.compose import compose
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.layout import Planned, plan_layout
from datas3tfs.core.model import Datarange, Dataset
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.engine.threads import in_thread
from datas3tfs.engine.writer import Writer
from datas3tfs.errors import Conflict, Invalid

__all__ = ["Source", "batches", "find_sources", "ingest", "next_key", "scan_tar", "upload_tar"]

Advance = Callable[[int], None]


def batches(sources: Iterable[Source], first: int, datarange_bytes: int) -> Iterator[list[Planned]]:
    """Number *sources* from *first* on and split them into dataranges of about *datarange_bytes*."""
    for batch in gathering.batches(gathering.numbered(sources, first), datarange_bytes):
        yield batch.plan


async def ingest(
    writer: Writer,
    dataset: Dataset,
    sources: Sequence[Source],
    *,
    first: int,
    datarange_bytes: int,
    advance: Advance,
) -> AsyncGenerator[tuple[Datarange, Sequence[gathering.Ingestible]], None]:
    """Commit *sources* under the keys from *first* on; yield each datarange with its files.

    *advance* is told the bytes uploaded. Raises Conflict (keys taken), Invalid (a file has changed),
    Unavailable.
    """
    if first < 0 or first + len(sources) > KEY_LIMIT:
        raise Invalid(f"{len(sources)} keys from {first} on do not fit below 2^63")
    for batch in gathering.batches(gathering.numbered(sources, first), datarange_bytes):
        yield await _commit_batch(writer, dataset, batch, advance), batch.sources


async def _commit_batch(writer: Writer, dataset: Dataset, batch: Batch, advance: Advance) -> Datarange:
    layout = plan_layout(batch.plan)
    builder = IndexBuilder()
    body = compose(layout, lambda i: batch.sources[i].chunks(), builder)

    def index() -> bytes:
        return encode_index_file(builder.finish(first=layout.keys.start, object_size=layout.size))

    return await writer.commit(dataset, layout.keys, layout.size, in_thread(body, advance), index)


def next_key(dataset: Dataset) -> int:
    """Return the first key after all that the dataset has."""
    return 0 if dataset.highest_key is None else dataset.highest_key + 1


async def scan_tar(path: Path, advance: Advance) -> ScannedTar:
    """Read a TAR through and index it. Raises Invalid, naming the entry that may not be a datapoint."""

    def told(amount: int) -> None:
        trio.from_thread.run_sync(advance, amount)

    return await trio.to_thread.run_sync(scan_tar_now, path, told, abandon_on_cancel=True)


async def upload_tar(
    writer: Writer, dataset: Dataset, path: Path, scanned: ScannedTar, advance: Advance
) -> Datarange:
    """Commit the TAR at *path*, as it is, as one datarange. Raises Conflict, Invalid, Unavailable."""

    def index() -> bytes:
        scanned.check()
        return encode_index_file(scanned.flat_index)

    body = in_thread(file_chunks(path, size=scanned.size), advance)
    try:
        return await writer.commit(dataset, scanned.keys, scanned.size, body, index)
    except Conflict as exc:
        raise Conflict(f"{path}: {exc}") from exc

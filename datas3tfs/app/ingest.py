"""Number existing files and pack them into dataranges; upload TARs that exist already.

Files are taken in the order given, directories sorted by path, so that the same input gets the same
keys. Each datarange is committed by itself: what an interrupted ingest has reported is there, the
rest is not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from datas3tfs.app.blocking import file_chunks
from datas3tfs.core import tar
from datas3tfs.core.compose import compose
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.layout import Planned, plan_layout
from datas3tfs.core.model import Datarange, Dataset
from datas3tfs.core.names import KEY_LIMIT, check_extension
from datas3tfs.core.scan import scan
from datas3tfs.core.spans import Span
from datas3tfs.engine.threads import in_thread
from datas3tfs.engine.writer import Writer
from datas3tfs.errors import Conflict, Invalid

# One datarange's datapoints at most: an index of a million is about 28 MB mapped.
DATAPOINTS_LIMIT = 1_000_000
# Suffixes that say how a file is packed, not what it is: the one before belongs to the extension too.
_PACKED = frozenset({"gz", "zst", "bz2", "xz", "lz4", "br"})

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A file to ingest, as it was when it was found."""

    path: Path
    size: int
    mtime_ns: int

    @property
    def extension(self) -> str:
        """The extension its datapoint gets: its own suffix, "bin" if it has none that can be used."""
        parts = self.path.name.lstrip(".").split(".")[1:]
        kept = parts[-2:] if len(parts) > 1 and parts[-1].lower() in _PACKED else parts[-1:]
        extension = ".".join(kept)
        try:
            check_extension(extension, self.path.name)
        except Invalid:
            return "bin"
        return extension


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Return all regular files in *paths* and below. Links to files are followed, others are not.

    Raises Invalid for a path that is missing, unreadable or neither file nor directory.
    """
    return [source for path in paths for source in _walk(path, named=True)]


def _walk(path: Path, *, named: bool) -> Iterator[Source]:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            yield Source(path, status.st_size, tar.clamped_time(status.st_mtime_ns))
        elif stat.S_ISDIR(status.st_mode) and (named or not path.is_symlink()):
            for name in sorted(os.listdir(path)):
                yield from _walk(path / name, named=False)
        elif named:
            raise Invalid(f"{path}: neither a file nor a directory")
    except OSError as exc:
        if named or not path.is_symlink():  # a dangling link inside a directory is no file to ingest
            raise Invalid(f"{path}: {exc.strerror}") from exc


def batches(sources: Iterable[Source], first: int, datarange_bytes: int) -> Iterator[list[Planned]]:
    """Number *sources* from *first* on and split them into dataranges of about *datarange_bytes*."""
    batch: list[Planned] = []
    total = 0
    for key, source in enumerate(sources, first):
        planned = Planned(key, source.extension, source.size, source.mtime_ns)
        if batch and (total + planned.footprint > datarange_bytes or len(batch) >= DATAPOINTS_LIMIT):
            yield batch
            batch, total = [], 0
        batch.append(planned)
        total += planned.footprint
    if batch:
        yield batch


async def ingest(
    writer: Writer,
    dataset: Dataset,
    sources: Sequence[Source],
    *,
    first: int,
    datarange_bytes: int,
    advance: Advance,
) -> AsyncGenerator[tuple[Datarange, Sequence[Source]], None]:
    """Commit *sources* under the keys from *first* on; yield each datarange with its files.

    *advance* is told the bytes uploaded. Raises Conflict (keys taken), Invalid (a file has changed),
    Unavailable.
    """
    if first < 0 or first + len(sources) > KEY_LIMIT:
        raise Invalid(f"{len(sources)} keys from {first} on do not fit below 2^63")
    for batch in batches(sources, first, datarange_bytes):
        files = sources[batch[0].key - first : batch[-1].key + 1 - first]
        yield await _commit_batch(writer, dataset, batch, files, advance), files


async def _commit_batch(
    writer: Writer, dataset: Dataset, batch: list[Planned], files: Sequence[Source], advance: Advance
) -> Datarange:
    layout = plan_layout(batch)
    builder = IndexBuilder()
    body = compose(layout, lambda i: file_chunks(files[i].path), builder)

    def index() -> bytes:
        return encode_index_file(builder.finish(first=layout.keys.start, object_size=layout.size))

    return await writer.commit(dataset, layout.keys, layout.size, in_thread(body, advance), index)


def next_key(dataset: Dataset) -> int:
    """Return the first key after all that the dataset has."""
    return 0 if dataset.highest_key is None else dataset.highest_key + 1


@dataclass(frozen=True, slots=True)
class ScannedTar:
    """A TAR that has passed: what it holds, and what the file was like while it was read."""

    keys: Span
    flat_index: bytes
    size: int
    mtime_ns: int


async def scan_tar(path: Path, advance: Advance) -> ScannedTar:
    """Read a TAR through and index it. Raises Invalid, naming the entry that may not be a datapoint."""
    return await trio.to_thread.run_sync(_scan_tar, path, advance, abandon_on_cancel=True)


def _scan_tar(path: Path, advance: Advance) -> ScannedTar:
    def chunks() -> Iterator[bytes]:
        for chunk in file_chunks(path):
            trio.from_thread.run_sync(advance, len(chunk))
            yield chunk

    status = _status(path)
    builder = IndexBuilder()
    first = 0
    try:
        for found in scan(chunks()):
            first = found.name.key if not len(builder) else first
            builder.add(
                offset=found.offset,
                header_blocks=found.header_blocks,
                size=found.size,
                mtime_ns=found.mtime_ns,
                extension=found.name.extension,
                crc=found.crc,
                chunk_crcs=found.chunk_crcs,
            )
    except Invalid as exc:
        raise Invalid(f"{path}: {exc}") from exc
    flat = builder.finish(first=first, object_size=status.st_size)
    return ScannedTar(Span(first, first + len(builder)), flat, status.st_size, status.st_mtime_ns)


async def upload_tar(
    writer: Writer, dataset: Dataset, path: Path, scanned: ScannedTar, advance: Advance
) -> Datarange:
    """Commit the TAR at *path*, as it is, as one datarange. Raises Conflict, Invalid, Unavailable."""

    def index() -> bytes:
        status = _status(path)
        if (status.st_size, status.st_mtime_ns) != (scanned.size, scanned.mtime_ns):
            raise Invalid(f"{path}: has changed while it was uploaded")
        return encode_index_file(scanned.flat_index)

    body = in_thread(file_chunks(path, size=scanned.size), advance)
    try:
        return await writer.commit(dataset, scanned.keys, scanned.size, body, index)
    except Conflict as exc:
        raise Conflict(f"{path}: {exc}") from exc


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc
    if not stat.S_ISREG(status.st_mode):
        raise Invalid(f"{path}: not a regular file")
    return status

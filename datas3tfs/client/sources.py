"""What is to be ingested: files that are found, things that are given; their numbers, and who goes with whom.

Files are taken in the order given, directories sorted by path, so that the same input gets the same keys.
Blocking file system calls, each a short one.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datas3tfs.core import tar
from datas3tfs.core.layout import Planned
from datas3tfs.core.names import KEY_LIMIT, check_extension, printable
from datas3tfs.errors import Invalid

READ_SIZE = 4 * 1024 * 1024
# One datarange's datapoints at most: an index of a million is about 28 MB mapped.
DATAPOINTS_LIMIT = 1_000_000
# Suffixes that say how a file is packed, not what it is: the one before belongs to the extension too.
_PACKED = frozenset({"gz", "zst", "bz2", "xz", "lz4", "br"})


class Ingestible(Protocol):
    """Something that can become a datapoint."""

    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def extension(self) -> str: ...
    @property
    def label(self) -> str: ...
    def chunks(self) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """A file to ingest, as it was when it was found."""

    path: Path
    size: int
    mtime_ns: int

    @property
    def extension(self) -> str:
        """The extension its datapoint gets: its own suffix, "bin" if it has none that can be used."""
        return extension_of(self.path.name)

    @property
    def label(self) -> str:
        """What to call it before people."""
        return str(self.path)

    def chunks(self) -> Iterator[bytes]:
        """Yield its content. Raises Invalid, naming it, if it cannot be read."""
        return file_chunks(self.path)


@dataclass(frozen=True, slots=True)
class Item:
    """Something to ingest under a name of its own: bytes, or a file. Without *key* it gets the next one."""

    name: str
    content: bytes | Path
    key: int | None = None
    mtime_ns: int | None = None  # None: that of the file, or now


@dataclass(frozen=True, slots=True)
class _Given:
    """An Item, looked at."""

    name: str
    content: bytes | Path
    size: int
    mtime_ns: int

    @property
    def extension(self) -> str:
        return extension_of(self.name)

    @property
    def label(self) -> str:
        return self.name

    def chunks(self) -> Iterator[bytes]:
        return iter((self.content,)) if isinstance(self.content, bytes) else file_chunks(self.content)


Ingested = str | Path | Source | Item | tuple[str, bytes | Path] | tuple[int | None, str, bytes | Path]


def extension_of(name: str) -> str:
    """Return the extension that a datapoint made of a file called *name* gets."""
    parts = name.lstrip(".").split(".")[1:]
    kept = parts[-2:] if len(parts) > 1 and parts[-1].lower() in _PACKED else parts[-1:]
    extension = ".".join(kept)
    try:
        check_extension(extension, name)
    except Invalid:
        return "bin"
    return extension


def file_chunks(path: Path, *, size: int | None = None) -> Iterator[bytes]:
    """Yield a file's bytes. Raises Invalid, naming it, if it cannot be read or is not *size* long."""
    left = size
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(READ_SIZE):
                left = None if left is None else left - len(chunk)
                yield chunk
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc
    if left:
        raise Invalid(f"{path}: has changed size while it was read")


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


def numbered(things: Iterable[Ingested], first: int) -> Iterator[tuple[int, Ingestible]]:
    """Yield (key, what) of *things*: keys go on from the one before, the first being *first*.

    Raises Invalid for a key that is not beyond the one before, and for paths as `find_sources`.
    """
    following = first
    for thing in things:
        for key, found in _looked_at(thing):
            if key is not None and key < following:
                raise Invalid(f"{printable(found.label)}: key {key} is not in order, expected {following}")
            following = following if key is None else key
            if not 0 <= following < KEY_LIMIT:
                raise Invalid(f"{printable(found.label)}: key {following} is not from 0 to below 2^63")
            yield following, found
            following += 1


def _looked_at(thing: Ingested) -> Iterator[tuple[int | None, Ingestible]]:
    if isinstance(thing, Source):
        yield None, thing
    elif isinstance(thing, str | Path):
        yield from ((None, source) for source in _walk(Path(thing), named=True))
    elif isinstance(thing, Item):
        yield thing.key, _given(thing)
    elif len(thing) == 2:
        yield None, _given(Item(*thing))
    else:
        key, name, content = thing
        yield key, _given(Item(name, content, key))


def _given(item: Item) -> _Given:
    if isinstance(item.content, bytes):
        size, changed = len(item.content), time.time_ns()
    else:
        (source,) = find_sources([item.content])
        size, changed = source.size, source.mtime_ns
    mtime_ns = changed if item.mtime_ns is None else tar.clamped_time(item.mtime_ns)
    return _Given(item.name, item.content, size, mtime_ns)


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes one datarange."""

    plan: list[Planned]
    sources: list[Ingestible]


def batches(things: Iterable[tuple[int, Ingestible]], datarange_bytes: int) -> Iterator[Batch]:
    """Put numbered things together, about *datarange_bytes* each; a gap in the keys begins another batch."""
    batch, total = Batch([], []), 0
    for key, source in things:
        planned = Planned(key, source.extension, source.size, source.mtime_ns)
        if batch.plan and (
            total + planned.footprint > datarange_bytes
            or len(batch.plan) >= DATAPOINTS_LIMIT
            or key != batch.plan[-1].key + 1
        ):
            yield batch
            batch, total = Batch([], []), 0
        batch.plan.append(planned)
        batch.sources.append(source)
        total += planned.footprint
    if batch.plan:
        yield batch

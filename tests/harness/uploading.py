"""A client of the HTTP API without HTTP: it puts what it was granted; and archives with their indices."""

from __future__ import annotations

import inspect
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from datas3tfs.core import tar
from datas3tfs.core.index import HEADER_SIZE, Index
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.scan import scan
from datas3tfs.core.uploadcheck import InspectionLimits
from datas3tfs.engine.granting import Grant
from datas3tfs.engine.indices import Indices, open_indices
from datas3tfs.engine.receiving import Receiver
from tests.harness.archives import go_record, key_name
from tests.harness.memory_objects import MemoryStores
from tests.harness.world import World

MIB = 1 << 20
MOMENT = 1_700_000_000


@asynccontextmanager
async def open_receiver(
    world: World, *, scanned: int = 64 * MIB, headers: int = 1 << 30
) -> AsyncIterator[Receiver]:
    """Open a receiver on *world*; smaller limits let small objects be treated as large ones."""
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        yield receiver_on(world, indices, InspectionLimits(scanned, headers))


def receiver_on(world: World, indices: Indices, limits: InspectionLimits | None = None) -> Receiver:
    """Return a receiver on *world*."""
    return Receiver(world.catalog, world.catalog, world.stores, indices, limits)


@dataclass(frozen=True)
class Archive:
    """A TAR of datapoints from *first* on, and what its uploader knows of it."""

    first: int
    contents: Sequence[bytes]
    body: bytes

    @property
    def go_index(self) -> bytes:
        """What a Go client sends, if the archive has plain headers only."""
        with tarfile.open(fileobj=io.BytesIO(self.body)) as opened:
            return b"".join(go_record(info.offset, info.size) for info in opened if info.isreg())

    def flat(self, *, checksums: bool = True) -> bytes:
        """The flat index with the true counts of header blocks."""
        builder = IndexBuilder()
        for found in scan([self.body]):
            builder.add(
                offset=found.offset,
                header_blocks=found.header_blocks,
                size=found.size,
                mtime_ns=found.mtime_ns,
                extension=found.name.extension,
                crc=found.crc if checksums else None,
                chunk_crcs=found.chunk_crcs if checksums else (),
            )
        return builder.finish(first=self.first, object_size=len(self.body))

    def full_index(self, *, checksums: bool = True) -> bytes:
        """The index object with everything."""
        return encode_index_file(self.flat(checksums=checksums))

    @property
    def records(self) -> bytes:
        """The 16-byte records alone, true."""
        return self.flat()[HEADER_SIZE : HEADER_SIZE + 16 * len(self.contents)]


def archive_of(
    contents: Sequence[bytes],
    first: int = 0,
    *,
    form: int = tarfile.USTAR_FORMAT,
    extension: str = "bin",
    mtime: float = MOMENT,
    end: int = 1024,
) -> Archive:
    """Write an archive with *end* bytes of zeros behind it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as out:
        for key, content in enumerate(contents, first):
            info = tarfile.TarInfo(key_name(key, extension))
            info.size, info.mtime = len(content), mtime
            out.addfile(info, io.BytesIO(content))
        stop = out.offset
    return Archive(first, contents, stream.getvalue()[:stop] + bytes(end))


def put(world: World, grant: Grant, body: bytes, index: bytes) -> list[str]:
    """Put both objects as a client does; return the tags of the parts."""
    tags = put_data(world, grant, body)
    world.store.client_put(grant.index_url, index)
    return tags


def put_data(world: World, grant: Grant, body: bytes) -> list[str]:
    """Put the TAR."""
    if grant.put_url is not None:
        world.store.client_put(grant.put_url, body)
        return []
    step = grant.part_size
    return [
        world.store.client_put(url, body[i * step : (i + 1) * step]) for i, url in enumerate(grant.part_urls)
    ]


def read_back(index: Index, body: bytes) -> list[tuple[str, bytes]]:
    """Return the names and contents that *index* finds in *body*, headers looked at."""
    found = []
    for slot in range(index.count):
        entry = index.entry(slot)
        member = tar.parse_group(body[entry.header.start : entry.header.stop])
        assert (member.name, member.size) == (entry.name, entry.size)
        found.append((entry.name, body[entry.content.start : entry.content.stop]))
    return found


class Crash(BaseException):
    """The process is gone at this very step: nothing of it runs any more."""


@contextmanager
def dying() -> Iterator[None]:
    """Expect the block to end by a Crash, or by one in each of its tasks."""
    outlived = True
    try:
        yield
    except* Crash:
        outlived = False
    assert not outlived


class Plan:
    """Counts the calls that pass several `Stepped` and lets the *nth* (from 1) raise *error*: before it takes
    effect, or after, as when its answer is lost. If that is a Crash, all that follow raise it, too."""

    def __init__(self, nth: int = 0, error: BaseException | None = None, *, after: bool = False) -> None:
        self.seen: list[str] = []
        self._nth, self._error, self._after = nth, error, after

    async def run(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Pass one call."""
        self.seen.append(name)
        number = len(self.seen)
        is_dead = isinstance(self._error, Crash) and number > self._nth > 0
        if self._error is not None and (is_dead or (number == self._nth and not self._after)):
            raise self._error
        result = await call()
        if self._error is not None and number == self._nth:
            raise self._error
        return result


class Stepped:
    """Any port's twin, its coroutines passing a plan."""

    def __init__(self, inner: Any, plan: Plan) -> None:
        self._inner = inner
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._plan.run(name, lambda: method(*args, **kwargs))

        return call


@asynccontextmanager
async def open_stepped_receiver(
    world: World, plan: Plan, limits: InspectionLimits | None = None
) -> AsyncIterator[Receiver]:
    """Open a receiver on *world*, every call of whose to catalog and bucket passes *plan*."""
    catalog: Any = Stepped(world.catalog, plan)
    bucket: Any = Stepped(world.store, plan)
    stores = MemoryStores({world.bucket_id: bucket})
    async with open_indices(world.cache, stores, world.counters) as indices:
        yield Receiver(catalog, catalog, stores, indices, limits)

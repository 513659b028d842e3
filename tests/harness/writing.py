"""A host that writes, without FUSE: memory twins of Postgres and S3, the real journal directory, wired as
app/writing.py does it. And a `Gate` between them that can kill the host at any step.

A killed host does nothing any more: every call of it, clean-up included, ends in `Crash` before it has any
effect; only its descriptors are closed, and with them the lock, as the kernel would. What it has left (the
directory, the catalog, the objects) can be opened by another.
"""

from __future__ import annotations

import io
import math
import tarfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, cast

import trio
import trio.testing
from trio.testing import MockClock

from datas3tfs.core.counters import Counters
from datas3tfs.core.journalrecords import Accepted, EntryId, Place, Record
from datas3tfs.core.model import BucketId, Dataset, HolderId
from datas3tfs.core.names import datapoint_name, parse_datapoint_name
from datas3tfs.engine.attempt import Attempts, open_attempts
from datas3tfs.engine.committer import BatchLimits, Committer, open_committer
from datas3tfs.engine.entries import Entries, Entry, EntryState
from datas3tfs.engine.journal import Journal
from datas3tfs.engine.leases import KeyLeases
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.quota import Quota
from datas3tfs.engine.recovery import reconcile, replay
from datas3tfs.engine.snapshot import Removed, Snapshots, open_snapshots
from datas3tfs.engine.sweeper import sweep
from datas3tfs.engine.writer import Writer
from datas3tfs.journal.store import open_journal
from datas3tfs.ports import JournalContent, JournalStore, ObjectStore
from tests.harness.memory_catalog import MemoryCatalog
from tests.harness.world import World

BATCHES = BatchLimits(64 << 20, 5.0)
EAGER = BatchLimits(64 << 20, 0.0)
# Calls that change nothing are no steps: to be killed before or after one makes no difference.
_LOOKS = frozenset(
    {"datasets", "dataset", "dataranges", "bucket", "buckets", "installation", "published", "held", "holders"}
    | {"doomed", "size", "get", "get_range"}
)


class Crash(BaseException):
    """The host is gone at this very step."""


class Gate:
    """Every step of a host passes it: calls of Postgres, S3 and the journal's directory that change
    something. *steps* lists those done; *calls* counts all calls by name."""

    def __init__(self) -> None:
        self.is_dead = False
        self.steps: list[str] = []
        self.calls: Counter[str] = Counter()
        self._deadly: tuple[int, bool] | None = None
        self._deadly_call: tuple[str, int, bool] | None = None
        self._errors: dict[tuple[str, int], tuple[BaseException, bool]] = {}
        self.away: dict[str, BaseException] = {}  # by name: what every call of it raises
        self.at_read: Callable[[], None] | None = None  # called, in any thread, when a content file is read
        # Awaited before every call of Postgres or S3: to hold it up, or to do something at that moment.
        self.before: Callable[[str], Awaitable[None]] | None = None

    def crash_at(self, step: int, *, after: bool) -> None:
        """Die before or after the step of that number (from 0)."""
        self._deadly = step, after

    def crash_in(self, name: str, nth: int = 1, *, after: bool = False) -> None:
        """Die before or after the *nth* call (from 1) of *name*."""
        self._deadly_call = name, nth, after

    def fail(self, name: str, nth: int, error: BaseException, *, after: bool = False) -> None:
        """Let the *nth* call from now of *name* raise *error*; *after* it has taken effect, if so."""
        self._errors[name, self.calls[name] + nth] = error, after

    def die(self) -> None:
        """Be dead from now on."""
        self.is_dead = True

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Pass the gate before and after what is done inside. Raises Crash and planned errors."""
        self.check()
        self.calls[name] += 1
        number = len(self.steps) if name not in _LOOKS else -1
        if number >= 0:
            self.steps.append(name)
        call = name, self.calls[name]
        self._maybe_die(number, call, after=False)
        if name in self.away:
            raise _fresh(self.away[name])
        error, after = self._errors.pop(call, (None, False))
        if error is not None and not after:
            raise error
        yield
        self.check()
        self._maybe_die(number, call, after=True)
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise Crash if dead."""
        if self.is_dead:
            raise Crash

    def _maybe_die(self, number: int, call: tuple[str, int], *, after: bool) -> None:
        if (number, after) == self._deadly or (*call, after) == self._deadly_call:
            self.is_dead = True
            raise Crash


def _fresh(error: BaseException) -> BaseException:
    return type(error)(*error.args)


class Gated:
    """Passes every coroutine method of *inner* through a gate; everything else is as it is."""

    def __init__(self, inner: object, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not iscoroutinefunction(method):
            return method
        gate = self._gate

        async def call(*args: object, **options: object) -> object:
            gate.check()
            if gate.before is not None:
                await gate.before(name)
            with gate.step(name):
                return await method(*args, **options)

        return call


class GatedStores:
    """ports.Stores whose stores are gated."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self._gate = gate

    async def store(self, bucket_id: BucketId) -> ObjectStore:
        """See ports.Stores."""
        self._gate.check()
        if "bucket_of" in self._gate.away:
            raise _fresh(self._gate.away["bucket_of"])
        return cast(ObjectStore, Gated(await self._world.stores.store(bucket_id), self._gate))


class GatedContent:
    """ports.JournalContent behind a gate."""

    def __init__(self, inner: JournalContent, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See ports.JournalContent."""
        with self._gate.step("content.write"):
            self._inner.write(offset, data)

    def read(self, offset: int, size: int) -> bytes:
        """See ports.JournalContent."""
        self._gate.check()
        if self._gate.at_read is not None:
            self._gate.at_read()
        return self._inner.read(offset, size)

    def truncate(self, size: int) -> None:
        """See ports.JournalContent."""
        with self._gate.step("content.truncate"):
            self._inner.truncate(size)

    def size(self) -> int:
        """See ports.JournalContent."""
        self._gate.check()
        return self._inner.size()

    def sync(self) -> None:
        """See ports.JournalContent."""
        self._gate.check()
        self._gate.calls["content.sync"] += 1
        self._inner.sync()

    def remove(self) -> None:
        """See ports.JournalContent."""
        with self._gate.step("content.remove"):
            self._inner.remove()

    def close(self) -> None:
        """See ports.JournalContent; the dead may."""
        self._inner.close()


class GatedJournal:
    """ports.JournalStore behind a gate."""

    def __init__(self, inner: JournalStore, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self._contents: list[JournalContent] = []
        self.appended: list[Record] = []

    @property
    def holder(self) -> HolderId:
        """See ports.JournalStore."""
        return self._inner.holder

    @property
    def place(self) -> str:
        """See ports.JournalStore."""
        return self._inner.place

    @property
    def log_bytes(self) -> int:
        """See ports.JournalStore."""
        return self._inner.log_bytes

    def records(self) -> Iterator[tuple[Record, Place]]:
        """See ports.JournalStore."""
        self._gate.check()
        return self._inner.records()

    def has_gaps(self) -> bool:
        """See ports.JournalStore."""
        return self._inner.has_gaps()

    def may_be_outdated(self, record: Accepted, place: Place) -> bool:
        """See ports.JournalStore."""
        return self._inner.may_be_outdated(record, place)

    def append(self, record: Record) -> Place:
        """See ports.JournalStore."""
        with self._gate.step("append." + type(record).__name__):
            place = self._inner.append(record)
            self.appended.append(record)
        return place

    def read(self, place: Place, offset: int, size: int) -> bytes:
        """See ports.JournalStore."""
        with self._gate.step("read") if "read" in self._gate.away else _nothing():
            self._gate.check()
            return self._inner.read(place, offset, size)

    def drop(self, place: Place) -> None:
        """See ports.JournalStore."""
        with self._gate.step("drop"):
            self._inner.drop(place)

    def oldest(self) -> int | None:
        """See ports.JournalStore."""
        self._gate.check()
        return self._inner.oldest()

    def create_content(self, entry: EntryId) -> JournalContent:
        """See ports.JournalStore."""
        with self._gate.step("create_content"):
            return self._kept(self._inner.create_content(entry))

    def open_content(self, entry: EntryId) -> JournalContent:
        """See ports.JournalStore."""
        self._gate.check()
        return self._kept(self._inner.open_content(entry))

    def _kept(self, content: JournalContent) -> JournalContent:
        self._contents.append(content)
        return GatedContent(content, self._gate)

    def contents(self) -> list[EntryId]:
        """See ports.JournalStore."""
        self._gate.check()
        return self._inner.contents()

    def free_bytes(self) -> int:
        """See ports.JournalStore."""
        self._gate.check()
        return self._inner.free_bytes()

    def sync(self) -> None:
        """See ports.JournalStore."""
        self._gate.check()
        self._gate.calls["journal.sync"] += 1
        self._inner.sync()

    def close(self) -> None:
        """Close all descriptors, as the kernel does when a process ends."""
        for content in self._contents:
            content.close()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@dataclass
class Host:
    """A mount that writes, without FUSE. The methods do what the kernel's requests would."""

    world: World
    gate: Gate
    catalog: MemoryCatalog  # gated
    store: GatedJournal
    snapshots: Snapshots
    entries: Entries
    leases: KeyLeases
    journal: Journal
    attempts: Attempts
    committer: Committer
    counters: Counters

    def dataset(self, name: str = "photos") -> Dataset:
        """Return a dataset."""
        return self.snapshots.named(name)

    def entry(self, name: str | int, dataset: str = "photos") -> Entry:
        """Return the uncommitted file called *name* (or the .bin of that key)."""
        found = self.entries.named(self.dataset(dataset).id, called(name))
        assert found is not None, name
        return found

    async def create(self, name: str | int, content: bytes = b"", *, dataset: str = "photos") -> Entry:
        """Create a file and leave it open for writing."""
        entry = await self.journal.create(self.dataset(dataset), called(name))
        if content:
            await self.journal.write(entry, 0, content)
        return entry

    async def close(self, entry: Entry) -> None:
        """What close() of the only writer does: FLUSH, RELEASE."""
        try:
            await self.journal.accept(entry)
        finally:
            await self.journal.closed(entry, writable=True)

    async def put(self, name: str | int, content: bytes, *, dataset: str = "photos") -> Entry:
        """Create a file, write it, close it."""
        entry = await self.create(name, content, dataset=dataset)
        await self.close(entry)
        return entry

    async def reopen(self, entry: Entry) -> None:
        """Open for writing."""
        await self.journal.settled(entry)
        self.journal.opened(entry, writable=True)

    async def fsync(self, entry: Entry) -> None:
        """What fsync() does."""
        await self.journal.accept(entry)
        await self.committer.commit([entry])

    def content(self, name: str | int) -> bytes:
        """Return the whole content of an uncommitted file."""
        entry = self.entry(name)
        return self.journal.read(entry, 0, 1 << 40)

    def contents(self, dataset: str = "photos") -> dict[str, bytes]:
        """Return all files that are not committed, by name."""
        return {
            entry.name: self.journal.read(entry, 0, 1 << 40)
            for entry in self.entries
            if entry.state is not EntryState.COMMITTED and entry.dataset == dataset
        }

    def held(self) -> set[int]:
        """Return the keys this journal holds, in Postgres' opinion."""
        leases = [item.lease for item in self.world.catalog.book.held if item.holder == self.store.holder]
        return {key for lease in leases for key in range(lease.keys.start, lease.keys.stop)}

    async def emptied(self) -> None:
        """Return when nothing uncommitted or just committed is left."""
        await until(lambda: not len(self.entries))


def called(name: str | int) -> str:
    """Return the file name of a key; a name is one already."""
    return datapoint_name(name, "bin") if isinstance(name, int) else name


async def until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Return when *condition* holds."""
    with trio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110 -- what is waited for is a plain value
            await trio.sleep(0.002)


async def let_time_pass(clock: MockClock) -> None:
    """Go on to the next deadline whenever everybody waits and no thread is at work, for ever.

    MockClock's own autojump knows nothing of threads."""
    threads, own = trio.to_thread.current_default_thread_limiter(), trio.CapacityLimiter(1)
    while True:
        await trio.testing.wait_all_tasks_blocked()
        if threads.borrowed_tokens:
            await trio.to_thread.run_sync(time.sleep, 0.0005, limiter=own)
            continue
        pause = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if 0 < pause < math.inf:
            clock.jump(pause)


@asynccontextmanager
async def open_host(
    world: World,
    directory: Path,
    *,
    gate: Gate | None = None,
    limits: BatchLimits = EAGER,
    size: int = 1 << 30,
    patience: float = 5.0,
    segment_bytes: int = 1 << 20,
    background: bool = True,
    force: bool = False,
) -> AsyncIterator[Host]:
    """Open the journal in *directory* and all that writes, as app/writing.py does. *background*: look
    after leases, too. If the clock is a MockClock, time passes while it is open."""
    gate = gate or Gate()
    await world.dataset()
    catalog = cast(MemoryCatalog, Gated(world.catalog, gate))
    stores = GatedStores(world, gate)
    counters = Counters()
    installation = await world.catalog.installation()
    with open_journal(directory, installation, segment_bytes=segment_bytes) as disk:
        store = GatedJournal(disk, gate)
        try:
            async with open_snapshots(catalog, patience) as snapshots, _following(catalog, snapshots):
                entries = Entries()
                leases = KeyLeases(catalog, store.holder, store.place, entries, snapshots)
                quota = Quota(store, size, patience, counters)
                journal = Journal(store, entries, leases, snapshots, quota, patience, counters)
                replayed = await trio.to_thread.run_sync(replay, store)
                await reconcile(replayed, store, journal, catalog, catalog, force=force)
                async with (
                    open_attempts(journal, Writer(catalog, stores), snapshots, counters) as attempts,
                    open_committer(journal, attempts, limits) as committer,
                    background_nursery() as nursery,
                ):
                    if background:
                        nursery.start_soon(leases.keep)
                    clock = trio.lowlevel.current_clock()
                    if isinstance(clock, MockClock):
                        nursery.start_soon(let_time_pass, clock)
                    yield Host(
                        world,
                        gate,
                        catalog,
                        store,
                        snapshots,
                        entries,
                        leases,
                        journal,
                        attempts,
                        committer,
                        counters,
                    )
        finally:
            store.close()


@asynccontextmanager
async def _following(catalog: MemoryCatalog, snapshots: Snapshots) -> AsyncIterator[None]:
    sender, receiver = trio.open_memory_channel[Removed](16)

    async def forget() -> None:
        async for _ in receiver:
            pass

    async with catalog.changes() as feed, background_nursery() as nursery:
        nursery.start_soon(snapshots.follow, feed, sender)
        nursery.start_soon(forget)
        yield


@contextmanager
def killed(gate: Gate) -> Iterator[None]:
    """Around a host that may be killed: swallow what a crash leaves; any other error comes out."""
    try:
        yield
    except BaseException as exc:
        if not gate.is_dead or not _is_crash(exc):
            raise


def _is_crash(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_crash(one) for one in exc.exceptions)
    return isinstance(exc, Crash | trio.Cancelled)


async def swept(world: World) -> None:
    """Sweep."""
    await sweep(world.catalog, world.catalog, world.catalog, world.stores)


async def committed(world: World, dataset: str = "photos") -> dict[int, bytes]:
    """Return what everybody can read, by key, out of the TARs in S3; check that each is what it must be."""
    found: dict[int, bytes] = {}
    for datarange in await world.catalog.dataranges((await world.dataset(dataset)).id):
        body = world.store.objects[datarange.data_key]
        assert len(body) == datarange.size
        assert world.store.objects[datarange.index_key]
        keys: list[int] = []
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                key = parse_datapoint_name(member.name).key
                keys.append(key)
                assert key not in found, "committed twice"
                found[key] = file.read()
        assert keys == list(range(datarange.keys.start, datarange.keys.stop))
    return found


async def assert_tidy(world: World) -> None:
    """Check that after a sweep nothing lies about: no intents, no objects that the catalog does not name."""
    await swept(world)
    assert not world.catalog.unpublished
    assert not world.catalog.graves
    named = {
        key
        for datarange in world.catalog.committed.values()
        for key in (datarange.data_key, datarange.index_key)
    }
    assert set(world.store.objects) == named


def accepted_names(store: GatedJournal) -> list[str]:
    """Return the names in the Accepted records that were appended, in order."""
    return [record.name for record in store.appended if isinstance(record, Accepted)]

"""Uncommitted files: create, change, rename, remove; accept, which makes them safe, is in accepting.py.

Committing accepted files is committer.py's business; an entry that is being committed stands still, and
whoever wants to change it waits for the outcome.

Between two awaits a task owns the tables; after one, it looks again. The kernel lets one create, rename or
unlink at a time into a directory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.journalcodec import NOTE_LIMIT
from datas3tfs.core.journalrecords import EntryId, Gone, Renamed
from datas3tfs.core.model import Dataset, DatasetId
from datas3tfs.core.names import check_file_name, is_temporary, parse_datapoint_name
from datas3tfs.core.tar import clamped_time
from datas3tfs.engine.accepting import Accepting
from datas3tfs.engine.backlog import Backlog
from datas3tfs.engine.draft import Draft
from datas3tfs.engine.entries import Entries, Entry, EntryState
from datas3tfs.engine.leases import KeyLeases
from datas3tfs.engine.quota import Quota, growth_of
from datas3tfs.engine.snapshot import Snapshots
from datas3tfs.errors import Conflict, Datas3tError, Forbidden, NotFound, Unavailable
from datas3tfs.ports import JournalStore

log = logging.getLogger(__name__)

_SECOND = 1_000_000_000
_STANDING_STILL = (EntryState.COMMITTING, EntryState.COMMITTED)
_ACCEPT_SECONDS = 5.0  # between attempts to make safe what was closed while Postgres, or the disk, said no


class Journal:
    """The uncommitted files of one mount."""

    def __init__(
        self,
        store: JournalStore,
        entries: Entries,
        leases: KeyLeases,
        snapshots: Snapshots,
        quota: Quota,
        patience: float,
        counters: Counters,
    ) -> None:
        self.entries = entries
        self.leases = leases
        self.store = store
        self._snapshots = snapshots
        self.quota = quota
        self._patience = patience  # seconds that somebody waits for an attempt to end
        self._counters = counters
        self._next_id = 1
        self._left: set[Entry] = set()  # closed, and not safe
        self.backlog = Backlog(entries)
        self._accepting = Accepting(store, entries, leases, self.backlog, counters)

    async def create(self, dataset: Dataset, name: str) -> Entry:
        """Make an empty file, open for one writer. Raises Invalid (name), Conflict (key taken), Full,
        Unavailable."""
        check_file_name(name)
        await self._make_room(2 * NOTE_LIMIT)
        if self.entries.named(dataset.id, name) is not None:
            raise Conflict(f"{name}: it exists already")
        entry = self._new(dataset, name)
        self.quota.count(entry)
        try:
            await self._add(entry, dataset)
        except BaseException:
            entry.linked = False
            self.quota.count(entry)
            raise
        self.opened(entry, writable=True)
        self._counters.add("journal.create")
        return entry

    async def _add(self, entry: Entry, dataset: Dataset) -> None:
        key = entry.key
        if key is None:
            self.entries.add(entry)
            return
        await self._check_free(dataset, key, entry.name)
        if self.leases.is_at_hand(dataset.id, key):
            self._add_datapoint(entry, key)
        else:
            async with self.leases.holding(dataset.id, key):
                self._add_datapoint(entry, key)

    def _add_datapoint(self, entry: Entry, key: int) -> None:
        if self.entries.at_key(entry.dataset_id, key) is not None:
            raise Conflict(f"{entry.name}: datapoint {key} is being created already")
        self.entries.add(entry)

    def opened(self, entry: Entry, *, writable: bool) -> None:
        """Take note of a new handle."""
        entry.handles += 1
        entry.writers += writable

    async def closed(self, entry: Entry, *, writable: bool) -> None:
        """Take note that a handle is gone; what was written through it after the last flush is accepted."""
        entry.handles -= 1
        entry.writers -= writable
        try:
            if writable and not entry.writers and entry.linked:
                await self._close_quietly(entry)
        finally:
            self._let_go(entry)

    async def _close_quietly(self, entry: Entry) -> None:
        try:
            await self.accept(entry)
        except Datas3tError as exc:  # nobody is there to be told: close() has returned, or never came
            log.error("%s/%s: closed, but not safe: %s", entry.dataset, entry.name, exc)
            self._left.add(entry)
        entry.quiet_since = trio.current_time()
        self.backlog.note(entry)

    async def accept_left(self, dataset_id: DatasetId | None = None) -> Datas3tError | None:
        """Try again to make safe what could not be when it was closed, of one dataset or of all; return the
        first error."""
        problem: Datas3tError | None = None
        for entry in list(self._left):
            if dataset_id in (None, entry.dataset_id):
                try:
                    await self.accept_unless_open(entry)
                    self._left.discard(entry)
                except Datas3tError as exc:
                    problem = problem or exc
        return problem

    async def keep_accepting(self) -> None:
        """Try that again for ever, in the background."""
        while True:
            await trio.sleep(_ACCEPT_SECONDS)
            await self.accept_left()

    def read(self, entry: Entry, offset: int, size: int) -> bytes:
        """Read from a file. Raises Unavailable."""
        return entry.draft.read(offset, size)

    async def write(self, entry: Entry, offset: int, data: bytes) -> None:
        """Write into a file. Raises Forbidden (committed), Full, Unavailable."""
        stop = offset + len(data)
        growth = growth_of(entry, max(stop, entry.size))
        if entry.state is not EntryState.JOURNALED or not self.quota.has_room(growth):
            await self._ready(entry, stop)
        while entry.synced and self._accepting.is_promised(entry, offset):
            await self._give_up_synced(entry)
            await self._ready(entry, stop)
        try:
            self._accepting.before_change(entry)
            entry.draft.write(offset, data)
        finally:
            self.quota.count(entry)
        entry.mtime_ns = time.time_ns()

    async def truncate(self, entry: Entry, size: int) -> None:
        """Cut or extend a file. Raises Forbidden (committed), Full, Unavailable."""
        await self._ready(entry, size, cut=True)
        while entry.synced and self._accepting.is_promised(entry, size):
            await self._give_up_synced(entry)
            await self._ready(entry, size, cut=True)
        try:
            self._accepting.before_change(entry)
            entry.draft.truncate(size)
        finally:
            self.quota.count(entry)
        entry.mtime_ns = time.time_ns()

    async def touch(self, entry: Entry, mtime_ns: int) -> None:
        """Set a file's modification time. Raises Forbidden (committed), Full, Unavailable."""
        await self.settled(entry)
        mtime_ns = clamped_time(mtime_ns)
        if entry.mtime_ns // _SECOND != mtime_ns // _SECOND:
            await self._ready(entry, 0)
            entry.mtime_ns = mtime_ns
            entry.changed = True
            self.quota.count(entry)

    async def _ready(self, entry: Entry, stop: int, *, cut: bool = False) -> None:
        """Wait until a file may be changed, and has room for being so up to *stop*; *cut*: nothing is left
        behind that. Raises Forbidden (committed), Full, Unavailable."""
        has_waited = False
        while True:
            if entry.state in _STANDING_STILL:
                await self.settled(entry)
            growth = growth_of(entry, stop if cut else max(stop, entry.size))
            if growth <= 0 or self.quota.has_room(growth) or (has_waited and self.quota.fits(growth)):
                return
            await self._make_room(growth)
            has_waited = True

    async def _give_up_synced(self, entry: Entry) -> None:
        """Make it survive a loss of power that a file is being changed in place: with half of the change, and
        its old checksum, it would be taken for damaged. Raises Full, Unavailable."""
        self._accepting.before_change(entry)
        entry.synced = False
        try:
            await trio.to_thread.run_sync(self.store.sync)
        except BaseException:
            entry.synced = True
            raise

    async def accept_unless_open(self, entry: Entry) -> None:
        """Make a change safe that no close() will follow. Raises as `accept` does."""
        if not entry.writers:
            await self.accept(entry)

    async def accept(self, entry: Entry) -> None:
        """Make what was written safe. Raises Unavailable (also if the key was lost), Full, Corrupt."""
        try:
            await self._accepting.accept(entry)
        finally:
            self.quota.count(entry)

    async def sync(self, entry: Entry) -> None:
        """Make a file survive a loss of power, here. Raises as `accept` does."""
        await self.accept(entry)
        if entry.state is not EntryState.COMMITTED:
            entry.synced = True
            await trio.to_thread.run_sync(entry.draft.sync)
            await trio.to_thread.run_sync(self.store.sync)

    async def sync_all(self) -> None:
        """Make everything accepted survive a loss of power, here. Raises Unavailable."""
        for entry in self.entries:
            if entry.draft.is_own_file and entry.linked:
                entry.synced = True
                await trio.to_thread.run_sync(entry.draft.sync)
        await trio.to_thread.run_sync(self.store.sync)

    async def unlink(self, entry: Entry) -> None:
        """Remove a file's name; it lives on for those who have it open. Raises Forbidden, Full."""
        await self.settled(entry)
        if not entry.linked:
            raise NotFound(f"{entry.name}: it was removed meanwhile")
        if entry.safe is not None:
            self.store.append(Gone((entry.id,)))
        self._unlink(entry)

    async def rename(self, entry: Entry, dataset: Dataset, name: str) -> None:
        """Give a file another name, in place of the uncommitted file that has it.

        Raises Invalid (name), Forbidden (one of the two is committed), Conflict (key taken), Full,
        Unavailable.
        """
        check_file_name(name)
        if (entry.dataset_id, entry.name) == (dataset.id, name):
            return
        growth = (1 + is_temporary(name) - (entry.key is None)) * NOTE_LIMIT
        await self._make_room(growth)
        self.quota.reserve(growth)
        replaced = self.entries.named(dataset.id, name)
        busy: list[Entry] = []
        try:
            for one in (entry, replaced):
                if one is not None:
                    await self.settled(one)
                    one.busy += 1
                    busy.append(one)
            if replaced is not None and replaced.safe is not None and entry.safe is None:
                await self.accept(entry)  # else nothing would be left by a crash
            await self._rename_datapoint(entry, replaced, dataset, name)
        finally:
            self.quota.reserve(-growth)
            for one in busy:
                one.busy -= 1
                one.wake()
            self.backlog.note(entry)

    async def _rename_datapoint(
        self, entry: Entry, replaced: Entry | None, dataset: Dataset, name: str
    ) -> None:
        key = None if is_temporary(name) else parse_datapoint_name(name).key
        if key is None:
            self._rename(entry, replaced, dataset, name)
            return
        if self.entries.at_key(dataset.id, key) is None:
            await self._check_free(dataset, key, name)
        async with self.leases.holding(dataset.id, key):
            if self.entries.at_key(dataset.id, key) not in (None, entry, replaced):
                raise Conflict(f"{name}: datapoint {key} exists with another extension")
            if entry.safe is not None:
                await self.leases.accept(dataset.id, key)
            self._rename(entry, replaced, dataset, name)

    def _rename(self, entry: Entry, replaced: Entry | None, dataset: Dataset, name: str) -> None:
        if not entry.linked or self.entries.named(dataset.id, name) is not replaced:
            raise Conflict(f"{entry.name}: something else was done to it meanwhile")
        if entry.safe is not None:
            gone = None if replaced is None or replaced.safe is None else replaced.id
            self.store.append(Renamed(entry.id, dataset.id, dataset.name, name, gone))
        if replaced is not None:
            self._unlink(replaced)
        self.entries.remove(entry)
        entry.call(dataset.id, dataset.name, name)
        self.entries.add(entry)
        self.quota.count(entry)
        entry.problem, entry.state, entry.is_doubtful = None, EntryState.JOURNALED, False
        entry.quiet_since = trio.current_time()

    async def settled(self, entry: Entry) -> None:
        """Wait until an entry is not being committed. Raises Forbidden if it is committed, Unavailable if
        that takes too long."""
        if entry.state is EntryState.COMMITTING:
            with trio.move_on_after(self._patience):
                while entry.state is EntryState.COMMITTING:
                    await self._outcome(entry)
        if entry.state is EntryState.COMMITTING:
            raise Unavailable(f"{entry.dataset}/{entry.name}: it is still being committed")
        if entry.state is EntryState.COMMITTED:
            raise Forbidden(f"{entry.dataset}/{entry.name}: it is committed, and datapoints never change")

    async def _outcome(self, entry: Entry) -> None:
        ended = trio.Event()
        entry.waiters.append(ended)
        await ended.wait()

    # -- what became of them ---------------------------------------------------------------------------

    def adopt(self, entry: Entry) -> None:
        """Put an entry in that an earlier process has left."""
        self.entries.add(entry)
        self.quota.count(entry)
        self.number_after(entry.id)
        self.backlog.note(entry)

    def number_after(self, entry_id: EntryId) -> None:
        """Never give out *entry_id* or a smaller number."""
        self._next_id = max(self._next_id, entry_id + 1)

    def retire(self, entries: Iterable[Entry]) -> None:
        """Forget entries that are committed and can be seen in the catalog's snapshot."""
        for entry in entries:
            if entry.linked:
                self._unlink(entry)

    def compact(self) -> None:
        """Free log segments that a few long-lived entries keep. Raises Full, Unavailable."""
        self._accepting.compact(self.quota.limit // 4)
        self.quota.freed()

    def _new(self, dataset: Dataset, name: str) -> Entry:
        number = EntryId(self._next_id)
        self._next_id += 1
        return Entry(number, dataset.id, dataset.name, name, Draft(self.store, number), time.time_ns())

    async def _check_free(self, dataset: Dataset, key: int, name: str) -> None:
        if self.entries.at_key(dataset.id, key) is not None:
            raise Conflict(f"{name}: datapoint {key} is uncommitted with another extension")
        if (await self._snapshots.of(dataset.id)).position(key) is not None:
            raise Conflict(f"{name}: datapoint {key} exists")

    def _unlink(self, entry: Entry) -> None:
        self.entries.remove(entry)
        entry.linked = False
        if entry.handles:
            try:
                entry.draft.detach()
            except Datas3tError as exc:
                log.warning("%s/%s: who has it open cannot read on: %s", entry.dataset, entry.name, exc)
        if entry.safe is not None:
            self.store.drop(entry.safe.place)
            entry.safe = None
        entry.wake()
        self._let_go(entry)
        self.quota.freed()

    def _let_go(self, entry: Entry) -> None:
        self.quota.count(entry)
        if entry.handles:
            return
        entry.draft.park()
        if not entry.linked:
            try:
                entry.draft.close()
            except Datas3tError as exc:
                log.warning("%s/%s: its content stays for the next mount: %s", entry.dataset, entry.name, exc)

    async def _make_room(self, growth: int) -> None:
        if growth > 0 and not self.quota.has_room(growth):
            if not self.quota.fits(growth):
                self.compact()
            self.backlog.poke()
            await self.quota.wait(growth)

"""Uncommitted files: create, change, accept, rename, remove. What close() promises is kept here.

A file is *accepted* when its record is in the journal's log: from then on it survives the death of this
process, and its key can be nobody else's. Committing accepted files is committer.py's business; an entry
that is being committed stands still, and whoever wants to change it waits for the outcome.

Between two awaits a task owns the tables; after one, it looks again. The kernel lets one create, rename or
unlink at a time into a directory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace

import trio

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.counters import Counters
from datas3tfs.core.journalrecords import Accepted, EntryId, Gone, Place, Renamed
from datas3tfs.core.model import Dataset
from datas3tfs.core.names import check_file_name, is_temporary, parse_datapoint_name
from datas3tfs.core.tar import clamped_time
from datas3tfs.engine.backlog import Backlog
from datas3tfs.engine.draft import Draft
from datas3tfs.engine.entries import Entries, Entry, EntryState, Safe
from datas3tfs.engine.leases import KeyLeases
from datas3tfs.engine.quota import Quota
from datas3tfs.engine.snapshot import Snapshots
from datas3tfs.errors import Conflict, Datas3tError, Forbidden, NotFound, Unavailable
from datas3tfs.ports import JournalStore

log = logging.getLogger(__name__)

_SECOND = 1_000_000_000
_CHECKSUM_TRIES = 3  # at a file that changes while it is read
_COMPACT_SLACK = 256 * 1024 * 1024  # bytes of log that may be dead before the live ones are moved
_NOWHERE = Place(0, 0, 0)  # until it is appended


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
        self.backlog = Backlog(entries)

    async def create(self, dataset: Dataset, name: str) -> Entry:
        """Make an empty file, open for one writer. Raises Invalid (name), Conflict (key taken), Full,
        Unavailable."""
        check_file_name(name)
        if self.entries.named(dataset.id, name) is not None:
            raise Conflict(f"{name}: it exists already")
        entry = self._new(dataset, name)
        if entry.key is None:
            self.entries.add(entry)
        else:
            await self._check_free(dataset, entry.key, name)
            async with self.leases.holding(dataset.id, entry.key):
                if self.entries.at_key(dataset.id, entry.key) is not None:
                    raise Conflict(f"{name}: datapoint {entry.key} is being created already")
                self.entries.add(entry)
        self.opened(entry, writable=True)
        self._counters.add("journal.create")
        return entry

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
        entry.quiet_since = trio.current_time()
        self.backlog.note(entry)

    def read(self, entry: Entry, offset: int, size: int) -> bytes:
        """Read from a file. Raises Unavailable."""
        return entry.draft.read(offset, size)

    async def write(self, entry: Entry, offset: int, data: bytes) -> None:
        """Write into a file. Raises Forbidden (committed), Full, Unavailable."""
        await self._make_room(max(0, offset + len(data) - entry.size))
        await self.settled(entry)
        self._before_change(entry)
        before = entry.draft.file_bytes
        try:
            entry.draft.write(offset, data)
        finally:
            self.quota.files_grew(entry.draft.file_bytes - before)
        entry.mtime_ns = time.time_ns()

    async def truncate(self, entry: Entry, size: int) -> None:
        """Cut or extend a file. Raises Forbidden (committed), Full, Unavailable."""
        await self._make_room(max(0, size - entry.size))
        await self.settled(entry)
        self._before_change(entry)
        before = entry.draft.file_bytes
        try:
            entry.draft.truncate(size)
        finally:
            self.quota.files_grew(entry.draft.file_bytes - before)
        entry.mtime_ns = time.time_ns()

    async def touch(self, entry: Entry, mtime_ns: int) -> None:
        """Set a file's modification time. Raises Forbidden (committed)."""
        await self.settled(entry)
        mtime_ns = clamped_time(mtime_ns)
        if entry.mtime_ns // _SECOND != mtime_ns // _SECOND:
            entry.mtime_ns = mtime_ns
            entry.changed = True

    async def accept_unless_open(self, entry: Entry) -> None:
        """Make a change safe that no close() will follow. Raises as `accept` does."""
        if not entry.writers:
            await self.accept(entry)

    async def accept(self, entry: Entry) -> None:
        """Make what was written safe. Raises Conflict (the key was lost), Full, Unavailable."""
        while entry.linked and entry.changed and entry.state is not EntryState.COMMITTED:
            if entry.state is EntryState.COMMITTING:
                await self.settled(entry)
                continue
            if entry.key is not None:
                await self._accept_key(entry, entry.key)
            if await self._record(entry):
                return

    async def _accept_key(self, entry: Entry, key: int) -> None:
        try:
            await self.leases.accept(entry.dataset_id, key)
        except Conflict as exc:
            # From the one who closes it, this must not be hidden behind EEXIST.
            raise Unavailable(
                f"{entry.dataset}/{entry.name}: its key was taken over meanwhile ({exc})"
            ) from exc

    async def _record(self, entry: Entry) -> bool:
        """Append the record that makes an entry safe; say whether that is still what it is."""
        name, version = entry.name, entry.draft.version
        content = entry.draft.inline_content()
        crc = crc32c(content) if content is not None else entry.draft.known_crc()
        if crc is None:
            crc = await self._checksum(entry)
        if (entry.name, entry.draft.version) != (name, version) or not entry.linked:
            return False
        place = self._append_accepted(
            entry, Safe(_NOWHERE, content is not None, entry.size, crc, entry.mtime_ns), content
        )
        if content is not None:
            entry.draft.rest_in_log(place)
        entry.changed = False
        if not entry.handles:
            entry.draft.park()
        entry.problem, entry.state = None, EntryState.JOURNALED
        entry.quiet_since = trio.current_time()
        self._counters.add("journal.accept")
        self.backlog.note(entry)
        return True

    async def _checksum(self, entry: Entry) -> int | None:
        """Return the CRC of a content file; None if it changes all the time: then it is safe without."""
        for _ in range(_CHECKSUM_TRIES):
            version = entry.draft.version
            try:
                crc = await trio.to_thread.run_sync(entry.draft.checksum)
            except NotFound:
                if entry.linked:
                    raise
                return None
            if entry.draft.version == version:
                entry.draft.learn_crc(crc)
                return crc
        return None

    async def sync(self, entry: Entry) -> None:
        """Make a file survive a loss of power, here. Raises as `accept` does."""
        await self.accept(entry)
        if entry.state is not EntryState.COMMITTED:
            await trio.to_thread.run_sync(entry.draft.sync)
            await trio.to_thread.run_sync(self.store.sync)

    async def sync_all(self) -> None:
        """Make everything accepted survive a loss of power, here. Raises Unavailable."""
        for entry in self.entries:
            if entry.draft.is_own_file and entry.linked:
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
        replaced = self.entries.named(dataset.id, name)
        both = [entry] if replaced is None else [entry, replaced]
        for one in both:
            await self.settled(one)
            one.busy += 1
        try:
            await self._rename_datapoint(entry, replaced, dataset, name)
        finally:
            for one in both:
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
        at_key = self.entries.at_key(dataset.id, key)
        if at_key not in (None, entry, replaced):
            raise Conflict(f"{name}: datapoint {key} exists with another extension")
        if at_key is None:
            await self._check_free(dataset, key, name)
        async with self.leases.holding(dataset.id, key):
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
        entry.problem, entry.state = None, EntryState.JOURNALED
        entry.quiet_since = trio.current_time()

    async def settled(self, entry: Entry) -> None:
        """Wait until an entry is not being committed. Raises Forbidden if it is committed, Unavailable if
        that takes too long."""
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
        self.quota.files_grew(entry.draft.file_bytes)
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
        slack = min(_COMPACT_SLACK, self.quota.limit // 4)
        safe = [entry.safe for entry in self.entries if entry.safe is not None]
        live = sum(one.size for one in safe if one.inline)
        while self.store.log_bytes > 2 * live + slack:
            oldest = self.store.oldest()
            stuck = [e for e in self.entries if e.safe is not None and e.safe.place.segment == oldest]
            if not stuck or any(entry.state is EntryState.COMMITTING for entry in stuck):
                return
            for entry in stuck:
                self._append_again(entry)

    def _append_again(self, entry: Entry) -> None:
        """Move an entry's accepted record to the end of the log, as it stands there."""
        old = entry.safe
        assert old is not None
        content = self.store.read(old.place, 0, old.size) if old.inline else None
        entry.draft.moved_in_log(old.place, self._append_accepted(entry, old, content))

    def _append_accepted(self, entry: Entry, says: Safe, content: bytes | None) -> Place:
        """Append what makes an entry safe, in place of what did before; return its place."""
        place = self.store.append(
            Accepted(
                entry.id,
                entry.dataset_id,
                entry.dataset,
                entry.name,
                says.mtime_ns,
                says.size,
                says.crc,
                content,
            )
        )
        if entry.safe is not None:
            self.store.drop(entry.safe.place)
        entry.safe = replace(says, place=place)
        return place

    def _new(self, dataset: Dataset, name: str) -> Entry:
        number = EntryId(self._next_id)
        self._next_id += 1
        return Entry(number, dataset.id, dataset.name, name, Draft(self.store, number), time.time_ns())

    async def _check_free(self, dataset: Dataset, key: int, name: str) -> None:
        if self.entries.at_key(dataset.id, key) is not None:
            raise Conflict(f"{name}: datapoint {key} is uncommitted with another extension")
        if (await self._snapshots.of(dataset.id)).position(key) is not None:
            raise Conflict(f"{name}: datapoint {key} exists")

    def _before_change(self, entry: Entry) -> None:
        """A content file is about to differ from its record: say so first."""
        safe = entry.safe
        if safe is not None and not safe.inline and safe.crc is not None:
            self._append_accepted(entry, replace(safe, crc=None), None)
        entry.changed = True

    def _unlink(self, entry: Entry) -> None:
        self.entries.remove(entry)
        entry.linked = False
        if entry.handles:
            entry.draft.detach()
        if entry.safe is not None:
            self.store.drop(entry.safe.place)
            entry.safe = None
        entry.wake()
        self._let_go(entry)
        self.quota.freed()

    def _let_go(self, entry: Entry) -> None:
        if entry.handles:
            return
        entry.draft.park()
        if not entry.linked:
            self.quota.files_grew(-entry.draft.file_bytes)
            entry.draft.close()

    async def _make_room(self, growth: int) -> None:
        if not self.quota.has_room(growth):
            self.compact()
            self.backlog.poke()
            await self.quota.wait(growth)

"""The records that make uncommitted files safe: appended when one is accepted, and again when the log moves.

A file is *accepted* when its record is in the journal's log: from then on it survives the death of this
process, and its key can be nobody else's. Not for names and tables (journal.py), nor for content (draft.py).
After an await everything is looked at again: a file may be written, renamed and removed meanwhile.
"""

from __future__ import annotations

import logging

import trio

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.counters import Counters
from datas3tfs.core.journalcodec import note_bytes
from datas3tfs.core.journalrecords import Accepted, Place
from datas3tfs.engine.backlog import Backlog
from datas3tfs.engine.entries import Entries, Entry, EntryState, Safe
from datas3tfs.engine.leases import KeyLeases
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, NotFound, Unavailable
from datas3tfs.ports import JournalStore

log = logging.getLogger(__name__)

_CHECKSUM_TRIES = 3  # at a file that changes while it is read
_COMPACT_SLACK = 256 * 1024 * 1024  # bytes of log that may be dead before the live ones are moved
_STANDING_STILL = (EntryState.COMMITTING, EntryState.COMMITTED)


class Accepting:
    """Keeps what close() has promised."""

    def __init__(
        self, store: JournalStore, entries: Entries, leases: KeyLeases, backlog: Backlog, counters: Counters
    ) -> None:
        self._store = store
        self._entries = entries
        self._leases = leases
        self._backlog = backlog
        self._counters = counters

    async def accept(self, entry: Entry) -> None:
        """Make what was written safe. Raises Unavailable (also if the key was lost), Full, Corrupt."""
        # What is being committed, or is, has not changed since it was accepted.
        while entry.linked and entry.changed and entry.state in (EntryState.JOURNALED, EntryState.REFUSED):
            if entry.key is not None:
                await self._accept_key(entry, entry.key)
            if await self._record(entry):
                return

    async def _accept_key(self, entry: Entry, key: int) -> None:
        try:
            await self._leases.accept(entry.dataset_id, key)
        except (Conflict, NotFound) as exc:
            # From the one who closes it, this must not be hidden behind EEXIST.
            raise Unavailable(
                f"{entry.dataset}/{entry.name}: its key was taken over meanwhile ({exc})"
            ) from exc

    async def _record(self, entry: Entry) -> bool:
        """Append the record that makes an entry safe; say whether that is still what it is."""
        called = entry.dataset_id, entry.name
        content = entry.draft.inline_content()
        crc = crc32c(content) if content is not None else entry.draft.known_crc()
        if crc is None:
            crc = await self._checksum(entry)
        if (entry.dataset_id, entry.name) != called or not entry.linked:
            return False
        if content is None and crc is not None:
            entry.draft.learn_crc(crc)
        entry.is_doubtful = False
        place = self._append(entry, entry.size, crc, entry.mtime_ns, content)
        if content is not None:
            entry.draft.rest_in_log(place)
        entry.changed = False
        if not entry.handles:
            entry.draft.park()
        entry.problem, entry.state = None, EntryState.JOURNALED
        entry.quiet_since = trio.current_time()
        self._counters.add("journal.accept")
        self._backlog.note(entry)
        return True

    async def _checksum(self, entry: Entry) -> int | None:
        """Return the CRC of a content file as it is now; None if it changes all the time: then it is safe
        without, as whatever is in it."""
        for _ in range(_CHECKSUM_TRIES):
            version = entry.draft.version
            try:
                crc = await trio.to_thread.run_sync(entry.draft.checksum)
            except Datas3tError:
                if entry.linked and entry.draft.version == version:
                    raise
                continue  # it was cut, or removed, while it was read
            if entry.draft.version == version:
                return crc
        return None

    def is_promised(self, entry: Entry, offset: int) -> bool:
        """Say whether the record of a content file of its own is about what is at *offset* or behind."""
        safe = entry.safe
        return safe is not None and not safe.inline and offset < safe.size

    def before_change(self, entry: Entry) -> None:
        """A content file is about to differ from its record: say so first. Raises Full, Unavailable."""
        safe = entry.safe
        if safe is not None and not safe.inline and safe.crc is not None:
            self._append(entry, safe.size, None, safe.mtime_ns, None)
        entry.changed = True

    def compact(self, slack: int) -> None:
        """Free log segments that a few long-lived entries keep; *slack* bytes of it may be dead. Raises Full,
        Unavailable."""
        slack = min(slack, _COMPACT_SLACK)
        live = sum(_bytes_in_log(entry) for entry in self._entries)
        while self._store.log_bytes > 2 * live + slack:
            oldest = self._store.oldest()
            stuck = [e for e in self._entries if e.safe is not None and e.safe.place.segment == oldest]
            # What is committed leaves by itself: behind the note that it is gone, it would be there again.
            if not stuck or any(entry.state in _STANDING_STILL for entry in stuck):
                return
            try:
                for entry in stuck:
                    self._append_again(entry)
            except Corrupt:
                return  # it will be refused when it is committed, and stays where it is

    def _append_again(self, entry: Entry) -> None:
        """Move an entry's accepted record to the end of the log, as it stands there."""
        old = entry.safe
        assert old is not None
        content = self._store.read(old.place, 0, old.size) if old.inline else None
        place = self._append(entry, old.size, old.crc, old.mtime_ns, content)
        entry.draft.moved_in_log(old.place, place)

    def _append(
        self, entry: Entry, size: int, crc: int | None, mtime_ns: int, content: bytes | None
    ) -> Place:
        """Append what makes an entry safe, in place of what did before; return its place. *content*: None if
        it has a file of its own."""
        of = entry.id, entry.dataset_id, entry.dataset, entry.name
        place = self._store.append(Accepted(*of, mtime_ns, size, crc, content, doubtful=entry.is_doubtful))
        if entry.safe is not None:
            self._store.drop(entry.safe.place)
        entry.safe = Safe(place, content is not None, size, crc, mtime_ns)
        return place


def _bytes_in_log(entry: Entry) -> int:
    """Return how long the record is that makes an entry safe."""
    if entry.safe is None:
        return 0
    return note_bytes(entry.dataset, entry.name) + (entry.safe.size if entry.safe.inline else 0)

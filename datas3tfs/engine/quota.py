"""How much room the journal takes, and who has to wait for more: writers slow down, then get "no space".

Counted is what is on disk, and what close() will bring there of what is in memory: a file that was changed
is written to the log once more, with its content if that is small. So nobody's close() fails for lack of
room that writing has been given. Nothing here changes a file; that is journal.py's business.
"""

from __future__ import annotations

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.journalcodec import NOTE_LIMIT
from datas3tfs.engine.draft import INLINE_LIMIT
from datas3tfs.engine.entries import Entry
from datas3tfs.errors import Full
from datas3tfs.ports import JournalStore

_SLOW_FROM = 0.75  # of the limit: from here on writers are slowed down, the more the fuller it is …
_SLOWEST_SECONDS = 0.1  # … up to this for every write


class Quota:
    """The room of one journal: *limit* bytes; a writer waits for *patience* seconds at most."""

    def __init__(self, store: JournalStore, limit: int, patience: float, counters: Counters) -> None:
        self.limit = limit
        self._store = store
        self._patience = patience
        self._counters = counters
        self._beside = 0
        self._freed = trio.Event()
        self._waiting = 0

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for room."""
        return self._waiting > 0

    @property
    def used(self) -> int:
        """Bytes on disk, the log and files for large content; and those the log will get of what is open."""
        return self._store.log_bytes + self._beside

    @property
    def free(self) -> int:
        """Bytes that may be written before somebody has to wait for room."""
        return max(0, min(self.limit - self.used, self._store.free_bytes()))

    def count(self, entry: Entry) -> None:
        """Take note of what an entry takes beside the log now; to be called whenever that may have changed,
        before anything is waited for."""
        room = _room_beside_log(entry)
        by, entry.room = room - entry.room, room
        self.reserve(by)

    def reserve(self, by: int) -> None:
        """Take note that *by* bytes more, or less, are about to be written to the log."""
        self._beside += by
        if by < 0:
            self.freed()

    def freed(self) -> None:
        """Wake those who wait for room."""
        if self._waiting:
            self._freed.set()
            self._freed = trio.Event()

    def has_room(self, growth: int) -> bool:
        """Say whether *growth* more bytes may be written at once."""
        return self.used + growth <= _SLOW_FROM * self.limit

    def fits(self, growth: int) -> bool:
        """Say whether there is room for *growth* more bytes, be it the last."""
        return self.used + growth <= self.limit

    async def wait(self, growth: int) -> None:
        """Wait as long as the fullness demands: it fits at the moment when this returns. Raises Full."""
        if self.fits(growth):
            excess = max(0.0, (self.used + growth) / self.limit - _SLOW_FROM) / (1 - _SLOW_FROM)
            await trio.sleep(_SLOWEST_SECONDS * excess)
        if self.fits(growth):
            return
        self._counters.add("journal.full")
        with trio.move_on_after(self._patience if growth <= self.limit else 0):
            self._waiting += 1
            try:
                while not self.fits(growth):
                    await self._freed.wait()
            finally:
                self._waiting -= 1
            return
        raise Full(
            f"the journal is full: {self.used} of {self.limit} bytes wait to be committed "
            "(raise --journal-size, or see why committing fails)"
        )


def growth_of(entry: Entry, size: int) -> int:
    """Return how many bytes an entry takes more if it is changed now, and *size* bytes long then."""
    if not entry.linked:
        return size - entry.room if entry.draft.is_own_file or size > INLINE_LIMIT else 0
    # The record that says so, before a file of its own changes; and the one that close() writes.
    notes = (0 if entry.changed else 1) + 1 + (entry.key is None)
    return size + notes * NOTE_LIMIT - entry.room


def _room_beside_log(entry: Entry) -> int:
    """Return how many bytes an entry takes that are not in the log: on disk, or there when it is accepted."""
    if not entry.linked:
        # If it is small it will never be on disk: it is in memory for those who have it open.
        return entry.draft.file_bytes if entry.handles else 0
    content = entry.size if entry.changed else entry.draft.file_bytes
    # A temporary name has room for being renamed: a full journal must not keep files from being committed.
    return content + (entry.changed + (entry.key is None)) * NOTE_LIMIT

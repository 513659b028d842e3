"""How much room the journal takes, and who has to wait for more: writers slow down, then get "no space"."""

from __future__ import annotations

import trio

from datas3tfs.core.counters import Counters
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
        self._file_bytes = 0
        self._freed = trio.Event()
        self._waiting = 0

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for room."""
        return self._waiting > 0

    @property
    def used(self) -> int:
        """Bytes on disk: the log, and files for large content."""
        return self._store.log_bytes + self._file_bytes

    @property
    def free(self) -> int:
        """Bytes that may be written before somebody has to wait for room."""
        return max(0, min(self.limit - self.used, self._store.free_bytes()))

    def files_grew(self, by: int) -> None:
        """Take note that content files take *by* bytes more, or less."""
        self._file_bytes += by
        if by < 0:
            self.freed()

    def freed(self) -> None:
        """Wake those who wait for room."""
        self._freed.set()
        self._freed = trio.Event()

    def has_room(self, growth: int) -> bool:
        """Say whether *growth* more bytes may be written at once."""
        return self.used + growth <= _SLOW_FROM * self.limit

    async def wait(self, growth: int) -> None:
        """Wait as long as the fullness demands. Raises Full."""
        fullness = (self.used + growth) / self.limit
        if fullness <= 1:
            excess = max(0.0, fullness - _SLOW_FROM) / (1 - _SLOW_FROM)
            await trio.sleep(_SLOWEST_SECONDS * excess)
            return
        self._counters.add("journal.full")
        with trio.move_on_after(self._patience if growth <= self.limit else 0):
            self._waiting += 1
            try:
                while self.used + growth > self.limit:
                    await self._freed.wait()
            finally:
                self._waiting -= 1
            return
        raise Full(
            f"the journal is full: {self.used} of {self.limit} bytes wait to be committed "
            "(raise --journal-size, or see why committing fails)"
        )

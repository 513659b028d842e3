"""What waits to be committed, counted as it arrives: nobody has to look through all entries for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from datas3tfs.core.model import DatasetId
from datas3tfs.engine.entries import Entries, Entry


@dataclass(frozen=True, slots=True)
class Pending:
    """What waits in one dataset: bytes, and when the oldest of it was closed (trio's clock)."""

    bytes: int
    oldest: float


_NOTHING = Pending(0, math.inf)


class Backlog:
    """What waits, by dataset. Roughly: what is removed or changed again counts until `recount`."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._pending: dict[DatasetId, Pending] = {}
        self._changed = trio.Event()

    def pending(self, dataset_id: DatasetId) -> Pending:
        """Return what waits in a dataset."""
        return self._pending.get(dataset_id, _NOTHING)

    def note(self, entry: Entry) -> None:
        """Take note of an entry that may be ready to be committed."""
        if not entry.writers and entry.is_committable:
            before = self.pending(entry.dataset_id)
            after = Pending(before.bytes + entry.size, min(before.oldest, entry.quiet_since))
            self._pending[entry.dataset_id] = after
            self.poke()

    def recount(self, dataset_id: DatasetId) -> None:
        """Count again what waits in a dataset."""
        self._pending.pop(dataset_id, None)
        for entry in self._entries.in_order(dataset_id):
            self.note(entry)

    async def changes(self) -> None:
        """Return when there may be something new to commit."""
        await self._changed.wait()
        self._changed = trio.Event()

    def poke(self) -> None:
        """Let `changes` return."""
        self._changed.set()

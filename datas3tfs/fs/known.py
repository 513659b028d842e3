"""Which uncommitted files the kernel knows by number, and how often it was told of each.

Their numbers are not computed (core/inodes.py), so they are kept for as long as the kernel may use them:
until it has forgotten every answer that named them. Grows with that, and with nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from datas3tfs.core.journalrecords import EntryId
from datas3tfs.engine.entries import Entry


@dataclass(slots=True)
class _Known:
    entry: Entry
    lookups: int = 0


class KnownEntries:
    """The kernel's references to entries."""

    def __init__(self) -> None:
        self._known: dict[EntryId, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, number: EntryId) -> Entry | None:
        """Return the entry the kernel knows by *number*."""
        known = self._known.get(number)
        return None if known is None else known.entry

    def told(self, entry: Entry) -> None:
        """Take note of an answer that names *entry*."""
        known = self._known.get(entry.id)
        if known is None:
            known = self._known[entry.id] = _Known(entry)
        known.lookups += 1

    def forgotten(self, number: EntryId, lookups: int) -> None:
        """Take note that the kernel has forgotten that many answers."""
        known = self._known.get(number)
        if known is not None:
            known.lookups -= lookups
            if known.lookups <= 0:
                del self._known[number]

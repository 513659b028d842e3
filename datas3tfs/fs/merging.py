"""Answers to readdir where there are uncommitted files, too: datapoints of both kinds in the order of their
keys, then files with temporary names.
"""

from __future__ import annotations

import os
from contextlib import aclosing
from dataclasses import dataclass

import pyfuse3

from datas3tfs.core.inodes import Inodes
from datas3tfs.core.model import DatasetId
from datas3tfs.engine.entries import Entries, Entry
from datas3tfs.engine.tree import Rows, Tree
from datas3tfs.errors import Datas3tError
from datas3tfs.fs.attributes import Attributes
from datas3tfs.fs.known import KnownEntries
from datas3tfs.fs.listing import KEY_MAX, Listing

# An offset is 63 bits, or seekdir(3) would refuse it, and keys take all of them. So the last 2^40 offsets,
# as many as there are numbers, are those of files with temporary names: this plus the number plus one. The
# last 2^40 keys have negative offsets, with which a listing can be gone through from begin to end only.
_TEMPORARIES = 2**63 - 2**40
_FAR = 2**63 + _TEMPORARIES


@dataclass(slots=True)
class _Answer:
    """An answer being filled."""

    dataset_id: DatasetId
    token: pyfuse3.ReaddirToken
    listed: int = 0


class MergedListing(Listing):
    """Lists what is committed and what is not, each key once."""

    far_keys = _TEMPORARIES - 1

    def __init__(
        self, tree: Tree, attributes: Attributes, inodes: Inodes, entries: Entries, known: KnownEntries
    ) -> None:
        super().__init__(tree, attributes, inodes)
        self._entries = entries
        self._known = known

    async def datapoints(self, dataset_id: DatasetId, start: int, token: pyfuse3.ReaddirToken) -> None:
        answer = _Answer(dataset_id, token)
        if start < _TEMPORARIES:
            try:
                if not await self._keys(answer, start if start >= 0 else start + _FAR):
                    return
            except Datas3tError:
                if not answer.listed:
                    raise
                return
        number = max(0, start - _TEMPORARIES)
        for entry in self._entries.temporaries(dataset_id, number):
            if not self._entry(answer, entry, _TEMPORARIES + entry.id + 1):
                return

    async def _keys(self, answer: _Answer, start: int) -> bool:
        """List all datapoints from key *start* on; say whether there was room."""
        key = start
        async with aclosing(self._tree.listing(answer.dataset_id, start)) as batches:
            async for rows in batches:
                if not self._uncommitted(answer, key, rows.first_key) or not self._merged(answer, rows):
                    return False
                key = rows.first_key + len(rows.names)
        return self._uncommitted(answer, key, KEY_MAX + 1)

    def _uncommitted(self, answer: _Answer, start: int, stop: int) -> bool:
        """List the uncommitted datapoints with keys from *start* to before *stop*."""
        while (key := self._entries.next_key(answer.dataset_id, start)) is not None and key < stop:
            entry = self._entries.at_key(answer.dataset_id, key)
            assert entry is not None
            if not self._entry(answer, entry, key + 1 if key < self.far_keys else self._after_far(key)):
                return False
            start = key + 1
        return True

    def _merged(self, answer: _Answer, rows: Rows) -> bool:
        """List committed datapoints, but for those that the journal still has: these as they are there."""
        at, stop = rows.first_key, rows.first_key + len(rows.names)
        while at < stop:
            found = self._entries.next_key(answer.dataset_id, at)
            until = stop if found is None else min(found, stop)
            if until > at:
                count = self._rows(answer.dataset_id, rows.part(at, until), answer.token)
                answer.listed += count
                if count < until - at:
                    return False
            if until < stop and not self._uncommitted(answer, until, until + 1):
                return False
            at = until + 1
        return True

    def _after_far(self, key: int) -> int:
        return key + 1 - _FAR

    def _entry(self, answer: _Answer, entry: Entry, after: int) -> bool:
        attributes = self._attributes.entry(entry, self._inodes.uncommitted(entry.id))
        name = pyfuse3.FileNameT(os.fsencode(entry.name))
        if not pyfuse3.readdir_reply(answer.token, name, attributes, after):
            return False
        self._known.told(entry)
        answer.listed += 1
        return True

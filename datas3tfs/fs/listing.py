"""Answers to readdir. An entry's offset says where a listing goes on, whatever comes or goes meanwhile:
of a dataset its id plus one, of a datapoint its key plus one.
"""

from __future__ import annotations

import os
from contextlib import aclosing

import pyfuse3

from datas3tfs.core.inodes import DatasetNode, Inodes
from datas3tfs.core.model import DatasetId
from datas3tfs.engine.tree import Rows, Tree
from datas3tfs.errors import Datas3tError
from datas3tfs.fs.attributes import Attributes, fill, generation

KEY_MAX = 2**63 - 1
# Offset after the very last possible key: "from key 2^63 on" does not fit off_t.
_END = -1


class Listing:
    """Lists what is committed."""

    far_keys = KEY_MAX  # from this key on, what comes after a key is not the key plus one but `_after_far`

    def __init__(self, tree: Tree, attributes: Attributes, inodes: Inodes) -> None:
        self._tree = tree
        self._attributes = attributes
        self._inodes = inodes

    def datasets(self, start: int, token: pyfuse3.ReaddirToken) -> None:
        """List the datasets from offset *start* on, as far as there is room."""
        for dataset in self._tree.datasets():
            if dataset.id < start:
                continue
            attributes = self._attributes.dataset(dataset, self._inodes.number(DatasetNode(dataset.id)))
            name = pyfuse3.FileNameT(os.fsencode(dataset.name))
            if not pyfuse3.readdir_reply(token, name, attributes, dataset.id + 1):
                return

    async def datapoints(self, dataset_id: DatasetId, start: int, token: pyfuse3.ReaddirToken) -> None:
        """List a dataset from offset *start* on, as far as there is room.

        A failure after the first entry ends the answer; the kernel asks again and gets the error then.
        """
        if start == _END:
            return
        listed = 0
        try:
            async with aclosing(self._tree.listing(dataset_id, start)) as batches:
                async for rows in batches:
                    count = self._rows(dataset_id, rows, token)
                    if count < len(rows.names):
                        return
                    listed += count
        except Datas3tError:
            if not listed:
                raise

    def _rows(self, dataset_id: DatasetId, rows: Rows, token: pyfuse3.ReaddirToken) -> int:
        """List *rows*; return how many there was room for."""
        attributes, reply = self._attributes.blank(), pyfuse3.readdir_reply
        numbers = self._inodes.datapoints(dataset_id, rows.first_key, len(rows.names))
        crcs = rows.crcs or [0] * len(rows.names)
        columns = zip(numbers, rows.names, rows.sizes, rows.mtimes_ns, crcs, strict=True)
        for key, (number, name, size, mtime_ns, crc) in enumerate(columns, rows.first_key):
            fill(attributes, number, size, mtime_ns)
            attributes.generation = generation(size, mtime_ns, crc)
            after = key + 1 if key < self.far_keys else self._after_far(key)
            if not reply(token, pyfuse3.FileNameT(name), attributes, after):
                return key - rows.first_key
        return len(rows.names)

    def _after_far(self, key: int) -> int:
        """Return the offset after a key of `far_keys` or more."""
        return _END

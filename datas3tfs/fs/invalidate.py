"""Tell the kernel what is gone, so that it stops believing for ever what it was told for ever.

Only dataranges whose index is in memory or in the disk cache can be known to the kernel. First it is judged
whether their datapoints are gone or were moved by a merge; what is gone gives up its inode numbers, and the
catalog's news count as settled. Then the kernel is told: a notification waits while a request for the same
inode is under way, so that is for a worker thread, never for the event loop (notifier.py), and no judgement
waits for it: the request may be waiting for that very one.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import trio

from datas3tfs.core.index import Index
from datas3tfs.core.inodes import ROOT
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.snapshot import Removed, Snapshots
from datas3tfs.engine.tree import Tree
from datas3tfs.fs.notifier import Notifier
from datas3tfs.fs.operations import Operations

log = logging.getLogger(__name__)

_BATCH = 2048

# (parent inode, name, inode) of a directory entry the kernel may know
_Entry = tuple[int, bytes, int]


@dataclass(frozen=True, slots=True)
class _Stale:
    """A datarange whose datapoints the kernel may know."""

    parent: int
    index: Index
    inodes: Sequence[int]

    def entries(self) -> Iterator[_Entry]:
        """Yield all of them; their names are made in batches, as there may be a million."""
        for slot in range(0, self.index.count, _BATCH):
            names = self.index.names(slot, min(_BATCH, self.index.count - slot))
            for name, inode in zip(names, self.inodes[slot : slot + _BATCH], strict=True):
                yield self.parent, name, inode


class Invalidator:
    """Follows what is gone from one mount's catalog."""

    def __init__(
        self, snapshots: Snapshots, tree: Tree, indices: Indices, operations: Operations, notifier: Notifier
    ) -> None:
        self._snapshots = snapshots
        self._tree = tree
        self._indices = indices
        self._operations = operations
        self._notifier = notifier

    async def run(self, removed: trio.MemoryReceiveChannel[Removed]) -> None:
        """Deal with whatever arrives on *removed*, until cancelled."""
        stop = threading.Event()
        sender, receiver = trio.open_memory_channel[Iterable[_Entry]](math.inf)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, receiver, stop)
                with sender:
                    async for gone in removed:
                        sender.send_nowait(await self._judged(gone))
        finally:
            stop.set()

    async def _judged(self, gone: Removed) -> Iterable[_Entry]:
        """Return what the kernel must forget, in an order to be forgotten in."""
        stale: list[_Stale] = []
        for dataset, datarange in gone.dataranges:
            is_known = self._indices.has_met(datarange)
            index = await self._indices.retire(datarange)
            # If a merge has moved them all, what the kernel knows is true still, and its pages worth keeping.
            if index is not None and not await self._tree.has_all_of(dataset.id, index):
                inodes = self._operations.datapoint_inodes(dataset, index.first, index.count)
                stale.append(_Stale(self._operations.dataset_inode(dataset), index, inodes))
                self._operations.retire(dataset.id, datarange.keys)
            elif index is None and is_known:  # what it said has been evicted; the kernel may know it still
                self._operations.retire(dataset.id, datarange.keys)
        self._snapshots.settle(gone)
        directories = [
            (ROOT, dataset.name.encode(), self._operations.dataset_inode(dataset))
            for dataset in gone.datasets
        ]
        return chain(chain.from_iterable(one.entries() for one in stale), directories)

    async def _tell(self, news: trio.MemoryReceiveChannel[Iterable[_Entry]], stop: threading.Event) -> None:
        async for entries in news:
            await trio.to_thread.run_sync(self._invalidate, entries, stop, abandon_on_cancel=True)

    def _invalidate(self, entries: Iterable[_Entry], stop: threading.Event) -> None:
        for parent, name, inode in entries:
            if stop.is_set():
                return
            self._forget(parent, name, inode)

    def _forget(self, parent: int, name: bytes, inode: int) -> None:
        """Drop an entry and, if somebody holds the file open, its cached pages."""
        try:
            if inode != ROOT:
                self._notifier.invalidate_inode(inode)
            self._notifier.invalidate_entry(parent, name)
        except FileNotFoundError:
            pass  # the kernel does not know it
        except OSError as exc:
            log.warning("the kernel could not be told that %r is gone: %s", name, exc)

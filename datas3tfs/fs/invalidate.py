"""Tell the kernel what is gone, so that it stops believing for ever what it was told for ever.

Only dataranges whose index is in memory or in the disk cache can be known to the kernel. First it is judged
whether their datapoints are gone or were moved by a merge; what is gone gives up its inode numbers, and the
catalog's news count as settled. Then the kernel is told, by another process (notifier.py): a notification
waits while a request for the same inode is under way, and no judgement waits for it, because that request may
be waiting for this very one.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import trio

from datas3tfs.core.index import Index
from datas3tfs.core.inodes import ROOT
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.snapshot import Removed, Snapshots
from datas3tfs.engine.tree import Tree
from datas3tfs.fs.notifier import Known
from datas3tfs.fs.operations import Operations

_BATCH = 2048

Forget = Callable[[Sequence[Known]], Awaitable[None]]  # tells the kernel; may take long


@dataclass(frozen=True, slots=True)
class _Stale:
    """A datarange whose datapoints the kernel may know."""

    parent: int
    index: Index
    inodes: Sequence[int]

    def entries(self) -> Iterator[Known]:
        """Yield all of them; their names are made in batches, as there may be a million."""
        for slot in range(0, self.index.count, _BATCH):
            names = self.index.names(slot, min(_BATCH, self.index.count - slot))
            for name, inode in zip(names, self.inodes[slot : slot + _BATCH], strict=True):
                yield self.parent, name, inode


class Invalidator:
    """Follows what is gone from one mount's catalog."""

    def __init__(
        self, snapshots: Snapshots, tree: Tree, indices: Indices, operations: Operations, forget: Forget
    ) -> None:
        self._snapshots = snapshots
        self._tree = tree
        self._indices = indices
        self._operations = operations
        self._forget = forget

    async def run(self, removed: trio.MemoryReceiveChannel[Removed]) -> None:
        """Deal with whatever arrives on *removed*, until cancelled."""
        sender, receiver = trio.open_memory_channel[Iterator[Known]](math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, receiver)
            with sender:
                async for gone in removed:
                    sender.send_nowait(await self._judged(gone))

    async def _judged(self, gone: Removed) -> Iterator[Known]:
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

    async def _tell(self, news: trio.MemoryReceiveChannel[Iterator[Known]]) -> None:
        async for entries in news:
            while batch := await trio.to_thread.run_sync(_batch, entries):
                await self._forget(batch)


def _batch(entries: Iterator[Known]) -> list[Known]:
    """Return the next few of *entries*; in a thread, for their names are made here."""
    return list(islice(entries, _BATCH))

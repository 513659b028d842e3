"""Tell the kernel what is gone, so that it stops believing for ever what it was told for ever.

Only dataranges whose index is in memory or in the disk cache can be known to the kernel. The
notifications block while a request for the same inode is under way, so they are made in a worker
thread, never on the event loop (it answers those requests: the loop would wait for itself,
unkillably), and never for the root.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import pyfuse3
import trio

from datas3tfs.core.index import Index
from datas3tfs.core.inodes import ROOT
from datas3tfs.core.model import DatasetId
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.snapshot import Removed
from datas3tfs.engine.tree import Tree
from datas3tfs.fs.operations import Operations

log = logging.getLogger(__name__)

_BATCH = 2048

# (parent inode, name, inode) of a directory entry the kernel may know
_Entry = tuple[int, bytes, int]


@dataclass(frozen=True, slots=True)
class _Stale:
    """A datarange whose datapoints the kernel may know."""

    dataset_id: DatasetId
    parent: int
    index: Index
    inodes: Sequence[int]

    def entries(self) -> Iterator[_Entry]:
        """Yield all of them; their names are made in batches, as there may be a million."""
        for slot in range(0, self.index.count, _BATCH):
            names = self.index.names(slot, min(_BATCH, self.index.count - slot))
            for name, inode in zip(names, self.inodes[slot : slot + _BATCH], strict=True):
                yield self.parent, name, inode


async def invalidate_removed(
    removed: trio.MemoryReceiveChannel[Removed], operations: Operations, tree: Tree, indices: Indices
) -> None:
    """Invalidate whatever arrives on *removed*, until cancelled."""
    stop = threading.Event()
    try:
        async for gone in removed:
            changed = {dataset.id for dataset, _ in gone.dataranges}
            barred = await trio.to_thread.run_sync(operations.pusher.bar, changed, abandon_on_cancel=True)
            datapoints = await _stale_datapoints(gone, operations, tree, indices)
            operations.pusher.allow(barred - {stale.dataset_id for stale in datapoints})
            directories = [
                (ROOT, dataset.name.encode(), operations.dataset_inode(dataset)) for dataset in gone.datasets
            ]
            entries = chain(chain.from_iterable(stale.entries() for stale in datapoints), directories)
            await trio.to_thread.run_sync(_invalidate, entries, stop, abandon_on_cancel=True)
    finally:
        stop.set()


async def _stale_datapoints(
    gone: Removed, operations: Operations, tree: Tree, indices: Indices
) -> list[_Stale]:
    stale: list[_Stale] = []
    for dataset, datarange in gone.dataranges:
        index = await indices.retire(datarange)
        # If a merge has moved them all, what the kernel knows is true still, and its pages worth keeping.
        if index is not None and not await tree.has_all_of(dataset.id, index):
            inodes = operations.datapoint_inodes(dataset, index.first, index.count)
            stale.append(_Stale(dataset.id, operations.dataset_inode(dataset), index, inodes))
    return stale


def _invalidate(entries: Iterable[_Entry], stop: threading.Event) -> None:
    for parent, name, inode in entries:
        if stop.is_set():
            return
        _forget_entry(parent, name, inode)


def _forget_entry(parent: int, name: bytes, inode: int) -> None:
    """Drop an entry and, if somebody holds the file open, its cached pages."""
    try:
        if inode != ROOT:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode))
        pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
    except FileNotFoundError:
        pass  # the kernel does not know it
    except OSError as exc:
        log.warning("the kernel could not be told that %r is gone: %s", name, exc)

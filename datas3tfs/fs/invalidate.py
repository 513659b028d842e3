"""Tell the kernel what is gone, so that it stops believing for ever what it was told for ever.

Only dataranges whose index is in memory can be known to the kernel. The notifications block while a
request for the same inode is under way, so they are made in a worker thread, never on the event loop
(it answers those requests: the loop would wait for itself, unkillably), and never for the root.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator

import pyfuse3
import trio

from datas3tfs.core.inodes import ROOT
from datas3tfs.core.model import DatarangeId
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.snapshot import Removed
from datas3tfs.fs.operations import Operations

log = logging.getLogger(__name__)

_BATCH = 2048

# (parent inode, name, inode) of a directory entry the kernel may know
_Stale = tuple[int, bytes, int]


async def invalidate_removed(
    removed: trio.MemoryReceiveChannel[Removed], operations: Operations, indices: Indices
) -> None:
    """Invalidate whatever arrives on *removed*, until cancelled."""
    stop = threading.Event()
    try:
        async for gone in removed:
            stale = list(_stale_datapoints(gone, operations, indices))
            directories = [
                (ROOT, dataset.name.encode(), operations.dataset_inode(dataset)) for dataset in gone.datasets
            ]
            await trio.to_thread.run_sync(_invalidate, [*stale, directories], stop, abandon_on_cancel=True)
    finally:
        stop.set()


def _stale_datapoints(gone: Removed, operations: Operations, indices: Indices) -> Iterator[Iterable[_Stale]]:
    for dataset, datarange in gone.dataranges:
        index = indices.forget(DatarangeId(datarange.id))
        if index is None:
            continue
        parent = operations.dataset_inode(dataset)
        for slot in range(0, index.count, _BATCH):
            names = index.names(slot, min(_BATCH, index.count - slot))
            yield [
                (parent, name, operations.datapoint_inode(dataset, index.first + slot + i))
                for i, name in enumerate(names)
            ]


def _invalidate(batches: Iterable[Iterable[_Stale]], stop: threading.Event) -> None:
    for batch in batches:
        for parent, name, inode in batch:
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

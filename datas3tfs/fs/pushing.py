"""Push content into the kernel's page cache before it is asked for: a READ less for each small file.

What was fetched ahead (and checked) goes to the kernel file by file (notify_store), from a worker thread: a
notification blocks while a READ of that file is under way, and the event loop is who answers it. Only files
the kernel has looked up or listed can take it; of a stretch whose first are unknown to it, no more are tried.
Of large datapoints nothing is pushed: their READs are few.

An inode number is that of a key. Where a datapoint was removed its key may come again, with other content,
while somebody holds the old one open: nothing is pushed into such a dataset any more (`bar`).
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import pyfuse3
import trio

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import DatasetId
from datas3tfs.core.reads import slots_in
from datas3tfs.core.spans import Span
from datas3tfs.core.tar import BLOCK
from datas3tfs.engine.blocks import Extent

_WAITING = 16  # stretches: what comes faster than it can be pushed is left to READs
_OPENED = 4096  # files opened last, which are read already
_TURN = 4  # files pushed before `bar` gets its turn; if the kernel knows none of the first, no more are

# Returns the inode numbers of so many datapoints of a dataset from a key on.
InodesOf = Callable[[DatasetId, int, int], Sequence[int]]


class Pusher:
    """Takes what was fetched ahead and, while `run` runs, pushes it. The event loop's, but for `bar`."""

    def __init__(self, inodes_of: InodesOf, counters: Counters) -> None:
        self._inodes_of = inodes_of
        self._counters = counters
        self._waiting: OrderedDict[int, Extent] = OrderedDict()
        self._arrived = trio.Event()
        self._opened: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()  # held while something is pushed
        self._barred: set[DatasetId] = set()
        self._stopped = False

    def offer(self, extent: Extent) -> None:
        """Take note of bytes that have come ahead of their readers."""
        self._waiting[extent.serial] = extent
        if len(self._waiting) > _WAITING:
            self._waiting.popitem(last=False)
        self._arrived.set()

    def opened(self, inode: int) -> None:
        """Take note that a file is being read: it is too late to push it."""
        self._opened[inode] = None
        if len(self._opened) > _OPENED:
            self._opened.popitem(last=False)

    def bar(self, datasets: set[DatasetId]) -> set[DatasetId]:
        """Push nothing into *datasets* from the moment this returns; return those it was allowed for.

        Blocks; for worker threads."""
        with self._lock:
            allowed = datasets - self._barred
            self._barred |= datasets
        return allowed

    def allow(self, datasets: set[DatasetId]) -> None:
        """Take `bar` back: nothing was removed from *datasets*, after all."""
        self._barred -= datasets

    async def run(self) -> None:
        """Push what is offered, for ever."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived = trio.Event()
                while self._waiting:
                    _, extent = self._waiting.popitem(last=False)
                    slots = slots_in(extent.ref.index, extent.span)
                    first = extent.ref.index.first + slots.start
                    inodes = self._inodes_of(extent.ref.dataset_id, first, slots.length)
                    files, size = await trio.to_thread.run_sync(
                        self._push, extent, slots, inodes, abandon_on_cancel=True
                    )
                    self._counters.add("push.files", files)
                    self._counters.add("push.bytes", size)
        finally:
            self._stopped = True

    def _push(self, extent: Extent, slots: Span, inodes: Sequence[int]) -> tuple[int, int]:
        """Return (files pushed, their bytes)."""
        files, size = 0, 0
        ahead = self._files(extent, slots, inodes)
        while turn := list(itertools.islice(ahead, _TURN)):
            with self._lock:
                if self._stopped or extent.ref.dataset_id in self._barred:
                    break
                taken = [len(content) for inode, content in turn if _store(inode, content)]
            if not taken and not files:
                break
            files, size = files + len(taken), size + sum(taken)
        return files, size

    def _files(self, extent: Extent, slots: Span, inodes: Sequence[int]) -> Iterator[tuple[int, memoryview]]:
        """Yield (inode, content) of the small files that are whole in *extent*, and right."""
        assert extent.data is not None
        span, view = extent.span, memoryview(extent.data)
        columns = (column.tolist() for column in extent.ref.index.places(slots.start, slots.length))
        for inode, offset, blocks, size in zip(inodes, *columns, strict=True):
            start = offset + blocks * BLOCK
            if (
                0 < size <= CHUNK
                and offset >= span.start
                and start + size <= span.stop
                and inode not in self._opened
                and offset not in extent.problems
            ):
                yield inode, view[start - span.start : start - span.start + size]


def _store(inode: int, content: memoryview) -> bool:
    """Say whether the kernel has taken it; most often, if not, it does not know the file."""
    try:
        pyfuse3.notify_store(pyfuse3.InodeT(inode), 0, content)  # type: ignore[arg-type]  # any buffer
    except OSError:
        return False
    return True

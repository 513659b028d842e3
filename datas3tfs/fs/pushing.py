"""Put content into the kernel's page cache before it is asked for: a READ less for each small file.

What was fetched ahead, and is right, goes to the kernel file by file, by the worker (worker/serving.py): it
waits while a READ of that file is under way, and the event loop is who answers it. Only files the
kernel has looked up or listed can take it. Of large datapoints nothing is pushed: their READs are few.

Where every page is there before it is asked for, and files are not opened at our door (frontloop.py), nobody
would see the reader go by. So some files are left out, the *heartbeats*: their READs, answered from memory,
tell how far the reader is, and prefetch keeps its distance.

Concurrency: the event loop's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import numpy.typing as npt
import trio

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.counters import Counters
from datas3tfs.core.reads import slots_in
from datas3tfs.core.spans import Span
from datas3tfs.core.tar import BLOCK
from datas3tfs.engine.blocks import Extent, ObjectRef

_WAITING = 16  # stretches: what comes faster than it can be pushed is left to READs
_READ = 4096  # files read last, which are in the page cache already
_BEAT_FILES = 64  # one file in so many is left out …
_BEAT_BYTES = 2560 << 10  # … or in so many bytes, if that is less: a few times in what is fetched ahead …
_BEATS = 4  # … or so many times in a stretch: at first, little is fetched ahead

# Returns the inode numbers of the datapoints in some slots of an object; None if they are not certain.
Numbers = Callable[[ObjectRef, Span], Sequence[int] | None]
# Pushes files of a block: rows of (inode, start, length), 8 bytes each; returns (files pushed, their bytes).
Push = Callable[[memoryview, bytes], Awaitable[tuple[int, int]]]


class Pusher:
    """Takes what was fetched ahead and, while `run` runs, has it pushed."""

    def __init__(self, numbers: Numbers, counters: Counters) -> None:
        self._numbers = numbers
        self._counters = counters
        self._waiting: OrderedDict[int, Extent] = OrderedDict()
        self._arrived = trio.Event()
        self._read: OrderedDict[int, None] = OrderedDict()

    def offer(self, extent: Extent) -> None:
        """Take note of bytes that have come ahead of their readers."""
        self._waiting[extent.serial] = extent
        if len(self._waiting) > _WAITING:
            self._waiting.popitem(last=False)
        self._arrived.set()

    def reading(self, inode: int) -> None:
        """Take note that a file is being read: it is too late to push it."""
        self._read[inode] = None
        if len(self._read) > _READ:
            self._read.popitem(last=False)

    async def run(self, push: Push, *, heartbeats: bool) -> None:
        """Have what is offered pushed, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            while self._waiting:
                _, extent = self._waiting.popitem(last=False)
                rows = self._rows(extent, heartbeats)
                if len(rows):
                    assert extent.data is not None
                    files, size = await push(extent.data, rows.tobytes())
                    self._counters.add("push.files", files)
                    self._counters.add("push.bytes", size)

    def _rows(self, extent: Extent, heartbeats: bool) -> npt.NDArray[np.uint64]:
        """Return (inode, start in the extent, length) of the files to be pushed."""
        index, span = extent.ref.index, extent.span
        slots = slots_in(index, span)
        numbers = self._numbers(extent.ref, slots)
        if numbers is None:
            return np.empty((0, 3), np.uint64)
        offsets, blocks, sizes = index.places(slots.start, slots.length)
        starts = offsets + blocks * BLOCK
        chosen = (sizes > 0) & (sizes <= CHUNK) & (offsets >= span.start) & (starts + sizes <= span.stop)
        inodes = np.fromiter(numbers, np.uint64, slots.length)
        chosen &= np.fromiter((inode not in self._read for inode in numbers), np.bool_, slots.length)
        if extent.problems:
            chosen &= ~np.isin(offsets, list(extent.problems))
        if heartbeats:
            beat = _beat(span, slots)
            beats = chosen & ((np.arange(slots.length) + (index.first + slots.start) % beat) % beat == 0)
            self._counters.add("push.heartbeats", int(np.count_nonzero(beats)))
            chosen &= ~beats
        rows = np.column_stack((inodes, (starts - span.start).astype(np.uint64), sizes.astype(np.uint64)))
        return rows[chosen]


def _beat(span: Span, slots: Span) -> int:
    """Return one file in how many is a heartbeat in a stretch."""
    between = min(_BEAT_BYTES, span.length // _BEATS)
    return max(2, min(_BEAT_FILES, between * slots.length // span.length))

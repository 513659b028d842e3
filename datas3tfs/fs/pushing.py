"""Put small files into the kernel's page cache before they are asked for: a READ less for each.

What was fetched ahead, and is right, goes to the kernel file by file, by the worker (worker/serving.py): it
waits while a READ of that file is under way, and the event loop is who answers it. Only files the kernel has
looked up or listed can take it. Of larger files the kernel reads ahead itself, a mebibyte at a time, which
costs less than both (measured).

Where every file is there before it is asked for, and files are not opened at our door (frontloop.py), nobody
would see the reader go by. So some are left out, the *heartbeats*: their READs, answered from memory,
tell how far the reader is, and prefetch keeps its distance.

Reading from the cache is faster than pushing: a reader that has caught up would get a READ answered for each
file, and we would push what it has read. So its READ waits until what follows has a lead (`lead`).

Concurrency: the event loop's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import trio

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.counters import Counters
from datas3tfs.core.reads import slots_in
from datas3tfs.core.spans import Span
from datas3tfs.core.tar import BLOCK
from datas3tfs.engine.blocks import Extent, ObjectRef

_WAITING = 64 << 20  # bytes: what comes faster than it can be pushed is left to READs
_READ = 4096  # files read last, which are in the cache already
_BEAT_FILES = 64  # one file in so many is left out …
_BEAT_BYTES = 4 << 20  # … or in so many bytes, if that is less: a few times in what is fetched ahead …
_BEATS = 3  # … or so many times in a stretch: at first, little is fetched ahead
_TURN = 1 << 20  # bytes pushed until we look again where the readers are …
_TURN_FILES = 4096  # … and files, at most
_LEAD = 2 << 20  # bytes pushed ahead of a reader that has caught up, before it goes on …
_LEAD_SECONDS = 0.02  # … or as long as that takes

# Returns the inode numbers of the datapoints in some slots of an object; None if they are not certain.
Numbers = Callable[[ObjectRef, Span], Sequence[int] | None]
# Pushes files: rows of (inode, start in the block, length), 8 bytes each; says whether these are the last of
# the block; returns (files pushed, their bytes).
Push = Callable[[memoryview, bytes, bool], Awaitable[tuple[int, int]]]


@dataclass(slots=True, eq=False)
class _Job:
    """An extent that is to be pushed, a turn at a time: *rows* from number *at* on, then those before it.
    *turned* is set, and replaced, at the end of each turn."""

    extent: Extent
    rows: npt.NDArray[np.uint64] | None = None  # those that are left, by where they begin
    at: int = 0
    turned: trio.Event = field(default_factory=trio.Event)

    def holds(self, ref: ObjectRef, position: int) -> bool:
        """Say whether the extent has what lies at *position* in an object."""
        return self.extent.ref == ref and position in self.extent.span

    def go_on_after(self, position: int) -> bool:
        """Continue after *position* in the object; say whether there is anything soon."""
        if self.rows is None:
            return True
        start = position - self.extent.span.start
        self.at, until = map(int, np.searchsorted(self.rows[:, 1], [start + 1, start + _LEAD]))
        return self.at < until

    def next_turn(self) -> npt.NDArray[np.uint64]:
        """Take away, and return, rows of about _TURN bytes; none if there are none."""
        assert self.rows is not None
        at = self.at if self.at < len(self.rows) else 0
        count = max(1, int(np.searchsorted(np.cumsum(self.rows[at : at + _TURN_FILES, 2]), _TURN)))
        turn = self.rows[at : at + count]
        self.rows, self.at = np.delete(self.rows, slice(at, at + count), 0), at
        return turn

    def end_turn(self) -> None:
        """Tell those who wait for it."""
        self.turned.set()
        self.turned = trio.Event()


class Pusher:
    """Takes what was fetched ahead and, while `run` runs, has it pushed."""

    def __init__(self, numbers: Numbers, counters: Counters) -> None:
        self._numbers = numbers
        self._counters = counters
        self._jobs: OrderedDict[int, _Job] = OrderedDict()  # by serial number of the extent
        self._bytes = 0  # of their extents
        self._arrived = trio.Event()
        self._turning: tuple[_Job, frozenset[int]] | None = None  # being pushed: of what, and which inodes
        self._urgent: _Job | None = None
        self._read: OrderedDict[int, None] = OrderedDict()  # inodes, last read last

    def offer(self, extent: Extent) -> None:
        """Take note of bytes that have come ahead of their readers."""
        self._jobs[extent.serial] = _Job(extent)
        self._bytes += extent.span.length
        while self._bytes > _WAITING and len(self._jobs) > 1:
            self._drop(next(iter(self._jobs.values())))
        self._arrived.set()

    def reading(self, inode: int) -> None:
        """Take note that a file is being read: it is too late to push it."""
        self._read[inode] = None
        self._read.move_to_end(inode)
        if len(self._read) > _READ:
            self._read.popitem(last=False)

    async def lead(self, ref: ObjectRef, position: int, inode: int) -> None:
        """Return when what follows *position* in an object is pushed for a while, if it is to be; *inode* is
        being read there, which is known from `reading`."""
        job = next((one for one in self._jobs.values() if one.holds(ref, position)), None)
        with trio.move_on_after(_LEAD_SECONDS):
            while job is not None and job.extent.serial in self._jobs:
                turning, inodes = self._turning or (None, frozenset())
                # Pushing a file waits for its READ, which must not wait for that.
                if inode in inodes or not (job.go_on_after(position) or turning is job):
                    return
                self._urgent = job
                await job.turned.wait()

    async def run(self, push: Push, *, heartbeats: bool) -> None:
        """Have what is offered pushed, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            while self._jobs:
                job, self._urgent = self._urgent, None
                if job is None or job.extent.serial not in self._jobs:
                    job = next(iter(self._jobs.values()))
                await self._turn(job, push, heartbeats)

    async def _turn(self, job: _Job, push: Push, heartbeats: bool) -> None:
        """Have a little pushed of what is right of an extent: the reader may be overtaking us."""
        assert job.extent.data is not None
        if job.rows is None:
            job.rows = self._rows(job.extent, heartbeats)
        turn, known = job.next_turn(), True
        unread = np.fromiter((one not in self._read for one in turn[:, 0].tolist()), np.bool_, len(turn))
        if unread.any():
            rows = turn[unread]
            self._turning = job, frozenset(rows[:, 0].tolist())
            files, size = await push(job.extent.data, rows.tobytes(), False)
            self._turning = None
            self._counters.add("push.files", files)
            self._counters.add("push.bytes", size)
            known = files > 0  # else the kernel does not know these files, nor those after them
        if known and len(job.rows):
            job.end_turn()
            return
        job.extent.is_pushed = known
        self._drop(job)
        await push(job.extent.data, b"", True)

    def _drop(self, job: _Job) -> None:
        if self._jobs.pop(job.extent.serial, None) is not None:
            self._bytes -= job.extent.span.length
            job.end_turn()

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
        if extent.problems:
            chosen &= ~np.isin(offsets, list(extent.problems))
        if heartbeats:
            places = np.arange(slots.length) + (index.first + slots.start) % _BEAT_FILES
            beats = chosen & (places % _beat(span, slots.length) == 0)
            self._counters.add("push.heartbeats", int(np.count_nonzero(beats)))
            chosen &= ~beats
        small = np.flatnonzero(chosen)
        inodes = np.fromiter((numbers[i] for i in small.tolist()), np.uint64, len(small))
        columns = inodes, starts[small] - span.start, sizes[small]
        return np.column_stack([column.astype(np.uint64) for column in columns])


def _beat(span: Span, files: int) -> int:
    """Return one file in how many is a heartbeat in a stretch of so many."""
    between = min(_BEAT_BYTES, span.length // _BEATS)
    return max(2, min(_BEAT_FILES, between * files // span.length))

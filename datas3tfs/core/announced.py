"""Decide what to fetch of what was announced: datapoints in the order in which they will be read.

An announcement is worked through in *batches*: the datapoints that come next, as many as fill a share of the
memory for content. Those of a batch are fetched together, as the *stretches* in which they lie in their
objects (`plan_stretches`); the stretch that is needed first goes first, and none much earlier than it is
needed (`Course`). So an order that is random within some range costs few requests if the range fits into a
batch, and one request for each datapoint if they are scattered over terabytes.

What costs: a request takes as much work as the transfer of 256 to 512 KiB. So it is worth reading through
gaps, up to a point: on a slow line the bytes count, and what lies in between takes room from what is wanted.
If all that is announced lies close together and fits into memory, whatever is in between comes along.

How far the reader is, is the furthest datapoint it has read of those in the batches under way; it may leave
some out, and go back. It may even go on somewhere else: `observe` finds it again. Who reads something else
meanwhile changes nothing, as that does not follow the order.

Pure: no clock, no I/O. Whether something is fetched is the business of engine/announcements.py.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from datas3tfs.core.spans import Span

T = TypeVar("T")
Keys = npt.NDArray[np.int64]

# Between datapoints of a batch: saves a request for a sixth of what that costs …
_GAP = 64 * 1024
_OVER_READ = 2  # … and for at most half of the batch on top
# If everything fits: of a dataset of small files that eight readers have shared out among themselves, each
# announces every eighth. One sixteenth of what is fetched is the least that must be wanted.
_DENSE_GAP = 128 * 1024
_SPARSEST = 16
_STRETCHES = 256  # ahead of the reader: 30 ms away, as many hide the latency of 8,000 requests a second
_BATCHES = 16  # planned at a time: two of full size, or many of a program that announces bit by bit
_CHUNK = 4096  # keys kept in an array, at least
_LOST = 64  # reads of something else until the reader is looked for, doubled each time
_TRACE = 8  # of them are looked for …
_NEAR = 1024  # … and must be announced within so many datapoints


@dataclass(frozen=True, slots=True)
class AnnouncedLimits:
    """What may be planned at once, in bytes: *batch*, or *whole* if that is all there is."""

    batch: int = 64 * 1024 * 1024
    whole: int = 128 * 1024 * 1024

    def shared(self, among: int) -> AnnouncedLimits:
        """Return the limits of one of so many announcements. What fits as a whole may be the same for all."""
        return AnnouncedLimits(max(1, self.batch // among), self.whole)


@dataclass(frozen=True, slots=True)
class Places:
    """Where datapoints lie, as columns: the object, by a number, and their bytes in it, headers included."""

    objects: Keys
    starts: Keys
    stops: Keys


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes to be fetched. *first*: which of the datapoints of the batch is the first to need them."""

    object: int
    span: Span
    first: int


def plan_stretches(places: Places, wanted: npt.NDArray[np.bool_], room: int | None) -> list[Run]:
    """Return what to fetch of the *wanted* datapoints of a batch, what is needed first in front.

    *room*: everything that is announced is here, and may take so many bytes with what is in between.
    """
    numbers = np.flatnonzero(wanted)
    if not len(numbers):
        return []
    # By place; of a datapoint that comes several times the first time counts.
    order = numbers[np.lexsort((numbers, places.starts[numbers], places.objects[numbers]))]
    again = np.zeros(len(order), np.bool_)
    again[1:] = (np.diff(places.objects[order]) == 0) & (np.diff(places.starts[order]) == 0)
    order = order[~again]
    objects, starts, stops = places.objects[order], places.starts[order], places.stops[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = ~_joined(objects, starts, stops, room)
    firsts = np.flatnonzero(begins)
    lasts = np.append(firsts[1:], len(order)) - 1
    needed = np.minimum.reduceat(order, firsts)
    columns = (objects[firsts], starts[firsts], stops[lasts], needed)
    runs = [Run(number, Span(start, stop), first) for number, start, stop, first in _rows(columns)]
    return sorted(runs, key=lambda run: run.first)


def _joined(objects: Keys, starts: Keys, stops: Keys, room: int | None) -> npt.NDArray[np.bool_]:
    """Say of each but the first whether it is fetched together with the one before it."""
    gaps, is_same = starts[1:] - stops[:-1], np.diff(objects) == 0
    useful = int((stops - starts).sum())
    dense = is_same & (gaps <= _DENSE_GAP)
    hull = useful + int(gaps[dense].sum())
    if room is not None and hull <= min(room, _SPARSEST * useful):
        found: npt.NDArray[np.bool_] = dense
        return found
    near = np.flatnonzero(is_same & (gaps <= _GAP))
    smallest = near[np.argsort(gaps[near], kind="stable")]
    taken = smallest[np.cumsum(gaps[smallest]) <= useful // _OVER_READ]
    joined = np.zeros(len(gaps), np.bool_)
    joined[taken] = True
    return joined


def _rows(columns: Sequence[Keys]) -> zip[tuple[int, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)


@dataclass(frozen=True, slots=True)
class Stretch(Generic[T]):
    """The bytes *span* of *target*. *position*: the first datapoint of the announcement that needs them."""

    position: int
    target: T
    span: Span


class _Batch(Generic[T]):
    """Datapoints planned together. Of each, where it is in the announcement, and the bytes up to it."""

    def __init__(self, base: int, keys: Keys, sizes: Keys, before: int, stretches: list[Stretch[T]]) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys = array("q", keys[order].tobytes())
        self.positions = array("q", (order + base).astype(np.int64).tobytes())
        self.bytes = array("q", (np.cumsum(sizes) + before).astype(np.int64).tobytes())
        self.base, self.stop = base, base + len(keys)
        self.stretches = stretches
        self.issued = 0

    def position(self, key: int) -> int | None:
        """Return where *key* is in the announcement; the first of several."""
        at = bisect_left(self.keys, key)
        return self.positions[at] if at < len(self.keys) and self.keys[at] == key else None

    @property
    def is_issued(self) -> bool:
        return self.issued == len(self.stretches)


class Course(Generic[T]):
    """One announcement: what of it is still to be planned, what to be fetched, and how far its reader is."""

    def __init__(self) -> None:
        self._waiting: deque[Keys] = deque()
        self._batches: deque[_Batch[T]] = deque()
        self.planned = 0  # position after the last one planned, or left out
        self._bytes = 0
        self.waiting = 0  # datapoints not planned yet
        self.progress = 0  # position after the furthest one read
        self._patience = self._lost = _LOST
        self._trace: deque[int] = deque(maxlen=_TRACE)

    def add(self, keys: Keys) -> None:
        """Append to the announcement: 8 bytes for each, until it is planned."""
        if not len(keys):
            return
        self.waiting += len(keys)
        if self._waiting and len(self._waiting[-1]) < _CHUNK:  # an array takes a hundred bytes of its own
            keys = np.concatenate((self._waiting.pop(), keys))
        self._waiting.append(keys)

    def upcoming(self, start: int, count: int) -> Keys:
        """Return up to *count* of those not planned yet, from the *start*-th of them on."""
        parts: list[Keys] = []
        for chunk in self._waiting:
            if count <= 0:
                break
            part = chunk[start : start + count]
            start, count = max(0, start - len(chunk)), count - len(part)
            parts.append(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def plan(self, sizes: Keys, stretches: list[Stretch[T]]) -> None:
        """Make a batch of the next datapoints, of which *sizes* has the lengths, one at least. The positions
        of *stretches* count from its first."""
        count = len(sizes)
        keys, base = self.upcoming(0, count), self.planned
        self._drop(count)
        placed = [Stretch(base + one.position, one.target, one.span) for one in stretches]
        self._batches.append(_Batch(base, keys, sizes, self._bytes, placed))
        self.planned += count
        self._bytes += int(sizes.sum())

    def wants_more(self, ahead: int) -> bool:
        """Say whether it is time to plan another batch: what is planned ends within *ahead* bytes."""
        if not self.waiting or len(self._batches) >= _BATCHES:
            return False
        return self._bytes - self._bytes_read() <= ahead

    def due(self, ahead: int) -> Stretch[T] | None:
        """Return the next stretch, if it is needed within *ahead* bytes; `issued` takes it off."""
        batch = next((batch for batch in self._batches if not batch.is_issued), None)
        if batch is None:
            return None
        found = batch.stretches[batch.issued]
        if found.position <= self.progress:
            return found
        far = batch.bytes[found.position - batch.base] - self._bytes_read() > ahead
        return None if far or self._issued_ahead() >= _STRETCHES else found

    def issued(self) -> None:
        """Take note that the stretch that was due is being fetched."""
        next(batch for batch in self._batches if not batch.is_issued).issued += 1

    def forget_waiting(self) -> int:
        """Drop what is not planned yet; return how many that were."""
        count, self.waiting = self.waiting, 0
        self._waiting.clear()
        return count

    @property
    def is_issued(self) -> bool:
        """Say whether everything so far is being fetched, or was."""
        return not self.waiting and all(batch.is_issued for batch in self._batches)

    def observe(self, key: int) -> bool:
        """Take note that *key* was read; say whether that was announced, and is planned."""
        for batch in self._batches:
            position = batch.position(key)
            if position is not None:
                self.progress = max(self.progress, position + 1)
                self._patience = self._lost = _LOST
                self._trace.clear()
                while len(self._batches) > 1 and self.progress > self._batches[0].stop:
                    self._batches.popleft()
                return True
        self._miss(key)
        return False

    def _bytes_read(self) -> int:
        for batch in self._batches:
            if batch.base < self.progress <= batch.stop:
                return batch.bytes[self.progress - batch.base - 1]
        return self._batches[0].bytes[0] if self._batches else self._bytes

    def _issued_ahead(self) -> int:
        """Return how many stretches are fetched that the reader has not come to."""
        count = 0
        for batch in self._batches:
            passed = bisect_left(batch.stretches, self.progress, 0, batch.issued, key=lambda s: s.position)
            count += batch.issued - passed
        return count

    def _miss(self, key: int) -> None:
        """Look for a reader who goes on somewhere else: several reads running, announced close together."""
        if not self.waiting:
            return
        self._trace.append(key)
        self._patience -= 1
        if self._patience > 0:
            return
        self._patience = self._lost = 2 * self._lost
        every = np.concatenate(list(self._waiting))
        found = np.flatnonzero(np.isin(every, np.fromiter(self._trace, np.int64)))
        close = np.flatnonzero(found[_TRACE - 1 :] - found[: 1 - _TRACE] < _NEAR)
        if len(close):
            skipped = int(found[close[0]])
            self._drop(skipped)
            self.planned += skipped
            self._batches.clear()
            self.progress = self.planned

    def _drop(self, count: int) -> None:
        self.waiting -= count
        while count:
            chunk = self._waiting.popleft()
            if len(chunk) > count:
                self._waiting.appendleft(chunk[count:])
            count -= min(count, len(chunk))

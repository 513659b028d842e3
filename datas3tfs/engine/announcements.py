"""Fetch ahead what programs have announced, each in the order in which it will read.

An announcement belongs to who made it: several go side by side, even of one dataset, and share the memory
evenly. Which bytes, and when, is core/announced.py's to say; here indices are loaded, what is in the pool
already is left out, and the pool is asked for the rest. Not for how announcements arrive (fs/control.py).

Nothing here waits for ever, and nothing grows without limit: keys cost 8 bytes until it is their turn, and
there are `_KEYS` of them at most; who announces more waits, as long as somebody reads what was announced
before. Of what nobody reads a first part is fetched, which the pool may drop, and the rest is forgotten
after `_IDLE_SECONDS`.
Event loop only; each announcement has a task of its own.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import trio

from datas3tfs.core.announced import AnnouncedLimits, Course, Stretch, plan_stretches
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import DatasetId
from datas3tfs.core.reads import cut
from datas3tfs.core.spans import Span
from datas3tfs.engine.blocks import BlockPool, ObjectRef
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.placing import existing, locate, missing
from datas3tfs.engine.snapshot import Snapshots
from datas3tfs.engine.tree import OpenDatapoint
from datas3tfs.errors import Datas3tError

log = logging.getLogger(__name__)

_REQUEST = 8 * 1024 * 1024  # bytes per range request, as the prefetcher's
_KEYS = 4 * 1024 * 1024  # announced and not planned yet, in all: 32 MiB
_RUNNING = 64  # announcements; the one that nobody has read for longest gives way
_PATIENCE = 10.0  # seconds until who announces more than there is room for goes on, in vain
_IDLE_SECONDS = 600.0  # an epoch may pause for an evaluation
_DONE_SECONDS = 60.0  # to notice reads of what is all fetched: not every read is seen
_ACTIVE_SECONDS = 30.0  # since the last read, until others get the share
_QUIET = 0.02  # seconds without more keys, until those that are here are planned
_PAUSES = 5  # at most, or who announces without a pause would wait for ever
_MANY = 64 * 1024  # keys that are planned without waiting for more
_AGAIN = 0.02  # seconds after which a pool that had no room is asked again …
_REFUSED = 100  # … so often


@dataclass(slots=True)
class Announcement:
    """What one program has announced of one dataset; made by `Announcements.begin`, and its alone."""

    dataset_id: DatasetId
    last_read: float
    course: Course[ObjectRef] = field(default_factory=Course)
    ahead: int = 0  # bytes to fetch ahead, when that was last looked at
    granted: int = 0  # bytes it may take because all of it fits
    ended: bool = False  # nothing will be added
    news: trio.Event = field(default_factory=trio.Event)
    known: int = 0  # keys that there are …
    unknown: int = 0  # … and are not …
    dropped: int = 0  # … and that came to nothing, as nobody reads

    @property
    def is_done(self) -> bool:
        """Say whether all of it was read, as far as can be seen."""
        return self.ended and self.course.is_issued and self.course.progress >= self.course.planned

    @property
    def has_work(self) -> bool:
        """Say whether there is something to do now: its task is not woken for every read."""
        course = self.course
        return self.is_done or course.due(self.ahead) is not None or course.wants_more(self.ahead)


class Announcements:
    """All announcements of a mount; made by `open_announcements`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        pool: BlockPool,
        indices: Indices,
        snapshots: Snapshots,
        limits: AnnouncedLimits,
        counters: Counters,
    ) -> None:
        self._nursery = nursery
        self._pool = pool
        self._indices = indices
        self._snapshots = snapshots
        self._limits = limits
        self._largest = max(1, min(_REQUEST, limits.whole // 4))  # bytes of a request
        self._counters = counters
        self._running: dict[DatasetId, list[Announcement]] = {}
        self._room_made = trio.Event()

    def __iter__(self) -> Iterator[Announcement]:
        return (one for every in self._running.values() for one in every)

    def begin(self, dataset_id: DatasetId) -> Announcement:
        """Begin an announcement; `end` must follow."""
        if len(running := list(self)) >= _RUNNING:
            self._remove(min(running, key=lambda one: (not one.ended, one.last_read)))
        made = Announcement(dataset_id, trio.current_time())
        self._running.setdefault(dataset_id, []).append(made)
        self._counters.add("announce.streams")
        self._nursery.start_soon(self._follow, made)
        return made

    async def add(self, one: Announcement, keys: list[int]) -> None:
        """Append *keys* to an announcement; those that do not exist are counted and left out. Waits while
        there is no room; who has once waited in vain does not wait again."""
        left = np.array(keys, np.int64)
        while len(left):
            room = _KEYS - sum(other.course.waiting for other in self)
            if not self._is_running(one) or (room <= 0 and (one.dropped or not await self._room_is_made())):
                self._drop(one, len(left))
                return
            part, left = left[: max(0, room)], left[max(0, room) :]
            try:
                known = existing(await self._snapshots.of(one.dataset_id), part)
            except Datas3tError:
                known = part[:0]
            one.known += len(known)
            one.unknown += len(part) - len(known)
            self._counters.add("announce.datapoints", len(known))
            self._counters.add("announce.unknown", len(part) - len(known))
            one.course.add(known)
            one.news.set()

    def end(self, one: Announcement) -> None:
        """Say that nothing will be added."""
        one.ended = True
        one.news.set()

    def observe(self, file: OpenDatapoint) -> bool:
        """Take note that *file* is read; say whether that was announced."""
        if not self._running:
            return False
        found = False
        for one in self._running.get(file.dataset.id, ()):
            before = one.course.progress
            if one.course.observe(file.entry.key):
                one.last_read = trio.current_time()
                found = True
            if one.course.progress != before and one.has_work:
                one.news.set()
        if found:
            self._counters.add("announce.read")
        return found

    async def _room_is_made(self) -> bool:
        """Wait until keys were planned, or forgotten; say whether they were."""
        made = self._room_made
        with trio.move_on_after(_PATIENCE):
            await made.wait()
        return made.is_set()

    def _tell_of_room(self) -> None:
        self._room_made.set()
        self._room_made = trio.Event()

    def _is_running(self, one: Announcement) -> bool:
        return one in self._running.get(one.dataset_id, ())

    def _drop(self, one: Announcement, count: int) -> None:
        if count:
            if not one.dropped:
                log.info("an announcement is not fetched ahead to its end: nobody reads in time")
            one.dropped += count
            self._counters.add("announce.dropped", count)

    def _remove(self, one: Announcement) -> None:
        every = self._running.get(one.dataset_id, [])
        if one in every:
            every.remove(one)
            if not every:
                del self._running[one.dataset_id]
        self._drop(one, one.course.forget_waiting())
        one.news.set()
        self._tell_of_room()

    # -- one announcement's task ---------------------------------------------------------------------

    async def _follow(self, one: Announcement) -> None:
        try:
            refused = 0
            while self._is_running(one) and not one.is_done:
                one.news = trio.Event()
                one.ahead = self._limits_of(one).batch // 2
                refused = 0 if self._request_due(one) else refused + 1
                if refused > _REFUSED:  # more than may ever be on its way
                    one.course.issued()
                elif one.course.wants_more(one.ahead):
                    await self._settled(one)
                    await self._plan(one)
                elif not one.is_done:
                    await self._next_news(one, bool(refused))
        except Datas3tError as exc:
            log.info("an announcement is given up: %s", exc)
        except Exception:  # a bug, or input nobody thought of; it must not end the mount
            log.exception("unexpected failure; please report it")
        finally:
            self._remove(one)

    async def _next_news(self, one: Announcement, is_refused: bool) -> None:
        """Wait for something to do; give up what nobody reads."""
        idle = _DONE_SECONDS if one.ended and one.course.is_issued else _IDLE_SECONDS
        with trio.move_on_after(_AGAIN if is_refused else idle):
            await one.news.wait()
            return
        if is_refused:
            return
        if one.ended:
            self._remove(one)
        else:
            self._drop(one, one.course.forget_waiting())
            self._tell_of_room()

    def _limits_of(self, one: Announcement) -> AnnouncedLimits:
        since = trio.current_time() - _ACTIVE_SECONDS
        return self._limits.shared(sum(other is one or other.last_read > since for other in self))

    def _request_due(self, one: Announcement) -> bool:
        """Ask the pool for what is due; say whether it had room for all of that."""
        while (due := one.course.due(one.ahead)) is not None:
            if not self._pool.request(due.target, due.span):
                return False
            one.course.issued()
        return True

    async def _settled(self, one: Announcement) -> None:
        """Wait for what is being announced right now: planned together, it takes fewer requests."""
        for _ in range(_PAUSES):
            before = one.course.waiting
            if one.ended or before >= _MANY:
                return
            await trio.sleep(_QUIET)
            if one.course.waiting == before:
                return

    async def _plan(self, one: Announcement) -> None:
        """Plan the next batch, unless its reader turns out to be somewhere else meanwhile."""
        course, planned = one.course, one.course.planned
        snapshot = await self._snapshots.of(one.dataset_id)
        found = await locate(snapshot, self._indices, course.upcoming, self._limits_of(one), self._largest)
        wanted = await missing(self._pool, found)
        room = None
        if found.is_all:
            room = self._limits.whole - sum(other.granted for other in self if other is not one)
        runs = await trio.to_thread.run_sync(plan_stretches, found.places, wanted, room)
        if course.planned != planned or course.waiting < len(found.sizes):
            return
        stretches = [
            Stretch(run.first, found.refs[run.object], span)
            for run in runs
            for span in self._cut(found.refs[run.object], run.span)
        ]
        one.granted = sum(stretch.span.length for stretch in stretches) if found.is_all else 0
        course.plan(found.sizes, stretches)
        self._tell_of_room()

    def _cut(self, ref: ObjectRef, span: Span) -> list[Span]:
        return [span] if span.length <= self._largest else cut(ref.index, span, self._largest)


@asynccontextmanager
async def open_announcements(
    pool: BlockPool, indices: Indices, snapshots: Snapshots, limits: AnnouncedLimits, counters: Counters
) -> AsyncIterator[Announcements]:
    """Own the tasks that fetch what is announced; leaving cancels them."""
    async with background_nursery() as nursery:
        yield Announcements(nursery, pool, indices, snapshots, limits, counters)

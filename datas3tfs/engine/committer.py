"""When uncommitted files become dataranges, and what happens when that fails.

A *wave* takes what is ready of one dataset, plans it into batches of contiguous keys and commits these side
by side; what arrives meanwhile shares the next wave, so that any number of fsyncs at once cost one or two
commits. An *attempt* is one batch: while it lasts its entries stand still (COMMITTING). An error that may
pass puts them back; one that will not (keys lost, content damaged) refuses the entries it concerns, which
are kept in the journal and reported.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from datas3tfs.core.batches import plan_batches
from datas3tfs.core.model import DatasetId
from datas3tfs.engine.attempt import Attempt, Attempts, Unreadable
from datas3tfs.engine.entries import Entry, EntryState
from datas3tfs.engine.journal import Journal
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.errors import (
    Conflict,
    Corrupt,
    Datas3tError,
    Forbidden,
    Full,
    Invalid,
    NotFound,
    Unavailable,
)

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 1.0  # a file closed this short ago may still get its times or another name
_STEP_SECONDS = 0.05  # at most so often is looked whether something is due
_RETRY_FIRST, _RETRY_LAST = 1.0, 30.0  # pause after a failure, doubled each time
_RELEASE_SECONDS, _RELEASE_PAUSE = 0.5, 0.01
_AT_ONCE = 4  # attempts under way; each holds a few parts in memory
_LARGE_AT_ONCE = 2  # attempts at single large files, besides
_WAVE_LIMIT = 32  # batches in a wave: who needs a commit just after it has begun waits for its end
_COUNT_LIMIT = 100_000  # datapoints in a datarange, for the time a listing's first look at it takes
_PATIENCE = 4  # times the batch age: so long may a run wait for its neighbours
_MANY_RUNS = 16  # more than this: keys arrive in no order, and what is missing between them may come yet …
_SCATTERED_PATIENCE = 12  # … for so many times the batch age, if they go on arriving
_PAUSE_SECONDS = 0.25  # between looks at a dataset with nothing to commit yet


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When a batch is due: this many bytes, or its oldest file closed this many seconds ago."""

    size: int
    age: float


@dataclass(slots=True)
class _Queue:
    """What the committer knows of one dataset."""

    wave: bool = False  # one is under way
    failed_at: float = 0.0
    retry_at: float = 0.0
    pause: float = _RETRY_FIRST
    next_look: float = 0.0
    scattered_until: float = 0.0  # until then is waited for what is missing, unless somebody is in a hurry


@dataclass(slots=True)
class _Failed:
    """What an attempt of a wave has failed of."""

    of: Datas3tError | None = None


class Committer:
    """Commits a journal's entries; made by `open_committer`."""

    def __init__(
        self, nursery: trio.Nursery, journal: Journal, attempts: Attempts, limits: BatchLimits
    ) -> None:
        self._nursery = nursery
        self._journal = journal
        self._attempts = attempts
        self._limits = limits
        self._slots = trio.CapacityLimiter(_AT_ONCE)
        self._large_slots = trio.CapacityLimiter(_LARGE_AT_ONCE)
        self._queues: dict[DatasetId, _Queue] = {}
        self._demanded: Counter[Entry] = Counter()
        self._draining = False

    async def run(self) -> None:
        """Commit what is due, for ever."""
        while True:
            deadline = self._start_waves(trio.current_time())
            with trio.move_on_at(deadline):
                await self._journal.backlog.changes()
            await trio.sleep(0 if self._demanded else _STEP_SECONDS)

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Commit *entries*, accepted, now; return when they are committed (or removed by somebody).

        Raises the first error when all have been tried."""
        problem: Datas3tError | None = None
        for entry in entries:
            self._demanded[entry] += 1
            if entry.state is EntryState.JOURNALED:
                entry.problem = None
        self._journal.backlog.poke()
        try:
            for entry in entries:
                try:
                    await self._committed(entry)
                except Datas3tError as exc:
                    problem = problem or exc
        finally:
            for entry in entries:
                self._demanded[entry] -= 1
                if not self._demanded[entry]:
                    del self._demanded[entry]
        if problem is not None:
            raise problem

    async def commit_closed(self, dataset_id: DatasetId | None = None) -> None:
        """Commit all that is closed, of one dataset or of all. Raises the first error."""
        await self._released()
        problem = await self._journal.accept_left(dataset_id)
        wanted = [
            entry
            for entry in self._journal.entries
            if entry.key is not None
            and not entry.writers
            and entry.safe is not None
            and dataset_id in (None, entry.dataset_id)
        ]
        await self.commit(wanted)
        if problem is not None:
            raise problem

    async def _released(self) -> None:
        """Wait a moment for what has just been closed: the kernel says that a handle is gone only after its
        close() has returned. Until then it looks like one that is open and was not written to since."""
        with trio.move_on_after(_RELEASE_SECONDS):
            while any(_seems_open(entry) for entry in self._journal.entries):  # noqa: ASYNC110 — no event per handle
                await trio.sleep(_RELEASE_PAUSE)

    async def drain(self) -> None:
        """Commit all that is closed, however young. Raises what it failed of."""
        self._draining = True
        await self.commit_closed()

    async def _committed(self, entry: Entry) -> None:
        while entry.linked and entry.key is not None and entry.state is not EntryState.COMMITTED:
            if entry.problem is not None:
                raise _again(entry, entry.problem)
            ended = trio.Event()
            entry.waiters.append(ended)
            await ended.wait()

    # -- waves -----------------------------------------------------------------------------------------

    def _start_waves(self, now: float) -> float:
        """Start the waves that are due; return when the next will be."""
        deadline = math.inf
        waited_for = {e.dataset_id for e in self._demanded if e.linked and e.state is EntryState.JOURNALED}
        for dataset_id in self._journal.entries.datasets():
            queue = self._queues.setdefault(dataset_id, _Queue())
            if queue.wave:
                continue
            due = queue.next_look if dataset_id in waited_for else self._due(dataset_id, queue)
            if due <= now:
                queue.wave = True
                self._nursery.start_soon(self._wave, dataset_id, queue)
            else:
                deadline = min(deadline, due)
        return deadline

    def _due(self, dataset_id: DatasetId, queue: _Queue) -> float:
        pending = self._journal.backlog.pending(dataset_id)
        hurry = self._is_hurried() or pending.bytes >= self._limits.size
        due = pending.oldest + (0 if hurry else self._limits.age)
        # Who waits for room has less patience than the longest pause.
        is_pressing = self._journal.quota.is_awaited
        retry_at = min(queue.retry_at, queue.failed_at + _RETRY_FIRST) if is_pressing else queue.retry_at
        return max(retry_at, queue.next_look, due, 0.0 if self._is_hurried() else queue.scattered_until)

    def _is_hurried(self) -> bool:
        return self._draining or not self._journal.quota.has_room(0)

    async def _wave(self, dataset_id: DatasetId, queue: _Queue) -> None:
        try:
            await self._accept_demanded(dataset_id)
            batches = self._plan(dataset_id, queue)
            await self._commit_batches(batches[:_WAVE_LIMIT], queue)
            self._compact()
            # What could not be taken now (being renamed, written on) is looked for again soon.
            pause = 0.0 if len(batches) > _WAVE_LIMIT else _STEP_SECONDS if batches else _PAUSE_SECONDS
            queue.next_look = trio.current_time() + pause
        finally:
            queue.wave = False
            self._look_again(dataset_id)

    def _look_again(self, dataset_id: DatasetId) -> None:
        self._journal.backlog.recount(dataset_id)
        self._journal.backlog.poke()

    async def _accept_demanded(self, dataset_id: DatasetId) -> None:
        """Make what was written since fsync was called part of it, if the file is still being written."""
        for entry in list(self._demanded):
            if entry.dataset_id == dataset_id and entry.changed:
                try:
                    await self._journal.accept(entry)
                except Datas3tError as exc:
                    entry.problem = exc
                    entry.wake()

    def _plan(self, dataset_id: DatasetId, queue: _Queue) -> list[list[Entry]]:
        now, hurry = trio.current_time(), self._is_hurried()
        settled = now - min(_SETTLE_SECONDS, self._limits.age)
        old = now - _PATIENCE * self._limits.age
        ready: list[Entry] = []
        forced: set[Entry] = set()
        unfinished: set[int] = set()
        latest = -math.inf
        for entry in self._journal.entries.in_order(dataset_id):
            demanded = entry in self._demanded
            quiet = not entry.writers and (hurry or entry.quiet_since <= settled)
            latest = max(latest, entry.quiet_since)
            if entry.is_committable and (demanded or quiet):
                ready.append(entry)
                if demanded or hurry or entry.quiet_since <= old:
                    forced.add(entry)
            elif entry.key is not None and entry.state is EntryState.JOURNALED:
                unfinished.add(entry.key)
        batches = plan_batches(
            ready,
            bytes_limit=self._limits.size,
            count_limit=_COUNT_LIMIT,
            unfinished=unfinished,
            forced=forced,
        )
        queue.scattered_until = 0.0
        if len(batches) > _MANY_RUNS and not hurry:
            batches = self._worth_it(batches, queue, latest)
        return sorted(batches, key=lambda batch: not self._is_demanded(batch))

    def _worth_it(self, batches: list[list[Entry]], queue: _Queue, latest: float) -> list[list[Entry]]:
        """Of many short runs, return those that somebody waits for and those that are long, if what is
        missing between the others may come yet; *latest* is when the last file came."""
        oldest = min(entry.quiet_since for batch in batches for entry in batch)
        until = min(latest + self._limits.age, oldest + _SCATTERED_PATIENCE * self._limits.age)
        if until <= trio.current_time():
            return batches
        queue.scattered_until = until
        return [batch for batch in batches if self._is_demanded(batch) or self._is_full(batch)]

    def _is_demanded(self, batch: Sequence[Entry]) -> bool:
        return any(entry in self._demanded for entry in batch)

    def _is_full(self, batch: Sequence[Entry]) -> bool:
        return sum(entry.size for entry in batch) >= self._limits.size

    async def _commit_batches(self, batches: Iterable[list[Entry]], queue: _Queue) -> None:
        """Attempt all batches; return when the small ones have ended.

        A large file goes its own way, so that a wave of small ones does not wait for it.
        """
        failed = _Failed()
        async with trio.open_nursery() as nursery:
            for batch in batches:
                attempt = self._attempts.start(batch)
                if len(batch) == 1 and batch[0].size > self._limits.size:
                    self._nursery.start_soon(self._run_alone, attempt, queue)
                else:
                    nursery.start_soon(self._run, attempt, queue, self._slots, failed)

    async def _run_alone(self, attempt: Attempt, queue: _Queue) -> None:
        await self._run(attempt, queue, self._large_slots, _Failed())
        self._look_again(attempt.dataset_id)

    async def _run(
        self, attempt: Attempt, queue: _Queue, slots: trio.CapacityLimiter, failed: _Failed
    ) -> None:
        async with slots:
            if failed.of is not None:  # what keeps one of a wave from S3 or Postgres keeps all
                self._attempts.put_back(attempt.entries, failed.of)
                return
            problem = await self._attempts.run(attempt)
        if problem is None:
            queue.pause = _RETRY_FIRST
            return
        if not isinstance(problem, Unreadable):
            failed.of = problem
        now = queue.failed_at = trio.current_time()
        if queue.retry_at <= now:  # else another of the wave has just failed
            queue.retry_at = now + queue.pause
            queue.pause = min(2 * queue.pause, _RETRY_LAST)

    def _compact(self) -> None:
        try:
            self._journal.compact()
        except Datas3tError as exc:
            log.warning("the journal's log could not be compacted yet: %s", exc)


def _seems_open(entry: Entry) -> bool:
    return (
        entry.writers > 0
        and entry.safe is not None
        and not entry.changed
        and entry.key is not None
        and entry.state is EntryState.JOURNALED
    )


def _again(entry: Entry, problem: Datas3tError) -> Datas3tError:
    """Return the error of an entry, to be raised by one of many who wait."""
    text = f"{entry.dataset}/{entry.name}: not committed: {problem}"
    for kind in (Full, Unavailable, Conflict, NotFound, Corrupt, Forbidden):
        if isinstance(problem, kind):
            return kind(text)
    return Invalid(text)


@asynccontextmanager
async def open_committer(
    journal: Journal, attempts: Attempts, limits: BatchLimits
) -> AsyncIterator[Committer]:
    """Commit in the background. Leaving stops at once: an attempt under way is abandoned."""
    async with background_nursery() as nursery:
        committer = Committer(nursery, journal, attempts, limits)
        nursery.start_soon(committer.run)
        nursery.start_soon(journal.keep_accepting)
        yield committer

"""The keys this journal holds in Postgres, mirrored in memory, so that most creates need no SQL.

Keys are leased in runs: who creates keys in ascending order gets the next ones ahead, as many as it will
use in half a second, and before they run out more of them, in the background; what is not used for a second
is given back. So a key that nobody writes is blocked for others for a moment only, and `holding` waits that
moment before it says that a key is taken.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from datas3tfs.core.model import DatasetId, HolderId
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.spans import Span
from datas3tfs.core.spanset import SpanSet
from datas3tfs.engine.entries import Entries
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.snapshot import Snapshots
from datas3tfs.errors import Conflict, Datas3tError, NotFound, Unavailable
from datas3tfs.ports import Leases

log = logging.getLogger(__name__)

_RENEW_SECONDS = 60.0  # a holder expires after ten minutes without renewal
_AHEAD_SECONDS = 0.5  # how much creating is leased in one go …
_AHEAD_LIMIT = 1024  # … but never more keys
_GROWTH = 4  # times what was created in order so far: a new run waits for Postgres six times until it is long
_AHEAD_LOW = 4  # if no more than a fourth of that is left, more is leased before it is needed
_IDLE_SECONDS = 1.0  # what is leased ahead, and not used for so long, is given back
_TAKEN_SECONDS = 2.5  # how long a key must be taken to be so: longer than others hold keys ahead
_TAKEN_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class _Taking:
    """Keys being leased ahead."""

    keys: Span
    ended: trio.Event


@dataclass(slots=True)
class _Held:
    """The keys held of one dataset, and how they were asked for of late."""

    keys: SpanSet = field(default_factory=SpanSet)
    accepted: SpanSet = field(default_factory=SpanSet)  # … those that expiry gives to nobody
    doubtful: SpanSet = field(default_factory=SpanSet)  # … those that were perhaps given back
    wanted: Counter[int] = field(default_factory=Counter)  # keys that are about to get an entry
    ahead: deque[tuple[float, Span]] = field(default_factory=deque)  # when which keys were taken of late
    released: trio.Event | None = None  # set when the release under way has ended
    due: Span | None = None  # what is worth leasing ahead
    taking: _Taking | None = None  # what is being leased ahead
    refused: set[int] = field(default_factory=set)  # from where on nothing could be leased ahead, of late
    last_key: int = -2
    last_at: float = -1e9
    streak: int = 0  # consecutive keys in a row
    interval: float = _AHEAD_SECONDS  # seconds between creates, smoothed


class KeyLeases:
    """Holds keys for the entries of one journal."""

    def __init__(
        self, leases: Leases, holder: HolderId, place: str, entries: Entries, snapshots: Snapshots
    ) -> None:
        self._leases = leases
        self._holder = holder
        self._place = place
        self._entries = entries
        self._snapshots = snapshots
        self._held: dict[DatasetId, _Held] = {}
        self._is_due = trio.Event()

    @property
    def holder(self) -> HolderId:
        """Whose they are."""
        return self._holder

    def know(self, dataset_id: DatasetId, keys: Span, *, accepted: bool) -> None:
        """Take note of keys that are held (at the beginning, or again after a failed commit)."""
        held = self._held.setdefault(dataset_id, _Held())
        held.keys.add(keys)
        held.doubtful.remove(keys)
        if accepted:
            held.accepted.add(keys)

    def part_with(self, dataset_id: DatasetId, keys: Span) -> None:
        """Take note that keys are held no longer: they are committed."""
        if (held := self._held.get(dataset_id)) is not None:
            held.keys.remove(keys)
            held.accepted.remove(keys)
            held.doubtful.remove(keys)

    def holds(self, dataset_id: DatasetId, key: int) -> bool:
        """Say whether a key is held."""
        return dataset_id in self._held and key in self._held[dataset_id].keys

    def is_at_hand(self, dataset_id: DatasetId, key: int) -> bool:
        """Say whether *key* is held for who gives it an entry before anything is awaited; take note of the
        create, if so. If not, there is `holding`."""
        held = self._held.get(dataset_id)
        if held is None or key not in held.keys or key in held.doubtful:
            return False
        if _in_the_way(held, key) is not None:
            return False
        ahead = _ahead(held, key, trio.current_time())
        stop = held.keys.stop_after(key) or KEY_LIMIT
        is_low = stop - key <= ahead // _AHEAD_LOW and stop < KEY_LIMIT
        if is_low and stop not in held.refused and held.taking is None:
            held.due = Span(stop, min(key + ahead, KEY_LIMIT))
            self._is_due.set()
        return True

    @asynccontextmanager
    async def holding(self, dataset_id: DatasetId, key: int) -> AsyncIterator[None]:
        """Hold *key* for the length of the block, in which it gets an entry; that keeps it held.

        Raises Conflict (taken), NotFound, Unavailable.
        """
        held = self._held.setdefault(dataset_id, _Held())
        ahead = _ahead(held, key, trio.current_time())
        held.wanted[key] += 1
        try:
            while (busy := _in_the_way(held, key)) is not None:
                await busy.wait()
            if key not in held.keys or key in held.doubtful:
                await self._take(dataset_id, Span(key, min(key + ahead, KEY_LIMIT)))
            held.last_at = trio.current_time()  # what it has waited here is not its pace
            yield
        finally:
            held.wanted[key] -= 1
            if not held.wanted[key]:
                del held.wanted[key]

    async def _take(self, dataset_id: DatasetId, wanted: Span) -> None:
        deadline = trio.current_time() + _TAKEN_SECONDS
        enrolled = False
        while True:
            try:
                lease = await self._leases.take(self._holder, dataset_id, wanted, accepted=wanted.length > 1)
            except NotFound:
                if enrolled:
                    raise
                # A holder that was not heard of for long (a suspended machine) and held nothing is forgotten.
                await self._enrol()
                enrolled = True
            except Conflict:
                if trio.current_time() > deadline or await self._is_committed(dataset_id, wanted.start):
                    raise
                await trio.sleep(_TAKEN_PAUSE)
            else:
                self.know(dataset_id, lease.keys, accepted=lease.accepted)
                self._held[dataset_id].ahead.append((trio.current_time(), lease.keys))
                return

    async def _is_committed(self, dataset_id: DatasetId, key: int) -> bool:
        return (await self._snapshots.of(dataset_id)).position(key) is not None

    async def accept(self, dataset_id: DatasetId, key: int) -> None:
        """Make sure that nobody can take *key* over, whatever becomes of us. Raises Conflict (somebody
        has), NotFound (dataset), Unavailable."""
        held = self._held.get(dataset_id)
        if held is not None and key in held.accepted and key not in held.doubtful:
            return
        only = Span(key, key + 1)
        try:
            await self._leases.accept(self._holder, dataset_id, key)
        except Conflict:
            # It has expired (a suspended machine); if nobody has taken it since, it can be ours again.
            await self._enrol()
            await self._leases.take(self._holder, dataset_id, only, accepted=True)
        self.know(dataset_id, only, accepted=True)

    async def keep(self) -> None:
        """Renew, lease ahead, and give back what is idle, for ever."""
        async with background_nursery() as nursery:
            nursery.start_soon(self._keep_ahead)
            await self._keep_renewed()

    async def _keep_ahead(self) -> None:
        while True:
            await self._is_due.wait()
            self._is_due = trio.Event()
            for dataset_id, held in list(self._held.items()):
                while held.released is not None:  # it might free what was taken since
                    await held.released.wait()
                if held.due is not None:
                    await self._take_ahead(dataset_id, held, held.due)

    async def _take_ahead(self, dataset_id: DatasetId, held: _Held, wanted: Span) -> None:
        held.due, held.taking = None, _Taking(wanted, trio.Event())
        try:
            lease = await self._leases.take(self._holder, dataset_id, wanted, accepted=True)
        except Datas3tError as exc:
            log.debug("dataset %d: no keys are leased ahead: %s", dataset_id, exc)
            held.refused.add(wanted.start)
            if isinstance(exc, Unavailable):
                _doubt(held, wanted)
        else:
            self.know(dataset_id, lease.keys, accepted=lease.accepted)
            held.ahead.append((trio.current_time(), lease.keys))
        finally:
            held.taking.ended.set()
            held.taking = None

    async def _keep_renewed(self) -> None:
        renewed = trio.current_time()
        while True:
            await trio.sleep(_IDLE_SECONDS / 2)
            try:
                if trio.current_time() - renewed >= _RENEW_SECONDS:
                    renewed = await self._renewed()
                await self.release_idle()
            except Datas3tError as exc:
                log.debug("leases could not be looked after yet: %s", exc)

    async def _renewed(self) -> float:
        """Renew; return when. Raises Unavailable."""
        try:
            await self._enrol()
        except Conflict as exc:
            log.error("%s: there is a copy of this journal, which has taken its place: %s", self._place, exc)
        return trio.current_time()

    async def _enrol(self) -> None:
        """Put off expiry. Raises Conflict if a copy of the journal has been opened when this one was thought
        to be dead: it has the leases then, and they are not taken back."""
        await self._leases.enrol(self._holder, self._place, alone=True)

    async def dismiss(self) -> None:
        """Give everything back, unless a copy of the journal has it now. Raises Unavailable."""
        await self._leases.dismiss(self._holder, self._place)

    async def release_idle(self) -> None:
        """Give back keys without an entry that were not taken of late. Raises Unavailable."""
        before = trio.current_time() - _IDLE_SECONDS
        for dataset_id, held in list(self._held.items()):
            held.refused.clear()
            while held.ahead and held.ahead[0][0] <= before:
                held.ahead.popleft()
            await self._release(dataset_id, held, [keys for _, keys in held.ahead])

    async def release_unused(self, dataset_id: DatasetId) -> None:
        """Give back all keys of a dataset without an entry. Raises Unavailable."""
        held = self._held.get(dataset_id)
        if held is not None:
            while held.taking is not None:
                await held.taking.ended.wait()
            held.due = None
            held.ahead.clear()
            await self._release(dataset_id, held, [])

    async def _release(self, dataset_id: DatasetId, held: _Held, kept: list[Span]) -> None:
        if held.released is not None or held.taking is not None:
            return
        unused = _unused(held, self._entries, dataset_id, kept)
        if not unused:
            return
        held.released = trio.Event()
        try:
            for keys in unused:
                self.part_with(dataset_id, keys)
                await self._leases.release(self._holder, dataset_id, keys)
        except Unavailable:
            _doubt(held, keys)
            raise
        finally:
            held.released.set()
            held.released = None


def _in_the_way(held: _Held, key: int) -> trio.Event | None:
    """Return what to wait for before it is known whether *key* is held."""
    if held.released is not None:  # the key might be freed after it was asked for
        return held.released
    return held.taking.ended if held.taking is not None and key in held.taking.keys else None


def _doubt(held: _Held, keys: Span) -> None:
    """Take note that *keys* are held perhaps: who wants one asks again, else they are given back (again)."""
    held.keys.add(keys)
    held.doubtful.add(keys)


def _ahead(held: _Held, key: int, now: float) -> int:
    """Return how many keys from *key* on are worth leasing; take note of the create."""
    pause = min(now - held.last_at, _IDLE_SECONDS)
    held.streak = held.streak + 1 if key == held.last_key + 1 else 0
    held.interval = 0.75 * held.interval + 0.25 * pause
    held.last_key, held.last_at = key, now
    # Several processes may write in order, at once, or one in nearly that order.
    start = held.keys.start_before(key - 1)
    run = max(held.streak, 0 if start is None else key - start)
    return max(1, min(_AHEAD_LIMIT, _GROWTH * run, int(_AHEAD_SECONDS / max(held.interval, 1e-4))))


def _unused(held: _Held, entries: Entries, dataset_id: DatasetId, kept: list[Span]) -> list[Span]:
    """Return the keys that have no entry, are about to get none, and are not to be *kept*."""
    unused = SpanSet()
    for span in held.keys:
        for gap in _gaps(entries, dataset_id, span):
            unused.add(gap)
    for span in (*kept, *(Span(key, key + 1) for key in held.wanted)):
        unused.remove(span)
    return list(unused)


def _gaps(entries: Entries, dataset_id: DatasetId, keys: Span) -> Iterator[Span]:
    """Yield the parts of *keys* without entries, by halves: there may be many entries, and few gaps."""
    count = entries.count(dataset_id, keys)
    if not count:
        yield keys
    elif count < keys.length:
        middle = (keys.start + keys.stop) // 2
        yield from _gaps(entries, dataset_id, Span(keys.start, middle))
        yield from _gaps(entries, dataset_id, Span(middle, keys.stop))

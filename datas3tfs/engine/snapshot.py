"""What the catalog says, in memory: datasets, and each one's dataranges in key order.

A `Snapshot` is frozen; readers keep the one they have while `Snapshots` replaces it. Nothing here
talks to S3, and Postgres is asked only when a dataset is first used and when something has changed,
so whatever has been seen once stays readable while Postgres is away.

When dataranges go, whoever has told others of them (the mount, the kernel) must find out whether the
datapoints are gone or were only moved by a merge. Until `settle` says that this is done their keys are not
settled, and nothing new is said of them.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate

import trio

from datas3tfs.core.model import Datarange, Dataset, DatasetId
from datas3tfs.core.spans import Span
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.singleflight import SingleFlight
from datas3tfs.errors import Corrupt, Datas3tError, NotFound, Unavailable
from datas3tfs.ports import CatalogReader, ChangeFeed

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0  # a change must be seen within a second of Postgres being back


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One dataset's dataranges at one moment. *bases[i]* is where object *i* begins when all are laid
    end to end (the linear positions of core/prefetch.py)."""

    dataset: Dataset
    dataranges: tuple[Datarange, ...]
    firsts: tuple[int, ...]
    bases: tuple[int, ...]

    @staticmethod
    def of(dataset: Dataset, dataranges: Iterable[Datarange]) -> Snapshot:
        """Make the snapshot of *dataranges*, ascending by key."""
        ranges = tuple(dataranges)
        bases = (0, *accumulate(r.size for r in ranges))
        return Snapshot(dataset, ranges, tuple(r.keys.start for r in ranges), bases[: len(ranges)])

    def position(self, key: int) -> int | None:
        """Return which datarange holds *key*, or None."""
        at = bisect_right(self.firsts, key) - 1
        return at if at >= 0 and key in self.dataranges[at].keys else None

    def from_key(self, key: int) -> tuple[Datarange, ...]:
        """Return the dataranges that hold *key* or later ones."""
        at = max(0, bisect_right(self.firsts, key) - 1)
        if at < len(self.dataranges) and self.dataranges[at].keys.stop <= key:
            at += 1
        return self.dataranges[at:]

    def objects_in(self, linear: Span) -> list[tuple[Datarange, Span]]:
        """Return the dataranges that *linear* touches, each with the part of its object."""
        at = max(0, bisect_right(self.bases, linear.start) - 1)
        found: list[tuple[Datarange, Span]] = []
        while at < len(self.dataranges) and self.bases[at] < linear.stop:
            base, size = self.bases[at], self.dataranges[at].size
            part = linear.intersection(Span(base, base + size))
            if part:
                found.append((self.dataranges[at], part.shifted(-base)))
            at += 1
        return found


@dataclass(frozen=True, slots=True)
class Removed:
    """What a refresh found to be gone, for whoever has cached it."""

    datasets: tuple[Dataset, ...]
    dataranges: tuple[tuple[Dataset, Datarange], ...]


class Snapshots:
    """The current snapshot of every dataset; made by `open_snapshots`."""

    def __init__(self, nursery: trio.Nursery, catalog: CatalogReader, patience: float) -> None:
        self._catalog = catalog
        self._datasets: dict[DatasetId, Dataset] = {}
        self._by_name: dict[str, Dataset] = {}
        self._loaded: dict[DatasetId, Snapshot] = {}
        self._patience = patience
        self._flights: SingleFlight[DatasetId, Snapshot] = SingleFlight(nursery, patience)
        self._stale = trio.Event()  # set: a refresh is due
        self._refreshes = 0  # begun
        self._ended = trio.Event()  # of the next refresh to end well; replaced then
        self._last_ended = 0  # which refresh that was
        self._is_followed = False
        self._is_settled_by_follower = False
        self._unsettled: list[Removed] = []
        self._settling = trio.Event()  # set when one of them is; replaced then

    def datasets(self) -> list[Dataset]:
        """Return all datasets, ascending by id."""
        return list(self._datasets.values())

    def dataset(self, dataset_id: DatasetId) -> Dataset:
        """Return a dataset. Raises NotFound."""
        try:
            return self._datasets[dataset_id]
        except KeyError:
            raise NotFound(f"no dataset with id {dataset_id}") from None

    def named(self, name: str) -> Dataset:
        """Return the dataset called *name*. Raises NotFound."""
        try:
            return self._by_name[name]
        except KeyError:
            raise NotFound(f"no dataset {name!r}") from None

    async def of(self, dataset_id: DatasetId) -> Snapshot:
        """Return a dataset's snapshot; asks Postgres the first time. Raises NotFound, Unavailable."""
        if (snapshot := self._loaded.get(dataset_id)) is not None:
            return snapshot
        what = f"dataset {self.dataset(dataset_id).name}"
        return await self._flights.run(dataset_id, what, lambda: self._load(dataset_id))

    async def refresh(self) -> Removed:
        """Look at the catalog again. Returns what is gone; raises Unavailable and changes nothing.

        A dataset whose rows are damaged keeps its last state; the others go on.
        """
        self._refreshes += 1
        number = self._refreshes
        datasets = {dataset.id: dataset for dataset in await self._catalog.datasets()}
        stale = [old for old in self._loaded.values() if not _is_current(old, datasets)]
        fresh = {
            old.dataset.id: await self._fetch_again(old, datasets[old.dataset.id])
            for old in stale
            if old.dataset.id in datasets
        }
        gone = tuple(dataset for dataset_id, dataset in self._datasets.items() if dataset_id not in datasets)
        self._datasets = datasets
        self._by_name = {dataset.name: dataset for dataset in datasets.values()}
        # What was loaded while we waited, with a state that is old by now, is loaded again at its next use.
        kept = {key: old for key, old in self._loaded.items() if _is_current(old, datasets)}
        self._loaded = kept | fresh
        self._last_ended = number
        self._ended.set()
        self._ended = trio.Event()
        removed = Removed(gone, tuple(_removed(stale, fresh)))
        if self._is_settled_by_follower and removed.dataranges:
            self._unsettled.append(removed)
        return removed

    def settle(self, removed: Removed) -> None:
        """Take note that whoever follows has dealt with what is gone."""
        self._unsettled = [one for one in self._unsettled if one is not removed]
        self._settling.set()
        self._settling = trio.Event()

    def is_settled(self, dataset_id: DatasetId, keys: Span) -> bool:
        """Say whether nothing waits to be settled of *keys*."""
        return not self._unsettled or not any(
            dataset.id == dataset_id and datarange.keys.intersection(keys)
            for removed in self._unsettled
            for dataset, datarange in removed.dataranges
        )

    async def settled(self, dataset_id: DatasetId, keys: Span) -> None:
        """Return when *keys* are settled; at once, without a checkpoint, if they are."""
        while not self.is_settled(dataset_id, keys):
            await self._settling.wait()

    def shows(self, dataset_id: DatasetId, data_key: str, keys: Span) -> bool:
        """Say whether *keys* are those of the object *data_key* now, beyond doubt."""
        snapshot = self._loaded.get(dataset_id)
        at = None if snapshot is None else snapshot.position(keys.start)
        if snapshot is None or at is None or snapshot.dataranges[at].data_key != data_key:
            return False
        return keys.stop <= snapshot.dataranges[at].keys.stop and self.is_settled(dataset_id, keys)

    async def refreshed(self) -> None:
        """Return when everything that is in the catalog now can be seen here: after a refresh that
        begins from now on. It is made here only if nobody follows the feed."""
        if not self._is_followed:
            await self._refresh_patiently()
            return
        begun = self._refreshes
        self._stale.set()
        while self._last_ended <= begun:
            await self._ended.wait()

    async def look_again(self) -> None:
        """Do that because something shown here has turned out to be gone. Raises Unavailable if it cannot be
        done in time."""
        with trio.move_on_after(self._patience):
            await self.refreshed()
            return
        raise Unavailable("the catalog cannot be read, and what it said last is out of date")

    async def _fetch_again(self, old: Snapshot, dataset: Dataset) -> Snapshot:
        try:
            return await self._fetch(dataset)
        except Corrupt as exc:
            log.error("dataset %s keeps its last state: %s", dataset.name, exc)
            return Snapshot.of(dataset, old.dataranges)

    async def follow(
        self, feed: ChangeFeed, removed: trio.MemorySendChannel[Removed], *, settles: bool = False
    ) -> None:
        """Refresh whenever *feed* says so, or somebody waits for it, for ever; send on what is gone. Who gets
        that *settles* it, or does not: then it is settled at once."""
        self._is_followed, self._is_settled_by_follower = True, settles
        async with background_nursery() as nursery:
            nursery.start_soon(self._watch, feed)
            await self._refresh_when_stale(removed)

    async def _watch(self, feed: ChangeFeed) -> None:
        while True:
            await feed.wait()
            self._stale.set()

    async def _refresh_when_stale(self, removed: trio.MemorySendChannel[Removed]) -> None:
        while True:
            await self._stale.wait()
            self._stale = trio.Event()
            gone = await self._refresh_patiently()
            if gone.datasets or gone.dataranges:
                await removed.send(gone)

    async def _refresh_patiently(self) -> Removed:
        """Refresh, trying again until Postgres is back; meanwhile the last snapshot serves."""
        failures = 0
        while True:
            try:
                return await self.refresh()
            except Datas3tError as exc:
                failures += 1
                if failures == 1:
                    log.warning("catalog could not be read, the last state serves: %s", exc)
                await trio.sleep(_RETRY_SECONDS)

    async def _load(self, dataset_id: DatasetId) -> Snapshot:
        while True:
            snapshot = await self._fetch(self.dataset(dataset_id))
            if self.dataset(dataset_id).version == snapshot.dataset.version:  # else refreshed meanwhile
                self._loaded[dataset_id] = snapshot
                return snapshot

    async def _fetch(self, dataset: Dataset) -> Snapshot:
        return Snapshot.of(dataset, await self._catalog.dataranges(dataset.id))


def _is_current(snapshot: Snapshot, datasets: dict[DatasetId, Dataset]) -> bool:
    dataset = datasets.get(snapshot.dataset.id)
    return dataset is not None and dataset.version == snapshot.dataset.version


def _removed(stale: list[Snapshot], fresh: dict[DatasetId, Snapshot]) -> Iterable[tuple[Dataset, Datarange]]:
    for old in stale:
        new = fresh.get(old.dataset.id)
        kept = {datarange.id for datarange in new.dataranges} if new else set()
        yield from ((old.dataset, datarange) for datarange in old.dataranges if datarange.id not in kept)


@asynccontextmanager
async def open_snapshots(catalog: CatalogReader, patience: float = math.inf) -> AsyncIterator[Snapshots]:
    """Own the loads under way, with the datasets read once. Nobody waits longer than *patience* seconds.

    Raises Unavailable."""
    async with background_nursery() as nursery:
        snapshots = Snapshots(nursery, catalog, patience)
        await snapshots.refresh()
        yield snapshots

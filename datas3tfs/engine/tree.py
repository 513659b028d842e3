"""The store as a directory tree: datasets, and datapoints in them. The mount asks here, later the API.

Names and numbers go in, values come out; what a file system is made of (inodes, modes) is the
shell's. Nothing here reads content: opening gives an `OpenDatapoint`, which the reader reads.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

import trio

from datas3tfs.core.index import Entry, Index, have_same_datapoints
from datas3tfs.core.model import Datarange, DatarangeId, Dataset, DatasetId
from datas3tfs.core.names import parse_datapoint_name
from datas3tfs.core.spans import Span
from datas3tfs.engine.blocks import ObjectRef, object_ref
from datas3tfs.engine.indices import Indices, ObjectGone
from datas3tfs.engine.snapshot import Snapshot, Snapshots
from datas3tfs.errors import Corrupt, Datas3tError, Invalid, NotFound

# Listing entries made at once. An answer to the kernel takes 25 (before Linux 6.16) or thousands, so
# batches begin small and double.
_FIRST_BATCH, _LAST_BATCH = 32, 2048
_AGAIN_SECONDS = 2.0  # so long after a look at the catalog what is gone is believed to be lost
_REMEMBERED = 4096  # such looks
_TELL_SECONDS = 10.0  # for the indices of what has replaced a datarange; until then the kernel waits for news


@dataclass(slots=True)
class OpenDatapoint:
    """A datapoint found: where its bytes are, and whether its header has been checked on this handle.

    Where never changes; once it is found to be somewhere else, *moved* says so."""

    snapshot: Snapshot
    datarange: Datarange
    index: Index
    slot: int
    entry: Entry
    base: int  # linear position where its object begins
    header_checked: bool = False
    is_in_order: bool = False  # who read it last is known to read forwards, and did not announce it
    moved: OpenDatapoint | None = None

    @property
    def dataset(self) -> Dataset:
        """The dataset it belongs to."""
        return self.snapshot.dataset

    @property
    def ref(self) -> ObjectRef:
        """The object it lies in."""
        return object_ref(self.snapshot.dataset, self.datarange, self.index)

    @property
    def here(self) -> OpenDatapoint:
        """The same datapoint where it was last found."""
        place = self
        while place.moved is not None:
            place = place.moved
        if place is not self:
            self.moved = place
        return place


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive datapoints of a listing, as columns. Key of the i-th: `first_key + i`."""

    datarange: Datarange
    first_key: int
    names: list[bytes]
    sizes: list[int]
    mtimes_ns: list[int]
    crcs: list[int] | None  # None: unknown

    def part(self, start: int, stop: int) -> Rows:
        """Return the rows of the keys from *start* to before *stop*."""
        if stop - start == len(self.names):
            return self
        low, high = start - self.first_key, stop - self.first_key
        columns = self.names[low:high], self.sizes[low:high], self.mtimes_ns[low:high]
        return Rows(self.datarange, start, *columns, None if self.crcs is None else self.crcs[low:high])


class Tree:
    """Looks things up in snapshots and indices."""

    def __init__(self, snapshots: Snapshots, indices: Indices) -> None:
        self._snapshots = snapshots
        self._indices = indices
        self._looked: dict[DatarangeId, float] = {}  # when it was last made sure that it is still there

    def datasets(self) -> list[Dataset]:
        """Return all datasets, ascending by id."""
        return self._snapshots.datasets()

    def dataset(self, dataset_id: DatasetId) -> Dataset:
        """Return a dataset. Raises NotFound."""
        return self._snapshots.dataset(dataset_id)

    def dataset_named(self, name: str) -> Dataset:
        """Return the dataset called *name*. Raises NotFound."""
        return self._snapshots.named(name)

    def shows(self, dataset_id: DatasetId, data_key: str, keys: Span) -> bool:
        """Say whether *keys* are those of the object *data_key* now, beyond doubt."""
        return self._snapshots.shows(dataset_id, data_key, keys)

    async def lookup(self, dataset_id: DatasetId, name: str) -> OpenDatapoint:
        """Find a datapoint by its file name. Raises NotFound, Corrupt, Unavailable."""
        try:
            wanted = parse_datapoint_name(name)
        except Invalid as exc:
            raise NotFound(str(exc)) from None
        found = await self.locate(dataset_id, wanted.key)
        if found.entry.extension != wanted.extension:
            raise NotFound(f"{name}: datapoint {wanted.key} has another extension")
        return found

    async def locate(self, dataset_id: DatasetId, key: int) -> OpenDatapoint:
        """Find a datapoint by its key. Raises NotFound, Corrupt, Unavailable."""
        while True:
            await self._snapshots.settled(dataset_id, Span(key, key + 1))
            snapshot = await self._snapshots.of(dataset_id)
            at = snapshot.position(key)
            if at is None:
                raise NotFound(f"no datapoint {key} in dataset {snapshot.dataset.name}")
            datarange = snapshot.dataranges[at]
            index = await self._index(snapshot, datarange)
            # Else it may be gone meanwhile.
            if index is not None and await self._is_current(snapshot, Span(key, key + 1)):
                slot = key - datarange.keys.start
                return OpenDatapoint(snapshot, datarange, index, slot, index.entry(slot), snapshot.bases[at])

    async def relocate(self, file: OpenDatapoint, cause: NotFound) -> OpenDatapoint:
        """Return where the datapoint of *file*, whose object is gone (*cause*), is now.

        Raises Corrupt if that is no other place, or it is not the same datapoint; Unavailable.
        """
        gone = Corrupt(f"datapoint {file.entry.name}: its object is gone ({cause})")
        try:
            await self._look_again(file.datarange)
            found = await self.locate(file.dataset.id, file.entry.key)
        except NotFound:
            raise gone from cause
        if found.datarange.id == file.datarange.id or not _is_same(found.entry, file.entry):
            raise gone from cause
        return found

    async def has_all_of(self, dataset_id: DatasetId, gone: Index) -> bool:
        """Say whether the datapoints of *gone*, the index of a datarange that is no more, are all there
        still, unchanged: a merge has moved them. False if that cannot be told soon."""
        keys, done = Span(gone.first, gone.first + gone.count), gone.first
        with trio.move_on_after(_TELL_SECONDS), suppress(Datas3tError):
            snapshot = await self._snapshots.of(dataset_id)
            for datarange in snapshot.from_key(keys.start):
                common = datarange.keys.intersection(keys)
                if common.start != done or not common:
                    return False
                index = await self._index(snapshot, datarange)
                if index is None or not await trio.to_thread.run_sync(
                    have_same_datapoints, gone, index, common, abandon_on_cancel=True
                ):
                    return False
                done = common.stop
                if done == keys.stop:
                    return True
        return False

    async def _is_current(self, snapshot: Snapshot, keys: Span) -> bool:
        """Say whether *snapshot* is still what there is to be said of *keys*."""
        dataset_id = snapshot.dataset.id
        return await self._snapshots.of(dataset_id) is snapshot and self._snapshots.is_settled(
            dataset_id, keys
        )

    async def _index(self, snapshot: Snapshot, datarange: Datarange) -> Index | None:
        """Return the index of *datarange*, None if it has been replaced since *snapshot*."""
        try:
            return await self._indices.of(snapshot.dataset.bucket_id, datarange)
        except ObjectGone:
            await self._look_again(datarange)
            if await self._snapshots.of(snapshot.dataset.id) is snapshot:
                raise
            return None

    async def _look_again(self, datarange: Datarange) -> None:
        """See whether *datarange* is still in the catalog, unless that was done just now: an object that is
        lost must not become a query for everybody who asks for it."""
        now = trio.current_time()
        if now - self._looked.get(datarange.id, -math.inf) < _AGAIN_SECONDS:
            return
        if len(self._looked) >= _REMEMBERED:
            self._looked.clear()
        await self._snapshots.look_again()
        self._looked[datarange.id] = now

    async def listing(self, dataset_id: DatasetId, from_key: int) -> AsyncGenerator[Rows, None]:
        """Yield all datapoints from *from_key* on, in key order. Raises NotFound, Corrupt, Unavailable.

        When a batch arrives, and at the end, nothing has been waited for since the snapshot was current: what
        has left the journal meanwhile, because a newer one shows it, is in it.
        """
        batch, key = _FIRST_BATCH, from_key
        while True:
            snapshot = await self._snapshots.of(dataset_id)
            datarange = next(iter(snapshot.from_key(key)), None)
            index = None if datarange is None else await self._index(snapshot, datarange)
            if datarange is not None:
                await self._snapshots.settled(dataset_id, datarange.keys)
            if await self._snapshots.of(dataset_id) is not snapshot:
                continue
            if datarange is None:
                return
            assert index is not None, "the snapshot is the same still"
            slot, key = max(0, key - datarange.keys.start), datarange.keys.stop
            while slot < index.count:
                count = min(batch, index.count - slot)
                batch = min(2 * batch, _LAST_BATCH)
                yield Rows(
                    datarange,
                    index.first + slot,
                    index.names(slot, count),
                    index.sizes(slot, count),
                    index.mtimes_ns(slot, count),
                    index.crcs(slot, count),
                )
                slot += count


def _is_same(one: Entry, other: Entry) -> bool:
    """Say whether two entries of the same key are of the same datapoint, as far as their indices know."""
    is_known = one.crc is not None and other.crc is not None
    looks_same = (one.name, one.size, one.mtime_ns) == (other.name, other.size, other.mtime_ns)
    return looks_same and (not is_known or one.crc == other.crc)

"""The store as a directory tree: datasets, and datapoints in them. The mount asks here, later the API.

Names and numbers go in, values come out; what a file system is made of (inodes, modes) is the
shell's. Nothing here reads content: opening gives an `OpenDatapoint`, which the reader reads.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from datas3tfs.core.index import Entry, Index
from datas3tfs.core.model import Datarange, Dataset, DatasetId
from datas3tfs.core.names import parse_datapoint_name
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.snapshot import Snapshot, Snapshots
from datas3tfs.errors import Invalid, NotFound

# Listing entries made at once. An answer to the kernel takes 25 (before Linux 6.16) or thousands, so
# batches begin small and double.
_FIRST_BATCH, _LAST_BATCH = 32, 2048


@dataclass(slots=True)
class OpenDatapoint:
    """A datapoint found: where its bytes are, and what has been checked of them on this handle."""

    snapshot: Snapshot
    datarange: Datarange
    index: Index
    slot: int
    entry: Entry
    base: int  # linear position where its object begins
    checked: tuple[int, int] | None = None  # (extent serial, piece number) last checked
    header_checked: bool = False

    @property
    def dataset(self) -> Dataset:
        """The dataset it belongs to."""
        return self.snapshot.dataset


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive datapoints of a listing, as columns. Key of the i-th: `first_key + i`."""

    datarange: Datarange
    first_key: int
    names: list[bytes]
    sizes: list[int]
    mtimes_ns: list[int]

    def part(self, start: int, stop: int) -> Rows:
        """Return the rows of the keys from *start* to before *stop*."""
        if stop - start == len(self.names):
            return self
        low, high = start - self.first_key, stop - self.first_key
        columns = self.names[low:high], self.sizes[low:high], self.mtimes_ns[low:high]
        return Rows(self.datarange, start, *columns)


class Tree:
    """Looks things up in snapshots and indices."""

    def __init__(self, snapshots: Snapshots, indices: Indices) -> None:
        self._snapshots = snapshots
        self._indices = indices

    def datasets(self) -> list[Dataset]:
        """Return all datasets, ascending by id."""
        return self._snapshots.datasets()

    def dataset(self, dataset_id: DatasetId) -> Dataset:
        """Return a dataset. Raises NotFound."""
        return self._snapshots.dataset(dataset_id)

    def dataset_named(self, name: str) -> Dataset:
        """Return the dataset called *name*. Raises NotFound."""
        return self._snapshots.named(name)

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
            snapshot = await self._snapshots.of(dataset_id)
            at = snapshot.position(key)
            if at is None:
                raise NotFound(f"no datapoint {key} in dataset {snapshot.dataset.name}")
            datarange = snapshot.dataranges[at]
            index = await self._indices.of(snapshot.dataset.bucket_id, datarange)
            if await self._snapshots.of(dataset_id) is snapshot:  # else it may be gone meanwhile
                slot = key - datarange.keys.start
                return OpenDatapoint(snapshot, datarange, index, slot, index.entry(slot), snapshot.bases[at])

    async def listing(self, dataset_id: DatasetId, from_key: int) -> AsyncGenerator[Rows, None]:
        """Yield all datapoints from *from_key* on, in key order. Raises NotFound, Corrupt, Unavailable.

        When a batch arrives, and at the end, nothing has been waited for since the snapshot was current: what
        has left the journal meanwhile, because a newer one shows it, is in it.
        """
        batch, key = _FIRST_BATCH, from_key
        while True:
            snapshot = await self._snapshots.of(dataset_id)
            datarange = next(iter(snapshot.from_key(key)), None)
            if datarange is not None:
                index = await self._indices.of(snapshot.dataset.bucket_id, datarange)
            if await self._snapshots.of(dataset_id) is not snapshot:
                continue
            if datarange is None:
                return
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
                )
                slot += count

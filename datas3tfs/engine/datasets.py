"""Make and remove datasets through a mount, and see the result there at once."""

from __future__ import annotations

import trio

from datas3tfs.core.model import Dataset
from datas3tfs.core.names import check_label
from datas3tfs.engine.snapshot import Snapshots
from datas3tfs.errors import Conflict, Unavailable
from datas3tfs.ports import Registry


class Datasets:
    """Creates in *bucket*, or, if that is None, in the only bucket there is."""

    def __init__(self, registry: Registry, snapshots: Snapshots, bucket: str | None, patience: float) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._bucket = bucket
        self._patience = patience  # seconds until what was done can be seen here

    async def create(self, name: str) -> Dataset:
        """Create an empty dataset; return it. Raises Conflict, Invalid, Unavailable."""
        check_label("dataset", name)
        if any(dataset.name == name for dataset in self._snapshots.datasets()):
            raise Conflict(f"dataset {name}: it exists already")
        await self._registry.add_dataset(name, self._bucket or await self._only_bucket())
        await self._see()
        return self._snapshots.named(name)

    async def remove(self, dataset: Dataset) -> None:
        """Remove an empty dataset. Raises Conflict (not empty), NotFound, Unavailable."""
        await self._registry.remove_dataset(dataset.id)
        await self._see()

    async def _only_bucket(self) -> str:
        buckets = await self._registry.buckets()
        if len(buckets) != 1:
            raise Unavailable(f"{len(buckets)} buckets are registered: say which one with mount --bucket")
        return buckets[0].spec.name

    async def _see(self) -> None:
        with trio.move_on_after(self._patience):
            await self._snapshots.refreshed()
            return
        raise Unavailable("done, but the catalog cannot be read back yet")

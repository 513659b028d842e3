"""A small world for engine tests: memory twins of all ports, a dataset, and ways to fill it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from datas3tfs.core.compose import compose
from datas3tfs.core.counters import Counters
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.layout import Planned, plan_layout
from datas3tfs.core.model import BucketId, BucketSpec, Datarange, Dataset
from datas3tfs.core.prefetch import PrefetchLimits
from datas3tfs.engine.blocks import BlockPool, open_pool
from datas3tfs.engine.indices import Indices, open_indices
from datas3tfs.engine.loading import StoreBlocks
from datas3tfs.engine.prefetcher import Prefetcher, open_prefetcher
from datas3tfs.engine.reader import Reader
from datas3tfs.engine.snapshot import Snapshots, open_snapshots
from datas3tfs.engine.tree import Tree
from datas3tfs.engine.writer import Writer
from tests.harness.memory_cache import MemoryIndexCache
from tests.harness.memory_catalog import MemoryCatalog
from tests.harness.memory_objects import FailingStore, MemoryStore, MemoryStores

SPEC = BucketSpec("main", "http://s3.test", "bucket", "access", "secret")


@dataclass
class World:
    """Twins, wired as app/services.py wires the real ones. *failing* stands in front of *store*."""

    catalog: MemoryCatalog
    store: MemoryStore
    failing: FailingStore
    stores: MemoryStores
    cache: MemoryIndexCache
    bucket_id: BucketId
    counters: Counters = field(default_factory=Counters)

    async def dataset(self, name: str = "photos") -> Dataset:
        """Create (if need be) and return a dataset."""
        if name not in {dataset.name for dataset in await self.catalog.datasets()}:
            await self.catalog.add_dataset(name, SPEC.name)
        return await self.catalog.dataset(name)

    async def commit(
        self,
        contents: Sequence[bytes],
        first: int = 0,
        *,
        name: str = "photos",
        mtime_ns: int = 0,
        extension: str = "bin",
    ) -> Datarange:
        """Commit *contents* as one datarange through the real writer."""
        dataset = await self.dataset(name)
        layout = plan_layout(
            [Planned(first + i, extension, len(c), mtime_ns) for i, c in enumerate(contents)]
        )
        builder = IndexBuilder()

        async def body() -> AsyncIterator[bytes]:
            for chunk in compose(layout, lambda i: [contents[i]], builder):
                yield chunk

        def index() -> bytes:
            return encode_index_file(builder.finish(first=first, object_size=layout.size))

        writer = Writer(self.catalog, self.stores)
        return await writer.commit(dataset, layout.keys, layout.size, body(), index)

    @property
    def writer(self) -> Writer:
        """A writer on this world."""
        return Writer(self.catalog, self.stores)


@dataclass
class Mounted:
    """What a mount has, without FUSE."""

    world: World
    snapshots: Snapshots
    indices: Indices
    pool: BlockPool
    prefetcher: Prefetcher
    tree: Tree
    reader: Reader

    async def read(self, key: int, offset: int = 0, size: int = 1 << 30, *, name: str = "photos") -> bytes:
        """Open datapoint *key* and read from it."""
        dataset = self.snapshots.named(name)
        return bytes(await self.reader.read(await self.tree.locate(dataset.id, key), offset, size))


async def new_world() -> World:
    """Make an empty world with one bucket."""
    catalog, store = MemoryCatalog(), MemoryStore()
    bucket = await catalog.add_bucket(SPEC)
    failing = FailingStore(store)
    return World(catalog, store, failing, MemoryStores({bucket.id: failing}), MemoryIndexCache(), bucket.id)


@asynccontextmanager
async def open_mounted(
    world: World, *, budget: int = 64 << 20, timeout: float = 30.0, limits: PrefetchLimits | None = None
) -> AsyncIterator[Mounted]:
    """Open snapshots, indices, pool and reader on *world*."""
    async with (
        open_indices(world.cache, world.stores, world.counters, timeout) as indices,
        open_snapshots(world.catalog, timeout) as snapshots,
        open_pool(StoreBlocks(world.stores), budget, world.counters) as pool,
        open_prefetcher(pool, indices, limits or PrefetchLimits()) as prefetcher,
    ):
        tree = Tree(snapshots, indices)
        reader = Reader(tree, pool, prefetcher, timeout, world.counters)
        yield Mounted(world, snapshots, indices, pool, prefetcher, tree, reader)

"""Give a range of keys back as one plain TAR, every datapoint checked on the way out."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from datas3tfs.core import tar
from datas3tfs.core.spans import Span
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.snapshot import Snapshot
from datas3tfs.engine.stream import open_stretches
from datas3tfs.errors import Corrupt, NotFound
from datas3tfs.ports import Stores


async def export_tar(
    snapshot: Snapshot, keys: Span, indices: Indices, stores: Stores
) -> AsyncGenerator[bytes, None]:
    """Yield a valid TAR of the datapoints of *keys* that exist, in key order.

    Raises NotFound if none does, Corrupt if one is damaged, Unavailable.
    """
    parts = [(r, r.keys.intersection(keys)) for r in snapshot.from_key(keys.start)]
    parts = [(r, common) for r, common in parts if common]
    if not parts:
        raise NotFound(f"dataset {snapshot.dataset.name} has no datapoint from {keys.start} to {keys.last}")
    store = await stores.store(snapshot.dataset.bucket_id)
    for datarange, common in parts:
        index = await indices.of(snapshot.dataset.bucket_id, datarange)
        async with open_stretches(store, datarange, index, common.shifted(-index.first)) as stretches:
            async for stretch in stretches:
                for _, problem in stretch.problems:
                    raise Corrupt(f"{datarange.data_key}: {problem}")
                yield stretch.data
    yield tar.END_OF_ARCHIVE

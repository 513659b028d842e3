"""Say where datapoints lie, for clients that get them from S3 themselves.

Whole TAR entries with their padding and without the end of the archive: concatenated in order, and with
two zero blocks behind them, they are a valid TAR. One question to the catalog, whatever is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datas3tfs.core.model import Datarange
from datas3tfs.core.names import printable
from datas3tfs.core.spans import Span
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.nurseries import side_by_side
from datas3tfs.engine.stream import span_of
from datas3tfs.errors import NotFound
from datas3tfs.ports import CatalogReader, WholeStores

_AT_ONCE = 8  # dataranges whose index is fetched, if it is not in the cache


@dataclass(frozen=True, slots=True)
class Located:
    """Datapoints *keys* of a datarange: the bytes *span* of what *url*, a secret, names."""

    datarange: Datarange
    keys: Span
    span: Span
    url: str = field(repr=False)
    crcs: list[int | None] | None  # of each content, None where unknown; None: not asked for


async def locate(
    reader: CatalogReader,
    indices: Indices,
    stores: WholeStores,
    dataset: str,
    keys: Span,
    *,
    checksums: bool = False,
) -> list[Located]:
    """Return where those of *keys* that exist lie, ascending; [] if the dataset has no datarange at all.

    Raises NotFound (dataset; none of the keys exists), Corrupt (an index), Unavailable.
    """
    found = await reader.overlap(dataset, keys)
    if found.is_empty:
        return []
    if not found.dataranges:
        raise NotFound(f"no dataranges found for datapoints {keys.start}-{keys.last} in {printable(dataset)}")
    store = await stores.store(found.bucket_id)

    async def one(datarange: Datarange) -> Located:
        index = await indices.of(found.bucket_id, datarange)
        common = datarange.keys.intersection(keys)
        slots = common.shifted(-index.first)
        crcs: list[int | None] | None = None
        if checksums:
            crcs = [*(index.crcs(slots.start, slots.length) or [])] or [None] * slots.length
        url = await store.get_url(datarange.data_key)
        return Located(datarange, common, span_of(index, slots), url, crcs)

    return await side_by_side(one, found.dataranges, _AT_ONCE)

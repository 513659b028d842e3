"""Re-read a whole dataset and say which datapoint is bad, in which object, and why."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from datas3tfs.core.index import HAS_CRC, Index
from datas3tfs.core.model import Datarange
from datas3tfs.core.spans import Span
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.snapshot import Snapshot
from datas3tfs.engine.stream import open_stretches
from datas3tfs.errors import Corrupt, NotFound
from datas3tfs.ports import ObjectStore, Stores


@dataclass(frozen=True, slots=True)
class Progress:
    """So many bytes have been re-read since the last report."""

    read: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something bad: a datapoint, or (key None) a datarange as a whole."""

    object_key: str
    key: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """A datarange has been read to its end. *checksummed* says whether its CRCs are known."""

    datarange: Datarange
    checksummed: bool


Report = Progress | Problem | Verified


async def verify(snapshot: Snapshot, indices: Indices, stores: Stores) -> AsyncGenerator[Report, None]:
    """Read every index and every datapoint from the store and check them; yield what is found.

    Raises Unavailable.
    A datapoint of several pieces may be reported more than once, for each piece that is bad.
    """
    store = await stores.store(snapshot.dataset.bucket_id)
    for datarange in snapshot.dataranges:
        try:
            index = await indices.fresh(snapshot.dataset.bucket_id, datarange)
            async for report in _verify_datarange(store, datarange, index):
                yield report
        except (Corrupt, NotFound) as exc:
            yield Problem(datarange.data_key, None, str(exc))
            continue
        yield Verified(datarange, bool(index.header.flags & HAS_CRC))


async def _verify_datarange(
    store: ObjectStore, datarange: Datarange, index: Index
) -> AsyncGenerator[Report, None]:
    async with open_stretches(store, datarange, index, Span(0, index.count)) as stretches:
        async for stretch in stretches:
            for key, problem in stretch.problems:
                yield Problem(datarange.data_key, key, problem)
            yield Progress(stretch.span.length)

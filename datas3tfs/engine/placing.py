"""Look up where announced datapoints lie, many at a time, as columns.

For engine/announcements.py; a reader finds its one datapoint through engine/tree.py. Indices that are not in
memory are loaded, one after the other; between two of them others get their turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import trio

from datas3tfs.core.announced import AnnouncedLimits, Keys, Places
from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.spans import Span
from datas3tfs.core.tar import BLOCK
from datas3tfs.engine.blocks import BlockPool, ObjectRef, object_ref
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.snapshot import Snapshot
from datas3tfs.errors import Datas3tError

_CHUNK = 4096  # keys looked up at a time
_ASKED = 512  # datapoints that the pool is asked about between two turns of others

# Returns up to so many of the keys that come next, from a number of them on.
Upcoming = Callable[[int, int], Keys]


@dataclass(frozen=True, slots=True)
class Located:
    """The next datapoints of an announcement. An empty span stands for what cannot be found."""

    refs: list[ObjectRef]
    places: Places
    is_all: bool  # that is announced so far

    @property
    def sizes(self) -> Keys:
        """How many bytes of each are fetched, headers included."""
        return self.places.stops - self.places.starts


def existing(snapshot: Snapshot, keys: Keys) -> Keys:
    """Return those of *keys* that there are."""
    return keys[_positions(snapshot, keys) >= 0]


async def locate(
    snapshot: Snapshot, indices: Indices, upcoming: Upcoming, limits: AnnouncedLimits, largest: int
) -> Located:
    """Look up what comes next: everything, if it fits as a whole, else a batch of it. Of a datapoint of more
    than *largest* bytes the first pieces count; the rest is fetched in order, once it is read."""
    placing = _Placing(snapshot, indices, max(CHUNK, largest // CHUNK * CHUNK))
    total, start = 0, 0
    while total <= limits.whole and len(keys := upcoming(start, _CHUNK)):
        total += await placing.add(keys)
        start += len(keys)
    is_all = total <= limits.whole
    return placing.located(None if is_all else limits.batch)


@dataclass(slots=True)
class _Placing:
    snapshot: Snapshot
    indices: Indices
    largest: int  # bytes of content, whole chunks
    refs: dict[int, ObjectRef] = field(default_factory=dict)  # by position of the datarange
    parts: list[tuple[Keys, Keys, Keys]] = field(default_factory=list)

    async def add(self, keys: Keys) -> int:
        """Look *keys* up; return how many bytes they take."""
        positions = _positions(self.snapshot, keys)
        starts, stops = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
        for at in np.unique(positions[positions >= 0]).tolist():
            datarange = self.snapshot.dataranges[at]
            try:
                index = await self.indices.of(self.snapshot.dataset.bucket_id, datarange)
            except Datas3tError:
                continue  # whoever really reads there will be told
            self.refs.setdefault(at, object_ref(self.snapshot.dataset, datarange, index))
            rows = np.flatnonzero(positions == at)
            offsets, blocks, sizes = index.places_of(keys[rows] - index.first)
            starts[rows] = offsets
            stops[rows] = offsets + blocks * BLOCK + np.minimum(sizes, self.largest)
        self.parts.append((positions, starts, stops))
        return int((stops - starts).sum())

    def located(self, limit: int | None) -> Located:
        """Return all of it, or the first *limit* bytes, one datapoint at least."""
        positions, starts, stops = (np.concatenate(columns) for columns in zip(*self.parts, strict=True))
        if limit is not None:
            count = int(np.searchsorted(np.cumsum(stops - starts), limit)) + 1
            positions, starts, stops = positions[:count], starts[:count], stops[:count]
        table = np.zeros(len(self.snapshot.dataranges) + 1, np.int64)  # the last is for -1: an empty span
        table[[*self.refs]] = range(len(self.refs))
        return Located([*self.refs.values()], Places(table[positions], starts, stops), limit is None)


async def missing(pool: BlockPool, found: Located) -> npt.NDArray[np.bool_]:
    """Say of each datapoint whether it is worth fetching: neither here nor on its way."""
    wanted = found.sizes > 0
    objects, starts = found.places.objects.tolist(), found.places.starts.tolist()
    for turn, number in enumerate(np.flatnonzero(wanted).tolist()):
        if turn % _ASKED == _ASKED - 1:
            await trio.lowlevel.checkpoint()
        start = starts[number]
        wanted[number] = not pool.has(found.refs[objects[number]], Span(start, start + 1))
    return wanted


def _positions(snapshot: Snapshot, keys: Keys) -> Keys:
    """Return which of the dataranges each of *keys* is in, -1 for none."""
    if not snapshot.dataranges:
        return np.full(len(keys), -1, np.int64)
    at = np.searchsorted(np.array(snapshot.firsts, np.int64), keys, "right") - 1
    lasts = np.array([datarange.keys.last for datarange in snapshot.dataranges], np.int64)
    found: Keys = np.where(keys <= lasts[np.maximum(at, 0)], at, -1)
    return found

"""Re-read a whole dataset through the server's URLs; say which datapoint is bad, in which object, and why.

What is checked is what every download checks. Concurrency: a generator of its own, one datarange at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from datas3tfs.client.reading import Reading, Vanished
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Corrupt, NotFound
from datas3tfs.wire.answers import DatarangeInfo

_MOST_PROBLEMS = 100  # in one datarange: each costs three attempts


@dataclass(frozen=True, slots=True)
class Verified:
    """A datarange has been read to its end. *is_checksummed* says whether all its CRCs are known."""

    datarange: DatarangeInfo
    is_checksummed: bool


@dataclass(frozen=True, slots=True)
class Bad:
    """A datapoint, or (key None) the rest of a datarange, that cannot be read as it was written."""

    object_key: str
    key: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Read:
    """So many bytes have been re-read since the last report."""

    amount: int


Report = Verified | Bad | Read


class _Nowhere:
    """Takes content and drops it: it has been checked on the way."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""


async def verify(reading: Reading, dataset: str) -> AsyncGenerator[Report, None]:
    """Read every datapoint of *dataset*; yield what is found. Raises NotFound (dataset), Conflict (a
    datarange has gone meanwhile), Unavailable."""
    for datarange in await reading.server.dataranges(dataset):
        keys = Span(datarange.min_datapoint_key, datarange.max_datapoint_key + 1)
        async with aclosing(_verify_datarange(reading, dataset, datarange, keys)) as reports:
            async for report in reports:
                yield report


async def _verify_datarange(
    reading: Reading, dataset: str, datarange: DatarangeInfo, keys: Span
) -> AsyncGenerator[Report, None]:
    at, problems = keys.start, 0
    try:
        segments = await reading.server.locate(dataset, Span(at, at + 1), checksums=True)
        while at < keys.stop and problems < _MOST_PROBLEMS:
            try:
                async with aclosing(reading.walk(dataset, Span(at, keys.stop), _sink)) as steps:
                    async for step in steps:
                        at = step.found[-1].key + 1 if step.found else at
                        yield Read(len(step.raw))
            except Vanished:
                raise
            except Corrupt as exc:
                yield Bad(datarange.data_object_key, at, str(exc))
                at, problems = at + 1, problems + 1
    except (Corrupt, NotFound) as exc:  # the object is gone, or the server cannot say where anything is
        await _raise_if_changed(reading, dataset, datarange)
        yield Bad(datarange.data_object_key, None, str(exc))
        return
    if at < keys.stop:
        yield Bad(datarange.data_object_key, None, f"so much is wrong that from key {at} on nothing was read")
        return
    known = [crc is not None for one in segments for crc in one.crc32c or [None]]
    yield Verified(datarange, all(known))


async def _raise_if_changed(reading: Reading, dataset: str, datarange: DatarangeInfo) -> None:
    """Raise Conflict if *datarange* is not there any more: then nothing is wrong with it."""
    if datarange not in await reading.server.dataranges(dataset):
        raise Conflict(
            f"dataset {dataset} has changed while it was read: {datarange.data_object_key} is gone"
        )


def _sink(size: int) -> _Nowhere:
    return _Nowhere()

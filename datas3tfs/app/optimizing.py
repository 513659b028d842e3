"""Apply the optimize rule (core/compaction.py) to datasets: once until nothing is left to do, or for ever.

The merges themselves are made by the server, or by the one inside this process. Concurrency: one merge at a
time. Others may change the datasets meanwhile, or optimize them, too: then a merge is refused, and the next
look at the dataset decides anew.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import trio

import datas3tfs
from datas3tfs.core.compaction import OptimizeRule, plan_optimize
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.wire.answers import DatarangeInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """A datarange as the planner looks at it."""

    keys: Span
    size: int


@dataclass(frozen=True, slots=True)
class Merge:
    """Adjacent dataranges to be made one. *size* of them all in bytes, of the made one if it is *done*."""

    dataset: str
    keys: Span
    dataranges: int
    size: int
    done: bool = False
    overtaken: bool = False  # somebody else has changed the dataranges: what is left to do is decided anew
    problem: str | None = None  # why it could not be done


async def planned(client: datas3tfs.AsyncClient, datasets: Sequence[str], rule: OptimizeRule) -> list[Merge]:
    """Return the merges that the rule wants now. Raises NotFound, Unavailable."""
    found: list[Merge] = []
    for dataset in datasets:
        known = [_known(one) for one in await client.dataranges(dataset)]
        for group in plan_optimize(known, rule):
            keys = Span(group[0].keys.start, group[-1].keys.stop)
            found.append(Merge(dataset, keys, len(group), sum(one.size for one in group)))
    return found


async def optimized(
    client: datas3tfs.AsyncClient, datasets: Sequence[str], rule: OptimizeRule
) -> AsyncGenerator[Merge, None]:
    """Merge until the rule wants nothing more; yield each merge, done or not.

    What cannot be done is not tried again. Raises NotFound (a dataset), Unavailable.
    """
    refused: set[tuple[str, Span]] = set()
    for dataset in datasets:
        while wanted := [
            one for one in await planned(client, [dataset], rule) if (dataset, one.keys) not in refused
        ]:
            for merge in wanted:
                outcome = await _merged(client, merge)
                if not outcome.done:
                    refused.add((dataset, merge.keys))
                yield outcome


async def optimizing(
    client: datas3tfs.AsyncClient,
    datasets: Sequence[str] | None,
    rule: OptimizeRule,
    interval: float,
    report: Callable[[Merge], None],
    jitter: Callable[[], float] = random.random,
) -> None:
    """Do that for ever, every *interval* seconds on average; None: all datasets there are. What fails is
    logged (an outage only once) and tried again the next time."""
    is_failing = False
    while True:
        try:
            await _all_once(client, datasets, rule, report)
            is_failing = False
        except Unavailable as exc:
            if not is_failing:
                log.warning("optimizing has failed, it will be tried again: %s", exc)
            is_failing = True
        await trio.sleep(interval * (0.5 + jitter()))


async def _all_once(
    client: datas3tfs.AsyncClient,
    datasets: Sequence[str] | None,
    rule: OptimizeRule,
    report: Callable[[Merge], None],
) -> None:
    names = await all_datasets(client) if datasets is None else datasets
    for name in names:
        try:
            async with aclosing(optimized(client, [name], rule)) as merges:
                async for merge in merges:
                    report(merge)
                    if merge.problem is not None:
                        log.warning("dataset %s: %s", name, merge.problem)
        except Unavailable:
            raise
        except Datas3tError as exc:  # removed meanwhile; the others go on
            log.warning("dataset %s: %s", name, exc)


async def all_datasets(client: datas3tfs.AsyncClient) -> list[str]:
    """Return the names of all datasets."""
    return [dataset.dataset_name for dataset in await client.datasets()]


async def _merged(client: datas3tfs.AsyncClient, merge: Merge) -> Merge:
    dataset, keys = merge.dataset, merge.keys
    try:
        made = await client.aggregate(dataset, keys.start, keys.last)
    except Conflict:
        return replace(merge, overtaken=True)
    except (NotFound, Invalid, Corrupt) as exc:
        return replace(merge, problem=str(exc))
    return replace(merge, size=made.size_bytes, done=True)


def _known(one: DatarangeInfo) -> Known:
    return Known(Span(one.min_datapoint_key, one.max_datapoint_key + 1), one.size_bytes)

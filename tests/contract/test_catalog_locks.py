"""The order of locks that catalog/claims.py promises, so that no two transactions wait for each other.

A rival session holds one kind of row. Whoever waits for it must not have locked anything that comes later,
and sweepers must not wait at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import asyncpg
import pytest
import trio

from datas3tfs.catalog import Catalog, CatalogSettings, generate_key, open_catalog
from datas3tfs.catalog.background import AsyncioLoop, in_background, run_asyncio
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import DatarangeId, DatasetId, UploadId, UploadIntent
from datas3tfs.core.spans import Span
from tests.harness.catalogs import ME, OTHER, SPEC

HOLDERS, UPLOADS, DATASETS, AGGREGATES, DATARANGES, LEASES, CLAIMS = IN_ORDER = (
    "lease_holders",
    "datarange_uploads WHERE replaces IS NULL",
    "datasets",
    "datarange_uploads WHERE replaces IS NOT NULL",
    "dataranges",
    "key_leases",
    "key_claims",
)


@dataclass
class Scene:
    """A catalog with leases and an upload of ME in it, and an aggregate, all of them expired; and a dataset
    whose aggregate has lost its sources."""

    catalog: Catalog
    dataset_id: DatasetId
    upload_id: UploadId
    sources: tuple[DatarangeId, ...]
    aggregate_id: UploadId
    cleared_id: DatasetId


Call = Callable[[Scene], Awaitable[object]]


def attempted(dataset_id: DatasetId) -> UploadIntent:
    """Return what the upload of ME was begun for, and may be again."""
    return UploadIntent(dataset_id, Span(20, 30), 1, ME, attempt=OTHER)


CALLS: dict[str, Call] = {
    "begin": lambda s: s.catalog.uploads.begin(UploadIntent(s.dataset_id, Span(5, 8), 1, ME)),
    "begin_again": lambda s: s.catalog.uploads.begin(attempted(s.dataset_id)),
    "abandon": lambda s: s.catalog.uploads.abandon(s.upload_id),
    "abandon_all": lambda s: s.catalog.uploads.abandon_all(ME),
    "publish": lambda s: s.catalog.uploads.publish(s.upload_id),
    "begin_aggregate": lambda s: s.catalog.uploads.begin(
        UploadIntent(s.dataset_id, Span(70, 90), 1, replaces=s.sources)
    ),
    "abandon_aggregate": lambda s: s.catalog.uploads.abandon(s.aggregate_id),
    "publish_aggregate": lambda s: s.catalog.uploads.publish(s.aggregate_id),
    "adopt": lambda s: s.catalog.dataranges.adopt(s.dataset_id, Span(60, 70), "a.tar", "a.index", 1),
    "remove": lambda s: s.catalog.dataranges.remove(s.dataset_id, Span(70, 80)),
    "clear": lambda s: s.catalog.dataranges.clear(s.dataset_id),
    "remove_dataset": lambda s: s.catalog.registry.remove_dataset(s.cleared_id),
    "take": lambda s: s.catalog.leases.take(ME, s.dataset_id, Span(50, 60)),
    "accept": lambda s: s.catalog.leases.accept(ME, s.dataset_id, 5),
    "release": lambda s: s.catalog.leases.release(ME, s.dataset_id, Span(5, 8)),
    "dismiss": lambda s: s.catalog.leases.dismiss(ME),
    "abandon_expired": lambda s: s.catalog.uploads.abandon_expired(),
    "drop_expired": lambda s: s.catalog.leases.drop_expired(),
}


class Rival:
    """Another session, in a transaction of its own."""

    def __init__(self, loop: AsyncioLoop, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._loop = loop
        self._connection = connection

    async def sql(self, query: str) -> int:
        """Run *query*; return how many rows it gave."""
        return len(await self._loop.run_aio_coroutine(self._connection.fetch(query)))

    async def lock(self, table: str) -> None:
        """Lock all rows of *table*, as whoever deletes them does. Raises if somebody else has one."""
        assert await self.sql(f"SELECT FROM {table} FOR UPDATE NOWAIT")

    async def waited_for(self) -> None:
        """Return when another session waits for a lock."""
        waiting = (
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while not await self.sql(waiting):
            # What this transaction sees of other sessions is otherwise frozen.
            await self.sql("SELECT pg_stat_clear_snapshot()")
            await trio.sleep(0.005)


@pytest.fixture
async def scene(pg_url: str) -> AsyncIterator[Scene]:
    # Lifetimes of nothing: all that a holder or an upload has is expired at once.
    settings = CatalogSettings(operation_limit=20, upload_lifetime=0, lease_lifetime=0)
    async with open_catalog(pg_url, generate_key(), Counters(), settings) as catalog:
        await catalog.registry.add_bucket(SPEC)
        cats = await catalog.registry.add_dataset("cats", "store")
        await catalog.leases.enrol(ME, "here:/journal")
        await catalog.leases.enrol(OTHER, "there:/journal")
        await catalog.leases.take(ME, cats, Span(0, 10))
        upload = await catalog.uploads.begin(attempted(cats))
        sources, aggregate_id = await begun_aggregate(catalog, cats)
        cleared = await catalog.registry.add_dataset("cleared", "store")
        await begun_aggregate(catalog, cleared)
        await catalog.dataranges.clear(cleared)
        yield Scene(catalog, cats, upload.id, sources, aggregate_id, cleared)


async def begun_aggregate(
    catalog: Catalog, dataset_id: DatasetId
) -> tuple[tuple[DatarangeId, ...], UploadId]:
    """Commit two dataranges and begin an aggregate of them."""
    sources = []
    for start in (70, 80):
        upload = await catalog.uploads.begin(UploadIntent(dataset_id, Span(start, start + 10), 1))
        sources.append((await catalog.uploads.publish(upload.id)).id)
    intent = UploadIntent(dataset_id, Span(70, 90), 1, replaces=tuple(sources))
    aggregate = await catalog.uploads.begin(intent)
    return tuple(sources), aggregate.id


@pytest.fixture
async def rival(pg_url: str, scene: Scene) -> AsyncIterator[Rival]:
    async with in_background(run_asyncio) as loop:
        connection = await loop.run_aio_coroutine(asyncpg.connect(pg_url))
        rival = Rival(loop, connection)
        await rival.sql("BEGIN")
        yield rival
        connection.terminate()


@pytest.mark.parametrize(
    ("call", "table"),
    [
        *((call, HOLDERS) for call in ("begin", "abandon", "abandon_all", "take", "release", "dismiss")),
        ("begin_again", UPLOADS),
        *((call, UPLOADS) for call in ("abandon", "abandon_all", "publish", "dismiss")),
        *((call, DATASETS) for call in ("begin", "publish", "take", "accept", "release", "dismiss")),
        *((call, DATASETS) for call in ("begin_aggregate", "publish_aggregate", "adopt", "remove", "clear")),
        ("remove_dataset", DATASETS),
        *((call, AGGREGATES) for call in ("abandon_aggregate", "publish_aggregate", "remove_dataset")),
        *((call, DATARANGES) for call in ("publish_aggregate", "remove", "clear")),
    ],
)
async def test_who_waits_holds_nothing_that_comes_later(
    scene: Scene, rival: Rival, call: str, table: str
) -> None:
    with trio.fail_after(15):
        await rival.lock(table)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(CALLS[call], scene)
            await rival.waited_for()
            for later in IN_ORDER[IN_ORDER.index(table) + 1 :]:
                if (call, later) != ("publish", CLAIMS):  # it has a reference to its claim, which it keeps
                    await rival.lock(later)
            await rival.sql("ROLLBACK")


@pytest.mark.parametrize("call", ["abandon_expired", "drop_expired"])
@pytest.mark.parametrize("table", [HOLDERS, UPLOADS, DATASETS, AGGREGATES, DATARANGES, LEASES])
async def test_sweepers_wait_for_nobody(scene: Scene, rival: Rival, call: str, table: str) -> None:
    await rival.lock(table)
    with trio.fail_after(5):
        await CALLS[call](scene)
    await rival.sql("ROLLBACK")
    await scene.catalog.uploads.abandon_expired()
    await scene.catalog.leases.drop_expired()
    held = await scene.catalog.leases.held(ME)
    assert [lease.keys for lease in held] == [Span(20, 30)], "a later sweep does what the first could not"
    assert {holder.id for holder in await scene.catalog.leases.holders()} == {ME}


async def test_a_take_over_does_not_wait_for_the_one_who_expired(scene: Scene, rival: Rival) -> None:
    await rival.sql(f"SELECT FROM lease_holders WHERE id = '{ME}' FOR UPDATE")
    with trio.fail_after(5):
        lease = await scene.catalog.leases.take(OTHER, scene.dataset_id, Span(5, 30))
    assert lease.keys == Span(5, 20)
    await rival.sql("ROLLBACK")

"""Applying the optimize rule through the client: to the end, beside others, and for ever."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import trio

from datas3tfs import AsyncClient
from datas3tfs.app.optimizing import Merge, all_datasets, optimized, optimizing, planned
from datas3tfs.client import Tuning
from datas3tfs.core.compaction import OptimizeRule
from datas3tfs.core.model import Dataset
from datas3tfs.core.spans import Span
from datas3tfs.errors import NotFound, Unavailable
from tests.harness.api import TRUSTED, MemoryApi, open_memory_api

RULE = OptimizeRule(target=100_000, largest=200_000)


@dataclass
class Site:
    """An API with a bucket, and a client of it."""

    api: MemoryApi
    client: AsyncClient

    async def fill(self, dataset: str, first: int, number: int) -> None:
        """Upload so many dataranges of a datapoint each, of 3 KB."""
        if dataset not in await all_datasets(self.client):
            await self.api.add_dataset(dataset)
        for key in range(first, first + number):
            await self.api.upload(dataset, key, [bytes([key % 256]) * 3000])

    async def spans(self, dataset: str) -> list[Span]:
        """Return the keys of a dataset's dataranges."""
        found = await self.client.dataranges(dataset)
        return [Span(one.min_datapoint_key, one.max_datapoint_key + 1) for one in found]


@asynccontextmanager
async def open_site() -> AsyncIterator[Site]:
    async with open_memory_api(TRUSTED) as api:
        await api.add_bucket()
        transport = httpx.ASGITransport(app=api.app)
        tuning = Tuning(server_patience=0.0)
        async with AsyncClient("http://localhost:8765", tuning=tuning, transport=transport) as client:
            yield Site(api, client)


async def done(site: Site, *datasets: str) -> list[Merge]:
    return [merge async for merge in optimized(site.client, datasets, RULE)]


async def test_it_merges_until_nothing_is_left_to_do() -> None:
    async with open_site() as site:
        await site.fill("photos", 0, 40)
        await site.fill("texts", 5, 12)
        plan = await planned(site.client, ["photos", "texts"], RULE)
        assert {merge.dataset for merge in plan} == {"photos", "texts"}
        assert not any(merge.done for merge in plan)
        assert len(await site.spans("photos")) == 40
        merges = await done(site, "photos", "texts")
        assert all(merge.done and merge.problem is None for merge in merges)
        assert len(await site.spans("photos")) <= 6
        assert await planned(site.client, ["photos", "texts"], RULE) == []
        assert await done(site, "photos", "texts") == []
        contents = await site.api.download("photos", 0, 39)
        assert [content[0] for _, content in sorted(contents.items())] == list(range(40))


async def test_what_cannot_be_merged_is_said_once_and_the_rest_is_merged() -> None:
    async with open_site() as site:
        await site.fill("photos", 0, 60)
        (store,) = site.api.stores.stores.values()
        victim = next(key for key in sorted(store.objects) if key.endswith(".tar"))
        store.objects[victim] = bytes(len(store.objects[victim]))
        merges = await done(site, "photos")
        problems = [merge for merge in merges if not merge.done]
        assert problems
        assert all(merge.problem and 0 in merge.keys for merge in problems)
        assert len({merge.keys for merge in problems}) == len(problems)
        assert len(await site.spans("photos")) < 60


async def test_an_unknown_dataset_is_not_found() -> None:
    async with open_site() as site:
        with pytest.raises(NotFound):
            await done(site, "elsewhere")


async def test_two_at_once_end_with_everything_merged() -> None:
    async with open_site() as site:
        await site.fill("photos", 0, 50)
        outcomes: list[Merge] = []

        async def one() -> None:
            outcomes.extend(await done(site, "photos"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
        assert all(merge.done or merge.overtaken for merge in outcomes)
        assert len(await done(site, "photos")) <= len(outcomes)
        assert await planned(site.client, ["photos"], RULE) == []
        assert len(await site.api.download("photos", 0, 49)) == 50


async def test_for_ever_takes_in_what_comes_and_logs_an_outage_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "datas3tfs.app.optimizing")
    async with open_site() as site:
        seen, merged, failed = list[Merge](), trio.Event(), trio.Event()

        def report(merge: Merge) -> None:
            seen.append(merge)
            merged.set()

        async def run() -> None:
            await optimizing(site.client, None, RULE, 0.01, report, jitter=lambda: 0.5)

        real, failures = site.api.catalog.datasets, 0

        async def away() -> list[Dataset]:
            nonlocal failures
            failures += 1
            if failures == 5:
                failed.set()
            raise Unavailable("Postgres is away")

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await site.fill("photos", 0, 20)
                await merged.wait()
                site.api.catalog.datasets = away  # type: ignore[method-assign]  # an outage
                await failed.wait()
                said = [one for one in caplog.records if one.name == "datas3tfs.app.optimizing"]
                assert len(said) == 1
                site.api.catalog.datasets = real  # type: ignore[method-assign]  # its end
                await site.fill("texts", 0, 20)
                while {merge.dataset for merge in seen} != {"photos", "texts"}:
                    merged = trio.Event()
                    await merged.wait()
                nursery.cancel_scope.cancel()

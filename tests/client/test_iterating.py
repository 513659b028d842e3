"""Iterating reads ahead: in few requests, in windows, and never further than was said."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing

import pytest
from anyio import to_thread

from datas3tfs import Client
from datas3tfs.client import Datapoint, reading
from datas3tfs.errors import Unavailable
from tests.client.conftest import QUICK, Run, Site
from tests.client.test_client import everything
from tests.harness.archives import noise
from tests.harness.faultproxy import Fault, Kind

MIB = 1 << 20
DATA = ".tar?"  # in the path of a request for a TAR, not for an index
COUNT, SIZE = 6000, 3584  # 23.4 MiB with headers: 1, 2, 4, 8, 8 MiB, and the rest
CONTENT = [noise(SIZE, key % 7) for key in range(7)]


@pytest.fixture(scope="module")
def filled(new_site: Callable[..., Site]) -> tuple[Site, str]:
    """A site of its own, and a dataset of many small datapoints."""
    site = new_site("rclone")
    dataset = site.dataset()
    with Client(site.server.url) as client:
        client.ingest(dataset, [("a.bin", CONTENT[key % 7]) for key in range(COUNT)])
    return site, dataset


@pytest.fixture
def many(filled: tuple[Site, str]) -> tuple[Site, str]:
    """The same, everything well."""
    filled[0].s3.clear()
    filled[0].s3.forget()
    return filled


def test_few_requests_bring_many_in_order(many: tuple[Site, str], run: Run[None]) -> None:
    site, dataset = many

    async def work() -> None:
        async with site.client() as client:
            found = await everything(client, dataset, 0, COUNT)
            assert [one.key for one in found] == list(range(COUNT))
            assert all(one.read() == CONTENT[one.key % 7] for one in found)

    run(work)
    assert site.s3.requests("GET", DATA) == 6


def test_no_more_is_asked_for_than_is_ahead(many: tuple[Site, str], run: Run[None]) -> None:
    site, dataset = many
    tuning = dataclasses.replace(QUICK, ahead=3, piece=2 * MIB)

    async def work() -> None:
        async with (
            site.client(tuning) as client,
            aclosing(client.iterate_batches(dataset, 0, COUNT)) as batches,
        ):
            for number in range(3):
                assert await anext(batches)
                assert site.s3.requests("GET", DATA) <= number + 3

    run(work)


def test_the_first_few_cost_little(many: tuple[Site, str]) -> None:
    site, dataset = many
    with (
        Client(site.api.endpoint, tuning=dataclasses.replace(QUICK, ahead=1)) as client,
        closing(client.iterate(dataset, 0, COUNT)) as found,
    ):
        assert [next(found).key for _ in range(100)] == list(range(100))
    assert site.s3.requests("GET", DATA) == 1


def test_it_goes_on_while_all_common_threads_are_taken(many: tuple[Site, str], run: Run[None]) -> None:
    site, dataset = many

    async def work() -> None:
        async with site.client() as client:
            common = to_thread.current_default_thread_limiter()
            common.total_tokens = 1
            async with common:
                assert len(await everything(client, dataset, 0, COUNT)) == COUNT

    run(work)


def test_windows_follow_each_other(
    many: tuple[Site, str], run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, dataset = many
    monkeypatch.setattr(reading, "_WINDOW", 500)
    site.api.forget()

    async def work() -> None:
        async with site.client() as client:
            found = await everything(client, dataset, 100, COUNT)
            assert [one.key for one in found] == list(range(100, COUNT))
            async with aclosing(client.iterate(dataset, 0, COUNT)) as some:
                assert (await anext(some)).key == 0  # left while the next window is asked for

    run(work)
    assert site.api.requests("POST", "/download") <= 1 + 12 + 3


def test_a_window_that_cannot_be_had_ahead_is_said_where_it_begins(
    many: tuple[Site, str], run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, dataset = many
    monkeypatch.setattr(reading, "_WINDOW", COUNT // 3)
    site.api.clear()

    async def work() -> None:
        seen = list[int]()
        async with (
            site.client(dataclasses.replace(QUICK, patience=0.3)) as client,
            aclosing(client.iterate(dataset, 0, COUNT)) as found,
        ):
            seen.append((await anext(found)).key)
            site.api.add(Fault(Kind.STATUS, method="POST", path="/download", status=503))
            with pytest.raises(Unavailable, match="503"):
                await drain(found, seen)
        assert seen == list(range(COUNT * 2 // 3))

    run(work)
    site.api.clear()


async def drain(found: AsyncGenerator[Datapoint, None], seen: list[int]) -> None:
    async for one in found:
        seen.append(one.key)  # noqa: PERF401 - what came before it fails is looked at

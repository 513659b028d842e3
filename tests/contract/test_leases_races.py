"""Leases under contention: every catalog gives a key to one, loses none, and waits in no circle."""

from __future__ import annotations

import random
from functools import partial
from uuid import UUID

import pytest
import trio

from datas3tfs.catalog import Catalog
from datas3tfs.core.model import HolderId, UploadIntent
from datas3tfs.core.spans import Span
from tests.harness.catalogs import ME, OTHER, World, outcome

KEYS = 200
SEED = 20240229


def nth(number: int) -> HolderId:
    return HolderId(str(UUID(int=number)))


@pytest.fixture
async def enrolled(world: World) -> World:
    await world.here.leases.enrol(ME, "here:/journal")
    await world.there.leases.enrol(OTHER, "there:/journal")
    return world


async def test_of_fifty_journals_that_want_a_key_one_gets_it(world: World) -> None:
    outcomes: list[str] = []

    async def contend(number: int) -> None:
        leases = (world.here if number % 2 else world.there).leases
        await leases.enrol(nth(number), f"host-{number}:/journal")
        wanted = Span(50, 60 + number)
        outcomes.append(await outcome(lambda: leases.take(nth(number), world.dataset_id, wanted)))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(contend, number)
    assert sorted(outcomes) == ["Conflict"] * 49 + ["done"]
    assert [holder.leases for holder in await world.here.leases.holders()].count(1) == 1
    assert world.counters.get("sql.retry") == 0


async def test_of_fifty_that_want_an_expired_lease_one_gets_it(enrolled: World) -> None:
    outcomes: list[str] = []
    await enrolled.take(ME, 0, 100)
    enrolled.expire_holder(ME)

    async def contend(number: int) -> None:
        leases = (enrolled.here if number % 2 else enrolled.there).leases
        await leases.enrol(nth(number), f"host-{number}:/journal")
        outcomes.append(await outcome(lambda: leases.take(nth(number), enrolled.dataset_id, Span(5, 50))))

    async with trio.open_nursery() as nursery:
        for number in range(1, 51):
            nursery.start_soon(contend, number)
        nursery.start_soon(enrolled.there.leases.drop_expired)
    assert sorted(outcomes) == ["Conflict"] * 49 + ["done"]
    assert enrolled.counters.get("sql.retry") == 0


async def test_many_tasks_of_one_journal_share_one_lease(enrolled: World) -> None:
    made = []

    async def take(number: int) -> None:
        leases = (enrolled.here if number % 2 else enrolled.there).leases
        made.append(await leases.take(ME, enrolled.dataset_id, Span(7, 20)))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(take, number)
    assert {lease.keys for lease in made} == {Span(7, 20)}
    assert await enrolled.held(ME) == [(7, 20, False)]


async def test_keys_that_come_and_go_between_lease_and_upload_are_never_free(enrolled: World) -> None:
    """Neither while the lease is split nor while an abandoned upload gives them back."""
    await enrolled.take(ME, 0, 100, accepted=True)
    stolen: list[str] = []
    there = enrolled.there
    done = trio.Event()

    async def steal(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            start = rng.randrange(100)
            intent = UploadIntent(enrolled.dataset_id, Span(start, start + 3), 1)
            got = await outcome(
                partial(there.leases.take, OTHER, enrolled.dataset_id, Span(start, start + 1))
            )
            begun = await outcome(partial(there.uploads.begin, intent))
            stolen.extend(word for word in (got, begun) if word != "Conflict")

    async with trio.open_nursery() as nursery:
        for seed in range(3):
            nursery.start_soon(steal, seed)
        for start in range(20):
            upload = await enrolled.begin(30 + start, 60, holder=ME)
            if start % 2:
                await enrolled.here.uploads.abandon(upload.id)
            else:
                await enrolled.here.uploads.abandon_all(ME)
        done.set()
    assert stolen == []
    assert sum(stop - start for start, stop, _ in await enrolled.held(ME)) == 100
    assert enrolled.counters.get("sql.retry") == 0


async def test_a_dataset_is_removed_or_leased_never_both(enrolled: World) -> None:
    async def race(number: int) -> None:
        dataset_id = await enrolled.here.registry.add_dataset(f"set-{number}", "store")
        results: dict[str, str] = {}

        async def run(word: str, catalog: Catalog) -> None:
            if word == "remove":
                results[word] = await outcome(lambda: catalog.registry.remove_dataset(dataset_id))
            elif word == "begin":
                intent = UploadIntent(dataset_id, Span(10, 20), 1, ME)
                results[word] = await outcome(lambda: catalog.uploads.begin(intent))
            else:
                results[word] = await outcome(lambda: catalog.leases.take(ME, dataset_id, Span(0, 10)))

        async with trio.open_nursery() as inner:
            words = random.Random(SEED + number).sample(["remove", "take", "begin"], 3)
            for word, catalog in zip(words, (enrolled.here, enrolled.there, enrolled.here), strict=True):
                inner.start_soon(run, word, catalog)
        assert results in (
            {"remove": "done", "take": "NotFound", "begin": "NotFound"},
            {"remove": "Conflict", "take": "done", "begin": "done"},
        )

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(race, number)
    assert enrolled.counters.get("sql.retry") == 0


class Chaos:
    """Journals that do whatever they may, all at once, over both sets of connections."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: set[str] = set()

    async def journal(self, holder: HolderId, seed: int) -> None:
        """Do 25 random things as one task of *holder*."""
        rng = random.Random(seed)
        for _ in range(25):
            catalog = rng.choice((self.world.here, self.world.there))
            start = rng.randrange(KEYS - 40)
            keys = Span(start, start + rng.randrange(1, 40))
            self.seen.add(await outcome(partial(self.one, rng, catalog, holder, keys)))

    async def one(self, rng: random.Random, catalog: Catalog, holder: HolderId, keys: Span) -> None:
        """Do one random thing with *keys*."""
        dataset_id = self.world.dataset_id
        match rng.choice(["take"] * 3 + ["accept", "release", "enrol", "upload", "upload", "nobody's"]):
            case "take":
                await catalog.leases.take(holder, dataset_id, keys, accepted=rng.random() < 0.3)
            case "accept":
                await catalog.leases.accept(holder, dataset_id, keys.start)
            case "release":
                await catalog.leases.release(holder, dataset_id, keys)
            case "enrol":
                await catalog.leases.enrol(holder, f"{holder}:/journal")
            case "upload":
                upload = await catalog.uploads.begin(UploadIntent(dataset_id, keys, 1, holder))
                if rng.random() < 0.1:
                    await catalog.uploads.publish(upload.id)
                elif rng.random() < 0.5:
                    await catalog.uploads.abandon(upload.id)
            case _:
                upload = await catalog.uploads.begin(UploadIntent(dataset_id, keys, 1))
                await catalog.uploads.abandon(upload.id)

    async def sweeper(self) -> None:
        """Sweep and dismiss while the others work."""
        for number in range(12):
            await self.world.there.uploads.abandon_expired()
            await self.world.there.leases.drop_expired()
            await self.world.there.uploads.abandon_all(nth(number % 4))
            await self.world.there.leases.dismiss(nth(number % 4))
            await self.world.here.leases.enrol(nth(number % 4), "again:/journal")


async def test_journals_that_do_what_they_like_lose_no_key_and_never_deadlock(world: World) -> None:
    chaos = Chaos(world)
    for number in range(5):
        await world.here.leases.enrol(nth(number), f"{number}:/journal")
    world.expire_holder(nth(4))  # … and stays so until it happens to enrol again
    async with trio.open_nursery() as nursery:
        for task in range(10):
            nursery.start_soon(chaos.journal, nth(task % 5), SEED + task)
        nursery.start_soon(chaos.sweeper)
    assert chaos.seen <= {"done", "Conflict", "NotFound"}
    assert world.counters.get("sql.retry") == 0
    for number in range(5):
        await world.here.leases.dismiss(nth(number))
    committed = [datarange.keys for datarange in await world.here.reader.dataranges(world.dataset_id)]
    await world.here.leases.enrol(ME, "here:/journal")
    start = 0
    for keys in [*committed, Span(KEYS, KEYS)]:
        if start < keys.start:  # every key that is not committed is free again, and no claim left behind
            assert (await world.take(ME, start, keys.start)).keys == Span(start, keys.start)
        start = keys.stop

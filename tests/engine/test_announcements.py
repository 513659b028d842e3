"""Announced orders: what is fetched ahead, in how many requests, and what it costs when nobody reads."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from datas3tfs.core.announced import AnnouncedLimits
from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.model import Dataset
from datas3tfs.core.prefetch import PrefetchLimits
from datas3tfs.core.spans import Span
from datas3tfs.engine import announcements as module
from datas3tfs.engine.announcements import Announcement, Announcements, open_announcements
from datas3tfs.errors import NotFound, Unavailable
from tests.harness.world import Mounted, World, new_world, open_mounted

QUIET = PrefetchLimits(0, 0)
BUDGET = 64 << 20


@dataclass
class Announcing:
    """A mount with announcements, without FUSE."""

    mounted: Mounted
    announcements: Announcements
    dataset: Dataset

    @property
    def world(self) -> World:
        return self.mounted.world

    async def announce(self, keys: list[int]) -> Announcement:
        """Announce *keys* at once, and wait until what is due is there."""
        made = self.announcements.begin(self.dataset.id)
        await self.announcements.add(made, keys)
        self.announcements.end(made)
        await settled()
        return made

    def gets(self) -> list[Span]:
        """Range requests for data so far."""
        return [span for key, span in self.world.store.gets if key.endswith(".tar")]

    def count(self, name: str) -> int:
        return self.world.counters.get(name)


async def settled() -> None:
    """Return when nobody has anything to do but wait for a clock."""
    for _ in range(2):
        await trio.testing.wait_all_tasks_blocked(1.5 * module._QUIET)


async def a_moment() -> None:
    """Give everybody else a turn, threads too, as a reader does who does something with what it reads."""
    await trio.sleep(0.002)


@asynccontextmanager
async def announcing(
    world: World, *, budget: int = BUDGET, limits: AnnouncedLimits | None = None
) -> AsyncIterator[Announcing]:
    async with (
        open_mounted(world, budget=budget, limits=QUIET) as mounted,
        open_announcements(
            mounted.pool,
            mounted.indices,
            mounted.snapshots,
            limits or AnnouncedLimits(budget // 4, budget // 2),
            world.counters,
        ) as announcements,
    ):
        mounted.prefetcher.is_announced = announcements.observe
        yield Announcing(mounted, announcements, mounted.snapshots.named("photos"))


def content(key: int, size: int = 4096) -> bytes:
    return key.to_bytes(4, "big") * (size // 4)


async def world_of(count: int, size: int = 4096, *, dataranges: int = 1) -> World:
    world = await new_world()
    each = count // dataranges
    for first in range(0, count, each):
        await world.commit([content(key, size) for key in range(first, first + each)], first)
    return world


def shuffled(count: int, seed: int = 1) -> list[int]:
    return random.Random(seed).sample(range(count), count)


async def read_all(one: Announcing, keys: list[int], size: int = 4096) -> None:
    for key in keys:
        assert await one.mounted.read(key) == content(key, size)


async def test_a_shuffled_epoch_that_fits_costs_a_handful_of_requests_and_no_miss() -> None:
    world = await world_of(2000, dataranges=4)
    async with announcing(world) as one:
        keys = shuffled(2000)
        await one.announce(keys)
        await read_all(one, keys)
        assert len(one.gets()) == 4
        assert one.count("read.miss") == 0
        assert one.count("announce.read") == 2000


async def test_an_order_shuffled_within_a_range_costs_few_requests_whatever_the_budget() -> None:
    world = await world_of(8000)
    ranges = [random.Random(n).sample(range(n, n + 400), 400) for n in range(0, 8000, 400)]
    keys = [key for part in ranges for key in part]
    async with announcing(world, budget=16 << 20) as one:
        await one.announce(keys)
        for number, key in enumerate(keys):
            assert await one.mounted.read(key) == content(key)
            assert one.mounted.pool.used <= 16 << 20
            if number % 100 == 0:
                await settled()
        fetched = sum(span.length for span in one.gets())
        assert len(one.gets()) <= 40
        assert fetched <= 1.1 * 8000 * 4608
        assert one.count("read.miss") <= 8


async def test_scattered_datapoints_are_fetched_ahead_one_by_one_in_order() -> None:
    world = await world_of(600, 300_000)
    keys = shuffled(600)
    async with announcing(world) as one:
        await one.announce(keys)
        assert 20 <= len(one.gets()) <= 40, "half a batch"
        for key in keys:
            await one.mounted.read(key)
            await a_moment()
        assert one.count("read.miss") <= 6
        assert sum(span.length for span in one.gets()) <= 1.05 * 600 * 300_544


async def test_many_requests_are_on_their_way_at_once() -> None:
    world = await world_of(800, 40_000)
    underway, most = 0, 0

    async def slow(method: str, key: str) -> None:
        nonlocal underway, most
        underway, most = underway + 1, max(most, underway + 1)
        await trio.sleep(0.05)
        underway -= 1

    async with announcing(world) as one:
        await one.mounted.read(0)
        world.failing.before_each = slow
        await one.announce(list(range(10, 800, 10)))
        assert most >= 32


async def test_who_announces_without_a_pause_is_served_all_the_same() -> None:
    world = await world_of(500)
    async with announcing(world) as one:
        made = one.announcements.begin(one.dataset.id)
        for key in range(0, 500, 2):
            await one.announcements.add(made, [key])
            await a_moment()
        assert one.count("prefetch.request") > 0
        one.announcements.end(made)


async def test_unknown_keys_are_counted_and_left_out() -> None:
    world = await world_of(100)
    async with announcing(world) as one:
        made = await one.announce([5, 100, 7, 2**63 - 1, 0])
        assert (made.known, made.unknown) == (3, 2)
        await read_all(one, [5, 7, 0])
        assert one.count("read.miss") == 0


async def test_an_empty_dataset_has_nothing_to_announce() -> None:
    world = await new_world()
    await world.dataset()
    async with announcing(world) as one:
        made = await one.announce([1, 2, 3])
        assert (made.known, made.unknown) == (0, 3)


async def test_eight_workers_announce_their_shares_and_fetch_the_dataset_once() -> None:
    world = await world_of(4000)
    epoch = shuffled(4000)
    shares = [epoch[n::8] for n in range(8)]
    async with announcing(world) as one:
        async with trio.open_nursery() as nursery:
            for share in shares:
                nursery.start_soon(one.announce, share)
        async with trio.open_nursery() as nursery:
            for share in shares:
                nursery.start_soon(read_all, one, share)
        assert sum(span.length for span in one.gets()) <= 4000 * 4608
        assert len(one.gets()) <= 200
        assert one.count("read.miss") == 0


async def test_readers_of_different_pace_each_have_their_own_window() -> None:
    world = await world_of(2000, 20_000)
    fast, slow = shuffled(2000)[:1000], shuffled(2000)[1000:]
    async with announcing(world, budget=8 << 20) as one:
        await one.announce(fast)
        await one.announce(slow)
        for key in fast:
            await one.mounted.read(key)
            await a_moment()
        missed = one.count("read.miss")
        for key in slow:
            await one.mounted.read(key)
            await a_moment()
        assert one.count("read.miss") - missed <= 100, "it was not dragged along"


async def test_a_large_datapoint_is_fetched_at_its_beginning() -> None:
    world = await new_world()
    await world.commit([bytes(40 << 20), b"x" * 1000])
    async with announcing(world) as one:
        await one.announce([0, 1])
        assert sum(span.length for span in one.gets()) <= (8 << 20) + CHUNK
        assert await one.mounted.read(0, 0, 1 << 20) == bytes(1 << 20)
        assert one.count("read.miss") == 0


async def test_of_what_nobody_reads_little_is_fetched_and_the_rest_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await world_of(600, 300_000)
    async with announcing(world) as one:
        made = await one.announce(shuffled(600))
        fetched = sum(span.length for span in one.gets())
        assert fetched <= BUDGET // 8 + 300_544
        assert list(one.announcements) == [made]
        await trio.sleep(module._IDLE_SECONDS + 1)
        assert list(one.announcements) == []
        assert made.dropped + 65 >= 600
        assert sum(span.length for span in one.gets()) == fetched


async def test_who_announces_more_than_there_is_room_for_waits_for_readers_and_not_for_ever(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEYS", 1000)
    world = await world_of(1000, 30_000)
    async with announcing(world, budget=4 << 20) as one:
        made = one.announcements.begin(one.dataset.id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.announcements.add, made, shuffled(1000) * 3)
            for key in shuffled(1000)[:500]:
                await one.mounted.read(key)
                await trio.sleep(0.1)
                assert made.course.waiting <= 1000
            assert made.known < 2000, "it waits"
            begun = trio.current_time()
        assert trio.current_time() - begun <= 2 * module._PATIENCE + 1
        assert made.dropped > 0
        assert made.known + made.dropped == 3000
        begun = trio.current_time()
        for _ in range(100):
            await one.announcements.add(made, shuffled(1000))
        assert trio.current_time() - begun <= 1, "it does not wait again"


async def test_what_has_gone_meanwhile_or_fails_stops_nobody() -> None:
    world = await world_of(200, dataranges=2)
    async with announcing(world) as one:
        world.failing.fail("get_range", 1, Unavailable("away"))
        keys = shuffled(200)
        await one.announce(keys)
        await read_all(one, keys)
        made = one.announcements.begin(one.dataset.id)
        for datarange in one.mounted.snapshots._loaded[one.dataset.id].dataranges:
            world.catalog.remove(datarange.id)
        await one.mounted.snapshots.refresh()
        await one.announcements.add(made, keys)
        assert made.unknown == 200
        one.announcements.end(made)
        await settled()
        with pytest.raises(NotFound):
            await one.mounted.read(0)


async def test_a_datarange_whose_index_is_damaged_is_left_to_its_readers() -> None:
    world = await world_of(200, dataranges=2)
    async with announcing(world) as one:
        damaged = next(key for key in world.store.objects if key.endswith(".index.zst"))
        world.store.objects[damaged] = b"damaged"
        keys = shuffled(200)
        await one.announce(keys)
        assert len(one.gets()) == 1, "the other one's"


async def test_no_more_than_so_many_announcements_are_kept() -> None:
    world = await world_of(600, 30_000)
    async with announcing(world) as one:
        for key in range(300):
            made = one.announcements.begin(one.dataset.id)
            await one.announcements.add(made, [key])
            one.announcements.end(made)
            assert len(list(one.announcements)) <= module._RUNNING
        await settled()
        assert one.count("announce.streams") == 300


async def test_a_budget_too_small_for_anything_stops_nobody(autojump_clock: trio.testing.MockClock) -> None:
    world = await world_of(50, 200_000)
    async with announcing(world, budget=300_000) as one:
        await one.announce(shuffled(50))
        for key in shuffled(50):
            assert await one.mounted.read(key) == content(key, 200_000)
            await trio.sleep(0.1)


async def test_what_is_read_twice_or_late_or_never_costs_no_miss_for_others() -> None:
    world = await world_of(1000)
    rng = random.Random(4)
    async with announcing(world, budget=8 << 20) as one:
        keys = shuffled(1000)
        await one.announce(keys)
        for key in keys:
            for _ in range(rng.randrange(3)):
                assert await one.mounted.read(key) == content(key)
            await a_moment()
        assert one.count("read.miss") <= 5

"""Sweeping for ever: whatever is away, nothing is forgotten, nothing starves, and the log stays readable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
import trio.testing

from datas3tfs.core.model import BucketSpec, Doomed
from datas3tfs.engine import sweeper
from datas3tfs.engine.sweeper import sweep, sweeping
from datas3tfs.errors import Unavailable
from tests.harness.memory_objects import FailingStore, MemoryStore, MemoryStores
from tests.harness.world import World, new_world


async def abandoned(world: World, first: int) -> None:
    """An upload that was given up after its TAR was stored."""
    world.failing.fail("put", world.failing.calls["put"] + 1, Unavailable("away"))
    with pytest.raises(Unavailable):
        await world.commit([b"x"], first)


def run(world: World, nursery: trio.Nursery, jitter: Callable[[], float] = lambda: 0.5) -> None:
    async def forever() -> None:
        await sweeping(world.catalog, world.catalog, world.catalog, world.stores, jitter=jitter)

    nursery.start_soon(forever)


async def test_it_goes_on_for_ever_once_a_minute(autojump_clock: trio.testing.MockClock) -> None:
    world = await new_world()
    async with trio.open_nursery() as nursery:
        run(world, nursery)
        for first in range(3):
            await abandoned(world, first)
            assert len(world.store.objects) == 1
            await trio.sleep(61)
            assert world.store.objects == {}
        nursery.cancel_scope.cancel()


async def test_servers_drift_apart(autojump_clock: trio.testing.MockClock) -> None:
    world = await new_world()
    times: list[float] = []
    real = world.catalog.abandon_expired

    async def noted() -> int:
        times.append(trio.current_time())
        return await real()

    world.catalog.abandon_expired = noted  # type: ignore[method-assign]  # to see when
    pauses = iter([0.0, 1.0, 0.25])
    with trio.move_on_after(200):
        async with trio.open_nursery() as nursery:
            run(world, nursery, lambda: next(pauses, 0.0))
    assert [round(b - a) for a, b in pairwise(times[:4])] == [30, 90, 45]


async def test_an_outage_of_postgres_is_logged_once_and_survived(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    await abandoned(world, 0)
    real = world.catalog.abandon_expired

    async def away() -> int:
        raise Unavailable("Postgres is away")

    world.catalog.abandon_expired = away  # type: ignore[method-assign]  # an outage
    async with trio.open_nursery() as nursery:
        run(world, nursery)
        await trio.sleep(600)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        world.catalog.abandon_expired = real  # type: ignore[method-assign]  # its end
        await trio.sleep(100)
        assert world.store.objects == {}
        world.catalog.abandon_expired = away  # type: ignore[method-assign]  # another one
        await trio.sleep(600)
        assert len(caplog.records) == 2
        nursery.cancel_scope.cancel()


async def test_even_a_bug_does_not_end_it(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    await abandoned(world, 0)
    real = world.catalog.doomed
    answers = [ZeroDivisionError("nobody thought of it")]

    async def odd(limit: int) -> list[Doomed]:
        if answers:
            raise answers.pop()
        return await real(limit)

    world.catalog.doomed = odd  # type: ignore[method-assign]  # a bug
    async with trio.open_nursery() as nursery:
        run(world, nursery)
        await trio.sleep(130)
        nursery.cancel_scope.cancel()
    assert world.store.objects == {}
    assert "please report it" in caplog.text


async def test_a_bucket_that_is_away_is_reported_once_and_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although it has more doomed objects than are looked at in one batch, and older ones."""
    monkeypatch.setattr(sweeper, "_BATCH", 3)
    world = await new_world()
    other = await world.catalog.add_bucket(BucketSpec("other", "http://s3.test", "other", "a", "s"))
    store = MemoryStore()
    world.stores = MemoryStores({world.bucket_id: world.failing, other.id: FailingStore(store)})
    for first in range(10):
        await abandoned(world, first)
    await world.catalog.add_dataset("elsewhere", "other")
    datarange = await world.commit([b"x"], name="elsewhere")
    await world.catalog.ranges.clear(datarange.dataset_id)
    world.catalog.let_graves_fall_due()

    async def away(method: str, key: str) -> None:
        if method == "delete":
            raise Unavailable("the bucket is away")

    world.failing.before_each = away
    async with trio.open_nursery() as nursery:
        run(world, nursery)
        await trio.sleep(600)
        assert store.objects == {}
        assert len(world.store.objects) == 10
        assert len(caplog.records) == 1
        world.failing.before_each = None
        await trio.sleep(600)
        assert world.store.objects == {}
        nursery.cancel_scope.cancel()


async def test_one_object_that_can_never_be_deleted_does_not_keep_the_others(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    for first in range(5):
        await abandoned(world, first)
    kept = min(world.store.objects)

    async def locked(method: str, key: str) -> None:
        if (method, key) == ("delete", kept):
            raise Unavailable("AccessDenied")

    world.failing.before_each = locked
    async with trio.open_nursery() as nursery:
        run(world, nursery)
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert set(world.store.objects) == {kept}
    assert len(caplog.records) <= 2


async def test_what_was_deleted_before_a_sweep_is_cut_short_is_struck_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    for first in range(3):
        await abandoned(world, first)

    async def stuck(method: str, key: str) -> None:
        if len(world.store.objects) == 1:
            await trio.sleep_forever()

    world.failing.before_each = stuck
    before = len(world.catalog.graves)
    with trio.move_on_after(1):
        await sweep(world.catalog, world.catalog, world.catalog, world.stores)
    assert 0 < len(world.catalog.graves) < before

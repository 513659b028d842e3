"""Snapshots: what is seen when, what is noticed to be gone, and life while Postgres is away."""

from contextlib import aclosing

import pytest
import trio
import trio.testing

from datas3tfs.core.model import Datarange, DatasetId
from datas3tfs.core.spans import Span
from datas3tfs.engine.snapshot import Removed, Snapshot
from datas3tfs.errors import Corrupt, NotFound, Unavailable
from tests.harness.world import Mounted, new_world, open_mounted


async def names(mounted: Mounted, from_key: int = 0) -> list[bytes]:
    dataset = mounted.snapshots.named("photos")
    async with aclosing(mounted.tree.listing(dataset.id, from_key)) as batches:
        return [name for rows in [batch async for batch in batches] for name in rows.names]


def name(key: int) -> bytes:
    return b"%020d.bin" % key


async def test_listings_show_all_datapoints_in_order_and_skip_gaps() -> None:
    world = await new_world()
    await world.commit([b"x"] * 3, 10)
    await world.commit([b"x"] * 2, 0)
    async with open_mounted(world) as mounted:
        assert await names(mounted) == [name(k) for k in (0, 1, 10, 11, 12)]


async def test_a_listing_resumed_after_a_change_neither_repeats_nor_skips() -> None:
    world = await new_world()
    await world.commit([b"x"] * 3, 10)
    async with open_mounted(world) as mounted:
        first = (await names(mounted))[:2]
        await world.commit([b"x"] * 5, 0)
        await world.commit([b"x"] * 2, 13)
        await mounted.snapshots.refresh()
        assert first + await names(mounted, 12) == [name(k) for k in (10, 11, 12, 13, 14)]


async def test_every_key_is_where_the_snapshot_says() -> None:
    world = await new_world()
    for first in (0, 10, 20):
        await world.commit([b"x"] * 5, first)
    dataset = await world.dataset()
    snapshot = Snapshot.of(dataset, await world.catalog.dataranges(dataset.id))
    for key in range(-1, 30):
        at = snapshot.position(key)
        expected = next((i for i, f in enumerate((0, 10, 20)) if f <= key < f + 5), None)
        assert at == expected
        assert [r.keys.start for r in snapshot.from_key(max(key, 0))] == [
            f for f in (0, 10, 20) if f + 5 > max(key, 0)
        ]
    sizes = [r.size for r in snapshot.dataranges]
    parts = snapshot.objects_in(Span(sizes[0] - 10, sizes[0] + sizes[1] + 10))
    assert [(r.keys.start, s) for r, s in parts] == [
        (0, Span(sizes[0] - 10, sizes[0])),
        (10, Span(0, sizes[1])),
        (20, Span(0, 10)),
    ]


async def test_changes_are_followed_and_removals_reported() -> None:
    world = await new_world()
    one = await world.commit([b"x"])
    sender, receiver = trio.open_memory_channel[Removed](1)
    async with (
        open_mounted(world) as mounted,
        world.catalog.changes() as feed,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(mounted.snapshots.follow, feed, sender)
        assert await names(mounted) == [name(0)]
        await world.commit([b"y"], 1)
        with trio.fail_after(5):
            while await names(mounted) != [name(0), name(1)]:
                await trio.lowlevel.checkpoint()
        world.catalog.remove(one.id)
        with trio.fail_after(5):
            removed = await receiver.receive()
        assert [datarange.id for _, datarange in removed.dataranges] == [one.id]
        assert await names(mounted) == [name(1)]
        nursery.cancel_scope.cancel()


async def test_what_was_seen_stays_readable_while_postgres_is_away(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = await new_world()
    await world.commit([b"seen"])
    await world.dataset("other")
    sender, _receiver = trio.open_memory_channel[Removed](1)
    async with (
        open_mounted(world) as mounted,
        world.catalog.changes() as feed,
        trio.open_nursery() as nursery,
    ):
        assert await mounted.read(0) == b"seen"

        async def away(*_: object) -> None:
            await trio.lowlevel.checkpoint()
            raise Unavailable("Postgres is away")

        with monkeypatch.context() as patch:
            patch.setattr(world.catalog, "datasets", away)
            patch.setattr(world.catalog, "dataranges", away)
            nursery.start_soon(mounted.snapshots.follow, feed, sender)
            await trio.sleep(10)
            assert await mounted.read(0) == b"seen"
            with pytest.raises(Unavailable):
                await mounted.read(0, name="other")
        assert caplog.text.count("the last state serves") == 1
        await world.commit([b"new"], 1)
        await trio.sleep(2)
        assert await mounted.read(1) == b"new"
        nursery.cancel_scope.cancel()


async def test_unknown_datasets_are_absent() -> None:
    world = await new_world()
    async with open_mounted(world) as mounted:
        with pytest.raises(NotFound):
            mounted.snapshots.named("photos")
        with pytest.raises(NotFound):
            await mounted.snapshots.of(DatasetId(77))


async def test_a_dataset_with_damaged_rows_keeps_its_state_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    one = await world.commit([b"x"])
    await world.commit([b"y"], name="other")
    dataranges = world.catalog.dataranges

    async def damaged(dataset_id: DatasetId) -> list[Datarange]:
        if dataset_id == one.dataset_id:
            raise Corrupt("datarange 1 in Postgres has keys 5 to 3")
        return await dataranges(dataset_id)

    async with open_mounted(world) as mounted:
        assert await mounted.read(0) == b"x"
        assert await mounted.read(0, name="other") == b"y"
        await world.commit([b"z"], 1, name="other")
        await world.commit([b"z"], 1)
        monkeypatch.setattr(world.catalog, "dataranges", damaged)
        await mounted.snapshots.refresh()
        assert await mounted.read(1, name="other") == b"z"
        assert await mounted.read(0) == b"x"
    assert caplog.text.count("keeps its last state") == 1

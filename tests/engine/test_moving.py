"""Reading while dataranges are merged and their old objects deleted at once: right bytes, or an error."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

import pytest
import trio
import trio.testing

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.model import Dataset
from datas3tfs.core.prefetch import PrefetchLimits
from datas3tfs.core.spans import Span
from datas3tfs.engine.snapshot import Removed
from datas3tfs.errors import Corrupt, NotFound, Unavailable
from tests.engine.test_compactor import aggregate, buried
from tests.harness.world import Mounted, World, new_world, open_mounted

QUIET = PrefetchLimits(0, 0)
CONTENTS = [random.Random(n).randbytes(size) for n, size in enumerate([10, 0, 3 * CHUNK + 7, 1, 5 * CHUNK])]


async def filled(contents: Sequence[bytes] = CONTENTS) -> World:
    world = await new_world()
    for key, content in enumerate(contents):
        await world.commit([content], key)
    return world


async def replaced(world: World, start: int = 0, stop: int = len(CONTENTS)) -> None:
    """Merge, and delete the old objects at once."""
    await aggregate(world, start, stop)
    world.cache.entries.clear()
    await buried(world)


async def names(mounted: Mounted) -> list[bytes]:
    dataset = mounted.snapshots.named("photos")
    async with aclosing(mounted.tree.listing(dataset.id, 0)) as batches:
        return [name for rows in [batch async for batch in batches] for name in rows.names]


async def test_open_files_are_read_on_in_the_merged_object() -> None:
    world = await filled()
    async with open_mounted(world, limits=QUIET) as mounted:
        dataset = mounted.snapshots.named("photos")
        files = [await mounted.tree.locate(dataset.id, key) for key in range(len(CONTENTS))]
        before = bytes(await mounted.reader.read(files[2], 0, CHUNK))
        await replaced(world)
        rest = bytes(await mounted.reader.read(files[2], CHUNK, 1 << 30))
        assert before + rest == CONTENTS[2]
        for file, content in zip(files, CONTENTS, strict=True):
            assert await mounted.reader.read(file, 0, 1 << 30) == content
        await mounted.reader.check_empty(files[1])
        assert {file.here.datarange.keys for file in files} == {Span(0, 5)}
    assert world.counters.get("read.moved") == 5, "each handle once"


async def test_a_file_that_is_merged_twice_is_followed_twice() -> None:
    world = await filled()
    async with open_mounted(world, limits=QUIET) as mounted:
        dataset = mounted.snapshots.named("photos")
        file = await mounted.tree.locate(dataset.id, 2)
        await replaced(world, 1, 3)
        assert await mounted.reader.read(file, 0, 10) == CONTENTS[2][:10]
        await replaced(world, 0, 5)
        assert await mounted.reader.read(file, 2 * CHUNK, 10) == CONTENTS[2][2 * CHUNK : 2 * CHUNK + 10]


async def test_several_reads_of_one_handle_at_once_are_all_right() -> None:
    world = await filled()
    async with open_mounted(world, limits=QUIET) as mounted:
        dataset = mounted.snapshots.named("photos")
        file = await mounted.tree.locate(dataset.id, 4)
        await replaced(world)
        wrong: list[int] = []

        async def read(offset: int) -> None:
            if await mounted.reader.read(file, offset, 1000) != CONTENTS[4][offset : offset + 1000]:
                wrong.append(offset)

        async with trio.open_nursery() as nursery:
            for offset in range(0, 5 * CHUNK, CHUNK // 3):
                nursery.start_soon(read, offset)
        assert not wrong


async def test_what_is_looked_up_before_the_news_arrives_is_found() -> None:
    world = await filled()
    async with open_mounted(world) as mounted:
        dataset = mounted.snapshots.named("photos")
        assert len((await mounted.snapshots.of(dataset.id)).dataranges) == 5
        await replaced(world)
        found = await mounted.tree.lookup(dataset.id, "00000000000000000003.bin")
        assert found.datarange.keys == Span(0, 5)
    async with open_mounted(world) as mounted:
        await mounted.snapshots.of(mounted.snapshots.named("photos").id)
        assert await names(mounted) == [b"%020d.bin" % key for key in range(5)]


async def test_a_listing_before_the_news_arrives_is_complete() -> None:
    world = await filled()
    async with open_mounted(world) as mounted:
        dataset = mounted.snapshots.named("photos")
        await mounted.snapshots.of(dataset.id)
        async with aclosing(mounted.tree.listing(dataset.id, 0)) as batches:
            first = await anext(batches)
            await replaced(world)
            rest = [name async for rows in batches for name in rows.names]
        assert first.names + rest == [b"%020d.bin" % key for key in range(5)]


async def test_an_object_that_is_lost_is_reported_and_the_catalog_not_asked_for_each_read() -> None:
    world = await filled()
    async with open_mounted(world, limits=QUIET) as mounted:
        dataset = mounted.snapshots.named("photos")
        file = await mounted.tree.locate(dataset.id, 0)
        del world.store.objects[file.datarange.data_key]
        asked = 0
        real = world.catalog.datasets

        async def counted() -> list[Dataset]:
            nonlocal asked
            asked += 1
            return await real()

        world.catalog.datasets = counted  # type: ignore[method-assign]  # to count
        for _ in range(20):
            with pytest.raises(Corrupt, match="gone"):
                await mounted.reader.read(file, 0, 10)
        assert asked == 1


@pytest.mark.parametrize("what", ["removed", "other content"])
async def test_a_handle_never_shows_another_datapoint_of_the_same_key(what: str) -> None:
    world = await filled()
    async with open_mounted(world, limits=QUIET) as mounted:
        dataset = mounted.snapshots.named("photos")
        file = await mounted.tree.locate(dataset.id, 0)
        await world.catalog.ranges.remove(dataset.id, Span(0, 1))
        if what == "other content":
            await world.commit([b"0123456789"], 0)
        await buried(world)
        with pytest.raises(Corrupt, match="gone"):
            await mounted.reader.read(file, 0, 10)


async def test_if_the_catalog_is_away_the_read_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    world = await filled()
    async with open_mounted(world, limits=QUIET, timeout=5) as mounted:
        dataset = mounted.snapshots.named("photos")
        file = await mounted.tree.locate(dataset.id, 0)
        await replaced(world)

        async def away() -> list[Dataset]:
            raise Unavailable("Postgres is away")

        real, world.catalog.datasets = world.catalog.datasets, away  # type: ignore[method-assign]  # an outage
        begin = trio.current_time()
        with pytest.raises(Unavailable):
            await mounted.reader.read(file, 0, 10)
        assert trio.current_time() - begin <= 5.1
        world.catalog.datasets = real  # type: ignore[method-assign]  # its end
        await trio.sleep(3)
        assert await mounted.reader.read(file, 0, 10) == CONTENTS[0]


async def test_readers_and_merges_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """As a mount does: the news are followed, handles are kept for a while, all is read again and again."""
    contents = [random.Random(n).randbytes(1 + n * 977 % 5000) for n in range(64)]
    world = await filled(contents)
    rng = random.Random(1)
    sender, receiver = trio.open_memory_channel[Removed](1000)
    async with open_mounted(world, budget=6000, limits=QUIET) as mounted, world.catalog.changes() as feed:
        dataset = mounted.snapshots.named("photos")
        is_over = False

        async def read_on(seed: int) -> None:
            chance = random.Random(seed)
            while not is_over:
                key = chance.randrange(64)
                file = await mounted.tree.locate(dataset.id, key)
                for _ in range(chance.randrange(1, 5)):
                    assert await mounted.reader.read(file, 0, 1 << 20) == contents[key]
                    await trio.sleep(chance.random())
                assert len(await names(mounted)) == 64

        async def settle() -> None:
            async for removed in receiver:
                await trio.sleep(rng.random())
                mounted.snapshots.settle(removed)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(mounted.snapshots.follow, feed, sender, settles=True))
            nursery.start_soon(settle)
            async with trio.open_nursery() as readers:
                for seed in range(6):
                    readers.start_soon(read_on, seed)
                while len(there := await world.catalog.dataranges(dataset.id)) > 1:
                    first = rng.randrange(len(there) - 1)
                    last = min(first + rng.randrange(1, 6), len(there) - 1)
                    await replaced(world, there[first].keys.start, there[last].keys.stop)
                    await trio.sleep(rng.random())
                is_over = True
            nursery.cancel_scope.cancel()
    receiver.close()
    assert world.counters.get("read.moved") > 0
    with pytest.raises(NotFound):
        await world.catalog.ranges.remove(dataset.id, Span(0, 1))

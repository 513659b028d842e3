"""Reading: the right bytes, in few requests, whatever the store does."""

import random

import pytest
import trio
import trio.testing

from datas3tfs.core import tar
from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.prefetch import PrefetchLimits
from datas3tfs.core.reads import cut
from datas3tfs.core.spans import Span
from datas3tfs.engine.blocks import object_ref
from datas3tfs.errors import Corrupt, NotFound, Unavailable
from tests.harness.world import Mounted, World, new_world, open_mounted

SMALL = [bytes([i % 251]) * (4096 + i % 3) for i in range(1000)]
QUIET = PrefetchLimits(0, 0)


def data_gets(world: World) -> list[tuple[str, Span]]:
    return [(key, span) for key, span in world.store.gets if key.endswith(".tar")]


def damage(world: World, key: str, position: int) -> None:
    body = bytearray(world.store.objects[key])
    body[position] ^= 0x55
    world.store.objects[key] = bytes(body)


async def test_every_size_reads_back_in_any_cut() -> None:
    rng = random.Random(7)
    sizes = [0, 1, 511, 512, 513, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 77]
    contents = [rng.randbytes(size) for size in sizes]
    world = await new_world()
    await world.commit(contents, 10)
    async with open_mounted(world) as mounted:
        for key, content in enumerate(contents, 10):
            assert await mounted.read(key) == content
            for _ in range(20):
                offset, size = rng.randrange(0, len(content) + 2), rng.randrange(0, 2 * CHUNK)
                assert await mounted.read(key, offset, size) == content[offset : offset + size]


async def test_a_thousand_datapoints_in_order_cost_few_requests_across_dataranges() -> None:
    world = await new_world()
    for first in range(0, 1000, 250):
        await world.commit(SMALL[first : first + 250], first)
    async with open_mounted(world) as mounted:
        for key, content in enumerate(SMALL):
            assert await mounted.read(key) == content
    indices = [key for key, _ in world.store.gets if not key.endswith(".tar")]
    assert len(indices) == 4
    assert len(data_gets(world)) <= 10


async def test_random_order_costs_one_request_each_and_reads_over_hardly_anything() -> None:
    contents = [bytes([i % 256]) * 40_000 for i in range(3000)]
    world = await new_world()
    await world.commit(contents)
    order = random.Random(3).sample(range(3000), 100)
    async with open_mounted(world) as mounted:
        for key in order:
            assert await mounted.read(key) == contents[key]
    fetched = sum(span.length for _, span in data_gets(world))
    assert len(data_gets(world)) <= len(order)
    assert fetched <= 40_512 * len(order), "not a byte beyond headers and contents"


async def test_parallel_readers_of_the_same_bytes_share_one_request() -> None:
    world = await new_world()
    await world.commit([b"x" * 5000])
    async with open_mounted(world) as mounted, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(mounted.read, 0)
    assert len(data_gets(world)) == 1


async def test_eight_parallel_readers_get_the_right_bytes() -> None:
    world = await new_world()
    await world.commit(SMALL)

    async def scan(mounted: Mounted, start: int) -> None:
        for key in range(start, 1000, 8):
            assert await mounted.read(key) == SMALL[key]

    async with open_mounted(world) as mounted, trio.open_nursery() as nursery:
        for start in range(8):
            nursery.start_soon(scan, mounted, start)


async def test_memory_stays_within_its_budget() -> None:
    contents = [bytes([i]) * 300_000 for i in range(60)]
    world = await new_world()
    await world.commit(contents)
    budget = 4 << 20
    async with open_mounted(world, budget=budget, limits=PrefetchLimits(256 << 10, 1 << 20)) as mounted:
        for _ in range(2):
            for key, content in enumerate(contents):
                assert await mounted.read(key) == content
                assert mounted.pool.used <= budget + CHUNK + 1024


@pytest.mark.parametrize("where", ["header", "content"])
async def test_damaged_bytes_in_the_object_never_reach_the_reader(where: str) -> None:
    world = await new_world()
    datarange = await world.commit([b"a" * 1000, b"b" * 1000, b"c" * 1000])
    damage(world, datarange.data_key, 1536 + (10 if where == "header" else 700))
    async with open_mounted(world, limits=QUIET) as mounted:
        assert await mounted.read(0) == b"a" * 1000
        with pytest.raises(Corrupt, match=r"00000000000000000001\.bin"):
            await mounted.read(1)
        assert await mounted.read(2) == b"c" * 1000


async def test_damage_in_the_middle_of_a_large_datapoint_is_found() -> None:
    world = await new_world()
    datarange = await world.commit([bytes(4 * CHUNK)])
    damage(world, datarange.data_key, 512 + 2 * CHUNK + 5)
    async with open_mounted(world, limits=QUIET) as mounted:
        assert await mounted.read(0, 0, 2 * CHUNK) == bytes(2 * CHUNK)
        with pytest.raises(Corrupt):
            await mounted.read(0, 2 * CHUNK, 10)
        assert await mounted.read(0, 3 * CHUNK, 10) == bytes(10)


async def test_bytes_mangled_on_the_way_are_fetched_again() -> None:
    world = await new_world()
    datarange = await world.commit([b"a" * 1000])
    good = world.store.objects[datarange.data_key]

    async def mangle_once(method: str, key: str) -> None:
        await trio.lowlevel.checkpoint()
        first = world.failing.calls["get_range"] == 1
        world.store.objects[datarange.data_key] = b"\0" * len(good) if first else good

    world.failing.before_each = mangle_once
    async with open_mounted(world) as mounted:
        assert await mounted.read(0) == b"a" * 1000
    assert world.counters.get("read.corrupt") == 1


async def test_swapped_datapoints_are_never_taken_for_each_other() -> None:
    """Two entries of equal size, exchanged in the object, checksums and all: the names tell."""
    world = await new_world()
    datarange = await world.commit([b"a" * 512, b"b" * 512])
    body = world.store.objects[datarange.data_key]
    world.store.objects[datarange.data_key] = body[1024:2048] + body[:1024] + body[2048:]
    async with open_mounted(world, limits=QUIET) as mounted:
        for key in (0, 1):
            with pytest.raises(Corrupt):
                await mounted.read(key)


async def test_the_middle_of_a_large_datapoint_is_only_served_behind_its_own_header() -> None:
    world = await new_world()
    datarange = await world.commit([bytes(3 * CHUNK)])
    damage(world, datarange.data_key, 3)
    async with open_mounted(world, limits=QUIET) as mounted:
        with pytest.raises(Corrupt):
            await mounted.read(0, 2 * CHUNK, 10)


async def test_an_object_that_is_gone_is_corrupt_not_absent() -> None:
    world = await new_world()
    datarange = await world.commit([b"a"])
    async with open_mounted(world) as mounted:
        file = await mounted.tree.locate(datarange.dataset_id, 0)
        del world.store.objects[datarange.data_key]
        with pytest.raises(Corrupt, match="gone"):
            await mounted.reader.read(file, 0, 1)


async def test_a_failed_fetch_is_reported_fails_again_at_once_and_is_tried_afresh_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    await world.commit([b"a" * 10])
    world.failing.fail("get_range", 1, Unavailable("S3 is away"))
    async with open_mounted(world) as mounted:
        for _ in range(2):  # the kernel asks twice: its read-ahead, and then for the page itself
            with pytest.raises(Unavailable, match=r"00000000000000000000\.bin: .*S3 is away"):
                await mounted.read(0)
        assert world.failing.calls["get_range"] == 1
        await trio.sleep(3)
        assert await mounted.read(0) == b"a" * 10


async def test_a_reader_that_joined_a_fetch_about_to_fail_tries_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    await world.commit([b"a" * 10])
    world.failing.fail("get_range", 1, Unavailable("away for a while"))

    async def slow(method: str, key: str) -> None:
        await trio.sleep(5)

    world.failing.before_each = slow
    async with open_mounted(world) as mounted:
        first = await mounted.tree.locate((await world.dataset()).id, 0)
        second = await mounted.tree.locate((await world.dataset()).id, 0)
        results: list[bytes] = []

        async def read_first() -> None:
            with pytest.raises(Unavailable):
                await mounted.reader.read(first, 0, 10)

        async def read_second() -> None:
            await trio.sleep(1)
            results.append(bytes(await mounted.reader.read(second, 0, 10)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_first)
            nursery.start_soon(read_second)
        assert results == [b"a" * 10]


async def test_a_second_pass_over_what_is_here_fetches_no_padding() -> None:
    contents = [bytes([i % 251]) * 40_100 for i in range(100)]
    world = await new_world()
    await world.commit(contents)
    order = random.Random(5).sample(range(100), 100)
    async with open_mounted(world) as mounted:
        for key in order:
            await mounted.read(key)
        before = len(data_gets(world))
        for key in range(100):
            await mounted.read(key)
    assert len(data_gets(world)) == before


async def test_a_damaged_header_in_a_kept_extent_is_fetched_again_for_the_middle() -> None:
    world = await new_world()
    datarange = await world.commit([b"x", bytes(3 * CHUNK)])
    good = world.store.objects[datarange.data_key]
    mangled = good[:1030] + b"?" + good[1031:]
    async with open_mounted(world, limits=QUIET) as mounted:
        world.store.objects[datarange.data_key] = mangled
        index = await mounted.indices.of(world.bucket_id, datarange)
        ref = object_ref(await world.dataset(), datarange, index)
        mounted.pool.request(ref, Span(0, 1024 + 512 + CHUNK))
        await trio.testing.wait_all_tasks_blocked()
        world.store.objects[datarange.data_key] = good
        assert await mounted.read(1, 2 * CHUNK, 10) == bytes(10)


async def test_an_empty_datapoint_whose_index_lies_is_noticed_when_it_is_opened() -> None:
    world = await new_world()
    datarange = await world.commit([b""])
    body = world.store.objects[datarange.data_key]
    world.store.objects[datarange.data_key] = tar.build_header("00000000000000000000.bin", 5, 0) + body[512:]
    async with open_mounted(world, limits=QUIET) as mounted:
        file = await mounted.tree.locate(datarange.dataset_id, 0)
        with pytest.raises(Corrupt):
            await mounted.reader.check_empty(file)


async def test_a_store_that_hangs_costs_the_time_limit_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    await world.commit([b"a" * 10])

    async def hang(method: str, key: str) -> None:
        if method == "get_range":
            await trio.sleep_forever()

    world.failing.before_each = hang
    async with open_mounted(world, timeout=5) as mounted:
        begin = trio.current_time()
        with pytest.raises(Unavailable, match="within 5 s"):
            await mounted.read(0)
        assert trio.current_time() - begin == pytest.approx(5)


async def test_missing_datapoints_are_absent() -> None:
    world = await new_world()
    await world.commit([b"a"], 5)
    dataset = await world.dataset()
    async with open_mounted(world) as mounted:
        for name in (
            "00000000000000000004.bin",
            "00000000000000000006.bin",
            "00000000000000000005.txt",
            "5.bin",
            "",
            "x" * 300,
        ):
            with pytest.raises(NotFound):
                await mounted.tree.lookup(dataset.id, name)
        found = await mounted.tree.lookup(dataset.id, "00000000000000000005.bin")
        assert found.entry.key == 5


@pytest.mark.parametrize("is_pushed", [True, False])
@pytest.mark.parametrize("size", [4096, 1 << 20])
async def test_what_is_in_the_page_cache_and_passed_makes_room_before_the_budget_is_spent(
    is_pushed: bool, size: int
) -> None:
    contents = [bytes([i % 251]) * size for i in range(max(40, (4 << 20) // size))]
    world = await new_world()
    datarange = await world.commit(contents)
    window = max(256 << 10, 2 * size)
    async with open_mounted(world, limits=PrefetchLimits(window, window)) as mounted:
        mounted.pool.when_ahead = lambda extent: setattr(extent, "is_pushed", is_pushed)
        most = 0
        for key, content in enumerate(contents):
            assert await mounted.read(key) == content
            most = max(most, mounted.pool.used)
    assert (most < 6 * window) == is_pushed
    assert sum(span.length for _, span in data_gets(world)) <= datarange.size, "nothing was fetched twice"


async def test_who_reads_backwards_is_not_taken_for_one_who_has_passed() -> None:
    world = await new_world()
    datarange = await world.commit(SMALL)
    async with open_mounted(world, limits=PrefetchLimits(256 << 10, 256 << 10)) as mounted:
        mounted.pool.when_ahead = lambda extent: setattr(extent, "is_pushed", True)
        for key in reversed(range(len(SMALL))):
            assert await mounted.read(key) == SMALL[key]
    assert sum(span.length for _, span in data_gets(world)) <= datarange.size, "nothing was fetched twice"


async def test_what_is_read_in_an_announced_order_stays() -> None:
    world = await new_world()
    datarange = await world.commit(SMALL)
    async with open_mounted(world) as mounted:
        mounted.prefetcher.is_announced = lambda file: True
        mounted.pool.when_ahead = lambda extent: setattr(extent, "is_pushed", True)
        file = await mounted.tree.locate((await world.dataset()).id, 0)
        stretches = cut(file.index, Span(0, datarange.size), 256 << 10)
        for stretch in stretches:
            assert mounted.pool.request(file.ref, stretch)
        for key in random.Random(8).sample(range(1000), 1000):
            assert await mounted.read(key) == SMALL[key]
    assert len(data_gets(world)) == len(stretches)

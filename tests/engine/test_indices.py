"""Indices: from memory, disk or S3; damaged, foreign and bare ones; never the wrong generation."""

import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio.testing

from datas3tfs.core import tar
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.model import Datarange, DatarangeId, DatasetId
from datas3tfs.core.scan import scan
from datas3tfs.core.spans import Span
from datas3tfs.engine.indices import cache_key, open_indices
from datas3tfs.errors import Corrupt, Unavailable
from tests.core.test_scan import archive, datapoints
from tests.harness.world import World, new_world, open_mounted


def index_gets(world: World) -> int:
    return sum(not key.endswith(".tar") for key, _ in world.store.gets)


def bare_records(world: World, datarange: Datarange) -> bytes:
    """The records of a TAR that has one header block per entry, as the Go implementations write them."""
    body, offset, records = world.store.objects[datarange.data_key], 0, b""
    for _ in range(datarange.count):
        size = tar.parse_header(body[offset : offset + 512]).size
        records += struct.pack(">QQ", offset, 1 << 48 | size)
        offset += 512 + tar.padded(size)
    return records


async def test_an_index_is_fetched_once_then_comes_from_memory_then_from_disk() -> None:
    world = await new_world()
    datarange = await world.commit([b"a", b"bc"])
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        assert indices.peek(datarange) is None
        first = await indices.of(world.bucket_id, datarange)
        assert await indices.of(world.bucket_id, datarange) is first
        assert indices.peek(datarange) is first
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        assert (await indices.of(world.bucket_id, datarange)).sizes(0, 2) == [1, 2]
    assert index_gets(world) == 1
    assert world.counters.get("cache.index_hit") == 1


async def test_a_damaged_cache_entry_is_fetched_again() -> None:
    world = await new_world()
    datarange = await world.commit([b"a", b"bc"])
    for damaged in (
        lambda e: e[:-1],
        lambda e: e[:70] + b"\xff" + e[71:],
        lambda e: b"",
        lambda e: b"x" * 10,
    ):
        async with open_indices(world.cache, world.stores, world.counters) as indices:
            await indices.of(world.bucket_id, datarange)
        (key,) = world.cache.entries
        world.cache.entries[key] = damaged(world.cache.entries[key])
        before = index_gets(world)
        async with open_indices(world.cache, world.stores, world.counters) as indices:
            assert (await indices.of(world.bucket_id, datarange)).sizes(0, 2) == [1, 2]
        assert index_gets(world) == before + 1


def test_no_two_generations_of_a_range_share_a_cache_key() -> None:
    base = Datarange(DatarangeId(1), DatasetId(1), Span(0, 10), "data", "index", 100, 5)
    others = [
        replace(base, id=DatarangeId(2)),
        replace(base, keys=Span(0, 11)),
        replace(base, keys=Span(1, 10)),
        replace(base, data_key="datb"),
        replace(base, index_key="indey"),
        replace(base, data_key="data\nindex", index_key=""),
        replace(base, size=101),
        replace(base, created_ns=6),
    ]
    assert len({cache_key(datarange) for datarange in [base, *others]}) == len(others) + 1


async def test_a_bare_index_is_completed_from_the_headers_in_few_requests_and_remembered() -> None:
    contents = [bytes([i % 256]) * 3000 for i in range(500)]
    world = await new_world()
    datarange = await world.commit(contents, 7, mtime_ns=3_000_000_000)
    world.store.objects[datarange.index_key] = bare_records(world, datarange)
    async with open_mounted(world) as mounted:
        index = await mounted.indices.of(world.bucket_id, datarange)
        assert index.names(0, 1) == [b"00000000000000000007.bin"]
        assert index.mtimes_ns(499, 1) == [3_000_000_000]
        assert index.entry(3).crc is None
        assert len(world.store.gets) <= 3  # the index, and 1.8 MB of headers and contents at once
        for i in (0, 250, 499):
            assert await mounted.read(7 + i) == contents[i]
    world.store.gets.clear()
    async with open_mounted(world) as mounted:
        await mounted.indices.of(world.bucket_id, datarange)
    assert world.store.gets == []


async def test_headers_far_apart_are_read_without_what_lies_between() -> None:
    world = await new_world()
    datarange = await world.commit([bytes(3 << 20), bytes(3 << 20), b"x"])
    world.store.objects[datarange.index_key] = bare_records(world, datarange)
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        await indices.of(world.bucket_id, datarange)
    assert sum(span.length for key, span in world.store.gets if key.endswith(".tar")) < 10_000


@pytest.mark.parametrize(
    "lie",
    [
        lambda r: struct.pack(">QQ", 1 << 40, 1 << 48 | 3000) + r[16:],
        lambda r: r[:8] + struct.pack(">Q", 1 << 48 | 2999) + r[16:],
        lambda r: r[:8] + struct.pack(">Q", 2 << 48 | 2400) + r[16:],
        lambda r: struct.pack(">QQ", 512, 1 << 48 | 3000) + r[16:],
        lambda r: r[16:32] + r[:16] + r[32:],
        lambda r: r[16:] + r[-16:],
        lambda r: r[:-1],
        lambda r: r[:-16],
        lambda r: b"",
        lambda r: b"\x28\xb5\x2f\xfd" + r,
    ],
)
async def test_a_lying_bare_index_is_refused_as_a_whole(lie: Callable[[bytes], bytes]) -> None:
    world = await new_world()
    datarange = await world.commit([bytes([i]) * 3000 for i in range(3)])
    world.store.objects[datarange.index_key] = lie(bare_records(world, datarange))
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        with pytest.raises(Corrupt, match="datas3t/photos/dataranges/"):
            await indices.of(world.bucket_id, datarange)
    assert not world.cache.entries


async def test_the_index_of_another_datarange_is_refused() -> None:
    world = await new_world()
    one, two = await world.commit([b"a", b"b"]), await world.commit([b"c", b"d"], 2)
    world.store.objects[two.index_key] = world.store.objects[one.index_key]
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        with pytest.raises(Corrupt, match="not of"):
            await indices.of(world.bucket_id, two)


async def test_a_missing_index_is_corrupt() -> None:
    world = await new_world()
    datarange = await world.commit([b"a"])
    del world.store.objects[datarange.index_key]
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        with pytest.raises(Corrupt, match="gone"):
            await indices.of(world.bucket_id, datarange)


async def test_a_corrupt_index_is_not_fetched_for_every_lookup_but_looked_at_again_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    datarange = await world.commit([b"a"])
    good = world.store.objects[datarange.index_key]
    world.store.objects[datarange.index_key] = b"junk"
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        for _ in range(10):
            with pytest.raises(Corrupt):
                await indices.of(world.bucket_id, datarange)
        assert index_gets(world) == 3, "three attempts, once"
        world.store.objects[datarange.index_key] = good
        await trio.sleep(31)
        assert (await indices.of(world.bucket_id, datarange)).count == 1


async def test_an_index_mangled_on_the_way_is_fetched_again() -> None:
    world = await new_world()
    datarange = await world.commit([b"a"])
    good = world.store.objects[datarange.index_key]

    async def mangle_once(method: str, key: str) -> None:
        await trio.lowlevel.checkpoint()
        first = world.failing.calls["get"] == 1
        world.store.objects[datarange.index_key] = good[:-1] + b"?" if first else good

    world.failing.before_each = mangle_once
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        assert (await indices.of(world.bucket_id, datarange)).count == 1
    assert world.counters.get("index.corrupt") == 1


async def test_a_row_that_claims_more_datapoints_than_fit_costs_no_memory() -> None:
    world = await new_world()
    datarange = replace(await world.commit([b"a"]), keys=Span(0, 2**62))
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        with pytest.raises(Corrupt, match="too short"):
            await indices.of(world.bucket_id, datarange)


async def test_what_nobody_thought_of_ends_the_load_and_not_the_mount(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    datarange = await world.commit([b"a"])

    async def bug(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async with open_indices(world.cache, world.stores, world.counters) as indices:
        with monkeypatch.context() as patch:
            patch.setattr(world.store, "get", bug)
            with pytest.raises(Unavailable, match="ZeroDivisionError"):
                await indices.of(world.bucket_id, datarange)
        assert "please report it" in caplog.text
        assert (await indices.of(world.bucket_id, datarange)).count == 1


async def test_s3_being_away_is_remembered_for_a_moment_only(autojump_clock: trio.testing.MockClock) -> None:
    world = await new_world()
    datarange = await world.commit([b"a"])
    world.failing.fail("get", 1, Unavailable("away"))
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        for _ in range(2):  # the second one, who queued behind the first, is told at once
            with pytest.raises(Unavailable):
                await indices.of(world.bucket_id, datarange)
        assert world.failing.calls["get"] == 1
        await trio.sleep(1)
        assert (await indices.of(world.bucket_id, datarange)).count == 1


async def test_a_caller_that_gives_up_does_not_stop_the_load_for_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    datarange = await world.commit([b"a"])
    release = trio.Event()

    async def wait(method: str, key: str) -> None:
        await release.wait()

    world.failing.before_each = wait
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        with trio.move_on_after(1):
            await indices.of(world.bucket_id, datarange)
        release.set()
        assert (await indices.of(world.bucket_id, datarange)).count == 1
    assert world.failing.calls["get"] == 1


async def test_waiting_for_an_index_ends_when_patience_does_and_the_load_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    datarange = await world.commit([b"a"])

    async def slow(method: str, key: str) -> None:
        await trio.sleep(8)

    world.failing.before_each = slow
    async with open_indices(world.cache, world.stores, world.counters, 5) as indices:
        with pytest.raises(Unavailable, match=r"index\.zst: not ready within 5 s"):
            await indices.of(world.bucket_id, datarange)
        begun = trio.current_time()
        with pytest.raises(Unavailable, match="within 5 s"):  # the kernel sends lookups one by one
            await indices.of(world.bucket_id, datarange)
        assert trio.current_time() == begun
        await trio.sleep(4)
        assert (await indices.of(world.bucket_id, datarange)).count == 1
    assert world.failing.calls["get"] == 1


async def test_an_index_of_pax_headers_reads_with_its_true_block_counts() -> None:
    world = await new_world()
    datarange = await world.commit([b"abc", b"defg"])
    body = archive(*datapoints([b"abc", b"defg"], mtime=1.25), form=tarfile.PAX_FORMAT)
    builder = IndexBuilder()
    for found in scan([body]):
        builder.add(
            offset=found.offset, header_blocks=found.header_blocks, size=found.size,
            mtime_ns=found.mtime_ns, extension="bin", crc=found.crc,
        )  # fmt: skip
    world.store.objects[datarange.data_key] = body
    world.store.objects[datarange.index_key] = encode_index_file(
        builder.finish(first=0, object_size=len(body))
    )
    world.catalog.committed = {
        upload: replace(published, size=len(body)) for upload, published in world.catalog.committed.items()
    }
    async with open_mounted(world) as mounted:
        assert await mounted.read(1) == b"defg"
        file = await mounted.tree.locate(datarange.dataset_id, 1)
        assert file.entry.header.length == 3 * 512
        assert file.entry.mtime_ns == 1_250_000_000

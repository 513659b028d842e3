"""Aggregates: the same datapoints in one datarange, whatever fails when; never less than before."""

from __future__ import annotations

import io
import random
import re
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import google_crc32c
import pytest
import trio
import trio.testing

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.index import HAS_CRC
from datas3tfs.core.model import Datarange
from datas3tfs.core.spans import Span
from datas3tfs.engine.compactor import Compactor
from datas3tfs.engine.indices import open_indices
from datas3tfs.engine.sweeper import sweep
from datas3tfs.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable
from tests.engine.test_indices import bare_records
from tests.harness.world import World, new_world, open_mounted

MIB = 1 << 20


@asynccontextmanager
async def open_compactor(world: World) -> AsyncIterator[Compactor]:
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        yield Compactor(world.catalog, world.catalog, world.stores, indices)


async def aggregate(world: World, start: int, stop: int) -> Datarange:
    async with open_compactor(world) as compactor:
        return await compactor.aggregate("photos", Span(start, stop))


async def dataranges(world: World) -> list[Datarange]:
    return await world.catalog.dataranges((await world.dataset()).id)


async def swept(world: World) -> None:
    """Let all uploads expire, then sweep."""
    for upload_id in list(world.catalog.unpublished):
        world.catalog.expire(upload_id)
    await sweep(world.catalog, world.catalog, world.catalog, world.stores)
    await buried(world)


async def buried(world: World) -> None:
    """Delete whatever is ever to be deleted."""
    world.catalog.let_graves_fall_due()
    while await sweep(world.catalog, world.catalog, world.catalog, world.stores):
        pass


async def check(world: World, contents: Sequence[bytes], first: int = 0) -> None:
    """Every datapoint reads back, through a fresh mount; S3 holds what is committed, and nothing else."""
    async with open_mounted(world) as mounted:
        for key, content in enumerate(contents, first):
            assert await mounted.read(key) == content, key
    there = {key for one in await dataranges(world) for key in (one.data_key, one.index_key)}
    assert set(world.store.objects) == there
    assert not world.store.multiparts


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


SMALL = [noise(size, size) for size in (0, 1, 511, 512, 513, 40_000, CHUNK, CHUNK + 1, 3 * CHUNK + 5)]
LARGE = [noise(6 * MIB, 1), noise(3 * MIB, 2), noise(9 * MIB, 3), b"x", noise(11 * MIB, 4)]


async def commit_each(world: World, contents: Sequence[bytes], per: int = 1) -> None:
    for first in range(0, len(contents), per):
        await world.commit(contents[first : first + per], first, mtime_ns=first * 10**9)


async def test_small_dataranges_become_one_in_one_put() -> None:
    world = await new_world()
    await commit_each(world, SMALL, 2)
    world.failing.calls.clear()
    made = await aggregate(world, 0, len(SMALL))
    assert await dataranges(world) == [made]
    assert made.keys == Span(0, len(SMALL))
    assert world.failing.calls["put_stream"] == 1
    assert world.failing.calls["begin_multipart"] == 0
    assert len(world.store.objects[made.data_key]) == made.size
    await swept(world)
    await check(world, SMALL)


async def test_the_merged_object_is_a_tar_that_others_read() -> None:
    world = await new_world()
    await commit_each(world, SMALL, 4)
    made = await aggregate(world, 0, len(SMALL))
    with tarfile.open(fileobj=io.BytesIO(world.store.objects[made.data_key])) as opened:
        found = [opened.extractfile(member) for member in opened]
        assert [file.read() for file in found if file is not None] == SMALL


async def test_large_dataranges_are_copied_by_the_store() -> None:
    world = await new_world()
    await commit_each(world, LARGE)
    world.store.gets.clear()
    world.failing.calls.clear()
    made = await aggregate(world, 0, len(LARGE))
    assert world.failing.calls["copy_part"] >= 3
    assert world.failing.calls["put_stream"] == 0
    fetched = sum(span.length for key, span in world.store.gets if key != made.data_key)
    assert fetched < 12 * MIB, "what cannot be copied, and no more"
    await swept(world)
    await check(world, LARGE)


async def test_where_the_store_cannot_copy_all_is_streamed() -> None:
    world = await new_world()
    world.store.can_copy = False
    await commit_each(world, LARGE)
    async with open_compactor(world) as compactor:
        await compactor.aggregate("photos", Span(0, 4))
        await world.commit([noise(8 * MIB, 9)], 5)
        asked = world.failing.calls["copy_part"]
        assert asked
        await compactor.aggregate("photos", Span(4, 6))
        assert world.failing.calls["copy_part"] == asked, "it is known by now"
    assert not world.store.multiparts
    await swept(world)
    await check(world, [*LARGE, noise(8 * MIB, 9)])


@pytest.mark.parametrize("can_copy", [True, False])
async def test_times_names_and_checksums_are_kept(can_copy: bool) -> None:
    world = await new_world()
    world.store.can_copy = can_copy
    await commit_each(world, [*SMALL, *LARGE], 3)
    total = len(SMALL) + len(LARGE)
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        before = [
            (entry.name, entry.size, entry.mtime_ns, entry.crc)
            for one in await dataranges(world)
            for index in [await indices.of(world.bucket_id, one)]
            for entry in [index.entry(slot) for slot in range(index.count)]
        ]
        made = await aggregate(world, 0, total)
        index = await indices.of(world.bucket_id, made)
        after = [index.entry(slot) for slot in range(total)]
        assert [(e.name, e.size, e.mtime_ns, e.crc) for e in after] == before
        assert all(crc is not None for _, _, _, crc in before)


@pytest.mark.parametrize("bare", [(1,), (0, 2), (0, 1, 2)])
async def test_a_source_without_checksums_gets_some_or_none_has_any(bare: tuple[int, ...]) -> None:
    """One of them must not cost the others theirs; where nobody has any, nothing is read for them."""
    world = await new_world()
    contents = [b"a", b"b" * 1000, noise(3 * CHUNK, 1)]
    await commit_each(world, contents)
    there = await dataranges(world)
    for number in bare:
        world.store.objects[there[number].index_key] = bare_records(world, there[number])
    made = await aggregate(world, 0, 3)
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        index = await indices.of(world.bucket_id, made)
        assert bool(index.header.flags & HAS_CRC) == (len(bare) < 3)
        assert index.names(0, 3) == [b"%020d.bin" % key for key in range(3)]
        if len(bare) < 3:
            assert index.crcs(0, 3) == [google_crc32c.value(content) for content in contents]
    await swept(world)
    await check(world, contents)


async def test_a_bare_index_that_lies_about_its_tar_is_found_out() -> None:
    world = await new_world()
    await commit_each(world, [b"a", b"b" * 1000, b"c"])
    bare = (await dataranges(world))[1]
    world.store.objects[bare.index_key] = bare_records(world, bare)
    async with open_compactor(world) as compactor:
        await compactor._indices.of(world.bucket_id, bare)
        body = world.store.objects[bare.data_key]
        world.store.objects[bare.data_key] = b"x" + body[1:]
        with pytest.raises(Corrupt, match="at byte 0"):
            await compactor.aggregate("photos", Span(0, 3))
    assert len(await dataranges(world)) == 3


async def test_what_other_programs_put_around_the_entries_is_left_out() -> None:
    """A leading directory, record padding at the end, and a last padding that is cut off."""
    world = await new_world()
    await commit_each(world, [b"a" * 700, b"b" * 700])
    await swept(world)
    first, second = await dataranges(world)
    body = world.store.objects[first.data_key]
    directory = io.BytesIO()
    with tarfile.open(fileobj=directory, mode="w", format=tarfile.USTAR_FORMAT) as opened:
        info = tarfile.TarInfo("stuff/")
        info.type = tarfile.DIRTYPE
        opened.addfile(info)
    foreign = {
        first.data_key: directory.getvalue()[:512] + body + bytes(8192),
        second.data_key: world.store.objects[second.data_key][: 512 + 700],
    }
    offsets = {first.data_key: 512, second.data_key: 0}
    dataset = await world.dataset()
    for one in (first, second):
        await world.catalog.ranges.remove(dataset.id, one.keys)
    for number, (key, content) in enumerate(foreign.items()):
        other = key.replace(".tar", f"-{number + 1:012d}.tar")
        world.store.objects[other] = content
        record = offsets[key].to_bytes(8, "big") + (1).to_bytes(2, "big") + (700).to_bytes(6, "big")
        world.store.objects[other.replace(".tar", ".index")] = record
        await world.catalog.ranges.adopt(
            dataset.id, Span(number, number + 1), other, other.replace(".tar", ".index"), len(content)
        )
    made = await aggregate(world, 0, 2)
    assert made.size == 2 * (512 + 1024) + 1024
    await swept(world)
    await check(world, [b"a" * 700, b"b" * 700])


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "says"),
    [
        (0, 3, "at least two"),
        (1, 2, "at least two"),
        (0, 8, "not fully covered"),
        (0, 7, "not fully covered"),
        (20, 30, "not fully covered"),
        (1, 6, "not whole dataranges"),
    ],
)
async def test_what_is_not_adjacent_dataranges_is_refused(start: int, stop: int, says: str) -> None:
    world = await new_world()
    for first in (0, 3, 7):
        await world.commit([b"x"] * 3, first)
    if (start, stop) == (0, 3):
        assert (await aggregate(world, 0, 3)).keys == Span(0, 3), "it is one already"
        return
    before = await dataranges(world)
    with pytest.raises(Invalid, match=says):
        await aggregate(world, start, stop)
    assert await dataranges(world) == before
    assert not world.catalog.unpublished


async def test_an_unknown_dataset_is_not_found() -> None:
    world = await new_world()
    with pytest.raises(NotFound):
        await aggregate(world, 0, 2)


async def test_doing_it_again_changes_nothing() -> None:
    world = await new_world()
    await commit_each(world, SMALL)
    made = await aggregate(world, 0, len(SMALL))
    assert await aggregate(world, 0, len(SMALL)) == made
    assert await dataranges(world) == [made]


# -- what changes meanwhile ---------------------------------------------------------------------------


def at_call(world: World, method: str, act: Callable[[], Awaitable[object]]) -> None:
    """Let *act* happen before the first call of *method* on the store."""
    waiting = [act]

    async def before(called: str, key: str) -> None:
        if called == method and waiting:
            await waiting.pop()()

    world.failing.before_each = before


@pytest.mark.parametrize("method", ["copy_part", "complete_multipart", "size", "put"])
async def test_of_two_merges_of_the_same_one_wins_and_the_other_is_told(method: str) -> None:
    world = await new_world()
    await commit_each(world, LARGE)

    async def other() -> None:
        await aggregate(world, 0, 2)
        await buried(world)

    at_call(world, method, other)
    with pytest.raises(Conflict):
        await aggregate(world, 0, len(LARGE))
    world.failing.before_each = None
    assert [one.keys for one in await dataranges(world)][:2] == [Span(0, 2), Span(2, 3)]
    await swept(world)
    await check(world, LARGE)


async def test_a_source_that_is_removed_meanwhile_stays_removed() -> None:
    world = await new_world()
    await commit_each(world, SMALL[:4])
    dataset = await world.dataset()
    at_call(world, "put_stream", lambda: world.catalog.ranges.remove(dataset.id, Span(1, 2)))
    with pytest.raises(Conflict):
        await aggregate(world, 0, 4)
    assert [one.keys.start for one in await dataranges(world)] == [0, 2, 3]


async def test_one_that_was_removed_and_uploaded_again_is_not_the_same() -> None:
    world = await new_world()
    await commit_each(world, SMALL[:4])
    dataset = await world.dataset()

    async def exchange() -> None:
        await world.catalog.ranges.remove(dataset.id, Span(1, 2))
        await world.commit([b"other"], 1)

    at_call(world, "put", exchange)
    with pytest.raises(Conflict):
        await aggregate(world, 0, 4)
    world.failing.before_each = None
    await swept(world)
    await check(world, [SMALL[0], b"other", *SMALL[2:4]])


async def test_a_reader_goes_on_while_its_dataranges_are_merged() -> None:
    world = await new_world()
    await commit_each(world, SMALL)
    async with open_mounted(world) as mounted:
        before = [await mounted.read(key) for key in range(4)]
        await aggregate(world, 0, len(SMALL))
        rest = [await mounted.read(key) for key in range(4, len(SMALL))]
        assert before + rest == SMALL


# -- what fails ---------------------------------------------------------------------------------------

FAILURES = [
    ("get", 1), ("size", 3), ("get_range", 1), ("begin_multipart", 1), ("copy_part", 1), ("copy_part", 2),
    ("put_part", 1), ("complete_multipart", 1), ("put", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "nth", "after"),
    [("size", 1, False), *((method, nth, after) for method, nth in FAILURES for after in (False, True))],
)
async def test_a_failure_at_any_step_leaves_all_as_it_was(method: str, nth: int, after: bool) -> None:
    world = await new_world()
    await commit_each(world, LARGE)
    before = await dataranges(world)
    world.failing.calls.clear()
    world.cache.entries.clear()
    world.failing.fail(method, nth, Unavailable("S3 is away"), after=after)
    with pytest.raises(Unavailable):
        await aggregate(world, 0, len(LARGE))
    assert await dataranges(world) == before
    assert not world.catalog.unpublished
    await swept(world)
    await check(world, LARGE)
    await aggregate(world, 0, len(LARGE))
    await swept(world)
    await check(world, LARGE)


class Crash(BaseException):
    """The process is gone at this very step: no clean-up of ours runs."""


STEPS = [
    "begin", "confirm", "begin_multipart", "copy_part", "put_part", "complete_multipart", "size", "get_range",
    "put", "publish",
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_after_every_step_is_repaired_by_the_sweeper(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await new_world()
    await commit_each(world, LARGE)
    before = await dataranges(world)

    async def gone(*_: object) -> None:
        raise Crash

    if step in ("begin", "confirm", "publish"):
        real = getattr(world.catalog, step)

        async def act_and_crash(*args: object) -> None:
            await real(*args)
            raise Crash

        monkeypatch.setattr(world.catalog, step, act_and_crash)
    else:
        nth = world.failing.calls[step] + {"size": 3, "get_range": 4}.get(step, 1)
        world.failing.fail(step, nth, Crash(), after=True)
    monkeypatch.setattr(world.catalog, "abandon", gone)
    abort = world.store.abort_multipart
    monkeypatch.setattr(world.store, "abort_multipart", gone)
    with pytest.raises(Crash):
        await aggregate(world, 0, len(LARGE))
    monkeypatch.undo()
    assert world.store.abort_multipart == abort

    after = await dataranges(world)
    assert (len(after) == 1) == (step == "publish")
    assert after == before or step == "publish"
    await swept(world)
    assert not world.catalog.unpublished
    await check(world, LARGE)


@pytest.mark.parametrize(
    ("can_copy", "sizes", "position"),
    [
        (True, (6, 1, 2, 1, 11), 600_000),
        (False, (6, 1, 2, 1, 11), 600_000),
        (True, (6, 3, 11), 2 * MIB - 600),  # just before where its head ends that completes a part of 5 MiB
    ],
)
async def test_damage_on_the_way_never_gets_into_the_merged_object(
    can_copy: bool, sizes: Sequence[int], position: int
) -> None:
    """What passes through memory is checked: mangled for ever, it is given up; at times, fetched again."""
    contents = [noise(size * MIB, size) for size in sizes]
    world = await new_world()
    world.store.can_copy = can_copy
    await commit_each(world, contents)
    victim = (await dataranges(world))[2]
    good = world.store.objects[victim.data_key]
    mangled = bytearray(good)
    mangled[position] ^= 1

    async def mangle(method: str, key: str) -> None:
        if key == victim.data_key and method == "get_range":
            world.store.objects[key] = good if times[0] == 0 else bytes(mangled)
            times[0] = max(0, times[0] - 1)

    world.failing.before_each = mangle
    times = [1000]
    with pytest.raises(Corrupt, match=f"^{re.escape(victim.data_key)}: .*checksum"):
        await aggregate(world, 0, len(sizes))
    assert len(await dataranges(world)) == len(sizes)
    times = [2]
    await aggregate(world, 0, len(sizes))
    assert times == [0]
    assert (world.failing.calls["put_stream"] == len(sizes)) == can_copy, "those of the commits"
    world.failing.before_each = None
    world.store.objects[victim.data_key] = good
    await swept(world)
    await check(world, contents)


async def test_what_the_store_put_together_wrongly_is_found_before_anything_is_replaced() -> None:
    world = await new_world()
    await commit_each(world, LARGE)
    copy = world.store.copy_part

    async def wrong(key: str, multipart: str, number: int, source: str, span: Span) -> str | None:
        return await copy(key, multipart, number, source, span.shifted(-512 if span.start else 0))

    world.store.copy_part = wrong  # type: ignore[method-assign]  # a server that copies other bytes
    with pytest.raises(Corrupt, match="put together wrongly"):
        await aggregate(world, 0, len(LARGE))
    assert len(await dataranges(world)) == len(LARGE)
    await swept(world)
    await check(world, LARGE)


async def test_a_source_whose_object_is_gone_is_corrupt() -> None:
    world = await new_world()
    await commit_each(world, SMALL[5:8])
    victim = (await dataranges(world))[1]
    del world.store.objects[victim.data_key]
    with pytest.raises(Corrupt, match="no such object"):
        await aggregate(world, 0, 3)
    assert not world.catalog.unpublished


async def test_the_intent_is_renewed_while_a_long_merge_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    await commit_each(world, LARGE)

    async def slow(method: str, key: str) -> None:
        if method == "copy_part":
            await trio.sleep(1500)
            await sweep(world.catalog, world.catalog, world.catalog, world.stores)

    world.failing.before_each = slow
    made = await aggregate(world, 0, len(LARGE))
    assert await dataranges(world) == [made]


async def test_memory_stays_flat_however_large_the_sources() -> None:
    """No more than four parts are in flight, and none is large."""
    world = await new_world()
    world.store.can_copy = False
    await commit_each(world, [noise(MIB, n) for n in range(64)], 16)
    held = peak = 0
    inner = world.store.get_range

    async def counted(key: str, span: Span, total: int) -> bytes:
        nonlocal held, peak
        held += span.length
        peak = max(peak, held)
        await trio.testing.wait_all_tasks_blocked()
        held -= span.length
        return await inner(key, span, total)

    world.store.get_range = counted  # type: ignore[method-assign]  # to see what is asked for at once
    await aggregate(world, 0, 64)
    assert peak <= 40 * MIB


async def test_the_catalog_decides_whether_the_sources_are_still_the_same() -> None:
    world = await new_world()
    await commit_each(world, SMALL[:2])
    real = world.catalog.overlap
    stale = await real("photos", Span(0, 2))
    await aggregate(world, 0, 2)

    async def outdated(name: str, keys: Span) -> object:
        return stale

    world.catalog.overlap = outdated  # type: ignore[method-assign, assignment]  # as if read long ago
    with pytest.raises(Conflict):
        await aggregate(world, 0, 2)
    assert len(await dataranges(world)) == 1
    assert not world.catalog.unpublished

"""Import: a bucket whose database is gone comes back whole; what is not right is reported, not adopted."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing

from datas3tfs.core.model import BucketSpec, Found
from datas3tfs.core.names import data_object_key, index_object_key, staged_index_key
from datas3tfs.core.spans import Span
from datas3tfs.engine import importer
from datas3tfs.engine.compactor import Compactor
from datas3tfs.engine.importer import ImportReport, import_bucket
from datas3tfs.engine.indices import open_indices
from datas3tfs.errors import NotFound, Unavailable
from tests.harness import archives
from tests.harness.memory_cache import MemoryIndexCache
from tests.harness.memory_catalog import MemoryCatalog
from tests.harness.memory_objects import FailingStore, MemoryStores
from tests.harness.world import SPEC, World, new_world, open_mounted


async def without_database(world: World) -> World:
    """The same bucket, registered with a catalog that knows nothing."""
    catalog = MemoryCatalog()
    bucket = await catalog.add_bucket(SPEC)
    failing = FailingStore(world.store)
    stores = MemoryStores({bucket.id: failing})
    return World(catalog, world.store, failing, stores, MemoryIndexCache(), bucket.id)


async def imported(world: World, bucket: str = "main") -> ImportReport:
    catalog = world.catalog
    return await import_bucket(catalog, catalog, catalog.ranges, world.stores, bucket)


async def spans(world: World, name: str = "photos") -> list[Span]:
    dataset = await world.catalog.dataset(name)
    return [one.keys for one in await world.catalog.dataranges(dataset.id)]


async def check(world: World, contents: Sequence[bytes], first: int = 0, name: str = "photos") -> None:
    async with open_mounted(world) as mounted:
        for key, content in enumerate(contents, first):
            assert await mounted.read(key, name=name) == content, key


def put_go(world: World, tmp_path: Path, first: int, contents: Sequence[bytes], counter: int | None) -> str:
    """Put a datarange as the Go servers do: a plain TAR, a raw index. Return the TAR's key."""
    made = [
        archives.Sample(archives.key_name(key), content, 10**18)
        for key, content in enumerate(contents, first)
    ]
    folder = archives.write_folder(tmp_path / f"{first}-{counter}", made)
    archive = tmp_path / f"{first}-{counter}.tar"
    archives.write_go_layout(folder, archive)
    key = data_object_key("photos", Span(first, first + len(contents)), counter)
    index = index_object_key(key) if counter is None else staged_index_key(key)  # v1: .index.zst, raw
    world.store.objects[key] = archive.read_bytes()
    world.store.objects[index] = archives.go_index(archive)
    return key


async def test_a_bucket_whose_database_is_gone_comes_back_whole() -> None:
    old = await new_world()
    for first in (0, 3, 100):
        await old.commit([b"a" * first, b"b", b"c"], first)
    await old.commit([b"other"], 7, name="texts")
    world = await without_database(old)
    before = dict(world.store.objects)
    report = await imported(world)
    assert report == ImportReport(["photos", "texts"], 4, [], 0)
    assert await spans(world) == [Span(0, 3), Span(3, 6), Span(100, 103)]
    await check(world, [b"a" * 100, b"b", b"c"], 100)
    await check(world, [b"other"], 7, "texts")
    assert world.store.objects == before, "adopted as they are"


async def test_both_go_generations_are_read(tmp_path: Path) -> None:
    world = await new_world()
    put_go(world, tmp_path, 0, [b"first", b"generation"], None)
    put_go(world, tmp_path, 10, [b"second", b""], 17)
    report = await imported(world)
    assert (report.dataranges, report.skipped_count) == (2, 0)
    await check(world, [b"first", b"generation"])
    await check(world, [b"second", b""], 10)


async def test_doing_it_again_adopts_nothing_twice() -> None:
    old = await new_world()
    await old.commit([b"a"], 0)
    world = await without_database(old)
    await imported(world)
    assert await imported(world) == ImportReport()
    assert await imported(old) == ImportReport(), "the catalog that made them knows them"


async def test_what_the_catalog_has_replaced_or_not_finished_is_left_alone() -> None:
    world = await new_world()
    for first in range(3):
        await world.commit([b"a"], first)
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        await Compactor(world.catalog, world.catalog, world.stores, indices).aggregate("photos", Span(0, 3))
    world.failing.fail("put", world.failing.calls["put"] + 1, Unavailable("away"))
    with pytest.raises(Unavailable):
        await world.commit([b"d"], 10)
    assert await imported(world) == ImportReport()
    assert await spans(world) == [Span(0, 3)]


async def test_of_those_that_overlap_the_newest_is_taken(tmp_path: Path) -> None:
    world = await new_world()
    old = [put_go(world, tmp_path, first, [b"x", b"y"], first + 1) for first in (0, 2, 4)]
    merged = put_go(world, tmp_path, 0, [b"x", b"y"] * 3, 9)
    later = put_go(world, tmp_path, 5, [b"y", b"z"], 10)
    world.store.modified |= {key: 1000 + n for n, key in enumerate([*old, later, merged])}
    report = await imported(world)
    assert await spans(world) == [Span(0, 6)]
    assert sorted(report.skipped) == sorted(
        (key, f"overlaps {merged}, which is newer") for key in [*old, later]
    )


async def test_of_equally_new_ones_the_later_generation_is_taken(tmp_path: Path) -> None:
    world = await new_world()
    put_go(world, tmp_path, 0, [b"older"], 3)
    put_go(world, tmp_path, 0, [b"newer"], 12)
    await imported(world)
    await check(world, [b"newer"])


async def test_of_equally_new_ones_the_larger_is_taken(tmp_path: Path) -> None:
    world = await new_world()
    put_go(world, tmp_path, 0, [b"x"], 5)
    merged = put_go(world, tmp_path, 0, [b"x", b"y"], None)
    put_go(world, tmp_path, 1, [b"y"], 6)
    report = await imported(world)
    assert await spans(world) == [Span(0, 2)]
    assert {why for _, why in report.skipped} == {f"overlaps {merged}, which is newer"}


async def test_if_the_newest_is_damaged_the_next_is_taken(tmp_path: Path) -> None:
    world = await new_world()
    put_go(world, tmp_path, 0, [b"older"], 3)
    damaged = put_go(world, tmp_path, 0, [b"newer"], 12)
    world.store.objects[damaged] = b"\0" * len(world.store.objects[damaged])
    report = await imported(world)
    await check(world, [b"older"])
    assert [key for key, _ in report.skipped] == [damaged]


async def test_what_overlaps_committed_data_is_reported(tmp_path: Path) -> None:
    world = await new_world()
    await world.commit([b"a"] * 5, 0)
    beside = put_go(world, tmp_path, 4, [b"x", b"y"], 2)
    put_go(world, tmp_path, 5, [b"z"], 1)
    report = await imported(world)
    assert report.skipped == [(beside, "overlaps what is in dataset photos already")]
    assert await spans(world) == [Span(0, 5), Span(5, 6)]


async def test_keys_that_a_journal_holds_are_not_taken(tmp_path: Path) -> None:
    world = await new_world()
    dataset = await world.dataset()
    holder = "11111111-1111-4111-8111-111111111111"
    await world.catalog.enrol(holder, "here:/journal")  # type: ignore[arg-type]  # a NewType of str
    await world.catalog.take(holder, dataset.id, Span(1, 2))  # type: ignore[arg-type]  # the same
    key = put_go(world, tmp_path, 0, [b"x", b"y"], 1)
    report = await imported(world)
    assert [skipped for skipped, _ in report.skipped] == [key]
    assert "taken" in report.skipped[0][1]


NOISE = {
    "datas3t/photos/readme.txt": "not an object of a datarange",
    "datas3t/photos/dataranges/00000000000000000000-00000000000000000001.tar.gz": "not an object",
    "datas3t/photos/dataranges/0-1.tar": "not the object key of a datarange",
    "datas3t/photos/dataranges/00000000000000000005-00000000000000000001.tar": "not a valid range of keys",
    "datas3t/photos/dataranges/00000000000000000000-99999999999999999999.tar": "not a valid range of keys",
    "datas3t/photos/dataranges/00000000000000000000-09223372036854775807.tar": "at most",
    "datas3t/photos/dataranges/00000000000000000040-00000000000000000049.tar": "too few",
    "datas3t/ph otos/dataranges/00000000000000000000-00000000000000000000.tar": "not a dataset name",
    "datas3t/../dataranges/00000000000000000000-00000000000000000000.tar": "not a dataset name",
    "datas3t/photos/dataranges/00000000000000000070-00000000000000000070.tar": "no index is beside it",
}


async def test_everything_else_is_reported_and_nothing_of_it_adopted() -> None:
    world = await new_world()
    for key in NOISE:
        world.store.objects[key] = bytes(2048)
        if key.endswith(".tar") and "no index" not in NOISE[key]:
            world.store.objects[index_object_key(key)] = bytes(16)
    lonely = "datas3t/photos/dataranges/00000000000000000090-00000000000000000090.tar"
    world.store.objects[staged_index_key(lonely)] = bytes(16)
    world.store.objects["somewhere/else.tar"] = b"not ours to look at"
    report = await imported(world)
    assert (report.datasets, report.dataranges) == ([], 0)
    said = dict(report.skipped)
    assert set(said) == {*NOISE, lonely}
    for key, why in NOISE.items():
        assert why in said[key], key
    assert "TAR is not there" in said[lonely]
    assert world.catalog.all_datasets == {}, "no dataset is made for nothing"


@pytest.mark.parametrize("what", ["tar cut", "tar of others", "index cut", "index of others", "index empty"])
async def test_objects_that_do_not_check_out_are_reported(what: str, tmp_path: Path) -> None:
    world = await new_world()
    key = put_go(world, tmp_path, 0, [b"a" * 600, b"b"], 1)
    other = put_go(world, tmp_path, 5, [b"c" * 600, b"d", b"e"], 2)
    objects, index = world.store.objects, staged_index_key(key)
    if what == "tar cut":
        objects[key] = objects[key][:-1500]
    elif what == "tar of others":
        objects[key] = objects[other]
    elif what == "index cut":
        objects[index] = objects[index][:-1]
    elif what == "index of others":
        objects[index] = objects[staged_index_key(other)][16:]
    else:
        objects[index] = b""
    report = await imported(world)
    assert await spans(world) == [Span(5, 8)]
    assert [skipped for skipped, _ in report.skipped] == [key]


async def test_a_staged_index_beside_the_final_one_is_no_second_datarange() -> None:
    old = await new_world()
    made = await old.commit([b"a", b"b"])
    old.store.objects[staged_index_key(made.data_key)] = b"whatever was staged"
    world = await without_database(old)
    assert await imported(world) == ImportReport(["photos"], 1, [], 0)
    dataset = await world.dataset()
    (found,) = await world.catalog.dataranges(dataset.id)
    assert found.index_key == made.index_key


async def test_a_dataset_of_that_name_in_another_bucket_keeps_its_own() -> None:
    old = await new_world()
    await old.commit([b"a"])
    world = await without_database(old)
    await world.catalog.add_bucket(replace(SPEC, name="second", bucket="second"))
    await world.catalog.add_dataset("photos", "second")
    report = await imported(world)
    assert [why for _, why in report.skipped] == ["dataset photos is in bucket second"]


async def test_an_unknown_bucket_is_not_found() -> None:
    with pytest.raises(NotFound):
        await imported(await new_world(), "elsewhere")


async def test_an_interrupted_import_can_be_repeated() -> None:
    old = await new_world()
    for first in range(30):
        await old.commit([b"a"], first)
    world = await without_database(old)
    world.failing.fail("listed", 1, Unavailable("away"))
    with pytest.raises(Unavailable):
        await imported(world)

    async def away(method: str, key: str) -> None:
        if method == "get" and world.failing.calls["get"] > 9:
            raise Unavailable("away")

    world.failing.before_each = away
    with pytest.raises(Unavailable):
        await imported(world)
    done = len(await spans(world))
    assert 0 < done < 30
    world.failing.before_each = None
    report = await imported(world)
    assert report.dataranges == 30 - done
    assert len(await spans(world)) == 30


async def test_one_object_that_cannot_be_read_now_does_not_keep_the_others() -> None:
    old = await new_world()
    for first in range(10):
        await old.commit([b"a"], first)
    world = await without_database(old)
    world.failing.fail("get", 4, Unavailable("InvalidObjectState"))
    report = await imported(world)
    assert (report.dataranges, report.skipped_count) == (9, 1)
    assert "import again later" in report.skipped[0][1]
    assert (await imported(world)).dataranges == 1


async def test_only_failures_in_a_row_say_that_s3_is_away() -> None:
    old = await new_world()
    for first in range(60):
        await old.commit([b"a"], first)
    world = await without_database(old)

    async def every_third(method: str, key: str) -> None:
        if method == "get" and world.failing.calls["get"] % 3 == 0:
            raise Unavailable("InvalidObjectState")

    world.failing.before_each = every_third
    report = await imported(world)
    assert (report.dataranges, report.skipped_count) == (40, 20)


async def test_two_imports_at_once_adopt_everything_once() -> None:
    old = await new_world()
    for first in range(20):
        await old.commit([b"a"], first)
    world = await without_database(old)
    reports: list[ImportReport] = []

    async def one() -> None:
        reports.append(await imported(world))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert sum(report.dataranges for report in reports) == 20
    assert await spans(world) == [Span(key, key + 1) for key in range(20)]


async def test_a_few_candidates_are_looked_at_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    old = await new_world()
    for first in range(40):
        await old.commit([b"a"], first)
    world = await without_database(old)
    under_way = most = 0

    async def slow(method: str, key: str) -> None:
        nonlocal under_way, most
        if method == "get":
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(1)
            under_way -= 1

    world.failing.before_each = slow
    assert (await imported(world)).dataranges == 40
    assert 1 < most <= 8


async def test_memory_is_flat_and_the_report_short_however_many_objects_there_are() -> None:
    world = await new_world()
    number = 30_000
    bucket = next(iter(world.catalog.all_buckets.values()))

    class Many(FailingStore):
        async def listed(self, prefix: str) -> AsyncIterator[Found]:
            for key in range(number):
                name = data_object_key("photos", Span(key, key + 1), None)
                yield Found(index_object_key(name), 16, 0)
                yield Found(name, 2048, 0)

    world.stores = MemoryStores({bucket.id: Many(world.store)})

    async def ours(bucket_id: object, keys: Sequence[str]) -> set[str]:
        return set(keys[1:])  # one in each batch is not

    world.catalog.ranges.handed_out = ours  # type: ignore[method-assign, assignment]  # as if committed
    tracemalloc.start()
    try:
        report = await imported(world)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.skipped_count == number // importer._BATCH
    assert peak < 4 << 20


async def test_no_more_than_a_thousand_are_listed() -> None:
    world = await new_world()
    for number in range(1500):
        world.store.objects[f"datas3t/junk-{number:06d}"] = b""
    report = await imported(world)
    assert (len(report.skipped), report.skipped_count) == (1000, 1500)


async def test_what_an_object_is_called_cannot_drive_a_terminal() -> None:
    world = await new_world()
    world.store.objects["datas3t/\x1b[31mred"] = b""
    report = await imported(world)
    assert report.skipped[0][0] == "datas3t/\\x1b[31mred"


async def test_the_bucket_must_be_usable() -> None:
    world = await new_world()
    await world.catalog.add_bucket(BucketSpec("gone", "http://s3.test", "gone", "a", "s"))
    with pytest.raises(NotFound):
        await imported(world, "gone")

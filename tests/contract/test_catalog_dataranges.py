"""What each catalog must say of keys, and do with dataranges that come and go otherwise than by an upload."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from datas3tfs.core.model import BucketId, Datarange, DatasetId, UploadIntent
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.catalogs import ME, World, outcome


def objects_of(*dataranges: Datarange) -> list[str]:
    return sorted(key for item in dataranges for key in (item.data_key, item.index_key))


async def adopt(world: World, start: int, stop: int, data_key: str) -> Datarange:
    index_key = data_key.replace(".tar", ".index.zst")
    return await world.here.dataranges.adopt(world.dataset_id, Span(start, stop), data_key, index_key, 77)


# overlap


async def test_overlap_gives_what_has_one_of_the_keys(world: World) -> None:
    first, second, third = [await world.commit(*keys) for keys in ((10, 20), (20, 21), (30, 40))]
    await world.begin(40, 50)  # in flight: nobody sees it
    cats = await world.there.reader.dataset("cats")
    for keys, expected in (
        (Span(0, 100), [first, second, third]),
        (Span(0, KEY_LIMIT), [first, second, third]),
        (Span(0, 10), []),
        (Span(0, 11), [first]),
        (Span(15, 16), [first]),
        (Span(19, 31), [first, second, third]),
        (Span(20, 30), [second]),
        (Span(21, 30), []),
        (Span(39, 60), [third]),
        (Span(40, 60), []),
        (Span(15, 15), []),
        (Span(-5, 11), [first]),
        (Span(KEY_LIMIT, KEY_LIMIT + 5), []),
        (Span(2**64, 2**64 + 5), []),
    ):
        found = await world.there.reader.overlap("cats", keys)
        assert found.dataranges == expected, keys
        assert (found.dataset_id, found.bucket_id, found.is_empty) == (cats.id, cats.bucket_id, False)


async def test_overlap_tells_an_empty_dataset_from_keys_that_are_not_there(world: World) -> None:
    dogs = await world.here.registry.add_dataset("dogs", "store")
    await world.commit(10, 20)
    found = await world.there.reader.overlap("dogs", Span(0, KEY_LIMIT))
    assert (found.dataset_id, found.dataranges, found.is_empty) == (dogs, [], True)
    assert not (await world.there.reader.overlap("cats", Span(0, 5))).is_empty
    with pytest.raises(NotFound, match="birds"):
        await world.there.reader.overlap("birds", Span(0, 5))
    with pytest.raises(Invalid):
        await world.there.reader.overlap("a/b", Span(0, 5))


# adopt


async def test_adopted_objects_are_as_any_others(world: World) -> None:
    made = await adopt(world, 10, 20, "datas3t/old/a.tar")
    assert (made.dataset_id, made.keys, made.size) == (world.dataset_id, Span(10, 20), 77)
    assert (made.data_key, made.index_key) == ("datas3t/old/a.tar", "datas3t/old/a.index.zst")
    assert await world.visible() == [made]
    cats = await world.there.reader.dataset("cats")
    assert (cats.dataranges, cats.datapoints, cats.total_bytes, cats.version) == (1, 10, 77, 1)
    with pytest.raises(Conflict, match="taken"):
        await world.begin(19, 25)


async def test_keys_that_are_taken_cannot_be_adopted(world: World) -> None:
    await world.here.leases.enrol(ME, "here:/journal")
    await world.commit(0, 10)
    await world.begin(10, 20)
    await world.take(ME, 20, 30)
    for start in (0, 9, 15, 29):
        with pytest.raises(Conflict, match=f"{start} to {start + 1}"):
            await adopt(world, start, start + 2, "datas3t/old/a.tar")
    await adopt(world, 30, 40, "datas3t/old/a.tar")  # a refusal has not used the name up


async def test_what_the_catalog_named_itself_cannot_be_adopted(world: World) -> None:
    committed, in_flight, abandoned = [await world.begin(start, start + 10) for start in (0, 10, 20)]
    await world.here.uploads.publish(committed.id)
    await world.here.uploads.confirm(abandoned.id)
    await world.here.uploads.abandon(abandoned.id)
    adopted = await adopt(world, 50, 60, "datas3t/old/a.tar")
    for data_key in [upload.data_key for upload in (committed, in_flight, abandoned)] + [adopted.data_key]:
        with pytest.raises(Conflict, match=r"\.tar: .*handed it out"):
            await adopt(world, 100, 110, data_key)
    assert len(await world.visible()) == 2
    await world.here.dataranges.remove(world.dataset_id, Span(50, 60))
    with pytest.raises(Conflict):  # it will be deleted
        await adopt(world, 50, 60, adopted.data_key)


async def test_an_adopted_name_is_not_given_to_an_upload(world: World) -> None:
    plain = (await world.begin(0, 10)).data_key.replace("cats", "dogs")
    dogs = await world.here.registry.add_dataset("dogs", "store")
    made = await world.here.dataranges.adopt(dogs, Span(0, 10), plain, plain + ".index", 1)
    await world.here.dataranges.remove(dogs, Span(0, 10))
    upload = await world.here.uploads.begin(UploadIntent(dogs, Span(0, 10), 1))
    assert upload.data_key != made.data_key


async def test_impossible_adoptions_are_refused(world: World) -> None:
    for start, stop in ((5, 5), (-1, 3), (0, KEY_LIMIT + 1)):
        with pytest.raises(Invalid):
            await adopt(world, start, stop, "a.tar")
    for data_key in ("", "a\nb.tar", "a\0.tar", "\ud800.tar", "x" * 1025, "\x1b[2J"):
        with pytest.raises(Invalid):
            await adopt(world, 0, 10, data_key)
    for size in (-1, 2**63):
        with pytest.raises(Invalid):
            await world.here.dataranges.adopt(world.dataset_id, Span(0, 1), "a.tar", "a.index", size)
    with pytest.raises(NotFound, match="1000000000"):
        await world.here.dataranges.adopt(DatasetId(10**9), Span(0, 1), "a.tar", "a.index", 1)
    assert await world.visible() == []


async def test_what_was_handed_out_is_known_by_bucket(world: World) -> None:
    upload = await world.begin(0, 10)
    adopted = await adopt(world, 50, 60, "datas3t/old/a.tar")
    bucket_id = upload.bucket_id
    asked = [upload.data_key, adopted.data_key, "datas3t/new.tar", "", "a\0b", "\ud800"]
    handed_out = world.there.dataranges.handed_out
    assert await handed_out(bucket_id, asked) == {upload.data_key, adopted.data_key}
    await world.here.uploads.abandon(upload.id)
    await world.here.dataranges.clear(world.dataset_id)
    assert await handed_out(bucket_id, asked) == {upload.data_key, adopted.data_key}, "for ever"
    assert await handed_out(BucketId(bucket_id + 1000), asked) == set()
    assert await handed_out(bucket_id, []) == set()
    again = await world.begin(0, 10)
    assert await handed_out(bucket_id, [again.data_key, upload.data_key]) == {
        again.data_key,
        upload.data_key,
    }


async def test_of_many_adoptions_of_an_object_one_wins(world: World) -> None:
    outcomes: Counter[str] = Counter()

    async def contend(number: int) -> None:
        catalog = world.here if number % 2 else world.there
        keys = Span(10 * number, 10 * number + 10)
        outcomes[
            await outcome(lambda: catalog.dataranges.adopt(world.dataset_id, keys, "a.tar", "a.index", 1))
        ] += 1

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(contend, number)
    assert outcomes == {"done": 1, "Conflict": 19}
    assert len(await world.visible()) == 1
    assert world.counters.get("sql.retry") == 0


async def test_of_adoptions_and_uploads_of_a_key_one_wins(world: World) -> None:
    outcomes: Counter[str] = Counter()

    async def contend(number: int) -> None:
        catalog = world.here if number % 2 else world.there
        keys = Span(20 - number, 30 + number)
        if number % 3:
            data_key = f"a-{number}.tar"
            call = await outcome(
                lambda: catalog.dataranges.adopt(world.dataset_id, keys, data_key, "a.index", 1)
            )
        else:
            call = await outcome(lambda: catalog.uploads.begin(UploadIntent(world.dataset_id, keys, 1)))
        outcomes[call] += 1

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(contend, number)
    assert outcomes == {"done": 1, "Conflict": 19}


# remove, clear


async def test_removing_takes_exactly_the_keys_named(world: World) -> None:
    first, second = await world.commit(0, 10), await world.commit(10, 20)
    remove = world.here.dataranges.remove
    for keys in (Span(0, 9), Span(1, 10), Span(0, 20), Span(5, 15), Span(20, 30)):
        with pytest.raises(NotFound, match=f"{keys.start} to {keys.last}"):
            await remove(world.dataset_id, keys)
    for dataset_id in (DatasetId(10**9), await world.here.registry.add_dataset("dogs", "store")):
        with pytest.raises(NotFound):
            await remove(dataset_id, Span(0, 10))
    assert await world.visible() == [first, second]
    assert await remove(world.dataset_id, Span(0, 10)) == first
    with pytest.raises(NotFound):
        await remove(world.dataset_id, Span(0, 10))
    assert await world.visible() == [second]
    assert (await world.there.reader.dataset("cats")).version == 3


async def test_removed_objects_stay_for_those_who_still_read_them(world: World) -> None:
    gone = [await world.commit(0, 10), await world.commit(10, 20)]
    kept = await world.commit(20, 30)
    for item in gone:
        await world.here.dataranges.remove(world.dataset_id, item.keys)
    assert await world.due() == []
    world.fall_due()
    assert await world.due() == objects_of(*gone)
    again = await world.commit(0, 10)
    assert again.data_key != gone[0].data_key
    assert await world.visible() == [again, kept]


async def test_clearing_takes_what_is_committed_and_nothing_else(world: World) -> None:
    await world.here.leases.enrol(ME, "here:/journal")
    gone = [await world.commit(start, start + 10) for start in (0, 10, 20)]
    in_flight = await world.begin(30, 40)
    await world.take(ME, 40, 50)
    dogs = await world.here.registry.add_dataset("dogs", "store")
    other = await world.here.uploads.begin(UploadIntent(dogs, Span(0, 10), 1))
    others = await world.here.uploads.publish(other.id)
    assert await world.here.dataranges.clear(world.dataset_id) == 3
    assert await world.here.dataranges.clear(world.dataset_id) == 0
    assert await world.visible() == []
    assert await world.there.reader.dataranges(dogs) == [others]
    assert (await world.here.uploads.publish(in_flight.id)).keys == Span(30, 40)
    assert await world.held(ME) == [(40, 50, False)]
    with pytest.raises(Conflict):
        await world.begin(45, 46)
    assert await world.due() == []
    world.fall_due()
    assert await world.due() == objects_of(*gone)
    with pytest.raises(NotFound):
        await world.here.dataranges.clear(DatasetId(10**9))


async def test_what_goes_is_noticed_within_a_second(world: World) -> None:
    for start in (0, 10, 20):
        await world.commit(start, start + 10)
    async with world.there.reader.changes() as feed:
        with trio.fail_after(10):
            while len(await world.there.reader.datasets()) < 2:
                await world.here.registry.add_dataset("dogs", "store")
                await feed.wait()
        await world.here.dataranges.remove(world.dataset_id, Span(10, 20))
        with trio.fail_after(1):
            while len(await world.visible()) > 2:
                await feed.wait()
        await world.here.dataranges.clear(world.dataset_id)
        with trio.fail_after(1):
            while await world.visible():
                await feed.wait()


async def test_of_many_removals_one_succeeds(world: World) -> None:
    made = await world.commit(0, 10)
    outcomes: Counter[str] = Counter()

    async def contend(number: int) -> None:
        catalog = world.here if number % 2 else world.there
        outcomes[await outcome(lambda: catalog.dataranges.remove(world.dataset_id, Span(0, 10)))] += 1

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(contend, number)
    assert outcomes == {"done": 1, "NotFound": 9}
    world.fall_due()
    assert await world.due() == objects_of(made)


async def test_clearing_while_others_commit_loses_and_keeps_nothing_wrongly(world: World) -> None:
    removed: list[int] = []
    committed: list[int] = []

    async def commit(number: int) -> None:
        catalog = world.here if number % 2 else world.there
        for start in range(100 * number, 100 * number + 50, 10):
            intent = UploadIntent(world.dataset_id, Span(start, start + 10), 1)
            await catalog.uploads.publish((await catalog.uploads.begin(intent)).id)
            committed.append(start)

    async def clear() -> None:
        for _ in range(5):
            count = await world.there.dataranges.clear(world.dataset_id)
            removed.append(count)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(commit, number)
        nursery.start_soon(clear)
        nursery.start_soon(clear)
    left = await world.visible()
    assert len(committed) == 30
    assert sum(removed) + len(left) == 30
    world.fall_due()
    doomed = await world.due()
    assert len(doomed) == len(set(doomed)) == 2 * sum(removed)
    assert not set(doomed) & set(objects_of(*left))
    assert world.counters.get("sql.retry") == 0

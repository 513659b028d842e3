"""What every catalog must do with aggregates: uploads that take the place of dataranges."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from datas3tfs.catalog import Catalog
from datas3tfs.core.model import Datarange, DatarangeId, DatasetId, Upload, UploadId, UploadIntent
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.catalogs import ME, World, outcome

Call = Callable[[], Awaitable[object]]

SEED = 20261124


def objects_of(*dataranges: Datarange) -> list[str]:
    return sorted(key for item in dataranges for key in (item.data_key, item.index_key))


async def three(world: World) -> list[Datarange]:
    return [await world.commit(start, start + 10) for start in (0, 10, 20)]


async def test_an_aggregate_takes_the_place_of_its_sources(world: World) -> None:
    sources = await three(world)
    before = await world.here.reader.dataset("cats")
    upload = await world.aggregate(*sources)
    assert upload.intent.replaces == tuple(source.id for source in sources)
    assert await world.visible() == sources, "unfinished, nobody sees it"
    made = await world.here.uploads.publish(upload.id)
    assert (made.keys, made.data_key, made.index_key) == (Span(0, 30), upload.data_key, upload.index_key)
    assert made.size == 1024
    assert await world.visible() == [made]
    after = await world.there.reader.dataset("cats")
    assert (after.dataranges, after.datapoints, after.total_bytes) == (1, 30, 1024)
    assert after.version > before.version


async def test_replaced_objects_stay_for_those_who_still_read_them(world: World) -> None:
    sources = await three(world)
    upload = await world.aggregate(*sources)
    await world.here.uploads.publish(upload.id)
    assert await world.due() == []
    world.fall_due()
    assert await world.due() == objects_of(*sources)


async def test_what_an_aggregate_gives_way_to_is_noticed_at_once(world: World) -> None:
    sources = await three(world)
    upload = await world.aggregate(*sources)
    async with world.there.reader.changes() as feed:
        with trio.fail_after(10):
            while len(await world.there.reader.datasets()) < 2:
                await world.here.registry.add_dataset("dogs", "store")
                await feed.wait()
        await world.here.uploads.publish(upload.id)
        with trio.fail_after(1):
            while len(await world.visible()) > 1:
                await feed.wait()


async def test_a_size_known_only_at_the_end_replaces_that_of_the_intent(world: World) -> None:
    sources = await three(world)
    upload = await world.aggregate(*sources)
    for impossible in (-1, 2**63):
        with pytest.raises(Invalid):
            await world.here.uploads.publish(upload.id, impossible)
    made = await world.here.uploads.publish(upload.id, 2**40)
    assert made.size == 2**40
    assert await world.there.uploads.publish(upload.id, 7) == made
    assert (await world.there.uploads.publish((await world.begin(30, 31)).id, 0)).size == 0


async def test_its_keys_stay_taken_throughout(world: World) -> None:
    sources = await three(world)
    upload = await world.aggregate(*sources)
    for _ in range(2):
        for start, stop in ((0, 30), (29, 31), (15, 16)):
            with pytest.raises(Conflict):
                await world.begin(start, stop)
        await world.here.uploads.publish(upload.id)
    await world.begin(30, 40)


async def test_abandoning_an_aggregate_leaves_its_sources(world: World) -> None:
    sources = await three(world)
    upload = await world.aggregate(*sources)
    for _ in range(2):
        await world.there.uploads.abandon(upload.id)
    assert await world.visible() == sources
    assert await world.due() == sorted((upload.data_key, upload.index_key))
    with pytest.raises(Conflict, match=str(upload.id)):
        await world.here.uploads.publish(upload.id)
    again = await world.aggregate(*sources)
    assert again.data_key != upload.data_key
    await world.here.uploads.publish(again.id)


async def test_an_expired_aggregate_is_swept(world: World) -> None:
    sources = await three(world)
    upload = await world.aggregate(*sources)
    world.expire(upload.id)
    await world.here.uploads.renew(upload.id)
    assert await world.there.uploads.abandon_expired() == 0
    world.expire(upload.id)
    assert await world.there.uploads.abandon_expired() == 1
    assert await world.visible() == sources
    assert len(await world.due()) == 2


async def test_only_adjacent_dataranges_with_exactly_these_keys_can_be_replaced(world: World) -> None:
    first, second, third = [source.id for source in await three(world)]
    apart = (await world.commit(40, 50)).id
    dogs = await world.here.registry.add_dataset("dogs", "store")
    other = await world.here.uploads.begin(UploadIntent(dogs, Span(10, 20), 1))
    elsewhere = (await world.here.uploads.publish(other.id)).id
    refused: list[tuple[tuple[DatarangeId, ...], Span]] = [
        ((first, second), Span(0, 19)),
        ((first, second), Span(1, 20)),
        ((first, second), Span(0, 30)),
        ((first, third), Span(0, 30)),
        ((second, first), Span(0, 20)),
        ((third, apart), Span(20, 50)),
        ((first, elsewhere), Span(0, 20)),
        ((first, DatarangeId(10**9)), Span(0, 20)),
        ((first, second, DatarangeId(10**9)), Span(0, 20)),
    ]
    for replaces, keys in refused:
        intent = UploadIntent(world.dataset_id, keys, 1, replaces=replaces)
        with pytest.raises(Conflict, match=f"{keys.start} to {keys.last}"):
            await world.here.uploads.begin(intent)
    unknown = UploadIntent(DatasetId(10**9), Span(0, 20), 1, replaces=(first, second))
    with pytest.raises(NotFound):
        await world.here.uploads.begin(unknown)
    fine = UploadIntent(world.dataset_id, Span(0, 20), 1, replaces=(first, second))
    await world.here.uploads.publish((await world.here.uploads.begin(fine)).id)


async def test_impossible_aggregates_are_refused(world: World) -> None:
    first, second, _ = [source.id for source in await three(world)]
    await world.here.leases.enrol(ME, "here:/journal")
    for replaces, holder in (((first,), None), ((first, first), None), ((first, second), ME)):
        intent = UploadIntent(world.dataset_id, Span(0, 20), 1, holder, replaces=replaces)
        with pytest.raises(Invalid, match="0 to 19"):
            await world.here.uploads.begin(intent)


async def test_sources_that_changed_meanwhile_are_not_replaced(world: World) -> None:
    sources = await three(world)
    upload = await world.aggregate(*sources)
    await world.there.dataranges.remove(world.dataset_id, Span(10, 20))
    same_keys = await world.commit(10, 20)
    with pytest.raises(Conflict, match=str(upload.id)):
        await world.here.uploads.publish(upload.id)
    assert await world.visible() == [sources[0], same_keys, sources[2]]
    world.fall_due()
    assert await world.due() == objects_of(sources[1]), "refused, it has doomed nothing of its own"
    assert (await world.here.uploads.pending(upload.id)).upload == upload, "it stands until it is abandoned"
    await world.here.uploads.abandon(upload.id)
    assert await world.visible() == [sources[0], same_keys, sources[2]]


async def test_aggregates_can_be_replaced_in_turn_and_uploads_are_remembered(world: World) -> None:
    uploads = [await world.begin(start, start + 10) for start in (0, 10, 20)]
    sources = [await world.here.uploads.publish(upload.id) for upload in uploads]
    inner = await world.aggregate(*sources[:2])
    outer = await world.aggregate(await world.here.uploads.publish(inner.id), sources[2])
    assert await world.there.uploads.published(outer.id) is None
    made = await world.here.uploads.publish(outer.id)
    for upload in (*uploads, inner, outer):
        assert await world.there.uploads.published(upload.id) == made
        assert await world.there.uploads.publish(upload.id) == made, "a repeated call learns that it is done"
        with pytest.raises(Conflict, match="published"):
            await world.there.uploads.pending(upload.id)
    await world.here.dataranges.remove(world.dataset_id, Span(0, 30))
    for upload in (*uploads, inner, outer):
        assert await world.there.uploads.published(upload.id) is None
        with pytest.raises(Conflict):
            await world.there.uploads.publish(upload.id)
    again = await world.begin(0, 30)
    assert again.data_key not in {upload.data_key for upload in (*uploads, inner, outer)}


async def test_adopted_dataranges_can_be_replaced(world: World) -> None:
    left, right = Span(0, 10), Span(10, 20)
    adopt = world.here.dataranges.adopt
    one = await adopt(world.dataset_id, left, "one.tar", "one.index.zst", 1)
    two = await adopt(world.dataset_id, right, "two.tar", "two.index.zst", 1)
    await world.here.uploads.publish((await world.aggregate(one, two)).id)
    world.fall_due()
    assert await world.due() == ["one.index.zst", "one.tar", "two.index.zst", "two.tar"]


async def test_a_removed_dataset_takes_its_aggregates_along(world: World) -> None:
    sources = await three(world)
    uploads = [await world.aggregate(*sources), await world.aggregate(*sources[:2], presigned=True)]
    with pytest.raises(Conflict, match="not empty"):
        await world.there.registry.remove_dataset(world.dataset_id)
    assert (await world.there.uploads.pending(uploads[0].id)).upload == uploads[0]
    assert await world.here.dataranges.clear(world.dataset_id) == 3
    await world.there.registry.remove_dataset(world.dataset_id)
    for upload in uploads:
        with pytest.raises(Conflict):
            await world.here.uploads.publish(upload.id)
        with pytest.raises(Conflict):
            await world.here.uploads.pending(upload.id)
        await world.here.uploads.abandon(upload.id)
    assert {upload.data_key for upload in uploads} <= set(await world.due())


async def test_of_many_aggregates_of_the_same_one_wins(world: World) -> None:
    sources = await three(world)
    uploads = [await world.aggregate(*sources[number % 2 :]) for number in range(12)]
    outcomes: list[str] = []

    async def publish(catalog: Catalog, upload: Upload) -> None:
        outcomes.append(await outcome(lambda: catalog.uploads.publish(upload.id)))

    async with trio.open_nursery() as nursery:
        for number, upload in enumerate(uploads):
            nursery.start_soon(publish, (world.here, world.there)[number // 2 % 2], upload)
    assert sorted(outcomes) == ["Conflict"] * 11 + ["done"]
    assert world.counters.get("sql.retry") == 0
    made = await world.visible()
    assert [item.keys for item in made] in ([Span(0, 30)], [Span(0, 10), Span(10, 30)])
    world.fall_due()
    assert await world.due() == objects_of(*(source for source in sources if source not in made))


async def test_one_aggregate_published_by_many_is_published_once(world: World) -> None:
    sources = await three(world)
    upload = await world.aggregate(*sources)
    made: list[Datarange] = []

    async def publish(catalog: Catalog) -> None:
        made.append(await catalog.uploads.publish(upload.id))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(publish, (world.here, world.there)[number % 2])
    assert len(set(made)) == 1
    assert await world.visible() == made[:1]
    world.fall_due()
    assert await world.due() == objects_of(*sources)


@pytest.mark.parametrize("rival", ["abandon", "sweep", "clear", "remove"])
async def test_an_aggregate_against_what_ends_it_has_one_outcome(world: World, rival: str) -> None:
    wins: Counter[str] = Counter()
    for number in range(8):
        start = 100 * number
        sources = [await world.commit(start + 10 * i, start + 10 * i + 10) for i in range(3)]
        upload = await world.aggregate(*sources)
        results: dict[str, str] = {}
        rivals: dict[str, Call] = {
            "abandon": partial(world.there.uploads.abandon, upload.id),
            "sweep": world.there.uploads.abandon_expired,
            "clear": partial(world.there.dataranges.clear, world.dataset_id),
            "remove": partial(world.there.dataranges.remove, world.dataset_id, sources[1].keys),
        }
        publish = partial(world.here.uploads.publish, upload.id)
        calls: list[tuple[str, Call]] = [("publish", publish), ("rival", rivals[rival])]
        if rival == "sweep":
            world.expire(upload.id)

        async def run(word: str, call: Call, results: dict[str, str] = results) -> None:
            results[word] = await outcome(call)

        async with trio.open_nursery() as nursery:
            for word, call in random.Random(SEED + number).sample(calls, 2):
                nursery.start_soon(run, word, call)
        visible = {item.keys for item in await world.visible()}
        whole = Span(start, start + 30)
        published = await world.here.uploads.published(upload.id) is not None
        wins[results["publish"]] += 1
        match rival:
            case "abandon" | "sweep":
                assert results["rival"] == "done"
                assert published == (results["publish"] == "done") == (whole in visible)
                assert published or {source.keys for source in sources} <= visible
            case "clear":
                assert results["rival"] == "done"
                assert not visible, "all that was there when it came, or nothing was left to replace"
            case _:
                assert sorted(results.values()) in (["Conflict", "done"], ["NotFound", "done"])
                assert published == (results["publish"] == "done")
                assert (sources[1].keys in visible) is False
        await world.here.uploads.abandon(upload.id)
    assert wins["done"] + wins["Conflict"] == 8
    assert world.counters.get("sql.retry") == 0


async def test_a_dataset_goes_while_aggregates_of_it_come_and_go(world: World) -> None:
    """Removing a dataset and publishing, abandoning, sweeping its aggregates never wait in a circle."""
    for number in range(6):
        dataset_id = await world.here.registry.add_dataset(f"set-{number}", "store")
        ids = []
        for start in (0, 10):
            upload = await world.here.uploads.begin(UploadIntent(dataset_id, Span(start, start + 10), 1))
            ids.append((await world.here.uploads.publish(upload.id)).id)
        intent = UploadIntent(dataset_id, Span(0, 20), 1, replaces=tuple(ids))
        uploads = [(await world.here.uploads.begin(intent)).id for _ in range(6)]
        results: Counter[str] = Counter()

        async def publish(upload_id: UploadId, results: Counter[str] = results) -> None:
            results["publish " + await outcome(lambda: world.here.uploads.publish(upload_id))] += 1

        async def remove(dataset_id: DatasetId = dataset_id, results: Counter[str] = results) -> None:
            await world.there.dataranges.clear(dataset_id)
            results["remove " + await outcome(lambda: world.there.registry.remove_dataset(dataset_id))] += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            for upload_id in uploads[:4]:
                nursery.start_soon(publish, upload_id)
            for upload_id in uploads[4:]:
                nursery.start_soon(world.there.uploads.abandon, upload_id)
            nursery.start_soon(world.here.uploads.abandon_expired)
        assert results["remove done"] == 1
        assert results["publish done"] <= 4
        assert results["publish done"] + results["publish Conflict"] == 4
    assert world.counters.get("sql.retry") == 0

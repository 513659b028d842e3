"""Aggregates that clients make: they take the place of their sources only if they hold all that those do."""

import tarfile
from dataclasses import replace

import pytest
import trio

from datas3tfs.core.model import Datarange
from datas3tfs.core.spans import Span
from datas3tfs.engine.receiving import AggregateGrant, Receiver
from datas3tfs.engine.sweeper import sweep
from datas3tfs.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable
from tests.harness.archives import noise
from tests.harness.uploading import (
    MIB,
    Archive,
    Crash,
    Plan,
    archive_of,
    dying,
    open_receiver,
    open_stepped_receiver,
    put,
)
from tests.harness.world import World, new_world, open_mounted

CONTENTS = [[b"a", b"bb"], [b""], [b"ccc" * 500, b"d"]]
ALL = Span(0, 5)
MERGED = archive_of([content for part in CONTENTS for content in part])


async def ready(contents: list[list[bytes]] | None = None) -> World:
    world = await new_world()
    first = 0
    for part in contents or CONTENTS:
        await world.commit(part, first)
        first += len(part)
    return world


async def swept(world: World) -> None:
    await sweep(world.catalog, world.catalog, world.catalog, world.stores)


async def visible(world: World) -> list[Datarange]:
    return await world.catalog.dataranges((await world.dataset()).id)


async def check_merged(world: World, archive: Archive) -> None:
    (datarange,) = await visible(world)
    assert datarange.keys == Span(0, len(archive.contents))
    assert not world.catalog.unpublished
    async with open_mounted(world) as mounted:
        assert [await mounted.read(key) for key in range(len(archive.contents))] == archive.contents


async def check_untouched(world: World) -> None:
    assert [datarange.keys for datarange in await visible(world)] == [Span(0, 2), Span(2, 3), Span(3, 5)]
    await swept(world)
    async with open_mounted(world) as mounted:
        assert [await mounted.read(key) for key in range(5)] == MERGED.contents


async def begun(receiver: Receiver, world: World, archive: Archive = MERGED) -> AggregateGrant:
    started = await receiver.start_aggregate("photos", Span(0, len(archive.contents)))
    put(world, started.grant, archive.body, archive.go_index)
    return started


async def test_an_aggregate_takes_the_place_of_its_sources() -> None:
    now = 0.0
    world = await ready()
    world.catalog.clock = lambda: now
    before = await visible(world)
    async with open_receiver(world) as receiver:
        started = await receiver.start_aggregate("photos", ALL)
        assert [source.datarange for source in started.sources] == before
        for source in started.sources:
            assert world.store.client_get(source.data_url) == world.store.objects[source.datarange.data_key]
            assert world.store.client_get(source.index_url) == world.store.objects[source.datarange.index_key]
        put(world, started.grant, MERGED.body, MERGED.go_index)
        assert await visible(world) == before
        datarange = await receiver.complete_aggregate(started.grant.upload.id)
        assert await receiver.complete_aggregate(started.grant.upload.id) == datarange
        with pytest.raises(Conflict, match="published"):
            await receiver.cancel_aggregate(started.grant.upload.id)
    assert datarange.size == len(MERGED.body)
    await check_merged(world, MERGED)
    await swept(world)
    assert all(source.data_key in world.store.objects for source in before), "clients may still read them"
    now = world.catalog.presigned_lifetime * 2
    await swept(world)
    assert set(world.store.objects) == {datarange.data_key, datarange.index_key}
    await check_merged(world, MERGED)


async def test_a_large_aggregate_is_granted_exactly_the_parts_that_a_go_client_makes() -> None:
    parts = [[noise(9 * MIB, 1)], [noise(9 * MIB, 2), b"x"], [noise(5 * MIB, 3)]]
    world = await ready(parts)
    archive = archive_of([content for part in parts for content in part])
    async with open_receiver(world) as receiver:
        started = await receiver.start_aggregate("photos", Span(0, 4))
        assert len(started.grant.part_urls) == -(-len(archive.body) // started.grant.part_size) == 2
        tags = put(world, started.grant, archive.body, archive.go_index)
        await receiver.complete_aggregate(started.grant.upload.id, tags)
    await check_merged(world, archive)


async def test_without_tags_the_bucket_is_asked_for_them() -> None:
    parts = [[noise(15 * MIB, 1)], [noise(15 * MIB, 2)]]
    world = await ready(parts)
    archive = archive_of([content for part in parts for content in part])
    async with open_receiver(world) as receiver:
        started = await begun(receiver, world, archive)
        await receiver.complete_aggregate(started.grant.upload.id)
    await check_merged(world, archive)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (Span(0, 6), "not fully covered"),
        (Span(7, 9), "not fully covered"),
        (Span(0, 2), "at least two"),
        (Span(0, 1), "at least two"),
        (Span(1, 5), "not whole dataranges"),
        (Span(0, 4), "not whole dataranges"),
        (Span(0, 0), "not a range"),
        (Span(0, 2**63 + 1), "below 2\\^63"),
    ],
)
async def test_what_cannot_be_merged_is_refused(keys: Span, words: str) -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        with pytest.raises(Invalid, match=words):
            await receiver.start_aggregate("photos", keys)
        with pytest.raises(NotFound):
            await receiver.start_aggregate("nothing", ALL)
    assert not world.catalog.unpublished


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([b"a", b"bB", b"", b"ccc" * 500, b"d"], "datapoint 1 is not what it was"),
        ([b"a", b"bb", b"", b"ccc" * 500, b""], "datapoint 4 is not what it was"),
        ([b"a", b"bb", b"?", b"ccc" * 500, b"d"], "datapoint 2 is not what it was"),
    ],
)
async def test_a_datapoint_that_differs_ends_it_and_leaves_the_sources(
    contents: list[bytes], words: str
) -> None:
    world = await ready()
    archive = archive_of(contents)
    async with open_receiver(world) as receiver:
        started = await begun(receiver, world, archive)
        with pytest.raises(Invalid, match=words):
            await receiver.complete_aggregate(started.grant.upload.id)
    assert not world.catalog.unpublished
    await check_untouched(world)


async def test_a_datapoint_under_another_name_ends_it() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        started = await begun(receiver, world, archive_of(MERGED.contents, extension="jpg"))
        with pytest.raises(Invalid, match="datapoint 0 is not what it was"):
            await receiver.complete_aggregate(started.grant.upload.id)
    await check_untouched(world)


async def test_a_datapoint_too_few_or_too_many_ends_it() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        for contents in (MERGED.contents[:-1], [*MERGED.contents, b"more"]):
            started = await receiver.start_aggregate("photos", ALL)
            archive = archive_of(contents)
            put(world, started.grant, archive.body, archive.go_index)
            with pytest.raises(Invalid):
                await receiver.complete_aggregate(started.grant.upload.id)
    await check_untouched(world)


async def test_contents_are_compared_even_if_the_sources_have_no_checksums() -> None:
    world = await ready()
    for number, datarange in enumerate(await visible(world)):
        source = archive_of(CONTENTS[number], datarange.keys.start)
        world.store.objects[datarange.index_key] = source.go_index
        assert world.store.objects[datarange.data_key][:512][:100] == source.body[:100]
    async with open_receiver(world) as receiver:
        wrong = await begun(receiver, world, archive_of([b"A", *MERGED.contents[1:]]))
        with pytest.raises(Invalid, match="datapoint 0 is not what it was"):
            await receiver.complete_aggregate(wrong.grant.upload.id)
        right = await begun(receiver, world)
        await receiver.complete_aggregate(right.grant.upload.id)
    await check_merged(world, MERGED)


async def test_a_source_that_is_damaged_changes_nothing() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        started = await begun(receiver, world)
    (first, *_) = await visible(world)
    world.store.objects[first.index_key] = archive_of(CONTENTS[0]).go_index
    world.store.objects[first.data_key] = world.store.objects[first.data_key][:-512] + b"x" * 512
    world.cache.entries.clear()
    async with open_receiver(world) as receiver:
        with pytest.raises(Corrupt, match="after the end"):
            await receiver.complete_aggregate(started.grant.upload.id)
    assert len(world.catalog.unpublished) == 1, "it may be completed when the source is whole again"
    assert len(await visible(world)) == 3


async def test_a_source_that_has_changed_meanwhile_ends_it() -> None:
    world = await ready()
    dataset = await world.dataset()
    async with open_receiver(world) as receiver:
        started = await begun(receiver, world)
        await world.catalog.ranges.remove(dataset.id, Span(2, 3))
        await world.commit([b"new"], 2)
        with pytest.raises(Conflict, match="changed"):
            await receiver.complete_aggregate(started.grant.upload.id)
        assert not world.catalog.unpublished, "it can never be published"
        await receiver.cancel_aggregate(started.grant.upload.id)
    assert len(await visible(world)) == 3


async def test_what_was_put_at_once_must_be_as_small_as_it_was_expected_to_be() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        started = await begun(receiver, world)
        assert started.grant.put_url is not None
    async with open_receiver(world, scanned=1000) as receiver:
        with pytest.raises(Invalid, match="were put at once"):
            await receiver.complete_aggregate(started.grant.upload.id)
    await check_untouched(world)


async def test_of_two_aggregates_of_the_same_sources_one_is_published() -> None:
    world = await ready()
    outcomes: list[object] = []
    async with open_receiver(world) as receiver:
        started = [await begun(receiver, world) for _ in range(4)]

        async def complete(grant: AggregateGrant) -> None:
            try:
                outcomes.append(await receiver.complete_aggregate(grant.grant.upload.id))
            except Conflict as exc:
                outcomes.append(exc)

        async with trio.open_nursery() as nursery:
            for one in started:
                nursery.start_soon(complete, one)
    assert sum(isinstance(outcome, Datarange) for outcome in outcomes) == 1
    await check_merged(world, MERGED)
    await swept(world)
    (datarange,) = await visible(world)
    assert {datarange.data_key, datarange.index_key} <= set(world.store.objects)


async def test_cancel_leaves_the_sources() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        started = await begun(receiver, world)
        for _ in range(2):
            await receiver.cancel_aggregate(started.grant.upload.id)
        with pytest.raises(Conflict):
            await receiver.complete_aggregate(started.grant.upload.id)
    await check_untouched(world)
    assert len(world.store.objects) == 6


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [Crash(), Unavailable("away")], ids=["crash", "away"])
async def test_a_failure_at_any_step_and_then_again(after: bool, error: BaseException) -> None:
    plan = Plan()
    world = await ready()
    async with open_stepped_receiver(world, plan) as receiver:
        started = await begun(receiver, world)
        steps = len(plan.seen)
        await receiver.complete_aggregate(started.grant.upload.id)
    count = len(plan.seen) - steps
    assert count > 8
    for nth in range(1, count + 1):
        world = await ready()
        async with open_receiver(world) as receiver:
            started = await begun(receiver, world)
        async with open_stepped_receiver(world, Plan(nth, error, after=after)) as receiver:
            if isinstance(error, Crash):
                with dying():
                    await receiver.complete_aggregate(started.grant.upload.id)
            else:
                with pytest.raises(Unavailable):
                    await receiver.complete_aggregate(started.grant.upload.id)
        async with open_receiver(world) as receiver:
            await receiver.complete_aggregate(started.grant.upload.id)
        await swept(world)
        await check_merged(world, MERGED)


async def test_sources_with_extended_headers_can_be_merged_by_who_counts_them() -> None:
    world = await ready()
    (first, *_) = await visible(world)
    source = archive_of(CONTENTS[0], form=tarfile.PAX_FORMAT, mtime=1.5)
    world.store.objects[first.data_key] = source.body
    world.store.objects[first.index_key] = source.full_index()
    world.catalog.committed = {
        upload: replace(one, size=len(source.body)) if one.id == first.id else one
        for upload, one in world.catalog.committed.items()
    }
    archive = archive_of(MERGED.contents, form=tarfile.PAX_FORMAT, mtime=2.5)
    async with open_receiver(world) as receiver:
        started = await receiver.start_aggregate("photos", ALL)
        put(world, started.grant, archive.body, archive.records)
        await receiver.complete_aggregate(started.grant.upload.id)
    await check_merged(world, archive)

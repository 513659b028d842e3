"""What every catalog must do: the memory twin, and Postgres in its embedded and its system's version."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
import trio

from datas3tfs.core.model import BucketId, DatasetId, Upload, UploadIntent
from datas3tfs.core.names import KEY_LIMIT, parse_data_object_key
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.catalogs import ME, SPEC, World, outcome


async def test_buckets_are_listed_without_and_read_with_credentials(world: World) -> None:
    second = replace(SPEC, name="another", bucket="bucket-2", use_tls=True, access_key="ключ", secret_key="")
    made = await world.here.registry.add_bucket(second)
    assert made.spec == second
    listed = [bucket.spec for bucket in await world.there.registry.buckets()]
    assert listed == [replace(spec, access_key="", secret_key="") for spec in (second, SPEC)]
    assert await world.there.reader.bucket(made.id) == made


async def test_a_bucket_is_registered_once(world: World) -> None:
    with pytest.raises(Conflict, match="name"):
        await world.there.registry.add_bucket(replace(SPEC, bucket="bucket-2"))
    with pytest.raises(Conflict, match="endpoint"):
        await world.there.registry.add_bucket(replace(SPEC, name="another"))
    with pytest.raises(Invalid):
        await world.there.registry.add_bucket(replace(SPEC, name="../x", bucket="bucket-3"))
    with pytest.raises(NotFound):
        await world.there.reader.bucket(BucketId(10**9))


async def test_datasets_have_valid_names_of_their_own(world: World) -> None:
    with pytest.raises(Conflict, match="cats"):
        await world.there.registry.add_dataset("cats", "store")
    with pytest.raises(NotFound, match="nowhere"):
        await world.there.registry.add_dataset("dogs", "nowhere")
    for name in ("", "a/b", "a b", "a\n", "a\0", "ä", "x" * 201):
        with pytest.raises(Invalid):
            await world.there.registry.add_dataset(name, "store")
    dogs = await world.there.registry.add_dataset("dogs", "store")
    assert [dataset.name for dataset in await world.here.reader.datasets()] == ["cats", "dogs"]
    assert (await world.here.reader.dataset("dogs")).id == dogs
    with pytest.raises(NotFound, match="birds"):
        await world.here.reader.dataset("birds")


async def test_an_empty_dataset_can_be_removed(world: World) -> None:
    dogs = await world.here.registry.add_dataset("dogs", "store")
    async with world.there.reader.changes() as feed:
        with trio.fail_after(10):
            while len(await world.there.reader.datasets()) < 2:
                await feed.wait()
            await world.here.registry.remove_dataset(dogs)
            while len(await world.there.reader.datasets()) > 1:
                await feed.wait()
    for dataset_id in (dogs, DatasetId(10**9)):
        with pytest.raises(NotFound, match=str(dataset_id)):
            await world.here.registry.remove_dataset(dataset_id)
    again = await world.here.registry.add_dataset("dogs", "store")
    assert again != dogs


async def test_a_dataset_with_a_key_taken_stays(world: World) -> None:
    async def refused() -> None:
        with pytest.raises(Conflict, match="not empty"):
            await world.there.registry.remove_dataset(world.dataset_id)

    await world.here.leases.enrol(ME, "here:/journal")
    await world.take(ME, 0, 1)
    await refused()
    upload = await world.begin(0, 1, holder=ME)
    await refused()
    await world.here.uploads.abandon(upload.id)
    await refused()
    await world.here.leases.dismiss(ME)
    upload = await world.begin(5, 6)
    await world.here.uploads.publish(upload.id)
    await refused()
    assert [dataset.name for dataset in await world.here.reader.datasets()] == ["cats"]


async def test_a_removed_dataset_leaves_its_object_names_used(world: World) -> None:
    names = set()
    for _ in range(2):
        dogs = await world.here.registry.add_dataset("dogs", "store")
        upload = await world.here.uploads.begin(UploadIntent(dogs, Span(0, 1), 1))
        names.add(upload.data_key)
        await world.here.uploads.abandon(upload.id)
        await world.here.registry.remove_dataset(dogs)
    assert len(names) == 2


async def test_an_installation_has_a_name_for_ever(world: World) -> None:
    name = await world.here.registry.installation()
    assert str(UUID(name)) == name
    assert await world.there.registry.installation() == name


async def test_an_empty_dataset_says_so(world: World) -> None:
    cats = await world.here.reader.dataset("cats")
    assert (cats.dataranges, cats.datapoints, cats.total_bytes) == (0, 0, 0)
    assert (cats.lowest_key, cats.highest_key, cats.bucket_name) == (None, None, "store")
    assert await world.here.reader.dataranges(cats.id) == []
    assert await world.here.reader.dataranges(DatasetId(10**9)) == []


async def test_publishing_makes_a_datarange_visible(world: World) -> None:
    before = await world.there.reader.dataset("cats")
    late, early = await world.begin(20, 30), await world.begin(5, 10)
    assert await world.there.reader.dataranges(world.dataset_id) == []
    made = [await world.here.uploads.publish(upload.id) for upload in (late, early)]
    assert made[0].keys == Span(20, 30)
    assert (made[0].data_key, made[0].index_key, made[0].size) == (late.data_key, late.index_key, 512)
    assert await world.there.reader.dataranges(world.dataset_id) == [made[1], made[0]]
    after = await world.there.reader.dataset("cats")
    assert (after.dataranges, after.datapoints, after.total_bytes) == (2, 15, 1024)
    assert (after.lowest_key, after.highest_key) == (5, 29)
    assert after.version == before.version + 2
    assert after.updated_ns >= before.updated_ns


async def test_publishing_again_returns_the_same(world: World) -> None:
    upload = await world.begin(0, 1)
    made = await world.here.uploads.publish(upload.id)
    assert await world.there.uploads.publish(upload.id) == made
    assert (await world.here.reader.dataset("cats")).version == 1


async def test_keys_in_flight_and_keys_committed_are_taken(world: World) -> None:
    upload = await world.begin(10, 20)
    for _ in range(2):
        for start, stop in ((10, 20), (0, 11), (19, 30), (12, 13), (0, 100)):
            with pytest.raises(Conflict, match=f"{start} to {stop - 1}"):
                await world.begin(start, stop)
        await world.here.uploads.publish(upload.id)
    await world.begin(0, 10)
    await world.begin(20, 21)


async def test_the_ends_of_the_key_space_belong_to_their_dataset(world: World) -> None:
    dogs = await world.here.registry.add_dataset("dogs", "store")
    for dataset_id in (world.dataset_id, dogs):
        for keys in (Span(KEY_LIMIT - 1, KEY_LIMIT), Span(0, 1)):
            upload = await world.here.uploads.begin(UploadIntent(dataset_id, keys, 0))
            assert (await world.here.uploads.publish(upload.id)).keys == keys


async def test_impossible_intents_are_refused(world: World) -> None:
    for start, stop in ((5, 5), (-1, 3), (0, KEY_LIMIT + 1)):
        with pytest.raises(Invalid):
            await world.begin(start, stop)
    with pytest.raises(NotFound):
        await world.here.uploads.begin(UploadIntent(DatasetId(10**9), Span(0, 1), 0))


async def test_of_fifty_overlapping_begins_one_wins(world: World) -> None:
    outcomes: list[str] = []

    async def contend(number: int) -> None:
        catalog = world.here if number % 2 else world.there
        intent = UploadIntent(world.dataset_id, Span(50 - number, 60 + number), 1)
        outcomes.append(await outcome(lambda: catalog.uploads.begin(intent)))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(contend, number)
    assert sorted(outcomes) == ["Conflict"] * 49 + ["done"]


async def test_abandoning_frees_the_keys_and_dooms_what_is_ours(world: World) -> None:
    upload = await world.begin(0, 10)
    await world.here.uploads.confirm(upload.id)
    for _ in range(2):
        await world.there.uploads.abandon(upload.id)
    doomed = await world.there.graveyard.doomed(10)
    assert {(item.bucket_id, item.object_key) for item in doomed} == {
        (upload.bucket_id, upload.data_key),
        (upload.bucket_id, upload.index_key),
    }
    assert len(await world.there.graveyard.doomed(1)) == 1
    await world.there.graveyard.buried([item.id for item in doomed])
    assert await world.here.graveyard.doomed(10) == []
    await world.begin(0, 10)


async def test_what_lay_at_an_unconfirmed_name_is_not_ours(world: World) -> None:
    upload = await world.begin(0, 10)
    await world.here.uploads.abandon(upload.id)
    assert await world.here.graveyard.doomed(10) == []
    await world.begin(0, 10)


async def test_an_abandoned_upload_is_gone(world: World) -> None:
    upload = await world.begin(0, 10)
    await world.here.uploads.abandon(upload.id)
    for call in (world.there.uploads.publish, world.there.uploads.renew, world.there.uploads.confirm):
        with pytest.raises(Conflict, match=str(upload.id)):
            await call(upload.id)
    assert await world.here.reader.dataranges(world.dataset_id) == []


async def test_abandoning_does_not_touch_what_is_published(world: World) -> None:
    upload = await world.begin(0, 10)
    await world.here.uploads.confirm(upload.id)
    made = await world.here.uploads.publish(upload.id)
    await world.there.uploads.abandon(upload.id)
    assert await world.here.reader.dataranges(world.dataset_id) == [made]
    assert await world.here.graveyard.doomed(10) == []


async def test_an_object_name_is_never_used_twice(world: World) -> None:
    names = []
    for _ in range(3):
        upload = await world.begin(7, 9)
        names.append(upload.data_key)
        assert upload.index_key == upload.data_key.removesuffix(".tar") + ".index.zst"
        await world.here.uploads.abandon(upload.id)
    parsed = [parse_data_object_key(name) for name in names]
    assert [item[:2] for item in parsed] == [("cats", Span(7, 9))] * 3
    generations = [item[2] for item in parsed]
    assert generations[0] is None
    assert None not in generations[1:]
    assert len(set(generations)) == 3


async def test_a_fresh_name_has_a_generation_and_spoils_the_plain_one(world: World) -> None:
    for fresh in (True, False):
        upload = await world.begin(7, 9, fresh=fresh)
        assert parse_data_object_key(upload.data_key)[2] is not None
        await world.here.uploads.abandon(upload.id)


async def test_expired_uploads_are_swept_and_cannot_be_published(world: World) -> None:
    dead, alive = await world.begin(0, 10), await world.begin(10, 20)
    await world.here.uploads.confirm(dead.id)
    assert await world.there.uploads.abandon_expired() == 0
    world.expire(dead.id)
    assert await world.there.uploads.abandon_expired() == 1
    assert await world.there.uploads.abandon_expired() == 0
    with pytest.raises(Conflict):
        await world.here.uploads.publish(dead.id)
    assert {item.object_key for item in await world.here.graveyard.doomed(10)} == {
        dead.data_key,
        dead.index_key,
    }
    await world.here.uploads.publish(alive.id)
    await world.begin(0, 10)


async def test_an_expired_upload_is_saved_by_its_writer_if_the_sweeper_was_not_there(world: World) -> None:
    renewed, published = await world.begin(0, 10), await world.begin(10, 20)
    for upload in (renewed, published):
        world.expire(upload.id)
    await world.here.uploads.renew(renewed.id)
    await world.here.uploads.publish(published.id)
    assert await world.there.uploads.abandon_expired() == 0
    await world.here.uploads.publish(renewed.id)


async def test_publish_against_sweep_has_one_outcome(world: World) -> None:
    uploads = [await world.begin(number, number + 1) for number in range(8)]
    published: list[str] = []

    async def publish(upload: Upload) -> None:
        published.append(await outcome(lambda: world.here.uploads.publish(upload.id)))

    for upload in uploads:
        await world.here.uploads.confirm(upload.id)
        world.expire(upload.id)
    async with trio.open_nursery() as nursery:
        for upload in uploads[:4]:
            nursery.start_soon(publish, upload)
        nursery.start_soon(world.there.uploads.abandon_expired)
        for upload in uploads[4:]:
            nursery.start_soon(publish, upload)
    await world.there.uploads.abandon_expired()  # what the first passed over because it was locked
    visible = await world.there.reader.dataranges(world.dataset_id)
    doomed = {item.object_key for item in await world.there.graveyard.doomed(100)}
    assert published.count("done") == len(visible)
    assert len(doomed) == 2 * (8 - len(visible))
    assert not doomed & {item.data_key for item in visible}


async def test_changes_are_seen_from_another_connection_within_a_second(world: World) -> None:
    async with world.there.reader.changes() as feed:
        with trio.fail_after(10):  # until we listen for sure
            await world.here.registry.add_dataset("first", "store")
            while len(await world.there.reader.datasets()) < 2:
                await feed.wait()
        for number in range(5):
            upload = await world.begin(number, number + 1)
            await world.here.uploads.publish(upload.id)
            with trio.fail_after(1):
                while len(await world.there.reader.dataranges(world.dataset_id)) <= number:
                    await feed.wait()


async def test_a_feed_that_is_never_read_does_no_harm(world: World) -> None:
    async with world.there.reader.changes(), world.there.reader.changes():
        await world.here.registry.add_dataset("dogs", "store")
        upload = await world.begin(0, 1)
        await world.here.uploads.publish(upload.id)
    assert len(await world.there.reader.datasets()) == 2

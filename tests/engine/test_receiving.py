"""Uploads by presigned URLs: what is published is what was uploaded, once, whatever fails when."""

import tarfile
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.model import Datarange, UploadId, UploadIntent
from datas3tfs.core.names import staged_index_key
from datas3tfs.core.parts import PART_SIZE
from datas3tfs.core.spans import Span
from datas3tfs.engine.receiving import Grant, Receiver
from datas3tfs.engine.sweeper import sweep
from datas3tfs.errors import Conflict, Invalid, NotFound, Unavailable
from tests.harness.archives import noise
from tests.harness.memory_objects import Refused
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
    put_data,
)
from tests.harness.world import World, new_world, open_mounted

SMALL = archive_of([b"zero", b"", b"two" * 700], 5)
KEYS = Span(5, 8)
LARGE = archive_of([noise(3 * MIB, key) for key in range(4)])  # three parts of 5 MiB
PART = 5 * MIB


async def ready() -> World:
    world = await new_world()
    await world.dataset()
    return world


async def swept(world: World) -> None:
    await sweep(world.catalog, world.catalog, world.catalog, world.stores)


async def visible(world: World) -> list[Datarange]:
    return await world.catalog.dataranges((await world.dataset()).id)


async def check_published(world: World, archive: Archive) -> None:
    """One datarange is there, nothing is in flight, and a mount reads what was uploaded."""
    (datarange,) = await visible(world)
    assert not world.catalog.unpublished
    assert datarange.size == len(archive.body)
    async with open_mounted(world) as mounted:
        for key, content in enumerate(archive.contents, archive.first):
            assert await mounted.read(key) == content


async def test_a_small_upload_is_put_at_once_and_gets_checksums() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", KEYS, len(SMALL.body))
        assert (grant.part_urls, grant.part_size, grant.done) == ([], PART_SIZE, [])
        put(world, grant, SMALL.body, SMALL.go_index)
        assert await visible(world) == [], "nothing is visible before it is complete"
        datarange = await receiver.complete(grant.upload.id)
    assert datarange == (await visible(world))[0]
    assert datarange.data_key == "datas3t/photos/dataranges/00000000000000000005-00000000000000000007.tar"
    await check_published(world, SMALL)
    async with open_mounted(world) as mounted:
        index = await mounted.indices.of(world.bucket_id, datarange)
        assert index.crcs(0, 3) == [crc32c(content) for content in SMALL.contents]
        assert index.mtimes_ns(0, 1) == [1_700_000_000 * 10**9]


async def test_a_large_upload_is_put_in_parts() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        assert grant.put_url is None
        assert len(grant.part_urls) == 3
        tags = put(world, grant, LARGE.body, LARGE.go_index)
        await receiver.complete(grant.upload.id, tags)
    await check_published(world, LARGE)
    assert not world.store.multiparts


async def test_without_tags_the_bucket_is_asked_for_them() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        put(world, grant, LARGE.body, LARGE.go_index)
        await receiver.complete(grant.upload.id, [])
    await check_published(world, LARGE)


@pytest.mark.parametrize("index", ["go_index", "records", "full_index"])
@pytest.mark.parametrize(("scanned", "headers"), [(64 * MIB, 1 << 30), (0, 1 << 30), (0, 0)])
async def test_every_form_of_index_is_taken_at_every_size(index: str, scanned: int, headers: int) -> None:
    world = await ready()
    made = getattr(LARGE, index)
    async with open_receiver(world, scanned=scanned, headers=headers) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        tags = put(world, grant, LARGE.body, made if isinstance(made, bytes) else made())
        datarange = await receiver.complete(grant.upload.id, tags)
    await check_published(world, LARGE)
    async with open_mounted(world) as mounted:
        known = (await mounted.indices.of(world.bucket_id, datarange)).crcs(0, 4)
        assert (known is not None) == (scanned > 0 or index == "full_index")


# -- what is refused at once ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "size", "part_size", "words"),
    [
        (Span(0, 0), 10_000, None, "not a range"),
        (Span(2**63 - 1, 2**63 + 1), 10_000, None, "below 2\\^63"),
        (Span(0, 10), 10 * 512, None, "too few for a TAR"),
        (Span(0, 5_000_000), 1 << 40, None, "at most 4194304"),
        (Span(0, 10), 10_000, 1 * MIB, "S3 takes parts"),
        (Span(0, 10), 10_000, 6 << 30, "S3 takes parts"),
        (Span(0, 10), 10_000 * PART_SIZE + 1, None, "part_size of at least 22020096"),
    ],
)
async def test_what_cannot_be_is_not_begun(keys: Span, size: int, part_size: int | None, words: str) -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        with pytest.raises(Invalid, match=words):
            await receiver.start("photos", keys, size, part_size)
    assert not world.catalog.unpublished


async def test_what_fits_into_ten_thousand_parts_is_begun() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 10), 10_000 * PART_SIZE)
        assert len(grant.part_urls) == 10_000


@pytest.mark.parametrize(
    ("size", "part_size", "urls"),
    [
        (PART_SIZE - 1, None, 0),
        (PART_SIZE, None, 1),
        (PART_SIZE + 1, None, 2),
        (100 * MIB, None, 5),
        (PART - 1, PART, 0),
        (PART, PART, 1),
        (64 * MIB - 1, 100 * MIB, 0),
        (64 * MIB, 100 * MIB, 1),  # what one URL can put again must be small
        (250 * MIB, 100 * MIB, 3),
    ],
)
async def test_a_url_for_every_part_or_one_for_all(size: int, part_size: int | None, urls: int) -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 1), size, part_size)
    assert len(grant.part_urls) == urls
    assert (grant.put_url is None) == (urls > 0)


async def test_an_unknown_dataset_is_not_found() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        with pytest.raises(NotFound):
            await receiver.start("nothing", KEYS, len(SMALL.body))


async def test_keys_that_are_committed_or_in_flight_are_refused_in_the_words_clients_look_for() -> None:
    world = await ready()
    await world.commit([b"x"], 7)
    async with open_receiver(world) as receiver:
        with pytest.raises(Conflict, match="datarange overlaps with existing dataranges"):
            await receiver.start("photos", KEYS, len(SMALL.body))
        await receiver.start("photos", Span(0, 5), 10_000)
        with pytest.raises(Conflict, match="datarange overlaps with existing dataranges"):
            await receiver.start("photos", Span(4, 6), 10_000)
    assert len(world.catalog.unpublished) == 1


async def test_who_holds_the_keys_and_until_when_is_said() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        held = (await receiver.start("photos", Span(0, 5), 10_000)).upload.id
        until = r"expires at 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
        with pytest.raises(Conflict, match=f"upload {held} of datapoints 0 to 4, in flight .* {until}"):
            await receiver.start("photos", Span(4, 6), 10_000)
        await receiver.cancel(held)
        await receiver.start("photos", Span(4, 6), 10_000)


async def test_objects_older_than_the_catalog_are_left_alone() -> None:
    world = await ready()
    older = "datas3t/photos/dataranges/00000000000000000005-00000000000000000007.index"
    world.store.objects[older] = b"as a Go server named them"
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", KEYS, len(SMALL.body))
        put(world, grant, SMALL.body, SMALL.go_index)
        await receiver.complete(grant.upload.id)
    await swept(world)
    await check_published(world, SMALL)
    assert world.store.objects[older] == b"as a Go server named them"


@pytest.mark.parametrize(
    "method", ["begin_multipart", "part_urls", "put_url", "remember_multipart", "pending"]
)
async def test_a_start_that_fails_leaves_nothing(method: str) -> None:
    world = await ready()
    plan = Plan()
    async with open_stepped_receiver(world, plan) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        await receiver.cancel(grant.upload.id)
        nth = plan.seen.index(method) + 1
    world = await ready()
    async with open_stepped_receiver(world, Plan(nth, Unavailable("away"))) as receiver:
        with pytest.raises(Unavailable):
            await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
    await swept(world)
    assert not world.catalog.unpublished
    assert not world.store.multiparts


@pytest.mark.parametrize("archive", [SMALL, LARGE], ids=["put at once", "in parts"])
async def test_who_heard_no_answer_starts_again_and_gets_the_same_upload(archive: Archive) -> None:
    world, attempt = await ready(), uuid4()
    keys = Span(archive.first, archive.first + len(archive.contents))
    async with open_receiver(world) as receiver:
        first = await receiver.start("photos", keys, len(archive.body), PART, attempt=attempt)
        put(world, first, archive.body, archive.go_index)
        again = await receiver.start("photos", keys, len(archive.body), PART, attempt=attempt)
        assert again.upload == first.upload
        assert len(world.store.multiparts) == (first.put_url is None)
        with pytest.raises(Conflict):
            await receiver.start("photos", keys, len(archive.body), PART, attempt=uuid4())
        with pytest.raises(Conflict):
            await receiver.start("photos", keys, len(archive.body), PART)
        tags = put(world, again, archive.body, archive.go_index)
        await receiver.complete(again.upload.id, tags)
    await check_published(world, archive)


@pytest.mark.parametrize("lists", [True, False])
async def test_a_multipart_upload_that_nobody_was_told_of_ends_with_the_upload(lists: bool) -> None:
    """A server that dies between S3's answer and its own note leaves one."""
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        await world.store.begin_multipart(grant.upload.data_key)
        tags = put(world, grant, LARGE.body, LARGE.go_index)
        if not lists:
            world.failing.fail("abort_unfinished", 1, Unavailable("made to fail"))
        await receiver.complete(grant.upload.id, tags)
        assert bool(world.store.multiparts) == (not lists), "if it cannot be found, that is no failure"


async def test_starts_of_one_attempt_at_the_same_time_are_one_upload() -> None:
    world, attempt = await ready(), uuid4()
    grants: list[Grant] = []
    async with open_receiver(world) as receiver:

        async def start() -> None:
            grants.append(await receiver.start("photos", Span(0, 4), len(LARGE.body), PART, attempt=attempt))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(start)
        assert len({grant.upload for grant in grants}) == 1
        assert len(world.store.multiparts) == 1
        put(world, grants[3], LARGE.body, LARGE.go_index)
        await receiver.complete(grants[0].upload.id)
    await check_published(world, LARGE)


# -- completing what is not right -----------------------------------------------------------------


async def started(world: World, archive: Archive, index: bytes) -> UploadId:
    async with open_receiver(world) as receiver:
        keys = Span(archive.first, archive.first + len(archive.contents))
        grant = await receiver.start("photos", keys, len(archive.body), PART)
        put(world, grant, archive.body, index)
    return grant.upload.id


async def test_a_go_index_of_an_archive_with_pax_headers_is_refused_and_says_what_to_do() -> None:
    world = await ready()
    archive = archive_of([b"a", b"b"], form=tarfile.PAX_FORMAT, mtime=1.5)
    upload_id = await started(world, archive, archive.go_index)
    async with open_receiver(world) as receiver:
        with pytest.raises(Invalid, match=r"extended header \(PAX or GNU long name\).*--format=ustar"):
            await receiver.complete(upload_id)
    assert not world.catalog.unpublished, "its keys are free again"
    await swept(world)
    assert world.store.objects == {}


async def test_an_archive_with_pax_headers_and_a_true_index_is_taken() -> None:
    world = await ready()
    archive = archive_of([b"a", b"b"], form=tarfile.PAX_FORMAT, mtime=1.5)
    upload_id = await started(world, archive, archive.records)
    async with open_receiver(world) as receiver:
        await receiver.complete(upload_id)
    await check_published(world, archive)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (SMALL.go_index[:-1], "not a multiple of 16"),
        (SMALL.go_index + b"\0" * 15, "not a multiple of 16"),
        (b"", "0 records, but 3 datapoints"),
        (SMALL.go_index[16:], "2 records, but 3"),
        (SMALL.go_index + SMALL.go_index[-16:], "4 records, but 3"),
        (SMALL.go_index[16:32] + SMALL.go_index[:16] + SMALL.go_index[32:], "overlaps"),
        (SMALL.go_index[:32] + b"\0" * 16, "outside"),
        (b"\xff" * 48, "outside"),
        (b"x" * (17 * MIB), "at most"),
        (archive_of([b"zero", b"", b"two" * 701], 5).full_index(), "wrong about datapoint 7"),
        (archive_of([b"zero", b"", b"two" * 999], 5).full_index(), "index is of"),
        (archive_of([b"zerO", b"", b"two" * 700], 5).full_index(), "another CRC32C for datapoint 5"),
        (SMALL.full_index()[:-3], "not one of this archive"),
    ],
)
async def test_a_wrong_index_ends_the_upload(index: bytes, words: str) -> None:
    world = await ready()
    upload_id = await started(world, SMALL, index)
    async with open_receiver(world) as receiver:
        with pytest.raises(Invalid, match=words):
            await receiver.complete(upload_id)
        with pytest.raises(Conflict):
            await receiver.complete(upload_id)
        await receiver.start("photos", KEYS, len(SMALL.body))
    assert await visible(world) == []


async def test_an_object_of_another_length_ends_the_upload() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        for body in (SMALL.body + bytes(512), SMALL.body[:-512]):
            grant = await receiver.start("photos", KEYS, len(SMALL.body))
            put(world, grant, body, SMALL.go_index)
            with pytest.raises(Invalid, match="announced"):
                await receiver.complete(grant.upload.id)
    assert not world.catalog.unpublished


async def test_wrong_tags_end_the_upload() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        tags = put(world, grant, LARGE.body, LARGE.go_index)
        with pytest.raises(Invalid):
            await receiver.complete(grant.upload.id, tags[::-1])
    await swept(world)
    assert not world.catalog.unpublished
    assert not world.store.multiparts


async def test_archives_that_hold_something_else_than_announced_are_refused() -> None:
    world = await ready()
    for other in (archive_of([b"zero", b"", b"two" * 700], 6), archive_of([b"zero", b"", b"two" * 700], 4)):
        upload_id = await started(world, Archive(5, SMALL.contents, other.body), other.go_index)
        async with open_receiver(world) as receiver:
            with pytest.raises(Invalid, match="keys 5 to 7 were announced"):
                await receiver.complete(upload_id)


async def test_what_is_not_all_there_yet_can_be_completed_later() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        with pytest.raises(Conflict, match="0 of"):
            await receiver.complete(grant.upload.id)
        for i in (0, 2):
            world.store.client_put(grant.part_urls[i], LARGE.body[i * PART : (i + 1) * PART])
        with pytest.raises(Conflict, match=r"of \d+ bytes have been uploaded"):
            await receiver.complete(grant.upload.id)
        put_data(world, grant, LARGE.body)
        with pytest.raises(Conflict, match="not all of it"):
            await receiver.complete(grant.upload.id)  # no index; the parts are one object now
        world.store.client_put(grant.index_url, LARGE.go_index)
        await receiver.complete(grant.upload.id)
    await check_published(world, LARGE)


async def test_a_small_one_that_was_not_put_can_be_completed_later() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", KEYS, len(SMALL.body))
        with pytest.raises(Conflict, match="not all of it"):
            await receiver.complete(grant.upload.id)
        put(world, grant, SMALL.body, SMALL.go_index)
        await receiver.complete(grant.upload.id)
    await check_published(world, SMALL)


# -- ids ------------------------------------------------------------------------------------------


async def test_ids_of_other_things_are_not_found() -> None:
    world = await ready()
    dataset = await world.dataset()
    one, two = await world.commit([b"a"]), await world.commit([b"b"], 1)
    of_a_mount = await world.catalog.begin(UploadIntent(dataset.id, Span(9, 10), 2048))
    async with open_receiver(world) as receiver:
        aggregate = (await receiver.start_aggregate("photos", Span(0, 2))).grant.upload.id
        upload = (await receiver.start("photos", KEYS, len(SMALL.body))).upload.id
        for act in (receiver.complete, receiver.cancel, receiver.resume):
            for upload_id in (of_a_mount.id, aggregate, UploadId(10**9)):
                with pytest.raises(NotFound):
                    await act(upload_id)
        for act in (receiver.complete_aggregate, receiver.cancel_aggregate):
            for upload_id in (of_a_mount.id, upload, UploadId(10**9)):
                with pytest.raises(NotFound):
                    await act(upload_id)
    assert len(world.catalog.unpublished) == 3
    assert await visible(world) == [one, two]


async def test_two_uploads_are_never_mixed_up() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grants = [await receiver.start("photos", Span(i, i + 1), 2048) for i in range(5)]
        for i in (3, 0, 4, 1, 2):
            made = archive_of([bytes([i])], i)
            put(world, grants[i], made.body, made.go_index)
        for i in (2, 4, 0, 3, 1):
            assert (await receiver.complete(grants[i].upload.id)).keys == Span(i, i + 1)
    async with open_mounted(world) as mounted:
        assert [await mounted.read(i) for i in range(5)] == [bytes([i]) for i in range(5)]


# -- again, at once, too late ---------------------------------------------------------------------


async def test_complete_is_idempotent() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        tags = put(world, grant, LARGE.body, LARGE.go_index)
        first = await receiver.complete(grant.upload.id, tags)
        assert await receiver.complete(grant.upload.id, tags) == first
        assert await receiver.complete(grant.upload.id, ["nonsense"]) == first
        with pytest.raises(Conflict, match="published"):
            await receiver.cancel(grant.upload.id)
    await check_published(world, LARGE)


async def test_cancel_is_idempotent_and_leaves_nothing() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        put(world, grant, LARGE.body, LARGE.go_index)
        for _ in range(3):
            await receiver.cancel(grant.upload.id)
        assert not world.store.multiparts
        with pytest.raises(Refused):
            world.store.client_put(grant.part_urls[0], b"x")
        with pytest.raises(Conflict):
            await receiver.complete(grant.upload.id)
        with pytest.raises(Conflict):
            await receiver.resume(grant.upload.id)
        await receiver.start("photos", Span(0, 4), len(LARGE.body))
    await swept(world)
    assert world.store.objects == {}


async def test_cancel_works_while_the_bucket_is_away(caplog: pytest.LogCaptureFixture) -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        world.failing.fail("abort_multipart", 1, Unavailable("away"))
        await receiver.cancel(grant.upload.id)
    assert "left to the sweeper" in caplog.text
    assert world.store.multiparts
    await swept(world)
    assert not world.store.multiparts


async def test_what_is_put_after_all_is_deleted_when_the_urls_have_died() -> None:
    now = 0.0
    world = await ready()
    world.catalog.clock = lambda: now
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", KEYS, len(SMALL.body))
        await receiver.cancel(grant.upload.id)
        await swept(world)
        put(world, grant, SMALL.body, SMALL.go_index)
        done = await receiver.start("photos", KEYS, len(SMALL.body))
        put(world, done, SMALL.body, SMALL.go_index)
        await receiver.complete(done.upload.id)
        await swept(world)
        put(world, done, SMALL.body, b"late")
    now = world.catalog.presigned_lifetime + 1
    await swept(world)
    assert set(world.store.objects) == {done.upload.data_key, done.upload.index_key}
    await check_published(world, SMALL)


async def test_a_url_that_still_works_changes_nothing_that_readers_trust() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", KEYS, len(SMALL.body))
        put(world, grant, SMALL.body, SMALL.go_index)
        datarange = await receiver.complete(grant.upload.id)
        index = world.store.objects[datarange.index_key]
        world.store.client_put(grant.index_url, b"junk")
        assert world.store.objects[datarange.index_key] == index
        large = await receiver.start("photos", Span(100, 104), len(LARGE.body), PART)
        archive = archive_of(LARGE.contents, 100)
        tags = put(world, large, archive.body, archive.go_index)
        await receiver.complete(large.upload.id, tags)
        for url in large.part_urls:
            with pytest.raises(Refused):
                world.store.client_put(url, b"x")


async def test_many_completes_at_once_publish_once() -> None:
    world = await ready()
    results: list[Datarange] = []
    async with open_receiver(world) as receiver, open_receiver(world) as another:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        tags = put(world, grant, LARGE.body, LARGE.go_index)

        async def complete(one: Receiver) -> None:
            results.append(await one.complete(grant.upload.id, tags))

        async with trio.open_nursery() as nursery:
            for one in (receiver, another) * 4:
                nursery.start_soon(complete, one)
    assert len(results) == 8
    assert len(set(results)) == 1
    await check_published(world, LARGE)


async def count_steps(archive: Archive, index: bytes) -> list[str]:
    """Return the calls that complete makes."""
    world = await ready()
    upload_id = await started(world, archive, index)
    plan = Plan()
    async with open_stepped_receiver(world, plan) as receiver:
        await receiver.complete(upload_id)
    return plan.seen


@pytest.mark.parametrize("archive", [SMALL, LARGE], ids=["put at once", "in parts"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_step_of_complete_and_then_again(archive: Archive, after: bool) -> None:
    steps = await count_steps(archive, archive.go_index)
    assert {"pending", "renew", "size", "get", "get_range", "put", "publish"} <= set(steps)
    for nth in range(1, len(steps) + 1):
        world = await ready()
        upload_id = await started(world, archive, archive.go_index)
        async with open_stepped_receiver(world, Plan(nth, Crash(), after=after)) as receiver:
            with dying():
                await receiver.complete(upload_id)
        async with open_receiver(world) as receiver:
            await receiver.complete(upload_id)
        await swept(world)
        await check_published(world, archive)
        assert len(world.store.objects) == 2


@pytest.mark.parametrize("archive", [SMALL, LARGE], ids=["put at once", "in parts"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_nothing_is_lost_by_a_failure_at_any_step(archive: Archive, after: bool) -> None:
    steps = await count_steps(archive, archive.go_index)
    for nth in range(1, len(steps) + 1):
        world = await ready()
        upload_id = await started(world, archive, archive.go_index)
        # What nobody was told of is looked for, and that is all: if it cannot be, the rest goes on.
        is_borne = steps[nth - 1] == "abort_unfinished"
        async with open_stepped_receiver(world, Plan(nth, Unavailable("away"), after=after)) as receiver:
            with nullcontext() if is_borne else pytest.raises(Unavailable):
                await receiver.complete(upload_id)
            await swept(world)
            await receiver.complete(upload_id)
        await check_published(world, archive)


@pytest.mark.parametrize("archive", [SMALL, LARGE], ids=["put at once", "in parts"])
async def test_a_crash_at_any_step_and_never_again_leaves_nothing(archive: Archive) -> None:
    steps = await count_steps(archive, archive.go_index)
    for nth in range(1, len(steps)):
        world = await ready()
        now = 0.0
        world.catalog.clock = lambda: now  # noqa: B023 used in this very turn
        upload_id = await started(world, archive, archive.go_index)
        async with open_stepped_receiver(world, Plan(nth, Crash())) as receiver:
            with dying():
                await receiver.complete(upload_id)
        now = 10 * world.catalog.presigned_lifetime
        await swept(world)
        now *= 2
        await swept(world)
        assert await visible(world) == []
        assert not world.catalog.unpublished
        assert not world.store.multiparts
        assert world.store.objects == {}


Meanwhile = Callable[[World, UploadId], Awaitable[None]]


class Between(Plan):
    """Lets something else happen before the nth call."""

    def __init__(self, nth: int, world: World, upload_id: UploadId, meanwhile: Meanwhile) -> None:
        super().__init__()
        self._at = nth
        self._happen = partial(meanwhile, world, upload_id)

    async def run(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Pass one call."""
        if len(self.seen) + 1 == self._at:
            await self._happen()
        return await super().run(name, call)


async def cancelled(world: World, upload_id: UploadId) -> None:
    async with open_receiver(world) as receiver:
        await receiver.cancel(upload_id)


async def expired_and_swept(world: World, upload_id: UploadId) -> None:
    world.catalog.expire(upload_id)
    await swept(world)


@pytest.mark.parametrize("meanwhile", [cancelled, expired_and_swept])
@pytest.mark.parametrize("archive", [SMALL, LARGE], ids=["put at once", "in parts"])
async def test_complete_beside_cancel_or_the_sweeper(archive: Archive, meanwhile: Meanwhile) -> None:
    steps = await count_steps(archive, archive.go_index)
    outcomes = set()
    for nth in range(1, len(steps) + 1):
        world = await ready()
        now = 0.0
        world.catalog.clock = lambda: now  # noqa: B023 used in this very turn
        upload_id = await started(world, archive, archive.go_index)
        plan = Between(nth, world, upload_id, meanwhile)
        async with open_stepped_receiver(world, plan) as receiver:
            try:
                await receiver.complete(upload_id)
                outcomes.add("published")
            except Conflict:
                outcomes.add("gone")
                assert await visible(world) == []
        if await visible(world):
            await check_published(world, archive)
            continue
        for _ in range(2):
            now += 10 * world.catalog.presigned_lifetime
            await swept(world)
        assert world.store.objects == {}, nth
        assert not world.store.multiparts
        assert not world.catalog.unpublished
    assert "gone" in outcomes


async def test_an_upload_is_kept_alive_while_it_is_inspected(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await ready()
    world.catalog.presigned_lifetime = 600.0
    upload_id = await started(world, SMALL, SMALL.go_index)

    async def slow(method: str, key: str) -> None:
        if method == "get_range":
            for _ in range(20):
                await trio.sleep(300)
                await swept(world)

    world.failing.before_each = slow
    async with open_receiver(world) as receiver:
        await receiver.complete(upload_id)
    world.failing.before_each = None
    await check_published(world, SMALL)


async def test_an_upload_that_has_expired_may_still_be_completed_if_nobody_has_swept_it() -> None:
    world = await ready()
    upload_id = await started(world, SMALL, SMALL.go_index)
    world.catalog.expire(upload_id)

    async def sweeps(method: str, key: str) -> None:
        if method == "get_range":
            await swept(world)

    world.failing.before_each = sweeps
    async with open_receiver(world) as receiver:
        await receiver.complete(upload_id)
    world.failing.before_each = None
    await check_published(world, SMALL)


# -- going on -------------------------------------------------------------------------------------


async def test_an_upload_goes_on_with_the_parts_that_are_there_and_urls_that_work() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        world.store.client_put(grant.part_urls[1], LARGE.body[PART : 2 * PART])
        world.store.expire_urls()
    async with open_receiver(world) as receiver:
        again = await receiver.resume(grant.upload.id)
        assert (again.upload, again.part_size) == (grant.upload, PART)
        assert [(part.number, part.size) for part in again.done] == [(2, PART)]
        for i in (0, 2):
            world.store.client_put(again.part_urls[i], LARGE.body[i * PART : (i + 1) * PART])
        world.store.client_put(again.index_url, LARGE.go_index)
        await receiver.complete(grant.upload.id)
    await check_published(world, LARGE)


async def test_parts_of_another_length_are_put_again() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        world.store.client_put(grant.part_urls[0], LARGE.body[:PART])
        world.store.client_put(grant.part_urls[1], b"cut short")
        again = await receiver.resume(grant.upload.id)
        assert [part.number for part in again.done] == [1]


async def test_going_on_puts_off_the_expiry() -> None:
    now = 0.0
    world = await ready()
    world.catalog.clock = lambda: now
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", KEYS, len(SMALL.body))
        now = world.catalog.presigned_lifetime - 1
        world.store.expire_urls()
        again = await receiver.resume(grant.upload.id)
        assert again.put_url is not None
        now += world.catalog.presigned_lifetime - 1
        await swept(world)
        put(world, again, SMALL.body, SMALL.go_index)
        await receiver.complete(grant.upload.id)
    await check_published(world, SMALL)


async def test_an_upload_whose_parts_are_put_together_has_only_to_be_completed() -> None:
    world = await ready()
    async with open_receiver(world) as receiver:
        grant = await receiver.start("photos", Span(0, 4), len(LARGE.body), PART)
        put(world, grant, LARGE.body, LARGE.go_index)
        world.failing.fail("put", 1, Unavailable("away"))
        with pytest.raises(Unavailable):
            await receiver.complete(grant.upload.id)
        with pytest.raises(Conflict, match="put together"):
            await receiver.resume(grant.upload.id)
        await receiver.complete(grant.upload.id)
    await check_published(world, LARGE)


def test_nothing_that_is_granted_shows_a_url() -> None:
    async def main() -> str:
        world = await ready()
        await world.commit([b"a"])
        await world.commit([b"b"], 1)
        async with open_receiver(world) as receiver:
            grants = [
                await receiver.start("photos", KEYS, len(SMALL.body)),
                await receiver.start("photos", Span(10, 14), len(LARGE.body), PART),
                await receiver.start_aggregate("photos", Span(0, 2)),
            ]
        return repr(grants)

    assert "signature=" not in trio.run(main)


async def test_the_staged_index_goes_when_the_upload_is_complete() -> None:
    world = await ready()
    upload_id = await started(world, SMALL, SMALL.go_index)
    async with open_receiver(world) as receiver:
        datarange = await receiver.complete(upload_id)
    assert staged_index_key(datarange.data_key) in world.store.objects
    await swept(world)
    assert set(world.store.objects) == {datarange.data_key, datarange.index_key}

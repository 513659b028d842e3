"""What every catalog must do with uploads whose objects somebody else puts, through URLs."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest
import trio

from datas3tfs.core.model import DatasetId, Upload, UploadId, UploadIntent
from datas3tfs.core.names import staged_index_key
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.catalogs import ME, World, outcome

ATTEMPT = "44444444-4444-4444-8444-444444444444"


def objects_of(upload: Upload) -> list[str]:
    return sorted((upload.data_key, upload.index_key, staged_index_key(upload.data_key)))


async def test_an_upload_in_flight_can_be_asked_for_by_its_id(world: World) -> None:
    sources = [await world.commit(100, 110), await world.commit(110, 120)]
    await world.here.leases.enrol(ME, "here:/journal")
    for upload in (
        await world.begin(0, 10),
        await world.begin(10, 20, holder=ME),
        await world.begin_presigned(20, 30),
        await world.aggregate(*sources),
        await world.aggregate(*sources, presigned=True),
    ):
        found = await world.there.uploads.pending(upload.id)
        assert (found.upload, found.multipart) == (upload, None)
        assert found.confirmed == bool(upload.intent.presigned or upload.intent.replaces)
        assert found.expires_ns > time.time_ns()


async def test_what_is_not_in_flight_is_unknown_or_gone(world: World) -> None:
    pending = world.there.uploads.pending
    with pytest.raises(NotFound):
        await pending(UploadId(1))  # nothing was ever begun
    published, abandoned, swept = [await world.begin(start, start + 1) for start in range(3)]
    await world.here.uploads.publish(published.id)
    await world.here.uploads.abandon(abandoned.id)
    world.expire(swept.id)
    assert (await pending(swept.id)).upload == swept, "expired, but not swept yet"
    await world.here.uploads.abandon_expired()
    for upload in (published, abandoned, swept):
        with pytest.raises(Conflict, match=str(upload.id)):
            await pending(upload.id)
    adopted = await world.here.dataranges.adopt(world.dataset_id, Span(50, 60), "x.tar", "x.index", 1)
    for number in (0, -1, -adopted.id, swept.id + 1000):
        with pytest.raises(NotFound):
            await pending(UploadId(number))


async def test_the_first_multipart_upload_is_remembered(world: World) -> None:
    for number, multipart in enumerate(("2~first/+=", "x" * 1000)):
        upload = await world.begin_presigned(10 * number, 10 * number + 1)
        for later in (multipart, "2~second", multipart):
            assert await world.here.uploads.remember_multipart(upload.id, later) == multipart
        assert (await world.there.uploads.pending(upload.id)).multipart == multipart
    for hostile in ("", "a\nb", "a\0b", "\ud800"):
        with pytest.raises(Invalid):
            await world.here.uploads.remember_multipart(upload.id, hostile)
    await world.here.uploads.abandon(upload.id)
    with pytest.raises(Conflict, match=str(upload.id)):
        await world.here.uploads.remember_multipart(upload.id, "2~third")


async def test_those_in_flight_are_found_by_their_keys(world: World) -> None:
    before = time.time_ns() - 10**9
    sources = [await world.commit(100, 110), await world.commit(110, 120)]
    await world.begin(0, 10)  # by a writer with credentials of its own: not through URLs
    later, sooner = await world.begin_presigned(30, 40), await world.begin_presigned(20, 30)
    merge = await world.aggregate(*sources, presigned=True)
    gone, published = await world.begin_presigned(50, 60), await world.begin_presigned(60, 70)
    await world.here.uploads.abandon(gone.id)
    await world.here.uploads.publish(published.id)

    async def found(start: int, stop: int, dataset_id: DatasetId = world.dataset_id) -> list[Upload]:
        return [one.upload for one in await world.there.uploads.in_flight(dataset_id, Span(start, stop))]

    assert await found(0, 2**63) == [sooner, later, merge]
    assert await found(29, 31) == [sooner, later]
    assert await found(30, 31) == [later]
    assert await found(40, 100) == []
    assert await found(0, 2**63, DatasetId(world.dataset_id + 1000)) == []
    world.expire(sooner.id)
    assert await found(20, 21) == [sooner], "expired, but not swept yet"
    (one,) = await world.there.uploads.in_flight(world.dataset_id, Span(30, 31))
    assert before < one.begun_ns < one.expires_ns


async def test_it_lives_as_long_as_its_urls(world: World) -> None:
    lives = []
    for presigned in (False, True):
        intent = UploadIntent(world.dataset_id, Span(10 * presigned, 10 * presigned + 1), 1)
        upload = await world.here.uploads.begin(replace(intent, presigned=presigned))
        begun = (await world.there.uploads.pending(upload.id)).expires_ns
        world.expire(upload.id)
        await world.here.uploads.renew(upload.id)
        renewed = (await world.there.uploads.pending(upload.id)).expires_ns
        assert 0 <= renewed - begun < 60e9
        lives.append((begun - time.time_ns()) / 1e9)
    assert 500 < lives[0] < 700
    assert lives[1] > 24 * 3600


async def test_abandoned_it_is_deleted_now_and_once_more_when_its_urls_are_dead(world: World) -> None:
    upload = await world.begin_presigned(0, 10)
    for _ in range(2):
        await world.here.uploads.abandon(upload.id)
    assert await world.due() == objects_of(upload)
    await world.there.graveyard.buried([item.id for item in await world.there.graveyard.doomed(10)])
    assert await world.due() == []
    world.fall_due()
    assert await world.due() == objects_of(upload), "a late PUT has perhaps brought them back"
    await world.begin(0, 10)


async def test_expired_it_is_deleted_once_as_its_urls_are_dead(world: World) -> None:
    upload = await world.begin_presigned(0, 10)
    world.expire(upload.id)
    assert await world.there.uploads.abandon_expired() == 1
    assert await world.due() == objects_of(upload)
    world.fall_due()
    assert await world.due() == objects_of(upload)


async def test_unconfirmed_it_dooms_nothing(world: World) -> None:
    upload = await world.here.uploads.begin(UploadIntent(world.dataset_id, Span(0, 1), 1, presigned=True))
    await world.here.uploads.abandon(upload.id)
    world.fall_due()
    assert await world.due() == []


async def test_published_it_leaves_only_the_staged_index_behind(world: World) -> None:
    upload = await world.begin_presigned(0, 10)
    for _ in range(2):
        made = await world.here.uploads.publish(upload.id, 4711)
        assert (made.data_key, made.index_key, made.size) == (upload.data_key, upload.index_key, 4711)
    staged = staged_index_key(upload.data_key)
    assert await world.due() == [staged]
    world.fall_due()
    assert await world.due() == [staged] * 2
    assert staged not in (upload.data_key, upload.index_key)


async def test_a_presigned_aggregate_dooms_its_sources_and_its_staged_index(world: World) -> None:
    sources = [await world.commit(0, 10), await world.commit(10, 20)]
    upload = await world.aggregate(*sources, presigned=True)
    await world.here.uploads.publish(upload.id, 99)
    staged = staged_index_key(upload.data_key)
    assert await world.due() == [staged]
    world.fall_due()
    replaced = [key for source in sources for key in (source.data_key, source.index_key)]
    assert await world.due() == sorted([staged, staged, *replaced])


async def test_what_is_published_after_it_expired_is_swept_no_more(world: World) -> None:
    upload = await world.begin_presigned(0, 10)
    world.expire(upload.id)
    await world.here.uploads.publish(upload.id)
    assert await world.there.uploads.abandon_expired() == 0
    world.fall_due()
    assert await world.due() == [staged_index_key(upload.data_key)], "its URLs were dead already"
    assert await outcome(lambda: world.there.uploads.renew(upload.id)) == "Conflict"


def attempted(world: World, start: int = 0, stop: int = 10, *, attempt: str = ATTEMPT) -> UploadIntent:
    return UploadIntent(world.dataset_id, Span(start, stop), 1, presigned=True, attempt=attempt)


async def test_an_attempt_that_is_repeated_is_the_same_upload_renewed(world: World) -> None:
    upload = await world.here.uploads.begin(attempted(world))
    assert upload.intent.attempt == ATTEMPT
    await world.here.uploads.confirm(upload.id)
    await world.here.uploads.remember_multipart(upload.id, "2~multipart")
    world.expire(upload.id)
    for fresh in (False, True):
        assert await world.there.uploads.begin(attempted(world), fresh=fresh) == upload
    assert await world.there.uploads.abandon_expired() == 0
    found = await world.there.uploads.pending(upload.id)
    assert (found.upload, found.multipart) == (upload, "2~multipart")
    assert found.expires_ns > time.time_ns() + 3600 * 10**9


async def test_an_attempt_is_for_one_intent(world: World) -> None:
    sources = [await world.commit(100, 110), await world.commit(110, 120)]
    dogs = await world.here.registry.add_dataset("dogs", "store")
    upload = await world.here.uploads.begin(attempted(world))
    for other in (
        attempted(world, 0, 11),
        attempted(world, 10, 20),
        replace(attempted(world), size=2),
        replace(attempted(world), presigned=False),
        replace(attempted(world), dataset_id=dogs),
        replace(attempted(world, 100, 120), replaces=tuple(source.id for source in sources)),
    ):
        with pytest.raises(Conflict, match="attempt"):
            await world.there.uploads.begin(other)
    with pytest.raises(Conflict, match="taken"):
        await world.there.uploads.begin(attempted(world, attempt=ATTEMPT.replace("4", "5", 1)))
    for text in ("", "x", ATTEMPT + " ", "{" + ATTEMPT + "}"):
        with pytest.raises(Invalid):
            await world.there.uploads.begin(attempted(world, attempt=text))
    assert (await world.there.uploads.pending(upload.id)).upload == upload


async def test_an_attempt_that_has_ended_is_not_found_again(world: World) -> None:
    first = await world.here.uploads.begin(attempted(world))
    await world.here.uploads.abandon(first.id)
    second = await world.here.uploads.begin(attempted(world))
    assert (second.id, second.data_key) != (first.id, first.data_key)
    await world.here.uploads.publish(second.id)
    with pytest.raises(Conflict, match="taken"):
        await world.here.uploads.begin(attempted(world))
    with pytest.raises(NotFound):
        await world.here.uploads.begin(replace(attempted(world), dataset_id=DatasetId(10**9)))


async def test_an_aggregate_may_be_attempted_again_too(world: World) -> None:
    sources = [await world.commit(0, 10), await world.commit(10, 20)]
    intent = replace(attempted(world, 0, 20), replaces=tuple(source.id for source in sources))
    upload = await world.here.uploads.begin(intent)
    assert await world.there.uploads.begin(intent) == upload
    await world.here.uploads.publish(upload.id)
    with pytest.raises(Conflict):
        await world.there.uploads.begin(intent)


async def test_an_attempt_made_many_times_at_once_is_one_upload(world: World) -> None:
    dogs = await world.here.registry.add_dataset("dogs", "store")
    begun: list[Upload] = []
    refused: Counter[str] = Counter()

    async def begin(number: int) -> None:
        catalog = world.here if number % 2 else world.there
        intent = attempted(world) if number % 5 else replace(attempted(world), dataset_id=dogs)
        try:
            begun.append(await catalog.uploads.begin(intent))
        except Conflict:
            refused["dogs" if intent.dataset_id == dogs else "cats"] += 1

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(begin, number)
    assert len({upload.id for upload in begun}) == 1
    assert refused == ({"dogs": 4} if begun[0].intent.dataset_id == world.dataset_id else {"cats": 16})
    assert world.counters.get("sql.retry") == 0

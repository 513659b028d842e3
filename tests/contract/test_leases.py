"""What every catalog must do with leases: keys that a journal holds before there is a datarange of them."""

from __future__ import annotations

import time

import pytest

from datas3tfs.core.model import DatasetId, HolderId, Lease, UploadIntent
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.catalogs import ME, OTHER, World


@pytest.fixture
async def enrolled(world: World) -> World:
    await world.here.leases.enrol(ME, "here:/journal")
    await world.there.leases.enrol(OTHER, "there:/journal")
    return world


async def test_holders_are_listed_with_what_they_hold(enrolled: World) -> None:
    before = time.time_ns()
    await enrolled.take(ME, 0, 10)
    await enrolled.take(ME, 20, 25, accepted=True)
    mine, others = await enrolled.there.leases.holders()
    assert (mine.id, mine.place, mine.leases, mine.keys, mine.accepted_keys) == (
        ME,
        "here:/journal",
        2,
        15,
        5,
    )
    assert (others.id, others.leases, others.keys, others.accepted_keys) == (OTHER, 0, 0, 0)
    assert not mine.expired
    assert abs(mine.renewed_ns - before) < 60e9
    await enrolled.here.leases.enrol(ME, "zoo:/\x1b[2J")
    others, mine = await enrolled.there.leases.holders()
    assert (mine.id, mine.place, mine.leases) == (ME, "zoo:/\\x1b[2J", 2)


async def test_a_holder_that_is_alive_at_another_place_is_left_alone(enrolled: World) -> None:
    leases = enrolled.there.leases
    await enrolled.take(ME, 0, 10, accepted=True)
    await leases.enrol(ME, "here:/journal", alone=True)
    for _ in range(2):
        with pytest.raises(Conflict, match="it was in use as here:/journal"):
            await leases.enrol(ME, "there:/copy", alone=True)
    await leases.dismiss(ME, "there:/copy")
    assert await enrolled.held(ME) == [(0, 10, True)]
    enrolled.expire_holder(ME)
    await leases.enrol(ME, "there:/c\x1bpy", alone=True)
    with pytest.raises(Conflict, match=r"there:/c\\x1bpy"):
        await leases.enrol(ME, "here:/journal", alone=True)
    await leases.dismiss(ME, "here:/journal")
    assert await enrolled.held(ME) == [(0, 10, True)]
    await leases.enrol(ME, "here:/journal")  # knowingly
    await leases.enrol(ME, "there:/c\x1bpy")
    await leases.dismiss(ME, "there:/c\x1bpy")
    assert await enrolled.held(ME) == []
    assert [holder.id for holder in await leases.holders()] == [OTHER]
    await leases.enrol(ME, "there:/copy", alone=True)


async def test_nobody_holds_anything_unknown(enrolled: World) -> None:
    unknown = HolderId("33333333-3333-4333-8333-333333333333")
    leases = enrolled.here.leases
    assert await leases.held(unknown) == []
    await leases.dismiss(unknown)
    await leases.release(unknown, enrolled.dataset_id, Span(0, 5))
    await leases.release(ME, DatasetId(10**9), Span(0, 5))
    assert await enrolled.here.uploads.abandon_all(unknown) == 0
    with pytest.raises(NotFound, match=unknown):
        await enrolled.take(unknown, 0, 5)
    with pytest.raises(NotFound, match=unknown):
        await enrolled.begin(0, 5, holder=unknown)
    with pytest.raises(NotFound, match="1000000000"):
        await leases.take(ME, DatasetId(10**9), Span(0, 5))
    for dataset_id in (enrolled.dataset_id, DatasetId(10**9)):
        with pytest.raises(Conflict, match="key 3 "):
            await leases.accept(ME, dataset_id, 3)


async def test_impossible_leases_are_refused(enrolled: World) -> None:
    for start, stop in ((5, 5), (-1, 3), (0, KEY_LIMIT + 1)):
        with pytest.raises(Invalid):
            await enrolled.take(ME, start, stop)
    for text in ("", "me", ME.upper().replace("1", "A"), "{" + ME + "}"):
        with pytest.raises(Invalid):
            await enrolled.here.leases.enrol(HolderId(text), "here:/journal")
        with pytest.raises(Invalid):
            await enrolled.take(HolderId(text), 0, 1)
        with pytest.raises(Invalid):
            await enrolled.begin(0, 1, holder=HolderId(text))
    with pytest.raises(Invalid):
        await enrolled.here.leases.enrol(ME, "")
    await enrolled.here.leases.release(ME, enrolled.dataset_id, Span(-5, KEY_LIMIT + 5))


async def test_taking_again_returns_the_same_lease_accepted_if_asked(enrolled: World) -> None:
    made = await enrolled.take(ME, 10, 20)
    assert made == Lease(enrolled.dataset_id, Span(10, 20), accepted=False)
    assert await enrolled.take(ME, 10, 20) == made
    assert await enrolled.take(ME, 15, 30) == made
    assert await enrolled.held(ME) == [(10, 20, False)]
    accepted = Lease(enrolled.dataset_id, Span(10, 20), accepted=True)
    assert await enrolled.take(ME, 19, 30, accepted=True) == accepted
    assert await enrolled.take(ME, 10, 11) == accepted
    assert await enrolled.held(ME) == [(10, 20, True)]


async def test_a_lease_ends_before_the_next_key_that_is_taken(enrolled: World) -> None:
    committed = await enrolled.begin(10, 20)
    await enrolled.here.uploads.publish(committed.id)
    await enrolled.begin(30, 40)
    await enrolled.take(OTHER, 50, 60)
    taken = [await enrolled.take(ME, start, 1000) for start in (0, 20, 29, 40, 49, 60)]
    assert [lease.keys for lease in taken] == [
        Span(0, 10), Span(20, 30), Span(20, 30), Span(40, 50), Span(40, 50), Span(60, 1000),
    ]  # fmt: skip
    assert await enrolled.held(ME) == [(0, 10, False), (20, 30, False), (40, 50, False), (60, 1000, False)]


async def test_a_first_key_that_is_taken_says_by_what(enrolled: World) -> None:
    committed = await enrolled.begin(10, 20)
    await enrolled.here.uploads.publish(committed.id)
    await enrolled.begin(30, 40)
    await enrolled.take(OTHER, 50, 60)
    for key, words in (
        (10, "committed"),
        (19, "committed"),
        (35, "uploaded"),
        (59, "leased by there:/journal"),
    ):
        with pytest.raises(Conflict, match=words) as caught:
            await enrolled.take(ME, key, key + 5)
        assert "release" not in str(caught.value)
    assert await enrolled.held(ME) == []


async def test_holders_interleave_without_sharing_a_key(enrolled: World) -> None:
    for start in range(0, 100, 10):
        await enrolled.take(ME if start % 20 else OTHER, start, start + 10)
    assert [keys[:2] for keys in await enrolled.held(ME)] == [(s, s + 10) for s in range(10, 100, 20)]
    for start in range(0, 100, 10):
        with pytest.raises(Conflict, match="leased by"):
            await enrolled.take(OTHER if start % 20 else ME, start, 200)
    await enrolled.here.leases.release(ME, enrolled.dataset_id, Span(0, 100))
    assert await enrolled.held(ME) == []
    assert len(await enrolled.held(OTHER)) == 5
    assert (await enrolled.take(OTHER, 15, 100)).keys == Span(15, 20)


async def test_the_ends_of_the_key_space_can_be_leased(enrolled: World) -> None:
    assert (await enrolled.take(ME, KEY_LIMIT - 1, KEY_LIMIT)).keys == Span(KEY_LIMIT - 1, KEY_LIMIT)
    assert (await enrolled.take(ME, 0, KEY_LIMIT)).keys == Span(0, KEY_LIMIT - 1)
    (mine, _) = await enrolled.here.leases.holders()
    assert mine.keys == KEY_LIMIT
    dogs = await enrolled.here.registry.add_dataset("dogs", "store")
    assert (await enrolled.here.leases.take(OTHER, dogs, Span(0, KEY_LIMIT))).keys == Span(0, KEY_LIMIT)
    assert [lease.dataset_id for lease in await enrolled.here.leases.held(OTHER)] == [dogs]


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ((0, 5), [(10, 20), (20, 30), (40, 50)]),
        ((10, 20), [(20, 30), (40, 50)]),
        ((5, 15), [(15, 20), (20, 30), (40, 50)]),
        ((15, 20), [(10, 15), (20, 30), (40, 50)]),
        ((12, 13), [(10, 12), (13, 20), (20, 30), (40, 50)]),
        ((15, 45), [(10, 15), (45, 50)]),
        ((30, 40), [(10, 20), (20, 30), (40, 50)]),
        ((0, 100), []),
        ((29, 41), [(10, 20), (20, 29), (41, 50)]),
    ],
)
async def test_releasing_carves_the_keys_out(
    enrolled: World, cut: tuple[int, int], left: list[tuple[int, int]]
) -> None:
    for start, accepted in ((10, True), (20, False), (40, True)):
        await enrolled.take(ME, start, start + 10, accepted=accepted)
    for _ in range(2):
        await enrolled.here.leases.release(ME, enrolled.dataset_id, Span(*cut))
        assert await enrolled.held(ME) == [(*keys, not 20 <= keys[0] < 30) for keys in left]
    await enrolled.here.leases.release(OTHER, enrolled.dataset_id, Span(0, 100))
    assert len(await enrolled.held(ME)) == len(left)
    freed = await enrolled.take(OTHER, cut[0], cut[1])
    assert freed.keys == Span(*cut)


async def test_accepting_is_for_the_holder_of_the_key(enrolled: World) -> None:
    await enrolled.take(ME, 10, 20)
    await enrolled.take(ME, 20, 30)
    for holder, key in ((OTHER, 10), (ME, 9), (ME, 30)):
        with pytest.raises(Conflict, match=f"key {key} "):
            await enrolled.here.leases.accept(holder, enrolled.dataset_id, key)
    for _ in range(2):
        await enrolled.here.leases.accept(ME, enrolled.dataset_id, 19)
        assert await enrolled.held(ME) == [(10, 20, True), (20, 30, False)]


async def test_an_upload_takes_its_keys_out_of_the_leases(enrolled: World) -> None:
    await enrolled.take(ME, 10, 20, accepted=True)
    await enrolled.take(ME, 30, 40)
    upload = await enrolled.begin(15, 32, holder=ME)
    assert upload.intent == UploadIntent(enrolled.dataset_id, Span(15, 32), 512, ME)
    assert await enrolled.held(ME) == [(10, 15, True), (32, 40, False)]
    for holder in (ME, OTHER):
        with pytest.raises(Conflict, match="uploaded by here:/journal"):
            await enrolled.take(holder, 20, 21)
    with pytest.raises(Conflict):
        await enrolled.begin(31, 33, holder=OTHER)
    assert await enrolled.held(ME) == [(10, 15, True), (32, 40, False)], "a refusal changes nothing"
    made = await enrolled.here.uploads.publish(upload.id)
    assert made.keys == Span(15, 32)
    assert await enrolled.held(ME) == [(10, 15, True), (32, 40, False)]
    assert await enrolled.here.uploads.abandon_all(ME) == 0


async def test_keys_leased_by_somebody_else_cannot_be_uploaded(enrolled: World) -> None:
    await enrolled.take(ME, 10, 20)
    await enrolled.take(OTHER, 20, 30)
    for holder in (ME, None):
        with pytest.raises(Conflict, match="15 to 24"):
            await enrolled.begin(15, 25, holder=holder)
    with pytest.raises(Conflict):
        await enrolled.begin(15, 16)
    assert await enrolled.held(ME) == [(10, 20, False)]
    await enrolled.begin(10, 20, holder=ME)
    assert await enrolled.held(ME) == []


async def test_abandoning_gives_the_keys_back_as_one_accepted_lease(enrolled: World) -> None:
    await enrolled.take(ME, 10, 20)
    upload = await enrolled.begin(12, 25, holder=ME)
    await enrolled.here.uploads.confirm(upload.id)
    for _ in range(2):
        await enrolled.there.uploads.abandon(upload.id)
        assert await enrolled.held(ME) == [(10, 12, False), (12, 25, True)]
    assert len(await enrolled.here.graveyard.doomed(10)) == 2
    with pytest.raises(Conflict, match="leased by here"):
        await enrolled.take(OTHER, 24, 30)
    again = await enrolled.begin(10, 25, holder=ME)
    assert again.data_key != upload.data_key
    await enrolled.here.uploads.publish(again.id)
    assert await enrolled.held(ME) == []


async def test_an_upload_nobody_learnt_of_does_not_bar_the_next(enrolled: World) -> None:
    """The answer to its begin was lost; the journal tries again, with more keys or fewer."""
    uploads = enrolled.here.uploads
    lost = await enrolled.begin(10, 20, holder=ME)
    await uploads.confirm(lost.id)
    others = await enrolled.begin(30, 40, holder=OTHER)
    later = await enrolled.begin(25, 30, holder=ME)
    again = await enrolled.begin(5, 15, holder=ME)
    assert await enrolled.held(ME) == [(15, 20, True)]
    assert len(await enrolled.here.graveyard.doomed(10)) == 2
    with pytest.raises(Conflict):
        await uploads.publish(lost.id)
    with pytest.raises(Conflict, match="35 to 44"):
        await enrolled.begin(35, 45, holder=ME)
    with pytest.raises(Conflict, match="35 to 44"):
        await enrolled.begin(35, 45)
    for upload in (again, later, others):
        await uploads.publish(upload.id)


async def test_an_expired_upload_gives_the_keys_back(enrolled: World) -> None:
    mine, nobodys = await enrolled.begin(0, 10, holder=ME), await enrolled.begin(10, 20)
    for upload in (mine, nobodys):
        enrolled.expire(upload.id)
    enrolled.expire_holder(ME)
    assert await enrolled.there.uploads.abandon_expired() == 2
    assert await enrolled.held(ME) == [(0, 10, True)]
    assert (await enrolled.take(OTHER, 10, 20)).keys == Span(10, 20)
    with pytest.raises(Conflict, match="journal release"):
        await enrolled.take(OTHER, 0, 20)
    with pytest.raises(Conflict):
        await enrolled.here.uploads.publish(mine.id)


async def test_all_uploads_of_a_holder_are_abandoned_at_once(enrolled: World) -> None:
    for start, holder in ((0, ME), (10, OTHER), (20, ME), (30, None)):
        await enrolled.begin(start, start + 10, holder=holder)
    assert await enrolled.there.uploads.abandon_all(ME) == 2
    assert await enrolled.there.uploads.abandon_all(ME) == 0
    assert await enrolled.held(ME) == [(0, 10, True), (20, 30, True)]
    assert await enrolled.held(OTHER) == []
    with pytest.raises(Conflict, match="uploaded by there"):
        await enrolled.take(ME, 10, 11)


async def test_what_became_of_an_upload_can_be_looked_up(enrolled: World) -> None:
    upload = await enrolled.begin(0, 10, holder=ME)
    assert await enrolled.there.uploads.published(upload.id) is None
    made = await enrolled.here.uploads.publish(upload.id)
    assert await enrolled.there.uploads.published(upload.id) == made
    gone = await enrolled.begin(10, 20, holder=ME)
    await enrolled.here.uploads.abandon(gone.id)
    assert await enrolled.there.uploads.published(gone.id) is None


async def test_expired_leases_can_be_taken_over_unless_accepted(enrolled: World) -> None:
    await enrolled.take(ME, 0, 10)
    await enrolled.take(ME, 10, 20, accepted=True)
    await enrolled.take(ME, 30, 40)
    await enrolled.take(ME, 90, 100)
    with pytest.raises(Conflict, match="leased by here"):
        await enrolled.take(OTHER, 5, 50)
    enrolled.expire_holder(ME)
    assert (await enrolled.take(OTHER, 5, 50)).keys == Span(5, 10)
    assert await enrolled.held(ME) == [(10, 20, True), (90, 100, False)], "what it wanted, whole leases"
    assert (await enrolled.take(OTHER, 20, 50)).keys == Span(20, 50)
    with pytest.raises(Conflict, match=r"here:/journal, whose mount is not running.*journal release"):
        await enrolled.take(OTHER, 19, 50)
    with pytest.raises(Conflict):
        await enrolled.here.leases.accept(ME, enrolled.dataset_id, 5)
    assert [holder.expired for holder in await enrolled.here.leases.holders()] == [True, False]


async def test_a_refused_take_takes_nothing_over(enrolled: World) -> None:
    await enrolled.begin(0, 10)
    await enrolled.take(ME, 10, 20)
    enrolled.expire_holder(ME)
    with pytest.raises(Conflict, match="uploaded"):
        await enrolled.take(OTHER, 9, 20)
    assert await enrolled.held(ME) == [(10, 20, False)]
    enrolled.expire_holder(OTHER)
    await enrolled.take(OTHER, 30, 40)
    assert (await enrolled.take(OTHER, 25, 50)).keys == Span(25, 30), "its own lease is not taken over"
    assert await enrolled.held(OTHER) == [(25, 30, False), (30, 40, False)]


async def test_an_expired_lease_does_not_yield_to_an_upload(enrolled: World) -> None:
    await enrolled.take(ME, 0, 10)
    enrolled.expire_holder(ME)
    with pytest.raises(Conflict):
        await enrolled.begin(0, 10)
    assert await enrolled.there.leases.drop_expired() == 10
    await enrolled.begin(0, 10)


async def test_enrolling_again_in_time_keeps_what_was_leased(enrolled: World) -> None:
    await enrolled.take(ME, 0, 10)
    enrolled.expire_holder(ME)
    await enrolled.here.leases.enrol(ME, "here:/journal")
    assert await enrolled.there.leases.drop_expired() == 0
    with pytest.raises(Conflict, match=r"leased by here:/journal$"):
        await enrolled.take(OTHER, 0, 10)
    assert await enrolled.held(ME) == [(0, 10, False)]


async def test_the_sweeper_drops_expired_leases_and_idle_holders(enrolled: World) -> None:
    assert await enrolled.there.leases.drop_expired() == 0
    await enrolled.take(ME, 0, 10)
    await enrolled.take(ME, 10, 13)
    await enrolled.take(ME, 20, 25, accepted=True)
    await enrolled.take(OTHER, 30, 40)
    third = HolderId("33333333-3333-4333-8333-333333333333")
    await enrolled.here.leases.enrol(third, "third:/journal")
    upload = await enrolled.begin(50, 60, holder=third)
    for holder in (ME, third):
        enrolled.expire_holder(holder)
    assert await enrolled.there.leases.drop_expired() == 13
    assert await enrolled.held(ME) == [(20, 25, True)]
    assert await enrolled.held(OTHER) == [(30, 40, False)]
    assert {holder.id for holder in await enrolled.here.leases.holders()} == {ME, OTHER, third}
    await enrolled.here.uploads.publish(upload.id)
    await enrolled.here.leases.release(ME, enrolled.dataset_id, Span(20, 25))
    assert await enrolled.there.leases.drop_expired() == 0
    assert [holder.id for holder in await enrolled.here.leases.holders()] == [OTHER]
    assert (await enrolled.take(OTHER, 0, 20)).keys == Span(0, 20)


async def test_dismissing_frees_everything(enrolled: World) -> None:
    dogs = await enrolled.here.registry.add_dataset("dogs", "store")
    await enrolled.here.leases.take(ME, dogs, Span(0, 10), accepted=True)
    await enrolled.take(ME, 0, 10)
    await enrolled.take(ME, 20, 30, accepted=True)
    upload = await enrolled.begin(25, 40, holder=ME)
    await enrolled.here.uploads.confirm(upload.id)
    committed = await enrolled.begin(50, 60, holder=ME)
    await enrolled.here.uploads.publish(committed.id)
    for _ in range(2):
        await enrolled.there.leases.dismiss(ME)
        assert await enrolled.held(ME) == []
    assert [holder.id for holder in await enrolled.here.leases.holders()] == [OTHER]
    assert (await enrolled.take(OTHER, 0, 100)).keys == Span(0, 50)
    assert len(await enrolled.here.reader.dataranges(enrolled.dataset_id)) == 1
    assert len(await enrolled.here.graveyard.doomed(10)) == 2
    with pytest.raises(Conflict):
        await enrolled.here.uploads.publish(upload.id)
    with pytest.raises(NotFound):
        await enrolled.take(ME, 200, 201)
    await enrolled.here.registry.remove_dataset(dogs)

"""Commit: visible whole or not at all, whatever fails when; and nothing that is not ours is touched."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from datas3tfs.core.model import UploadId
from datas3tfs.core.names import parse_data_object_key
from datas3tfs.core.spans import Span
from datas3tfs.engine.sweeper import sweep
from datas3tfs.errors import Conflict, Invalid, Unavailable
from tests.harness.world import World, new_world, open_mounted


class Crash(BaseException):
    """The process is gone at this very step: no clean-up of ours runs."""


async def visible(world: World) -> list[Span]:
    dataset = await world.dataset()
    return [datarange.keys for datarange in await world.catalog.dataranges(dataset.id)]


async def swept(world: World) -> None:
    await sweep(world.catalog, world.catalog, world.catalog, world.stores)


async def test_a_committed_datarange_is_visible_and_leaves_no_intent() -> None:
    world = await new_world()
    datarange = await world.commit([b"a", b"b"], 3)
    assert await visible(world) == [Span(3, 5)]
    assert datarange.data_key == ("datas3t/photos/dataranges/00000000000000000003-00000000000000000004.tar")
    assert set(world.store.objects) == {datarange.data_key, datarange.index_key}
    assert not world.catalog.unpublished


@pytest.mark.parametrize(
    ("method", "nth", "after"),
    [
        ("size", 1, False),
        ("size", 2, False),
        ("put_stream", 1, False),
        ("put_stream", 1, True),
        ("put", 1, False),
        ("put", 1, True),
    ],
)
async def test_a_failure_at_any_step_in_s3_leaves_nothing_visible_and_nothing_behind(
    method: str, nth: int, after: bool
) -> None:
    world = await new_world()
    await world.dataset()
    world.failing.fail(method, nth, Unavailable("S3 is away"), after=after)
    with pytest.raises(Unavailable):
        await world.commit([b"a"])
    assert await visible(world) == []
    assert not world.catalog.unpublished, "the keys are free again"
    await swept(world)
    assert world.store.objects == {}
    datarange = await world.commit([b"b"])
    generation = parse_data_object_key(datarange.data_key)[2]
    assert generation is not None, "an object key once used is never used again"
    async with open_mounted(world) as mounted:
        assert await mounted.read(0) == b"b"


STEPS = ["begin", "confirm", "put_stream", "put", "publish", "done"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_after_every_step_is_repaired_by_the_sweeper(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await new_world()
    dataset = await world.dataset()

    async def gone(*_: object) -> None:
        raise Crash

    # After the crash nothing of the writer runs any more: its own abandoning must not help either.
    if step == "begin":
        monkeypatch.setattr(world.catalog, "confirm", gone)
    elif step == "confirm":
        world.failing.fail("put_stream", 1, Crash())
    elif step in ("put_stream", "put"):
        world.failing.fail(step, 1, Crash(), after=True)
    elif step == "publish":
        published = world.catalog.publish

        async def publish_and_crash(upload_id: UploadId) -> None:
            await published(upload_id)
            raise Crash

        monkeypatch.setattr(world.catalog, "publish", publish_and_crash)
    abandon = world.catalog.abandon
    monkeypatch.setattr(world.catalog, "abandon", gone)
    if step == "done":
        await world.commit([b"a"])
    else:
        with pytest.raises(Crash):
            await world.commit([b"a"])
    monkeypatch.undo()
    assert world.catalog.abandon == abandon

    if step in ("publish", "done"):
        assert await visible(world) == [Span(0, 1)]
        await swept(world)
        async with open_mounted(world) as mounted:
            assert await mounted.read(0) == b"a"
        return
    assert await visible(world) == []
    with pytest.raises(Conflict):
        await world.commit([b"b"])
    for upload_id in list(world.catalog.unpublished):
        world.catalog.expire(upload_id)
    await swept(world)
    assert world.store.objects == {}
    await world.commit([b"b"])
    assert [r.keys for r in await world.catalog.dataranges(dataset.id)] == [Span(0, 1)]


async def test_a_slow_writer_that_was_swept_cannot_publish() -> None:
    world = await new_world()
    await world.dataset()

    async def sweep_before_the_index(method: str, key: str) -> None:
        if method == "put":
            for upload_id in list(world.catalog.unpublished):
                world.catalog.expire(upload_id)
            await swept(world)

    world.failing.before_each = sweep_before_the_index
    with pytest.raises(Conflict):
        await world.commit([b"a"])
    assert await visible(world) == []
    world.failing.before_each = None
    assert await world.commit([b"b"])


async def test_objects_that_were_there_before_are_neither_overwritten_nor_deleted() -> None:
    world = await new_world()
    await world.dataset()
    older = "datas3t/photos/dataranges/00000000000000000000-00000000000000000000.tar"
    world.store.objects[older] = b"older than the catalog"
    datarange = await world.commit([b"a"])
    await swept(world)
    assert datarange.data_key != older
    assert world.store.objects[older] == b"older than the catalog"


async def test_keys_that_are_taken_are_refused_before_anything_is_uploaded() -> None:
    world = await new_world()
    await world.commit([b"a", b"b"], 5)
    puts = world.failing.calls["put_stream"]
    for first in (4, 5, 6):
        with pytest.raises(Conflict):
            await world.commit([b"x", b"y"], first)
    assert world.failing.calls["put_stream"] == puts


async def test_the_intent_is_renewed_while_a_long_upload_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    dataset = await world.dataset()

    async def slow_body() -> AsyncIterator[bytes]:
        for _ in range(10):
            await trio.sleep(300)
            await swept(world)
            yield b"x"

    await world.writer.commit(dataset, Span(0, 1), 10, slow_body(), lambda: b"index")
    assert await visible(world) == [Span(0, 1)]


async def test_a_source_that_fails_is_reported_as_it_is() -> None:
    world = await new_world()
    dataset = await world.dataset()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        raise Invalid("the source has changed")

    with pytest.raises(Invalid, match="the source has changed"):
        await world.writer.commit(dataset, Span(0, 1), 10, body(), lambda: b"index")
    assert await visible(world) == []
    assert not world.catalog.unpublished


async def test_cancelling_a_commit_frees_its_keys() -> None:
    world = await new_world()
    dataset = await world.dataset()
    started = trio.Event()

    async def body() -> AsyncIterator[bytes]:
        started.set()
        await trio.sleep(float("inf"))
        yield b""

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.writer.commit, dataset, Span(0, 1), 10, body(), lambda: b"index")
        await started.wait()
        nursery.cancel_scope.cancel()
    assert not world.catalog.unpublished


async def test_an_object_that_cannot_be_deleted_now_is_deleted_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = await new_world()
    await world.dataset()
    world.failing.fail("put", 1, Unavailable("away"))
    with pytest.raises(Unavailable):
        await world.commit([b"a"])
    world.failing.fail("delete", 1, Unavailable("still away"))
    await swept(world)
    assert len(world.store.objects) == 1
    assert "will be tried again" in caplog.text
    await swept(world)
    assert world.store.objects == {}


async def test_a_bucket_that_is_away_does_not_hold_up_the_sweep_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await new_world()
    for first in range(5):
        world.failing.fail("put", world.failing.calls["put"] + 1, Unavailable("away"))
        with pytest.raises(Unavailable):
            await world.commit([b"a"], first)

    async def dead(method: str, key: str) -> None:
        if method == "delete":
            await trio.sleep(30)
            raise Unavailable("away")

    world.failing.before_each = dead
    begin = trio.current_time()
    await swept(world)
    assert trio.current_time() - begin == pytest.approx(30), "one attempt, not one for each object"


async def test_postgres_may_be_away_for_a_while_during_an_upload(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await new_world()
    dataset = await world.dataset()
    renew, calls = world.catalog.renew, 0

    async def sometimes(upload_id: UploadId) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 3):
            raise Unavailable("Postgres is away")
        await renew(upload_id)

    monkeypatch.setattr(world.catalog, "renew", sometimes)

    async def slow_body() -> AsyncIterator[bytes]:
        await trio.sleep(400)
        yield b"x"

    await world.writer.commit(dataset, Span(0, 1), 1, slow_body(), lambda: b"index")
    assert await visible(world) == [Span(0, 1)]
    assert calls > 4

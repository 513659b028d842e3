"""Committing: what shares a datarange, when, and what happens when it fails."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from datas3tfs.core.journalrecords import Gone
from datas3tfs.core.model import UploadIntent
from datas3tfs.core.spans import Span
from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.entries import EntryState
from datas3tfs.engine.sweeper import sweep
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Forbidden, Full, NotFound, Unavailable
from tests.harness.world import World, new_world
from tests.harness.writing import Gate, assert_tidy, called, committed, open_host, swept, until

ON_DEMAND = BatchLimits(64 << 20, 1e6)  # nothing is committed unless somebody asks
LARGE = b"0123456789abcdef" * 16_000  # has a file of its own
AWAY = Unavailable("away")


@pytest.fixture
def jumping_clock() -> MockClock:
    """Time passes when nobody has anything to do, see `let_time_pass`."""
    return MockClock()


def spans(world: World) -> list[Span]:
    return sorted(datarange.keys for datarange in world.catalog.committed.values())


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


# -- what becomes a datarange ---------------------------------------------------------------------------


async def test_what_is_closed_is_committed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    world = await new_world()
    contents = {key: b"%d" % key * key for key in range(50)}
    contents[50] = bytes(300_000)
    async with open_host(world, tmp_path) as host:
        for key, content in contents.items():
            await host.put(key, content)
        await host.committer.commit_closed()
        await host.emptied()
        assert await committed(world) == contents
        assert len(host.entries) == 0
        assert host.journal.quota.used <= 1 << 20, "no more than the segment being written"
        assert not os.listdir(tmp_path / "content")
    await assert_tidy(world)


async def test_ten_thousand_small_files_become_a_handful_of_dataranges(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0)) as host:
        for key in range(10_000):
            await host.put(key, b"x" * 200)
        await host.emptied()
        assert spans(world)[0].start == 0
        assert spans(world)[-1].stop == 10_000
        assert len(spans(world)) <= 6
        assert host.gate.calls["put_stream"] == len(spans(world))
    assert len(await committed(world)) == 10_000


@pytest.mark.parametrize("pace", [0.005, 0.02])
async def test_many_small_files_in_no_order_become_a_handful_of_dataranges(
    pace: float, tmp_path: Path, jumping_clock: MockClock
) -> None:
    """At the default age; they take longer to arrive than a few times that."""
    world = await new_world()
    keys = list(range(2_000))
    random.Random(1).shuffle(keys)
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0), background=False) as host:
        for key in keys:
            await host.put(key, b"x" * 200)
            await trio.sleep(pace)
        last = trio.current_time()
        await host.emptied()
        assert trio.current_time() - last < 8, "when no more come, the rest is not waited for long"
        assert len(spans(world)) <= 10
    assert len(await committed(world)) == 2_000


async def test_scattered_keys_are_not_waited_for_for_ever(tmp_path: Path, jumping_clock: MockClock) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0), background=False) as host:
        for number in range(700):
            await host.put(10 * number, b"x")
            await trio.sleep(0.1)
            if number == 300:
                assert not spans(world), "what is missing between them may come yet"
                entry = await host.put(7, b"somebody waits for it")
                await host.fsync(entry)
                assert spans(world) == [Span(7, 8)], "he does not wait for the others"
        assert 100 < len(spans(world)) < 690, "after a minute at the latest"


async def test_of_scattered_keys_a_long_run_is_committed_at_once(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(100_000, 5.0), background=False) as host:
        for number in range(30):
            await host.put(1000 + 10 * number, b"x")
        for key in range(90):
            await host.put(key, bytes(2_000))
            await trio.sleep(0.2)
        assert spans(world) == [Span(0, 50)]
        await trio.sleep(7)
        assert len(spans(world)) == 32


async def test_a_batch_is_committed_when_it_is_old_enough(tmp_path: Path, jumping_clock: MockClock) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0)) as host:
        await host.put(0, b"first")
        await trio.sleep(4)
        await host.put(1, b"second")
        assert spans(world) == []
        await trio.sleep(0.8)
        assert spans(world) == []
        await trio.sleep(0.5)
        assert spans(world) == [Span(0, 2)]


async def test_a_batch_is_committed_when_it_is_large_enough_and_has_settled(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(100_000, 1000.0)) as host:
        await host.put(0, bytes(60_000))
        await trio.sleep(20)
        assert spans(world) == []
        await host.put(1, bytes(60_000))
        await trio.sleep(0.5)
        assert spans(world) == [Span(0, 1)], "the other may get its times yet"
        await host.journal.touch(host.entry(1), 7_000_000_000)
        await host.journal.accept(host.entry(1))
        await host.put(2, bytes(60_000))
        await trio.sleep(2)
        assert spans(world) == [Span(0, 1), Span(1, 3)]


async def test_what_follows_a_file_being_written_waits_for_it_but_not_for_ever(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0)) as host:
        first = await host.create(0, b"still being written")
        await host.put(1, b"done")
        await trio.sleep(7)
        assert spans(world) == []
        await trio.sleep(15)
        assert spans(world) == [Span(1, 2)], "four times the batch age is enough"
        await host.put(2, b"done, too")
        await host.close(first)
        await host.emptied()
    assert spans(world) == [Span(0, 1), Span(1, 2), Span(2, 3)]


async def test_an_open_file_is_not_committed_behind_its_writers_back(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0)) as host:
        entry = await host.create(0, b"flushed")
        await host.journal.accept(entry)  # a child process has closed its copy of the descriptor
        await trio.sleep(30)
        assert spans(world) == []
        await host.journal.write(entry, 7, b", and written on")
        await host.close(entry)
        await host.emptied()
    assert await committed(world) == {0: b"flushed, and written on"}


async def test_a_file_is_never_missing_between_journal_and_catalog(tmp_path: Path) -> None:
    """… of this mount: until its own snapshot shows the datarange, the journal has it."""
    world = await new_world()
    gate, on = Gate(), trio.Event()
    async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate) as host:
        dataset = host.dataset().id
        await host.snapshots.of(dataset)
        entry = await host.put(0, b"content")

        async def hold_up(name: str) -> None:
            if name == "datasets":
                await on.wait()

        gate.before = hold_up
        await host.fsync(entry)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await host.snapshots.of(dataset)).position(0) is None
        assert host.entry(0) is entry
        assert host.content(0) == b"content"
        on.set()
        await until(lambda: host.entries.at_key(dataset, 0) is None)
        assert (await host.snapshots.of(dataset)).position(0) == 0


# -- fsync ----------------------------------------------------------------------------------------------


async def test_any_number_of_fsyncs_at_once_share_one_or_two_commits(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:

        async def write_safely(key: int) -> None:
            entry = await host.create(key, b"%d" % key)
            await host.fsync(entry)
            assert key in await committed(world), "it is there when fsync returns"
            await host.close(entry)

        for start in (0, 100):
            begun = host.gate.calls["begin"]
            async with trio.open_nursery() as nursery:
                for key in range(start, start + 100):
                    nursery.start_soon(write_safely, key)
            assert host.gate.calls["begin"] - begun <= 2
    assert await committed(world) == {key: b"%d" % key for key in range(200)}


async def test_after_fsync_nothing_can_be_written_any_more(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        entry = await host.create(0, b"content")
        await host.fsync(entry)
        for change in (
            partial(host.journal.write, entry, 7, b"more"),
            partial(host.journal.truncate, entry, 1),
            partial(host.journal.touch, entry, 1),
        ):
            with pytest.raises(Forbidden):
                await change()
        await until(lambda: not entry.linked)
        assert host.journal.read(entry, 0, 100) == b"content", "who has it open reads on"
        await host.fsync(entry)
        await host.close(entry)
    assert await committed(world) == {0: b"content"}


async def test_fsync_of_a_file_that_another_keeps_writing_returns(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        entry = await host.create(0, LARGE)
        refused = trio.Event()

        async def write_on() -> None:
            with suppress(Forbidden):
                while True:
                    await host.journal.write(entry, 0, os.urandom(10))
                    await trio.lowlevel.checkpoint()
            refused.set()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_on)
                await trio.sleep(0.01)
                await host.fsync(entry)
                await refused.wait()
        content = (await committed(world))[0]
        assert content[10:] == LARGE[10:]
        assert content == host.journal.read(entry, 0, 1 << 30)
        await host.close(entry)


@pytest.mark.parametrize("what", ["unlink", "rename", "rename away", "to another dataset", "replace"])
async def test_a_file_that_is_taken_away_while_somebody_waits_for_it_hangs_nobody(
    what: str, tmp_path: Path
) -> None:
    world = await new_world()
    await world.dataset("other")
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        entry = await host.put(0, b"content")
        entry.busy += 1  # whatever keeps it from being committed just now
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.committer.commit, [entry])
                await trio.testing.wait_all_tasks_blocked(0.05)
                if what == "unlink":
                    await host.journal.unlink(entry)
                elif what == "rename":
                    await host.journal.rename(entry, host.dataset(), called(3))
                elif what == "rename away":
                    await host.journal.rename(entry, host.dataset(), ".temporary")
                elif what == "to another dataset":
                    await host.journal.rename(entry, host.dataset("other"), called(3))
                else:
                    other = await host.put(".other", b"another")
                    await host.journal.rename(other, host.dataset(), called(0))
                entry.busy -= 1
        begun = host.gate.calls["begin"]
        assert begun == (1 if what in ("rename", "to another dataset") else 0)
        await trio.sleep(0.3)
        assert host.gate.calls["begin"] == begun, "nobody asks any more"
        await host.committer.commit_closed()


async def test_a_rename_that_is_refused_leaves_the_file_to_be_committed(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        await host.fsync(await host.put(0, b"committed"))
        entry = await host.put(1, b"not yet")
        taken = host.entries.named(host.dataset().id, called(0))
        if taken is not None:
            with pytest.raises(Forbidden):
                await host.journal.rename(entry, host.dataset(), called(0))
        await until(lambda: host.entries.at_key(host.dataset().id, 0) is None)
        with pytest.raises(Conflict):
            await host.journal.rename(entry, host.dataset(), called(0))
        with pytest.raises(Conflict):
            await host.journal.rename(entry, host.dataset(), "00000000000000000000.other")
        with trio.fail_after(10):
            await host.committer.commit_closed()
    assert await committed(world) == {0: b"committed", 1: b"not yet"}


async def test_who_wants_to_change_what_is_being_committed_waits_and_is_told(tmp_path: Path) -> None:
    world = await new_world()
    gate = Gate()
    async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate, patience=0.3) as host:
        entry = await host.put(0, b"content")
        stored, on = trio.Event(), trio.Event()

        async def hold_up(name: str) -> None:
            if name == "publish":
                stored.set()
                await on.wait()

        gate.before = hold_up
        changes: list[Callable[[], Awaitable[object]]] = [
            lambda: host.journal.write(entry, 0, b"x"),
            lambda: host.journal.unlink(entry),
            lambda: host.journal.rename(entry, host.dataset(), called(5)),
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.committer.commit, [entry])
            await stored.wait()
            for change in changes:
                with pytest.raises(Unavailable), trio.fail_after(5):
                    await change()
            assert host.journal.read(entry, 0, 10) == b"content", "reading goes on"
            on.set()
        for change in changes:
            with pytest.raises((Forbidden, NotFound)):
                await change()


# -- failures -------------------------------------------------------------------------------------------


async def test_a_failure_is_told_to_who_waits_and_tried_again_with_growing_pauses(
    tmp_path: Path, jumping_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0)) as host:
        host.gate.away["put_stream"] = AWAY
        await host.put(0, b"content")
        await trio.sleep(60)
        tries = host.gate.calls["put_stream"]
        assert 4 <= tries <= 7, "after 1, 2, 4, 8, 16, 30 seconds"
        with pytest.raises(Unavailable, match="away"), trio.fail_after(1):
            await host.committer.commit_closed()
        assert host.gate.calls["put_stream"] == tries + 1, "who asks needs not wait for the pause to end"
        del host.gate.away["put_stream"]
        await trio.sleep(35)
        assert await committed(world) == {0: b"content"}
        await host.put(1, b"more")
        host.gate.fail("put", 1, AWAY)
        begun = host.gate.calls["begin"]
        await trio.sleep(7)
        assert host.gate.calls["begin"] == begun + 2, "the pauses are short again"
    assert all("not committed yet" in text for text in said(caplog))
    await assert_tidy(world)


@pytest.mark.parametrize(
    ("call", "after"),
    [
        *((name, False) for name in ("size", "begin", "confirm", "put_stream", "put", "publish")),
        *((name, True) for name in ("begin", "confirm", "put_stream", "put", "publish")),
    ],
)
@pytest.mark.parametrize("is_postgres_away", [False, True])
async def test_a_call_that_fails_or_whose_answer_is_lost_only_delays(
    call: str, after: bool, is_postgres_away: bool, tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        contents = {key: b"%d" % key for key in range(5)}
        for key, content in contents.items():
            await host.put(key, content)
        host.gate.fail(call, 1, AWAY, after=after)
        if is_postgres_away:
            host.gate.fail("abandon", 1, AWAY)
            host.gate.fail("abandon", 2, AWAY)
        with suppress(Unavailable), trio.fail_after(5):
            await host.committer.commit_closed()
        with trio.fail_after(10):
            while len(await committed(world)) < 5:
                with suppress(Unavailable):
                    await host.committer.commit_closed()
                await trio.sleep(0.05)
        assert await committed(world) == contents
        await host.emptied()
        await host.leases.release_idle()
    for upload in list(world.catalog.unpublished):
        world.catalog.expire(upload)
    await assert_tidy(world)


async def test_an_answer_lost_at_publish_freezes_the_files_until_it_is_known_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, patience=0.5) as host:
        entry = await host.put(0, b"content")
        host.gate.fail("publish", 1, Unavailable("the answer was lost"), after=True)
        host.gate.away |= {"abandon": AWAY, "published": AWAY}
        for _ in range(2):
            with pytest.raises(Unavailable, match="the answer was lost"), trio.fail_after(5):
                await host.fsync(entry)
        with pytest.raises(Unavailable), trio.fail_after(5):
            await host.journal.write(entry, 0, b"other")
        assert entry.state is EntryState.COMMITTING
        assert host.journal.read(entry, 0, 100) == b"content"
        # Somebody else is neither kept waiting nor kept from committing.
        host.gate.away["begin"] = AWAY
        with pytest.raises(Unavailable), trio.fail_after(5):
            await host.fsync(await host.put(5, b"five"))
        del host.gate.away["begin"]
        await host.fsync(await host.put(6, b"six"))
        assert entry.state is EntryState.COMMITTING
        host.gate.away.clear()
        with trio.fail_after(5):
            await until(lambda: entry.state is EntryState.COMMITTED)
            await host.fsync(entry)
            await host.committer.commit_closed()
        await host.emptied()
    assert await committed(world) == {0: b"content", 5: b"five", 6: b"six"}
    assert sum("not known yet" in text for text in said(caplog)) == 1, "said once"
    await assert_tidy(world)


async def test_an_answer_lost_before_publish_took_place_puts_the_files_back(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        entry = await host.put(0, b"content")
        host.gate.fail("publish", 1, AWAY)
        host.gate.fail("abandon", 1, AWAY)
        with pytest.raises(Unavailable):
            await host.fsync(entry)
        assert entry.state is EntryState.COMMITTING
        await until(lambda: entry.state is EntryState.JOURNALED)
        await host.reopen(entry)
        await host.journal.write(entry, 0, b"CON")
        await host.close(entry)
        await host.committer.commit_closed()
    assert await committed(world) == {0: b"CONtent"}
    await assert_tidy(world)


async def test_what_was_put_back_late_is_tried_again_though_nobody_asks(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0)) as host:
        await host.put(0, b"content")
        host.gate.fail("publish", 1, AWAY)
        host.gate.fail("abandon", 1, AWAY)
        await host.emptied()
    assert await committed(world) == {0: b"content"}


async def test_a_slow_writer_whose_intent_was_swept_starts_over_with_new_objects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    gate = Gate()
    async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate) as host:
        entry = await host.put(0, b"content")

        async def sweep_in_between(name: str) -> None:
            if name == "publish" and not gate.calls["publish"]:
                for upload in list(world.catalog.unpublished):
                    world.catalog.expire(upload)
                await sweep(world.catalog, world.catalog, world.catalog, world.stores)

        gate.before = sweep_in_between
        with pytest.raises(Unavailable):
            await host.fsync(entry)
        assert host.held() >= {0}, "the key came back"
        await host.fsync(entry)
    assert await committed(world) == {0: b"content"}
    (datarange,) = world.catalog.committed.values()
    assert datarange.data_key.count("-") == 2, "an object key is never used twice"
    await assert_tidy(world)
    assert said(caplog)


async def test_a_refused_key_is_found_and_the_others_are_committed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        for key in range(20):
            await host.put(key, b"%d" % key)
        # Somebody frees the key knowingly (`datas3tfs journal release`), and another commits it.
        await world.catalog.release(host.store.holder, host.dataset().id, Span(13, 14))
        await world.commit([b"somebody else's"], 13)
        with pytest.raises(Conflict), trio.fail_after(10):
            await host.committer.commit_closed()
        entry = host.entry(13)
        assert entry.state is EntryState.REFUSED
        with pytest.raises(Conflict):
            await host.committer.commit([entry])
        ours = {key: b"%d" % key for key in range(20)}
        assert await committed(world) == ours | {13: b"somebody else's"}
        await until(lambda: len(host.entries) == 1)
        assert host.content(13) == b"13"
    assert len(said(caplog, logging.ERROR)) == 1
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        assert host.entry(13).state is EntryState.REFUSED, "kept, and reported again"
        assert host.content(13) == b"13"
        # Under another key it can be committed.
        await host.journal.rename(host.entry(13), host.dataset(), called(99))
        await host.committer.commit_closed()
    assert (await committed(world))[99] == b"13"
    assert len(said(caplog, logging.ERROR)) == 2
    await assert_tidy(world)


def flip(path: Path, content: bytes) -> None:
    """Change one byte of *content* in a file."""
    data = bytearray(path.read_bytes())
    at = data.index(content)
    data[at + len(content) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("is_large", [False, True])
async def test_damaged_content_is_refused_and_nothing_else(
    is_large: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        contents = {key: b"the content of %d" % key for key in range(10)}
        contents[6] = LARGE
        for key, content in contents.items():
            await host.put(key, content)
        damaged = host.entry(6 if is_large else 4)
        files = tmp_path / "content" if is_large else tmp_path / "log"
        flip(next(files.iterdir()), contents[damaged.key or 0])
        with pytest.raises(Corrupt), trio.fail_after(10):
            await host.fsync(damaged)
        with pytest.raises(Corrupt):
            await host.committer.commit_closed()
        assert damaged.state is EntryState.REFUSED
        assert isinstance(damaged.problem, Corrupt)
        content = contents.pop(damaged.key or 0)
        assert await committed(world) == contents
        await until(lambda: len(host.entries) == 1)
        # Written again, it is as good as any.
        await host.reopen(damaged)
        await host.journal.truncate(damaged, 0)
        await host.journal.write(damaged, 0, content)
        await host.close(damaged)
        await host.committer.commit_closed()
    assert len(await committed(world)) == 10
    assert [text.count("damaged") for text in said(caplog, logging.ERROR)] == [1]
    await assert_tidy(world)


async def test_content_that_cannot_be_read_now_holds_up_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        for key in range(9):
            await host.put(key, b"%d" % key)
        await host.put(9, LARGE)
        content = tmp_path / "content" / os.listdir(tmp_path / "content")[0]
        aside = tmp_path / "aside"
        content.rename(aside)
        content.mkdir()  # opening it fails as on a bad disk
        with pytest.raises(Unavailable):
            await host.committer.commit_closed()
        assert set(await committed(world)) == set(range(9))
        assert host.entry(9).state is EntryState.JOURNALED
        content.rmdir()
        aside.rename(content)
        await host.committer.commit_closed()
    assert (await committed(world))[9] == LARGE
    await assert_tidy(world)


async def test_one_failure_ends_a_wave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        for key in range(0, 60, 2):
            await host.put(key, b"x")
        host.gate.away["begin"] = AWAY
        with pytest.raises(Unavailable), trio.fail_after(10):
            await host.committer.commit_closed()
        assert host.gate.calls["begin"] <= 4, "what keeps one from Postgres keeps all"
        host.gate.away.clear()
        await host.committer.commit_closed()
    assert len(await committed(world)) == 30


async def test_a_large_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    world = await new_world()
    gate, on, held = Gate(), trio.Event(), []
    async with open_host(world, tmp_path, limits=BatchLimits(100_000, 1e6), gate=gate) as host:
        for key in range(0, 10, 2):
            await host.put(key, LARGE)

        async def hold_up(name: str) -> None:
            if name == "put_stream":
                held.append(name)
                await on.wait()

        async with trio.open_nursery() as nursery:
            gate.before = hold_up
            nursery.start_soon(host.committer.commit_closed)
            await until(lambda: len(held) == 2)
            gate.before = None
            with trio.fail_after(5):
                await host.fsync(await host.put(100, b"small"))
            assert set(await committed(world)) == {100}
            on.set()
    assert len(await committed(world)) == 6


async def test_what_could_not_be_made_safe_at_close_is_tried_again(
    tmp_path: Path, jumping_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=BatchLimits(1 << 20, 5.0)) as host:
        entry = await host.create(0, b"content")
        host.gate.away["accept"] = AWAY
        with pytest.raises(Unavailable):
            await host.close(entry)
        assert entry.safe is None
        await trio.sleep(30)
        with pytest.raises(Unavailable):
            await host.committer.commit_closed()
        host.gate.away.clear()
        await host.emptied()
    assert await committed(world) == {0: b"content"}
    assert said(caplog, logging.ERROR) == ["photos/00000000000000000000.bin: closed, but not safe: away"]


async def test_a_journal_that_cannot_note_a_commit_is_told_by_postgres(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        entry = await host.put(0, b"content")
        host.gate.fail("append.Gone", 1, Full("the disk is full"))
        await host.fsync(entry)
        await host.emptied()
    async with open_host(world, tmp_path) as host:
        assert len(host.entries) == 0
        assert any(isinstance(record, Gone) for record in host.store.appended)
    assert await committed(world) == {0: b"content"}
    assert len(said(caplog)) == 1


async def test_a_journal_that_cannot_note_a_commit_is_told_even_if_it_was_merged_since(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        entries = [await host.put(0, b"first"), await host.put(1, b"second")]
        for number, entry in enumerate(entries):
            if number == 0:
                host.gate.fail("append.Gone", 1, Full("the disk is full"))
            await host.fsync(entry)
        await host.emptied()
    sources = sorted(world.catalog.committed.values(), key=lambda item: item.keys)
    replaces = tuple(source.id for source in sources)
    intent = UploadIntent(sources[0].dataset_id, Span(0, 2), 1, replaces=replaces)
    await world.catalog.publish((await world.catalog.begin(intent)).id)
    async with open_host(world, tmp_path) as host:
        assert len(host.entries) == 0
        assert any(isinstance(record, Gone) for record in host.store.appended)
    assert spans(world) == [Span(0, 2)]
    assert len(said(caplog)) == 1


async def test_a_reader_keeps_reading_through_the_commit(tmp_path: Path) -> None:
    world = await new_world()
    contents = {0: b"small", 1: LARGE}
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        entries = {key: await host.put(key, content) for key, content in contents.items()}
        for entry in entries.values():
            host.journal.opened(entry, writable=False)
        await host.committer.commit_closed()
        await until(lambda: not len(host.entries))
        assert not os.listdir(tmp_path / "content")
        for key, entry in entries.items():
            assert host.journal.read(entry, 0, 1 << 30) == contents[key]
            await host.journal.closed(entry, writable=False)
        assert host.journal.quota.used <= 1 << 20
    await swept(world)


async def test_errors_of_all_kinds_reach_everybody_who_waits(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        entry = await host.put(0, b"content")
        host.gate.away["begin"] = AWAY
        caught: list[Datas3tError] = []

        async def wait() -> None:
            try:
                await host.committer.commit([entry])
            except Datas3tError as exc:
                caught.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
        assert [type(exc) for exc in caught] == [Unavailable] * 3
        assert len({id(exc) for exc in caught}) == 3

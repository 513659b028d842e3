"""Uncommitted files: what names they may have, what close() promises, and how much room there is."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from datas3tfs.core.journalrecords import Accepted
from datas3tfs.engine.committer import BatchLimits
from datas3tfs.errors import Conflict, Full, Invalid, NotFound, Unavailable
from tests.harness.world import new_world
from tests.harness.writing import Gate, accepted_names, called, committed, killed, open_host, until

ON_DEMAND = BatchLimits(64 << 20, 1e6)  # nothing is committed unless somebody asks
LARGE = b"0123456789abcdef" * 16_000  # has a file of its own


@pytest.fixture
def jumping_clock() -> MockClock:
    """Time passes when nobody has anything to do, see `let_time_pass`."""
    return MockClock()


# -- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "42.jpg", "00000000000000000042", "notes", "0" * 19 + "7.jpg.."])
async def test_other_names_than_datapoints_and_temporary_ones_are_refused(name: str, tmp_path: Path) -> None:
    async with open_host(await new_world(), tmp_path, limits=ON_DEMAND, background=False) as host:
        kept = await host.put(".kept", b"x")
        with pytest.raises(Invalid):
            await host.create(name)
        with pytest.raises(Invalid):
            await host.journal.rename(kept, host.dataset(), name)
        assert host.contents() == {".kept": b"x"}
        assert host.held() == set()


async def test_a_key_is_taken_whatever_its_extension(tmp_path: Path) -> None:
    async with open_host(await new_world(), tmp_path, limits=ON_DEMAND, background=False) as host:
        await host.put(7, b"x")
        with pytest.raises(Conflict):
            await host.create(7)
        with pytest.raises(Conflict):
            await host.create("00000000000000000007.other")
        temporary = await host.put(".7", b"y")
        with pytest.raises(Conflict):
            await host.journal.rename(temporary, host.dataset(), "00000000000000000007.other")
        # Its own extension may change.
        await host.journal.rename(host.entry(7), host.dataset(), "00000000000000000007.other")
        await host.committer.commit_closed()
        await until(lambda: len(host.entries) == 1)
        for name in ("00000000000000000007.other", "00000000000000000007.bin"):
            with pytest.raises(Conflict):
                await host.create(name)
            with pytest.raises(Conflict):
                await host.journal.rename(temporary, host.dataset(), name)
        assert host.contents() == {".7": b"y"}


async def test_of_two_creates_at_once_one_wins(tmp_path: Path) -> None:
    async with open_host(await new_world(), tmp_path, limits=ON_DEMAND, background=False) as host:
        outcomes: list[str] = []

        async def create(name: str) -> None:
            try:
                await host.create(name)
            except Conflict:
                outcomes.append("taken")
            else:
                outcomes.append("made")

        async with trio.open_nursery() as nursery:
            for extension in ("a", "b", "a"):
                nursery.start_soon(create, f"00000000000000000007.{extension}")
        assert sorted(outcomes) == ["made", "taken", "taken"]
        assert len(host.entries) == 1


async def test_files_move_between_datasets(tmp_path: Path) -> None:
    world = await new_world()
    await world.dataset("other")
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        entry = await host.put(3, b"three")
        await host.journal.rename(entry, host.dataset("other"), called(3))
        await host.put(3, b"another three")
        await host.committer.commit_closed()
    assert await committed(world) == {3: b"another three"}
    assert await committed(world, "other") == {3: b"three"}


# -- what close() promises ------------------------------------------------------------------------------


async def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    async with open_host(await new_world(), tmp_path, limits=ON_DEMAND, background=False) as host:
        entry = await host.put(0, b"x")
        for _ in range(3):
            await host.journal.accept(entry)
            await host.reopen(entry)
            await host.close(entry)
        await host.journal.touch(entry, entry.mtime_ns)
        await host.journal.accept_unless_open(entry)
        assert accepted_names(host.store) == [called(0)]


async def test_times_and_sizes_are_kept_over_a_crash(tmp_path: Path) -> None:
    world, gate = await new_world(), Gate()
    with killed(gate):
        async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate, background=False) as host:
            entry = await host.put(0, b"content")
            await host.journal.touch(entry, 1_234_567_890_000_000_000)
            await host.journal.accept_unless_open(entry)
            gate.die()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        assert host.entry(0).mtime_ns == 1_234_567_890_000_000_000
        assert host.entry(0).size == 7


async def test_a_file_that_was_removed_lives_on_for_those_who_have_it_open(tmp_path: Path) -> None:
    async with open_host(await new_world(), tmp_path, limits=ON_DEMAND, background=False) as host:
        for key, content in ((0, b"small"), (1, LARGE)):
            entry = await host.create(key, content)
            await host.journal.accept(entry)
            await host.journal.unlink(entry)
            assert host.entries.at_key(host.dataset().id, key) is None
            await host.journal.write(entry, entry.size, b", written on")
            assert host.journal.read(entry, 0, 1 << 30) == content + b", written on"
            await host.fsync(entry)
            await host.put(key, b"another")
            await host.close(entry)
            assert host.content(key) == b"another"
            with pytest.raises(NotFound):
                await host.journal.unlink(entry)
        assert not os.listdir(tmp_path / "content")
        assert host.journal.quota.used == host.store.log_bytes


async def test_a_file_that_is_removed_or_renamed_while_it_is_made_safe(tmp_path: Path) -> None:
    """Reading a large file for its checksum takes time, in a thread."""
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        for key, what in enumerate(("remove", "rename", "cut", "write")):
            entry = await host.create(key, LARGE)
            await host.journal.write(entry, 7, b"not from begin to end")
            reading, on = threading.Event(), threading.Event()

            def hold_up(reading: threading.Event = reading, on: threading.Event = on) -> None:
                reading.set()
                assert on.wait(20)

            async with trio.open_nursery() as nursery:
                host.gate.at_read = hold_up
                nursery.start_soon(host.close, entry)
                await until(reading.is_set)
                host.gate.at_read = None
                if what == "remove":
                    await host.journal.unlink(entry)
                elif what == "rename":
                    await host.journal.rename(entry, host.dataset(), called(key + 10))
                elif what == "cut":
                    await host.journal.truncate(entry, 1000)
                else:
                    await host.journal.write(entry, 100, b"at the same time")
                on.set()
        content = LARGE[:7] + b"not from begin to end" + LARGE[28:]
        assert set(host.contents()) == {called(11), called(2), called(3)}
        await host.committer.commit_closed()
        assert await committed(world) == {
            11: content,
            2: content[:1000],
            3: content[:100] + b"at the same time" + content[116:],
        }


async def test_a_disk_that_is_full_is_told_and_loses_nothing(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        safe = await host.put(0, b"before")
        host.gate.away["append.Accepted"] = Full("the disk is full")
        await host.reopen(safe)
        await host.journal.write(safe, 0, b"BEFORE")
        with pytest.raises(Full):
            await host.journal.accept(safe)
        host.gate.away.clear()
        host.gate.fail("append.Gone", 1, Full("the disk is full"))
        other = await host.put(1, b"one")
        with pytest.raises(Full):
            await host.journal.unlink(other)
        host.gate.fail("append.Renamed", 1, Full("the disk is full"))
        with pytest.raises(Full):
            await host.journal.rename(other, host.dataset(), called(2))
        assert host.contents() == {called(0): b"BEFORE", called(1): b"one"}
        await host.close(safe)
        await host.committer.commit_closed()
    assert await committed(world) == {0: b"BEFORE", 1: b"one"}


async def test_a_disk_that_fails_does_not_take_the_mount_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        small, large = await host.put(0, b"small"), await host.put(1, LARGE)
        host.journal.opened(small, writable=False)
        await host.committer.commit([large])
        await until(lambda: not large.linked)
        host.gate.away["read"] = Unavailable("bad sector")
        host.gate.fail("content.remove", 1, Unavailable("bad sector"))
        await host.journal.unlink(small)
        with pytest.raises(Unavailable):
            host.journal.read(small, 0, 10)
        host.gate.away.clear()
        await host.journal.unlink(await host.put(2, LARGE))
        assert len(os.listdir(tmp_path / "content")) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    async with open_host(world, tmp_path, limits=ON_DEMAND):
        assert not os.listdir(tmp_path / "content")


async def test_what_is_synced_here_reaches_the_disk(tmp_path: Path) -> None:
    async with open_host(await new_world(), tmp_path, limits=ON_DEMAND, background=False) as host:
        small, large = await host.create(".small", b"x"), await host.create(".large", LARGE)
        await host.journal.sync(small)
        assert (host.gate.calls["journal.sync"], host.gate.calls["content.sync"]) == (1, 0)
        await host.journal.sync(large)
        assert (host.gate.calls["journal.sync"], host.gate.calls["content.sync"]) == (2, 1)
        assert large.safe is not None
        await host.journal.sync_all()
        assert (host.gate.calls["journal.sync"], host.gate.calls["content.sync"]) == (3, 2)


# -- room -----------------------------------------------------------------------------------------------


async def test_writers_slow_down_then_there_is_no_space_until_something_is_committed(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    piece = bytes(200_000)
    async with open_host(
        world, tmp_path, limits=BatchLimits(1 << 20, 5.0), size=2_000_000, patience=10.0
    ) as host:
        host.gate.away["begin"] = Unavailable("away")
        took: list[float] = []
        for key in range(9):
            start = trio.current_time()
            await host.put(key, piece)
            took.append(trio.current_time() - start)
        assert took[:7] == [0.0] * 7
        assert 0 < took[7] < took[8] < 1
        start = trio.current_time()
        entry = await host.create(9)
        with pytest.raises(Full, match="journal-size"):
            await host.journal.write(entry, 0, piece * 2)
        assert 9.9 < trio.current_time() - start < 11
        with pytest.raises(Full):
            await host.journal.truncate(entry, 1_900_000)
        host.gate.away.clear()
        start = trio.current_time()
        with trio.fail_after(20):
            await host.journal.write(entry, 0, piece * 2)
        await host.close(entry)
        await host.committer.commit_closed()
        await host.emptied()
        assert host.journal.quota.used <= 100_000
    assert len(await committed(world)) == 10


async def test_a_file_larger_than_all_room_is_refused_at_once(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    async with open_host(
        await new_world(), tmp_path, limits=ON_DEMAND, size=1_000_000, patience=10.0
    ) as host:
        entry = await host.create(0, bytes(500_000))
        with pytest.raises(Full), trio.fail_after(1):
            await host.journal.truncate(entry, 2_000_000)
        for at in range(500_000, 900_000, 100_000):
            await host.journal.write(entry, at, bytes(100_000))
        with pytest.raises(Full), trio.fail_after(11):
            await host.journal.write(entry, 900_000, bytes(100_001))
        assert entry.size == 900_000
        waiting = trio.Event()

        async def make_room() -> None:
            await waiting.wait()
            await host.journal.unlink(entry)
            await host.journal.closed(entry, writable=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_room)
            other = await host.create(1)
            waiting.set()
            with trio.fail_after(2):
                await host.journal.write(other, 0, bytes(400_000))


async def test_what_one_cuts_another_may_write(tmp_path: Path, jumping_clock: MockClock) -> None:
    async with open_host(
        await new_world(), tmp_path, limits=ON_DEMAND, size=1_000_000, patience=10.0
    ) as host:
        large, other = await host.create(0, bytes(900_000)), await host.create(1)

        async def cut() -> None:
            await trio.sleep(1)
            await host.journal.truncate(large, 0)

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            await host.journal.write(other, 0, bytes(400_000))
        assert trio.current_time() - start < 2


async def test_a_full_journal_is_committed_at_once(tmp_path: Path, jumping_clock: MockClock) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, size=2_000_000, patience=10.0) as host:
        start = trio.current_time()
        for key in range(40):
            await host.put(key, bytes(200_000))
        assert trio.current_time() - start < 30
        assert len(world.catalog.committed) > 2
        await host.committer.commit_closed()
    assert len(await committed(world)) == 40


async def test_a_file_that_lives_long_does_not_keep_the_log_from_being_freed(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(
        world, tmp_path, limits=ON_DEMAND, size=4_000_000, segment_bytes=200_000, background=False
    ) as host:
        await host.put(".kept", b"a temporary file")
        damaged = await host.put(".renamed", b"another")
        await host.journal.rename(damaged, host.dataset(), ".two")
        largest = 0
        for key in range(300):
            await host.put(key, bytes(100_000))
            if key % 10 == 9:
                await host.committer.commit_closed()
                await until(lambda: len(host.entries) == 2)
            largest = max(largest, host.store.log_bytes)
        assert largest < 3_000_000
        assert len(os.listdir(tmp_path / "log")) < 15
        assert host.contents() == {".kept": b"a temporary file", ".two": b"another"}
        assert sum(isinstance(r, Accepted) and r.name == ".two" for r in host.store.appended) >= 2
    async with open_host(world, tmp_path, limits=ON_DEMAND, segment_bytes=200_000) as host:
        assert host.contents() == {".kept": b"a temporary file", ".two": b"another"}
    assert len(await committed(world)) == 300


@pytest.mark.parametrize("size", [1_000, 200_000])
async def test_what_has_just_been_committed_is_not_moved_in_the_log(size: int, tmp_path: Path) -> None:
    """Behind the record that says that it is gone, it would be found again, and refused for ever."""
    world = await new_world()
    async with open_host(
        world, tmp_path, limits=ON_DEMAND, size=10_000_000, segment_bytes=1_000, background=False
    ) as host:
        await host.put(".kept", bytes(1_000))
        for key in range(10):
            await host.put(key, bytes(size))
        for _ in range(60):
            await host.journal.unlink(await host.put(".gone", bytes(60_000)))
        await host.committer.commit_closed()
        host.journal.compact()
        await until(lambda: len(host.entries) == 1)
        host.journal.compact()
        assert len(os.listdir(tmp_path / "log")) <= 3
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        assert host.contents() == {".kept": bytes(1_000)}

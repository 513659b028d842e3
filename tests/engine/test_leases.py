"""Keys held by a journal: few calls of Postgres, nothing blocked for long, nothing lost that is safe."""

from __future__ import annotations

import logging
import random
import shutil
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from datas3tfs.core.model import DatasetId
from datas3tfs.core.spans import Span
from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.entries import Entries
from datas3tfs.engine.leases import _gaps
from datas3tfs.errors import Conflict, Unavailable
from tests.harness.world import World, new_world
from tests.harness.writing import Gate, Host, assert_tidy, called, committed, open_host

ON_DEMAND = BatchLimits(64 << 20, 1e6)  # nothing is committed unless somebody asks


@pytest.fixture
def jumping_clock() -> MockClock:
    """Time passes when nobody has anything to do, see `let_time_pass`."""
    return MockClock()


async def test_who_writes_in_order_leases_ahead(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        for key in range(2000):
            await host.put(key, b"x")
        assert host.gate.calls["take"] <= 40
        assert host.gate.calls["accept"] <= 10, "what is leased ahead is accepted at once"
        assert len(host.held()) <= 2000 + 1024


async def test_ten_thousand_creates_at_a_thousand_a_second_need_few_calls(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        for key in range(10_000):
            await host.create(key)
            await trio.sleep(0.001)
            ahead = host.held() - set(range(key + 1)) if key % 500 == 0 else set()
            assert len(ahead) <= 600, "half a second's worth"
        assert host.gate.calls["take"] <= 50


async def test_the_next_keys_are_leased_before_they_are_needed(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    """With a Postgres that takes its time: nobody who creates in order waits for it."""
    world = await new_world()
    gate = Gate()

    async def be_slow(name: str) -> None:
        if name == "take":
            await trio.sleep(0.1)

    async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate) as host:
        gate.before = be_slow
        waits = 0
        for key in range(3000):
            begun = trio.current_time()
            await host.create(key)
            waits += key > 100 and trio.current_time() > begun
            await trio.sleep(0.001)
        assert waits <= 5, "while the pace is learnt"
        assert gate.calls["take"] <= 60


async def test_keys_that_cannot_be_leased_ahead_are_asked_for_once(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with (
        open_host(world, tmp_path / "a", limits=ON_DEMAND) as host,
        open_host(world, tmp_path / "b", limits=ON_DEMAND) as other,
    ):
        await other.create(1000)
        for key in range(1000):
            await host.create(key)
            await trio.sleep(0.001)
        assert host.gate.calls["take"] <= 60
        with pytest.raises(Conflict):
            await host.create(1000)


async def test_leasing_ahead_without_an_answer_loses_no_key(tmp_path: Path, jumping_clock: MockClock) -> None:
    world = await new_world()
    async with open_host(world, tmp_path / "a", limits=ON_DEMAND) as host:
        for key in range(100):
            await host.create(key)
            await trio.sleep(0.001)
        last, takes = max(host.held()), host.gate.calls["take"]
        host.gate.fail("take", 1, Unavailable("no answer"), after=True)
        for key in range(100, last + 1):
            await host.create(key)
            await trio.sleep(0.001)
        assert host.gate.calls["take"] > takes
        assert max(host.held()) > last, "the answer was lost, not the question"
        await trio.sleep(3)
        assert host.held() == set(range(last + 1)), "what is not needed was given back"
        async with open_host(world, tmp_path / "b", limits=ON_DEMAND) as other:
            await other.create(last + 1)
            with pytest.raises(Conflict):
                await host.create(last + 1)


async def test_keys_being_leased_ahead_are_given_back_with_the_others(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    """As rmdir asks for it, just after everything was removed."""
    world = await new_world()
    gate = Gate()
    asking, on = trio.Event(), trio.Event()

    async def hold_up(name: str) -> None:
        if name == "take":
            asking.set()
            await on.wait()

    async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate) as host:
        for key in range(100):
            await host.create(key)
            await trio.sleep(0.001)
        gate.before = hold_up
        for key in range(100, max(host.held()) + 1):
            await host.create(key)
        await asking.wait()
        for entry in list(host.entries):
            await host.journal.unlink(entry)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.leases.release_unused, host.dataset().id)
            await trio.testing.wait_all_tasks_blocked()
            on.set()
        assert host.held() == set()


@pytest.mark.parametrize("order", ["several at once", "nearly in order"])
async def test_several_who_write_in_order_lease_ahead_too(
    order: str, tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    keys = list(range(400))
    if order == "several at once":
        keys = [1000 * (number % 4) + number // 4 for number in keys]
    else:
        chance = random.Random(7)
        keys.sort(key=lambda key: key + chance.uniform(0, 4))
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        for key in keys:
            await host.create(key)
            await trio.sleep(0.001)
        assert host.gate.calls["take"] <= 100


async def test_random_keys_lease_nothing_ahead(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        keys = {7, 100, 5, 300, 90}
        for key in keys:
            await host.put(key, b"x")
        assert host.held() == keys


async def test_what_is_not_used_is_given_back_even_while_others_are_created(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path / "a", limits=ON_DEMAND) as host:
        for key in range(30):
            await host.put(key, b"x")
        assert len(host.held()) > 30
        await host.journal.unlink(host.entry(10))

        async def go_on() -> None:
            for key in range(1000, 1400, 5):
                await host.put(key, b"y")
                await trio.sleep(0.1)

        async with (
            trio.open_nursery() as nursery,
            open_host(world, tmp_path / "b", limits=ON_DEMAND) as other,
        ):
            nursery.start_soon(go_on)
            await trio.sleep(0.05)
            with trio.fail_after(3):
                await other.put(30, b"this host's")
                await other.put(10, b"this host's, too")
            with pytest.raises(Conflict), trio.fail_after(4):
                await other.put(9, b"that host's")
        assert host.held() == {key for key in range(30) if key != 10} | set(range(1000, 1400, 5))


async def test_a_create_and_the_giving_back_of_its_key_do_not_cross(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    gate = Gate()
    async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate, background=False) as host:
        entry = await host.put(0, b"x")
        await host.journal.unlink(entry)
        await trio.sleep(2)
        releasing, on = trio.Event(), trio.Event()

        async def hold_up(name: str) -> None:
            if name == "release":
                releasing.set()
                await on.wait()

        gate.before = hold_up
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.leases.release_idle)
            await releasing.wait()
            nursery.start_soon(host.put, 0, b"again")
            await trio.testing.wait_all_tasks_blocked()
            on.set()
        assert host.held() == {0}
        await host.committer.commit_closed()
    assert await committed(world) == {0: b"again"}


async def test_a_key_about_to_be_used_is_not_given_back(tmp_path: Path, jumping_clock: MockClock) -> None:
    world = await new_world()
    gate = Gate()
    async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate, background=False) as host:
        await host.journal.unlink(await host.create(5))
        temporary = await host.put(".five", b"five")
        await trio.sleep(2)
        asking, on = trio.Event(), trio.Event()

        async def hold_up(name: str) -> None:
            if name == "accept":
                asking.set()
                await on.wait()

        gate.before = hold_up
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.journal.rename, temporary, host.dataset(), called(5))
            await asking.wait()
            await host.leases.release_idle()
            on.set()
        assert gate.calls["release"] == 0
        assert host.held() == {5}


async def test_what_was_committed_needs_not_be_given_back(tmp_path: Path, jumping_clock: MockClock) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        for key in (0, 10, 20):
            await host.fsync(await host.put(key, b"x"))
        await host.emptied()
        await trio.sleep(2)
        await host.leases.release_idle()
        assert host.gate.calls["release"] == 0
        assert host.held() == set()


@pytest.mark.parametrize("after", [False, True])
async def test_a_giving_back_without_an_answer_loses_no_key(
    after: bool, tmp_path: Path, jumping_clock: MockClock
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path / "a", limits=ON_DEMAND, background=False) as host:
        for key in (0, 2):
            await host.journal.unlink(await host.put(key, b"x"))
        await trio.sleep(2)
        host.gate.fail("release", 1, Unavailable("no answer"), after=after)
        with pytest.raises(Unavailable):
            await host.leases.release_idle()
        async with open_host(world, tmp_path / "b", limits=ON_DEMAND) as other:
            if after:
                await other.put(0, b"theirs")
                with pytest.raises(Conflict):
                    await host.create(0)
            else:
                await host.put(0, b"ours")
                with pytest.raises(Conflict):
                    await other.create(0)
            await trio.sleep(2)
            await host.leases.release_idle()
            assert host.held() == (set() if after else {0}), "it was tried again"
            await other.committer.commit_closed()
            await host.committer.commit_closed()
    assert await committed(world) == {0: b"theirs" if after else b"ours"}


async def test_leases_are_renewed(tmp_path: Path, jumping_clock: MockClock) -> None:
    world = await new_world()
    world.catalog.book.lifetime = 100.0
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        await host.create(0)
        host.gate.fail("enrol", 1, Unavailable("for a moment"))
        await trio.sleep(300)
        assert await world.catalog.drop_expired() == 0
        assert host.held() == {0}


async def expire(world: World, host: Host) -> None:
    """Let Postgres think that the host is dead, and sweep."""
    world.catalog.expire_holder(host.store.holder)
    await world.catalog.drop_expired()


async def test_keys_not_accepted_may_be_taken_over_and_close_says_so(
    tmp_path: Path, jumping_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with (
        open_host(world, tmp_path / "a", limits=ON_DEMAND, background=False) as host,
        open_host(world, tmp_path / "b", limits=ON_DEMAND, background=False) as other,
    ):
        mine = await host.create(0, b"suspended while it is written")
        kept = await host.create(5, b"nobody wants this key")
        closed = await host.put(9, b"closed before")
        await expire(world, host)
        await other.put(0, b"the other's")
        await other.fsync(other.entry(0))
        with pytest.raises(Conflict):
            await other.put(9, b"accepted ones are never taken over")
        with pytest.raises(Unavailable, match="taken over"):
            await host.close(mine)
        assert mine.safe is None
        await host.close(kept)
        assert closed.safe is not None
        with pytest.raises(Unavailable, match="taken over"):
            await host.committer.commit_closed()
        with pytest.raises(Conflict):
            await host.create(0)
        await host.journal.rename(mine, host.dataset(), called(1))
        await host.committer.commit_closed()
    assert await committed(world) == {
        0: b"the other's",
        1: b"suspended while it is written",
        5: b"nobody wants this key",
        9: b"closed before",
    }
    assert [r.levelno for r in caplog.records if r.levelno >= logging.ERROR] == [logging.ERROR]


async def test_a_journal_that_was_forgotten_enrols_again(tmp_path: Path, jumping_clock: MockClock) -> None:
    world = await new_world()
    async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
        await expire(world, host)
        assert not await world.catalog.holders()
        await host.put(0, b"x")
        open_one = await host.create(50, b"y")
        await host.journal.unlink(host.entry(0))
        await host.leases.release_unused(host.dataset().id)
        await expire(world, host)
        await host.close(open_one)
        await host.committer.commit_closed()
    assert await committed(world) == {50: b"y"}
    await assert_tidy(world)


async def test_a_copy_of_a_journal_that_is_in_use_touches_nothing(tmp_path: Path) -> None:
    world = await new_world()
    async with open_host(world, tmp_path / "a", limits=ON_DEMAND, background=False) as host:
        entry = await host.put(0, b"x")
        await host.put(5, b"y")
        going_on, copied = trio.Event(), trio.Event()

        async def hold_up(call: str) -> None:
            if call == "put_stream":
                going_on.set()
                await copied.wait()

        host.gate.before = hold_up
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.committer.commit, [entry])
            await going_on.wait()
            shutil.copytree(tmp_path / "a", tmp_path / "b")
            with pytest.raises(Conflict, match=r"was in use as .*/a within .* then use --force"):
                async with open_host(world, tmp_path / "b", limits=ON_DEMAND, background=False):
                    raise AssertionError("it was opened")
            copied.set()
        assert host.held() == {5}
        assert host.gate.calls["begin"] == 1, "what was being uploaded was left alone"
        await host.committer.commit_closed()
    assert await committed(world) == {0: b"x", 5: b"y"}


async def test_who_comes_back_after_a_copy_was_opened_leaves_its_keys_alone(
    tmp_path: Path, jumping_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    async with open_host(world, tmp_path / "a", limits=ON_DEMAND) as asleep:
        await asleep.put(0, b"x")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        for holder in world.catalog.book.known:
            world.catalog.expire_holder(holder)
        async with open_host(world, tmp_path / "b", limits=ON_DEMAND, background=False) as host:
            await trio.sleep(70)
            (known,) = await world.catalog.holders()
            assert known.place == host.store.place
            await asleep.leases.dismiss()
            assert host.held() == {0}
            await host.committer.commit_closed()
            with pytest.raises(Conflict):
                await asleep.committer.commit_closed()
            assert asleep.content(0) == b"x", "it is kept"
            await host.leases.dismiss()
            assert not await world.catalog.holders()
    assert await committed(world) == {0: b"x"}
    assert "copy of this journal" in caplog.text
    assert [r.levelno for r in caplog.records if r.levelno >= logging.ERROR] == [logging.ERROR] * 2


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 40)), st.integers(0, 40), st.integers(0, 10))
def test_gaps_are_what_has_no_entry(keys: set[int], start: int, length: int) -> None:
    entries, dataset = Entries(), DatasetId(1)
    entries._keys[dataset] = sorted(keys)
    span = Span(start, start + length)
    gaps = list(_gaps(entries, dataset, span))
    assert sorted(key for gap in gaps for key in range(gap.start, gap.stop)) == sorted(
        set(range(span.start, span.stop)) - keys
    )

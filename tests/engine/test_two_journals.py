"""Two mounts write the same dataset, interleaved and equal keys, and are killed at random: what is accepted
is committed once, with its own bytes."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.entries import Entry, EntryState
from datas3tfs.errors import Conflict, Datas3tError, Forbidden, Unavailable
from tests.harness.world import World, new_world
from tests.harness.writing import Gate, Host, assert_tidy, called, committed, killed, open_host

UNCOMMITTED = (EntryState.JOURNALED, EntryState.COMMITTING, EntryState.REFUSED)
LIMITS = BatchLimits(1 << 20, 1.0)
Steps = list[tuple[str, int]]
Crashes = list[tuple[int, bool]]


@dataclass
class Life:
    """What one mount does, in one life after the other, and what it was told."""

    directory: Path
    steps: Steps
    gates: list[Gate]
    sure: dict[int, bytes] = field(default_factory=dict)  # close() has returned
    maybe: dict[int, set[bytes]] = field(default_factory=dict)  # it was killed, or told an error
    there: set[int] = field(default_factory=set)  # one of those that are not sure is
    done: int = 0
    met: Counter[str] = field(default_factory=Counter)

    async def live(self, world: World) -> None:
        for gate in [*self.gates, Gate()]:
            with killed(gate):
                async with open_host(world, self.directory, limits=LIMITS, gate=gate) as host:
                    await self._go_on(world, host)
            self.met["crashes"] += gate.is_dead

    async def _go_on(self, world: World, host: Host) -> None:
        assert not any(entry.state is EntryState.REFUSED for entry in host.entries)
        while self.done < len(self.steps):
            what, key = self.steps[self.done]
            self.done += 1
            is_own = key in self.sure or key in self.there or key in self.maybe
            try:
                await self._do(world, host, what, key)
            except Conflict:
                # By the other, if it never had anything of its own under that key.
                self.met["refused" if is_own else "kept out"] += 1
            except Datas3tError:
                self.met["failed"] += 1
        try:
            await host.committer.commit_closed()
        except Unavailable:
            lost = [entry for entry in host.entries if entry.safe is None]
            assert lost, "the others were committed"
            for entry in lost:
                await host.journal.unlink(entry)
        assert not any(entry.key is not None and entry.state in UNCOMMITTED for entry in host.entries)

    async def _do(self, world: World, host: Host, what: str, key: int) -> None:
        content = f"{self.directory.name} {self.done}".encode()
        if what == "expire":
            for holder in list(world.catalog.book.known):
                world.catalog.expire_holder(holder)
            await world.catalog.drop_expired()
        elif what == "pause":
            await trio.sleep(key / 3)
        elif what == "fsync" and (entry := host.entries.at_key(host.dataset().id, key)) is not None:
            await host.fsync(entry)
        elif what == "unlink" and (entry := host.entries.at_key(host.dataset().id, key)) is not None:
            before = self.sure.get(key)
            if before is not None:
                self.maybe.setdefault(key, set()).add(self.sure.pop(key))
            was_there = key in self.there
            self.there.discard(key)
            try:
                await host.journal.unlink(entry)
            except (Forbidden, Unavailable):  # it is, or may be, committed
                if before is not None:
                    self.sure[key] = before
                if was_there:
                    self.there.add(key)
                raise
            self.maybe.pop(key, None)
        elif what == "temporary":
            entry = await host.put(f".{key}.tmp", content)
            await self._rename(host, entry, key, content)
        elif what in ("put", "slow"):
            entry = await host.create(key, content)
            self.maybe.setdefault(key, set()).add(content)
            if what == "slow":
                await trio.sleep(2)
            await host.close(entry)
            self.sure[key] = content

    async def _rename(self, host: Host, entry: Entry, key: int, content: bytes) -> None:
        """Rename a temporary file to a datapoint, perhaps over another one."""
        before = self.sure.pop(key, None)
        self.maybe.setdefault(key, set()).add(content)
        if before is not None:
            self.maybe[key].add(before)
            self.there.add(key)
        try:
            await host.journal.rename(entry, host.dataset(), called(key))
        except Datas3tError:
            if before is not None:
                self.sure[key] = before
            raise
        self.sure[key] = content


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "temporary", "slow", "fsync", "unlink", "pause", "expire"]),
        st.integers(0, 5),
    ),
    max_size=12,
)
CRASHES = st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=3)


def gates(crashes: Crashes) -> list[Gate]:
    made = []
    for step, after in crashes:
        gate = Gate()
        gate.crash_at(step, after=after)
        made.append(gate)
    return made


def test_two_mounts_killed_at_random_commit_everything_once() -> None:
    met: Counter[str] = Counter()

    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS, STEPS, CRASHES, CRASHES)
    def check(left: Steps, right: Steps, left_dies: Crashes, right_dies: Crashes) -> None:
        met.update(live_and_die(left, right, left_dies, right_dies))

    check()
    assert met["crashes"] >= 3, met
    assert met["kept out"] >= 10, f"they hardly met: {met}"


def live_and_die(
    left_steps: Steps, right_steps: Steps, left_crashes: Crashes, right_crashes: Crashes
) -> Counter[str]:
    """Let two mounts do these steps, and die at these; check all; return what they have met."""

    async def main() -> Counter[str]:
        world = await new_world()
        await world.dataset()
        left = Life(Path(directory) / "left", left_steps, gates(left_crashes))
        right = Life(Path(directory) / "right", right_steps, gates(right_crashes))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.live, world)
            nursery.start_soon(right.live, world)
        found = await committed(world)
        for key in range(6):
            sure = [life.sure[key] for life in (left, right) if key in life.sure]
            assert len(sure) <= 1, "a key was given to both"
            if sure:
                assert found[key] == sure[0]
            elif key in found:
                assert any(found[key] in life.maybe.get(key, ()) for life in (left, right))
            else:
                assert all(key not in life.there for life in (left, right))
        await assert_tidy(world)
        return left.met + right.met

    with tempfile.TemporaryDirectory() as directory:
        return trio.run(main, clock=MockClock())


async def test_two_mounts_that_create_the_same_key_at_once(tmp_path: Path) -> None:
    world = await new_world()
    won: list[bytes] = []
    async with (
        open_host(world, tmp_path / "a", limits=LIMITS) as one,
        open_host(world, tmp_path / "b", limits=LIMITS) as other,
    ):

        async def create(host: Host, content: bytes) -> None:
            try:
                await host.put(7, content)
            except Conflict:
                return
            won.append(content)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(create, one, b"one %d" % number)
                    nursery.start_soon(create, other, b"other %d" % number)
        await one.committer.commit_closed()
        await other.committer.commit_closed()
    assert len(won) == 1
    assert await committed(world) == {7: won[0]}

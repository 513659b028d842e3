"""A host is killed at every step it takes, and another goes on with what it has left."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datas3tfs.core.names import is_temporary, parse_datapoint_name
from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.entries import EntryState
from datas3tfs.errors import Corrupt, Full, NotFound, Unavailable
from tests.harness.world import World, new_world
from tests.harness.writing import (
    Gate,
    Host,
    assert_tidy,
    called,
    committed,
    killed,
    open_host,
    until,
)

ON_DEMAND = BatchLimits(64 << 20, 1e6)  # nothing is committed unless somebody asks
LARGE = b"0123456789abcdef" * 16_000  # has a file of its own
Files = dict[str, bytes | None]  # what is promised; None: whatever was being written over it


class Script:
    """Does what a user does, and knows what is promised: *promised* after all that has returned, *next* when
    what is being done has been done as well."""

    def __init__(self) -> None:
        self.promised: Files = {}
        self.next: Files = {}
        self.maybe: Files = {}
        self.done = 0

    @asynccontextmanager
    async def doing(self, change: Callable[[Files], object] = lambda files: None) -> AsyncIterator[None]:
        """Around what makes *change*, whole or not at all."""
        self.next = dict(self.promised)
        change(self.next)
        yield
        self.promised = self.next
        self.done += 1

    async def put(self, host: Host, name: str | int, content: bytes) -> None:
        entry = await host.create(name, content)
        async with self.doing(lambda files: files.update({called(name): content})):
            await host.close(entry)

    async def append(self, host: Host, name: str | int, content: bytes) -> None:
        entry = host.entry(name)
        before = host.content(name)
        await host.reopen(entry)
        is_file = entry.draft.is_own_file
        async with self.doing(lambda files: files.update({called(name): None if is_file else before})):
            await host.journal.write(entry, entry.size, content)
        async with self.doing(lambda files: files.update({called(name): before + content})):
            await host.close(entry)

    async def truncate(self, host: Host, name: str | int, size: int) -> None:
        """truncate(2): no close() follows."""
        entry = host.entry(name)
        cut = host.content(name)[:size].ljust(size, b"\0")
        if entry.draft.is_own_file:
            self.promised[called(name)] = None
        async with self.doing(lambda files: files.update({called(name): cut})):
            await host.journal.truncate(entry, size)
            await host.journal.accept_unless_open(entry)

    async def rename(self, host: Host, old: str | int, new: str | int) -> None:
        def change(files: Files) -> None:
            files[called(new)] = files.pop(called(old))

        async with self.doing(change):
            await host.journal.rename(host.entry(old), host.dataset(), called(new))

    async def replace_unclosed(self, host: Host, name: str | int, content: bytes) -> None:
        """Rename a file that nobody has closed yet over one that was closed: something must be left."""
        entry = await host.create(".unclosed", content)
        self.maybe = {".unclosed": content}  # it is made safe on the way
        async with self.doing(lambda files: files.update({called(name): content})):
            await host.journal.rename(entry, host.dataset(), called(name))
        self.maybe = {}
        await host.close(entry)

    async def unlink(self, host: Host, name: str | int) -> None:
        async with self.doing(lambda files: files.pop(called(name), None)):
            await host.journal.unlink(host.entry(name))

    async def commit(self, host: Host) -> None:
        async with self.doing():
            await host.committer.commit_closed()
            await retired(host)


async def scenario(host: Host, script: Script) -> None:
    await script.put(host, 0, b"zero")
    await script.put(host, 1, LARGE)
    await script.put(host, ".2.tmp", b"two")
    await script.append(host, 0, b" and more")
    await script.append(host, 1, b"the end")
    await script.append(host, 0, LARGE)  # moves into a file of its own
    await script.rename(host, ".2.tmp", 2)
    await script.put(host, ".two", b"two, again")
    await script.rename(host, ".two", 2)  # over an uncommitted one
    await script.put(host, 3, b"three")
    await script.put(host, 4, LARGE)
    await script.truncate(host, 3, 2)
    await script.truncate(host, 4, 150_000)
    await script.truncate(host, 4, 3)
    await script.unlink(host, 3)
    await script.put(host, 3, b"three, again")
    await script.rename(host, 3, 5)
    await script.put(host, "kept~", b"a temporary file")
    await script.put(host, ".large.part", LARGE[::-1])
    await script.commit(host)
    await script.rename(host, ".large.part", 3)
    await script.put(host, 6, b"six")
    await script.put(host, ".over", b"written, not closed, and renamed over one that was")
    entry = await host.create("open~", b"never closed")
    await script.unlink(host, ".over")
    await script.replace_unclosed(host, 6, b"not six")
    await script.replace_unclosed(host, "kept~", LARGE + b"kept")
    await script.replace_unclosed(host, 6, b"not six either")
    await script.unlink(host, 6)
    await script.commit(host)
    await script.put(host, 9, LARGE + b"nine")
    await script.rename(host, "kept~", "kept.tmp")
    await script.commit(host)
    assert entry.safe is None


async def retired(host: Host) -> None:
    """Return when what is committed is the journal's no more."""
    await until(lambda: not any(entry.state is EntryState.COMMITTED for entry in host.entries))


async def state(host: Host) -> dict[str, bytes]:
    """Return all files there are, committed or not."""
    found: dict[str, bytes] = host.contents()
    for key, content in (await committed(host.world)).items():
        assert called(key) not in found, "committed, and still to be"
        found[called(key)] = content
    return found


def agrees(found: dict[str, bytes], promised: Files) -> bool:
    return set(found) == set(promised) and all(
        promised[name] in (None, content) for name, content in found.items()
    )


async def goes_on(world: World, directory: Path, script: Script, gate: Gate | None = None) -> None:
    """Open what a killed host has left; check that everything promised is there, and commit it."""
    async with open_host(world, directory, limits=ON_DEMAND, gate=gate, background=False) as host:
        found = await state(host)
        possible = (script.promised, script.promised | script.maybe, script.next)
        assert any(agrees(found, files) for files in possible), script.done
        keys = {parse_datapoint_name(name).key for name in found if not is_temporary(name)}
        done = set(await committed(world))
        assert keys - done <= host.held(), "the keys of what is to be committed are held"
        assert not any(entry.state is EntryState.REFUSED for entry in host.entries)
        await host.committer.commit_closed()
        await retired(host)
        assert await state(host) == found
        assert set(await committed(world)) == keys
        await host.leases.release_idle()
        assert host.held() == set(), "no key is held that is not needed"
    await assert_tidy(world)


async def steps_of(directory: Path) -> int:
    world, script, gate = await new_world(), Script(), Gate()
    async with open_host(world, directory, limits=ON_DEMAND, gate=gate, background=False) as host:
        await scenario(host, script)
        found = await state(host)
        assert found.pop("open~") == b"never closed"
        assert agrees(found, script.promised)
    return len(gate.steps)


async def run_until_crash(world: World, directory: Path, step: int) -> Script:
    script, gate = Script(), Gate()
    gate.crash_at(step, after=False)
    with killed(gate):
        async with open_host(world, directory, limits=ON_DEMAND, gate=gate, background=False) as host:
            await scenario(host, script)
    assert gate.is_dead
    return script


@pytest.mark.parametrize("part", range(8))
async def test_a_host_killed_at_any_step_has_left_all_that_was_promised(part: int, tmp_path: Path) -> None:
    steps = await steps_of(tmp_path / "all")
    assert steps > 100
    for step in range(part, steps, 8):
        world = await new_world()
        script = await run_until_crash(world, tmp_path / str(step), step)
        await goes_on(world, tmp_path / str(step), script)


@pytest.mark.parametrize("part", range(4))
async def test_what_is_killed_while_it_goes_on_has_lost_nothing_either(part: int, tmp_path: Path) -> None:
    steps = await steps_of(tmp_path / "all")
    for step in range(part * 7, steps, 28):
        for again in range(0, 60, 5):
            world, directory, gate = await new_world(), tmp_path / f"{step}-{again}", Gate()
            script = await run_until_crash(world, directory, step)
            gate.crash_at(again, after=False)
            with killed(gate):
                await goes_on(world, directory, script, gate)
            await goes_on(world, directory, script)
            if not gate.is_dead:
                break


@pytest.mark.parametrize("part", range(4))
async def test_a_record_that_was_written_in_part_is_as_if_it_had_not_been(part: int, tmp_path: Path) -> None:
    gate, script = Gate(), Script()
    async with open_host(
        await new_world(), tmp_path / "all", limits=ON_DEMAND, gate=gate, background=False
    ) as host:
        await scenario(host, script)
    # Not by the numbers of steps: the order of those that have nothing to do with each other may differ.
    appends = [
        (name, nth)
        for name, count in sorted(gate.calls.items())
        if name.startswith("append")
        for nth in range(1, count + 1)
    ]
    assert len(appends) > 40
    for name, nth in appends[part::4]:
        world, script, gate, directory = await new_world(), Script(), Gate(), tmp_path / f"{name}{nth}"
        gate.crash_in(name, nth, after=True)
        with killed(gate):
            async with open_host(world, directory, limits=ON_DEMAND, gate=gate, background=False) as host:
                await scenario(host, script)
        assert gate.is_dead
        last = max((directory / "log").iterdir())
        with last.open("rb+") as file:
            file.truncate(last.stat().st_size - 1 - nth % 16)
        await goes_on(world, directory, script)


async def test_looking_twice_finds_the_same_and_writes_nothing(tmp_path: Path) -> None:
    world = await new_world()
    script = await run_until_crash(world, tmp_path, 90)
    found = []
    for _ in range(3):
        async with open_host(world, tmp_path, limits=ON_DEMAND, background=False) as host:
            found.append((await state(host), host.store.holder, sorted(entry.id for entry in host.entries)))
            appended = list(host.store.appended)
    assert found[0] == found[1] == found[2]
    assert appended == []
    await goes_on(world, tmp_path, script)


# -- any order ------------------------------------------------------------------------------------------

NAMES: list[str | int] = [0, 1, 2, ".temporary", "other~"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "large", "append", "truncate", "rename", "unlink", "unclosed", "commit"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
    ),
    max_size=14,
)


async def anything(host: Host, script: Script, steps: list[tuple[str, str | int, str | int]]) -> None:
    for number, (what, name, other) in enumerate(steps):
        content = b"content %d" % number
        there = host.entries.named(host.dataset().id, called(name))
        target = host.entries.named(host.dataset().id, called(other))
        if what in ("put", "large", "unclosed"):
            if what == "unclosed" and there is not None:
                await script.replace_unclosed(host, name, content)
            elif there is None and not (isinstance(name, int) and name in await committed(host.world)):
                await script.put(host, name, content + LARGE * (what == "large"))
        elif what == "commit":
            await script.commit(host)
        elif there is None:
            continue
        elif what == "append":
            await script.append(host, name, content)
        elif what == "truncate":
            await script.truncate(host, name, number * 20_000)
        elif what == "unlink":
            await script.unlink(host, name)
        elif other != name and not (
            isinstance(other, int) and target is None and other in await committed(host.world)
        ):
            await script.rename(host, name, other)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.integers(0, 80))
def test_whatever_is_done_and_wherever_it_ends(
    steps: list[tuple[str, str | int, str | int]], step: int
) -> None:
    async def main() -> None:
        world, script, gate = await new_world(), Script(), Gate()
        gate.crash_at(step, after=False)
        with tempfile.TemporaryDirectory() as name:
            with killed(gate):
                async with open_host(
                    world, Path(name), limits=ON_DEMAND, gate=gate, background=False, segment_bytes=70_000
                ) as host:
                    await anything(host, script, steps)
            await goes_on(world, Path(name), script)

    trio.run(main)


# -- damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["missing", "short", "missing while written", "short while written"])
async def test_a_file_whose_content_is_damaged_is_kept_and_reported(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world, gate = await new_world(), Gate()
    with killed(gate):
        async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate, background=False) as host:
            for key in (0, 2):
                await host.put(key, b"%d" % key)
            entry = await host.put(1, LARGE)
            if "written" in what:
                await host.reopen(entry)
                await host.journal.write(entry, 0, b"x")
            gate.die()
    (content,) = (tmp_path / "content").iterdir()
    if "missing" in what:
        content.unlink()
    else:
        content.write_bytes(content.read_bytes()[:1000])
    is_told = what != "short while written"  # that may be what was being written
    for _ in range(2):
        async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
            entry = host.entry(1)
            if is_told:
                assert entry.state is EntryState.REFUSED
                with pytest.raises(Corrupt):
                    await host.committer.commit_closed()
                await host.journal.touch(entry, 7_000_000_000)
                with pytest.raises((Corrupt, NotFound, Unavailable)):
                    await host.journal.accept_unless_open(entry)
                assert set(await committed(world)) == {0, 2}
                assert not content.exists() or content.stat().st_size == 1000
    if is_told:
        assert any("kept in the journal, but damaged" in record.message for record in caplog.records)
        async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
            await host.journal.rename(host.entry(1), host.dataset(), ".damaged.tmp")
            await host.journal.rename(host.entry(".damaged.tmp"), host.dataset(), called(1))
            with pytest.raises(Corrupt):
                await host.committer.commit_closed()
            await host.journal.unlink(host.entry(1))
            await host.put(1, b"another")
            await host.committer.commit_closed()
        assert (await committed(world))[1] == b"another"


async def test_a_damaged_log_keeps_content_that_nothing_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world, gate = await new_world(), Gate()
    with killed(gate):
        async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate, background=False) as host:
            await host.put(0, LARGE)
            await host.put(1, b"one")
            gate.die()
    (segment,) = (tmp_path / "log").iterdir()
    data = bytearray(segment.read_bytes())
    data[data.index(b"00000000000000000000.bin")] ^= 1
    segment.write_bytes(data)
    (content,) = (tmp_path / "content").iterdir()
    for key in (5, 6):
        async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
            await host.put(key, b"another")
            await host.committer.commit_closed()
            await host.emptied()
        assert content.read_bytes() == LARGE
    next((tmp_path / "log").glob("*.damaged")).unlink()  # somebody has looked at it
    async with open_host(world, tmp_path, limits=ON_DEMAND):
        pass
    assert not content.exists()
    assert any("content files of nothing known are kept" in record.message for record in caplog.records)


async def test_numbers_of_files_are_never_used_again(tmp_path: Path) -> None:
    """… or an old record of an upload could be taken for one of a new file."""
    world = await new_world()
    last = 0
    for key in range(3):
        async with open_host(world, tmp_path, segment_bytes=1) as host:
            entry = await host.put(key, b"%d" % key)
            assert entry.id > last
            last = entry.id
            if key == 1:
                host.gate.away["append.Gone"] = Full("the disk is full")
            await host.fsync(entry)
            await host.emptied()
    assert len(await committed(world)) == 3

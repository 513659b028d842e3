"""A host is killed at every step it takes, and another goes on with what it has left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from datas3tfs.core.names import is_temporary, parse_datapoint_name
from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.entries import EntryState
from tests.harness.world import World, new_world
from tests.harness.writing import (
    Gate,
    Host,
    assert_tidy,
    called,
    committed,
    killed,
    open_host,
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
            await host.snapshots.refreshed()


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
        await host.snapshots.refreshed()
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

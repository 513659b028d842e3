"""What a loss of power leaves of a journal: what was synced, and of the rest whatever the disk likes."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.entries import Entry, EntryState
from tests.harness.world import World, new_world
from tests.harness.writing import Gate, Host, called, killed, open_host, until

ON_DEMAND = BatchLimits(64 << 20, 1e6)  # nothing is committed unless somebody asks
LARGE = b"0123456789abcdef" * 16_000  # has a file of its own


@dataclass
class Disk:
    """Remembers what was synced below *root*: the bytes of files, the names in directories."""

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)  # by inode
    names: dict[int, dict[str, int]] = field(default_factory=dict)  # of a directory's inode
    directories: set[int] = field(default_factory=set)
    kept: list[int] = field(default_factory=list)  # descriptors, so that no inode is used again

    def synced(self, descriptor: int) -> None:
        """Take note of an fsync or fdatasync."""
        told = os.fstat(descriptor)
        self.kept.append(os.dup(descriptor))
        if stat.S_ISDIR(told.st_mode):
            with os.scandir(descriptor) as found:
                entries = list(found)
            self.names[told.st_ino] = {entry.name: entry.inode() for entry in entries}
            self.directories |= {entry.inode() for entry in entries if entry.is_dir()}
        else:
            path = f"/proc/self/fd/{descriptor}"
            self.contents[told.st_ino] = Path(path).read_bytes()

    def left(self, target: Path, *, eager: bool) -> Path:
        """Write what a loss of power leaves now to *target*. *eager*: of large files, all that was ever
        written has reached the disk, in its own time."""
        now = {path.stat().st_ino: path for path in self.root.rglob("content/*")} if eager else {}
        self._copy(self.root.stat().st_ino, target, now)
        return target

    def _copy(self, directory: int, target: Path, now: dict[int, Path]) -> None:
        target.mkdir()
        for name, inode in self.names.get(directory, {}).items():
            if inode in self.directories:
                self._copy(inode, target / name, now)
            else:
                content = now[inode].read_bytes() if inode in now else self.contents.get(inode, b"")
                (target / name).write_bytes(content)

    def close(self) -> None:
        """Let go of everything."""
        for descriptor in self.kept:
            os.close(descriptor)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Below tmp_path/"disk"."""
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def recorded(descriptor: int, real: object = real) -> None:
            assert callable(real)
            real(descriptor)
            disk.synced(descriptor)

        monkeypatch.setattr(os, name, recorded)
    yield disk
    disk.close()


async def check(world: World, journal: Path, promised: dict[str, bytes]) -> dict[str, bytes]:
    """Fail unless a mount on that journal finds what was promised; return all that it finds."""
    for holder in world.catalog.book.known:
        world.catalog.expire_holder(holder)
    gate = Gate()
    found: dict[str, bytes] = {}
    with killed(gate):
        async with open_host(world, journal, limits=ON_DEMAND, gate=gate, background=False) as host:
            for entry in host.entries:
                if entry.state is not EntryState.REFUSED:
                    found[entry.name] = host.journal.read(entry, 0, 1 << 30)
            gate.die()
    assert {name: found.get(name) for name in promised} == promised
    return found


async def synced(host: Host, name: str | int, content: bytes) -> Entry:
    """Create a file, sync it as fsync does with --fsync=journal, and close it."""
    entry = await host.create(name, content)
    await host.journal.sync(entry)
    await host.close(entry)
    return entry


@pytest.mark.parametrize("eager", [False, True])
async def test_what_was_synced_is_there_in_a_journal_that_was_just_made(
    eager: bool, disk: Disk, tmp_path: Path
) -> None:
    """Also its directory, and those above it that had to be made."""
    world, gate = await new_world(), Gate()
    promised = {called(0): b"small", called(1): LARGE, ".temporary": b"x", called(3): b""}
    with killed(gate):
        async with open_host(
            world, disk.root / "a" / "b" / "j", limits=ON_DEMAND, gate=gate, background=False
        ) as host:
            for name, content in promised.items():
                await synced(host, name, content)
            await host.put(7, b"not synced")
            await host.create(8, LARGE)
            left = disk.left(tmp_path / "left", eager=eager)
            gate.die()
    found = await check(world, left / "a" / "b" / "j", promised)
    assert found == promised, "what was not synced was not on the disk"


@pytest.mark.parametrize("how", ["write", "cut"])
@pytest.mark.parametrize("eager", [False, True])
async def test_a_synced_file_that_is_changed_in_place_is_never_taken_for_damaged(
    eager: bool, how: str, disk: Disk, tmp_path: Path
) -> None:
    world, gate = await new_world(), Gate()
    with killed(gate):
        async with open_host(world, disk.root / "j", limits=ON_DEMAND, gate=gate, background=False) as host:
            entry = await synced(host, 1, LARGE)
            await host.reopen(entry)
            syncs = host.gate.calls["journal.sync"]
            await host.journal.write(entry, len(LARGE), b"appended")
            assert host.gate.calls["journal.sync"] == syncs, "nothing that was promised is in danger"
            for _ in range(3):
                if how == "write":
                    await host.journal.write(entry, 5, b"in the middle")
                else:
                    await host.journal.truncate(entry, 200_000)
                assert host.gate.calls["journal.sync"] == syncs + 1, "only before the first change"
            left = disk.left(tmp_path / "left", eager=eager)
            gate.die()
    found = await check(world, left / "j", {})
    assert called(1) in found, "it was refused"
    if not eager:
        assert found[called(1)] == LARGE


async def test_a_mount_that_comes_after_takes_as_much_care(disk: Disk, tmp_path: Path) -> None:
    world, gate = await new_world(), Gate()
    with killed(gate):
        async with open_host(world, disk.root / "j", limits=ON_DEMAND, gate=gate, background=False) as host:
            await synced(host, 1, LARGE)
            gate.die()
    gate = Gate()
    with killed(gate):
        async with open_host(world, disk.root / "j", limits=ON_DEMAND, gate=gate, background=False) as host:
            entry = host.entry(1)
            await host.reopen(entry)
            await host.journal.write(entry, 5, b"in the middle")
            left = disk.left(tmp_path / "left", eager=True)
            gate.die()
    assert called(1) in await check(world, left / "j", {})


async def test_what_was_synced_is_not_lost_when_the_log_is_tidied_up(disk: Disk, tmp_path: Path) -> None:
    """Its record is copied to the end, and the segment that had it is deleted."""
    world, gate = await new_world(), Gate()
    with killed(gate):
        async with open_host(
            world, disk.root / "j", limits=ON_DEMAND, size=1_000_000, segment_bytes=60_000, gate=gate,
            background=False,
        ) as host:  # fmt: skip
            await synced(host, ".kept", b"kept")
            first = {path.name for path in (disk.root / "j" / "log").iterdir()}
            for key in range(30):
                await host.put(key, bytes(50_000))
                await host.committer.commit_closed()
                await until(lambda: len(host.entries) == 1)
            assert not first & {path.name for path in (disk.root / "j" / "log").iterdir()}
            os.sync()  # changes nothing here: names that are gone may be gone on the disk, too
            for path in (disk.root / "j" / "log", disk.root / "j" / "content"):
                forget_what_is_gone(disk, path)
            left = disk.left(tmp_path / "left", eager=False)
            gate.die()
    await check(world, left / "j", {".kept": b"kept"})


def forget_what_is_gone(disk: Disk, directory: Path) -> None:
    """Let the disk have removed the names that are removed; new ones it need not have."""
    there = set(os.listdir(directory))
    names = disk.names.get(directory.stat().st_ino, {})
    for name in set(names) - there:
        del names[name]


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_was_synced_last_is_there(seed: int, disk: Disk, tmp_path: Path) -> None:
    rng = random.Random(seed)
    world, gate = await new_world(), Gate()
    promised: dict[str, bytes] = {}  # what was synced, and not changed since
    with killed(gate):
        async with open_host(
            world, disk.root / "j", limits=ON_DEMAND, segment_bytes=100_000, gate=gate, background=False
        ) as host:
            for _ in range(60):
                name = f".{rng.randrange(4)}"
                entry = host.entries.named(host.dataset().id, name)
                if entry is None:
                    entry = await host.create(name)
                    await host.close(entry)
                await host.reopen(entry)
                if rng.random() < 0.6:
                    promised.pop(name, None)
                    offset, size = rng.randrange(entry.size + 1), rng.choice([10, 5_000, 200_000])
                    await host.journal.write(entry, offset, rng.randbytes(size))
                if rng.random() < 0.4:
                    await host.journal.sync(entry)
                    promised[name] = host.content(name)
                await host.close(entry)
            left = [disk.left(tmp_path / f"left{eager}", eager=eager) for eager in (False, True)]
            gate.die()
    for directory in left:
        await check(world, directory / "j", promised)

"""A damaged log does not bring older versions back: what a lost record may have replaced or undone waits for
somebody to decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.entries import EntryState
from datas3tfs.errors import Corrupt
from tests.harness.world import World, new_world
from tests.harness.writing import Gate, Host, assert_tidy, called, committed, killed, open_host

ON_DEMAND = BatchLimits(64 << 20, 1e6)  # nothing is committed unless somebody asks
LARGE = b"0123456789abcdef" * 16_000  # has a file of its own


async def dead(world: World, directory: Path, *, last: str) -> None:
    """Leave a journal with three files, of which the second was given a newer version, and two more after
    that."""
    gate = Gate()
    with killed(gate):
        async with open_host(world, directory, limits=ON_DEMAND, gate=gate, background=False) as host:
            for key in range(3):
                await host.put(key, b"old %d" % key)
            entry = host.entry(1)
            if last == "accepted":
                await host.reopen(entry)
                await host.journal.write(entry, 0, b"NEW")
                await host.close(entry)
            elif last == "gone":
                await host.journal.unlink(entry)
            elif last == "renamed":
                await host.journal.rename(entry, host.dataset(), called(7))
            await host.put(8, b"after")
            await host.put(9, LARGE)
            gate.die()


def damage(directory: Path, where: Callable[[bytes], int]) -> None:
    (segment,) = (directory / "log").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[where(bytes(data))] ^= 1
    segment.write_bytes(data)


def before_the_next(data: bytes) -> int:
    """Return the place of the last byte before the record of key 8."""
    name = data.index(called(8).encode())
    return data.rindex(b"D3jr", 0, name) - 1


def refused(host: Host) -> set[str]:
    return {entry.name for entry in host.entries if entry.state is EntryState.REFUSED}


async def test_a_lost_version_does_not_bring_the_older_one_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    await dead(world, tmp_path, last="accepted")
    damage(tmp_path, lambda data: data.index(b"NEW"))
    for _ in range(2):
        async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
            assert refused(host) == {called(1)}
            assert host.content(1) == b"old 1", "it can be read"
            with pytest.raises(Corrupt, match="perhaps outdated"):
                await host.committer.commit_closed()
            assert set(await committed(world)) == {0, 2, 8, 9}
            assert 1 in host.held(), "its key stays its own"
    assert any("perhaps outdated" in record.message for record in caplog.records)
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        await host.reopen(host.entry(1))
        await host.journal.write(host.entry(1), 0, b"now")
        await host.close(host.entry(1))
        await host.committer.commit_closed()
        await host.emptied()
    assert (await committed(world))[1] == b"now 1"
    await assert_tidy(world)
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        assert not len(host.entries)


@pytest.mark.parametrize("last", ["gone", "renamed"])
async def test_a_lost_removal_or_rename_holds_all_that_was_there_before(last: str, tmp_path: Path) -> None:
    """Nobody knows of which it was."""
    world = await new_world()
    await dead(world, tmp_path, last=last)
    damage(tmp_path, before_the_next)
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        assert refused(host) == {called(0), called(1), called(2)}
        with pytest.raises(Corrupt, match="perhaps outdated"):
            await host.committer.commit_closed()
        assert set(await committed(world)) == {8, 9}
        await host.journal.rename(host.entry(0), host.dataset(), called(5))
        await host.committer.commit([host.entry(5)])
        await host.journal.unlink(host.entry(1))
    async with open_host(world, tmp_path, limits=ON_DEMAND, force=True) as host:
        assert host.contents() == {called(2): b"old 2"}
        await host.committer.commit_closed()
    assert await committed(world) == {2: b"old 2", 5: b"old 0", 8: b"after", 9: LARGE}


async def test_a_lost_header_holds_all_that_was_there_before(tmp_path: Path) -> None:
    world = await new_world()
    await dead(world, tmp_path, last="accepted")
    damage(tmp_path, lambda data: data.rindex(b"D3jr", 0, data.index(b"NEW")) + 5)
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        assert refused(host) == {called(0), called(1), called(2)}


async def test_a_lost_note_about_a_commit_holds_nothing(tmp_path: Path) -> None:
    world, gate = await new_world(), Gate()
    gate.crash_in("put_stream")
    with killed(gate):
        async with open_host(world, tmp_path, limits=ON_DEMAND, gate=gate, background=False) as host:
            await host.put(0, b"x")
            await host.committer.commit_closed()
    with (tmp_path / "log" / f"{1:016d}.seg").open("ab") as file:
        file.write(b"and something that is not of ours, so that it is no torn tail")
    damage(tmp_path, lambda data: data.rindex(b"D3jr") + 25)
    async with open_host(world, tmp_path, limits=ON_DEMAND) as host:
        assert refused(host) <= {called(0)}


async def test_what_is_doubtful_stays_so_when_the_log_is_tidied_up(tmp_path: Path) -> None:
    world = await new_world()
    await dead(world, tmp_path, last="accepted")
    damage(tmp_path, lambda data: data.index(b"NEW"))
    for _ in range(2):
        async with open_host(
            world, tmp_path, limits=ON_DEMAND, size=1_000_000, segment_bytes=60_000, background=False
        ) as host:
            await host.committer.commit([host.entry(key) for key in (8, 9) if _is_there(host, key)])
            for number in range(30):
                await host.journal.unlink(await host.put(f".{number}", bytes(50_000)))
                host.journal.compact()
            assert refused(host) == {called(1)}


def _is_there(host: Host, key: int) -> bool:
    return host.entries.at_key(host.dataset().id, key) is not None

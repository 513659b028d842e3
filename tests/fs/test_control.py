"""The pipes that announcements come through: made when asked for, removed when done with."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from datas3tfs.core.announced import AnnouncedLimits
from datas3tfs.core.model import DatasetId
from datas3tfs.engine.announcements import open_announcements
from datas3tfs.errors import Unavailable
from datas3tfs.fs import control as module
from datas3tfs.fs.attributes import Ownership
from datas3tfs.fs.control import Control, open_control
from tests.harness.world import World, new_world, open_mounted
from tests.harness.writing import until

OWNER = Ownership(os.getuid(), os.getgid(), 0o022)


@asynccontextmanager
async def opened(directory: Path, world: World) -> AsyncIterator[tuple[Control, DatasetId]]:
    async with (
        open_mounted(world) as mounted,
        open_announcements(
            mounted.pool, mounted.indices, mounted.snapshots, AnnouncedLimits(), world.counters
        ) as announcements,
        open_control(announcements, directory, OWNER) as control,
    ):
        assert control is not None
        yield control, mounted.snapshots.named("photos").id


@pytest.fixture
async def world() -> World:
    """Ten datapoints."""
    made = await new_world()
    await made.commit([bytes([n]) * 100 for n in range(10)])
    return made


def pipes_in(directory: Path) -> list[Path]:
    return [*directory.glob("mount-*/*")]


def left(directory: Path) -> list[str]:
    return [path.name for path in pipes_in(directory)]


def remove_all(directory: Path) -> None:
    for path in directory.glob("mount-*"):
        path.rmdir()


async def test_each_pipe_is_a_stream_of_its_own_with_a_result(world: World, tmp_path: Path) -> None:
    async with opened(tmp_path, world) as (control, dataset):
        pipes = [control.new_pipe(dataset) for _ in range(2)]
        first, second = (os.open(pipe, os.O_WRONLY) for pipe in pipes)
        os.write(first, b"1\n0000000000")
        os.write(second, b"3\nnonsense\n77\n")
        os.write(first, b"0000000002.bin")
        os.close(first)
        os.close(second)
        names = [os.path.basename(os.fsdecode(pipe)) for pipe in pipes]
        await until(lambda: all((control.result(name) or {})["ended"] for name in names))
        expected = [(2, 0, 0), (1, 1, 1)]
        for name, figures in zip(names, expected, strict=True):
            found = control.result(name) or {}
            assert (found["accepted"], found["unknown"], found["bad"]) == figures
        assert control.result("99") is None
        assert left(tmp_path) == []


async def test_a_pipe_that_nobody_opens_is_removed(
    world: World, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path, world) as (control, dataset):
        control.new_pipe(dataset)
        await trio.sleep(module._OPEN_SECONDS - 1)
        assert left(tmp_path) == ["1"]
        await trio.sleep(2)
        assert left(tmp_path) == []
        assert world.counters.get("announce.streams") == 0


async def test_who_opens_it_and_says_nothing_yet_keeps_it(
    world: World, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path, world) as (control, dataset):
        descriptor = os.open(control.new_pipe(dataset), os.O_WRONLY)
        await trio.sleep(3600)
        os.write(descriptor, b"5\n")
        os.close(descriptor)
        await until(lambda: world.counters.get("announce.datapoints") == 1)


async def test_pipes_that_nobody_has_opened_give_way(world: World, tmp_path: Path) -> None:
    async with opened(tmp_path, world) as (control, dataset):
        for _ in range(200):
            control.new_pipe(dataset)
        await until(lambda: len(left(tmp_path)) == module._STREAMS)
        descriptors = [os.open(path, os.O_WRONLY) for path in pipes_in(tmp_path)]
        for descriptor in descriptors:
            os.write(descriptor, b"1\n")
        await until(lambda: world.counters.get("announce.streams") == module._STREAMS)
        with pytest.raises(pyfuse3.FUSEError) as caught:
            control.new_pipe(dataset)
        assert caught.value.errno == errno.EAGAIN
        for descriptor in descriptors:
            os.close(descriptor)
    assert os.listdir(tmp_path) == []


async def test_a_directory_that_has_gone_is_an_error_for_who_asks(world: World, tmp_path: Path) -> None:
    async with opened(tmp_path, world) as (control, dataset):
        remove_all(tmp_path)
        with pytest.raises(Unavailable, match="no pipe"):
            control.new_pipe(dataset)


async def test_where_there_can_be_no_pipes_a_mount_does_without(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with (
        open_mounted(world) as mounted,
        open_announcements(
            mounted.pool, mounted.indices, mounted.snapshots, AnnouncedLimits(), world.counters
        ) as announcements,
        open_control(announcements, tmp_path / "file" / "x", OWNER) as control,
    ):
        assert control is None
    assert "nothing can be announced" in caplog.text

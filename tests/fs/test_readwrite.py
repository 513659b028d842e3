"""The handlers of a mount that can be written to, asked as the kernel asks them (tests/harness/vfs.py)."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.entries import EntryState
from datas3tfs.fs import errnos
from datas3tfs.fs.attributes import FOREVER, MOMENT
from tests.harness.archives import key_name
from tests.harness.mounts import refusing
from tests.harness.vfs import Vfs, open_vfs, patch_replies
from tests.harness.world import World, new_world
from tests.harness.writing import Gate, Host, killed, open_host, until

PATIENT = BatchLimits(64 << 20, 3600.0)  # only what is asked for is committed
CREATE = os.O_WRONLY | os.O_CREAT
NAME = "photos/" + key_name(7)
OTHER = "photos/" + key_name(8)
LARGE = 128 * 1024 + 1  # bytes: has a file of its own in the journal


@pytest.fixture(autouse=True, scope="module")
def _replies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch_replies(patch)
        yield


@pytest.fixture(autouse=True)
def _nothing_logged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errnos, "_complaints", errnos.Complaints())


@pytest.fixture
async def world() -> World:
    """An empty world with the dataset "photos"."""
    made = await new_world()
    await made.dataset()
    return made


@asynccontextmanager
async def mounted(
    world: World,
    directory: Path,
    *,
    limits: BatchLimits = PATIENT,
    gate: Gate | None = None,
    only: str | None = None,
    fsync_commits: bool = True,
) -> AsyncIterator[tuple[Vfs, Host]]:
    async with (
        open_host(world, directory / "journal", limits=limits, gate=gate) as host,
        open_vfs(host, only=only, fsync_commits=fsync_commits) as vfs,
    ):
        yield vfs, host


async def flush(vfs: Vfs) -> None:
    """What `datas3tfs flush` does."""
    await vfs.setxattr("", "user.datas3t.flush")


async def left(host: Host) -> None:
    """Return when nothing committed is in the journal any more."""
    await until(lambda: all(entry.state is not EntryState.COMMITTED for entry in host.entries))


# -- across the commit -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, LARGE])
async def test_what_the_kernel_still_knows_keeps_its_size_and_content(
    world: World, tmp_path: Path, size: int
) -> None:
    content = os.urandom(size)
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.put(NAME, content)
        known = await vfs.inode(NAME)
        await flush(vfs)
        await left(host)
        # The name may lead to the old number for a moment: it must do as well as the new one.
        assert (await vfs.getattr(known)).st_size == size
        assert (await vfs.getattr(known)).st_nlink == 1
        told = await vfs.operations.listxattr(pyfuse3.InodeT(known), pyfuse3.RequestContext())
        assert b"user.datas3t.datarange" in told
        state = pyfuse3.XAttrNameT(b"user.datas3t.state")
        asked = vfs.operations.getxattr(pyfuse3.InodeT(known), state, pyfuse3.RequestContext())
        assert await asked == b"committed"
        descriptor = await vfs.open_inode(known, os.O_RDONLY)
        assert await vfs.pread(descriptor, size + 1, 0) == content
        await vfs.close(descriptor)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            with refusing(errno.EPERM):
                await vfs.open_inode(known, flags)
        assert await vfs.inode(NAME) != known
        assert await vfs.read(NAME) == content


@pytest.mark.parametrize("size", [5, LARGE])
async def test_a_reader_holds_the_file_across_the_commit(world: World, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.put(NAME, content)
        descriptor = await vfs.open(NAME)
        await flush(vfs)
        await left(host)
        await vfs.forget()
        assert await vfs.pread(descriptor, size + 1, 0) == content
        assert (await vfs.fstat(descriptor)).st_size == size
        await vfs.close(descriptor)
        await vfs.forget()
        assert not vfs.nodes
        assert not len(vfs.operations._known)


async def test_attributes_are_the_same_before_and_after_but_for_inode_and_timeouts(
    world: World, tmp_path: Path
) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.put(NAME, b"content")
        await vfs.setattr(NAME, mtime_ns=1_600_000_000_999_999_999)
        before = await vfs.stat(NAME)
        assert before.entry_timeout == before.attr_timeout == MOMENT
        await flush(vfs)
        await left(host)
        after = await vfs.stat(NAME)
        assert after.entry_timeout == after.attr_timeout == FOREVER
    for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_mtime_ns"):
        assert getattr(before, name) == getattr(after, name), name
    assert after.st_mtime_ns == 1_600_000_000_000_000_000
    assert stat.S_IMODE(after.st_mode) == 0o644


async def test_the_state_is_told(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        descriptor = await vfs.open(NAME, CREATE)
        await vfs.pwrite(descriptor, b"abc", 0)
        assert await vfs.xattrs(NAME) == {"key": "7", "size": "3", "state": "open"}
        await vfs.close(descriptor)
        assert (await vfs.xattrs(NAME))["state"] == "journaled"
        await vfs.put("photos/.tmp", b"abcd")
        assert await vfs.xattrs("photos/.tmp") == {"size": "4", "state": "temporary"}
        await flush(vfs)
        assert (await vfs.xattrs(NAME))["state"] == "committed"
        await left(host)
        assert (await vfs.xattrs(NAME))["datarange"] == "7-7"


async def test_after_fsync_the_descriptor_cannot_write_but_close_succeeds(
    world: World, tmp_path: Path
) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        descriptor = await vfs.open(NAME, CREATE)
        await vfs.pwrite(descriptor, b"abc", 0)
        await vfs.fsync(descriptor)
        await left(host)
        with refusing(errno.EPERM):
            await vfs.pwrite(descriptor, b"d", 3)
        with refusing(errno.EPERM):
            await vfs.setattr(NAME, fd=descriptor, size=1)
        assert await vfs.pread(descriptor, 10, 0) == b"abc"
        await vfs.fsync(descriptor)
        await vfs.close(descriptor)
        assert await vfs.read(NAME) == b"abc"


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
async def test_with_o_sync_every_write_is_safe_here_and_only_fsync_commits(
    world: World, tmp_path: Path, flag: int
) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        descriptor = await vfs.open(NAME, CREATE | flag)
        for at in range(3):
            await vfs.pwrite(descriptor, b"x", at)
            assert host.gate.calls["journal.sync"] == at + 1
        assert (await vfs.xattrs(NAME))["state"] == "journaled"
        await vfs.fsync(descriptor)
        assert (await vfs.xattrs(NAME))["state"] == "committed"
        await vfs.close(descriptor)
        assert await vfs.read(NAME) == b"xxx"


async def test_with_fsync_journal_it_is_safe_here_and_can_be_written_on(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path, fsync_commits=False) as (vfs, host):
        descriptor = await vfs.open(NAME, CREATE)
        await vfs.pwrite(descriptor, b"abc", 0)
        await vfs.fsync(descriptor)
        assert host.gate.calls["journal.sync"] == 1
        await vfs.pwrite(descriptor, b"d", 3)
        await vfs.close(descriptor)
        await vfs.fsyncdir("photos")
        assert host.gate.calls["journal.sync"] == 2
        assert (await vfs.xattrs(NAME))["state"] == "journaled"
        assert await vfs.read(NAME) == b"abcd"


async def test_fsync_of_a_directory_commits_what_is_closed_in_it(world: World, tmp_path: Path) -> None:
    await world.dataset("other")
    async with mounted(world, tmp_path) as (vfs, _):
        await vfs.put(NAME, b"abc")
        await vfs.put("other/" + key_name(1), b"def")
        open_still = await vfs.open(OTHER, CREATE)
        await vfs.fsyncdir("photos")
        assert (await vfs.xattrs(NAME))["state"] == "committed"
        assert (await vfs.xattrs(OTHER))["state"] == "open"
        assert (await vfs.xattrs("other/" + key_name(1)))["state"] == "journaled"
        await vfs.fsyncdir("")
        assert (await vfs.xattrs("other/" + key_name(1)))["state"] == "committed"
        await vfs.close(open_still)


async def test_a_flush_waits_for_what_has_just_been_closed(world: World, tmp_path: Path) -> None:
    """The kernel releases a file some time after close() has returned, which waits for its flush only."""
    async with mounted(world, tmp_path) as (vfs, _):
        descriptor = await vfs.open(NAME, CREATE)
        await vfs.pwrite(descriptor, b"abc", 0)
        await vfs.close(vfs.dup(descriptor))  # a flush, and no release
        writing = await vfs.open(OTHER, CREATE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush, vfs)
            await trio.testing.wait_all_tasks_blocked(0.005)
            await vfs.close(descriptor)
        assert (await vfs.xattrs(NAME))["state"] == "committed"
        await vfs.pwrite(writing, b"def", 0)
        await vfs.close(vfs.dup(writing))
        await flush(vfs)  # does not wait for ever, nor take what is open
        assert (await vfs.xattrs(OTHER))["state"] == "journaled"
        await vfs.close(writing)


async def test_times_may_be_set_to_what_they_are_once_committed(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.put(NAME, b"abc")
        known = await vfs.inode(NAME)
        now = (await vfs.stat(NAME)).st_mtime_ns
        await flush(vfs)
        for _ in "entry", "datapoint":
            assert (await vfs.setattr(NAME, mtime_ns=now + 999_999_999)).st_mtime_ns == now
            await vfs.setattr(NAME)  # chmod
            with refusing(errno.EPERM):
                await vfs.setattr(NAME, mtime_ns=now + 1_000_000_000)
            with refusing(errno.EPERM):
                await vfs.setattr(NAME, size=3)
            await left(host)
        assert known in vfs.nodes


async def test_who_sets_times_during_the_commit_gets_the_answer_of_after_it(
    world: World, tmp_path: Path
) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.put(NAME, b"abc")
        now = (await vfs.stat(NAME)).st_mtime_ns
        begun, go_on = trio.Event(), trio.Event()

        async def hold(name: str) -> None:
            if name == "publish":
                begun.set()
                await go_on.wait()

        host.gate.before = hold
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush, vfs)
            await begun.wait()
            assert (await vfs.xattrs(NAME))["state"] == "committing"
            nursery.start_soon(lambda: vfs.setattr(NAME, mtime_ns=now))
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()


# -- removed, replaced ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, LARGE])
async def test_an_unlinked_file_lives_for_those_who_have_it_open(
    world: World, tmp_path: Path, size: int
) -> None:
    content = os.urandom(size)
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.put(NAME, content)
        descriptor = await vfs.open(NAME, os.O_RDWR)
        known = await vfs.inode(NAME)
        await vfs.unlink(NAME)
        with refusing(errno.ENOENT):
            await vfs.stat(NAME)
        await vfs.put(NAME, b"another")
        await vfs.pwrite(descriptor, b"more", size)
        assert await vfs.pread(descriptor, 1 << 20, 0) == content + b"more"
        assert (await vfs.fstat(descriptor)).st_nlink == 0
        assert await vfs.read(NAME) == b"another"
        await vfs.fsync(descriptor)
        await vfs.close(descriptor)
        with refusing(errno.ENOENT):  # by way of /proc/self/fd of an O_PATH descriptor
            await vfs.open_inode(known, os.O_RDONLY)
        assert len(host.entries) == 1
        assert os.listdir(tmp_path / "journal" / "content") == []


async def test_a_rename_replaces_what_is_not_committed(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path) as (vfs, _):
        await vfs.put(NAME, b"old")
        descriptor = await vfs.open(NAME)
        await vfs.put("photos/.tmp", b"new")
        with refusing(errno.EEXIST):
            await vfs.rename("photos/.tmp", NAME, pyfuse3.RENAME_NOREPLACE)
        with refusing(errno.EINVAL):
            await vfs.rename("photos/.tmp", NAME, pyfuse3.RENAME_EXCHANGE)
        await vfs.rename("photos/.tmp", NAME)
        assert await vfs.listdir("photos") == [key_name(7)]
        assert await vfs.read(NAME) == b"new"
        assert await vfs.pread(descriptor, 10, 0) == b"old"
        await vfs.close(descriptor)


async def test_a_name_is_temporary_and_a_datapoint_and_temporary_again(world: World, tmp_path: Path) -> None:
    await world.dataset("other")
    async with mounted(world, tmp_path) as (vfs, _):
        await vfs.put("photos/x.part", b"abc")
        await vfs.rename("photos/x.part", NAME)
        await vfs.rename(NAME, "other/" + key_name(3, "jpg"))
        await vfs.rename("other/" + key_name(3, "jpg"), "other/" + key_name(3))
        await vfs.rename("other/" + key_name(3), "photos/x~")
        assert await vfs.listdir("other") == []
        await flush(vfs)
        assert (await vfs.xattrs("photos/x~"))["state"] == "temporary"
        await vfs.rename("photos/x~", NAME)
        await flush(vfs)
        assert (await vfs.xattrs(NAME))["state"] == "committed"


async def test_replaced_by_a_file_that_is_still_open_the_old_one_never_comes_back(
    world: World, tmp_path: Path
) -> None:
    gate = Gate()
    with killed(gate):
        async with mounted(world, tmp_path, gate=gate) as (vfs, _):
            for name in NAME, OTHER:
                await vfs.put(name, b"old")
                descriptor = await vfs.open("photos/.tmp", CREATE)
                await vfs.pwrite(descriptor, b"new", 0)
                await vfs.rename("photos/.tmp", name)
            await vfs.unlink(NAME)
            gate.die()
    async with mounted(world, tmp_path) as (vfs, _):
        assert await vfs.listdir("photos") == [key_name(8)]
        assert await vfs.read(OTHER) == b"new", "there is no moment without one of the two"


# -- refused -------------------------------------------------------------------------------------------


async def test_what_is_refused_and_how(world: World, tmp_path: Path) -> None:
    await world.commit([b"committed"], 1)
    done, taken = "photos/" + key_name(1), "photos/" + key_name(1, "jpg")
    async with mounted(world, tmp_path) as (vfs, _):
        await vfs.put(NAME, b"abc")
        await vfs.put("photos/.tmp", b"abc")
        for number, request in (
            (errno.EPERM, vfs.open(done, os.O_WRONLY)),
            (errno.EPERM, vfs.open(done, os.O_RDONLY | os.O_TRUNC)),
            (errno.EPERM, vfs.unlink(done)),
            (errno.EPERM, vfs.rename(done, OTHER)),
            (errno.EPERM, vfs.rename(NAME, done)),
            (errno.EPERM, vfs.rename("photos/.tmp", done)),
            (errno.EEXIST, vfs.open(done, CREATE | os.O_EXCL)),
            (errno.EEXIST, vfs.open(taken, CREATE)),
            (errno.EEXIST, vfs.rename(NAME, taken)),
            (errno.EEXIST, vfs.open("photos/" + key_name(7, "jpg"), CREATE)),
            (errno.EEXIST, vfs.rename("photos/.tmp", "photos/" + key_name(7, "jpg"))),
            (errno.EINVAL, vfs.open("photos/README", CREATE)),
            (errno.EINVAL, vfs.rename(NAME, "photos/README")),
            (errno.EPERM, vfs.open(key_name(1), CREATE)),
            (errno.EPERM, vfs.open(".tmp", CREATE)),
            (errno.EPERM, vfs.rename(NAME, key_name(1))),
            (errno.EPERM, vfs.rename("photos", "pictures")),
            (errno.EPERM, vfs.mkdir("photos/sub")),
            (errno.EINVAL, vfs.mkdir("a.b")),
            (errno.EEXIST, vfs.mkdir("photos")),
            (errno.ENOTDIR, vfs.rmdir(done)),
            (errno.ENOTEMPTY, vfs.rmdir("photos")),
            (errno.ENOTSUP, vfs.setxattr(NAME, "user.mine")),
            (errno.ENOTSUP, vfs.setxattr("photos", "user.datas3t.flush")),
        ):
            with refusing(number):
                await request
        assert await vfs.listdir("photos") == [key_name(1), key_name(7), ".tmp"]


async def test_a_dataset_is_removed_only_when_nothing_is_in_it(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.mkdir("new")
        assert await vfs.listdir("") == ["photos", "new"]
        await vfs.put("new/.tmp", b"")
        with refusing(errno.ENOTEMPTY):
            await vfs.rmdir("new")
        await vfs.unlink("new/.tmp")
        for key in range(4):  # so that keys are leased ahead
            await vfs.put("new/" + key_name(key), b"")
        for key in range(4):
            with refusing(errno.ENOTEMPTY):
                await vfs.rmdir("new")
            await vfs.unlink("new/" + key_name(key))
        assert host.held()
        await vfs.rmdir("new")
        assert await vfs.listdir("") == ["photos"]


# -- listings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 3, 1000])
async def test_a_listing_goes_on_from_every_entry_of_every_kind(
    world: World, tmp_path: Path, room: int
) -> None:
    last = 2**63 - 1
    keys = [0, 1, 2, 5, 2**62, last - 2**40 - 1, last - 2**40, last - 2**40 + 1, last - 1, last]
    for key in (1, 5, last - 2**40, last - 1):
        await world.commit([b"committed"], key)
    async with mounted(world, tmp_path) as (vfs, _):
        for key in keys:
            if key not in (1, 5, last - 2**40, last - 1):
                await vfs.put("photos/" + key_name(key), b"")
        await vfs.put("photos/.b", b"")
        await vfs.put("photos/.a", b"")
        names = [*map(key_name, keys), ".b", ".a"]
        found = await vfs.scandir("photos", room)
        assert [name for name, _, _ in found] == names
        for at, (name, _, after) in enumerate(found):
            rest = await vfs.scandir("photos", room, after)
            assert [name for name, _, _ in rest] == names[at + 1 :]
            # lseek(2) takes no negative offset: only the last keys of all have one.
            assert after >= 0 or name in [key_name(key) for key in keys if key >= last - 2**40]


async def test_nothing_is_missed_by_a_listing_that_waits_while_something_is_committed(
    world: World, tmp_path: Path
) -> None:
    """The listing looks at a snapshot, then waits for an index; meanwhile another file leaves the journal
    for a newer snapshot."""
    await world.commit([b"committed"], 9)
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.put(NAME, b"abc")
        begun, go_on = trio.Event(), trio.Event()

        async def hold(method: str, key: str) -> None:
            if method.startswith("get"):
                begun.set()
                await go_on.wait()

        world.failing.before_each = hold
        async with trio.open_nursery() as nursery:
            names: list[str] = []

            async def list_it() -> None:
                names.extend(await vfs.listdir("photos"))

            nursery.start_soon(list_it)
            await begun.wait()
            await flush(vfs)
            await left(host)
            go_on.set()
        assert names == [key_name(7), key_name(9)]


async def test_every_name_is_there_exactly_once_while_files_are_written_and_committed(
    world: World, tmp_path: Path
) -> None:
    """Listings wait at every chance, between all steps of many commits."""
    written: list[str] = []

    async def write(vfs: Vfs) -> None:
        for key in range(120):
            await vfs.put("photos/" + key_name(key), b"%d" % key)
            written.append(key_name(key))
            if key % 10 == 9:
                await flush(vfs)

    async def take_time(method: str, key: str) -> None:
        await trio.sleep(0.002)

    world.failing.before_each = take_time
    listings = 0
    async with mounted(world, tmp_path) as (vfs, host):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, vfs)
            while len(written) < 120:
                before = set(written)
                names = await vfs.listdir("photos", 7)
                assert len(names) == len(set(names))
                assert before <= set(names)
                listings += 1
                await trio.lowlevel.checkpoint()
        await left(host)
        assert await vfs.listdir("photos") == written
    assert listings > 20


# -- the rest ------------------------------------------------------------------------------------------


async def test_the_table_of_known_files_shrinks_with_what_the_kernel_forgets(
    world: World, tmp_path: Path
) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        for key in range(50):
            await vfs.put("photos/" + key_name(key), b"x")
            await vfs.stat("photos/" + key_name(key))
        await vfs.listdir("photos")
        known = vfs.operations._known
        assert len(known) == 50
        await flush(vfs)
        await left(host)
        assert len(known) == 50
        await vfs.forget()
        assert not len(known)


async def test_only_one_dataset_at_the_root_can_be_written_to(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path, only="photos") as (vfs, _):
        await vfs.put(key_name(1), b"abc")
        assert await vfs.read(key_name(1)) == b"abc"
        with refusing(errno.EPERM):
            await vfs.mkdir("sub")
        await vfs.rename(key_name(1), key_name(2))
        await flush(vfs)
        assert await vfs.listdir("") == [key_name(2)]
        await vfs.fsyncdir("")


async def test_statfs_says_how_much_may_be_written(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        before = await vfs.statfs()
        assert before.f_bavail * before.f_frsize <= host.journal.quota.limit
        assert before.f_bavail > 0
        await vfs.put(NAME, bytes(1 << 20))
        after = await vfs.statfs()
        assert before.f_bavail - after.f_bavail >= (1 << 20) // 4096
        assert after.f_files == before.f_files + 1


async def test_times_are_those_of_the_last_write(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path) as (vfs, _):
        await vfs.put(NAME, b"abc")
        await vfs.setattr(NAME, mtime_ns=5_000_000_000)
        assert (await vfs.stat(NAME)).st_mtime_ns == 5_000_000_000
        descriptor = await vfs.open(NAME, os.O_WRONLY)
        assert (await vfs.stat(NAME)).st_mtime_ns == 5_000_000_000
        await vfs.pwrite(descriptor, b"x", 0)
        assert abs((await vfs.stat(NAME)).st_mtime_ns - time.time_ns()) < 60_000_000_000
        await vfs.close(descriptor)


async def test_who_creates_with_a_read_only_descriptor_has_made_a_file(world: World, tmp_path: Path) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.close(await vfs.open(NAME, os.O_RDONLY | os.O_CREAT))
        assert host.entry(7).is_committable
        assert not host.entry(7).writers
        await flush(vfs)
        await left(host)
        assert await vfs.read(NAME) == b""


async def test_a_committed_file_that_is_just_leaving_is_found_under_either_number(
    world: World, tmp_path: Path
) -> None:
    async with mounted(world, tmp_path) as (vfs, host):
        await vfs.put(NAME, b"abc")
        entry = host.entry(7)
        await flush(vfs)
        assert entry.state is EntryState.COMMITTED
        for _ in range(2):
            assert await vfs.read(NAME) == b"abc"
            await left(host)

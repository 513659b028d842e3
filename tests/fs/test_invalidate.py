"""The kernel is told of exactly what is gone: never by the event loop, never of the root's own inode."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
import trio
import trio.testing

from datas3tfs.app.mount import _following, _Shell
from datas3tfs.core.index import Index
from datas3tfs.core.inodes import ROOT
from datas3tfs.core.model import Datarange, DatasetId
from datas3tfs.core.spans import Span
from datas3tfs.engine.compactor import Compactor
from datas3tfs.engine.indices import open_indices
from datas3tfs.engine.snapshot import Removed
from datas3tfs.fs import messages
from datas3tfs.fs.attributes import Attributes, Ownership
from datas3tfs.fs.invalidate import Invalidator
from datas3tfs.fs.notifier import Notifier
from datas3tfs.fs.operations import Operations
from tests.engine.test_indices import bare_records
from tests.harness.world import Mounted, World, new_world, open_mounted
from tests.harness.writing import until

CONTEXT = pyfuse3.RequestContext()


@dataclass
class FakeKernel(Notifier):
    """Records what it is told; *on_inode* may block or raise."""

    event_loop: int = field(default_factory=threading.get_ident)
    inodes: list[int] = field(default_factory=list)
    entries: list[tuple[int, bytes]] = field(default_factory=list)
    on_inode: Callable[[int], None] = lambda inode: None

    def __post_init__(self) -> None:
        super().__init__(device=-1)

    def _write(self, message: bytes) -> None:
        assert threading.get_ident() != self.event_loop, "would wait for itself, unkillably"
        length, code, unique = messages.ANSWER.unpack_from(message)
        assert (length, unique) == (len(message), 0)
        if code == 2:  # FUSE_NOTIFY_INVAL_INODE
            inode, start, count = struct.unpack_from("=Qqq", message, messages.ANSWER.size)
            assert inode != ROOT
            assert (start, count) == (0, 0), "pages too"
            self.inodes.append(inode)
            self.on_inode(inode)
        else:
            assert code == 3  # FUSE_NOTIFY_INVAL_ENTRY
            parent, size, _ = struct.unpack_from("=QII", message, messages.ANSWER.size)
            name = message[messages.ANSWER.size + 16 :]
            assert name == name[:size] + b"\0"
            self.entries.append((parent, name[:size]))


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


def make_operations(inner: Mounted, only: DatasetId | None = None) -> Operations:
    attributes = Attributes(Ownership(0, 0, 0))
    return Operations(inner.tree, inner.reader, attributes, inner.world.counters, dict, only)


@dataclass
class Following:
    """A mount that looks at the catalog when told to."""

    world: World
    inner: Mounted
    operations: Operations
    sender: trio.MemorySendChannel[Removed]
    scope: trio.CancelScope

    async def load(self, *dataranges: Datarange) -> None:
        """Take the dataranges' indices into memory, as listing them does."""
        for datarange in dataranges:
            await self.inner.indices.of(self.world.bucket_id, datarange)
            await self.inner.snapshots.of(datarange.dataset_id)

    async def refresh(self) -> None:
        await self.sender.send(await self.inner.snapshots.refresh())

    async def finish(self) -> None:
        """Let it work off what it was sent; returns when it has ended."""
        await self.sender.aclose()


@asynccontextmanager
async def following(world: World, kernel: FakeKernel, only: str | None = None) -> AsyncIterator[Following]:
    sender, receiver = trio.open_memory_channel[Removed](16)
    async with open_mounted(world) as inner:
        operations = make_operations(inner, None if only is None else inner.snapshots.named(only).id)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                invalidator = Invalidator(
                    inner.snapshots, inner.tree, inner.indices, operations, kernel.forget_here
                )
                nursery.start_soon(invalidator.run, receiver)
                yield Following(world, inner, operations, sender, nursery.cancel_scope)


def name(key: int) -> bytes:
    return b"%020d.bin" % key


@pytest.mark.parametrize("change", ["none", "other content", "another name", "no checksums", "one is gone"])
async def test_what_a_merge_has_moved_is_not_forgotten_unless_something_else_came(
    kernel: FakeKernel, change: str
) -> None:
    world = await new_world()
    parts = [await world.commit([b"x", b"y"], 10), await world.commit([b"z"], 12)]
    if change == "no checksums":
        for part in parts:
            world.store.objects[part.index_key] = bare_records(world, part)
    async with following(world, kernel) as mount:
        await mount.load(*parts)
        async with open_indices(world.cache, world.stores, world.counters) as indices:
            compactor = Compactor(world.catalog, world.catalog, world.stores, indices)
            made = await compactor.aggregate("photos", Span(10, 13))
        if change not in ("none", "no checksums"):
            world.catalog.remove(made.id)
            await world.commit([b"x", b"Y" if change == "other content" else b"y"], 10)
            if change != "one is gone":
                await world.commit([b"z"], 12, extension="txt" if change == "another name" else "bin")
        await mount.refresh()
        await mount.finish()
    told = {
        "none": [],
        "other content": [10, 11],
        "another name": [12],
        "no checksums": [10, 11, 12],
        "one is gone": [12],
    }
    assert kernel.entries == [(kernel.entries[0][0], name(key)) for key in told[change]]


async def test_the_datapoints_of_a_removed_datarange_are_forgotten_and_no_others(kernel: FakeKernel) -> None:
    world = await new_world()
    gone, kept = await world.commit([b"x"] * 3, 10), await world.commit([b"y"] * 3)
    async with following(world, kernel) as mount:
        await mount.load(gone, kept)
        photos = mount.inner.snapshots.named("photos")
        numbers = list(mount.operations.datapoint_inodes(photos, 10, 3))
        world.catalog.remove(gone.id)
        await mount.refresh()
        await mount.finish()
    assert kernel.inodes == numbers
    assert not set(mount.operations.datapoint_inodes(photos, 10, 3)) & set(numbers), "theirs for ever"
    assert kernel.entries == [(mount.operations.dataset_inode(photos), name(key)) for key in (10, 11, 12)]
    assert mount.inner.indices.peek(gone) is None
    assert mount.inner.indices.peek(kept) is not None


@pytest.mark.parametrize("first", [0, 2**40 - 2500, 2**63 - 5000])
async def test_every_one_of_many_is_told_whatever_its_key(kernel: FakeKernel, first: int) -> None:
    world = await new_world()
    gone = await world.commit([b""] * 5000, first)
    async with following(world, kernel) as mount:
        await mount.load(gone)
        photos = mount.inner.snapshots.named("photos")
        parent = pyfuse3.InodeT(mount.operations.dataset_inode(photos))
        known = [
            (await mount.operations.lookup(parent, pyfuse3.FileNameT(name(key)), CONTEXT)).st_ino
            for key in range(first, first + 5000, 500)
        ]
        world.catalog.remove(gone.id)
        await mount.refresh()
        await mount.finish()
    assert kernel.entries == [(parent, name(key)) for key in range(first, first + 5000)]
    assert kernel.inodes[::500] == known
    assert len(set(kernel.inodes)) == 5000


async def test_what_the_kernel_cannot_know_is_not_told(kernel: FakeKernel) -> None:
    world = await new_world()
    gone, kept = await world.commit([b"x"] * 3, 10), await world.commit([b"y"])
    async with following(world, kernel) as mount:
        await mount.load(kept)  # the dataset is in use, but nobody has looked into the other datarange
        world.catalog.remove(gone.id)
        await mount.refresh()
        await mount.finish()
    assert not kernel.entries
    assert not kernel.inodes


async def test_what_was_known_and_has_left_memory_is_told(kernel: FakeKernel) -> None:
    world = await new_world()
    gone = await world.commit([b"x"] * 3)
    async with open_mounted(world) as inner:
        await inner.indices.of(world.bucket_id, gone)  # so it is in the cache on disk
    async with following(world, kernel) as mount:
        await mount.inner.snapshots.of(gone.dataset_id)
        world.catalog.remove(gone.id)
        await mount.refresh()
        await mount.finish()
    assert [entry[1] for entry in kernel.entries] == [name(key) for key in range(3)]


async def test_a_removed_dataset_is_forgotten_after_its_datapoints(kernel: FakeKernel) -> None:
    world = await new_world()
    gone = await world.commit([b"x"] * 2)
    async with following(world, kernel) as mount:
        await mount.load(gone)
        photos = mount.inner.snapshots.named("photos")
        numbers = mount.operations.datapoint_inodes(photos, 0, 2)
        del world.catalog.all_datasets[photos.id]
        await mount.refresh()
        await mount.finish()
    directory = mount.operations.dataset_inode(photos)
    assert kernel.entries == [(directory, name(0)), (directory, name(1)), (ROOT, b"photos")]
    assert kernel.inodes == [*numbers, directory]


async def test_the_one_dataset_at_the_root_has_its_entries_there(kernel: FakeKernel) -> None:
    world = await new_world()
    gone = await world.commit([b"x"] * 2)
    async with following(world, kernel, only="photos") as mount:
        await mount.load(gone)
        photos = mount.inner.snapshots.named("photos")
        numbers = mount.operations.datapoint_inodes(photos, 0, 2)
        del world.catalog.all_datasets[photos.id]
        await mount.refresh()
        await mount.finish()
    assert kernel.entries[:2] == [(ROOT, name(0)), (ROOT, name(1))]
    assert kernel.inodes == list(numbers), "the root itself: never"


async def test_what_the_kernel_does_not_know_is_silent_and_a_failure_is_a_warning(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(inode: int) -> None:
        number = {0: errno.ENOENT, 1: errno.EIO}.get(inode & 0xFF)
        if number is not None:
            raise OSError(number, os.strerror(number))

    kernel.on_inode = answer
    world = await new_world()
    gone = await world.commit([b"x"] * 3)
    async with following(world, kernel) as mount:
        await mount.load(gone)
        world.catalog.remove(gone.id)
        await mount.refresh()
        await mount.finish()
    assert [entry[1] for entry in kernel.entries] == [name(2)], "and it went on"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert name(1).decode() in record.getMessage()


async def test_the_event_loop_goes_on_while_the_kernel_blocks(kernel: FakeKernel) -> None:
    """Only the loop can answer the request that the kernel waits for: here, it releases the block."""
    blocked, release = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def block(inode: int) -> None:
        token.run_sync_soon(blocked.set)
        assert release.wait(20)

    kernel.on_inode = block
    world = await new_world()
    gone = await world.commit([b"x"] * 3)
    async with following(world, kernel) as mount:
        await mount.load(gone)
        world.catalog.remove(gone.id)
        await mount.refresh()
        await blocked.wait()
        assert len(kernel.inodes) == 1
        release.set()
        await mount.finish()
    assert len(kernel.inodes) == 3


async def test_it_stops_when_cancelled_although_the_kernel_blocks(kernel: FakeKernel) -> None:
    blocked, release = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def block(inode: int) -> None:
        token.run_sync_soon(blocked.set)
        assert release.wait(20)

    kernel.on_inode = block
    world = await new_world()
    gone = await world.commit([b"x"] * 3)
    try:
        async with following(world, kernel) as mount:
            await mount.load(gone)
            world.catalog.remove(gone.id)
            await mount.refresh()
            await blocked.wait()
            mount.scope.cancel()
        assert len(kernel.inodes) == 1
    finally:
        release.set()
    with trio.fail_after(20):
        await trio.testing.wait_all_threads_completed()
    assert len(kernel.inodes) == 1, "the thread left behind says no more once it can"


async def test_many_datapoints_do_not_hold_up_the_event_loop(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of what is gone are made in the thread, a few at a time: there may be a million."""
    names_of = Index.names

    def watched(index: Index, slot: int, count: int) -> list[bytes]:
        assert threading.get_ident() != kernel.event_loop
        assert count <= 10_000
        return names_of(index, slot, count)

    world = await new_world()
    gone = await world.commit([b""] * 30_000)
    async with following(world, kernel) as mount:
        await mount.load(gone)
        world.catalog.remove(gone.id)
        monkeypatch.setattr(Index, "names", watched)
        await mount.refresh()
        await mount.finish()
    assert len(set(kernel.entries)) == len(set(kernel.inodes)) == 30_000


async def test_a_kernel_that_takes_no_news_keeps_nobody_from_seeing_what_is_new(kernel: FakeKernel) -> None:
    """It may take none before a reader is answered who waits for a look at the catalog: that must end."""
    world, answered = await new_world(), threading.Event()
    dataset = await world.dataset()

    def wait(inode: int) -> None:
        assert answered.wait(20)

    kernel.on_inode = wait
    async with open_mounted(world) as inner:
        shell = SimpleNamespace(
            services=SimpleNamespace(catalog=SimpleNamespace(reader=world.catalog), indices=inner.indices),
            snapshots=inner.snapshots,
            tree=inner.tree,
            pool=inner.pool,
            blocks=SimpleNamespace(forget=kernel.forget_here, push=None),
        )
        followed = _following(cast(_Shell, shell), make_operations(inner), heartbeats=False)
        with trio.fail_after(20):
            async with followed:
                for first in range(100):
                    made = await world.commit([b"x"], first)
                    await inner.snapshots.refreshed()
                    await inner.snapshots.of(dataset.id)
                    await inner.indices.of(world.bucket_id, made)
                    world.catalog.remove(made.id)
                    await inner.snapshots.refreshed()
                    assert not (await inner.snapshots.of(dataset.id)).dataranges
                await until(lambda: bool(kernel.inodes))
                assert len(kernel.inodes) == 1, "the first is not taken yet"
                answered.set()

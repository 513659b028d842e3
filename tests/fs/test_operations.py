"""Operations without a kernel: whatever is committed, every answer is that of a dict of dicts."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import cast

import google_crc32c
import pyfuse3
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3tfs.core.compose import compose
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.inodes import ROOT
from datas3tfs.core.layout import Planned, plan_layout
from datas3tfs.core.model import Datarange
from datas3tfs.core.spans import Span
from datas3tfs.engine.compactor import Compactor
from datas3tfs.engine.indices import open_indices
from datas3tfs.errors import Conflict
from datas3tfs.fs import errnos
from datas3tfs.fs.attributes import FOREVER, MOMENT, Attributes, Ownership
from datas3tfs.fs.operations import Operations
from tests.engine.test_indices import bare_records
from tests.harness.world import Mounted, World, new_world, open_mounted

OWNER = Ownership(uid=1234, gid=567, umask=0o027)
SECOND = 1_000_000_000
LAST_KEY = 2**63 - 1
ENDLESS = 1 << 40  # room in a reply
CONTEXT = pyfuse3.RequestContext()


@dataclass(frozen=True)
class Item:
    """A datapoint of the model."""

    content: bytes
    extension: str = "bin"
    mtime_ns: int = 0


Model = dict[str, dict[int, Item]]


def name_of(key: int, item: Item) -> bytes:
    return f"{key:020d}.{item.extension}".encode()


async def commit(world: World, name: str, first: int, items: Sequence[Item]) -> Datarange:
    """Commit *items* as one datarange through the real writer."""
    dataset = await world.dataset(name)
    layout = plan_layout(
        [Planned(k, i.extension, len(i.content), i.mtime_ns) for k, i in enumerate(items, first)]
    )
    builder = IndexBuilder()

    async def body() -> AsyncIterator[bytes]:
        for chunk in compose(layout, lambda i: [items[i].content], builder):
            yield chunk

    def index() -> bytes:
        return encode_index_file(builder.finish(first=first, object_size=layout.size))

    return await world.writer.commit(dataset, layout.keys, layout.size, body(), index)


@dataclass(frozen=True)
class Listed:
    """An entry as readdir gave it; *after* is the offset of the next."""

    name: bytes
    inode: int
    attributes: dict[str, float]
    after: int


@dataclass
class Reply:
    """Stands for the kernel's buffer: it takes *room* entries."""

    room: int
    entries: list[Listed] = field(default_factory=list)


def take(token: Reply, name: bytes, attributes: pyfuse3.EntryAttributes, after: int) -> bool:
    """Stand in for pyfuse3.readdir_reply. What it is given is used again for the next entry."""
    if len(token.entries) == token.room:
        return False
    assert -(2**63) <= after < 2**63, "an off_t"
    token.entries.append(Listed(name, attributes.st_ino, shown(attributes), after))
    return True


@pytest.fixture(autouse=True, scope="module")
def _replies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyfuse3, "readdir_reply", take)
        yield


@pytest.fixture(autouse=True)
def _nothing_logged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errnos, "_complaints", errnos.Complaints())


def shown(attributes: pyfuse3.EntryAttributes) -> dict[str, float]:
    """What of the attributes is the same for every way to ask."""
    names = ["st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_blksize", "generation"]
    times = ["st_mtime_ns", "st_ctime_ns", "st_atime_ns", "entry_timeout", "attr_timeout"]
    return {name: getattr(attributes, name) for name in names + times}


def without_generation(attributes: dict[str, float]) -> dict[str, float]:
    """What a datapoint looks like whichever datarange it is in."""
    return {name: value for name, value in attributes.items() if name != "generation"}


def expected(item: Item, owner: Ownership = OWNER) -> dict[str, float]:
    seconds = item.mtime_ns // SECOND * SECOND  # a TAR knows no finer
    return {
        "st_mode": stat.S_IFREG | 0o444 & ~owner.umask,
        "st_nlink": 1,
        "st_uid": owner.uid,
        "st_gid": owner.gid,
        "st_size": len(item.content),
        "st_blocks": (len(item.content) + 511) // 512,
        "st_blksize": 128 * 1024,
        "st_mtime_ns": seconds,
        "st_ctime_ns": seconds,
        "st_atime_ns": seconds,
        "entry_timeout": FOREVER,
        "attr_timeout": FOREVER,
    }


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


class Kernel:
    """Asks as the kernel does, in plain types."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    async def lookup(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        return await self.operations.lookup(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name), CONTEXT)

    async def inode(self, *path: bytes) -> int:
        inode = ROOT
        for name in path:
            inode = (await self.lookup(inode, name)).st_ino
        return inode

    async def getattr(self, inode: int) -> pyfuse3.EntryAttributes:
        found = await self.operations.getattr(pyfuse3.InodeT(inode), CONTEXT)
        assert found.st_ino == inode
        return found

    async def open(self, inode: int, flags: int = os.O_RDONLY) -> pyfuse3.FileInfo:
        return await self.operations.open(pyfuse3.InodeT(inode), pyfuse3.FlagT(flags), CONTEXT)

    async def read(self, inode: int, offset: int = 0, size: int = 1 << 20) -> bytes:
        info = await self.open(inode)
        data = bytes(await self.operations.read(info.fh, offset, size))
        await self.operations.release(info.fh)
        return data

    async def opendir(self, inode: int) -> pyfuse3.FileHandleT:
        return await self.operations.opendir(pyfuse3.InodeT(inode), CONTEXT)

    async def readdir(self, handle: int, start: int, room: int = ENDLESS) -> list[Listed]:
        reply = Reply(room)
        token = cast(pyfuse3.ReaddirToken, reply)
        await self.operations.readdir(pyfuse3.FileHandleT(handle), start, token)
        return reply.entries

    async def listing(self, inode: int, room: Callable[[], int] = lambda: ENDLESS) -> list[Listed]:
        """List a directory in answers of *room()* entries, until one is empty."""
        handle = await self.opendir(inode)
        found = await self.readdir(handle, 0, room())
        while entries := await self.readdir(handle, found[-1].after if found else 0, room()):
            found += entries
        await self.operations.releasedir(handle)
        return found

    async def names(self, *path: bytes) -> list[bytes]:
        return [entry.name for entry in await self.listing(await self.inode(*path))]

    async def xattrs(self, inode: int) -> dict[str, str]:
        names = await self.operations.listxattr(pyfuse3.InodeT(inode), CONTEXT)
        return {os.fsdecode(name): (await self.xattr(inode, name)).decode() for name in names}

    async def xattr(self, inode: int, name: bytes) -> bytes:
        return await self.operations.getxattr(pyfuse3.InodeT(inode), pyfuse3.XAttrNameT(name), CONTEXT)


@asynccontextmanager
async def mounted(
    world: World, *, only: str | None = None, owner: Ownership = OWNER
) -> AsyncIterator[tuple[Kernel, Mounted]]:
    async with open_mounted(world) as inner:
        operations = Operations(
            inner.tree,
            inner.reader,
            Attributes(owner),
            world.counters,
            lambda: {"answer": 42},
            None if only is None else inner.snapshots.named(only).id,
        )
        yield Kernel(operations), inner


# -- against a dict ----------------------------------------------------------------------------------

ITEMS = st.builds(
    Item,
    st.binary(max_size=40).map(lambda data: data * 17),
    st.sampled_from(["bin", "jpg", "tar.gz", "größe", "x" * 100]),
    st.integers(-9_000_000_000, 9_000_000_000).map(lambda seconds: seconds * SECOND + 123)
    | st.sampled_from([0, -1, SECOND]),
)
# Few places, so that dataranges meet, overlap and leave gaps; where inode numbers change their region;
# and the last keys there are.
FIRST_KEYS = (
    st.integers(0, 30)
    | st.integers(2**40 - 6, 2**40 + 3)
    | st.integers(2**62, 2**62 + 5)
    | st.integers(LAST_KEY - 9, LAST_KEY)
)


@dataclass(frozen=True)
class Commit:
    """A step: commit a datarange if its keys are free, else see it refused."""

    dataset: str
    first: int
    items: list[Item]


@dataclass(frozen=True)
class Remove:
    """A step: take one of the dataranges away."""

    number: int


STEPS = st.lists(
    st.builds(
        Commit, st.sampled_from(["a", "b-2", "C_3"]), FIRST_KEYS, st.lists(ITEMS, min_size=1, max_size=6)
    )
    | st.builds(Remove, st.integers(0, 100)),
    max_size=12,
)


class Twins:
    """A world and the dict it must look like."""

    def __init__(self, world: World, inner: Mounted) -> None:
        self.world = world
        self.inner = inner
        self.model: Model = {}

    async def make(self, step: Commit | Remove) -> None:
        if isinstance(step, Remove):
            await self._remove(step)
        elif step.first + len(step.items) - 1 <= LAST_KEY:
            await self._commit(step)
        await self.inner.snapshots.refresh()

    async def _commit(self, step: Commit) -> None:
        held = self.model.setdefault(step.dataset, {})
        items = dict(enumerate(step.items, step.first))
        if held.keys() & items.keys():
            with pytest.raises(Conflict):
                await commit(self.world, step.dataset, step.first, step.items)
            return
        await commit(self.world, step.dataset, step.first, step.items)
        held.update(items)

    async def _remove(self, step: Remove) -> None:
        if not self.world.catalog.committed:
            return
        dataranges = list(self.world.catalog.committed.values())
        gone = dataranges[step.number % len(dataranges)]
        held = self.model[self.world.catalog.all_datasets[gone.dataset_id].name]
        for key in range(gone.keys.start, gone.keys.stop):
            del held[key]
        self.world.catalog.remove(gone.id)


async def check_everything(kernel: Kernel, model: Model, rng: Random) -> None:
    seen = {ROOT}
    root = await kernel.listing(ROOT, lambda: rng.randint(1, 3))
    assert sorted(entry.name for entry in root) == sorted(name.encode() for name in model)
    for entry in root:
        found = await kernel.lookup(ROOT, entry.name)
        assert (found.st_ino, shown(found)) == (entry.inode, entry.attributes)
        assert shown(await kernel.getattr(entry.inode)) == entry.attributes
        seen.add(entry.inode)
        held = model[entry.name.decode()]
        listed = await kernel.listing(entry.inode, lambda: rng.randint(1, 8))
        assert [item.name for item in listed] == [name_of(key, held[key]) for key in sorted(held)]
        for item, key in zip(listed, sorted(held), strict=True):
            await check_datapoint(kernel, entry.inode, item, held[key], rng)
        seen |= {item.inode for item in listed}
    assert len(seen) == 1 + len(model) + sum(map(len, model.values())), "no inode number stands for two"


async def check_datapoint(kernel: Kernel, parent: int, listed: Listed, item: Item, rng: Random) -> None:
    assert without_generation(listed.attributes) == expected(item)
    found = await kernel.lookup(parent, listed.name)
    assert (found.st_ino, shown(found)) == (listed.inode, listed.attributes)
    assert shown(await kernel.getattr(listed.inode)) == listed.attributes
    assert await kernel.read(listed.inode) == item.content
    offset, size = rng.randrange(800), rng.randrange(800)
    assert await kernel.read(listed.inode, offset, size) == item.content[offset : offset + size]


async def check_absent(kernel: Kernel, model: Model, rng: Random) -> None:
    for name, held in model.items():
        parent = await kernel.inode(name.encode())
        for key in {0, 31, 2**40, LAST_KEY, *(k + d for k in held for d in (-1, 1))} - held.keys():
            with refused(errno.ENOENT):
                await kernel.lookup(parent, b"%020d.bin" % key)
        for key in rng.sample(sorted(held), min(3, len(held))):
            with refused(errno.ENOENT):
                await kernel.lookup(parent, b"%020d.other" % key)


@given(STEPS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
async def test_every_answer_is_that_of_a_dict(steps: list[Commit | Remove], rng: Random) -> None:
    world = await new_world()
    async with mounted(world) as (kernel, inner):
        twins = Twins(world, inner)
        for step in steps:
            await twins.make(step)
            if rng.random() < 0.5:
                await check_everything(kernel, twins.model, rng)
        await check_everything(kernel, twins.model, rng)
        await check_absent(kernel, twins.model, rng)
        figures = await kernel.operations.statfs(CONTEXT)
        assert figures.f_files == sum(map(len, twins.model.values()))


@given(STEPS, STEPS, st.data())
@settings(deadline=None, max_examples=60)
async def test_a_listing_resumed_after_a_change_neither_repeats_nor_skips(
    before: list[Commit | Remove], between: list[Commit | Remove], data: st.DataObject
) -> None:
    world = await new_world()
    async with mounted(world) as (kernel, inner):
        twins = Twins(world, inner)
        for step in [Commit("a", 5, [Item(b"")] * 3), *before]:
            await twins.make(step)
        old = sorted(twins.model["a"])
        handle = await kernel.opendir(await kernel.inode(b"a"))
        first = await kernel.readdir(handle, 0, data.draw(st.integers(1, 12), label="room"))
        if not first:
            return
        for step in between:
            await twins.make(step)
        # A listing may also go on from an earlier entry (seekdir), or be read again from there.
        at = data.draw(st.integers(0, len(first) - 1), label="go on after")
        new = twins.model["a"]
        for again in (
            await kernel.readdir(handle, first[at].after),
            await kernel.readdir(handle, first[at].after),
        ):
            assert [entry.name for entry in again] == [name_of(k, new[k]) for k in sorted(new) if k > old[at]]


@given(STEPS, STEPS, st.integers(1, 3))
@settings(deadline=None, max_examples=30)
async def test_a_listing_of_datasets_goes_on_after_a_change(
    before: list[Commit | Remove], between: list[Commit | Remove], room: int
) -> None:
    world = await new_world()
    async with mounted(world) as (kernel, inner):
        twins = Twins(world, inner)
        for step in before:
            await twins.make(step)
        handle = await kernel.opendir(ROOT)
        first = await kernel.readdir(handle, 0, room)
        for step in between:
            await twins.make(step)
        rest = await kernel.readdir(handle, first[-1].after if first else 0)
        names = [entry.name.decode() for entry in first + rest]
        assert sorted(names) == sorted(set(names)) == sorted(twins.model)


@pytest.mark.parametrize("room", [1, 2, 3, 7])
async def test_datasets_made_one_after_the_other_are_all_listed(room: int) -> None:
    world = await new_world()
    names = [f"set-{number}" for number in range(10)]
    ids = [(await world.dataset(name)).id for name in names]
    assert ids == list(range(ids[0], ids[0] + 10)), "neighbours: no offset is free between them"
    async with mounted(world) as (kernel, _):
        listed = await kernel.listing(ROOT, lambda: room)
    assert [entry.name.decode() for entry in listed] == names


async def test_long_listings_are_the_same_in_answers_of_any_length() -> None:
    rng = Random(5)
    held = {key: Item(b"x" * (key % 5), rng.choice(["a", "bc"]), key % 3 * SECOND) for key in range(5000)}
    world = await new_world()
    await commit(world, "photos", 0, [held[key] for key in range(3000)])
    await commit(world, "photos", 3000, [held[key] for key in range(3000, 5000)])
    async with mounted(world) as (kernel, _):
        inode = await kernel.inode(b"photos")
        whole = await kernel.listing(inode)
        assert [entry.name for entry in whole] == [name_of(key, held[key]) for key in range(5000)]
        assert [without_generation(entry.attributes) for entry in whole] == [expected(held[k]) for k in held]
        for longest in (2047, 2048, 2049, 3000):
            assert await kernel.listing(inode, partial(rng.randint, 1, longest)) == whole
        assert await kernel.listing(inode, lambda: 1999) == whole
    assert len(world.store.gets) == 2, "the two indices"


# -- what is not there, or not possible ---------------------------------------------------------------


@asynccontextmanager
async def small() -> AsyncIterator[tuple[World, Kernel, Mounted]]:
    """A mount of datasets "photos" (keys 5 to 7) and "empty"."""
    world = await new_world()
    await commit(world, "photos", 5, [Item(b"five", "jpg", 3 * SECOND), Item(b""), Item(b"seven" * 1000)])
    await world.dataset("empty")
    async with mounted(world) as (kernel, inner):
        yield world, kernel, inner


FIVE = b"00000000000000000005.jpg"
SEVEN = b"00000000000000000007.bin"


@pytest.mark.parametrize(
    "path",
    [
        [b"none"],
        [b"phot"],
        [b"Photos"],
        [b".Trash"],
        [b"\xff"],
        [b"photos\0"],
        [b"photos", b"00000000000000000004.bin"],
        [b"photos", b"00000000000000000008.bin"],
        [b"photos", b"00000000000000000005.png"],
        [b"photos", b"00000000000000000005.jpg~"],
        [b"photos", b"00000000000000000005.JPG"],
        [b"photos", b"00000000000000000005"],
        [b"photos", b"0000000000000000005.jpg"],
        [b"photos", b"+0000000000000000005.jpg"],
        [b"photos", b"09223372036854775808.jpg"],
        [b"photos", b"99999999999999999999.jpg"],
        [b"photos", b"00000000000000000005.\xff"],
        [b"photos", b".hidden"],
        [b"photos", b""],
        [b"empty", FIVE],
    ],
)
async def test_what_is_not_there_is_enoent_and_nothing_else(
    path: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with small() as (_, kernel, _):
        with refused(errno.ENOENT):
            await kernel.inode(*path)
    assert not caplog.records


@pytest.mark.parametrize(
    "inode", [0, 2**20, 1 << 40, 99 << 40 | 5, (1 << 62) - 1, (1 << 64) - 1, (1 << 22) << 40, 77 << 40]
)
async def test_an_inode_never_given_out_is_enoent(inode: int) -> None:
    async with small() as (_, kernel, _):
        for ask in (kernel.getattr, kernel.xattrs):
            with refused(errno.ENOENT):
                await ask(inode)


async def test_what_is_no_directory_or_no_file_is_refused() -> None:
    async with small() as (_, kernel, _):
        file, directory = await kernel.inode(b"photos", FIVE), await kernel.inode(b"photos")
        with refused(errno.ENOTDIR):
            await kernel.lookup(file, b"x")
        with refused(errno.ENOTDIR):
            await kernel.opendir(file)
        for inode in (ROOT, directory):
            with refused(errno.EISDIR):
                await kernel.open(inode)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC):
            with refused(errno.EROFS):
                await kernel.open(file, flags)


async def test_handles_that_are_not_open_are_refused() -> None:
    async with small() as (_, kernel, _):
        info = await kernel.open(await kernel.inode(b"photos", FIVE))
        assert info.keep_cache
        assert not info.direct_io
        await kernel.operations.release(info.fh)
        for handle in (info.fh, pyfuse3.FileHandleT(0)):
            with refused(errno.EBADF):
                await kernel.operations.read(handle, 0, 1)
        directory = await kernel.opendir(ROOT)
        await kernel.operations.releasedir(directory)
        with refused(errno.EBADF):
            await kernel.readdir(directory, 0)
        with refused(errno.ENOSYS):  # once; then the kernel asks no more
            await kernel.operations.flush(info.fh)


async def test_an_open_file_reads_on_when_its_datarange_has_gone() -> None:
    async with small() as (world, kernel, inner):
        info = await kernel.open(inode := await kernel.inode(b"photos", SEVEN))
        (datarange,) = world.catalog.committed.values()
        world.catalog.remove(datarange.id)
        await inner.snapshots.refresh()
        assert bytes(await kernel.operations.read(info.fh, 0, 99999)) == b"seven" * 1000
        with refused(errno.ENOENT):
            await kernel.getattr(inode)
        assert await kernel.names(b"photos") == []


async def test_a_key_that_comes_again_is_another_generation_of_its_inode() -> None:
    async with small() as (world, kernel, inner):
        before = await kernel.lookup(await kernel.inode(b"photos"), SEVEN)
        (datarange,) = world.catalog.committed.values()
        world.catalog.remove(datarange.id)
        await commit(world, "photos", 7, [Item(b"another seven")])
        await inner.snapshots.refresh()
        after = await kernel.lookup(await kernel.inode(b"photos"), SEVEN)
        assert after.st_ino == before.st_ino
        assert after.generation != before.generation
        assert await kernel.read(after.st_ino) == b"another seven"


async def test_a_datapoint_that_a_merge_has_moved_is_the_same_generation_of_its_inode() -> None:
    """Or the kernel would give EIO to everybody who has it open."""
    async with small() as (world, kernel, inner):
        await commit(world, "photos", 8, [Item(b"eight")])
        await inner.snapshots.refresh()
        folder = await kernel.inode(b"photos")
        before = await kernel.lookup(folder, SEVEN)
        async with open_indices(world.cache, world.stores, world.counters) as indices:
            compactor = Compactor(world.catalog, world.catalog, world.stores, indices)
            await compactor.aggregate("photos", Span(5, 9))
        await inner.snapshots.refresh()
        after = await kernel.lookup(folder, SEVEN)
        assert (after.st_ino, after.generation) == (before.st_ino, before.generation)
        listed = next(entry for entry in await kernel.listing(folder) if entry.name == SEVEN)
        assert listed.attributes["generation"] == before.generation


async def test_a_dataset_that_has_gone_is_enoent() -> None:
    async with small() as (world, kernel, inner):
        inode = await kernel.inode(b"empty")
        del world.catalog.all_datasets[inner.snapshots.named("empty").id]
        await inner.snapshots.refresh()
        assert await kernel.names() == [b"photos"]
        for ask in (kernel.getattr, kernel.listing, lambda _: kernel.lookup(ROOT, b"empty")):
            with refused(errno.ENOENT):
                await ask(inode)


# -- what is damaged --------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 3, 4, 100])
async def test_a_listing_shows_what_is_before_a_corrupt_datarange_and_then_fails(
    room: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = await new_world()
    await commit(world, "photos", 0, [Item(b"x")] * 3)
    corrupt = await commit(world, "photos", 10, [Item(b"y")] * 3)
    await commit(world, "photos", 20, [Item(b"z")] * 3)
    world.store.objects[corrupt.index_key] = b"junk"
    async with mounted(world) as (kernel, _):
        inode = await kernel.inode(b"photos")
        handle = await kernel.opendir(inode)
        found: list[Listed] = []
        while len(found) < 3:
            entries = await kernel.readdir(handle, found[-1].after if found else 0, room)
            assert entries
            found += entries
        assert [entry.name for entry in found] == [name_of(key, Item(b"")) for key in (0, 1, 2)]
        for _ in range(2):
            with refused(errno.EIO):
                await kernel.readdir(handle, found[-1].after, room)
        assert len(await kernel.readdir(handle, 13)) == 3, "who seeks beyond it finds the rest"
        for key, ending in ((0, b"x"), (21, b"z")):
            assert await kernel.read(await kernel.inode(b"photos", b"%020d.bin" % key)) == ending
        with refused(errno.EIO):
            await kernel.lookup(inode, b"%020d.bin" % 11)
    assert len(caplog.records) == 1
    assert corrupt.index_key in caplog.text


async def test_damaged_content_is_eio_and_one_line_that_names_object_and_datapoint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with small() as (world, kernel, _):
        (datarange,) = world.catalog.committed.values()
        body = world.store.objects[datarange.data_key]
        world.store.objects[datarange.data_key] = body.replace(b"five", b"fire")
        inode = await kernel.inode(b"photos", FIVE)
        for _ in range(3):
            with refused(errno.EIO):
                await kernel.read(inode)
        assert await kernel.read(await kernel.inode(b"photos", SEVEN)) == b"seven" * 1000
    (record,) = caplog.records
    assert datarange.data_key in record.getMessage()
    assert FIVE.decode() in record.getMessage()


# -- attributes, figures, extended attributes ---------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o137, 0o777])
async def test_modes_and_owners_are_those_asked_for(umask: int) -> None:
    owner = Ownership(uid=4_000_000_000, gid=7, umask=umask)
    world = await new_world()
    await commit(world, "photos", 0, [Item(b"abc")])
    async with mounted(world, owner=owner) as (kernel, _):
        directory = await kernel.inode(b"photos")
        for inode in (ROOT, directory):
            found = await kernel.getattr(inode)
            assert found.st_mode == stat.S_IFDIR | 0o555 & ~umask
            assert (found.st_uid, found.st_gid) == (owner.uid, owner.gid)
        (entry,) = await kernel.listing(directory)
        assert without_generation(entry.attributes) == expected(Item(b"abc"), owner)


async def test_directories_say_how_many_and_how_new_they_are() -> None:
    async with small() as (world, kernel, inner):
        photos, empty = (inner.snapshots.named(name) for name in ("photos", "empty"))
        root = await kernel.getattr(ROOT)
        assert root.st_nlink == 2 + 2, "itself, its entry, and the '..' of each dataset"
        assert root.st_mtime_ns == max(photos.updated_ns, empty.updated_ns)
        for dataset in (photos, empty):
            found = await kernel.lookup(ROOT, dataset.name.encode())
            assert found.st_nlink == 2
            assert found.st_mtime_ns == found.st_ctime_ns == dataset.updated_ns
        for found in (root, await kernel.lookup(ROOT, b"photos")):
            assert found.entry_timeout == found.attr_timeout == MOMENT
            assert found.st_size > 0
            assert found.st_blocks == -(-found.st_size // 512)
        await commit(world, "photos", 100, [Item(b"")])
        await inner.snapshots.refresh()
        assert (await kernel.getattr(ROOT)).st_mtime_ns > root.st_mtime_ns


async def test_statfs_tells_what_is_shown_and_that_nothing_is_free() -> None:
    async with small() as (world, kernel, _):
        figures = await kernel.operations.statfs(CONTEXT)
        stored = sum(len(body) for key, body in world.store.objects.items() if key.endswith(".tar"))
        assert figures.f_files == 3
        assert 0 <= figures.f_blocks * figures.f_frsize - stored < figures.f_frsize
        assert figures.f_bsize == figures.f_frsize == 4096
        assert [figures.f_bfree, figures.f_bavail, figures.f_ffree, figures.f_favail] == [0] * 4
        assert figures.f_namemax == 255


async def test_the_attributes_of_a_datapoint_lead_to_its_bytes() -> None:
    async with small() as (world, kernel, _):
        values = await kernel.xattrs(await kernel.inode(b"photos", FIVE))
        assert values == {
            "user.datas3t.key": "5",
            "user.datas3t.datarange": "5-7",
            "user.datas3t.object": next(key for key in world.store.objects if key.endswith(".tar")),
            "user.datas3t.offset": "512",
            "user.datas3t.size": "4",
            "user.datas3t.crc32c": f"{google_crc32c.value(b'five'):08x}",
            "user.datas3t.state": "committed",
        }
        body = world.store.objects[values["user.datas3t.object"]]
        assert body[512 : 512 + 4] == b"five"


async def test_a_checksum_nobody_knows_is_not_shown() -> None:
    world = await new_world()
    datarange = await commit(world, "photos", 0, [Item(b"abc")])
    world.store.objects[datarange.index_key] = bare_records(world, datarange)
    async with mounted(world) as (kernel, _):
        values = await kernel.xattrs(await kernel.inode(b"photos", b"00000000000000000000.bin"))
    assert values["user.datas3t.size"] == "3"
    assert "user.datas3t.crc32c" not in values


async def test_the_attributes_of_datasets_and_of_the_mount() -> None:
    async with small() as (world, kernel, _):
        stored = sum(len(body) for key, body in world.store.objects.items() if key.endswith(".tar"))
        assert await kernel.xattrs(await kernel.inode(b"photos")) == {
            "user.datas3t.bytes": str(stored),
            "user.datas3t.datapoints": "3",
            "user.datas3t.dataranges": "1",
            "user.datas3t.dataset": "photos",
        }
        assert await kernel.xattrs(ROOT) == {}
        assert json.loads(await kernel.xattr(ROOT, b"user.datas3t.stats")) == {"answer": 42}


@pytest.mark.parametrize("name", [b"security.capability", b"security.selinux", b"system.posix_acl_access"])
async def test_attributes_of_other_kinds_are_not_supported_as_ls_understands(name: bytes) -> None:
    async with small() as (_, kernel, _):
        for path in ([], [b"photos"], [b"photos", FIVE]):
            with refused(errno.EOPNOTSUPP):
                await kernel.xattr(await kernel.inode(*path), name)


@pytest.mark.parametrize("name", [b"user.datas3t.none", b"user.", b"user.\xff"])
async def test_attributes_that_are_not_there_are_said_to_be_absent(name: bytes) -> None:
    async with small() as (_, kernel, _):
        for path in ([], [b"photos"], [b"photos", FIVE]):
            with refused(errno.ENODATA):
                await kernel.xattr(await kernel.inode(*path), name)
        with refused(errno.ENODATA):  # the mount's figures are the root's alone
            await kernel.xattr(await kernel.inode(b"photos"), b"user.datas3t.stats")


# -- one dataset at the root --------------------------------------------------------------------------


async def test_one_dataset_alone_is_the_root() -> None:
    world = await new_world()
    held = {key: Item(bytes([key]) * key) for key in (3, 4, 5)}
    await commit(world, "photos", 3, list(held.values()))
    await commit(world, "other", 0, [Item(b"other")] * 50)
    async with mounted(world, only="photos") as (kernel, inner):
        listed = await kernel.listing(ROOT, lambda: 2)
        assert [entry.name for entry in listed] == [name_of(key, held[key]) for key in held]
        for entry, item in zip(listed, held.values(), strict=True):
            await check_datapoint(kernel, ROOT, entry, item, Random(1))
        root = await kernel.getattr(ROOT)
        assert (stat.S_ISDIR(root.st_mode), root.st_nlink) == (True, 2)
        assert root.st_mtime_ns == inner.snapshots.named("photos").updated_ns
        for name in (b"photos", b"other"):
            with refused(errno.ENOENT):
                await kernel.lookup(ROOT, name)
        with refused(errno.EISDIR):
            await kernel.open(ROOT)
        assert (await kernel.operations.statfs(CONTEXT)).f_files == 3
        assert (await kernel.xattrs(ROOT))["user.datas3t.dataset"] == "photos"
        assert b"answer" in await kernel.xattr(ROOT, b"user.datas3t.stats")


async def test_the_one_dataset_may_go_and_come_back() -> None:
    world = await new_world()
    await commit(world, "photos", 3, [Item(b"x")])
    async with mounted(world, only="photos") as (kernel, inner):
        dataset_id = inner.snapshots.named("photos").id
        gone = world.catalog.all_datasets.pop(dataset_id)
        await inner.snapshots.refresh()
        for ask in (kernel.getattr, kernel.listing, lambda _: kernel.operations.statfs(CONTEXT)):
            with refused(errno.ENOENT):
                await ask(ROOT)
        world.catalog.all_datasets[dataset_id] = dataclasses.replace(gone, version=gone.version + 1)
        await inner.snapshots.refresh()
        assert [entry.name for entry in await kernel.listing(ROOT)] == [b"00000000000000000003.bin"]


async def test_parallel_requests_do_not_disturb_each_other() -> None:
    world = await new_world()
    items = [Item(bytes([key]) * (key * 97)) for key in range(60)]
    await commit(world, "photos", 0, items)

    async def ask(kernel: Kernel, key: int) -> None:
        inode = await kernel.inode(b"photos", name_of(key, items[key]))
        assert await kernel.read(inode) == items[key].content
        assert len(await kernel.listing(await kernel.inode(b"photos"), lambda: 7)) == 60

    async with mounted(world) as (kernel, _), trio.open_nursery() as nursery:
        for key in range(60):
            nursery.start_soon(ask, kernel, key)

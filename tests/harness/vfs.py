"""Plays the kernel before the handlers of a mount that can be written to: paths, descriptors, references.

It asks as Linux does (lookup before open, create only for what is not there, flush at every close, release
at the last) and checks what Linux takes for granted: an inode number keeps its kind and generation for as
long as it is known, and nothing is asked about a number that was forgotten. Errors are OSError. Not for
page caches and timeouts: that is what the tests with a real mount are for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TypeVar, cast

import pyfuse3
import pytest
import trio

from datas3tfs.core.inodes import ROOT
from datas3tfs.core.prefetch import PrefetchLimits
from datas3tfs.engine.blocks import open_pool
from datas3tfs.engine.datasets import Datasets
from datas3tfs.engine.indices import open_indices
from datas3tfs.engine.loading import StoreBlocks
from datas3tfs.engine.prefetcher import open_prefetcher
from datas3tfs.engine.reader import Reader
from datas3tfs.engine.tree import Tree
from datas3tfs.fs.attributes import Attributes, Ownership
from datas3tfs.fs.readwrite import ReadWriteOperations, Writing
from tests.harness.world import SPEC
from tests.harness.writing import Host

T = TypeVar("T")
_CONTEXT = pyfuse3.RequestContext()
_ENDLESS = 1 << 40  # entries in an answer
_RELEASE_SECONDS = 0.005
PATIENCE = 10.0  # seconds


@dataclass
class Answer:
    """Stands for the buffer of a readdir: it takes *room* entries (name, inode number, offset after)."""

    vfs: Vfs
    room: int
    entries: list[tuple[str, int, int]] = field(default_factory=list)


def take(token: Answer, name: bytes, attributes: pyfuse3.EntryAttributes, after: int) -> bool:
    """Stand in for pyfuse3.readdir_reply, as the kernel does for READDIRPLUS."""
    if len(token.entries) == token.room:
        return False
    assert -(2**63) <= after < 2**63, "an off_t"
    token.vfs.told(attributes)
    token.entries.append((os.fsdecode(name), attributes.st_ino, after))
    return True


def patch_replies(patch: pytest.MonkeyPatch) -> None:
    """Let the handlers' listings go into `Answer`s."""
    patch.setattr(pyfuse3, "readdir_reply", take)


@dataclass(slots=True)
class _File:
    """What a descriptor (or several) stands for."""

    inode: int
    fh: pyfuse3.FileHandleT
    flags: int
    descriptors: int = 1


@dataclass(slots=True)
class _Node:
    lookups: int
    generation: int
    kind: int  # S_IFMT of its mode


class Vfs:
    """The kernel. Paths are "dataset/name"."""

    def __init__(self, operations: ReadWriteOperations) -> None:
        self.operations = operations
        self.nodes: dict[int, _Node] = {}
        self._files: dict[int, _File] = {}
        self._opens: Counter[int] = Counter()  # by inode
        self._last = 2

    # -- what the kernel remembers -------------------------------------------------------------------

    def told(self, attributes: pyfuse3.EntryAttributes) -> int:
        """Take in an answer that names an inode; return its number."""
        inode, kind = attributes.st_ino, stat.S_IFMT(attributes.st_mode)
        assert inode != ROOT
        node = self.nodes.setdefault(inode, _Node(0, attributes.generation, kind))
        assert (node.generation, node.kind) == (attributes.generation, kind), "fuse_make_bad"
        node.lookups += 1
        return inode

    async def forget(self) -> None:
        """Drop everything that nobody has open, as under memory pressure."""
        dropped = [inode for inode in self.nodes if not self._opens[inode]]
        lookups = [(pyfuse3.InodeT(inode), self.nodes.pop(inode).lookups) for inode in dropped]
        await self.operations.forget(lookups)

    async def lookup(self, parent: int, name: str) -> pyfuse3.EntryAttributes:
        """Look a name up."""
        found = await _asked(self.operations.lookup(pyfuse3.InodeT(parent), _bytes(name), _CONTEXT))
        self.told(found)
        return found

    async def walk(self, path: str) -> tuple[pyfuse3.InodeT, str]:
        """Return the inode of the directory of *path*, and the last name in it."""
        directory, _, name = path.rpartition("/")
        if not directory:
            return ROOT, name
        return (await self.lookup(ROOT, directory)).st_ino, name

    async def inode(self, path: str) -> pyfuse3.InodeT:
        """Look a whole path up; the root is ""."""
        if not path:
            return ROOT
        parent, name = await self.walk(path)
        return (await self.lookup(parent, name)).st_ino

    # -- descriptors -----------------------------------------------------------------------------------

    async def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        """Open a file; return a descriptor."""
        parent, name = await self.walk(path)
        try:
            found = await self.lookup(parent, name)
        except OSError as exc:
            if exc.errno != errno.ENOENT or not flags & os.O_CREAT:
                raise
            return await self._create(parent, name, flags)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST)
        return await self.open_inode(found.st_ino, flags & ~os.O_CREAT)

    async def open_inode(self, inode: int, flags: int) -> int:
        """Open what a path led to earlier: a name that is still believed, or /proc/self/fd."""
        assert inode in self.nodes, "forgotten"
        info = await _asked(self.operations.open(pyfuse3.InodeT(inode), pyfuse3.FlagT(flags), _CONTEXT))
        return self._opened(inode, info, flags)

    async def _create(self, parent: int, name: str, flags: int) -> int:
        request = self.operations.create(
            pyfuse3.InodeT(parent), _bytes(name), pyfuse3.ModeT(0o644), pyfuse3.FlagT(flags), _CONTEXT
        )
        info, attributes = await _asked(request)
        return self._opened(self.told(attributes), info, flags)

    def _opened(self, inode: int, info: pyfuse3.FileInfo, flags: int) -> int:
        assert info.keep_cache
        self._last += 1
        self._files[self._last] = _File(inode, info.fh, flags)
        self._opens[inode] += 1
        return self._last

    def dup(self, descriptor: int) -> int:
        """Return another descriptor of the same file."""
        self._last += 1
        self._files[self._last] = self._files[descriptor]
        self._files[descriptor].descriptors += 1
        return self._last

    async def close(self, descriptor: int, later: trio.Nursery | None = None) -> None:
        """Close a descriptor; what flush says is what close() returns. The kernel releases the file *later*,
        which nobody waits for."""
        file = self._files.pop(descriptor)
        file.descriptors -= 1
        try:
            await _asked(self.operations.flush(file.fh))
        finally:
            if not file.descriptors:
                if later is None:
                    await self._release(file)
                else:
                    later.start_soon(self._release, file, _RELEASE_SECONDS)

    async def _release(self, file: _File, after: float = 0) -> None:
        await trio.sleep(after)
        self._opens[file.inode] -= 1
        await _asked(self.operations.release(file.fh))

    async def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        """Read."""
        file = self._files[descriptor]
        return bytes(await _asked(self.operations.read(file.fh, offset, size)))

    async def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        """Write, at most 128 KiB in a request; with O_APPEND at the end; with O_SYNC what follows."""
        file = self._files[descriptor]
        if file.flags & os.O_APPEND:
            offset = (await self.fstat(descriptor)).st_size
        for at in range(0, len(data), 1 << 17):
            piece = data[at : at + (1 << 17)]
            assert await _asked(self.operations.write(file.fh, offset + at, piece)) == len(piece)
        if file.flags & os.O_DSYNC:
            await self.fsync(descriptor)
        return len(data)

    async def fsync(self, descriptor: int) -> None:
        """Sync."""
        await _asked(self.operations.fsync(self._files[descriptor].fh, False))

    async def fstat(self, descriptor: int) -> pyfuse3.EntryAttributes:
        """Ask what an open file looks like."""
        return await self.getattr(self._files[descriptor].inode)

    async def getattr(self, inode: int) -> pyfuse3.EntryAttributes:
        """Ask what an inode looks like."""
        assert inode == ROOT or inode in self.nodes, "forgotten"
        found = await _asked(self.operations.getattr(pyfuse3.InodeT(inode), _CONTEXT))
        assert found.st_ino == inode
        return found

    async def setattr(
        self, path: str, *, fd: int | None = None, size: int | None = None, mtime_ns: int | None = None
    ) -> pyfuse3.EntryAttributes:
        """Truncate and set times, by path or by descriptor; with neither it is a chmod."""
        inode = await self.inode(path) if fd is None else self._files[fd].inode
        wanted = pyfuse3.EntryAttributes()
        wanted.st_size, wanted.st_mtime_ns = size or 0, mtime_ns or 0
        fields = SimpleNamespace(
            update_size=size is not None, update_mtime=mtime_ns is not None, update_mode=True
        )
        request = self.operations.setattr(
            pyfuse3.InodeT(inode),
            wanted,
            cast(pyfuse3.SetattrFields, fields),
            None if fd is None else self._files[fd].fh,
            _CONTEXT,
        )
        found = await _asked(request)
        assert found.st_ino == inode
        return found

    # -- names -----------------------------------------------------------------------------------------

    async def stat(self, path: str) -> pyfuse3.EntryAttributes:
        """Ask what a path looks like."""
        return await self.getattr(await self.inode(path))

    async def read(self, path: str) -> bytes:
        """Return the whole content of a file."""
        descriptor = await self.open(path)
        try:
            return await self.pread(descriptor, (await self.fstat(descriptor)).st_size + 1, 0)
        finally:
            await self.close(descriptor)

    async def put(self, path: str, content: bytes) -> None:
        """Write a whole file."""
        descriptor = await self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        await self.pwrite(descriptor, content, 0)
        await self.close(descriptor)

    async def unlink(self, path: str) -> None:
        """Remove a file."""
        parent, name = await self.walk(path)
        await self.lookup(parent, name)
        await _asked(self.operations.unlink(parent, _bytes(name), _CONTEXT))

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Rename a file."""
        (source, old_name), (target, new_name) = await self.walk(old), await self.walk(new)
        moved = await self.lookup(source, old_name)
        try:
            there = (await self.lookup(target, new_name)).st_ino
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
            there = None
        if there is not None and flags & pyfuse3.RENAME_NOREPLACE:
            raise _error(errno.EEXIST)
        if there == moved.st_ino:
            return
        request = self.operations.rename(
            source, _bytes(old_name), target, _bytes(new_name), pyfuse3.FlagT(flags), _CONTEXT
        )
        await _asked(request)

    async def mkdir(self, path: str) -> None:
        """Make a directory."""
        parent, name = await self.walk(path)
        made = await _asked(self.operations.mkdir(parent, _bytes(name), pyfuse3.ModeT(0o755), _CONTEXT))
        self.told(made)

    async def rmdir(self, path: str) -> None:
        """Remove a directory."""
        parent, name = await self.walk(path)
        await self.lookup(parent, name)
        await _asked(self.operations.rmdir(parent, _bytes(name), _CONTEXT))

    async def listdir(self, path: str, room: int = _ENDLESS) -> list[str]:
        """Return the names in a directory, asked for in answers of *room* entries."""
        return [name for name, _, _ in await self.scandir(path, room)]

    async def scandir(self, path: str, room: int = _ENDLESS, start: int = 0) -> list[tuple[str, int, int]]:
        """Return (name, inode number, offset after) of what is in a directory from offset *start* on."""
        handle = await _asked(self.operations.opendir(await self.inode(path), _CONTEXT))
        found: list[tuple[str, int, int]] = []
        while True:
            answer = Answer(self, room)
            await _asked(self.operations.readdir(handle, start, cast(pyfuse3.ReaddirToken, answer)))
            if not answer.entries:
                break
            found += answer.entries
            start = found[-1][2]
        await self.operations.releasedir(handle)
        return found

    async def fsyncdir(self, path: str) -> None:
        """Sync a directory."""
        handle = await _asked(self.operations.opendir(await self.inode(path), _CONTEXT))
        await _asked(self.operations.fsyncdir(handle, False))
        await self.operations.releasedir(handle)

    async def xattrs(self, path: str) -> dict[str, str]:
        """Return all extended attributes, without what their names have in common."""
        inode = await self.inode(path)
        names = await _asked(self.operations.listxattr(inode, _CONTEXT))
        values = [await _asked(self.operations.getxattr(inode, name, _CONTEXT)) for name in names]
        return {
            os.fsdecode(name).removeprefix("user.datas3t."): value.decode()
            for name, value in zip(names, values, strict=True)
        }

    async def setxattr(self, path: str, name: str) -> None:
        """Set an extended attribute."""
        inode = await self.inode(path)
        await _asked(self.operations.setxattr(inode, pyfuse3.XAttrNameT(os.fsencode(name)), b"1", _CONTEXT))

    async def statfs(self) -> pyfuse3.StatvfsData:
        """Ask how full it is."""
        return await _asked(self.operations.statfs(_CONTEXT))


async def _asked(request: Awaitable[T]) -> T:
    try:
        return await request
    except pyfuse3.FUSEError as exc:
        raise _error(exc.errno) from exc


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _bytes(name: str) -> pyfuse3.FileNameT:
    return pyfuse3.FileNameT(os.fsencode(name))


@asynccontextmanager
async def open_vfs(
    host: Host, *, only: str | None = None, fsync_commits: bool = True, owner: Ownership | None = None
) -> AsyncIterator[Vfs]:
    """Put the handlers on *host*, and the kernel on them."""
    world = host.world
    async with (
        open_indices(world.cache, world.stores, world.counters, PATIENCE) as indices,
        open_pool(StoreBlocks(world.stores), 64 << 20, world.counters) as pool,
        open_prefetcher(pool, indices, PrefetchLimits()) as prefetcher,
    ):
        tree = Tree(host.snapshots, indices)
        operations = ReadWriteOperations(
            tree,
            Reader(tree, pool, prefetcher, PATIENCE, world.counters),
            Attributes(owner or Ownership(0, 0, 0o022), writable=True),
            host.counters,
            dict,
            None if only is None else host.snapshots.named(only).id,
            Writing(
                host.journal,
                host.committer,
                Datasets(host.catalog, host.snapshots, SPEC.name, PATIENCE),
                fsync_commits,
            ),
        )
        yield Vfs(operations)

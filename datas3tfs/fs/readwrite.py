"""The requests of a mount that can be written to: uncommitted files come from the journal, and go there.

What is committed is the base class's. Names are looked up in the journal first: there an entry stays until
this mount's snapshot shows the datarange that it has become. Not for what writing means (engine/journal.py)
nor for when things are committed (engine/committer.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyfuse3

from datas3tfs.core.counters import Counters
from datas3tfs.core.inodes import ROOT, DatapointNode, DatasetNode, RootNode
from datas3tfs.core.model import Dataset, DatasetId
from datas3tfs.engine.committer import Committer
from datas3tfs.engine.datasets import Datasets
from datas3tfs.engine.entries import Entry, EntryState, OpenEntry
from datas3tfs.engine.journal import Journal
from datas3tfs.engine.reader import Reader
from datas3tfs.engine.tree import Tree
from datas3tfs.errors import Conflict, Forbidden, NotFound
from datas3tfs.fs.attributes import Attributes
from datas3tfs.fs.committing import Flush, committing
from datas3tfs.fs.errnos import answers_errno
from datas3tfs.fs.known import KnownEntries
from datas3tfs.fs.merging import MergedListing
from datas3tfs.fs.operations import Operations, ReadNode
from datas3tfs.fs.pages import RefusedPages
from datas3tfs.fs.requests import is_synchronous, is_writable, new_name
from datas3tfs.fs.xattrs import FLUSH, entry_xattrs

_SECOND = 1_000_000_000
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Writing:
    """What writing needs. *fsync_commits*: fsync means committed, not merely safe on this machine's disk."""

    journal: Journal
    committer: Committer
    datasets: Datasets
    fsync_commits: bool


class ReadWriteOperations(Operations):
    """The handlers of a mount that can be written to."""

    def __init__(
        self,
        tree: Tree,
        reader: Reader,
        attributes: Attributes,
        counters: Counters,
        stats: Callable[[], dict[str, object]],
        only: DatasetId | None,
        writing: Writing,
    ) -> None:
        super().__init__(tree, reader, attributes, counters, stats, only)
        self._journal = writing.journal
        self._entries = writing.journal.entries
        self._committer = writing.committer
        self._flush = Flush(writing.committer)
        self._datasets = writing.datasets
        self._fsync_commits = writing.fsync_commits
        self.refused = RefusedPages()
        self._known = KnownEntries()
        self._listing = MergedListing(tree, attributes, self._inodes, self._entries, self._known)

    # -- looking things up -------------------------------------------------------------------------

    async def _file_named(self, dataset_id: DatasetId, name: str) -> pyfuse3.EntryAttributes:
        entry = self._entries.named(dataset_id, name)
        return self._tell(entry) if entry is not None else await super()._file_named(dataset_id, name)

    @answers_errno
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = self._entry_or_node(inode)
        if isinstance(entry, Entry):
            self._counters.add("fuse.getattr")
            return self._attributes.entry(entry, inode)
        return await super().getattr(inode, ctx)

    @answers_errno
    async def access(self, inode: pyfuse3.InodeT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext) -> bool:
        """Asked only if the kernel does not look at modes itself, as whoever gets here may do all that
        the owner may (app/mount.py)."""
        self._counters.add("fuse.access")
        return not mode & os.X_OK or isinstance(self._entry_or_node(inode), RootNode | DatasetNode)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for inode, lookups in inode_list:
            entry = self._inodes.entry(inode)
            if entry is not None:
                self._known.forgotten(entry, lookups)

    # -- files -------------------------------------------------------------------------------------

    @answers_errno
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._counters.add("fuse.create")
        dataset, text = self._dataset_at(parent_inode), new_name(name)
        entry = self._entries.named(dataset.id, text)
        if entry is None:
            entry = await self._journal.create(dataset, text)
            handle = OpenEntry(entry, True, is_synchronous(flags))  # writable: who made it, closes it
        elif flags & os.O_EXCL:
            raise Conflict(f"{text}: it exists already")
        else:
            handle = await self._opened(entry, flags)
        return pyfuse3.FileInfo(fh=self._files.add(handle), keep_cache=True), self._tell(entry)

    @answers_errno
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        node = self._entry_or_node(inode)
        self._counters.add("fuse.open")
        if isinstance(node, Entry) and not node.linked and not node.handles:
            if node.state is not EntryState.COMMITTED:
                raise NotFound(f"{node.name}: it was removed meanwhile")
        elif isinstance(node, Entry):
            return pyfuse3.FileInfo(fh=self._files.add(await self._opened(node, flags)), keep_cache=True)
        if not isinstance(node, Entry | DatapointNode):
            raise pyfuse3.FUSEError(errno.EISDIR)
        if is_writable(flags) or flags & os.O_TRUNC:
            raise Forbidden("it is committed, and datapoints never change")
        assert node.key is not None
        return await self._open_datapoint(node.dataset_id, node.key)

    async def _opened(self, entry: Entry, flags: int) -> OpenEntry:
        writable = is_writable(flags)
        if writable or flags & os.O_TRUNC:
            await self._journal.settled(entry)
        self._journal.opened(entry, writable=writable)
        if flags & os.O_TRUNC and entry.size:
            try:
                await self._journal.truncate(entry, 0)
            except BaseException:
                await self._journal.closed(entry, writable=writable)
                raise
        return OpenEntry(entry, writable, is_synchronous(flags))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        file = self._files.get(fh)
        if isinstance(file, OpenEntry):
            return await self._read_entry(file.entry, off, size)
        return await super().read(fh, off, size)

    @answers_errno
    async def _read_entry(self, entry: Entry, off: int, size: int) -> bytes:
        self._counters.add("fuse.read")
        data = self._journal.read(entry, off, size)
        self._counters.add("fuse.read_bytes", len(data))
        return data

    @answers_errno
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        self._counters.add("fuse.write")
        file = self._files.get(fh)
        if not isinstance(file, OpenEntry) or not file.writable:
            raise pyfuse3.FUSEError(errno.EBADF)
        try:
            await self._journal.write(file.entry, off, buf)
        except Forbidden:
            self.refused.add(self._number(file.entry))
            raise
        file.owes_sync = file.synchronous
        self._counters.add("fuse.write_bytes", len(buf))
        return len(buf)

    @answers_errno
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """close() waits for this: what was written is safe when it returns."""
        self._counters.add("fuse.flush")
        file = self._files.get(fh)
        if isinstance(file, OpenEntry) and file.writable:
            await self._journal.accept(file.entry)

    @answers_errno
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        file = self._files.get(fh)
        self._files.close(fh)
        if isinstance(file, OpenEntry):
            await self._journal.closed(file.entry, writable=file.writable)

    @answers_errno
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Commit; or, if it is part of a write with O_SYNC, make that safe here: committed, there could be
        no second write."""
        self._counters.add("fuse.fsync")
        file = self._files.get(fh)
        if not isinstance(file, OpenEntry) or not file.entry.linked:
            return
        owed, file.owes_sync = file.owes_sync, False
        if owed or file.entry.key is None or not self._fsync_commits:
            await self._journal.sync(file.entry)
        else:
            await self._journal.accept(file.entry)
            await committing(self._committer.commit([file.entry]))

    @answers_errno
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        self._counters.add("fuse.fsyncdir")
        node = self._directories.get(fh)
        if not self._fsync_commits:
            await self._journal.sync_all()
        else:
            of = node.dataset_id if isinstance(node, DatasetNode) else None
            await committing(self._committer.commit_closed(of))

    @answers_errno
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Sizes and times are kept. Modes and owners are the mount's: setting them does nothing."""
        self._counters.add("fuse.setattr")
        node = self._entry_or_node(inode)
        if isinstance(node, Entry) and (fields.update_size or fields.update_mtime):
            with suppress(Forbidden):
                await self._journal.settled(node)
        if isinstance(node, Entry) and node.state is not EntryState.COMMITTED:
            if fields.update_size:
                await self._journal.truncate(node, attr.st_size)
            if fields.update_mtime:
                await self._journal.touch(node, attr.st_mtime_ns)
            await self._journal.accept_unless_open(node)
            return self._attributes.entry(node, inode)
        found = await self.getattr(inode, ctx)
        if isinstance(node, Entry | DatapointNode):
            moved = fields.update_mtime and attr.st_mtime_ns // _SECOND != found.st_mtime_ns // _SECOND
            if fields.update_size or moved:
                raise Forbidden("it is committed, and datapoints never change")
        return found

    # -- names -------------------------------------------------------------------------------------

    @answers_errno
    async def unlink(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        self._counters.add("fuse.unlink")
        dataset = self._dataset_at(parent_inode)
        await self._journal.unlink(await self._uncommitted(dataset.id, os.fsdecode(name)))

    @answers_errno
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self._counters.add("fuse.rename")
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise pyfuse3.FUSEError(errno.EINVAL)
        source, target = self._dataset_at(parent_inode_old), self._dataset_at(parent_inode_new)
        old, new = os.fsdecode(name_old), new_name(name_new)
        entry = await self._uncommitted(source.id, old)
        try:
            await self._uncommitted(target.id, new)
        except NotFound:
            pass
        else:
            if flags & pyfuse3.RENAME_NOREPLACE:
                raise Conflict(f"{new}: it exists already")
        await self._journal.rename(entry, target, new)

    async def _uncommitted(self, dataset_id: DatasetId, name: str) -> Entry:
        """Return an uncommitted file. Raises Forbidden if it is committed, NotFound."""
        entry = self._entries.named(dataset_id, name)
        if entry is None:
            await self._tree.lookup(dataset_id, name)
            raise Forbidden(f"{name}: it is committed, and datapoints never change")
        return entry

    @answers_errno
    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        self._counters.add("fuse.mkdir")
        if not isinstance(self._entry_or_node(parent_inode), RootNode):
            raise Forbidden("a dataset has no directories")
        dataset = await self._datasets.create(os.fsdecode(name))
        return self._attributes.dataset(dataset, self.dataset_inode(dataset))

    @answers_errno
    async def rmdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        self._counters.add("fuse.rmdir")
        if not isinstance(self._entry_or_node(parent_inode), RootNode):
            await self._tree.lookup(self._dataset_at(parent_inode).id, os.fsdecode(name))
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        dataset = self._tree.dataset_named(os.fsdecode(name))
        if not self._entries.is_empty(dataset.id):
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        try:
            await self._journal.leases.release_unused(dataset.id)
            await self._datasets.remove(dataset)
        except Conflict:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY) from None

    @answers_errno
    async def mknod(self, *_: object) -> pyfuse3.EntryAttributes:
        raise Forbidden("only files that are opened when they are created, and no devices")

    @answers_errno
    async def symlink(self, *_: object) -> pyfuse3.EntryAttributes:
        raise Forbidden("a dataset has no links")

    @answers_errno
    async def link(self, *_: object) -> pyfuse3.EntryAttributes:
        raise Forbidden("a dataset has no links")

    # -- the rest ----------------------------------------------------------------------------------

    @answers_errno
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """What is free is the journal's room: so much can be written before it must be committed."""
        figures = await super().statfs(ctx)
        free = self._journal.quota.free // _BLOCK
        figures.f_bfree = figures.f_bavail = free
        figures.f_blocks += free
        figures.f_files += len(self._entries)
        return figures

    @answers_errno
    async def setxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        """Setting FLUSH on the root is how `datas3tfs flush` asks for a commit."""
        if os.fsdecode(name) != FLUSH or inode != ROOT:
            raise pyfuse3.FUSEError(errno.ENOTSUP)
        await self._flush()

    async def _xattrs(self, inode: int) -> dict[str, str]:
        node = self._entry_or_node(inode)
        if isinstance(node, Entry):
            if node.linked or node.key is None or node.state is not EntryState.COMMITTED:
                return entry_xattrs(node)
            inode = self._inodes.datapoint(node.dataset_id, node.key)  # what it has become
        return await super()._xattrs(inode) | (self._flush.xattrs() if inode == ROOT else {})

    # -- nodes -------------------------------------------------------------------------------------

    def _entry_or_node(self, inode: int) -> Entry | ReadNode:
        number = self._inodes.entry(inode)
        if number is None:
            return self._node(inode)
        entry = self._known.get(number)
        if entry is None:
            raise NotFound(f"inode {inode} is unknown")
        return entry

    def _dataset_at(self, inode: int) -> Dataset:
        """Return the dataset whose directory *inode* is. Raises Forbidden for the root."""
        node = self._entry_or_node(inode)
        if isinstance(node, RootNode):
            raise Forbidden("files belong into a dataset's directory: make one with mkdir")
        if not isinstance(node, DatasetNode):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return self._tree.dataset(node.dataset_id)

    def _number(self, entry: Entry) -> int:
        return self._inodes.uncommitted(entry.id)

    def _tell(self, entry: Entry) -> pyfuse3.EntryAttributes:
        self._known.told(entry)
        return self._attributes.entry(entry, self._number(entry))

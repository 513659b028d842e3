"""Every FUSE request the kernel sends, translated to the tree and the reader and back.

Read-only: the kernel itself answers EROFS to writes because the mount is `ro`; readwrite.py adds what
a mount that can be written to does. Inode numbers are
computed (core/inodes.py), so lookup counts need no keeping and `forget` has nothing to do.
All handlers run on the event loop; none blocks it but for the making of one listing answer.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence

import pyfuse3

from datas3tfs.core.counters import Counters
from datas3tfs.core.inodes import ROOT, DatapointNode, DatasetNode, EntryNode, Inodes, RootNode
from datas3tfs.core.model import Dataset, DatasetId
from datas3tfs.core.names import NAME_LIMIT
from datas3tfs.engine.entries import OpenEntry
from datas3tfs.engine.reader import Reader
from datas3tfs.engine.tree import OpenDatapoint, Tree
from datas3tfs.errors import Invalid, NotFound
from datas3tfs.fs.attributes import Attributes
from datas3tfs.fs.errnos import answers_errno
from datas3tfs.fs.handles import Handles
from datas3tfs.fs.listing import Listing
from datas3tfs.fs.pushing import Pusher
from datas3tfs.fs.xattrs import STATS, datapoint_xattrs, dataset_xattrs

_STATFS_BLOCK = 4096


ReadNode = RootNode | DatasetNode | DatapointNode


class Operations(pyfuse3.Operations):
    """The handlers. *only*, if given, is the dataset shown at the root instead of all of them."""

    def __init__(
        self,
        tree: Tree,
        reader: Reader,
        attributes: Attributes,
        counters: Counters,
        stats: Callable[[], dict[str, object]],
        only: DatasetId | None = None,
    ) -> None:
        super().__init__()
        self._tree = tree
        self._reader = reader
        self._attributes = attributes
        self._counters = counters
        self._stats = stats
        self._only = only
        self._inodes = Inodes()
        self._listing = Listing(tree, attributes, self._inodes)
        self._files: Handles[OpenDatapoint | OpenEntry] = Handles()
        self._directories: Handles[ReadNode] = Handles()
        self.pusher = Pusher(self._inodes.datapoints, counters)

    # -- looking things up -------------------------------------------------------------------------

    @answers_errno
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._counters.add("fuse.lookup")
        parent, text = self._node(parent_inode), os.fsdecode(name)
        if isinstance(parent, DatasetNode):
            return await self._file_named(parent.dataset_id, text)
        if isinstance(parent, RootNode):
            dataset = self._tree.dataset_named(text)
            return self._attributes.dataset(dataset, self._inodes.number(DatasetNode(dataset.id)))
        raise pyfuse3.FUSEError(errno.ENOTDIR)

    async def _file_named(self, dataset_id: DatasetId, name: str) -> pyfuse3.EntryAttributes:
        """Return the attributes of a file of a dataset. Raises NotFound, Corrupt, Unavailable."""
        file = await self._tree.lookup(dataset_id, name)
        return self._attributes.datapoint(file, self._inode_of(file))

    @answers_errno
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        self._counters.add("fuse.getattr")
        node = self._node(inode)
        if isinstance(node, RootNode):
            return self._attributes.root(self._tree.datasets(), inode)
        if isinstance(node, DatasetNode):
            return self._attributes.dataset(self._tree.dataset(node.dataset_id), inode)
        return self._attributes.datapoint(await self._tree.locate(node.dataset_id, node.key), inode)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Nothing to do: inode numbers are computed."""

    # -- listing -----------------------------------------------------------------------------------

    @answers_errno
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        self._counters.add("fuse.opendir")
        node = self._node(inode)
        if isinstance(node, DatapointNode):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return self._directories.add(node)

    @answers_errno
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        self._counters.add("fuse.readdir")
        node = self._directories.get(fh)
        if isinstance(node, DatasetNode):
            await self._listing.datapoints(node.dataset_id, start_id, token)
        else:
            self._listing.datasets(start_id, token)

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._directories.close(fh)

    # -- reading -----------------------------------------------------------------------------------

    @answers_errno
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        self._counters.add("fuse.open")
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        node = self._node(inode)
        if not isinstance(node, DatapointNode):
            raise pyfuse3.FUSEError(errno.EISDIR)
        return await self._open_datapoint(node.dataset_id, node.key)

    async def _open_datapoint(self, dataset_id: DatasetId, key: int) -> pyfuse3.FileInfo:
        file = await self._tree.locate(dataset_id, key)
        if not file.entry.size:  # no read will come that could notice a lie
            await self._reader.check_empty(file)
        self.pusher.opened(self._inode_of(file))
        self._reader.expect(file)
        return pyfuse3.FileInfo(fh=self._files.add(file), keep_cache=True)

    @answers_errno
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        self._counters.add("fuse.read")
        file = self._files.get(fh)
        if not isinstance(file, OpenDatapoint):
            raise pyfuse3.FUSEError(errno.EBADF)
        data = await self._reader.read(file, off, size)
        self._counters.add("fuse.read_bytes", len(data))
        return data  # type: ignore[return-value]  # pyfuse3 takes any buffer; a view saves the copy

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing to flush: told so once, the kernel spares us a request for every close."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._files.close(fh)

    # -- the rest ----------------------------------------------------------------------------------

    @answers_errno
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Real figures: bytes and datapoints of what is shown, and nothing free, as it is read-only."""
        shown = self._tree.datasets() if self._only is None else [self._tree.dataset(self._only)]
        figures = pyfuse3.StatvfsData()
        figures.f_bsize = figures.f_frsize = _STATFS_BLOCK
        figures.f_blocks = -(-sum(dataset.total_bytes for dataset in shown) // _STATFS_BLOCK)
        figures.f_files = sum(dataset.datapoints for dataset in shown)
        figures.f_bfree = figures.f_bavail = figures.f_ffree = figures.f_favail = 0
        figures.f_namemax = NAME_LIMIT
        return figures

    @answers_errno
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        text = os.fsdecode(name)
        if text == STATS and inode == ROOT:
            return json.dumps(self._stats()).encode()
        values = await self._xattrs(inode) if text.startswith("user.") else {}
        if text not in values:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return values[text].encode()

    @answers_errno
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        return [pyfuse3.XAttrNameT(os.fsencode(name)) for name in await self._xattrs(inode)]

    async def _xattrs(self, inode: int) -> dict[str, str]:
        node = self._node(inode)
        if isinstance(node, RootNode):
            return {}
        if isinstance(node, DatasetNode):
            return dataset_xattrs(self._tree.dataset(node.dataset_id))
        return datapoint_xattrs(await self._tree.locate(node.dataset_id, node.key))

    # -- inodes ------------------------------------------------------------------------------------

    def _node(self, inode: int) -> ReadNode:
        if inode == ROOT and self._only is not None:
            return DatasetNode(self._only)
        try:
            node = self._inodes.node(inode)
        except Invalid as exc:
            raise NotFound(str(exc)) from None
        if isinstance(node, EntryNode):
            raise NotFound(f"inode {inode} is unknown")
        return node

    def _inode_of(self, file: OpenDatapoint) -> int:
        return self._inodes.datapoint(file.dataset.id, file.entry.key)

    def dataset_inode(self, dataset: Dataset) -> int:
        """Return the inode number under which the kernel knows a dataset's directory."""
        return ROOT if dataset.id == self._only else self._inodes.number(DatasetNode(dataset.id))

    def datapoint_inodes(self, dataset: Dataset, first: int, count: int) -> Sequence[int]:
        """Return the inode numbers under which the kernel knows *count* datapoints from *first* on."""
        return self._inodes.datapoints(dataset.id, first, count)

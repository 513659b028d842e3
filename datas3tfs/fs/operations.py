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
from collections import OrderedDict
from collections.abc import Callable, Sequence

import pyfuse3

from datas3tfs.core.announcing import DIRECTORY, LINK
from datas3tfs.core.counters import Counters
from datas3tfs.core.inodes import ROOT, ControlNode, DatapointNode, DatasetNode, EntryNode, Inodes, RootNode
from datas3tfs.core.model import Dataset, DatasetId
from datas3tfs.core.names import NAME_LIMIT
from datas3tfs.core.spans import Span
from datas3tfs.engine.blocks import ObjectRef
from datas3tfs.engine.entries import OpenEntry
from datas3tfs.engine.reader import Reader
from datas3tfs.engine.tree import OpenDatapoint, Tree
from datas3tfs.errors import Invalid, NotFound
from datas3tfs.fs.attributes import Attributes
from datas3tfs.fs.control import Control
from datas3tfs.fs.errnos import answers_errno
from datas3tfs.fs.handles import Handles
from datas3tfs.fs.listing import Listing
from datas3tfs.fs.pushing import Pusher
from datas3tfs.fs.xattrs import PREFETCH, STATS, datapoint_xattrs, dataset_xattrs

_STATFS_BLOCK = 4096
_RECENT = 1024  # files read without being opened of which we remember where they are


ReadNode = RootNode | DatasetNode | DatapointNode | ControlNode


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
        self._recent: OrderedDict[int, OpenDatapoint] = OrderedDict()  # read last without being opened
        self.pusher = Pusher(self._numbers_of, counters)
        self.control: Control | None = None  # where one announces what will be read

    # -- looking things up -------------------------------------------------------------------------

    @answers_errno
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._counters.add("fuse.lookup")
        parent, text = self._node(parent_inode), os.fsdecode(name)
        if isinstance(parent, RootNode):
            dataset = self._tree.dataset_named(text)
            return self._attributes.dataset(dataset, self._inodes.number(DatasetNode(dataset.id)))
        if isinstance(parent, DatasetNode):
            if text == DIRECTORY and self.control is not None:
                return self._control_attributes(ControlNode(parent.dataset_id, is_link=False))
            return await self._file_named(parent.dataset_id, text)
        if isinstance(parent, ControlNode) and not parent.is_link:
            if text == LINK:
                return self._control_attributes(ControlNode(parent.dataset_id, is_link=True))
            raise NotFound(f"{text}: not in {DIRECTORY}")
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
        if isinstance(node, ControlNode):
            return self._control_attributes(node)
        return self._attributes.datapoint(await self._tree.locate(node.dataset_id, node.key), inode)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Nothing to do: inode numbers are computed."""

    # -- listing -----------------------------------------------------------------------------------

    @answers_errno
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        self._counters.add("fuse.opendir")
        node = self._node(inode)
        if isinstance(node, DatapointNode) or (isinstance(node, ControlNode) and node.is_link):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return self._directories.add(node)

    @answers_errno
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        self._counters.add("fuse.readdir")
        node = self._directories.get(fh)
        if isinstance(node, DatasetNode):
            await self._listing.datapoints(node.dataset_id, start_id, token)
        elif isinstance(node, ControlNode):
            link = self._control_attributes(ControlNode(node.dataset_id, is_link=True))
            if not start_id:
                pyfuse3.readdir_reply(token, pyfuse3.FileNameT(LINK.encode()), link, 1)
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
        self.pusher.reading(self._inode_of(file))
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

    def read_at_hand(self, inode: int, offset: int, size: int) -> bytes | memoryview | None:
        """Read a file that was not opened, if its bytes are in memory; see frontloop.py."""
        file = self._recent.get(inode)
        if file is None:
            return None
        data = self._reader.read_at_hand(file, offset, size)
        if data is not None:
            self.pusher.reading(inode)
            self._count(data)
        return data

    @answers_errno
    async def read_inode(self, inode: int, offset: int, size: int) -> bytes | memoryview:
        """Read a file that was not opened. One that is gone is stale, if it was not read before."""
        file = self._recent.get(inode) or await self._found(inode)
        self._recent[inode] = file
        self._recent.move_to_end(inode)
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        self.pusher.reading(inode)
        data = await self._reader.read(file, offset, size)
        here = file.here
        if here.is_in_order:
            await self.pusher.lead(here.ref, here.entry.content.start + offset, inode)
        self._count(data)
        return data

    async def _found(self, inode: int) -> OpenDatapoint:
        stale = pyfuse3.FUSEError(errno.ESTALE)
        try:
            node = self._node(inode)
            if not isinstance(node, DatapointNode):
                raise pyfuse3.FUSEError(errno.EISDIR)
            file = await self._tree.locate(node.dataset_id, node.key)
        except NotFound:
            raise stale from None
        if self._inode_of(file) != inode:  # gone meanwhile, and another has come
            raise stale
        return file

    def _count(self, data: bytes | memoryview) -> None:
        self._counters.add("fuse.read")
        self._counters.add("fuse.read_bytes", len(data))

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing to flush: told so once, the kernel spares us a request for every close."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._files.close(fh)

    # -- the rest ----------------------------------------------------------------------------------

    @answers_errno
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        """The one link there is leads to a new pipe each time."""
        node = self._node(inode)
        if not isinstance(node, ControlNode) or not node.is_link or self.control is None:
            raise pyfuse3.FUSEError(errno.EINVAL)
        dataset = self._tree.dataset(node.dataset_id)
        return pyfuse3.FileNameT(self.control.new_pipe(dataset.id))

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
        if not text.startswith("user."):  # so that ls asks once, and not for every file
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if text == STATS and inode == ROOT:
            return json.dumps(self._stats()).encode()
        if text.startswith(PREFETCH) and self.control is not None:
            result = self.control.result(text.removeprefix(PREFETCH))
            if result is not None:
                return json.dumps(result).encode()
        values = await self._xattrs(inode)
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
        if isinstance(node, RootNode | ControlNode):
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

    def _control_attributes(self, node: ControlNode) -> pyfuse3.EntryAttributes:
        dataset = self._tree.dataset(node.dataset_id)
        return self._attributes.control(dataset, self._inodes.number(node), is_link=node.is_link)

    def _inode_of(self, file: OpenDatapoint) -> int:
        return self._inodes.datapoint(file.dataset.id, file.entry.key)

    def _numbers_of(self, ref: ObjectRef, slots: Span) -> Sequence[int] | None:
        """Return the inode numbers of the datapoints in *slots* of an object; None if these are not what the
        catalog shows now, beyond doubt."""
        first = ref.index.first + slots.start
        if not self._tree.shows(ref.dataset_id, ref.key, Span(first, first + slots.length)):
            return None
        return self._inodes.datapoints(ref.dataset_id, first, slots.length)

    def retire(self, dataset_id: DatasetId, keys: Span) -> None:
        """Take note that datapoints are gone: their inode numbers never stand for others."""
        self._inodes.retire(dataset_id, keys)

    def dataset_inode(self, dataset: Dataset) -> int:
        """Return the inode number under which the kernel knows a dataset's directory."""
        return ROOT if dataset.id == self._only else self._inodes.number(DatasetNode(dataset.id))

    def datapoint_inodes(self, dataset: Dataset, first: int, count: int) -> Sequence[int]:
        """Return the inode numbers under which the kernel knows *count* datapoints from *first* on."""
        return self._inodes.datapoints(dataset.id, first, count)

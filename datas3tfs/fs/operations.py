"""Every FUSE request the kernel sends, translated to the tree and the reader and back.

Read-only: the kernel itself answers EROFS to writes because the mount is `ro`. Inode numbers are
computed (core/inodes.py), so lookup counts need no keeping and `forget` has nothing to do.
All handlers run on the event loop; none blocks it but for the making of one listing answer.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from contextlib import aclosing

import pyfuse3

from datas3tfs.core.counters import Counters
from datas3tfs.core.inodes import ROOT, DatapointNode, DatasetNode, Inodes, Node, RootNode
from datas3tfs.core.model import Dataset, DatasetId
from datas3tfs.core.names import NAME_LIMIT
from datas3tfs.engine.reader import Reader
from datas3tfs.engine.tree import OpenDatapoint, Tree
from datas3tfs.errors import Datas3tError, Invalid, NotFound
from datas3tfs.fs.attributes import Attributes, fill, generation
from datas3tfs.fs.errnos import answers_errno
from datas3tfs.fs.handles import Handles
from datas3tfs.fs.xattrs import STATS, datapoint_xattrs, dataset_xattrs

# Offset of a listing that has shown the very last possible key: "from key 2^63 on" does not fit off_t.
_END = -1
_KEY_MAX = 2**63 - 1
_STATFS_BLOCK = 4096


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
        self._files: Handles[OpenDatapoint] = Handles()
        self._directories: Handles[Node] = Handles()

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
            file = await self._tree.lookup(parent.dataset_id, text)
            return self._attributes.datapoint(file, self._inode_of(file))
        raise pyfuse3.FUSEError(errno.ENOTDIR)

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
        if start_id == _END:
            return
        if isinstance(node, DatasetNode):
            await self._list_datapoints(node.dataset_id, start_id, token)
        else:
            self._list_datasets(start_id, token)

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._directories.close(fh)

    def _list_datasets(self, start: int, token: pyfuse3.ReaddirToken) -> None:
        """An entry's offset is its dataset's id plus one: stable, whatever comes or goes."""
        for dataset in self._tree.datasets():
            if dataset.id < start:
                continue
            attributes = self._attributes.dataset(dataset, self._inodes.number(DatasetNode(dataset.id)))
            name = pyfuse3.FileNameT(os.fsencode(dataset.name))
            if not pyfuse3.readdir_reply(token, name, attributes, dataset.id + 1):
                return

    async def _list_datapoints(self, dataset_id: DatasetId, start: int, token: pyfuse3.ReaddirToken) -> None:
        """An entry's offset is its key plus one: a listing goes on at the next key, come what may.

        A failure after the first entry ends the answer; the kernel asks again and gets the error then.
        """
        attributes, reply = self._attributes.blank(), pyfuse3.readdir_reply
        listed = 0
        try:
            async with aclosing(self._tree.listing(dataset_id, start)) as batches:
                async for rows in batches:
                    attributes.generation = generation(rows.datarange)
                    numbers = self._inodes.datapoints(dataset_id, rows.first_key, len(rows.names))
                    columns = zip(numbers, rows.names, rows.sizes, rows.mtimes_ns, strict=True)
                    for key, (number, name, size, mtime_ns) in enumerate(columns, rows.first_key):
                        fill(attributes, number, size, mtime_ns)
                        after = key + 1 if key < _KEY_MAX else _END
                        if not reply(token, pyfuse3.FileNameT(name), attributes, after):
                            return
                    listed += len(rows.names)
        except Datas3tError:
            if not listed:
                raise

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
        file = await self._tree.locate(node.dataset_id, node.key)
        if not file.entry.size:  # no read will come that could notice a lie
            await self._reader.check_empty(file)
        return pyfuse3.FileInfo(fh=self._files.add(file), keep_cache=True)

    @answers_errno
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        self._counters.add("fuse.read")
        data = await self._reader.read(self._files.get(fh), off, size)
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

    def _node(self, inode: int) -> Node:
        if inode == ROOT and self._only is not None:
            return DatasetNode(self._only)
        try:
            return self._inodes.node(inode)
        except Invalid as exc:
            raise NotFound(str(exc)) from None

    def _inode_of(self, file: OpenDatapoint) -> int:
        return self._inodes.datapoint(file.dataset.id, file.entry.key)

    def dataset_inode(self, dataset: Dataset) -> int:
        """Return the inode number under which the kernel knows a dataset's directory."""
        return ROOT if dataset.id == self._only else self._inodes.number(DatasetNode(dataset.id))

    def datapoint_inodes(self, dataset: Dataset, first: int, count: int) -> Sequence[int]:
        """Return the inode numbers under which the kernel knows *count* datapoints from *first* on."""
        return self._inodes.datapoints(dataset.id, first, count)

"""How things look to `stat`: modes, owners, sizes, times, and how long the kernel may believe it."""

from __future__ import annotations

import stat
from dataclasses import dataclass

import pyfuse3

from datas3tfs.core.model import Dataset
from datas3tfs.engine.entries import Entry, EntryState
from datas3tfs.engine.tree import OpenDatapoint

# Committed datapoints never change, so the kernel may keep what it knows; removal is told to it
# (fs/invalidate.py). A year, because the kernel counts in jiffies and "for ever" overflows.
FOREVER = 365 * 24 * 3600.0
# Datasets come and go, and their times change with every commit: "within a second".
MOMENT = 1.0
_BLOCK = 512  # the unit of st_blocks
_BLKSIZE = 128 * 1024  # what the kernel asks for at once; `cp` and others size their buffers by it
_DIRECTORY_SIZE = 4096
_SECOND = 1_000_000_000  # nanoseconds


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whom everything in the mount belongs to, and which permission bits are taken away."""

    uid: int
    gid: int
    umask: int


class Attributes:
    """Makes pyfuse3's attributes. *writable*: the owner may write, as far as anybody can (who tries to
    change a committed datapoint is told so by an error of its own, and modes need not change at commit)."""

    def __init__(self, ownership: Ownership, *, writable: bool = False) -> None:
        self._ownership = ownership
        self._file_mode = stat.S_IFREG | (0o644 if writable else 0o444) & ~ownership.umask
        self._directory_mode = stat.S_IFDIR | (0o755 if writable else 0o555) & ~ownership.umask

    def root(self, datasets: list[Dataset], inode: int) -> pyfuse3.EntryAttributes:
        """Return the attributes of the directory of all *datasets*."""
        newest = max((dataset.updated_ns for dataset in datasets), default=0)
        return self._directory(inode, newest, 2 + len(datasets))

    def dataset(self, dataset: Dataset, inode: int) -> pyfuse3.EntryAttributes:
        """Return the attributes of a dataset's directory."""
        return self._directory(inode, dataset.updated_ns, 2)

    def control(self, dataset: Dataset, inode: int, *, is_link: bool) -> pyfuse3.EntryAttributes:
        """Return the attributes of a dataset's hidden directory, or of the link in it."""
        attributes = self._directory(inode, dataset.updated_ns, 1 if is_link else 2)
        if is_link:
            attributes.st_mode = pyfuse3.ModeT(stat.S_IFLNK | 0o777)
            attributes.st_size = 0  # where it leads is another place each time
        return attributes

    def datapoint(self, file: OpenDatapoint, inode: int) -> pyfuse3.EntryAttributes:
        """Return the attributes of a datapoint."""
        attributes = self.blank()
        attributes.generation = generation(file.entry.size, file.entry.mtime_ns, file.entry.crc or 0)
        fill(attributes, inode, file.entry.size, file.entry.mtime_ns)
        return attributes

    def entry(self, entry: Entry, inode: int) -> pyfuse3.EntryAttributes:
        """Return the attributes of an uncommitted file, true for a moment. Times are in whole seconds as
        they will be when it is committed."""
        attributes = self.blank()
        fill(attributes, inode, entry.size, entry.mtime_ns // _SECOND * _SECOND)
        attributes.st_nlink = int(entry.linked or entry.state is EntryState.COMMITTED)
        attributes.entry_timeout = attributes.attr_timeout = MOMENT
        return attributes

    def blank(self) -> pyfuse3.EntryAttributes:
        """Return a datapoint's attributes with all but inode, size and times, for `fill`."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_mode = pyfuse3.ModeT(self._file_mode)
        attributes.st_nlink = 1
        attributes.st_blksize = _BLKSIZE
        attributes.st_uid = self._ownership.uid
        attributes.st_gid = self._ownership.gid
        attributes.entry_timeout = attributes.attr_timeout = FOREVER
        return attributes

    def _directory(self, inode: int, mtime_ns: int, links: int) -> pyfuse3.EntryAttributes:
        attributes = self.blank()
        fill(attributes, inode, _DIRECTORY_SIZE, mtime_ns)
        attributes.st_mode = pyfuse3.ModeT(self._directory_mode)
        attributes.st_nlink = links
        attributes.entry_timeout = attributes.attr_timeout = MOMENT
        return attributes


def generation(size: int, mtime_ns: int, crc: int) -> int:
    """Return what tells inodes of the same number apart: if a key comes again as another datapoint, the
    kernel must not take it for the file it knew, nor show the pages of that. The same datapoint in another
    datarange (a merge has moved it) has the same: whoever has it open goes on. An unknown *crc* is 0."""
    # Odd factors lose none of the low 32 bits, which are what the kernel keeps.
    return (crc ^ size * 0x9E3779B1 ^ mtime_ns * 0x85EBCA77) & 0xFFFFFFFF


def fill(attributes: pyfuse3.EntryAttributes, inode: int, size: int, mtime_ns: int) -> None:
    """Set what differs between datapoints; listings reuse one object for thousands of entries."""
    attributes.st_ino = pyfuse3.InodeT(inode)
    attributes.st_size = size
    attributes.st_blocks = -(-size // _BLOCK)
    if attributes.st_mtime_ns != mtime_ns:  # neighbours are often of the same second
        attributes.st_mtime_ns = attributes.st_ctime_ns = attributes.st_atime_ns = mtime_ns

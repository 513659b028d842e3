"""A pyfuse3 file system that does no work: the ceiling for everything built on the binding.

One directory of COUNT files of SIZE bytes, named like datapoints; contents are slices of one buffer.
Same handlers and same answers to the kernel as the real mount, but no lookup, no cache, no S3. With
--write, files can be created and written, too; what is written is thrown away.

    python nullfs.py MOUNTPOINT COUNT SIZE [--write]
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import pyfuse3
import trio

FOREVER = 365 * 24 * 3600.0


class NullFs(pyfuse3.Operations):
    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.count, self.size = count, size
        self.content = memoryview(bytes(max(size, 1 << 20)))

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.entry_timeout = attributes.attr_timeout = FOREVER
        if inode == pyfuse3.ROOT_INODE:
            attributes.st_mode = stat.S_IFDIR | 0o555
        else:
            attributes.st_mode = stat.S_IFREG | 0o444
            attributes.st_size = self.size
        return attributes

    async def lookup(self, parent_inode, name, ctx):
        key = int(name[:20]) if name[:20].isdigit() else self.count
        if key >= self.count:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(key + 2)

    async def getattr(self, inode, ctx):
        return self._attributes(inode)

    async def opendir(self, inode, ctx):
        return 1

    async def readdir(self, fh, start_id, token):
        attributes = self._attributes(2)
        for key in range(start_id, self.count):
            attributes.st_ino = key + 2
            if not pyfuse3.readdir_reply(token, b"%020d.bin" % key, attributes, key + 1):
                return

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh, off, size):
        return self.content[: min(size, self.size - off)]

    async def flush(self, fh):
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh):
        pass


class WritableNullFs(NullFs):
    async def create(self, parent_inode, name, mode, flags, ctx):
        attributes = self._attributes(int(name[:20]) + 2)
        attributes.st_size = 0
        return pyfuse3.FileInfo(fh=attributes.st_ino, keep_cache=True), attributes

    async def write(self, fh, off, buf):
        return len(buf)

    async def flush(self, fh):
        pass


def main() -> None:
    mountpoint, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    options = set(pyfuse3.default_options) | {"fsname=nullfs", "subtype=nullfs"}
    if "--write" in sys.argv:
        pyfuse3.init(WritableNullFs(count, size), mountpoint, options)
    else:
        pyfuse3.init(NullFs(count, size), mountpoint, options | {"ro"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    os.umask(0)
    main()

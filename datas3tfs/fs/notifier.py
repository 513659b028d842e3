"""Tell the kernel things it did not ask for: what is gone, and contents ahead of their readers.

A notification waits, unkillably, while a request for the same inode is under way. So it is best not made by
the process that answers requests: were that killed meanwhile, its waiting thread would keep /dev/fuse open,
the request unanswered, and so itself waiting, for ever. It is for another process (worker/), which has a
device of its own (`cloned`): when the first one dies, the kernel ends the requests that were read through
*its* device, and whoever waited for those goes on. Never for the root's pages: the kernel has none.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable

import trio

from datas3tfs.core.inodes import ROOT
from datas3tfs.fs import messages

log = logging.getLogger(__name__)

# (parent inode, name, inode) of a directory entry
Known = tuple[int, bytes, int]

_CLONE = 0x8004E500  # FUSE_DEV_IOC_CLONE (linux/fuse.h)


def cloned(device: int) -> int:
    """Return another /dev/fuse of the same mount as *device*. Raises OSError."""
    clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(clone, _CLONE, device.to_bytes(4, "little"))
    except BaseException:
        os.close(clone)
        raise
    return clone


class Notifier:
    """Writes to a mount's /dev/fuse."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._is_stopped = False  # the number of the device may soon be another file's

    def store(self, inode: int, content: memoryview) -> None:
        """Put all the *content* of a file into the page cache. Raises OSError: most often ENOENT, if the
        kernel does not know the file."""
        os.writev(self._device, [messages.store(inode, len(content)), content])

    def forget(self, entries: Iterable[Known]) -> None:
        """Drop directory entries and, as somebody may hold the files open, their cached pages."""
        for parent, name, inode in entries:
            if self._is_stopped:
                return
            try:
                if inode != ROOT:
                    self._write(messages.invalidate_inode(inode))
                self._write(messages.invalidate_entry(parent, name))
            except FileNotFoundError:
                pass  # the kernel does not know it
            except OSError as exc:
                log.warning("the kernel could not be told that %r is gone: %s", name, exc)

    async def forget_here(self, entries: Iterable[Known]) -> None:
        """Do that in a thread, for want of a worker; cancelled, it says no more."""
        try:
            await trio.to_thread.run_sync(self.forget, entries, abandon_on_cancel=True)
        except trio.Cancelled:
            self._is_stopped = True
            raise

    def _write(self, message: bytes) -> None:
        os.write(self._device, message)

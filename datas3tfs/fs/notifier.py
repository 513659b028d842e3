"""Tell the kernel things it did not ask for: what is gone, and contents ahead of their readers.

A notification waits while a request for the same inode is under way, and the event loop is who answers
those: for worker threads (or other processes) only. Never for the root, of which the kernel knows no pages.
"""

from __future__ import annotations

import os

from datas3tfs.fs import messages


class Notifier:
    """Writes to a mount's /dev/fuse. Everything raises OSError: ENOENT if the kernel does not know the
    inode or entry, ENODEV or the like once the mount is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def invalidate_inode(self, inode: int) -> None:
        """Drop what the kernel believes of an inode, its pages included."""
        os.write(self._descriptor, messages.invalidate_inode(inode))

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Drop the entry *name* of a directory."""
        os.write(self._descriptor, messages.invalidate_entry(parent, name))

    def store(self, inode: int, content: memoryview) -> None:
        """Put *content*, all there is, into the page cache."""
        os.writev(self._descriptor, [messages.store(inode, len(content)), content])

"""Pages in the kernel's cache with bytes that were refused: they must not be read.

Who writes through a mapping has changed the page before anybody can say no: what is committed does not
change, but everybody who has the file open by the number it had before would see the other bytes. So the
pages are dropped, in a worker thread (see invalidate.py), after the refusal was answered.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import pyfuse3
import trio

log = logging.getLogger(__name__)


class RefusedPages:
    """Inode numbers of which a write was refused, until their pages are dropped."""

    def __init__(self) -> None:
        self._inodes: set[int] = set()
        self._added = trio.Event()

    def add(self, inode: int) -> None:
        """Take note of a refusal."""
        self._inodes.add(inode)
        self._added.set()

    async def drop(self) -> None:
        """Drop pages, for ever."""
        while True:
            await self._added.wait()
            self._added = trio.Event()
            while self._inodes:
                await trio.to_thread.run_sync(_drop, self._inodes.pop(), abandon_on_cancel=True)


def _drop(inode: int) -> None:
    """Blocks while a request for the inode is under way, so never on the event loop."""
    try:
        with suppress(FileNotFoundError):  # the kernel has forgotten it
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode))
    except OSError as exc:
        log.warning("the kernel keeps pages of inode %d that were refused: %s", inode, exc)

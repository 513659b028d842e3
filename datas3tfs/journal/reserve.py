"""A file that keeps some of the disk for what must be written when there is no room left.

Committing is what makes room, and it writes to the log before it does: that must not fail because the
disk is full. So no file is accepted without the reserve, and other records may use it up.
"""

from __future__ import annotations

import os
from contextlib import suppress

from datas3tfs.journal.files import failing, open_file, write_all

RESERVE_BYTES = 1024 * 1024  # two records of 64 thousand entries each: a commit begun and finished


class Reserve:
    """The file, at *path*; there or not."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self.is_there = os.stat(path, follow_symlinks=False).st_size == RESERVE_BYTES
        except OSError:
            self.is_there = False

    def make(self) -> None:
        """Make it. Raises Full, Unavailable; it takes no room then."""
        with failing(self._path):
            descriptor = open_file(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                # Random, so that no file system finds a way to store it in less.
                write_all(descriptor, [os.urandom(RESERVE_BYTES)], 0)
            except OSError:
                self.release()
                raise
            finally:
                os.close(descriptor)
        self.is_there = True

    def release(self) -> None:
        """Give its room away."""
        self.is_there = False
        with suppress(OSError):
            os.unlink(self._path)

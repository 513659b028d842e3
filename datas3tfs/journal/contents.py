"""Content files: one for each uncommitted file that is too large for a record of the log.

Not for which entries there are, or what they are called: the log says that. Any method may run in any
thread while any other does; the bytes of a write and a read that overlap are then mixed.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from datas3tfs.core.journalrecords import EntryId
from datas3tfs.errors import NotFound, Unavailable
from datas3tfs.journal.files import SharedDescriptor, failing, open_file, read_at, write_all

_NAME = re.compile(r"[0-9]{16,20}")


class DiskContent:
    """Implements ports.JournalContent."""

    def __init__(self, path: Path, flags: int) -> None:
        """Open it. Raises NotFound, Full, Unavailable."""
        self._path = str(path)
        with failing(self._path):
            try:
                self._shared = SharedDescriptor(open_file(path, flags), self._path)
            except FileNotFoundError:
                raise NotFound(f"{path}: there is no such content in the journal") from None
        self._is_lost = False

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of *data*. Raises Full, Unavailable; a part may have been written."""
        with failing(self._path), self._shared as descriptor:
            write_all(descriptor, [data], offset)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes; fewer only at the end. Raises Unavailable."""
        with failing(self._path), self._shared as descriptor:
            return read_at(descriptor, offset, size)

    def truncate(self, size: int) -> None:
        """Make it *size* bytes long; new bytes are zeros. Raises Full, Unavailable."""
        with failing(self._path), self._shared as descriptor:
            os.ftruncate(descriptor, size)

    def size(self) -> int:
        """Return its length in bytes. Raises Unavailable."""
        with failing(self._path), self._shared as descriptor:
            return os.fstat(descriptor).st_size

    def sync(self) -> None:
        """Make its bytes survive a loss of power; its name is JournalStore.sync's. Raises Unavailable."""
        if self._is_lost:
            raise Unavailable(f"{self._path}: the disk lost a part of it")
        try:
            with failing(self._path), self._shared as descriptor:
                os.fdatasync(descriptor)
        except Unavailable:
            # The kernel says it once, and forgets what it could not write: a second call would succeed.
            self._is_lost = True
            raise

    def remove(self) -> None:
        """Take it off the disk; it stays readable and writable until closed."""
        with failing(self._path), suppress(FileNotFoundError):
            os.unlink(self._path)

    def close(self) -> None:
        """Close it; nothing may be called any more. Who is inside a call gets to its end."""
        self._shared.close()


def content_path(directory: Path, entry: EntryId) -> Path:
    """Return where in *directory* the content of *entry* is."""
    return directory / f"{entry:016d}"


def content_entries(directory: Path) -> list[EntryId]:
    """Return which entries have a content file in *directory*, ascending; none if it is not there. Raises
    Unavailable."""
    with failing(directory):
        try:
            return sorted(EntryId(int(name)) for name in os.listdir(directory) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []

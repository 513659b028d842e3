"""What has been written to the journal and may not be on the disk yet.

One thread adds to it; any number of threads call `sync`, and one after the other does it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from datas3tfs.errors import Unavailable
from datas3tfs.journal.files import failing, sync_directory, sync_file


class Unsynced:
    """Files that were written to, and directories in which files were made, since the last sync."""

    def __init__(self, files: Iterable[str], directories: Iterable[str]) -> None:
        self._files = set(files)
        self._directories = set(directories)
        self._lost: set[str] = set()
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def add_file(self, path: str) -> None:
        """Say that a file was written to; call it after that."""
        with self._lock:
            self._files.add(path)

    def add_directory(self, path: str) -> None:
        """Say that a file was made in a directory; call it after that."""
        with self._lock:
            self._directories.add(path)

    def is_lost(self, path: str) -> bool:
        """Tell whether the disk failed to keep a part of a file."""
        return path in self._lost

    def has_lost(self) -> bool:
        """Tell whether the disk failed to keep a part of anything."""
        return bool(self._lost)

    def sync(self) -> None:
        """Return when all that was added before the call is on the disk. A file that is gone needs not be.
        Raises Full, Unavailable: also later, for as long as a file is there of which a part is lost."""
        with self._turn:  # who comes second must not return before the first is done
            with self._lock:
                files, self._files = self._files, set()
                directories, self._directories = self._directories, set()
            try:
                self._check_lost()
                for path in sorted(files):
                    self._sync_file(path)
                for path in sorted(directories):
                    with failing(path):
                        sync_directory(path)
            except BaseException:
                with self._lock:
                    self._files |= files
                    self._directories |= directories
                raise

    def _check_lost(self) -> None:
        # The kernel says once what it could not write, and forgets it: the next call would succeed.
        self._lost = {path for path in self._lost if os.path.exists(path)}
        for path in self._lost:
            raise Unavailable(f"{path}: the disk lost a part of it")

    def _sync_file(self, path: str) -> None:
        with failing(path):
            try:
                sync_file(path)
            except OSError:
                self._lost.add(path)
                raise

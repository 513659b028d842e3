"""Files of the journal's directory: how they are opened, and what their errors mean.

Nothing here knows what is in them. Every function may be called in any thread.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from datas3tfs.errors import Full, Unavailable

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW  # a link in the journal's directory is not of our making
_FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


class failing:
    """Translate what the operating system says about *path* into Full and Unavailable."""

    __slots__ = ("_path",)

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(exc, OSError):
            if exc.errno in _NO_ROOM:
                raise Full(f"{self._path}: no room left for the journal ({exc.strerror})") from exc
            raise Unavailable(f"{self._path}: {exc.strerror or exc}") from exc


def open_file(path: str | Path, flags: int) -> int:
    """Open a file of the journal and return its descriptor. Raises OSError."""
    return os.open(path, flags | _FLAGS, _FILE_MODE)


def write_all(descriptor: int, buffers: Sequence[bytes | memoryview], offset: int) -> None:
    """Write all of *buffers* at *offset*. Raises OSError; a part may have been written then."""
    size = sum(map(len, buffers))
    written = os.pwritev(descriptor, buffers, offset)
    if written < size:  # no room for the rest: the next call says why
        rest = memoryview(b"".join(buffers))
        while written < size:
            written += os.pwrite(descriptor, rest[written:], offset + written)


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Return up to *size* bytes from *offset* on; fewer only at the end. Raises OSError."""
    data = os.pread(descriptor, size, offset)
    if len(data) == size or not data:
        return data
    pieces, have = [data], len(data)
    while have < size and (piece := os.pread(descriptor, size - have, offset + have)):
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces)


def sync_file(path: str | Path) -> bool:
    """Make a file's content survive a loss of power; say whether there was such a file. Raises OSError."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    return True


def sync_directory(path: str | Path) -> None:
    """Make the names in a directory survive a loss of power. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SharedDescriptor:
    """A descriptor that some threads may be using while another closes it: `with shared as descriptor:`.

    The last one to leave closes it, so that nobody's call reaches a file opened later under its number.
    """

    __slots__ = ("_closing", "_descriptor", "_lock", "_path", "_users")

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._users = 0
        self._closing = False
        self._lock = threading.Lock()

    def __enter__(self) -> int:
        with self._lock:
            if self._closing:
                raise Unavailable(f"{self._path}: it is closed")
            self._users += 1
        return self._descriptor

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            is_last = self._closing and not self._users
        if is_last:
            os.close(self._descriptor)

    def close(self) -> None:
        """Close it as soon as nobody uses it; it may be called again."""
        with self._lock:
            is_last = not self._closing and not self._users
            self._closing = True
        if is_last:
            os.close(self._descriptor)

"""The lock on a journal: one process at a time, let go by the kernel when it dies.

Its file stays, so that nobody locks a file that another has just deleted.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datas3tfs.errors import Conflict
from datas3tfs.journal.files import failing, open_file, read_at

_NAME = "lock"
# A process that was just killed takes a moment to let go, and `owner_of` holds the lock for one.
_PATIENCE = 0.3
_PAUSE = 0.02
_PID_SIZE = 20


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Own the journal in *directory*. Raises Conflict, naming who does; Full, Unavailable."""
    path = directory / _NAME
    with failing(path):
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        with failing(path):
            if not _lock(descriptor, fcntl.LOCK_EX, _PATIENCE):
                raise Conflict(f"{directory}: the journal is in use by process {_pid(descriptor)}")
            with suppress(OSError):  # a disk that is full must not keep anybody from emptying it
                os.pwrite(descriptor, f"{os.getpid():<{_PID_SIZE - 1}}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def owner_of(directory: Path) -> str | None:
    """Return the process id of who owns the journal ("?" if it does not say), None if nobody does.
    Raises Unavailable."""
    path = directory / _NAME
    with failing(path):
        try:
            descriptor = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return None if _lock(descriptor, fcntl.LOCK_SH, 0) else _pid(descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, operation: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def _pid(descriptor: int) -> str:
    text = read_at(descriptor, 0, _PID_SIZE).strip()
    return text.decode() if text.isdigit() else "?"

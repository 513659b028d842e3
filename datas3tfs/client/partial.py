"""A download that another process can go on with: what has come so far, beside where it is to be, and a small
file that says how far it is good.

What counts is on disk before it is said to be. Plain functions that block: called in worker threads, or for
moments only. Concurrency: one process at a time, which a lock sees to.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a download is. The first three say of what."""

    dataset: str
    first_key: int
    last_key: int
    next_key: int
    size: int = 0  # bytes that are good
    datapoints: int = 0

    @staticmethod
    def not_begun(dataset: str, keys: Span) -> Progressed:
        """Return a download of which nothing has come."""
        return Progressed(dataset, keys.start, keys.last, keys.start)

    @property
    def left(self) -> Span:
        """The keys that have not come."""
        return Span(self.next_key, self.last_key + 1)


class PartialTar:
    """The file that a download goes into; *done* is how far it is."""

    def __init__(self, file: BinaryIO, state: Path, done: Progressed) -> None:
        self.file = file
        self.done = done
        self._state = state

    def note(self, done: Progressed) -> None:
        """Say that it is so far. Raises Invalid (no room, no right)."""
        try:
            self.file.flush()
            os.fdatasync(self.file.fileno())
            _write(self._state, done)
        except OSError as exc:
            raise Invalid(f"{self._state}: {exc.strerror}") from exc
        self.done = done


@contextmanager
def going_on(target: Path, state: Path, wanted: Progressed) -> Iterator[PartialTar]:
    """Open what there is of *wanted*; at the end of the block it takes *target*'s place, and *state* goes.

    If the block fails, both stay. Raises Invalid (*state* is of another download, or none), Conflict (another
    process is at it)."""
    path = target.with_name(f"{target.name}.part")
    try:
        with _opened(path, state, wanted) as file:
            done = _found(state, wanted)
            if done.size > os.fstat(file.fileno()).st_size:
                done = wanted  # somebody has cut it short
            file.seek(done.size)
            file.truncate()
            yield PartialTar(file, state, done)
            file.flush()
            path.replace(target)
            state.unlink(missing_ok=True)
    except OSError as exc:
        raise Invalid(f"{exc.filename or target}: {exc.strerror}") from exc


def _opened(path: Path, state: Path, wanted: Progressed) -> BinaryIO:
    """Open and lock the partial file. It is ours to write to only if there is a state."""
    if not state.exists():
        if path.exists():
            raise Invalid(f"{path}: exists, but {state}, which would say what it is, does not")
        _write(state, wanted)
    _found(state, wanted)
    file = path.open("r+b" if path.exists() else "w+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_here = path.exists() and path.samefile(f"/proc/self/fd/{file.fileno()}")
    except BlockingIOError:
        is_here = False
    if not is_here:  # or whoever has had the lock is through with it
        file.close()
        raise Conflict(f"{path}: another process is downloading to it")
    return file


def _write(state: Path, done: Progressed) -> None:
    hidden = state.with_name(f"{state.name}.part")
    hidden.write_text(json.dumps(asdict(done) | {"version": _VERSION}) + "\n")
    hidden.replace(state)


def _found(state: Path, wanted: Progressed) -> Progressed:
    """Return what *state* says. Raises Invalid if that is no part of *wanted*."""
    try:
        kept = json.loads(state.read_bytes())
        version = kept.pop("version")
        found = Progressed(**kept)
        is_sound = found.first_key <= found.next_key <= found.last_key + 1 and found.size >= 0
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Invalid(f"{state}: not a file that a download can be resumed from") from None
    if version != _VERSION or replace(found, next_key=wanted.next_key, size=0, datapoints=0) != wanted:
        raise Invalid(
            f"{state}: is of another download (keys {found.first_key} to {found.last_key} of dataset "
            f"{found.dataset}); remove it, or name another"
        )
    if not is_sound:
        raise Invalid(f"{state}: not a file that a download can be resumed from")
    return found

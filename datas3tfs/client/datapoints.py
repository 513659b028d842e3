"""Datapoints as a program gets them, and what holds their content.

Content up to a limit is held in memory, larger in an unnamed temporary file. Concurrency: a datapoint
belongs to whoever got it; `read` and `open` may be called as often as one likes.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from datas3tfs.core.names import parse_datapoint_name


class Content:
    """Takes the content of one datapoint, *size* bytes; more than *limit* go to a file."""

    __slots__ = ("_file", "_more", "_whole")

    def __init__(self, size: int, limit: int) -> None:
        self._whole = b""  # what has come, but for …
        self._more: list[bytes] | None = None  # … these: most come in one piece, and have none
        self._file = _UnnamedFile() if size > limit else None

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._file is not None:
            self._file.write(data)
        elif not self._whole:
            self._whole = data
        elif self._more is None:
            self._more = [data]
        else:
            self._more.append(data)

    def read(self) -> bytes:
        """Return all of it."""
        if self._file is not None:
            return self._file.read()
        if self._more is not None:
            self._whole, self._more = b"".join([self._whole, *self._more]), None
        return self._whole

    def open(self) -> BinaryIO:
        """Return a file to read it from."""
        return io.BytesIO(self.read()) if self._file is None else self._file.reopen()


class _UnnamedFile:
    """A temporary file that is gone with the last reference to it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last reference to this

    def __del__(self) -> None:
        self._file.close()  # left to itself it would complain

    def write(self, data: bytes) -> None:
        """Write at its end."""
        self._file.write(data)

    def read(self) -> bytes:
        """Return all of it, once it is whole."""
        self._file.seek(0)
        return self._file.read()

    def reopen(self) -> BinaryIO:
        """Return it opened once more, once it is whole."""
        self._file.flush()
        # Reopened, it has a position of its own; a copy of the descriptor would share this one's.
        return Path(f"/proc/self/fd/{self._file.fileno()}").open("rb")


@dataclass(frozen=True, slots=True)
class Datapoint:
    """One datapoint, its content at hand: whole, and checked against the checksum if the server knew it."""

    key: int
    name: str
    size: int  # bytes
    mtime_ns: int  # nanoseconds since the epoch
    crc32c: int
    _content: Content = field(repr=False, compare=False)

    @property
    def mtime(self) -> float:
        """When its file was last changed, in seconds since the epoch."""
        return self.mtime_ns / 1e9

    @property
    def extension(self) -> str:
        """What follows the first dot of its name."""
        return parse_datapoint_name(self.name).extension

    def read(self) -> bytes:
        """Return its content."""
        return self._content.read()

    def open(self) -> BinaryIO:
        """Return its content as a file opened for reading; for large ones."""
        return self._content.open()

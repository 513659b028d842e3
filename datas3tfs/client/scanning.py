"""Read a TAR through before it is uploaded: what it holds, where, with which checksums.

Blocking; `upload` runs it in a worker thread. A program that wants to know before may call it itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from datas3tfs.client.sources import READ_SIZE, file_chunks
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.scan import scan
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid


@dataclass(frozen=True, slots=True)
class ScannedTar:
    """A TAR that has passed: what it holds, and what the file was like while it was read."""

    file: Path | BinaryIO
    keys: Span
    flat_index: bytes
    size: int
    mtime_ns: int | None  # None: of an open file

    @property
    def label(self) -> str:
        """What to call it before people."""
        return label_of(self.file)

    def check(self) -> None:
        """Raise Invalid if the file has changed since."""
        if _state(self.file) != (self.size, self.mtime_ns):
            raise Invalid(f"{self.label}: has changed while it was uploaded")


def label_of(file: Path | BinaryIO) -> str:
    """Return what to call a file before people."""
    return str(file) if isinstance(file, Path) else str(getattr(file, "name", "the TAR"))


def scan_tar(file: Path | BinaryIO, advance: Callable[[int], None] = lambda amount: None) -> ScannedTar:
    """Read a TAR through and index it; *advance* hears of bytes.

    Raises Invalid, naming the entry that may not be a datapoint.
    """
    size, mtime_ns = _state(file)
    builder = IndexBuilder()
    first = 0
    try:
        for found in scan(_told(_chunks(file), advance)):
            first = found.name.key if not len(builder) else first
            builder.add(
                offset=found.offset,
                header_blocks=found.header_blocks,
                size=found.size,
                mtime_ns=found.mtime_ns,
                extension=found.name.extension,
                crc=found.crc,
                chunk_crcs=found.chunk_crcs,
            )
    except Invalid as exc:
        raise Invalid(f"{label_of(file)}: {exc}") from exc
    flat = builder.finish(first=first, object_size=size)
    return ScannedTar(file, Span(first, first + len(builder)), flat, size, mtime_ns)


def _state(file: Path | BinaryIO) -> tuple[int, int | None]:
    """Return (size, time of change)."""
    if not isinstance(file, Path):
        if not file.seekable():
            raise Invalid(f"{label_of(file)}: cannot be read twice, as it must be")
        return file.seek(0, os.SEEK_END), None
    try:
        status = file.stat()
    except OSError as exc:
        raise Invalid(f"{file}: {exc.strerror}") from exc
    if not stat.S_ISREG(status.st_mode):
        raise Invalid(f"{file}: not a regular file")
    return status.st_size, status.st_mtime_ns


def _chunks(file: Path | BinaryIO) -> Iterator[bytes]:
    if isinstance(file, Path):
        yield from file_chunks(file)
        return
    file.seek(0)
    while chunk := file.read(READ_SIZE):
        yield chunk


def _told(chunks: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        advance(len(chunk))
        yield chunk

"""One segment of the log, as a file: written at its end, read anywhere, decoded whole when replayed.

Not for which segments there are (log.py). `read` may run in any thread, whatever happens to the segment
meanwhile: it opens the file for itself. Numbers are never used again, so a segment that has been deleted
is found to be missing. All else is for one thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from datas3tfs.core.journalcodec import (
    PAYLOAD_LIMIT,
    Found,
    Gap,
    decode_segment,
    encode,
    seal_of,
    segment_header,
)
from datas3tfs.core.journalrecords import Place, Record
from datas3tfs.core.model import HolderId
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt
from datas3tfs.journal.files import failing, open_file, read_at, write_all

SEGMENT_BYTES = 64 * 1024 * 1024  # a new one is begun beyond: bounds the memory and the time of a replay
# More is not read into memory; all that anybody writes is far shorter.
_READ_LIMIT = 2 * (SEGMENT_BYTES + PAYLOAD_LIMIT)
DAMAGED = ".damaged"  # behind the name of one that was put aside
_NAME = re.compile(r"([0-9]{16,20})\.seg")


def read_content(directory: Path, place: Place, offset: int, size: int) -> bytes:
    """Return up to *size* bytes of the content at *place*. Raises Corrupt (it is cut short), Unavailable."""
    size = max(0, min(size, place.size - offset))
    if not size:
        return b""
    path = _path(directory, place.segment)
    with failing(path):
        descriptor = open_file(path, os.O_RDONLY)
        try:
            data = read_at(descriptor, place.offset + offset, size)
        finally:
            os.close(descriptor)
    if len(data) < size:
        raise Corrupt(f"{path}: cut short")
    return data


def find_segments(directory: Path) -> list[Segment]:
    """Return the segments in *directory*, ascending; none if it is not there. Raises Unavailable."""
    with failing(directory):
        try:
            numbers = sorted(
                int(match[1]) for name in os.listdir(directory) if (match := _NAME.fullmatch(name))
            )
        except FileNotFoundError:
            return []
        return [segment for number in numbers if (segment := Segment(directory, number)).look()]


def _path(directory: Path, number: int) -> str:
    return f"{directory}/{number:016d}.seg"


class Segment:
    """What is known of a segment: its size, which of its records are needed, whether it is damaged."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.path = _path(directory, number)
        self.size = 0
        self.needed: set[int] = set()  # offsets of the content of its records
        self.is_damaged = False

    def look(self) -> bool:
        """Find out its size; say whether it is there. Raises OSError."""
        try:
            self.size = os.stat(self.path, follow_symlinks=False).st_size
        except FileNotFoundError:  # whose journal this is, has just deleted it
            return False
        return True

    def decode(self, holder: HolderId) -> Iterator[Found | Gap]:
        """Yield the records and gaps it has now; nothing if it is gone. Raises Invalid, Unavailable."""
        with failing(self.path):
            try:
                descriptor = open_file(self.path, os.O_RDONLY)
            except FileNotFoundError:
                return
            try:
                size = os.fstat(descriptor).st_size
                data = read_at(descriptor, 0, min(size, _READ_LIMIT))
            finally:
                os.close(descriptor)
        yield from decode_segment(data, self.number, holder)
        if len(data) < size:
            yield Gap(Span(len(data), size), "it is longer than segments are", torn=False)

    def cut(self, size: int) -> None:
        """Cut off what is behind *size*, for good. Raises Unavailable."""
        with failing(self.path):
            descriptor = open_file(self.path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, size)
                # Else power might be lost after a later segment has reached the disk, and not this cut.
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self.size = size

    def discard(self) -> None:
        """Delete it; put it aside for people if it is damaged. Raises Unavailable."""
        with failing(self.path):
            if self.is_damaged:
                os.rename(self.path, f"{self.path}{DAMAGED}")
            else:
                os.unlink(self.path)


class SegmentWriter:
    """The descriptor at the end of the segment that is being appended to."""

    def __init__(self, segment: Segment, holder: HolderId) -> None:
        """Create the segment. Raises OSError; there is no file then."""
        self.segment = segment
        self._seal = seal_of(segment.number, holder)
        header = segment_header(segment.number, holder)
        self._descriptor = open_file(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_all(self._descriptor, [header], 0)
        except OSError:
            self.close()
            os.unlink(segment.path)
            raise
        segment.size = len(header)

    def append(self, record: Record) -> tuple[Place, int]:
        """Append a record; return its place and its size. Raises OSError: a part of it may have been
        written then, see `cut_back`."""
        segment = self.segment
        start = segment.size
        buffers = encode(record, self._seal, start)
        write_all(self._descriptor, buffers, start)
        content = len(buffers[1]) if len(buffers) > 1 else 0
        end = segment.size = start + len(buffers[0]) + content
        return Place(segment.number, end - content, content), end - start

    def cut_back(self) -> None:
        """Undo an append that failed. Raises OSError."""
        os.ftruncate(self._descriptor, self.segment.size)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)

"""The log: numbered segments, appended to at the end, deleted from the beginning.

From the beginning only, because a record may be undone by a later one (a file is removed, or renamed):
were that gone first, a replay would bring the file back. A segment that is damaged is not deleted in its
turn but put aside for people; until then the records in it that are whole count like any others.

For one thread, except `read`, which any number of threads may call at any time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datas3tfs.core.journalcodec import Gap
from datas3tfs.core.journalrecords import Accepted, Place, Record
from datas3tfs.core.model import HolderId
from datas3tfs.errors import Full, Unavailable
from datas3tfs.journal.files import failing
from datas3tfs.journal.segments import (
    DAMAGED,
    SEGMENT_BYTES,
    Segment,
    SegmentWriter,
    find_segments,
    read_content,
)
from datas3tfs.journal.syncing import Unsynced

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Lost:
    """Where records are missing, and about which files they were (None: any)."""

    segment: int
    offset: int
    about: tuple[Accepted, ...] | None

    def is_behind(self, place: Place) -> bool:
        return (self.segment, self.offset) > (place.segment, place.offset)

    def is_about(self, record: Accepted) -> bool:
        return self.about is None or any(
            lost.entry == record.entry or (lost.dataset_id, lost.name) == (record.dataset_id, record.name)
            for lost in self.about
        )


class Log:
    """The segments in a directory. *read_only*: nothing on the disk is changed, whatever is found."""

    def __init__(
        self, directory: Path, holder: HolderId, segment_bytes: int, unsynced: Unsynced, *, read_only: bool
    ) -> None:
        """Look at the directory. Raises Unavailable."""
        self._directory = directory
        self._holder = holder
        self._segment_bytes = min(segment_bytes, SEGMENT_BYTES)  # longer ones would not be read whole
        self._unsynced = unsynced
        self._read_only = read_only
        self._found = tuple(find_segments(directory))
        self._segments = {segment.number: segment for segment in self._found}  # ascending
        self._writer: SegmentWriter | None = None  # of the last segment
        self._is_replayed = not self._found
        self._has_promised = False
        self._lost: list[_Lost] = []
        self.bytes = sum(segment.size for segment in self._found)
        for segment in self._found:  # what a process wrote that was killed may not be on the disk
            unsynced.add_file(segment.path)
        unsynced.add_directory(str(directory))

    def records(self) -> Iterator[tuple[Record, Place]]:
        """Yield the records there were when it was opened, oldest first. Read to the end, once, it also
        finds out which segments are still needed. Raises Invalid (newer format), Unavailable."""
        for segment in self._found:
            for found in segment.decode(self._holder):
                if isinstance(found, Gap):
                    self._pass_over(segment, found)
                    continue
                place = Place(segment.number, found.content.start, found.content.length)
                if isinstance(found.record, Accepted) and not self._is_replayed:
                    segment.needed.add(place.offset)
                yield found.record, place
        self._is_replayed = True
        self._trim()

    def _pass_over(self, segment: Segment, gap: Gap) -> None:
        where = f"bytes {gap.span.start} to {gap.span.stop}"
        is_interrupted = gap.torn and segment is self._found[-1] and not segment.is_damaged
        if not is_interrupted:
            segment.is_damaged = True
            self._lost.append(_Lost(segment.number, gap.span.start, gap.about))
            log.error(
                "%s: damaged, %s are not used and the file will be kept: %s", segment.path, where, gap.why
            )
        elif self._read_only:
            log.info("%s: %s are what an interrupted write left: %s", segment.path, where, gap.why)
        else:
            log.warning(
                "%s: cutting off the %d bytes that an interrupted write left: %s",
                segment.path,
                gap.span.length,
                gap.why,
            )
            segment.cut(gap.span.start)
            self.bytes -= gap.span.length

    def damaged(self) -> list[str]:
        """Return the segments that records are missing from. To be asked after a replay."""
        return [segment.path for segment in self._found if segment.is_damaged]

    def has_gaps(self) -> bool:
        """Say whether records are missing, from what there is or was put aside. To be asked after a replay.
        Raises Unavailable."""
        with failing(self._directory):
            aside = any(name.endswith(DAMAGED) for name in os.listdir(self._directory))
        return aside or bool(self.damaged())

    def may_be_outdated(self, record: Accepted, place: Place) -> bool:
        """Say whether a record behind *place* is missing that may have replaced *record*, or undone it."""
        return any(lost.is_behind(place) and lost.is_about(record) for lost in self._lost)

    def append(self, record: Record) -> Place:
        """Append a record; return its place. Raises Full, Unavailable: nothing has changed then."""
        writer = self._writer
        if (
            writer is None
            or writer.segment.size >= self._segment_bytes
            or self._unsynced.is_lost(writer.segment.path)
        ):
            writer = self._begin()
        segment = writer.segment
        with failing(segment.path):
            try:
                place, size = writer.append(record)
            except OSError:
                self._cut_back(writer)
                raise
        self.bytes += size
        if isinstance(record, Accepted):
            segment.needed.add(place.offset)
        self._unsynced.add_file(segment.path)
        return place

    def _begin(self) -> SegmentWriter:
        if not self._is_replayed:
            raise RuntimeError("a journal's records must be read, to the end, before anything is appended")
        segment = Segment(self._directory, max(self._segments, default=0) + 1)
        with failing(segment.path):
            writer = SegmentWriter(segment, self._holder)
        self._unsynced.add_directory(str(self._directory))
        self._end()
        self._segments[segment.number] = segment
        self._writer = writer
        self.bytes += segment.size
        self._trim()
        return writer

    def _end(self) -> None:
        """Append no more to the segment that is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _cut_back(self, writer: SegmentWriter) -> None:
        try:
            writer.cut_back()
        except OSError as exc:
            log.warning("%s: half a record stays at its end (%s)", writer.segment.path, exc.strerror)
            self._end()

    def read(self, place: Place, offset: int, size: int) -> bytes:
        """Return up to *size* bytes of the content at *place*. Raises Corrupt (cut short), Unavailable."""
        return read_content(self._directory, place, offset, size)

    def drop(self, place: Place) -> None:
        """Say that an accepted record is not needed; saying it again is harmless. Never raises."""
        segment = self._segments.get(place.segment)
        if segment is not None:
            segment.needed.discard(place.offset)
            if not segment.needed and self._is_replayed:
                self._trim()

    def _trim(self) -> None:
        """Take out the oldest segments that nothing needs; the last one stays, so that numbers go on."""
        for segment in list(self._segments.values())[:-1]:
            if segment.needed or self._read_only:
                return
            try:
                self._make_up_for(segment)
                segment.discard()
            except (Full, Unavailable) as exc:
                log.warning("%s", exc)  # it is tried again with the next one
                return
            self.bytes -= segment.size
            del self._segments[segment.number]

    def _make_up_for(self, segment: Segment) -> None:
        """Before a segment goes that may be all that a loss of power would leave of something: sync what is
        there in its stead. Blocks, briefly where much is synced anyway. Raises Full, Unavailable."""
        # Of those found, another process may have synced something. What is lost has been told, and stays so.
        if (self._has_promised or segment in self._found) and not self._unsynced.has_lost():
            self._unsynced.sync()

    def promise(self) -> None:
        """Say that something is about to be synced that must not be lost from then on."""
        self._has_promised = True

    def oldest(self) -> int | None:
        """Return the number of the oldest segment that is only there for needed records."""
        oldest = next(iter(self._segments.values()), None)
        if (
            oldest is None
            or not oldest.needed
            or (self._writer is not None and oldest is self._writer.segment)
        ):
            return None
        return oldest.number

    def close(self) -> None:
        """Close what is open."""
        self._end()

"""What the journal's log says, as values, and their bytes (docs/FORMAT.md, "The journal").

Not for files: segments are cut, synced and deleted in journal/. Plain values and functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from datas3tfs.core.model import DatasetId, UploadId

EntryId = NewType("EntryId", int)  # numbers an uncommitted file of one journal; never used again there


@dataclass(frozen=True, slots=True)
class Accepted:
    """A file was closed: from here on it is safe. A later record of the same entry replaces this one."""

    entry: EntryId
    dataset_id: DatasetId
    dataset: str  # its name, so that a journal can be read without its catalog
    name: str  # the file's
    mtime_ns: int
    size: int  # bytes of content
    crc: int | None  # CRC32C of the content; None: it is in a file of its own and was being changed
    content: bytes | None = None  # small content is in the record itself; None: in a file of its own
    doubtful: bool = False  # copied from before a damaged part of the log, which may have said otherwise


@dataclass(frozen=True, slots=True)
class Renamed:
    """An accepted file has another name, and the entry that had that name, if any, is gone."""

    entry: EntryId
    dataset_id: DatasetId
    dataset: str
    name: str
    replaced: EntryId | None


@dataclass(frozen=True, slots=True)
class Gone:
    """These entries are removed, or committed."""

    entries: tuple[EntryId, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """These entries, and no others, are what the upload is of: if it was published, they are committed."""

    upload: UploadId
    entries: tuple[EntryId, ...]


Record = Accepted | Renamed | Gone | Begun


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is in the log: segment number, byte offset and length of the record's content
    (of nothing, if it has none inside)."""

    segment: int
    offset: int
    size: int

"""The bytes of the journal's records and of the segments they are in (docs/FORMAT.md, "The journal").

A record's header carries its own CRC, which covers where the record is: byte offset, segment, journal.
So a record that is found in another place, such as a piece of some journal inside the content of a file,
is none, and after damage one can look for the next record without believing content. Whatever the bytes
are, decoding yields records that were written right there, and says what it passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.journalrecords import Accepted, Begun, EntryId, Gone, Record, Renamed
from datas3tfs.core.model import DatasetId, HolderId, UploadId
from datas3tfs.core.names import NAME_LIMIT, check_label, printable
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid

VERSION = 1
INLINE_LIMIT = 1024 * 1024  # bytes of content inside a record
PAYLOAD_LIMIT = 16 * 1024 * 1024  # of the longest record: one of two million entries

_SEGMENT_MAGIC = b"D3TFSJNL"
_RECORD_MAGIC = b"D3jr"

# magic, version, zero, number, holder; followed by their CRC
_SEGMENT = struct.Struct(">8sHHQ16s")
_CRC = struct.Struct(">I")
# magic, kind, zero, bytes of payload, CRC of the payload; followed by the CRC of the record's place and these
_HEAD = struct.Struct(">4sBxxxII")
_PLACE = struct.Struct(">Q")
# entry, dataset, mtime, size, CRC of the content, flags, bytes of the dataset's name, of the name, zero
_ACCEPTED = struct.Struct(">QqqQIBBBx")
# entry, dataset, replaced entry, flags, bytes of the dataset's name, of the name, zero
_RENAMED = struct.Struct(">QqQBBBx")
_GONE = struct.Struct(">I")  # number of entries
_BEGUN = struct.Struct(">qI")  # upload, number of entries

_KIND_ACCEPTED, _KIND_RENAMED, _KIND_GONE, _KIND_BEGUN = 1, 2, 3, 4
_HAS_CRC, _HAS_CONTENT, _IS_DOUBTFUL = 1, 2, 4  # flags of an accepted record
_HAS_REPLACED = 1  # flag of a renamed record

SEGMENT_HEADER_SIZE = _SEGMENT.size + _CRC.size
RECORD_HEADER_SIZE = _HEAD.size + _CRC.size
# Bytes of an Accepted or Renamed record without content, at most: no dataset's name is longer than a file's.
NOTE_LIMIT = RECORD_HEADER_SIZE + _ACCEPTED.size + 2 * NAME_LIMIT


@dataclass(frozen=True, slots=True)
class Found:
    """A record, without its inline content, which is at *content* (empty, at the end, if it has none)."""

    record: Record
    content: Span
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that are no records. *torn*: the last ones, and of the kind an interrupted write leaves. *about*:
    the files that the lost records were about, as these say themselves, damaged as they are; None: any."""

    span: Span
    why: str
    torn: bool
    about: tuple[Accepted, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Unreadable:
    why: str
    resume: int  # where the next record may start at the earliest
    torn: bool
    about: tuple[Accepted, ...] | None = None


class _Malformed(ValueError):
    """What a payload says cannot be."""


def segment_header(number: int, holder: HolderId) -> bytes:
    """Return the header of segment *number* of the journal *holder*."""
    head = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, 0, number, UUID(holder).bytes)
    return head + _CRC.pack(crc32c(head))


def seal_of(number: int, holder: HolderId) -> int:
    """Return what every record's header CRC in segment *number* of the journal *holder* starts from."""
    return crc32c(UUID(holder).bytes + _PLACE.pack(number))


def encode(record: Record, seal: int, offset: int) -> list[bytes]:
    """Return the bytes of *record* at *offset* of the segment, in pieces; inline content is the last one,
    as it is. Raises Invalid if it cannot be written so that it can be read again."""
    content = record.content if isinstance(record, Accepted) else None
    try:
        kind, fixed = _payload(record)
    except struct.error as exc:
        raise Invalid(f"a number is out of range for the journal ({exc})") from exc
    size, crc = len(fixed), crc32c(fixed)
    if content:
        size, crc = size + len(content), crc32c(content, crc)
    if size > PAYLOAD_LIMIT:
        raise Invalid(f"a record of {size} bytes is too long for the journal")
    head = _HEAD.pack(_RECORD_MAGIC, kind, size, crc)
    start = head + _CRC.pack(crc32c(_PLACE.pack(offset) + head, seal)) + fixed
    return [start, content] if content else [start]


def note_bytes(dataset: str, name: str) -> int:
    """Return how long an Accepted record about a file of that name is, without content."""
    return RECORD_HEADER_SIZE + _ACCEPTED.size + len(dataset.encode()) + len(name.encode())


def _payload(record: Record) -> tuple[int, bytes]:
    match record:
        case Accepted():
            return _KIND_ACCEPTED, _accepted_payload(record)
        case Renamed():
            dataset, name = _dataset_bytes(record.dataset), _name_bytes(record.name)
            flags = 0 if record.replaced is None else _HAS_REPLACED
            fixed = _RENAMED.pack(
                record.entry, record.dataset_id, record.replaced or 0, flags, len(dataset), len(name)
            )
            return _KIND_RENAMED, fixed + dataset + name
        case Gone():
            return _KIND_GONE, _GONE.pack(len(record.entries)) + _entries_bytes(record.entries)
        case Begun():
            fixed = _BEGUN.pack(record.upload, len(record.entries))
            return _KIND_BEGUN, fixed + _entries_bytes(record.entries)


def _accepted_payload(record: Accepted) -> bytes:
    content = record.content
    if content is not None and (len(content) != record.size or len(content) > INLINE_LIMIT):
        raise Invalid(
            f"{printable(record.name)}: {len(content)} bytes of content for {record.size} in a record"
        )
    dataset, name = _dataset_bytes(record.dataset), _name_bytes(record.name)
    flags = (0 if record.crc is None else _HAS_CRC) | (0 if content is None else _HAS_CONTENT)
    flags |= _IS_DOUBTFUL if record.doubtful else 0
    fixed = _ACCEPTED.pack(
        record.entry,
        record.dataset_id,
        record.mtime_ns,
        record.size,
        record.crc or 0,
        flags,
        len(dataset),
        len(name),
    )
    return fixed + dataset + name


def _entries_bytes(entries: tuple[EntryId, ...]) -> bytes:
    return struct.pack(f">{len(entries)}Q", *entries)


@lru_cache(maxsize=256)
def _dataset_bytes(dataset: str) -> bytes:
    return check_label("dataset", dataset).encode()


def _name_bytes(name: str) -> bytes:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{printable(name)}: not valid UTF-8") from None
    if not _is_file_name(raw):
        raise Invalid(f"{printable(name)}: not a file name")
    return raw


def _is_file_name(raw: bytes) -> bool:
    return 0 < len(raw) <= NAME_LIMIT and raw not in (b".", b"..") and b"/" not in raw and b"\0" not in raw


def decode_segment(data: bytes, number: int, holder: HolderId) -> Iterator[Found | Gap]:
    """Yield the records of a whole segment, and what is between them that is none, in order.

    An empty segment has neither. Raises Invalid if it was written by a newer datas3tfs."""
    if not data:
        return
    expected, seal = segment_header(number, holder), seal_of(number, holder)
    trouble: tuple[int, _Unreadable] | None = None
    about: tuple[Accepted, ...] | None = ()
    at = len(expected)
    if not data.startswith(expected):
        _check_version(data)
        is_short = len(data) < len(expected) and expected.startswith(data)
        trouble = 0, _Unreadable("its header is not that of this segment of this journal", 0, is_short)
        at = _next_magic(data, 0)
        about = () if at == len(expected) else None
    while at < len(data):
        step = _record_at(data, seal, at)
        if isinstance(step, Found):
            if trouble is not None:
                yield Gap(Span(trouble[0], at), trouble[1].why, torn=False, about=about)
                trouble, about = None, ()
            yield step
            at = step.end
        else:
            trouble = trouble or (at, step)
            at = _next_magic(data, step.resume)
            if at != step.resume or about is None or step.about is None:
                about = None
            else:
                about = (*about, *step.about)
    if trouble is not None:
        start, cause = trouble
        # A file system may have made room for what it did not get to write before power was lost.
        is_torn = cause.torn or not data[start:].strip(b"\0")
        yield Gap(Span(start, len(data)), cause.why, is_torn, about)


def _check_version(data: bytes) -> None:
    head = data[: _SEGMENT.size]
    if data[_SEGMENT.size : SEGMENT_HEADER_SIZE] != _CRC.pack(crc32c(head)):
        return
    magic, version, _, number, _ = _SEGMENT.unpack(head)
    if magic == _SEGMENT_MAGIC and version > VERSION:
        raise Invalid(f"segment {number} of the journal is in format {version}, of a newer datas3tfs")


def _next_magic(data: bytes, start: int) -> int:
    at = data.find(_RECORD_MAGIC, start)
    return len(data) if at < 0 else at


def _record_at(data: bytes, seal: int, at: int) -> Found | _Unreadable:
    payload_start = at + RECORD_HEADER_SIZE
    if payload_start > len(data):
        return _Unreadable("it ends in the header of a record", len(data), torn=True)
    head = data[at : at + _HEAD.size]
    magic, kind, size, payload_crc = _HEAD.unpack(head)
    (head_crc,) = _CRC.unpack_from(data, at + _HEAD.size)
    if magic != _RECORD_MAGIC or head_crc != crc32c(_PLACE.pack(at) + head, seal):
        return _Unreadable("there is no header of a record", at + 1, torn=False)
    end = payload_start + size
    if end > len(data):
        return _Unreadable("it ends in a record", len(data), torn=True)
    if crc32c(data[payload_start:end]) != payload_crc:
        about = _about(kind, data, payload_start, end)
        return _Unreadable("the checksum of a record does not match", end, torn=False, about=about)
    try:
        record, content_size = _decode_payload(kind, data, payload_start, end)
    except (_Malformed, Invalid, UnicodeDecodeError, struct.error) as exc:
        return _Unreadable(f"a record makes no sense ({exc})", end, torn=False)
    return Found(record, Span(end - content_size, end), at, end)


def _about(kind: int, data: bytes, start: int, end: int) -> tuple[Accepted, ...] | None:
    """Return the files that a record with a damaged payload, and a whole header, is about; None: any.

    An accepted record names its file twice, by number and by name, and says how long its parts are: damage
    does not change all of that, so that it still fits. The others have nothing to tell damage by."""
    if kind == _KIND_BEGUN:
        return ()
    try:
        record, _ = _decode_payload(kind, data, start, end)
    except (_Malformed, Invalid, UnicodeDecodeError, struct.error):
        return None
    return (record,) if isinstance(record, Accepted) and record.entry else None


def _decode_payload(kind: int, data: bytes, start: int, end: int) -> tuple[Record, int]:
    """Return the record and the size of its inline content, which ends the payload."""
    if kind == _KIND_ACCEPTED:
        return _decode_accepted(data, start, end)
    if kind == _KIND_RENAMED:
        return _decode_renamed(data[start:end]), 0
    if kind == _KIND_GONE:
        payload = data[start:end]
        (count,) = _GONE.unpack_from(payload)
        return Gone(_decode_entries(payload, _GONE.size, count)), 0
    if kind == _KIND_BEGUN:
        payload = data[start:end]
        upload, count = _BEGUN.unpack_from(payload)
        return Begun(UploadId(upload), _decode_entries(payload, _BEGUN.size, count)), 0
    raise _Malformed(f"kind {kind}")


def _decode_accepted(data: bytes, start: int, end: int) -> tuple[Accepted, int]:
    fixed = data[start : min(end, start + _ACCEPTED.size)]
    entry, dataset_id, mtime_ns, size, crc, flags, dataset_size, name_size = _ACCEPTED.unpack(fixed)
    name_start = start + _ACCEPTED.size + dataset_size
    content_start = name_start + name_size
    content_size = size if flags & _HAS_CONTENT else 0
    if flags & ~(_HAS_CRC | _HAS_CONTENT | _IS_DOUBTFUL) or content_start + content_size != end:
        raise _Malformed("an accepted file whose parts do not fit")
    if content_size > INLINE_LIMIT:
        raise _Malformed(f"{content_size} bytes of content")
    record = Accepted(
        EntryId(entry),
        DatasetId(dataset_id),
        _dataset(data[name_start - dataset_size : name_start]),
        _name(data[name_start:content_start]),
        mtime_ns,
        size,
        crc if flags & _HAS_CRC else None,
        doubtful=bool(flags & _IS_DOUBTFUL),
    )
    return record, content_size


def _decode_renamed(payload: bytes) -> Renamed:
    entry, dataset_id, replaced, flags, dataset_size, name_size = _RENAMED.unpack_from(payload)
    name_start = _RENAMED.size + dataset_size
    if flags & ~_HAS_REPLACED or name_start + name_size != len(payload):
        raise _Malformed("a renamed file whose parts do not fit")
    return Renamed(
        EntryId(entry),
        DatasetId(dataset_id),
        _dataset(payload[_RENAMED.size : name_start]),
        _name(payload[name_start:]),
        EntryId(replaced) if flags & _HAS_REPLACED else None,
    )


def _decode_entries(payload: bytes, start: int, count: int) -> tuple[EntryId, ...]:
    if len(payload) - start != 8 * count:
        raise _Malformed(f"{count} entries in {len(payload)} bytes")
    return struct.unpack_from(f">{count}Q", payload, start)


@lru_cache(maxsize=256)
def _dataset(raw: bytes) -> str:
    return check_label("dataset", raw.decode())


def _name(raw: bytes) -> str:
    if not _is_file_name(raw):
        raise _Malformed("not a file name")
    return raw.decode()

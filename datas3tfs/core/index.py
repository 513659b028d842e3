"""The index of a datarange: where each datapoint lies in its TAR, and what a listing must show of it.

An `Index` is a read-only view of one flat buffer, laid out so that it can be mapped from a file:

    header (64 bytes)  ‖  records (16 bytes per datapoint)  ‖  tail (the columns 16 bytes cannot hold)

The records are those of PRODUCT section 3, shared with the Go implementations. docs/FORMAT.md has the
byte tables; indexfile.py has the form stored in S3. Values come out of the buffer one by one or in
batches; nothing is kept per datapoint. A buffer is checked as a whole by `open_index`, once.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datas3tfs.core import tar
from datas3tfs.core.checksums import CHUNK, crc32c
from datas3tfs.core.names import check_extension, datapoint_name
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Invalid

MAGIC = b"D3TFSIDX"
VERSION = 1
RECORD_SIZE = 16
HEADER_SIZE = 64
HAS_CRC = 1  # the only flag: the CRC32C columns are present
_HEADER = struct.Struct(">8sHHIQQQQIIBBxxI")
_RECORD = struct.Struct(">QQ")
_SECOND = 1_000_000_000
_SIZE_MASK = (1 << 48) - 1

Column = np.ndarray[tuple[int], np.dtype[Any]]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Columns:
    """All an index says, a column of whole numbers for each thing; made to be put together with others'."""

    offsets: Column  # of the first header block
    packed: Column  # header blocks << 48 | content size
    mtimes_ns: Column  # signed
    crcs: Column | None
    chunk_crcs: Column  # of those with more than one chunk, one after the other
    extension_ids: Column  # which of *extensions*
    extensions: list[str]


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """The 64 bytes in front: what the index is of, how wide its columns are, and their checksums."""

    flags: int
    extensions: int  # how many different ones
    first: int  # key of the first datapoint
    count: int
    object_size: int  # bytes of the TAR
    tail_size: int
    records_crc: int
    tail_crc: int
    mtime_width: int  # 0 all the same, 4 seconds, 8 nanoseconds
    extension_width: int  # 0 all the same, 1 or 2

    def encode(self) -> bytes:
        """Return the 64 bytes, the last four being the CRC32C of the others."""
        body = _HEADER.pack(
            MAGIC, VERSION, self.flags, self.extensions, self.first, self.count, self.object_size,
            self.tail_size, self.records_crc, self.tail_crc, self.mtime_width, self.extension_width, 0,
        )[:-4]  # fmt: skip
        return body + crc32c(body).to_bytes(4, "big")

    @staticmethod
    def decode(raw: bytes) -> IndexHeader:
        """Parse the 64 bytes. Raises Corrupt if they are damaged or of a version unknown here."""
        if len(raw) != HEADER_SIZE or not raw.startswith(MAGIC):
            raise Corrupt("not an index")
        if crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "big"):
            raise Corrupt("index header fails its checksum")
        version, *fields, _ = _HEADER.unpack(raw)[1:]
        if version != VERSION:
            raise Corrupt(f"index has version {version}, this program reads {VERSION}")
        return IndexHeader(*fields)


@dataclass(frozen=True, slots=True)
class Entry:
    """One datapoint in its TAR. *crc* is None if whoever wrote the index did not know it."""

    key: int
    extension: str
    header: Span  # its TAR header blocks, in the object
    content: Span
    mtime_ns: int
    crc: int | None

    @property
    def name(self) -> str:
        """Its file name."""
        return datapoint_name(self.key, self.extension)

    @property
    def size(self) -> int:
        """Content in bytes."""
        return self.content.length


class Index:
    """A checked index; made by `open_index` only. Slots count from 0; slot *i* is key `first + i`."""

    def __init__(self, buffer: memoryview, header: IndexHeader) -> None:
        self.header = header
        self.first = header.first
        self.count = header.count
        self.object_size = header.object_size
        self._buffer = buffer
        self._tail = _tail_columns(buffer, header)
        self._large: tuple[Column, Column] | None = None

    @property
    def flat(self) -> memoryview:
        """All of it, as it was built."""
        return self._buffer

    @property
    def records(self) -> memoryview:
        """The 16-byte records, which others can read, too."""
        return self._buffer[HEADER_SIZE : HEADER_SIZE + RECORD_SIZE * self.count]

    def record(self, slot: int) -> tuple[int, int, int]:
        """Return (offset of the first header block, header blocks, content size)."""
        return unpack_record(self._buffer, HEADER_SIZE + RECORD_SIZE * slot)

    def entry(self, slot: int) -> Entry:
        """Return all about the datapoint in *slot*."""
        offset, blocks, size = self.record(slot)
        content = offset + blocks * tar.BLOCK
        return Entry(
            self.first + slot,
            self.extension(slot),
            Span(offset, content),
            Span(content, content + size),
            self.mtimes_ns(slot, 1)[0],
            int(self._tail.crcs[slot]) if self._tail.crcs is not None else None,
        )

    def places(self, slot: int, count: int) -> tuple[Places, Places, Places]:
        """Return (offsets of the first header block, header blocks, content sizes) of *count* datapoints."""
        start = HEADER_SIZE + RECORD_SIZE * slot
        pairs = np.frombuffer(self._buffer, ">u8", 2 * count, start).astype(np.int64)
        return pairs[::2], pairs[1::2] >> 48, pairs[1::2] & _SIZE_MASK

    def places_of(self, slots: Places) -> tuple[Places, Places, Places]:
        """Return what `places` does, of datapoints anywhere."""
        pairs = np.frombuffer(self._buffer, ">u8", 2 * self.count, HEADER_SIZE).reshape(-1, 2)
        chosen = pairs[slots].astype(np.int64)
        return chosen[:, 0], chosen[:, 1] >> 48, chosen[:, 1] & _SIZE_MASK

    def extension(self, slot: int) -> str:
        """Return the extension of the datapoint in *slot*."""
        ids = self._tail.extension_ids
        return self._tail.extensions[0 if ids is None else int(ids[slot])]

    def sizes(self, slot: int, count: int) -> list[int]:
        """Return the content sizes of *count* datapoints from *slot* on."""
        sizes: list[int] = (self._packed(slot, count) & np.uint64(_SIZE_MASK)).tolist()
        return sizes

    def mtimes_ns(self, slot: int, count: int) -> list[int]:
        """Return the modification times (nanoseconds since the epoch) of *count* datapoints."""
        base, column = self._tail.mtime_base, self._tail.mtimes
        if column is None:
            return [base] * count
        unit = _SECOND if self.header.mtime_width == 4 else 1
        return [base + delta * unit for delta in column[slot : slot + count].tolist()]

    def names(self, slot: int, count: int) -> list[bytes]:
        """Return the file names of *count* datapoints from *slot* on, encoded, as listings need them."""
        key, ids, table = self.first + slot, self._tail.extension_ids, self._tail.encoded
        if ids is None:
            return [b"%020d.%s" % (key + i, table[0]) for i in range(count)]
        return [b"%020d.%s" % (key + i, table[e]) for i, e in enumerate(ids[slot : slot + count].tolist())]

    def crcs(self, slot: int, count: int) -> list[int] | None:
        """Return the CRC32Cs of the contents of *count* datapoints from *slot* on; None if unknown."""
        column = self._tail.crcs
        return None if column is None else column[slot : slot + count].tolist()

    def footprint(self) -> int:
        """Return how many bytes all datapoints take in the object: headers, contents and padding."""
        packed = self._packed(0, self.count)
        blocks = (packed & np.uint64(_SIZE_MASK)) + np.uint64(tar.BLOCK - 1)
        return int((packed >> np.uint64(48)).sum() + (blocks // np.uint64(tar.BLOCK)).sum()) * tar.BLOCK

    def chunk_crc(self, slot: int, chunk: int) -> int | None:
        """Return the CRC32C of one chunk of a datapoint larger than a chunk; None if unknown."""
        if self._tail.chunk_crcs is None:
            return None
        slots, starts = self._large_slots()
        return int(self._tail.chunk_crcs[int(starts[np.searchsorted(slots, slot)]) + chunk])

    def columns(self, slots: Span | None = None) -> Columns:
        """Return what is said of *slots* (of all, without), copied."""
        first, stop = (0, self.count) if slots is None else (slots.start, slots.stop)
        count, tail = stop - first, self._tail
        start = HEADER_SIZE + RECORD_SIZE * first
        pairs = np.frombuffer(self._buffer, ">u8", 2 * count, start).astype(np.uint64)
        unit = _SECOND if self.header.mtime_width == 4 else 1
        deltas = np.zeros(count, np.int64)
        if tail.mtimes is not None:
            deltas = tail.mtimes[first:stop].astype(np.int64)
        ids = np.zeros(count, np.uint32) if tail.extension_ids is None else tail.extension_ids[first:stop]
        return Columns(
            pairs[::2],
            pairs[1::2],
            deltas * unit + tail.mtime_base,
            None if tail.crcs is None else tail.crcs[first:stop].astype(np.uint32),
            self._chunk_crcs(first, stop).astype(np.uint32),
            ids.astype(np.uint32),
            tail.extensions,
        )

    def _chunk_crcs(self, first: int, stop: int) -> Column:
        """Return the chunk CRCs of the datapoints in the slots from *first* to before *stop*."""
        if self._tail.chunk_crcs is None:
            return np.empty(0, np.uint32)
        slots, starts = self._large_slots()
        begin, end = np.searchsorted(slots, (first, stop)).tolist()
        return self._tail.chunk_crcs[starts[begin] : starts[end]]

    def slot_at(self, position: int) -> int:
        """Return the last slot whose headers start at or before *position* in the object, or 0."""
        return max(0, bisect_right(range(self.count), position, key=lambda slot: self.record(slot)[0]) - 1)

    def _packed(self, slot: int, count: int) -> npt.NDArray[np.uint64]:
        start = HEADER_SIZE + RECORD_SIZE * slot
        pairs = np.frombuffer(self._buffer, ">u8", 2 * min(count, self.count - slot), start)
        return pairs[1::2].astype(np.uint64)

    def _large_slots(self) -> tuple[Column, Column]:
        """Slots with more than one chunk; where their chunk CRCs start, and end. Made at first need."""
        if self._large is None:
            sizes = self._packed(0, self.count) & np.uint64(_SIZE_MASK)
            slots = np.flatnonzero(sizes > CHUNK)
            counts = -(-sizes[slots].astype(np.int64) // CHUNK)
            self._large = slots, np.concatenate(([0], np.cumsum(counts)))
        return self._large


def have_same_datapoints(one: Index, other: Index, keys: Span) -> bool:
    """Say whether two indices tell the same of the datapoints *keys*, which both have, wherever these lie:
    name, size, time and checksum. False if a checksum is unknown."""
    columns, others = one.columns(), other.columns()
    if columns.crcs is None or others.crcs is None:
        return False
    slots = slice(keys.start - one.first, keys.stop - one.first)
    theirs = slice(keys.start - other.first, keys.stop - other.first)
    numbers = {extension: number for number, extension in enumerate(columns.extensions)}
    table = np.asarray([numbers.get(extension, -1) for extension in others.extensions])
    mask = np.uint64(_SIZE_MASK)
    return (
        np.array_equal(columns.packed[slots] & mask, others.packed[theirs] & mask)
        and np.array_equal(columns.crcs[slots], others.crcs[theirs])
        and np.array_equal(columns.mtimes_ns[slots], others.mtimes_ns[theirs])
        and np.array_equal(columns.extension_ids[slots], table[others.extension_ids[theirs]])
    )


def unpack_record(buffer: bytes | memoryview, position: int) -> tuple[int, int, int]:
    """Return (offset of the first header block, header blocks, content size) of the record there."""
    offset, packed = _RECORD.unpack_from(buffer, position)
    return offset, packed >> 48, packed & _SIZE_MASK


def open_index(buffer: memoryview, *, first: int, count: int, object_size: int) -> Index:
    """Check *buffer* and return it as an Index of *count* datapoints from *first* on.

    Raises Corrupt if it is damaged, of another datarange, or points outside the object.
    """
    header = IndexHeader.decode(bytes(buffer[:HEADER_SIZE]))
    if (header.first, header.count, header.object_size) != (first, count, object_size):
        raise Corrupt(
            f"index is of {header.count} datapoints from {header.first} in {header.object_size} bytes, "
            f"not of {count} from {first} in {object_size}"
        )
    records_stop = HEADER_SIZE + RECORD_SIZE * count
    if len(buffer) != records_stop + header.tail_size:
        raise Corrupt("index is cut short or too long")
    if crc32c(buffer[HEADER_SIZE:records_stop]) != header.records_crc:
        raise Corrupt("index records fail their checksum")
    if crc32c(buffer[records_stop:]) != header.tail_crc:
        raise Corrupt("index columns fail their checksum")
    check_records(buffer[HEADER_SIZE:records_stop], object_size)
    return Index(buffer, header)


def check_records(records: bytes | memoryview, object_size: int) -> None:
    """Raise Corrupt unless every record lies inside the object, after the one before it, on a block."""
    pairs = np.frombuffer(records, ">u8").reshape(-1, 2).astype(np.uint64)
    offsets, packed = pairs[:, 0], pairs[:, 1]
    blocks, sizes = packed >> np.uint64(48), packed & np.uint64(_SIZE_MASK)
    limit = np.uint64(min(object_size, 1 << 62))
    inside = (offsets < limit) & (blocks > 0) & (offsets % np.uint64(tar.BLOCK) == 0)
    stops = np.where(inside, offsets, 0) + blocks * np.uint64(tar.BLOCK) + sizes  # cannot wrap: < 2^62 + 2^49
    inside &= stops <= limit
    inside[1:] &= offsets[1:] >= stops[:-1]
    if not inside.all():
        raise Corrupt(f"index record {int(np.argmin(inside))} lies outside the object or overlaps another")


@dataclass(frozen=True, slots=True)
class _Tail:
    mtime_base: int
    mtimes: Column | None
    crcs: Column | None
    extension_ids: Column | None
    chunk_crcs: Column | None
    extensions: list[str]
    encoded: list[bytes]  # the extensions again


def _tail_columns(buffer: memoryview, header: IndexHeader) -> _Tail:
    """Cut the tail into its columns. Raises Corrupt if they do not fill it exactly."""
    if header.mtime_width not in (0, 4, 8) or header.extension_width not in (0, 1, 2):
        raise Corrupt("index has columns of impossible width")
    position = HEADER_SIZE + RECORD_SIZE * header.count

    def take(width: int, count: int) -> Column | None:
        nonlocal position
        if not width or not count:
            return None
        if position + width * count > len(buffer):
            raise Corrupt("index columns are cut short")
        column = np.frombuffer(buffer, f">u{width}", count, position)
        position += width * count
        return column

    base = int.from_bytes(buffer[position : position + 8], "big", signed=True)
    position += 8
    mtimes = take(header.mtime_width, header.count)
    crcs = take(4 if header.flags & HAS_CRC else 0, header.count)
    ids = take(header.extension_width, header.count)
    chunks = take(4 if header.flags & HAS_CRC else 0, _chunks_in_all(buffer, header))
    extensions = _extension_table(bytes(buffer[position:]), header.extensions)
    _check_times(base, mtimes, header.mtime_width)
    highest = 0 if ids is None else int(ids.max())
    if highest >= len(extensions) or (ids is None and len(extensions) != 1):
        raise Corrupt("index names an extension it does not have")
    return _Tail(base, mtimes, crcs, ids, chunks, extensions, [e.encode() for e in extensions])


def _check_times(base: int, mtimes: Column | None, width: int) -> None:
    """Raise Corrupt if a time is beyond 64 bits: nobody could hand it on."""
    latest = 0 if mtimes is None else int(mtimes.max()) * (_SECOND if width == 4 else 1)
    if base + latest >= 1 << 63:
        raise Corrupt("index has impossible times")


def _chunks_in_all(buffer: memoryview, header: IndexHeader) -> int:
    pairs = np.frombuffer(buffer, ">u8", 2 * header.count, HEADER_SIZE)
    sizes = pairs[1::2].astype(np.uint64) & np.uint64(_SIZE_MASK)
    large = sizes[sizes > CHUNK].astype(np.int64)
    return int((-(-large // CHUNK)).sum())


def _extension_table(raw: bytes, count: int) -> list[str]:
    """Parse *count* extensions, each a length byte and UTF-8, filling *raw*. Raises Corrupt."""
    extensions: list[str] = []
    position = 0
    while position < len(raw):
        stop = position + 1 + raw[position]
        try:
            extension = raw[position + 1 : stop].decode()
            check_extension(extension, "extension in an index")
        except (UnicodeDecodeError, Invalid) as exc:
            raise Corrupt(f"index has an impossible extension ({exc})") from None
        extensions.append(extension)
        position = stop
    if position != len(raw) or len(extensions) != count:
        raise Corrupt("index has a damaged table of extensions")
    return extensions

"""Judge what somebody has uploaded: an archive, and the index that came with it.

Both are hostile until here. The index says where each datapoint lies; `read_client_index` takes it in.
Against an archive that was scanned as a whole it is compared entry by entry (`check_against`). For a
larger one, `HeaderCheck` plans which bytes to fetch and looks at those: the headers of every datapoint,
or of a sample, whatever lies between datapoints, and the end. Pure; not here: fetching (engine/inspection).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datas3tfs.core import tar, zstdframes
from datas3tfs.core.checksums import chunk_count
from datas3tfs.core.index import RECORD_SIZE, Column, Index, open_index, unpack_record
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import BareRecords, decode_index_file, encode_index_file
from datas3tfs.core.names import KEY_LIMIT, printable
from datas3tfs.core.scan import HeadersGoOn, check_end, read_headers
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Invalid

# Of one upload: its index (with what is needed to make one, about 100 bytes a datapoint) is in memory.
DATAPOINTS_LIMIT = 1 << 22
_SAMPLE = 256
_GAP = 1 << 20  # read through, as in engine/learn.py: another request costs more
_REQUEST = 8 << 20
_BETWEEN = tar.EXTENDED_LIMIT + tar.BLOCK + (1 << 20)  # headers and directories before one datapoint, at most
_GAPS_LIMIT = 1000  # datapoints of a sampled object that something lies before
_END = 1 << 20  # bytes looked at, at either end of what follows the last datapoint

_EXTENDED_HINT = (
    "an extended header (PAX or GNU long name) is part of its headers: give the true number of header "
    "blocks, or write the archive without any (tar --format=ustar)"
)


@dataclass(frozen=True, slots=True)
class InspectionLimits:
    """How closely an object is looked at, by its size in bytes.

    Up to *scanned* it is read as a whole, so that it gets checksums; only objects so small may be put
    through one URL, which stays valid: what is put later cannot be taken for what was inspected. Up to
    *headers* every header is looked at; beyond, those of a sample.
    """

    scanned: int = 64 << 20
    headers: int = 1 << 30


@dataclass(frozen=True, slots=True)
class ClientIndex:
    """The index as it was sent, consistent in itself; *index* is None if it has the records only."""

    first: int
    records: bytes | memoryview
    index: Index | None


def check_announced(keys: Span, size: int) -> None:
    """Raise Invalid if no archive of *size* bytes can hold *keys*, or they are too many for one."""
    if not keys or keys.start < 0 or keys.stop > KEY_LIMIT:
        raise Invalid(f"keys {keys.start} to {keys.last}: not a range of keys below 2^63")
    if keys.length > DATAPOINTS_LIMIT:
        raise Invalid(f"{keys.length} datapoints: one datarange has at most {DATAPOINTS_LIMIT}; make several")
    if size < (keys.length + 1) * tar.BLOCK:
        raise Invalid(f"{size} bytes are too few for a TAR of {keys.length} datapoints")


def read_client_index(raw: bytes, keys: Span, object_size: int) -> ClientIndex:
    """Take in the index that came with an archive of *keys*: records, raw or in zstd frames, or our full
    form. Raises Invalid if it is damaged, is not of so many datapoints, or points outside the archive."""
    compressed = raw.startswith((zstdframes.MAGIC, zstdframes.SKIPPABLE_MAGIC))
    if not compressed and len(raw) % RECORD_SIZE:
        raise Invalid(f"the index has {len(raw)} bytes, not a multiple of {RECORD_SIZE}")
    if not compressed and len(raw) != RECORD_SIZE * keys.length:
        raise Invalid(
            f"the index has {len(raw) // RECORD_SIZE} records, but {keys.length} datapoints were announced "
            "(directories and global headers have none)"
        )
    try:
        decoded = decode_index_file(raw, count=keys.length, object_size=object_size)
        if isinstance(decoded, BareRecords):
            return ClientIndex(keys.start, decoded.records, None)
        flat = memoryview(decoded)
        index = open_index(flat, first=keys.start, count=keys.length, object_size=object_size)
    except Corrupt as exc:
        raise Invalid(f"the index is not one of this archive: {exc}") from None
    return ClientIndex(keys.start, index.records, index)


def check_against(theirs: ClientIndex, ours: Index) -> None:
    """Raise Invalid unless an index says what *ours* does, which was made from the archive itself."""
    if theirs.records != ours.records:
        mine, other = _pairs(ours.records), _pairs(theirs.records)
        slot = int(np.argmax((mine != other).any(axis=1)))
        raise _misplaced(
            ours.first + slot, unpack_record(theirs.records, RECORD_SIZE * slot), ours.record(slot)
        )
    if theirs.index is None or (crcs := theirs.index.crcs(0, ours.count)) is None:
        return
    for slot, (crc, true) in enumerate(zip(crcs, ours.crcs(0, ours.count) or crcs, strict=True)):
        if crc != true:
            raise Invalid(f"the index has another CRC32C for datapoint {ours.first + slot} than its content")


def check_same(merged: Index, source: Index) -> None:
    """Raise Invalid, naming the first that differs, unless *merged* has every datapoint of *source*: under
    its name, with its size and its content. Both have checksums."""
    theirs = _described(merged, source.first - merged.first, source.count)
    ours = _described(source, 0, source.count)
    for key, (one, other) in enumerate(zip(ours, theirs, strict=True), source.first):
        if one != other:
            raise Invalid(f"datapoint {key} is not what it was: committed datapoints stay as they are")


def _described(index: Index, start: int, count: int) -> Iterator[tuple[bytes, int, int]]:
    crcs = index.crcs(start, count) or []
    return zip(index.names(start, count), index.sizes(start, count), crcs, strict=True)


class HeaderCheck:
    """Looks at the headers in an archive too large to be read as a whole, request by request, in order.

    With *every*, it learns names and times from them; checksums are those of the index, if it has some.
    """

    def __init__(self, theirs: ClientIndex, object_size: int, *, every: bool) -> None:
        self._theirs = theirs
        self._object_size = object_size
        self._builder = IndexBuilder() if every else None
        places = _Places(theirs.records)
        self._slots, self._starts, self._stops = _probes(places, theirs.first, every=every)
        self._done = 0
        self._end = places.end
        self.requests = [*plan_requests(self._starts, self._stops), *self._end_requests()]

    def _end_requests(self) -> list[Span]:
        size = self._object_size
        if self._end + tar.BLOCK > size:
            raise Invalid(
                f"the archive is cut short: no zero block is behind the last datapoint, at byte {self._end}"
            )
        near = Span(self._end, min(self._end + _END, size))
        far = Span(max(near.stop, size - _END), size)
        return [near, far] if far else [near]

    def look(self, request: Span, data: bytes) -> None:
        """Judge the bytes of the next of *requests*. Raises Invalid, naming the datapoint."""
        view = memoryview(data)
        while self._done < len(self._slots) and request.covers(probe := self._probe(self._done)):
            part = probe.shifted(-request.start)
            self._look_at(int(self._slots[self._done]), probe, bytes(view[part.start : part.stop]))
            self._done += 1
        if request.start == self._end:
            check_end(data, self._end)
        elif request.start > self._end and data.strip(b"\0"):
            raise Invalid("data after the end of the archive")

    def finish(self) -> bytes:
        """Return the index object to store, once all requests have been looked at."""
        first, index = self._theirs.first, self._theirs.index
        if self._builder is not None:
            return encode_index_file(self._builder.finish(first=first, object_size=self._object_size))
        if index is not None:
            return encode_index_file(bytes(index.flat))
        return zstdframes.compress(bytes(self._theirs.records))

    def _probe(self, number: int) -> Span:
        return Span(int(self._starts[number]), int(self._stops[number]))

    def _look_at(self, slot: int, probe: Span, blocks: bytes) -> None:
        key = self._theirs.first + slot
        record = unpack_record(self._theirs.records, RECORD_SIZE * slot)
        try:
            offset, member, name = read_headers(blocks, probe.start, key)
        except HeadersGoOn as exc:
            kind = blocks[record[0] - probe.start :][156]
            raise Invalid(
                f"index record {slot} says {record[1]} header blocks for datapoint {key}, but {exc}"
                + (f": {_EXTENDED_HINT}" if kind in tar.EXTENDED else "")
            ) from None
        if (offset, member.header_blocks, member.size) != record:
            raise _misplaced(key, record, (offset, member.header_blocks, member.size))
        index = self._theirs.index
        if index is not None and self._builder is None and index.extension(slot) != name.extension:
            raise Invalid(f"{printable(str(name))}: the index has another name for it")
        if self._builder is not None:
            self._builder.add(
                offset=offset,
                header_blocks=member.header_blocks,
                size=member.size,
                mtime_ns=member.mtime_ns,
                extension=name.extension,
                crc=_crc(index, slot),
                chunk_crcs=_chunk_crcs(index, slot, member.size),
            )


def plan_requests(starts: Column, stops: Column) -> list[Span]:
    """Return what `coalesce` would of the ascending spans from *starts* to *stops*, of which there may be
    millions."""
    apart = np.flatnonzero(starts[1:] - stops[:-1] > _GAP) + 1  # too far from the one before
    requests: list[Span] = []
    first = 0
    while first < len(starts):
        fitting = int(np.searchsorted(stops, starts[first] + _REQUEST, side="right"))
        following = apart[np.searchsorted(apart, first, side="right") :][:1].tolist() or [len(starts)]
        end = max(first + 1, min(fitting, following[0]))
        requests.append(Span(int(starts[first]), int(stops[end - 1])))
        first = end
    return requests


class _Places:
    """The records as columns: where each datapoint's headers, content and padding end."""

    def __init__(self, records: bytes | memoryview) -> None:
        pairs = _pairs(records).astype(np.int64)
        self.offsets: Column = pairs[:, 0]
        blocks, sizes = pairs[:, 1] >> 48, pairs[:, 1] & ((1 << 48) - 1)
        self.contents: Column = self.offsets + blocks * tar.BLOCK
        stops = self.contents + (sizes + tar.BLOCK - 1) // tar.BLOCK * tar.BLOCK
        self.end = int(stops[-1])
        self.before: Column = np.concatenate(([0], stops[:-1]))  # where the datapoint before ends


def _probes(places: _Places, first: int, *, every: bool) -> tuple[Column, Column, Column]:
    """Return (slots, starts, stops): which datapoints to look at, and from where to their content. That is
    all since the datapoint before, so that nothing can hide in between."""
    count = len(places.offsets)
    if every:
        slots = np.arange(count)
    else:
        gaps = np.flatnonzero(places.before != places.offsets)
        if len(gaps) > _GAPS_LIMIT:
            raise Invalid(
                f"other things than datapoints lie at {len(gaps)} places in the archive, which is too many"
            )
        slots = np.union1d(np.linspace(0, count - 1, min(count, _SAMPLE + 2)).astype(np.int64), gaps)
    starts, stops = places.before[slots], places.contents[slots]
    if int((stops - starts).max()) > _BETWEEN:
        slot = int(slots[np.argmax(stops - starts)])
        raise Invalid(
            f"too much lies before the content of datapoint {first + slot}: more than {_BETWEEN} bytes"
        )
    return slots, starts, stops


def _misplaced(key: int, said: tuple[int, int, int], true: tuple[int, int, int]) -> Invalid:
    shown = "{1} header blocks at byte {0}, {2} bytes of content"
    hint = f"; {_EXTENDED_HINT}" if said[1] == 1 < true[1] else ""
    return Invalid(
        f"the index is wrong about datapoint {key}: it says {shown.format(*said)}; there are "
        f"{shown.format(*true)}{hint}"
    )


def _pairs(records: bytes | memoryview) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    return np.frombuffer(records, ">u8").reshape(-1, 2)


def _crc(index: Index | None, slot: int) -> int | None:
    crcs = None if index is None else index.crcs(slot, 1)
    return None if crcs is None else crcs[0]


def _chunk_crcs(index: Index | None, slot: int, size: int) -> list[int]:
    if index is None:
        return []
    crcs = (index.chunk_crc(slot, number) for number in range(chunk_count(size)))
    return [crc for crc in crcs if crc is not None]

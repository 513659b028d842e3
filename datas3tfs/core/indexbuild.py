"""Build an index, datapoint by datapoint, or from several others; a few dozen bytes of memory for each."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.index import HAS_CRC, Column, Columns, Index, IndexHeader
from datas3tfs.errors import Invalid

_SECOND = 1_000_000_000
_EXTENSIONS_LIMIT = 1 << 16  # ids of two bytes


class IndexBuilder:
    """Collects datapoints in key order; `finish` returns the flat form of core/index.py."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._packed = array("Q")
        self._mtimes = array("q")
        self._crcs = array("I")
        self._chunk_crcs = array("I")
        self._extension_ids = array("I")
        self._extensions: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def add(
        self,
        *,
        offset: int,
        header_blocks: int,
        size: int,
        mtime_ns: int,
        extension: str,
        crc: int | None,
        chunk_crcs: Sequence[int] = (),
    ) -> None:
        """Append the next datapoint. *crc* must be known for all datapoints or for none.

        Raises Invalid if there are more different extensions than an index can number.
        """
        self._offsets.append(offset)
        self._packed.append(header_blocks << 48 | size)
        self._mtimes.append(mtime_ns)
        number = self._extensions.setdefault(extension, len(self._extensions))
        if number >= _EXTENSIONS_LIMIT:
            raise Invalid(f"more than {_EXTENSIONS_LIMIT} different extensions in one datarange")
        self._extension_ids.append(number)
        if crc is not None:
            self._crcs.append(crc)
            self._chunk_crcs.extend(chunk_crcs)

    def finish(self, *, first: int, object_size: int) -> bytes:
        """Return the flat index of the datapoints added, the first of which has key *first*."""
        columns = Columns(
            np.asarray(self._offsets, np.uint64),
            np.asarray(self._packed, np.uint64),
            np.asarray(self._mtimes, np.int64),
            np.asarray(self._crcs, np.uint32) if self._crcs else None,
            np.asarray(self._chunk_crcs, np.uint32),
            np.asarray(self._extension_ids, np.uint32),
            list(self._extensions),
        )
        return flat_index(columns, first=first, object_size=object_size)


def flat_index(columns: Columns, *, first: int, object_size: int) -> bytes:
    """Return the flat index of the datapoints in *columns*, the first of which has key *first*."""
    count, extensions = len(columns.offsets), columns.extensions
    pairs = np.empty((count, 2), ">u8")
    pairs[:, 0], pairs[:, 1] = columns.offsets, columns.packed
    records = pairs.tobytes()
    mtime_width, mtimes = _narrow_times(columns.mtimes_ns)
    many = len(extensions) > 1
    extension_width = (1 if len(extensions) <= 256 else 2) if many else 0
    has_crcs = columns.crcs is not None
    tail = b"".join(
        [
            mtimes,
            b"" if columns.crcs is None else columns.crcs.astype(">u4").tobytes(),
            columns.extension_ids.astype(f">u{extension_width}").tobytes() if many else b"",
            columns.chunk_crcs.astype(">u4").tobytes() if has_crcs else b"",
            *(bytes([len(raw := extension.encode())]) + raw for extension in extensions),
        ]
    )
    header = IndexHeader(
        HAS_CRC if has_crcs else 0, len(extensions), first, count, object_size,
        len(tail), crc32c(records), crc32c(tail), mtime_width, extension_width,
    )  # fmt: skip
    return header.encode() + records + tail


def merge_indices(sources: Sequence[Index], starts: Sequence[int], object_size: int) -> bytes:
    """Return the flat index of a TAR of *object_size* bytes made of *sources*, adjacent in key order, the
    first datapoint of each being at *starts*. It has checksums if all of them have.

    Raises Invalid if they have more different extensions than an index can number.
    """
    numbers: dict[str, int] = {}
    moved = [_moved(source.columns(), start, numbers) for source, start in zip(sources, starts, strict=True)]
    crcs = [one.crcs for one in moved if one.crcs is not None]
    is_known = len(crcs) == len(moved)
    merged = Columns(
        np.concatenate([one.offsets for one in moved]),
        np.concatenate([one.packed for one in moved]),
        np.concatenate([one.mtimes_ns for one in moved]),
        np.concatenate(crcs) if is_known else None,
        np.concatenate([one.chunk_crcs for one in moved]),
        np.concatenate([one.extension_ids for one in moved]),
        list(numbers),
    )
    return flat_index(merged, first=sources[0].first, object_size=object_size)


def _moved(columns: Columns, start: int, numbers: dict[str, int]) -> Columns:
    """Return *columns* with the first datapoint at *start*, and the extensions' *numbers*, which may grow."""
    table = [numbers.setdefault(extension, len(numbers)) for extension in columns.extensions]
    if len(numbers) > _EXTENSIONS_LIMIT:
        raise Invalid(f"more than {_EXTENSIONS_LIMIT} different extensions in one datarange")
    return replace(
        columns,
        offsets=columns.offsets - columns.offsets[0] + np.uint64(start),
        extension_ids=np.asarray(table, np.uint32)[columns.extension_ids],
    )


def _narrow_times(column: Column) -> tuple[int, bytes]:
    """Return (width, base ‖ column): nothing per datapoint if all are the same, 4 bytes if whole
    seconds within 136 years, 8 bytes of nanoseconds otherwise."""
    base = int(column.min())
    deltas = (column - base).astype(np.uint64)
    prefix = base.to_bytes(8, "big", signed=True)
    if not deltas.any():
        return 0, prefix
    if not (deltas % np.uint64(_SECOND)).any() and int(deltas.max()) // _SECOND < 1 << 32:
        return 4, prefix + (deltas // np.uint64(_SECOND)).astype(">u4").tobytes()
    return 8, prefix + deltas.astype(">u8").tobytes()

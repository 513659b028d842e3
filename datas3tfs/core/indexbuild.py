"""Build an index, datapoint by datapoint, in a few dozen bytes of memory each."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.index import HAS_CRC, IndexHeader
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
        count = len(self)
        pairs = np.empty((count, 2), ">u8")
        pairs[:, 0], pairs[:, 1] = self._offsets, self._packed
        records = pairs.tobytes()
        mtime_width, mtimes = _narrow_times(self._mtimes)
        many = len(self._extensions) > 1
        extension_width = (1 if len(self._extensions) <= 256 else 2) if many else 0
        tail = b"".join(
            [
                mtimes,
                np.asarray(self._crcs, ">u4").tobytes(),
                np.asarray(self._extension_ids, f">u{extension_width}").tobytes() if many else b"",
                np.asarray(self._chunk_crcs, ">u4").tobytes(),
                *(bytes([len(raw := extension.encode())]) + raw for extension in self._extensions),
            ]
        )
        header = IndexHeader(
            HAS_CRC if self._crcs else 0, len(self._extensions), first, count, object_size,
            len(tail), crc32c(records), crc32c(tail), mtime_width, extension_width,
        )  # fmt: skip
        return header.encode() + records + tail


def _narrow_times(times: array[int]) -> tuple[int, bytes]:
    """Return (width, base ‖ column): nothing per datapoint if all are the same, 4 bytes if whole
    seconds within 136 years, 8 bytes of nanoseconds otherwise."""
    column = np.asarray(times, np.int64)
    base = int(column.min())
    deltas = (column - base).astype(np.uint64)
    prefix = base.to_bytes(8, "big", signed=True)
    if not deltas.any():
        return 0, prefix
    if not (deltas % np.uint64(_SECOND)).any() and int(deltas.max()) // _SECOND < 1 << 32:
        return 4, prefix + (deltas // np.uint64(_SECOND)).astype(">u4").tobytes()
    return 8, prefix + deltas.astype(">u8").tobytes()

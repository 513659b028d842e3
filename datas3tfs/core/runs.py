"""Find datapoints that lie whole, one behind the other, in bytes from a TAR: no index, but many at a time.

Only those with plain headers (core/headers.py), in the order of their keys. Whatever a run ends at is for
who reads entry by entry, and strictly: that a run is short, or empty, says nothing against it. Not for
checking contents. Pure; a `RunFinder` belongs to one reader.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datas3tfs.core import headers, tar
from datas3tfs.core.names import parse_datapoint_name
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid

_DIGITS = 20  # of a key in a name
_SUFFIXES = 1024  # different ones remembered: most datasets have one, an archive may have any number
_FEW = 4  # datapoints: below, columns cost more than they save
# Looked at together: few at first, and after a header that was not plain, as those behind it are looked at
# again then; more as long as all are.
_LEAST, _MOST = 64, 4096
_PAUSE = 64  # entries until columns are tried again where they have found nothing


@dataclass(frozen=True, slots=True)
class Run:
    """Datapoints one behind the other, the first at the first key asked for; they end before byte *stop*."""

    names: list[str]
    starts: list[int]  # of the contents
    sizes: list[int]
    seconds: list[int]  # of the last change, since the epoch
    stop: int


class RunFinder:
    """Finds runs in the pieces of one TAR."""

    def __init__(self) -> None:
        self._limit = _LEAST
        self._pause = 0
        self._suffixes: dict[bytes, str | None] = {}

    def find(self, view: memoryview, at: int, keys: Span) -> Run | None:
        """Return the datapoints that lie from byte *at* on, where a header should be, and have *keys*, as
        many as can be said at once; None if those are none."""
        if self._pause:
            self._pause -= 1
            return None
        places, sizes, stop = _follow(view, at, min(self._limit, keys.length))
        if len(places) < _FEW:
            return None
        blocks = np.frombuffer(view[at : at + (len(view) - at) // tar.BLOCK * tar.BLOCK], np.uint8)
        rows = blocks.reshape(-1, tar.BLOCK)[(np.array(places) - at) // tar.BLOCK]
        names, expected = self._names(rows, keys.start)
        columns = headers.read_columns(rows[: len(names)], expected)
        right = columns.is_plain & (columns.sizes == sizes[: len(names)])
        count = len(names) if right.all() else int(np.argmin(right))
        if count < len(places):
            stop, self._limit, self._pause = places[count], _LEAST, 0 if count >= _FEW else _PAUSE
        else:
            self._limit = min(_MOST, 4 * self._limit)
        if not count:
            return None
        starts = [place + tar.BLOCK for place in places[:count]]
        return Run(names[:count], starts, sizes[:count], columns.seconds[:count].tolist(), stop)

    def _names(self, rows: headers.Bytes, key: int) -> tuple[list[str], list[bytes]]:
        """Return the names that *rows* may have if *key* is that of the first, as text and as bytes; fewer
        than rows if one can be no datapoint's."""
        raw = np.ascontiguousarray(rows[:, : headers.NAME_LIMIT]).view(f"S{headers.NAME_LIMIT}").ravel()
        names, expected = [], []
        for number, found in enumerate(raw.tolist(), key):
            ending = found[_DIGITS:]
            suffix = self._suffixes[ending] if ending in self._suffixes else self._learn(ending)
            if suffix is None:
                break
            names.append(f"{number:020d}{suffix}")
            expected.append(b"%020d%b" % (number, ending))
        return names, expected

    def _learn(self, ending: bytes) -> str | None:
        """Return what follows the digits of a name as text; None if that cannot be."""
        try:
            suffix = str(parse_datapoint_name("0" * _DIGITS + ending.decode()))[_DIGITS:]
        except (Invalid, UnicodeDecodeError):
            suffix = None
        if len(self._suffixes) >= _SUFFIXES:
            self._suffixes.clear()
        self._suffixes[ending] = suffix
        return suffix


def _follow(view: memoryview, at: int, limit: int) -> tuple[list[int], list[int], int]:
    """Go from header to header of regular files from byte *at* on, believing the sizes, as long as whole
    entries are there. Return (where each begins, the sizes, where the last ends)."""
    places: list[int] = []
    sizes: list[int] = []
    while len(places) < limit and at + tar.BLOCK <= len(view) and view[at + 156] == headers.REGULAR:
        try:
            size = int(bytes(view[at + 124 : at + 135]), 8)
        except ValueError:
            break
        stop = at + tar.BLOCK + tar.padded(size)
        if size < 0 or stop > len(view):
            break
        places.append(at)
        sizes.append(size)
        at = stop
    return places, sizes, at

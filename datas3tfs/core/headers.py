"""Look at many TAR headers at once, as columns: those of the plain form that every writer makes.

A plain header is one block, of a regular file, with all that it says in the block itself. What is said of one
here is what core/tar.py says of it, which is asked about all others: not for what has extended headers, a
name with a prefix, or numbers in another form. Pure; safe in any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NAME_LIMIT = 100  # bytes of a name in a plain header
REGULAR = ord("0")

_BLANK_SUM = 8 * ord(" ")  # what the checksum's own field counts as

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Of each header whether it *is_plain*, and if so the numbers in it."""

    is_plain: Flags
    sizes: Numbers
    seconds: Numbers  # of the time of the last change, since the epoch


def read_columns(headers: Bytes, names: Sequence[bytes]) -> Columns:
    """Read *headers*, a row each (POSIX.1-2017, pax, "ustar Interchange Format"), which should have *names*.
    That one is not plain says nothing against it."""
    expected = np.array(names, dtype=f"S{NAME_LIMIT}").view(np.uint8).reshape(-1, NAME_LIMIT)
    short = np.array([len(name) <= NAME_LIMIT for name in names], dtype=np.bool_)
    has_size, sizes = _octal(headers[:, 124:136])
    has_time, seconds = _octal(headers[:, 136:148])
    has_sum, sums = _octal(headers[:, 148:155])
    fields = headers[:, 148:156].sum(axis=1, dtype=np.int64)
    flags: Flags = (
        short
        & (headers[:, :NAME_LIMIT] == expected).all(axis=1)
        & (headers[:, 156] == REGULAR)
        & (headers[:, 345] == 0)  # no prefix to the name
        & has_size
        & has_time
        & has_sum
        & _ends_number(headers[:, 155])
        & (headers.sum(axis=1, dtype=np.int64) - fields + _BLANK_SUM == sums)
    )
    return Columns(flags, sizes, seconds)


def _octal(fields: Bytes) -> tuple[Flags, Numbers]:
    """Return (whether each field is octal digits to its last byte, which ends them; the numbers if so)."""
    values = fields[:, :-1].astype(np.int64) - ord("0")
    weights = 8 ** np.arange(values.shape[1] - 1, -1, -1, dtype=np.int64)
    are_octal: Flags = np.all((values >= 0) & (values < 8), axis=1) & _ends_number(fields[:, -1])
    return are_octal, values @ weights


def _ends_number(column: Bytes) -> Flags:
    """Say where a NUL or, as bsdtar writes it, a space ends a number."""
    ends: Flags = (column == 0) | (column == ord(" "))
    return ends

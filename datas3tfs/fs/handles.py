"""Open handles: numbers the kernel holds, values we hold. Grows and shrinks with what is open."""

from __future__ import annotations

import errno
import itertools
from typing import Generic, TypeVar

import pyfuse3

T = TypeVar("T")


class Handles(Generic[T]):
    """A table of open things."""

    def __init__(self) -> None:
        self._open: dict[int, T] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, value: T) -> pyfuse3.FileHandleT:
        """Return a number never used before in this mount."""
        number = next(self._numbers)
        self._open[number] = value
        return pyfuse3.FileHandleT(number)

    def get(self, number: int) -> T:
        """Return what *number* stands for. Raises FUSEError(EBADF)."""
        try:
            return self._open[number]
        except KeyError:
            raise pyfuse3.FUSEError(errno.EBADF) from None

    def close(self, number: int) -> None:
        """Forget *number*; it may be unknown."""
        self._open.pop(number, None)

"""Memory that a mount shares with its worker, lent again and again.

New pages cost more than what is done with them: the kernel zeroes each, and a virtual machine may have to
ask its host for it (together a third of the CPU time of a scan, measured). So what a block of bytes lay in is
kept when nobody holds the block any more, and given to the next one; beyond _IDLE bytes it is closed. Small
areas are not kept: of those there may be thousands, and who lends again needs a descriptor for each.

A loan goes back when its last view is gone. It is lent again only if it is clean: if whoever was asked to
work on it has answered. A worker that was told to stop may still be writing.

Concurrency: the event loop's; a collector that runs elsewhere only appends to a deque.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

_IDLE = 32 << 20
_SMALL = 2 << 20  # bytes; larger ones are doubled until they fit, so that one fits where another was


@dataclass(slots=True, eq=False)
class Area:
    """A piece of shared memory; *descriptor* leads to it, if it may be lent again."""

    descriptor: int | None
    mapping: mmap.mmap
    is_clean: bool = True


class Loan(np.ndarray[Any, np.dtype[np.uint8]]):
    """Bytes of an area that belong to whoever holds a view of them; *block* is their name for the worker,
    *is_shared* whether it has them still."""

    area: Area
    block: int
    is_shared: bool


class SharedMemory:
    """Lends areas, and keeps a few."""

    def __init__(self) -> None:
        self._idle: list[Area] = []
        self._returned: deque[tuple[Area, int]] = deque()  # and the blocks they were

    def lend(self, size: int, block: int) -> Loan:
        """Return *size* bytes, whose content means nothing yet. Raises OSError."""
        capacity = size if size <= _SMALL else 1 << (size - 1).bit_length()
        fitting = next((area for area in self._idle if len(area.mapping) == capacity), None)
        if fitting is not None:
            self._idle.remove(fitting)
        area = fitting or _made(capacity)
        loan = np.frombuffer(area.mapping, np.uint8, size).view(Loan)
        loan.area, loan.block, loan.is_shared = area, block, True
        weakref.finalize(loan, self._returned.append, (area, block)).atexit = False
        return loan

    def descriptor(self, loan: Loan) -> int:
        """Return a new descriptor that leads to the area of a new *loan*, for who shares it to close."""
        assert loan.area.descriptor is not None
        if len(loan.area.mapping) > _SMALL:
            return os.dup(loan.area.descriptor)
        descriptor, loan.area.descriptor = loan.area.descriptor, None
        return descriptor

    def returned(self) -> list[int]:
        """Take back what nobody holds any more; return the blocks that it was."""
        blocks = []
        while self._returned:
            area, block = self._returned.popleft()
            blocks.append(block)
            if area.is_clean and area.descriptor is not None:
                self._idle.append(area)
            else:
                _close(area)
        while sum(len(area.mapping) for area in self._idle) > _IDLE:
            _close(self._idle.pop(0))
        return blocks

    def close(self) -> None:
        """Give up what is idle."""
        self.returned()
        while self._idle:
            _close(self._idle.pop())


def _made(capacity: int) -> Area:
    descriptor = os.memfd_create("datas3tfs")
    try:
        os.ftruncate(descriptor, capacity)
        return Area(descriptor, mmap.mmap(descriptor, capacity, mmap.MAP_SHARED, mmap.PROT_READ))
    except BaseException:
        os.close(descriptor)
        raise


def _close(area: Area) -> None:
    if area.descriptor is not None:
        os.close(area.descriptor)

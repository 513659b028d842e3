"""Memory that a mount shares with its worker, lent again and again.

New pages cost more than what is done with them: the kernel zeroes each, and a virtual machine may have to
ask its host for it (together a third of the CPU time of a scan, measured). So what a block of bytes lay in is
kept when nobody holds the block any more, and given to the next one; beyond _IDLE bytes it is closed.

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
_LEAST = 512 << 10  # sizes are this, or doubled, so that one fits where another was


@dataclass(slots=True, eq=False)
class Area:
    """A piece of shared memory; the descriptor leads to it."""

    descriptor: int
    mapping: mmap.mmap
    is_clean: bool = True


class Loan(np.ndarray[Any, np.dtype[np.uint8]]):
    """Bytes of an area that belong to whoever holds a view of them; *block* is their name for the worker."""

    area: Area
    block: int


class SharedMemory:
    """Lends areas, and keeps a few."""

    def __init__(self) -> None:
        self._idle: list[Area] = []
        self._returned: deque[tuple[Area, int]] = deque()  # and the blocks they were

    def lend(self, size: int, block: int) -> Loan:
        """Return *size* bytes, whose content means nothing yet. Raises OSError."""
        capacity = max(_LEAST, 1 << (size - 1).bit_length())
        fitting = next((area for area in self._idle if len(area.mapping) == capacity), None)
        if fitting is not None:
            self._idle.remove(fitting)
        area = fitting or _made(capacity)
        loan = np.frombuffer(area.mapping, np.uint8, size).view(Loan)
        loan.area, loan.block = area, block
        weakref.finalize(loan, self._returned.append, (area, block)).atexit = False
        return loan

    def returned(self) -> list[int]:
        """Take back what nobody holds any more; return the blocks that it was."""
        blocks = []
        while self._returned:
            area, block = self._returned.popleft()
            blocks.append(block)
            if area.is_clean:
                self._idle.append(area)
            else:
                os.close(area.descriptor)
        while sum(len(area.mapping) for area in self._idle) > _IDLE:
            os.close(self._idle.pop(0).descriptor)
        return blocks

    def close(self) -> None:
        """Give up what is idle."""
        self.returned()
        while self._idle:
            os.close(self._idle.pop().descriptor)


def _made(capacity: int) -> Area:
    descriptor = os.memfd_create("datas3tfs")
    try:
        os.ftruncate(descriptor, capacity)
        return Area(descriptor, mmap.mmap(descriptor, capacity, mmap.MAP_SHARED, mmap.PROT_READ))
    except BaseException:
        os.close(descriptor)
        raise

"""Memory lent again and again: whose it is, when it may be somebody else's, and how much is kept."""

from __future__ import annotations

import os

import numpy as np

from datas3tfs.worker.memory import Loan, SharedMemory

MIB = 1 << 20


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def write(memory: SharedMemory, loan: Loan, content: bytes) -> None:
    """Do what the worker does."""
    descriptor = memory.descriptor(loan)
    os.pwrite(descriptor, content, 0)
    os.close(descriptor)


def test_what_nobody_holds_is_lent_again_and_what_somebody_holds_is_not() -> None:
    memory = SharedMemory()
    first = memory.lend(3 * MIB - 5, 1)
    write(memory, first, b"first")
    view = first.data[:5]
    area = first.area
    del first
    assert memory.returned() == []
    other = memory.lend(3 * MIB - 5, 2)
    assert other.area is not area
    assert bytes(view) == b"first"
    del view
    assert memory.returned() == [1]
    again = memory.lend(4 * MIB, 3)
    assert again.area is area
    assert len(again.data) == 4 * MIB
    assert len(other.data) == 3 * MIB - 5
    del again, other
    memory.close()


def test_what_somebody_may_still_be_writing_to_is_not_lent_again() -> None:
    memory = SharedMemory()
    before = descriptors()
    loan = memory.lend(3 * MIB, 1)
    area, area.is_clean = loan.area, False
    del loan
    assert memory.returned() == [1]
    assert memory.lend(3 * MIB, 2).area is not area
    memory.close()
    del area
    assert descriptors() == before


def test_little_is_kept() -> None:
    memory = SharedMemory()
    before = descriptors()
    loans = [memory.lend(8 * MIB, block) for block in range(20)]
    each = (descriptors() - before) // len(loans)
    loans.clear()
    assert sorted(memory.returned()) == list(range(20))
    assert descriptors() == before + 4 * each, "32 MiB"
    memory.close()
    assert descriptors() == before


def test_a_loan_is_read_only_bytes_that_can_be_cut() -> None:
    memory = SharedMemory()
    loan = memory.lend(700, 9)
    write(memory, loan, bytes(range(100)))
    view = loan.data
    assert view.readonly
    assert isinstance(view[10:20].obj, Loan)
    assert bytes(view[10:20]) == bytes(range(10, 20))
    assert np.frombuffer(view, np.uint8)[50] == 50


def test_small_ones_cost_one_descriptor_each_and_are_not_kept() -> None:
    memory = SharedMemory()
    before = descriptors()
    loans = [memory.lend(100 << 10, block) for block in range(100)]
    for loan in loans:
        write(memory, loan, b"x")
    del loan
    assert descriptors() == before + 100
    loans.clear()
    assert len(memory.returned()) == 100
    assert descriptors() == before

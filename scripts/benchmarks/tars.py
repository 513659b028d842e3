"""Make the data: files of one size, numbered, in TARs as datas3tfs writes them, fast.

The first 8 bytes of every 4 KiB of a file say which file and which page it is (key << 20 | page,
little-endian), so that readers can tell right from fast; the rest is random bytes, the same in all.
Not for uploading. Plain functions.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

BLOCK = 512
PAGE = 4096
BATCH = 32 << 20  # bytes made at once
END = bytes(2 * BLOCK)


@dataclass(frozen=True, slots=True)
class Tar:
    """The files *first* … *first* + *count* - 1 of *size* bytes each, in one object."""

    first: int
    count: int
    size: int

    @property
    def stride(self) -> int:
        """Bytes from one member to the next."""
        return BLOCK + -(-self.size // BLOCK) * BLOCK

    @property
    def length(self) -> int:
        return self.count * self.stride + len(END)

    def content(self, key: int) -> tuple[int, int]:
        """Return where the bytes of *key* begin and end in the object."""
        start = (key - self.first) * self.stride + BLOCK
        return start, start + self.size


def name_of(key: int) -> str:
    return f"{key:020d}.bin"


def cut(count: int, size: int, tar_bytes: int) -> list[Tar]:
    """Spread *count* files over TARs of about *tar_bytes*, equally."""
    stride = Tar(0, 1, size).stride
    number = min(count, max(1, round(count * stride / tar_bytes)))
    edges = [count * i // number for i in range(number + 1)]
    return [Tar(first, stop - first, size) for first, stop in pairwise(edges)]


@cache
def noise(size: int) -> bytes:
    """Return *size* bytes, random and always the same ones, the first mebibyte again and again."""
    piece = os.urandom(min(size, 1 << 20))
    return (piece * -(-size // max(len(piece), 1)))[:size]


def contents(first: int, count: int, size: int) -> np.ndarray:
    """Return the contents of *count* files, one row each, padded to whole TAR blocks."""
    rows = np.zeros((count, -(-size // BLOCK) * BLOCK), np.uint8)
    rows[:, :size] = np.frombuffer(noise(size), np.uint8)
    keys = np.arange(first, first + count, dtype=np.uint64) << np.uint64(20)
    for page, start in enumerate(range(0, size - 7, PAGE)):
        marks = keys | np.uint64(page)
        rows[:, start : start + 8] = marks.astype("<u8").view(np.uint8).reshape(count, 8)
    return rows


def headers(first: int, count: int, size: int) -> np.ndarray:
    """Return the ustar headers of *count* files, one row each."""
    info = tarfile.TarInfo(name_of(0))
    info.size, info.mtime = size, 1_700_000_000
    rows = np.tile(np.frombuffer(info.tobuf(tarfile.USTAR_FORMAT), np.uint8), (count, 1))
    keys = np.arange(first, first + count, dtype=np.uint64)
    for place in range(20):
        rows[:, 19 - place] = keys % 10 + ord("0")
        keys //= 10
    rows[:, 148:156] = ord(" ")  # as the sum is defined
    sums = rows.sum(axis=1, dtype=np.uint32)
    for place in range(6):
        rows[:, 153 - place] = sums % 8 + ord("0")
        sums //= 8
    rows[:, 154] = 0
    return rows


def write(path: Path, tar: Tar) -> None:
    """Write *tar* to *path*."""
    step = max(1, BATCH // tar.stride)
    with path.open("wb") as file:
        for first in range(tar.first, tar.first + tar.count, step):
            count = min(step, tar.first + tar.count - first)
            heads, bodies = headers(first, count, tar.size), contents(first, count, tar.size)
            if count == 1:  # large: not copied together
                file.write(heads.data)
                file.write(bodies.data)
            else:
                file.write(np.concatenate((heads, bodies), axis=1).data)
        file.write(END)


def write_files(directory: Path, first: int, count: int, size: int) -> None:
    """Write the same files as plain files."""
    directory.mkdir(parents=True, exist_ok=True)
    step = max(1, BATCH // max(size, 1))
    for start in range(first, first + count, step):
        rows = contents(start, min(step, first + count - start), size)
        for number, row in enumerate(rows):
            (directory / name_of(start + number)).write_bytes(row[:size].tobytes())

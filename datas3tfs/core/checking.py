"""Check bytes from a TAR against its index: the one place that decides that they are right.

Piece by piece, or all pieces of a stretch at once: most headers are one block of the plain form that every
writer makes, and those are looked at together, as columns (core/headers.py). Whatever is not of that form is
parsed as strictly as any header (core/tar.py), so both ways accept the same. Pure; safe in any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datas3tfs.core import tar
from datas3tfs.core.checksums import CHUNK, crc32c
from datas3tfs.core.headers import read_columns
from datas3tfs.core.index import Entry, Index
from datas3tfs.core.reads import Piece, pieces_of, slots_in
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Invalid

_FEW = 4  # datapoints: below, columns cost more than they save


@dataclass(frozen=True, slots=True)
class Problem:
    """A piece whose bytes are not right: *number* of the datapoint in *slot*; it begins at *start*."""

    slot: int
    number: int
    start: int  # in the object
    text: str


def check_header(entry: Entry, blocks: bytes) -> None:
    """Raise Corrupt unless *blocks* are the TAR headers of *entry*: its name, its size."""
    try:
        member = tar.parse_group(blocks)
    except Invalid as exc:
        raise Corrupt(f"datapoint {entry.name}: {exc}") from None
    if member.name != entry.name or member.size != entry.size or member.kind not in tar.REGULAR:
        raise Corrupt(f"datapoint {entry.name}: the TAR has another entry in its place")


def check_piece(index: Index, slot: int, entry: Entry, piece: Piece, data: memoryview) -> None:
    """Raise Corrupt unless *data* is *piece* of the datapoint: header if it has it, CRC32C if known."""
    header_length = piece.content.start - piece.span.start
    if header_length:
        check_header(entry, bytes(data[:header_length]))
    expected = entry.crc if entry.size <= CHUNK else index.chunk_crc(slot, piece.number)
    if expected is not None and crc32c(data[header_length:]) != expected:
        raise Corrupt(f"datapoint {entry.name}: content fails its checksum")


def find_problems(index: Index, span: Span, data: bytes | memoryview) -> list[Problem]:
    """Check every piece that lies wholly in *span* of the object, whose bytes are *data*; in order."""
    view, slots = memoryview(data), slots_in(index, span)
    right = set() if slots.length < _FEW else _right_slots(index, slots, span.start, view)
    problems = []
    for slot in range(slots.start, slots.stop):
        if slot in right:
            continue
        entry = index.entry(slot)
        for one in pieces_of(entry, span):
            part = view[one.span.start - span.start : one.span.stop - span.start]
            try:
                check_piece(index, slot, entry, one, part)
            except Corrupt as exc:
                problems.append(Problem(slot, one.number, one.span.start, str(exc)))
    return problems


def _right_slots(index: Index, slots: Span, start: int, view: memoryview) -> set[int]:
    """Return those of *slots* that are one piece, whole in *view* (which begins at *start* of the object),
    have a plain header, and are right. Nothing is said of the others."""
    offsets, blocks, sizes = index.places(slots.start, slots.length)
    stops = offsets + tar.BLOCK + sizes
    whole = (blocks == 1) & (sizes <= CHUNK) & (offsets >= start) & (stops <= start + len(view))
    candidates = np.flatnonzero(whole)
    if not len(candidates):
        return set()
    skipped = -start % tar.BLOCK
    rows = np.frombuffer(view[skipped : skipped + (len(view) - skipped) // tar.BLOCK * tar.BLOCK], np.uint8)
    headers = rows.reshape(-1, tar.BLOCK)[(offsets[candidates] - start - skipped) // tar.BLOCK]
    names = index.names(slots.start, slots.length)
    columns = read_columns(headers, [names[i] for i in candidates.tolist()])
    plain = columns.is_plain & (columns.sizes == sizes[candidates])
    crcs = index.crcs(slots.start, slots.length)
    right = set()
    for i in candidates[plain].tolist():
        begin = int(offsets[i]) + tar.BLOCK - start
        if crcs is None or crc32c(view[begin : begin + int(sizes[i])]) == crcs[i]:
            right.add(slots.start + i)
    return right

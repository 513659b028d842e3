"""Plan a read: which pieces of a datapoint it needs.

A *piece* is what is fetched and checked at once: a datapoint of at most one chunk is a single piece,
TAR headers included; a larger one is cut into chunk-long pieces, the first of which has the headers.
Pieces of an object never overlap, and a whole datapoint's pieces are contiguous, so one range request
may bring any run of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.index import Entry, Index
from datas3tfs.core.spans import Span


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a datapoint. All spans are in the object; *content* is the part that is content."""

    number: int
    span: Span
    content: Span


def piece(entry: Entry, number: int) -> Piece:
    """Return piece *number* of *entry*."""
    start = entry.content.start + number * CHUNK
    content = Span(start, min(start + CHUNK, entry.content.stop))
    return Piece(number, Span(entry.header.start, content.stop) if number == 0 else content, content)


def piece_count(entry: Entry) -> int:
    """Return how many pieces *entry* has; an empty datapoint has one, its headers."""
    return max(1, -(-entry.size // CHUNK))


def plan_read(entry: Entry, offset: int, size: int) -> list[Piece]:
    """Return the pieces that hold *size* bytes of content from *offset* on; [] beyond the end."""
    wanted = Span(offset, max(offset, min(offset + size, entry.size)))
    if not wanted:
        return []
    return [piece(entry, number) for number in range(wanted.start // CHUNK, wanted.last // CHUNK + 1)]


def piece_start(index: Index, position: int) -> int:
    """Return *position*, or the start of the piece it would cut in two."""
    found = piece_at(index, position)[2]
    return found.span.start if position in found.span else position


def piece_stop(index: Index, position: int) -> int:
    """Return *position*, or the end of the piece it would cut in two."""
    found = piece_at(index, position)[2]
    return found.span.stop if found.span.start < position < found.span.stop else position


def piece_at(index: Index, position: int) -> tuple[int, Entry, Piece]:
    """Return (slot, entry, piece) of the last piece that starts at or before *position*, or the first."""
    slot = index.slot_at(position)
    entry = index.entry(slot)
    inside = max(0, position - entry.content.start)
    return slot, entry, piece(entry, min(inside // CHUNK, piece_count(entry) - 1))


def cut(index: Index, span: Span, limit: int) -> list[Span]:
    """Cut *span* of the object into stretches of about *limit* bytes that cut no piece in two.

    What comes after the last datapoint (the end of the archive) is left out.
    """
    stretches: list[Span] = []
    start = piece_start(index, span.start)
    stop = min(piece_stop(index, span.stop), index.entry(index.count - 1).content.stop)
    while start < stop:
        border = min(stop, max(piece_stop(index, start + limit), start + 1))
        if stop - border < limit // 8:  # not worth a request of its own
            border = stop
        stretches.append(Span(start, border))
        start = border
    return stretches


def slots_in(index: Index, span: Span) -> Span:
    """Return the slots with any byte in *span*."""
    first = index.slot_at(span.start)
    return Span(first, max(first, index.slot_at(span.last) + 1)) if span else Span(first, first)


def pieces_of(entry: Entry, span: Span) -> Iterator[Piece]:
    """Yield the pieces of *entry* that lie wholly in *span*, in order."""
    first = max(0, (span.start - entry.content.start) // CHUNK) if entry.size > CHUNK else 0
    for number in range(first, piece_count(entry)):
        found = piece(entry, number)
        if found.span.stop > span.stop:
            return
        if span.covers(found.span):
            yield found

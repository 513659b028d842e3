"""Which waiting datapoints become which dataranges: contiguous keys together, in bearable pieces."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """What the planner looks at."""

    @property
    def key(self) -> int | None: ...
    @property
    def size(self) -> int: ...


W = TypeVar("W", bound=Waiting)


def plan_batches(
    waiting: Sequence[W],
    *,
    bytes_limit: int,
    count_limit: int,
    unfinished: Container[int],
    forced: Container[W],
) -> list[list[W]]:
    """Split *waiting*, ascending by key, into runs of contiguous keys of about *bytes_limit* bytes each.

    A run whose left neighbour is among the *unfinished* keys, being written at this moment, is left for
    later unless one of it is *forced*: in parallel writing the ragged end of what has arrived would
    otherwise become a datarange for every few files.
    """
    batches: list[list[W]] = []
    for run in _runs(waiting):
        first = run[0].key
        assert first is not None
        if first - 1 in unfinished and not any(one in forced for one in run):
            continue
        batches.extend(_pieces(run, bytes_limit, count_limit))
    return batches


def _runs(waiting: Sequence[W]) -> Iterator[list[W]]:
    run: list[W] = []
    for one in waiting:
        if run and one.key != (run[-1].key or 0) + 1:
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _pieces(run: list[W], bytes_limit: int, count_limit: int) -> Iterator[list[W]]:
    """Yield pieces that exceed *bytes_limit* by no more than their last member's size."""
    piece: list[W] = []
    total = 0
    for one in run:
        if piece and (total >= bytes_limit or len(piece) >= count_limit):
            yield piece
            piece, total = [], 0
        piece.append(one)
        total += one.size
    yield piece

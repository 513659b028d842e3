"""Which dataranges become one, and how the TAR of several is put together.

The rule, also in docs/OPERATIONS.md: dataranges grow in *tiers*, each ten times the one below, the highest
being the target. Adjacent dataranges that are all below a tier are merged as soon as together they reach it,
the highest tier first. So every merge lifts its datapoints by a tier at least: no datapoint is rewritten more
often than there are tiers, and what has reached the target is never touched again.

Pure: no I/O, no clock. Not here: fetching, copying (engine/compactor.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, TypeVar

from datas3tfs.core import tar
from datas3tfs.core.names import printable
from datas3tfs.core.parts import LARGEST_PART, LEAST_PART, MOST_PARTS
from datas3tfs.core.spans import Span
from datas3tfs.core.uploadcheck import DATAPOINTS_LIMIT
from datas3tfs.errors import Invalid

MIB, GIB = 1 << 20, 1 << 30
LARGEST_OBJECT = 5 << 40
_MOST_SOURCES = 10_000  # of one merge: all their indices are open at once
_LARGEST_JOINED = 64 * MIB  # what is put together from several sources passes through memory

_FACTOR = 10  # from tier to tier
_LOWEST_TIER = 8 << 10  # a datarange of a few datapoints of a few bytes; below there is nothing to win
_END = len(tar.END_OF_ARCHIVE)


# -- the merged TAR ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fragment:
    """The bytes *span* of a source; of no source (None): as many zeros."""

    source: int | None
    span: Span


@dataclass(frozen=True, slots=True)
class CopiedPart:
    """A part that S3 can copy from one source."""

    source: int
    span: Span

    @property
    def length(self) -> int:
        """In bytes."""
        return self.span.length


@dataclass(frozen=True, slots=True)
class JoinedPart:
    """A part to be put together in memory, because no source alone has enough bytes for it."""

    fragments: tuple[Fragment, ...]

    @property
    def length(self) -> int:
        """In bytes."""
        return sum(fragment.span.length for fragment in self.fragments)


MergedPart = CopiedPart | JoinedPart


@dataclass(frozen=True, slots=True)
class MergePlan:
    """The merged TAR: the sources' entries one after the other, then the end of the archive."""

    starts: tuple[int, ...]  # where each source's bytes begin
    size: int
    parts: tuple[MergedPart, ...] | None  # of a multipart upload; None: too many for one


def plan_merge(spans: Sequence[Span], *, largest_copy: int = LARGEST_PART) -> MergePlan:
    """Plan the TAR of the bytes *spans* of each source: whole entries (the last padding may be cut off).

    Parts are at least 5 MiB long, the last one excepted; what is copied is at most *largest_copy* at once.
    Raises Invalid if it would be too large for one object.
    """
    starts = (0, *accumulate(tar.padded(span.length) for span in spans))
    size = starts[-1] + _END
    if size > LARGEST_OBJECT:
        raise Invalid(f"{size} bytes are too many for one object: S3 takes {LARGEST_OBJECT}")
    least, parts = LEAST_PART, _cut(spans, LEAST_PART, largest_copy)
    while len(parts) > MOST_PARTS and least < _LARGEST_JOINED // 2:
        least *= 2
        parts = _cut(spans, least, max(largest_copy, 2 * least))
    return MergePlan(starts[:-1], size, None if len(parts) > MOST_PARTS else parts)


def _cut(spans: Sequence[Span], least: int, largest: int) -> tuple[MergedPart, ...]:
    """Cut into parts of *least* bytes or more; a joined part stays below twice that and a kibibyte."""
    cutter = _Cutter(least, largest)
    for number, span in enumerate(spans):
        cutter.add(number, span)
        if missing := tar.padded(span.length) - span.length:
            cutter.join(Fragment(None, Span(0, missing)))
    cutter.join(Fragment(None, Span(0, _END)))
    return cutter.finish()


class _Cutter:
    def __init__(self, least: int, largest: int) -> None:
        self._least = least
        self._largest = largest
        self._parts: list[MergedPart] = []
        self._waiting: list[Fragment] = []
        self._length = 0  # of what waits

    def add(self, source: int, span: Span) -> None:
        """Take the next source: its head fills up what waits, if enough remains to be copied then."""
        head = self._least - self._length if self._length else 0
        if span.length - head < self._least:
            self.join(Fragment(source, span))
            return
        if head:
            self.join(Fragment(source, Span(span.start, span.start + head)))
        self._copy(source, Span(span.start + head, span.stop))

    def join(self, fragment: Fragment) -> None:
        """Take what is not copied."""
        if fragment.span:
            self._waiting.append(fragment)
            self._length += fragment.span.length
        if self._length >= self._least:
            self._flush()

    def finish(self) -> tuple[MergedPart, ...]:
        """Return all parts; the last may be short."""
        if self._waiting:
            self._flush()
        return tuple(self._parts)

    def _copy(self, source: int, span: Span) -> None:
        count = -(-span.length // self._largest)
        borders = [span.start + span.length * number // count for number in range(count + 1)]
        self._parts += [CopiedPart(source, Span(start, stop)) for start, stop in pairwise(borders)]

    def _flush(self) -> None:
        self._parts.append(JoinedPart(tuple(self._waiting)))
        self._waiting, self._length = [], 0


# -- which dataranges -------------------------------------------------------------------------------


class Mergeable(Protocol):
    """What the planner looks at."""

    @property
    def keys(self) -> Span: ...
    @property
    def size(self) -> int: ...


M = TypeVar("M", bound=Mergeable)


@dataclass(frozen=True, slots=True)
class OptimizeRule:
    """When dataranges are merged. Raises Invalid for limits that would have to cut a merge short."""

    target: int = GIB  # bytes; what has so many is left alone
    largest: int = 5 * GIB  # no merged datarange has more bytes …
    most_datapoints: int = 1_000_000  # … or datapoints: a listing's first look at it reads its whole index
    most_members: int = 1000  # of one merge: a few requests each

    def __post_init__(self) -> None:
        if self.target < _LOWEST_TIER or self.most_datapoints < 2 or self.most_members < 2:
            raise Invalid(f"a target of {self.target} bytes is too small: {_LOWEST_TIER} at least")
        if self.most_datapoints > DATAPOINTS_LIMIT:
            raise Invalid(f"one datarange has at most {DATAPOINTS_LIMIT} datapoints")
        if self.largest < 2 * self.target:
            raise Invalid(
                f"the largest size ({self.largest} bytes) must be at least twice the target ({self.target}): "
                "the last datarange that makes a merge reach it may be nearly as large itself"
            )

    @property
    def tiers(self) -> list[int]:
        """The sizes to reach, in bytes, the highest first."""
        tiers, tier = [], self.target
        while tier >= _LOWEST_TIER:
            tiers.append(tier)
            tier //= _FACTOR
        return tiers

    def weight(self, size: int, count: int) -> int:
        """Return what a datarange of *count* datapoints in *size* bytes counts for: its bytes or, if that is
        more, the target's share that corresponds to its share of half the most datapoints."""
        return max(size, count * self.target // (self.most_datapoints // 2))


def plan_optimize(dataranges: Sequence[M], rule: OptimizeRule) -> list[list[M]]:
    """Return the groups of adjacent *dataranges* (ascending by key) to be merged now, ascending by key.

    No datarange is in two of them. The same dataranges give the same plan.
    """
    groups: list[tuple[int, int]] = []
    taken = [False] * len(dataranges)
    for tier in rule.tiers:
        for start, stop in _runs(dataranges, rule, tier, taken):
            for group in _groups(dataranges, rule, tier, start, stop):
                groups.append(group)
                taken[slice(*group)] = [True] * (group[1] - group[0])
    return [list(dataranges[start:stop]) for start, stop in sorted(groups)]


def _runs(
    dataranges: Sequence[Mergeable], rule: OptimizeRule, tier: int, taken: list[bool]
) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the longest runs of adjacent dataranges below *tier* that are not taken."""
    start = 0
    for at, one in enumerate(dataranges):
        if taken[at] or rule.weight(_entries(one), one.keys.length) >= tier:
            if at > start:
                yield start, at
            start = at + 1
        elif at > start and dataranges[at - 1].keys.stop != one.keys.start:
            yield start, at
            start = at
    if start < len(dataranges):
        yield start, len(dataranges)


def _groups(
    dataranges: Sequence[Mergeable], rule: OptimizeRule, tier: int, start: int, stop: int
) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the first groups of a run that reach *tier* with few enough members."""
    sizes = [0, *accumulate(_entries(one) for one in dataranges[start:stop])]
    counts = [0, *accumulate(one.keys.length for one in dataranges[start:stop])]
    first, length = 0, stop - start

    def reached(last: int) -> int:
        return rule.weight(sizes[last] - sizes[first], counts[last] - counts[first])

    while first < length:
        last = bisect_left(range(length + 1), tier, lo=first, key=reached)
        if last > length:
            return
        if last - first <= rule.most_members:
            yield start + first, start + last
            first = last
        else:
            first += 1


def _entries(datarange: Mergeable) -> int:
    """Return how many bytes a datarange brings into a merged one: all but the end of the archive. (Of what
    other programs write, that may be up to 10 KiB, which only the index can tell.)"""
    return max(tar.BLOCK, datarange.size - _END)


def check_sources(dataset: str, keys: Span, found: Sequence[Mergeable]) -> None:
    """Raise Invalid unless the dataranges *found* are at least two and hold exactly *keys*, without gap.

    *found* are all dataranges of *dataset* that have one of *keys*, ascending.
    """
    what = f"datapoints {keys.start} to {keys.last} of dataset {printable(dataset)}"
    borders = [(one.keys.start, one.keys.stop) for one in found]
    is_covered = (
        bool(borders)
        and borders[0][0] <= keys.start
        and keys.stop <= borders[-1][1]
        and all(left[1] == right[0] for left, right in pairwise(borders))
    )
    if not is_covered:
        raise Invalid(f"{what}: not fully covered by dataranges")
    if len(found) < 2:
        raise Invalid(f"{what}: at least two dataranges are needed, they lie in one")
    if (borders[0][0], borders[-1][1]) != (keys.start, keys.stop):
        raise Invalid(
            f"{what}: not whole dataranges, those there hold {borders[0][0]} to {borders[-1][1] - 1}"
        )
    if len(found) > _MOST_SOURCES:
        raise Invalid(f"{what}: {len(found)} dataranges, at most {_MOST_SOURCES} at once: merge in steps")
    if keys.length > DATAPOINTS_LIMIT:  # what is larger could not be imported again
        raise Invalid(f"{what}: one datarange has at most {DATAPOINTS_LIMIT} datapoints")

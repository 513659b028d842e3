"""Merging: parts that S3 accepts, exactly the merged TAR; a rule that ends and rewrites little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3tfs.core import compaction, tar
from datas3tfs.core.compaction import (
    GIB,
    MIB,
    CopiedPart,
    MergePlan,
    OptimizeRule,
    check_sources,
    plan_merge,
    plan_optimize,
)
from datas3tfs.core.index import Index, have_same_datapoints, open_index
from datas3tfs.core.indexbuild import merge_indices
from datas3tfs.core.parts import LARGEST_PART, LEAST_PART, MOST_PARTS
from datas3tfs.core.spans import Span
from datas3tfs.core.uploadcheck import DATAPOINTS_LIMIT
from datas3tfs.errors import Invalid
from tests.core.test_index import Members, build, members

END = len(tar.END_OF_ARCHIVE)

lengths = st.one_of(
    st.integers(1, 100_000),
    st.integers(LEAST_PART - 2000, LEAST_PART + 2000),
    st.integers(1, 40 * MIB),
    st.integers(LARGEST_PART - 2000, 3 * LARGEST_PART),
).map(lambda length: length - length % 512 or 512)
sources = st.lists(
    st.tuples(
        lengths, st.integers(0, 3).map(lambda blocks: 512 * blocks), st.sampled_from([0, 0, 0, 1, 511])
    ),
    min_size=1,
    max_size=12,
).map(lambda drawn: [Span(start, start + length - cut) for length, start, cut in drawn])


def pieces(plan: MergePlan) -> list[tuple[int | None, Span]]:
    """What the parts bring, in order, neighbours joined."""
    found: list[tuple[int | None, Span]] = []
    assert plan.parts is not None
    for part in plan.parts:
        fragments = (
            [(part.source, part.span)]
            if isinstance(part, CopiedPart)
            else [(fragment.source, fragment.span) for fragment in part.fragments]
        )
        for source, span in fragments:
            if found and found[-1][0] == source is not None and found[-1][1].stop == span.start:
                found[-1] = source, Span(found[-1][1].start, span.stop)
            else:
                found.append((source, span))
    return found


@given(sources)
def test_the_parts_bring_every_source_once_in_order_padded_and_then_the_end(spans: list[Span]) -> None:
    plan = plan_merge(spans)
    expected: list[tuple[int | None, Span]] = []
    for number, span in enumerate(spans):
        expected.append((number, span))
        if span.length % 512:
            expected.append((None, Span(0, -span.length % 512)))
    assert pieces(plan) == [*expected, (None, Span(0, END))]
    position = 0
    for start, span in zip(plan.starts, spans, strict=True):
        assert start == position
        position += tar.padded(span.length)
    assert plan.size == position + END


@given(sources, st.sampled_from([LARGEST_PART, 512 * MIB, 16 * MIB]))
def test_s3_accepts_every_part_and_what_passes_through_memory_is_small(
    spans: list[Span], largest_copy: int
) -> None:
    plan = plan_merge(spans, largest_copy=largest_copy)
    assert plan.parts is not None
    assert len(plan.parts) <= MOST_PARTS
    assert sum(part.length for part in plan.parts) == plan.size
    assert all(part.length >= LEAST_PART for part in plan.parts[:-1])
    for part in plan.parts:
        if isinstance(part, CopiedPart):
            assert LEAST_PART <= part.length <= largest_copy
        else:
            assert part.length < 2 * LEAST_PART + 2048


@given(st.lists(st.integers(2 * LEAST_PART, 20 * LARGEST_PART).map(lambda n: n - n % 512), min_size=1))
def test_of_large_sources_next_to_nothing_passes_through_memory(sizes: list[int]) -> None:
    plan = plan_merge([Span(0, size) for size in sizes])
    assert plan.parts is not None
    joined = [part for part in plan.parts if not isinstance(part, CopiedPart)]
    assert sum(part.length for part in joined) == END


def test_many_small_sources_make_larger_parts_before_they_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compaction, "MOST_PARTS", 100)
    plan = plan_merge([Span(0, MIB)] * 3000)
    assert plan.parts is not None
    assert len(plan.parts) <= 100
    assert max(part.length for part in plan.parts) <= 64 * MIB
    assert plan_merge([Span(0, MIB)] * 10_000).parts is None


def test_more_than_an_object_can_hold_is_refused() -> None:
    with pytest.raises(Invalid, match="too many for one object"):
        plan_merge([Span(0, 3 << 40), Span(0, 3 << 40)])


@given(st.lists(st.tuples(members, st.booleans()), min_size=1, max_size=5), st.integers(0, 2**62))
def test_the_merged_index_is_that_of_the_merged_tar(drawn: list[tuple[Members, bool]], first: int) -> None:
    everything = [entry for entries, _ in drawn for entry in entries]
    has_crcs = all(crc for _, crc in drawn)
    expected, size = build(everything, first, crc=has_crcs)
    sources, starts, key, start = [], [], first, 0
    for entries, crc in drawn:
        flat, total = build(entries, key, crc=crc)
        sources.append(open_index(memoryview(flat), first=key, count=len(entries), object_size=total))
        starts.append(start)
        key, start = key + len(entries), start + total - END
    assert merge_indices(sources, starts, size) == expected


@given(members, st.integers(0, 2**62), st.integers(1, 10**6), st.data())
def test_datapoints_are_the_same_wherever_they_lie_until_one_differs(
    entries: Members, first: int, before: int, data: st.DataObject
) -> None:
    flat, total = build(entries, first)
    index = open_index(memoryview(flat), first=first, count=len(entries), object_size=total)
    earlier = [(before, 5, "csv", 1), *entries, (7, 5, "csv", 1)]
    flat, total = build(earlier, max(0, first - 1))
    other = open_index(memoryview(flat), first=max(0, first - 1), count=len(earlier), object_size=total)
    if first == 0:  # then the keys of *other* are shifted by one: compare what is behind it
        index = open_index(
            memoryview(build(entries, 1)[0]), first=1, count=len(entries), object_size=index.object_size
        )
    start = index.first
    keys = Span(start, start + len(entries))
    assert have_same_datapoints(index, other, keys)
    assert have_same_datapoints(other, index, keys)
    at = data.draw(st.integers(0, len(entries) - 1))
    size, mtime_ns, extension, crc = entries[at]
    changed = data.draw(
        st.sampled_from(
            [
                (size + 1, mtime_ns, extension, crc),
                (size, mtime_ns - 1 if mtime_ns > 0 else mtime_ns + 1, extension, crc),
                (size, mtime_ns, extension + "x", crc),
                (size, mtime_ns, extension, crc ^ 1),
            ]
        )
    )
    flat, total = build([*entries[:at], changed, *entries[at + 1 :]], start)
    different = open_index(memoryview(flat), first=start, count=len(entries), object_size=total)
    assert not have_same_datapoints(index, different, keys)
    assert not have_same_datapoints(different, other, keys)
    flat, total = build(entries, start, crc=False)
    unknown = open_index(memoryview(flat), first=start, count=len(entries), object_size=total)
    assert not have_same_datapoints(index, unknown, keys)


def test_more_extensions_than_an_index_can_number_are_refused() -> None:
    def half(first: int) -> Index:
        flat, total = build([(0, 0, f"e{first + n}", 0) for n in range(40_000)], first)
        return open_index(memoryview(flat), first=first, count=40_000, object_size=total)

    with pytest.raises(Invalid, match="different extensions"):
        merge_indices([half(0), half(40_000)], [0, 512 * 40_000], 512 * 80_000 + END)


# -- which dataranges ---------------------------------------------------------------------------------


@dataclass
class Range:
    """A datarange, and how often each part of it was rewritten at most."""

    keys: Span
    size: int
    rewritten: int = field(default=0, compare=False)


def merged(group: Sequence[Range]) -> Range:
    """As the compactor does it: one end of archive instead of many."""
    assert all(left.keys.stop == right.keys.start for left, right in pairwise(group))
    size = sum(one.size - END for one in group) + END
    return Range(Span(group[0].keys.start, group[-1].keys.stop), size, max(g.rewritten for g in group) + 1)


def applied(ranges: Sequence[Range], groups: Sequence[Sequence[Range]]) -> list[Range]:
    """The dataranges after the merges."""
    member_of = {id(one): number for number, group in enumerate(groups) for one in group}
    assert len(member_of) == sum(map(len, groups)), "no datarange is in two groups"
    out: list[Range] = []
    for one in ranges:
        number = member_of.get(id(one))
        if number is None:
            out.append(one)
        elif groups[number][0] is one:
            out.append(merged(groups[number]))
    return out


def settled(ranges: list[Range], rule: OptimizeRule) -> list[Range]:
    """Apply plans until there is nothing to do."""
    for _ in range(len(ranges) + 1):
        groups = plan_optimize(ranges, rule)
        if not groups:
            return ranges
        ranges = applied(ranges, groups)
    raise AssertionError("it does not end")


def weight(one: Range, rule: OptimizeRule) -> int:
    return rule.weight(max(512, one.size - END), one.keys.length)


TARGET = 1_000_000
rules = st.builds(
    OptimizeRule,
    target=st.just(TARGET),
    largest=st.sampled_from([2 * TARGET, 5 * TARGET]),
    most_datapoints=st.sampled_from([100, 2000, 1_000_000]),
    most_members=st.sampled_from([30, 1000]),
)


@st.composite
def datasets(draw: st.DrawFn) -> list[Range]:
    size = st.one_of(st.integers(1, 10), st.integers(1, 300), st.integers(1, 5000))
    made: list[Range] = []
    key = 0
    for blocks, count, gap in draw(
        st.lists(st.tuples(size, st.integers(1, 60), st.sampled_from([0] * 9 + [1])), max_size=200)
    ):
        key += gap
        made.append(Range(Span(key, key + count), 512 * (count + blocks) + END))
        key += count
    return made


@settings(deadline=None)
@given(datasets(), rules)
def test_a_plan_merges_neighbours_below_the_target_within_the_limits(
    ranges: list[Range], rule: OptimizeRule
) -> None:
    groups = plan_optimize(ranges, rule)
    assert groups == plan_optimize(ranges, rule)
    assert [g[0].keys for g in groups] == sorted(g[0].keys for g in groups)
    for group in groups:
        result = merged(group)
        tier = max(t for t in rule.tiers if t <= weight(result, rule))
        assert 2 <= len(group) <= rule.most_members
        assert all(weight(one, rule) < tier for one in group), "each is lifted by a tier"
        assert result.size <= rule.largest
        assert result.keys.length <= rule.most_datapoints


@settings(deadline=None)
@given(datasets(), rules)
def test_it_ends_and_nothing_is_rewritten_more_often_than_there_are_tiers(
    ranges: list[Range], rule: OptimizeRule
) -> None:
    end = settled(list(ranges), rule)
    assert all(one.rewritten <= len(rule.tiers) for one in end)
    assert sum(one.keys.length for one in end) == sum(one.keys.length for one in ranges)


def test_datapoints_arriving_one_by_one_leave_few_dataranges_and_are_rewritten_a_few_times() -> None:
    rule = OptimizeRule(target=1_000_000, largest=5_000_000)
    ranges: list[Range] = []
    written = 0
    for key in range(3000):
        ranges.append(Range(Span(key, key + 1), 1024 + END))
        for group in (groups := plan_optimize(ranges, rule)):
            written += sum(one.size for one in group)
        ranges = applied(ranges, groups)
    assert len(ranges) <= 3 + 10 * len(rule.tiers)
    assert max(one.rewritten for one in ranges) <= len(rule.tiers) == 3
    assert written <= 4 * 3000 * 1024
    assert all(weight(one, rule) >= rule.target for one in ranges[:2])


def test_a_heap_of_small_dataranges_goes_to_the_target_at_once() -> None:
    ranges = [Range(Span(key, key + 1), 10 * MIB) for key in range(500)]
    groups = plan_optimize(ranges, OptimizeRule())
    assert all(sum(one.size for one in group) >= GIB for group in groups[:4])
    left = settled(ranges, OptimizeRule())
    assert len(left) == 4 + 8, "what does not make another gibibyte makes tenths of one"
    assert all(one.rewritten == 1 for one in left)


def test_no_merge_has_too_many_members_but_their_merges_go_on() -> None:
    rule = OptimizeRule(target=1_000_000, largest=5_000_000, most_members=30)
    ranges = [Range(Span(key, key + 1), 1024 + END) for key in range(3000)]
    assert all(len(group) <= 30 for group in plan_optimize(ranges, rule))
    assert len(settled(ranges, rule)) <= 3 + 10 * len(rule.tiers)


def test_what_is_large_enough_or_has_a_gap_beside_it_is_left_alone() -> None:
    assert plan_optimize([Range(Span(0, 1), 2 * GIB), Range(Span(1, 2), 2 * GIB)], OptimizeRule()) == []
    apart = [Range(Span(2 * key, 2 * key + 1), 900 * MIB) for key in range(9)]
    assert plan_optimize(apart, OptimizeRule()) == []
    assert plan_optimize([], OptimizeRule()) == []


def test_a_datarange_with_half_of_the_most_datapoints_is_as_good_as_large() -> None:
    many = [Range(Span(n * 400_000, (n + 1) * 400_000), 400 * MIB) for n in range(4)]
    groups = plan_optimize(many, OptimizeRule())
    assert [[one.keys.start // 400_000 for one in group] for group in groups] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    "bad",
    [
        {"target": 100},
        {"target": GIB, "largest": GIB},
        {"most_datapoints": 1},
        {"most_members": 1},
    ],
)
def test_a_rule_that_cannot_work_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(Invalid):
        OptimizeRule(**bad)


def test_no_merge_makes_what_could_not_be_imported() -> None:
    half = DATAPOINTS_LIMIT // 2
    found = [Range(Span(0, half), 1), Range(Span(half, DATAPOINTS_LIMIT + 1), 1)]
    with pytest.raises(Invalid, match="at most 4194304 datapoints"):
        check_sources("photos", Span(0, DATAPOINTS_LIMIT + 1), found)
    with pytest.raises(Invalid, match="at most 4194304 datapoints"):
        OptimizeRule(most_datapoints=DATAPOINTS_LIMIT + 1)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (Span(0, 40), "not fully covered"),
        (Span(0, 12), "not fully covered"),
        (Span(12, 14), "not fully covered"),
        (Span(0, 5), "at least two"),
        (Span(1, 3), "at least two"),
        (Span(1, 10), "not whole dataranges, those there hold 0 to 9"),
        (Span(0, 9), "not whole dataranges"),
        (Span(0, 10), ""),
    ],
)
def test_sources_are_adjacent_dataranges_with_exactly_the_keys(keys: Span, says: str) -> None:
    there = [Range(Span(0, 5), 1), Range(Span(5, 10), 1), Range(Span(15, 40), 1)]
    found = [one for one in there if one.keys.intersection(keys)]
    if not says:
        check_sources("photos", keys, found)
        return
    with pytest.raises(Invalid, match=says):
        check_sources("photos", keys, found)


def test_more_sources_than_one_merge_can_take_are_refused() -> None:
    there = [Range(Span(key, key + 1), 2048) for key in range(10_001)]
    with pytest.raises(Invalid, match="10001 dataranges, at most 10000 at once"):
        check_sources("photos", Span(0, 10_001), there)

"""Spans and their coalescing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.spans import Span, coalesce

spans = st.tuples(st.integers(0, 1000), st.integers(0, 50)).map(lambda t: Span(t[0], t[0] + t[1]))


def test_a_span_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="ends before"):
        Span(2, 1)


def test_length_of_all_possible_keys_is_no_machine_word() -> None:
    assert Span(0, 2**63).length == 2**63
    assert bool(Span(0, 2**63))


@given(spans, spans)
def test_intersection_has_what_both_have(a: Span, b: Span) -> None:
    common = set(range(a.start, a.stop)) & set(range(b.start, b.stop))
    found = a.intersection(b)
    assert set(range(found.start, found.stop)) == common


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), max_size=20), st.integers(0, 60))
def test_coalescing_covers_everything_and_reads_through_small_gaps_only(
    steps: list[tuple[int, int]], gap: int
) -> None:
    ascending, position = [], 0
    for length, distance in steps:
        ascending.append(Span(position + distance, position + distance + length))
        position += distance + length
    merged = coalesce(ascending, gap=gap, limit=100)
    assert all(any(m.covers(span) for m in merged) for span in ascending)
    assert all(m.length <= 100 for m in merged)
    wasted = sum(m.length for m in merged) - sum(span.length for span in ascending)
    assert wasted <= gap * (len(ascending) - len(merged))

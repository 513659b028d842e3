"""A set of spans against Python's own sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.spans import Span
from datas3tfs.core.spanset import SpanSet

SPANS = st.tuples(st.integers(0, 30), st.integers(0, 10)).map(lambda at: Span(at[0], at[0] + at[1]))


@given(st.lists(st.tuples(st.booleans(), SPANS), max_size=30))
def test_it_behaves_as_a_set_and_keeps_its_spans_apart(steps: list[tuple[bool, Span]]) -> None:
    spans, model = SpanSet(), set[int]()
    for is_added, span in steps:
        numbers = set(range(span.start, span.stop))
        if is_added:
            spans.add(span)
            model |= numbers
        else:
            spans.remove(span)
            model -= numbers
        kept = list(spans)
        assert {number for one in kept for number in range(one.start, one.stop)} == model
        assert all(kept), "no empty spans"
        assert all(one.stop < other.start for one, other in pairwise(kept)), "apart"
        assert bool(spans) == bool(model)
    for number in range(-1, 45):
        assert (number in spans) == (number in model)
        start, stop = spans.start_before(number), spans.stop_after(number)
        if number in model:
            assert start is not None
            assert stop is not None
            assert {start - 1, stop}.isdisjoint(model)
            assert set(range(start, stop)) <= model
            assert start <= number < stop
        else:
            assert start is None
            assert stop is None

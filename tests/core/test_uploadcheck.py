"""Planning what to look at of an upload (what is found there: engine/test_inspection.py)."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.spans import Span, coalesce
from datas3tfs.core.uploadcheck import plan_requests

MIB = 1 << 20


@given(st.lists(st.tuples(st.integers(0, 3 * MIB), st.integers(1, 3 * MIB)), min_size=1, max_size=60))
def test_requests_are_planned_as_spans_are_coalesced(steps: list[tuple[int, int]]) -> None:
    spans, position = [], 0
    for distance, length in steps:
        spans.append(Span(position + distance, position + distance + length))
        position = spans[-1].stop
    starts = np.array([span.start for span in spans], np.int64)
    stops = np.array([span.stop for span in spans], np.int64)
    assert plan_requests(starts, stops) == coalesce(spans, gap=MIB, limit=8 * MIB)

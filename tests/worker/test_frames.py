"""Messages come out as they went in, however the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.worker.frames import Frames, Words, frame

values = st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20)
words = st.dictionaries(st.text(max_size=8), values | st.lists(values, max_size=3), max_size=4)


@given(st.lists(st.tuples(words, st.binary(max_size=300)), max_size=8), st.lists(st.integers(1, 50)))
def test_what_goes_in_comes_out(sent: list[tuple[Words, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frame(*one) for one in sent)
    frames, received = Frames(), []
    for cut in cuts:
        received += list(frames.feed(stream[:cut]))
        stream = stream[cut:]
    received += list(frames.feed(stream))
    assert received == sent


def test_a_length_that_cannot_be_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(ValueError, match="length"):
        list(Frames().feed(b"\xff" * 8))

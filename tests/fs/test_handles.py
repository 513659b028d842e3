"""Handles: numbers are never used twice, and nothing is kept of what was closed."""

import errno

import pyfuse3
import pytest

from datas3tfs.fs.handles import Handles


def test_numbers_stand_for_what_was_opened_until_closed() -> None:
    handles: Handles[str] = Handles()
    numbers = [handles.add(value) for value in ("a", "b", "a")]
    assert [handles.get(number) for number in numbers] == ["a", "b", "a"]
    handles.close(numbers[1])
    assert len(handles) == 2
    for number in (numbers[1], 0, 1 << 63):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            handles.get(number)
        assert caught.value.errno == errno.EBADF


def test_a_number_is_never_used_twice() -> None:
    handles: Handles[int] = Handles()
    seen: set[int] = set()
    for value in range(1000):
        number = handles.add(value)
        assert number not in seen
        seen.add(number)
        handles.close(number)
        handles.close(number)  # closing again is harmless
    assert len(handles) == 0

"""Parts that others put: S3's limits, and recognising afterwards how an upload was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core import parts as own
from datas3tfs.core.model import Part
from datas3tfs.core.parts import (
    LEAST_PART,
    MOST_PARTS,
    PART_SIZE,
    check_part_size,
    likely_part_size,
    part_count,
    part_length,
    usable_parts,
)
from datas3tfs.errors import Invalid
from datas3tfs.wire import values

MIB = 1 << 20


def test_the_wire_and_the_engine_mean_the_same() -> None:
    assert (own.PART_SIZE, own.MOST_PARTS) == (values.PART_SIZE, values.MOST_PARTS)


@given(st.integers(1, 1 << 45), st.integers(LEAST_PART, 1 << 32))
def test_parts_tile_the_upload(size: int, part_size: int) -> None:
    count = part_count(size, part_size)
    last = part_length(size, part_size, count)
    assert (count - 1) * part_size + last == size
    assert 0 < last <= part_size
    assert part_length(size, part_size, count + 1) == 0


@given(st.integers(1, 1 << 45))
def test_what_is_said_to_be_possible_is_possible(size: int) -> None:
    try:
        check_part_size(size, PART_SIZE)
    except Invalid as exc:
        least = int(str(exc).split("at least ")[1].split(",")[0])
        check_part_size(size, least)
        assert part_count(size, least - MIB) > MOST_PARTS


@pytest.mark.parametrize("part_size", [0, -1, LEAST_PART - 1, (5 << 30) + 1])
def test_part_sizes_that_s3_refuses_are_refused(part_size: int) -> None:
    with pytest.raises(Invalid):
        check_part_size(100 * MIB, part_size)


@given(st.integers(20 * MIB, 1 << 40), st.integers(5, 5000), st.data())
def test_the_cut_is_recognised_by_any_part_that_has_arrived(size: int, mib: int, data: st.DataObject) -> None:
    part_size = mib * MIB
    count = part_count(size, part_size)
    if count > MOST_PARTS:
        return
    numbers = data.draw(st.sets(st.integers(1, count), min_size=1, max_size=20))
    arrived = [Part(number, part_length(size, part_size, number), "") for number in sorted(numbers)]
    found = likely_part_size(size, arrived)
    assert len(usable_parts(size, found, arrived)) == len(arrived)
    if numbers - {count}:
        assert found == part_size


def test_without_any_part_the_usual_size_is_taken_if_that_is_possible() -> None:
    assert likely_part_size(100 * MIB, []) == PART_SIZE
    huge = MOST_PARTS * PART_SIZE + 1
    assert part_count(huge, likely_part_size(huge, [])) <= MOST_PARTS


def test_parts_of_another_cut_are_put_again() -> None:
    size = 100 * MIB
    arrived = [Part(1, 30 * MIB, ""), Part(2, 20 * MIB, ""), Part(3, 20 * MIB, ""), Part(6, 20 * MIB, "")]
    assert likely_part_size(size, arrived) == 20 * MIB
    assert [part.number for part in usable_parts(size, 20 * MIB, arrived)] == [2, 3]


def test_ten_thousand_parts_of_different_lengths_take_no_time() -> None:
    arrived = [Part(number, LEAST_PART + number, "") for number in range(1, 10_001)]
    assert likely_part_size(1 << 40, arrived) > 0

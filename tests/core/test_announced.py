"""What is fetched of what was announced: lines, stretches, and how far ahead."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.announced import AnnouncedLimits, Course, Keys, Places, Run, Stretch, plan_stretches
from datas3tfs.core.announcing import LineReader
from datas3tfs.core.spans import Span

KIB = 1024


# -- lines -----------------------------------------------------------------------------------------


def read(*pieces: bytes) -> tuple[list[int], int]:
    reader, keys = LineReader(), []
    for piece in pieces:
        keys += reader.feed(piece)
    keys += reader.finish()
    return keys, reader.bad


def test_a_line_is_a_name_or_a_key() -> None:
    text = b"00000000000000000042.jpg\n7\n\n00000000000000000008.json.zst\r\n00000000000000000009\n"
    assert read(text + b"9223372036854775807") == ([42, 7, 8, 9, 2**63 - 1], 0)


@pytest.mark.parametrize(
    "line",
    [
        *(b"x", b"-1", b"1.5", b"1 2", b" 1", b"0000000000000000004.jpg", b"00000000000000000042."),
        *(b"9223372036854775808", b"99999999999999999999.jpg", b"\0", b"\xff\xfe", "٣".encode()),
        *(b"photos/00000000000000000042.jpg", b"1" * 21, b"0" * 20 + b"." + b"x" * 300, b"y" * 100_000),
    ],
)
def test_anything_else_is_counted_and_left_out(line: bytes) -> None:
    assert read(b"1\n" + line + b"\n2\n" + line) == ([1, 2], 2)


LINES = st.lists(
    st.integers(0, 2**64).map(lambda n: b"%d" % n)
    | st.integers(0, 2**63 - 1).map(lambda n: b"%020d.bin" % n)
    | st.binary(max_size=30)
    | st.sampled_from([b"", b"z" * 254, b"z" * 255, b"z" * 256, b"z" * 1000]),
    max_size=20,
)


@given(LINES, st.data())
def test_lines_may_be_cut_anywhere(lines: list[bytes], data: st.DataObject) -> None:
    text = b"\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == read(*(text[at : at + 1] for at in range(len(text)))) == read(text)


def test_an_endless_line_takes_no_memory() -> None:
    reader = LineReader()
    for _ in range(1000):
        assert reader.feed(b"a" * 10_000) == []
        assert len(reader._rest) < 11_000
    assert reader.feed(b"\n5\n") == [5]
    assert (reader.bad, len(reader.example or "")) == (1, 80)


# -- stretches -------------------------------------------------------------------------------------


def places(*found: tuple[int, int, int]) -> Places:
    columns = np.array(found, np.int64).reshape(-1, 3)
    return Places(columns[:, 0], columns[:, 1], columns[:, 2])


def all_of(found: Places) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.ones(len(found.starts), np.bool_)


def files(order: list[int], size: int) -> Places:
    """Files of one size, one behind the other, read in this order."""
    return places(*((0, n * size, n * size + size - 100) for n in order))


def fetched(runs: list[Run]) -> int:
    return sum(run.span.length for run in runs)


def shuffled(count: int, seed: int = 1) -> list[int]:
    return random.Random(seed).sample(range(count), count)


SPANS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=60
)


@given(SPANS, st.data())
def test_all_that_is_wanted_is_fetched_once_and_hardly_more(
    cells: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    found = places(*((o, n * 64 * KIB, n * 64 * KIB + size * KIB) for o, n, size in cells))
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(cells), max_size=len(cells))))
    # A datapoint has one size.
    sizes: dict[tuple[int, int], int] = {}
    for number, (o, n, size) in enumerate(cells):
        found.stops[number] = n * 64 * KIB + sizes.setdefault((o, n), size) * KIB
    room = data.draw(st.none() | st.integers(0, 1 << 24))
    runs = plan_stretches(found, wanted, room)
    chosen = {(o, n) for (o, n, _), is_wanted in zip(cells, wanted, strict=True) if is_wanted}
    pieces = [(o, n * 64 * KIB, n * 64 * KIB + sizes[o, n] * KIB) for o, n in chosen]
    for o, start, stop in pieces:
        assert sum(run.object == o and run.span.covers(Span(start, stop)) for run in runs) == 1
    useful = sum(stop - start for _, start, stop in pieces)
    assert fetched(runs) <= useful * 1.5 or fetched(runs) <= min(room or 0, 16 * useful)
    assert [run.first for run in runs] == sorted(run.first for run in runs)
    for run in runs:
        first = int(found.starts[run.first])
        assert wanted[run.first]
        assert first in run.span
        assert not any(
            wanted[n] and found.objects[n] == run.object and int(found.starts[n]) in run.span
            for n in range(run.first)
        )


def test_what_fits_as_a_whole_is_fetched_as_it_lies() -> None:
    found = files(shuffled(5000), 4608)
    runs = plan_stretches(found, all_of(found), 64 << 20)
    assert [run.span for run in runs] == [Span(0, 5000 * 4608 - 100)]


def test_so_is_what_eight_readers_have_shared_out_among_themselves() -> None:
    found = files(shuffled(8000)[:1000], 4608)
    assert len(plan_stretches(found, all_of(found), 64 << 20)) <= 20
    sparse = files(list(range(0, 25_000, 25)), 4608)
    runs = plan_stretches(sparse, all_of(sparse), 1 << 30)
    assert len(runs) == 1000, "too little of it would be wanted"


def test_scattered_datapoints_cost_a_request_each_and_not_a_byte_more() -> None:
    found = files(shuffled(100_000)[:500], 101_000)
    runs = plan_stretches(found, all_of(found), None)
    assert len(runs) > 480
    assert fetched(runs) < 1.01 * 500 * 101_000
    assert [run.first for run in runs[:50]] == list(range(50)), "in the order in which they are read"


def test_small_ones_that_lie_near_each_other_share_requests() -> None:
    found = files(shuffled(40_000)[:10_000], 4608)
    runs = plan_stretches(found, all_of(found), None)
    assert len(runs) < 6000
    assert fetched(runs) <= 1.5 * 10_000 * 4608


def test_a_datapoint_announced_twice_is_fetched_for_the_first_time() -> None:
    found = files([5, 3, 5, 3, 3], 1 << 20)
    assert [run.first for run in plan_stretches(found, all_of(found), None)] == [0, 1]


# -- the course ------------------------------------------------------------------------------------

SIZE = 1000
Planner = Callable[[Keys], list[Stretch[str]]]


def each(keys: Keys) -> list[Stretch[str]]:
    """A stretch for every datapoint."""
    return [Stretch(n, "o", Span(k * SIZE, k * SIZE + SIZE)) for n, k in enumerate(keys.tolist())]


def whole(keys: Keys) -> list[Stretch[str]]:
    """One for the batch."""
    return [Stretch(0, "o", Span(int(keys.min()) * SIZE, int(keys.max()) * SIZE + SIZE))]


class Reader:
    """Plans and fetches as engine/announcements.py does, without any of its waiting."""

    def __init__(self, keys: list[int], limits: AnnouncedLimits, planner: Planner) -> None:
        self.course: Course[str] = Course()
        self.limits = limits
        self.planner = planner
        self.asked: list[Span] = []
        self.course.add(np.array(keys, np.int64))
        self.go_on()

    def go_on(self) -> None:
        ahead = self.limits.batch // 2
        while True:
            while (due := self.course.due(ahead)) is not None:
                self.asked.append(due.span)
                self.course.issued()
            if not self.course.wants_more(ahead):
                return
            keys = self.course.upcoming(0, self.limits.batch // SIZE)
            self.course.plan(np.full(len(keys), SIZE), self.planner(keys))

    def read(self, key: int) -> bool:
        """Read, and say whether it was fetched ahead."""
        was = any(span.start <= key * SIZE < span.stop for span in self.asked)
        self.course.observe(key)
        self.go_on()
        return was


LIMITS = AnnouncedLimits(batch=100 * SIZE, whole=200 * SIZE)


def test_in_the_order_announced_everything_is_there_and_nothing_much_too_early() -> None:
    keys = shuffled(2000)
    reader = Reader(keys, LIMITS, each)
    for number, key in enumerate(keys):
        assert reader.read(key)
        assert len(reader.asked) <= number + 1 + 52, "half a batch ahead"
    assert [span.start // SIZE for span in reader.asked] == keys, "each once, in order"
    assert reader.course.is_issued
    assert reader.course.progress == reader.course.planned == 2000


def test_a_reader_seen_now_and_then_is_followed_all_the_same() -> None:
    keys = shuffled(2000)
    reader = Reader(keys, LIMITS, each)
    seen = [key for number, key in enumerate(keys) if number % 16 == 0]
    assert all(reader.read(key) for key in seen)


def test_a_reader_that_leaves_out_most_is_followed() -> None:
    keys = shuffled(3000)
    reader = Reader(keys, LIMITS, each)
    assert all(reader.read(key) for key in keys[::30])


def test_readers_side_by_side_may_be_out_of_order() -> None:
    keys, rng = shuffled(2000), random.Random(3)
    reader = Reader(keys, LIMITS, each)
    late = sorted((number + rng.uniform(0, 30), key) for number, key in enumerate(keys))
    assert all(reader.read(key) for _, key in late)


def test_what_others_read_changes_nothing() -> None:
    keys = shuffled(2000)
    reader = Reader(keys, LIMITS, each)
    for stranger in range(5000):
        reader.read(10_000 + stranger)
    assert len(reader.asked) <= 52
    others = shuffled(2000, seed=9)
    for key, other in zip(keys, others, strict=True):
        reader.course.observe(other)
        assert reader.read(key) or True
    assert reader.course.is_issued


def test_a_stranger_who_reads_announced_keys_does_not_move_an_idle_announcement_far() -> None:
    reader = Reader(shuffled(20_000), LIMITS, each)
    for key in shuffled(20_000, seed=5)[:5000]:
        reader.read(key)
    assert len(reader.asked) < 10_000


def test_a_reader_who_begins_in_the_middle_is_found() -> None:
    keys = shuffled(20_000)
    reader = Reader(keys, LIMITS, each)
    hits = [reader.read(key) for key in keys[10_000:]]
    assert sum(not hit for hit in hits) <= 64
    assert all(hits[100:])


def test_what_is_announced_bit_by_bit_is_fetched_bit_by_bit() -> None:
    reader = Reader([], LIMITS, each)
    keys = shuffled(1000)
    for start in range(0, 1000, 10):
        reader.course.add(np.array(keys[start : start + 10], np.int64))
        reader.go_on()
        assert all(reader.read(key) for key in keys[start : start + 10])


def test_an_announcement_takes_eight_bytes_for_each_key() -> None:
    course: Course[str] = Course()
    course.add(np.arange(1_000_000, dtype=np.int64))
    assert sum(chunk.nbytes for chunk in course._waiting) == 8_000_000
    assert course.forget_waiting() == 1_000_000
    assert course.is_issued
    for key in range(10_000):
        course.add(np.array([key], np.int64))
    assert len(course._waiting) <= 3
    assert course.upcoming(0, 10_000).tolist() == list(range(10_000))


def test_of_what_nobody_reads_half_a_batch_is_fetched() -> None:
    assert len(Reader(shuffled(10_000), LIMITS, each).asked) <= 52
    assert len(Reader(shuffled(10_000), AnnouncedLimits(1 << 40, 1 << 40), each).asked) == 256


KEYS = st.lists(st.integers(0, 400), max_size=300)


@given(KEYS, st.lists(st.integers(0, 450), max_size=300), st.booleans())
def test_whatever_is_read_every_datapoint_is_asked_for_at_most_once_for_each_time_it_is_announced(
    keys: list[int], reads: list[int], together: bool
) -> None:
    reader = Reader(keys, AnnouncedLimits(20 * SIZE, 40 * SIZE), whole if together else each)
    for key in reads:
        reader.read(key)
        assert 0 <= reader.course.progress <= reader.course.planned
    for key in keys:
        reader.read(key)
    if not together:
        for key in set(keys):
            asked = sum(span.start == key * SIZE for span in reader.asked)
            assert asked <= keys.count(key)

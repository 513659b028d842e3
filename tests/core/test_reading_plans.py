"""Pieces, extents, prefetch windows and inode numbers: the arithmetic under a read."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.extents import Extents
from datas3tfs.core.index import Index, open_index
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.inodes import (
    ROOT,
    ControlNode,
    DatapointNode,
    DatasetNode,
    EntryNode,
    Inodes,
    Node,
    RootNode,
)
from datas3tfs.core.journalrecords import EntryId
from datas3tfs.core.model import DatasetId
from datas3tfs.core.prefetch import PrefetchLimits, PrefetchPlanner
from datas3tfs.core.reads import cut, piece, piece_count, pieces_of, plan_read
from datas3tfs.core.spans import Span
from datas3tfs.core.tar import padded
from datas3tfs.errors import Invalid

sizes = st.lists(
    st.integers(0, 5000) | st.sampled_from([CHUNK, CHUNK + 1, 3 * CHUNK]), min_size=1, max_size=12
)


def index_of(contents: list[int]) -> Index:
    builder, offset = IndexBuilder(), 0
    for size in contents:
        chunks = [0] * (-(-size // CHUNK) if size > CHUNK else 0)
        builder.add(
            offset=offset, header_blocks=1, size=size, mtime_ns=0, extension="b", crc=0, chunk_crcs=chunks
        )
        offset += 512 + padded(size)
    flat = builder.finish(first=0, object_size=offset + 1024)
    return open_index(memoryview(flat), first=0, count=len(contents), object_size=offset + 1024)


@given(sizes, st.data())
def test_the_pieces_of_a_read_cover_it_exactly(contents: list[int], data: st.DataObject) -> None:
    index = index_of(contents)
    entry = index.entry(data.draw(st.integers(0, len(contents) - 1)))
    offset = data.draw(st.integers(0, entry.size + 10))
    size = data.draw(st.integers(0, 2 * CHUNK))
    pieces = plan_read(entry, offset, size)
    wanted = Span(offset, max(offset, min(offset + size, entry.size))).shifted(entry.content.start)
    assert sum(p.content.intersection(wanted).length for p in pieces) == wanted.length
    assert all(p.content.intersection(wanted) for p in pieces)


@given(sizes)
def test_pieces_are_contiguous_and_begin_with_the_headers(contents: list[int]) -> None:
    index = index_of(contents)
    for slot in range(index.count):
        entry = index.entry(slot)
        found = [piece(entry, number) for number in range(piece_count(entry))]
        assert found[0].span.start == entry.header.start
        assert found[-1].span.stop == entry.content.stop
        assert all(a.span.stop == b.span.start for a, b in pairwise(found))


@given(sizes, st.data())
def test_cutting_a_span_never_cuts_a_piece(contents: list[int], data: st.DataObject) -> None:
    index = index_of(contents)
    start = data.draw(st.integers(0, index.object_size))
    span = Span(start, data.draw(st.integers(start, index.object_size)))
    stretches = cut(index, span, data.draw(st.integers(1, 2 * CHUNK)))
    every = [
        piece(index.entry(s), n).span for s in range(index.count) for n in range(piece_count(index.entry(s)))
    ]
    for stretch in stretches:
        for found in every:
            common = stretch.intersection(found).length
            assert common in (0, found.length)
    assert all(a.stop == b.start for a, b in pairwise(stretches))
    wanted = span.intersection(Span(0, every[-1].stop))
    if wanted:
        assert stretches[0].start <= wanted.start
        assert stretches[-1].stop >= wanted.stop


@given(sizes)
def test_all_pieces_of_an_object_are_seen_once(contents: list[int]) -> None:
    index = index_of(contents)
    stretches = cut(index, Span(0, index.object_size), 100_000)
    seen = [
        (slot, one.number)
        for stretch in stretches
        for slot in range(index.count)
        for one in pieces_of(index.entry(slot), stretch)
    ]
    expected = [(s, n) for s in range(index.count) for n in range(piece_count(index.entry(s)))]
    assert seen == expected


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40), st.booleans()), max_size=40), st.data())
def test_extents_behave_like_a_set_of_disjoint_spans(
    steps: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    extents: Extents[int] = Extents()
    model: dict[Span, int] = {}
    for number, (start, length, insert) in enumerate(steps):
        span = Span(start, start + length)
        overlapping = [other for other in model if other.intersection(span)]
        if not insert and overlapping:
            extents.remove(overlapping[0])
            del model[overlapping[0]]
        elif overlapping:
            with pytest.raises(ValueError, match="overlaps"):
                extents.insert(span, number)
        else:
            extents.insert(span, number)
            model[span] = number
    assert dict(extents) == model
    position = data.draw(st.integers(0, 350))
    expected = next(((s, n) for s, n in model.items() if position in s), None)
    assert extents.at(position) == expected
    wanted = Span(position, position + data.draw(st.integers(0, 60)))
    free = extents.free(wanted)
    taken = {p for s in model for p in range(s.start, s.stop)}
    uncovered = [p for p in range(wanted.start, wanted.stop) if p not in taken]
    assert (free.start if free else None) == (uncovered[0] if uncovered else None)
    assert all(p not in taken for p in range(free.start, free.stop))


LIMITS = PrefetchLimits(first_window=64_000, largest_window=1_000_000)


def test_forward_reading_is_fetched_ahead_in_growing_windows() -> None:
    planner = PrefetchPlanner(LIMITS)
    wanted: list[Span] = []
    for position in range(0, 5_000_000, 5_000):
        answer = planner.observe(Span(position, position + 4_500))
        if answer is not None:
            wanted.append(answer)
    assert wanted[0].start == 10_000  # the third read is the proof
    assert all(a.stop == b.start for a, b in pairwise(wanted))
    assert wanted[-1].length == LIMITS.largest_window // 2, "as much as was read"
    assert len(wanted) < 15


def test_many_readers_share_what_is_fetched_ahead() -> None:
    limits = PrefetchLimits(first_window=64_000, largest_window=1_000_000, all_windows=2_000_000)
    for readers, largest in ((1, 1_000_000), (2, 1_000_000), (8, 250_000), (30, 66_666)):
        planner = PrefetchPlanner(limits)
        for position in range(1_000, 3_000_000, 5_000):
            for place in range(0, readers * 10**9, 10**9):
                planner.observe(Span(place + position, place + position + 4_500))
        assert largest / 2 <= planner.ahead / readers <= largest


def test_who_has_more_than_a_share_waits_until_it_has_less() -> None:
    limits = PrefetchLimits(first_window=64_000, largest_window=1_000_000, all_windows=1_000_000)
    planner, reached, answers = PrefetchPlanner(limits), 0, 0
    for position in range(0, 8_000_000, 5_000):
        answer = planner.observe(Span(position, position + 4_500))
        if answer is not None:
            assert answer.start == (reached or answer.start), "nothing is left out"
            reached, answers = answer.stop, answers + 1
        for other in range(1, 21 if position > 2_000_000 else 1):
            planner.observe(Span(other * 10**9 + position, other * 10**9 + position + 4_500))
    assert answers > 50
    assert planner.ahead < 21 * 64_000


def test_a_single_read_or_reading_the_same_again_fetches_nothing_ahead() -> None:
    planner = PrefetchPlanner(LIMITS)
    assert [planner.observe(Span(1000, 2000)) for _ in range(20)] == [None] * 20


def test_random_reading_fetches_nothing_ahead() -> None:
    planner = PrefetchPlanner(LIMITS)
    order = list(range(20_000))
    random.Random(1).shuffle(order)
    answers = [planner.observe(Span(n * 100_000, n * 100_000 + 99_000)) for n in order]
    assert sum(answer is not None for answer in answers) < len(order) // 100


def test_reading_backwards_is_reading_forwards_in_a_mirror() -> None:
    planner = PrefetchPlanner(LIMITS)
    wanted: list[Span] = []
    for position in range(5_000_000, 0, -5_000):
        answer = planner.observe(Span(position, position + 4_500))
        if answer is not None:
            assert answer.start < position
            wanted.append(answer)
    assert wanted[0].stop == 4_994_500  # the third read is the proof
    assert all(later.stop == before.start for before, later in pairwise(wanted))
    assert wanted[-1].start == 0, "never before the beginning"
    assert len(wanted) < 15


def test_only_who_is_known_to_go_forwards_goes_forwards() -> None:
    forwards, backwards, nowhere = (PrefetchPlanner(LIMITS) for _ in range(3))
    places = list(range(0, 1_000_000, 5_000))
    scattered = random.Random(1).sample(range(0, 10**10, 10**6), len(places))
    said = {
        name: [planner.is_forwards for one in reads if [planner.observe(one)]]
        for name, planner, reads in (
            ("forwards", forwards, [Span(at, at + 4_500) for at in places]),
            ("backwards", backwards, [Span(at, at + 4_500) for at in reversed(places)]),
            ("nowhere", nowhere, [Span(at, at + 4_500) for at in scattered]),
        )
    }
    assert said["forwards"] == [False, False, *[True] * (len(places) - 2)]
    assert not any(said["backwards"] + said["nowhere"])


def test_who_leaves_out_some_each_time_is_a_reader_after_a_few_more() -> None:
    planner = PrefetchPlanner(PrefetchLimits())
    reads = [Span(n * 150_000, n * 150_000 + 100_000) for n in range(100)]
    answers = [planner.observe(read) for read in reads]
    assert 3 < next(n for n, answer in enumerate(answers) if answer) < 8
    assert sum(answer is not None for answer in answers) < 6


def test_what_was_given_may_be_read_unseen() -> None:
    """The page cache has it; a read further on says how far the reader is."""
    planner = PrefetchPlanner(PrefetchLimits())
    reached, position, answers = 0, 0, 0
    for _ in range(200):
        answer = planner.observe(Span(position, position + 4_000))
        if answer is not None:
            assert not reached or answer.start == reached, "nothing is left out, nothing twice"
            reached, answers = answer.stop, answers + 1
        position = position + 4_000 if not reached else reached - (reached - position) * 3 // 4
    assert answers > 10
    assert planner.ahead >= reached - position


def test_reads_that_share_a_piece_follow_each_other() -> None:
    """So it is if the first page of a large file is in the page cache: the kernel asks for what follows."""
    planner = PrefetchPlanner(PrefetchLimits())
    reads = [Span(n * 4 * CHUNK, (n + 1) * 4 * CHUNK + CHUNK) for n in range(10)]
    answers = [planner.observe(read) for read in reads]
    assert answers[0] is None
    assert any(answers[:4])


def test_interleaved_readers_each_have_their_window() -> None:
    planner = PrefetchPlanner(LIMITS)
    starts = [n * 1_000_000_000 for n in range(8)]
    wanted: list[Span] = []
    for step in range(10):
        for start in starts:
            answer = planner.observe(Span(start + step * 5_000, start + step * 5_000 + 4_000))
            wanted += [answer] if answer else []
    assert {span.start // 1_000_000_000 for span in wanted} == set(range(8))


def test_the_kernels_own_read_ahead_out_of_order_is_one_stream() -> None:
    planner = PrefetchPlanner(PrefetchLimits())
    order = (0, 1, 2, 4, 3, 5, 7, 6, 8, 9, 11, 10)
    wanted: list[Span] = []
    for n in order:
        read = Span(n * 131_072, (n + 1) * 131_072)
        answer = planner.observe(read)
        wanted += [answer] if answer else []
        assert n < 2 or any(span.covers(read) for span in wanted)
    assert 0 < len(wanted) < 6
    assert all(b.start <= a.stop for a, b in pairwise(wanted)), "a stretch was left out"


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**5)), max_size=200),
    st.sampled_from([LIMITS, PrefetchLimits(64_000, 1_000_000, 1_000_000)]),
)
def test_answers_are_never_empty_and_never_reach_beyond_two_windows(
    reads: list[tuple[int, int]], limits: PrefetchLimits
) -> None:
    planner = PrefetchPlanner(limits)
    for start, length in reads:
        answer = planner.observe(Span(start, start + length))
        if answer is not None:
            assert answer
            assert answer.stop <= start + length + 512 * 1024 + 2 * LIMITS.largest_window


keys, small_keys = st.integers(0, 2**63 - 1), st.integers(0, 2**40 - 1)
nodes: st.SearchStrategy[Node] = st.one_of(
    st.just(RootNode()),
    st.integers(1, 2**40 - 1).map(lambda i: EntryNode(EntryId(i))),
    st.tuples(st.integers(1, 2**39 - 1), st.booleans()).map(lambda t: ControlNode(DatasetId(t[0]), t[1])),
    st.integers(1, 2**39).map(lambda i: DatasetNode(DatasetId(i))),
    st.tuples(st.integers(1, 2**30), st.integers(0, 2**63 - 1)).map(
        lambda t: DatapointNode(DatasetId(t[0]), t[1])
    ),
    st.tuples(st.integers(1, 9), st.integers(0, 2**40 - 1)).map(
        lambda t: DatapointNode(DatasetId(t[0]), t[1])
    ),
)


@given(st.lists(nodes, max_size=50))
def test_inode_numbers_are_unique_and_lead_back(found: list[Node]) -> None:
    inodes = Inodes()
    numbers = {node: inodes.number(node) for node in found}
    assert len(set(numbers.values())) == len(numbers)
    for node, number in numbers.items():
        assert 1 <= number < 2**64
        assert inodes.node(number) == node
        assert inodes.number(node) == number
        assert (number == ROOT) == (node == RootNode())
        assert inodes.entry(number) == (node.entry if isinstance(node, EntryNode) else None)


@given(st.integers(1, 2**22 - 1), st.integers(0, 2**40 - 1))
def test_ordinary_inode_numbers_are_the_same_in_every_mount(dataset: int, key: int) -> None:
    node = DatapointNode(DatasetId(dataset), key)
    assert Inodes().number(node) == Inodes().number(node)


@given(st.integers(1, 2**40 - 1))
def test_an_uncommitted_file_and_a_datapoint_never_share_a_number(number: int) -> None:
    """Whatever the datapoint's key: a file that is removed and made again is not the old one."""
    uncommitted = Inodes().number(EntryNode(EntryId(number)))
    assert Inodes().node(uncommitted) == EntryNode(EntryId(number))
    assert uncommitted >> 40 == 1 << 22


def test_numbers_never_given_out_are_refused() -> None:
    with pytest.raises(Invalid):
        Inodes().node(((1 << 22) + 1) << 40)


@given(st.integers(0, 2**42), st.integers(1, 50), st.integers(0, 30))
def test_numbers_in_a_row_are_those_one_by_one(first: int, count: int, back: int) -> None:
    inodes, first = Inodes(), max(0, (first | 2**40 - 1) - back)
    numbers = list(inodes.datapoints(DatasetId(3), first, count))
    assert numbers == [inodes.datapoint(DatasetId(3), key) for key in range(first, first + count)]


_steps = st.lists(
    st.tuples(st.booleans(), st.integers(1, 2), st.integers(0, 40), st.integers(1, 12)), max_size=40
)


@given(_steps, st.sampled_from([0, 2**40 - 20, 2**63 - 60]))
def test_a_number_never_stands_for_what_came_later(
    steps: list[tuple[bool, int, int, int]], base: int
) -> None:
    """Datapoints are looked at and go, in any order: a number is that of one life of a key, for ever."""
    inodes, lives, given_out = Inodes(), Counter[tuple[int, int]](), dict[int, tuple[int, int, int]]()
    for goes, dataset, start, count in steps:
        keys = range(base + start, base + start + count)
        if goes:
            inodes.retire(DatasetId(dataset), Span(keys.start, keys.stop))
            lives.update((dataset, key) for key in keys)
            continue
        numbers = inodes.datapoints(DatasetId(dataset), keys.start, count)
        for key, number in zip(keys, numbers, strict=True):
            life = dataset, key, lives[dataset, key]
            assert number == inodes.datapoint(DatasetId(dataset), key)
            assert given_out.setdefault(number, life) == life
    for number, (dataset, key, which) in given_out.items():
        if which == lives[dataset, key]:
            assert inodes.node(number) == DatapointNode(DatasetId(dataset), key)
        else:
            with pytest.raises(Invalid, match="gone"):
                inodes.node(number)


def test_what_goes_again_and_again_leaves_no_growing_table() -> None:
    inodes = Inodes()
    for _ in range(100):
        inodes.retire(DatasetId(1), Span(5, 500))
    assert len(inodes._retired[1]) == 1


def test_no_table_grows_with_the_datapoints_looked_at() -> None:
    inodes = Inodes()
    for key in range(2**50, 2**50 + 1000):
        inodes.datapoint(DatasetId(3), key)
    assert len(inodes._regions) == 1

"""What is pushed of a stretch that has come: small files that are right, each once; some are left out."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import partial

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.counters import Counters
from datas3tfs.core.index import Index
from datas3tfs.core.model import BucketId, DatasetId
from datas3tfs.core.reads import cut, piece, piece_count
from datas3tfs.core.spans import Span
from datas3tfs.engine.blocks import Extent, ObjectRef
from datas3tfs.fs.pushing import Pusher
from tests.core.test_reading_plans import index_of

FIRST_INODE = 1 << 41
sizes = st.lists(
    st.integers(0, 9000) | st.sampled_from([CHUNK, CHUNK + 1, 3 * CHUNK + 5]), min_size=1, max_size=25
)

Row = tuple[int, ...]  # inode, start in the extent, length


def extent_of(index: Index, span: Span) -> Extent:
    ref = ObjectRef(DatasetId(1), BucketId(1), "key", index.object_size, index)
    return Extent(ref, span, 0, is_ahead=True, data=memoryview(bytes(span.length)))


def numbers(ref: ObjectRef, slots: Span) -> Sequence[int]:
    return range(FIRST_INODE + slots.start, FIRST_INODE + slots.stop)


def pushed(pusher: Pusher, extent: Extent, *, heartbeats: bool = False) -> list[Row]:
    """Offer *extent*, and return what is pushed of it."""
    asked: list[Row] = []

    async def push(data: memoryview, rows: bytes, last: bool) -> tuple[int, int]:
        assert data is extent.data
        found = [tuple(row) for row in np.frombuffer(rows, "=u8").reshape(-1, 3).tolist()]
        asked.extend(found)
        if last:
            scope.cancel()
        return len(found), sum(row[2] for row in found)

    async def main() -> None:
        with scope:
            await pusher.run(push, heartbeats=heartbeats)

    scope = trio.CancelScope()
    pusher.offer(extent)
    trio.run(main)
    return asked


def files_of(index: Index, span: Span) -> list[Row]:
    """Return every file of one piece with content that lies wholly in *span*."""
    found = []
    for slot in range(index.count):
        entry = index.entry(slot)
        one = piece(entry, 0)
        if one.content and piece_count(entry) == 1 and span.covers(one.span):
            found.append((FIRST_INODE + slot, one.content.start - span.start, one.content.length))
    return sorted(found)


@given(sizes, st.integers(20_000, 2_000_000))
@settings(deadline=None)
def test_whole_files_and_nothing_else(contents: list[int], limit: int) -> None:
    index = index_of(contents)
    for span in cut(index, Span(0, index.object_size), limit):
        assert pushed(Pusher(numbers, Counters()), extent_of(index, span)) == files_of(index, span)


@given(sizes, st.data())
@settings(deadline=None)
def test_what_is_wrong_or_read_already_is_not_pushed(contents: list[int], data: st.DataObject) -> None:
    index = index_of(contents)
    span = cut(index, Span(0, index.object_size), 1 << 40)[0]
    wrong = data.draw(st.integers(0, index.count - 1))
    read = data.draw(st.integers(0, index.count - 1))
    extent, pusher = extent_of(index, span), Pusher(numbers, Counters())
    extent.problems[index.entry(wrong).header.start] = "made wrong"
    pusher.reading(FIRST_INODE + read)
    gone = {FIRST_INODE + wrong, FIRST_INODE + read}
    assert pushed(pusher, extent) == [row for row in files_of(index, span) if row[0] not in gone]


@pytest.mark.parametrize(("size", "count"), [(4096, 2000), (100 * 1024, 80), (0, 5), (CHUNK, 20)])
def test_a_few_are_left_out_to_hear_of_the_reader(size: int, count: int) -> None:
    index, counters = index_of([size] * count), Counters()
    span = cut(index, Span(0, index.object_size), 1 << 40)[0]
    rows = pushed(Pusher(numbers, counters), extent_of(index, span), heartbeats=True)
    left_out = (count if size else 0) - len(rows)
    assert counters.get("push.heartbeats") == left_out
    if size:
        # At least three times in the stretch, and in every 4 MiB; of small files hardly any.
        assert left_out >= max(3, index.object_size // (4 << 20))
        assert left_out <= max(6, count // 20, index.object_size // (2 << 20))


def test_nothing_is_pushed_of_what_is_not_certain() -> None:
    index = index_of([4096] * 10)
    span = cut(index, Span(0, index.object_size), 1 << 40)[0]
    assert pushed(Pusher(lambda ref, slots: None, Counters()), extent_of(index, span)) == []


def test_the_kernel_is_asked_no_more_once_it_knows_nothing() -> None:
    index = index_of([4096] * 2000)
    extent = extent_of(index, cut(index, Span(0, index.object_size), 1 << 40)[0])
    asked: list[int] = []

    async def push(data: memoryview, rows: bytes, last: bool) -> tuple[int, int]:
        asked.append(len(rows) // 24)
        if last:
            scope.cancel()
        return (100, 100) if len(asked) == 1 else (0, 0)

    async def main() -> None:
        with scope:
            await pusher.run(push, heartbeats=False)

    scope, pusher = trio.CancelScope(), Pusher(numbers, Counters())
    pusher.offer(extent)
    trio.run(main)
    assert len(asked) == 3, "one turn, another one in vain, the end"
    assert asked[2] == 0


def test_what_comes_too_fast_is_left_to_reads() -> None:
    index = index_of([4096] * 10)
    pusher = Pusher(numbers, Counters())
    for serial in range(100):
        extent = extent_of(index, cut(index, Span(0, index.object_size), 1 << 40)[0])
        extent.serial, extent.span = serial, Span(0, 1 << 20)
        pusher.offer(extent)
    assert list(pusher._jobs) == list(range(36, 100))


# -- a reader that has caught up ------------------------------------------------------------------------

LARGE = 100 << 10


class Pushed:
    """Takes what is pushed; while it `holds`, nothing is answered."""

    def __init__(self) -> None:
        self.inodes: list[int] = []
        self.holds = trio.Event()
        self.holds.set()

    async def __call__(self, data: memoryview, rows: bytes, last: bool) -> tuple[int, int]:
        await self.holds.wait()
        await trio.sleep(0.001)
        found = np.frombuffer(rows, "=u8").reshape(-1, 3)
        self.inodes += found[:, 0].tolist()
        return len(found), int(found[:, 2].sum())


def reading(pusher: Pusher, extent: Extent, slot: int) -> Awaitable[None]:
    """Do what a READ of a datapoint does when its bytes are there."""
    entry = extent.ref.index.entry(slot)
    pusher.reading(FIRST_INODE + slot)
    return pusher.lead(extent.ref, entry.content.start, FIRST_INODE + slot)


@pytest.fixture
def running(nursery: trio.Nursery) -> tuple[Index, Pusher, Pushed]:
    """Eighty files of 100 KiB, and a pusher at work that has nothing to do."""
    pusher, push = Pusher(numbers, Counters()), Pushed()
    nursery.start_soon(partial(pusher.run, push, heartbeats=False))
    return index_of([LARGE] * 80), pusher, push


async def test_a_read_waits_until_what_follows_it_has_a_lead(
    running: tuple[Index, Pusher, Pushed], autojump_clock: trio.testing.MockClock
) -> None:
    index, pusher, push = running
    extent = extent_of(index, Span(0, index.object_size))
    pusher.offer(extent)
    await reading(pusher, extent, 40)
    lead = {FIRST_INODE + slot for slot in range(41, 51)}  # a mebibyte
    assert lead <= set(push.inodes)
    await trio.sleep(1)
    assert sorted(push.inodes) == [FIRST_INODE + slot for slot in range(80) if slot != 40], "each once"


async def test_a_read_of_what_is_being_pushed_never_waits_for_that(
    running: tuple[Index, Pusher, Pushed], autojump_clock: trio.testing.MockClock
) -> None:
    """Pushing waits for the READ: the kernel has locked its page."""
    index, pusher, push = running
    extent = extent_of(index, Span(0, index.object_size))
    push.holds = trio.Event()
    pusher.offer(extent)
    await trio.testing.wait_all_tasks_blocked()
    begun = trio.current_time()
    await reading(pusher, extent, 3)
    assert trio.current_time() == begun
    await reading(pusher, extent, 70)  # not being pushed: waits, but not for long
    assert begun < trio.current_time() < begun + 0.1


async def test_a_read_waits_for_nothing_else(
    running: tuple[Index, Pusher, Pushed], autojump_clock: trio.testing.MockClock
) -> None:
    index, pusher, push = running
    half = cut(index, Span(0, index.object_size), index.object_size // 2)
    ours, other = extent_of(index, half[0]), extent_of(index, half[1])
    push.holds = trio.Event()
    begun = trio.current_time()
    await reading(pusher, ours, 3)  # nothing is to be pushed
    pusher.offer(other)
    await trio.testing.wait_all_tasks_blocked()
    await reading(pusher, ours, 3)  # nothing near is to be pushed
    assert trio.current_time() == begun

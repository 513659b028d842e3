"""Reading in other orders than that of the keys: shuffled within a window, fully, and announced."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial

import systems
import tars
from book import Book, Goal, Sample
from orders import shuffled, within
from plan import KIB, Contestant, Plan, one_round, size_name
from processes import Failed
from sampling import before, counters, from_counters, raw, read, read_mount, requested
from systems import NULL, OURS, RAW
from world import PROGRAM, Data, World, has_command

LATENCY = 10
WINDOW = 1000  # files
READERS = (1, 8, 32)
ANNOUNCED, IN_ORDER = f"{OURS} announced", f"{OURS} in order"
CONTROL = ".datas3tfs/prefetch"  # in a dataset's directory: takes the names to come, one a line


def measure(world: World, book: Book, plan: Plan) -> None:
    """Read 100 KiB files in random order, by 1, 8 and 32 readers; then within a window."""
    size = 100 * KIB
    data = world.data(size_name(size), plan.files(size), size)
    world.relay.delay(LATENCY)
    for readers in READERS:
        _fully(world, book, plan, data, readers)
    _window(world, book, plan, data)


def _fully(world: World, book: Book, plan: Plan, data: Data, readers: int) -> None:
    limit = min(data.count, plan.pick(100, 40) * readers)
    goals = [
        Goal(OURS, (RAW,), least=0.8),
        Goal(OURS, figure="gets_per_file", most=1.1),
        Goal(OURS, figure="fetched_per_byte", most=1.1),
    ]
    title = (
        f"{limit} of {data.count} files of {size_name(data.size)} in random order, {readers} readers, 10 ms"
    )
    row = book.row(f"shuffled-{readers}", title, "files/s", goals if readers == 32 else [])
    for number in range(plan.rounds):
        order = shuffled(data.count, limit, number)
        turns = {
            NULL: partial(_null, world, data, order, readers),
            OURS: partial(_ours, world, data, order, readers),
            RAW: partial(_raw, world, data, order, readers),
        }
        one_round(plan, book, row, turns, number)


def _window(world: World, book: Book, plan: Plan, data: Data) -> None:
    title = f"all {data.count} files of {size_name(data.size)}, shuffled within {WINDOW}, one reader, 10 ms"
    row = book.row("window", title, "files/s")
    for number in range(plan.rounds):
        order = within(data.count, WINDOW, number)
        turns = {
            NULL: partial(_null, world, data, order, 1),
            OURS: partial(_ours, world, data, order, 1, seconds=5.0),
            IN_ORDER: partial(_ours, world, data, range(data.count), 1, party=IN_ORDER),
        }
        one_round(plan, book, row, turns, number)


def _null(world: World, data: Data, order: Sequence[int], readers: int) -> Mapping[str, Sample]:
    with systems.null(world, data.count, data.size) as mount:
        read(world, mount.path, only_list=True)
        options = {"names": list(map(tars.name_of, order)), "jobs": readers, "check": False}
        return {NULL: read_mount(world, mount, before(world), **options)}


def _ours(
    world: World,
    data: Data,
    order: Sequence[int],
    readers: int,
    *,
    party: str = OURS,
    announced: bool = False,
    seconds: float = 0,
) -> Mapping[str, Sample]:
    """List, then read in *order*. What is fetched for the listing (the indices) does not count."""
    with systems.ours(world, data, cold=True) as mount:
        read(world, mount.path, only_list=True)
        control = mount.path / CONTROL
        if announced and not os.path.lexists(control):  # a link to a pipe, made when it is read
            raise Failed("absent: there is no control file to announce an order")
        past, since = counters(world, mount), before(world)
        options = {"names": list(map(tars.name_of, order)), "jobs": readers, "seconds": seconds}
        sample = read_mount(world, mount, since, announce=control if announced else None, **options)
        sample |= from_counters(sample, counters(world, mount), past)
        sample |= requested(world, since, sample["files"], sample["bytes"])
        return {party: sample}


def _raw(world: World, data: Data, order: Sequence[int], readers: int) -> Mapping[str, Sample]:
    ranges = [data.place(key) for key in order]
    return {RAW: raw(world, data, ranges, threads=readers, each_a_file=True)}


def announced(world: World, book: Book, plan: Plan) -> None:
    """Read everything in a random order that was announced, beside reading it in order."""
    if not has_command([*PROGRAM, "prefetch", "--help"]):
        book.miss(ANNOUNCED, "absent: there is no `datas3tfs prefetch`")
        return
    for size in (4 * KIB, 100 * KIB):
        data = world.data(size_name(size), plan.files(size), size)
        _announced(world, book, plan, data, data.count)
        _announced(world, book, plan, data, WINDOW // 2)


def _announced(world: World, book: Book, plan: Plan, data: Data, window: int) -> None:
    """Shuffle within *window*, which may be everything."""
    name = size_name(data.size)
    goals = [
        Goal(ANNOUNCED, (IN_ORDER,), least=0.8),
        Goal(ANNOUNCED, (IN_ORDER,), least=0.7, issue=6),
        Goal(ANNOUNCED, figure="pushed_unread", most=0.1, issue=6),
    ]
    what = "in random order" if window == data.count else f"shuffled within {window}"
    row = book.row(
        f"announced-{name}-{window}",
        f"all {data.count} files of {name} {what}, announced, {LATENCY} ms",
        "files/s",
        goals,
    )
    world.relay.delay(LATENCY)
    for number in range(plan.rounds):
        order = within(data.count, window, number)
        turns: dict[str, Contestant] = {
            IN_ORDER: partial(_ours, world, data, range(data.count), 1, party=IN_ORDER),
            ANNOUNCED: partial(_ours, world, data, order, 1, party=ANNOUNCED, announced=True, seconds=10.0),
        }
        one_round(plan, book, row, turns, number)

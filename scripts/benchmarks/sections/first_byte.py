"""How long one random datapoint takes, its index cached, beside one raw GET of the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import systems
import tars
from book import Book, Goal, Sample
from orders import shuffled
from plan import KIB, Plan, one_round, size_name
from sampling import before, raw, read, read_mount
from systems import OURS, RAW
from world import Data, World

LATENCY = 30
TIMES = 40  # datapoints in a round, one after the other


def measure(world: World, book: Book, plan: Plan) -> None:
    """Take the median of some in each round."""
    size = 4 * KIB
    data = world.data(size_name(size), plan.files(size), size)
    world.relay.delay(LATENCY)
    title = f"one random file of {size_name(size)}: open, read, close; the index is cached; {LATENCY} ms"
    row = book.row("first-byte", title, "files/s", [Goal(OURS, (RAW,), "p50", most=1.15)])
    for number in range(plan.rounds):
        order = shuffled(data.count, TIMES, number)
        turns = {OURS: partial(_ours, world, data, order), RAW: partial(_raw, world, data, order)}
        one_round(plan, book, row, turns, number)


def _ours(world: World, data: Data, order: Sequence[int]) -> Mapping[str, Sample]:
    with systems.ours(world, data, cold=False) as mount:
        read(world, mount.path, only_list=True)
        return {OURS: read_mount(world, mount, before(world), names=list(map(tars.name_of, order)))}


def _raw(world: World, data: Data, order: Sequence[int]) -> Mapping[str, Sample]:
    ranges = [data.place(key) for key in order]
    return {RAW: raw(world, data, ranges, threads=1, each_a_file=True)}

"""Reading one large file, cold."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import systems
from book import Book, Goal, Sample
from plan import GIB, MIB, Plan, one_round
from sampling import before, counters, from_counters, raw, read_mount, whole
from systems import NULL, NULL_C, OURS, RAW
from world import Data, World

STEP, AHEAD = 8 * MIB, 8


def measure(world: World, book: Book, plan: Plan) -> None:
    """Read one file of 1 GiB at 0 and 10 ms."""
    size = plan.pick(GIB, 256 * MIB)
    data = world.data("large", 1, size)
    present = systems.note_absent(world, book)
    for latency in (0, 10):
        world.relay.delay(latency)
        goals = [Goal(OURS, (NULL, RAW), least=0.8)]
        row = book.row(
            f"large-{latency}ms", f"one file of {size // MIB} MiB, cold, {latency} ms", "MB/s", goals
        )
        turns = {
            NULL: partial(_null, world, size),
            OURS: partial(_ours, world, data),
            RAW: partial(_raw, world, data),
        }
        if NULL_C in present:
            turns[NULL_C] = partial(_null_c, world, size)
        for number in range(plan.rounds):
            one_round(plan, book, row, turns, number)


def _speed(sample: Sample) -> Sample:
    return sample | {"rate": sample["bytes"] / 1e6 / sample["seconds"]}


def _null(world: World, size: int) -> Mapping[str, Sample]:
    with systems.null(world, 1, size) as mount:
        return {NULL: _speed(read_mount(world, mount, before(world), check=False))}


def _null_c(world: World, size: int) -> Mapping[str, Sample]:
    with systems.null_c(world, 1, size) as mount:
        return {NULL_C: _speed(read_mount(world, mount, before(world), check=False))}


def _ours(world: World, data: Data) -> Mapping[str, Sample]:
    since = before(world)
    with systems.ours(world, data, cold=True) as mount:
        sample = _speed(read_mount(world, mount, since))
        return {OURS: sample | from_counters(sample, counters(world, mount))}


def _raw(world: World, data: Data) -> Mapping[str, Sample]:
    return {RAW: _speed(raw(world, data, whole(data, STEP), threads=AHEAD))}

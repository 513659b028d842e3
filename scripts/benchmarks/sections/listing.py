"""Listing directories of a thousand to a million datapoints with the usual programs, the index cached."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

import processes
import systems
from book import Book, Goal, Sample
from mounting import Mounted
from plan import MIB, Plan, one_round
from processes import Failed, run
from sampling import LIMIT, slab
from systems import NULL, OURS
from world import World

SIZE = 16  # bytes of a datapoint: it is the names that count
MILLION = 1_000_000
COMMANDS = {"ls -f": ["ls", "-f"], "ls -l": ["ls", "-l"], "find": ["find"]}
Mounting = Callable[[], AbstractContextManager[Mounted]]


def measure(world: World, book: Book, plan: Plan) -> None:
    """List 1,000 to 1,000,000 entries; each program on a fresh mount."""
    world.relay.delay(0)
    for count in (1_000, 10_000, 100_000) if plan.quick else (1_000, 10_000, 100_000, MILLION):
        data = world.data(f"list-{count}", count, SIZE)
        with systems.ours(world, data, cold=False) as mount:  # so that the index is cached
            run(["ls", "-f", mount.path], world.env, LIMIT)
        mountings: dict[str, Mounting] = {
            NULL: partial(systems.null, world, count, SIZE),
            OURS: partial(systems.ours, world, data, cold=False),
        }
        rounds = plan.slow_rounds if count == MILLION else plan.rounds
        for name, command in COMMANDS.items():
            if plan.quick and name != "ls -f" and count > 10_000:
                continue
            goals = _goals(name, count)
            row = book.row(
                f"{name.replace(' ', '')}-{count}", f"`{name}` of {count:,} datapoints", "entries/s", goals
            )
            for number in range(rounds):
                turns = {
                    party: partial(_list, world, party, mounting, command, count)
                    for party, mounting in mountings.items()
                }
                one_round(plan, book, row, turns, number)


def _goals(name: str, count: int) -> list[Goal]:
    if name != "ls -f":
        return []
    goals = [Goal(OURS, figure="first_line", most=0.5)]
    if count == MILLION:
        goals += [Goal(OURS, (NULL,), least=0.6), Goal(OURS, figure="memory_of_limit", most=1)]
    return goals


def _list(
    world: World, party: str, mounting: Mounting, command: list[str], count: int
) -> Mapping[str, Sample]:
    with mounting() as mount:
        kernel = slab()
        first, seconds, lines = _timed([*command, str(mount.path)])
        if lines < count:
            raise Failed(f"{command}: {lines} lines instead of {count}")
        memory = float(processes.peak_memory(mount.pid))
        sample: Sample = {
            "rate": count / seconds,
            "seconds": seconds,
            "first_line": first,
            "memory": memory,
            "memory_of_limit": memory / ((150 + 256) * MIB + 20 * count),
        }
        if count >= 100_000:  # below, other slabs move more than these
            sample["slab_per_entry"] = (slab() - kernel) / count
        return {party: sample}


def _timed(command: list[str]) -> tuple[float, float, int]:
    """Run *command*; return seconds to its first output and to its end, and how many lines came."""
    begin = time.perf_counter()
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, bufsize=0)
    assert process.stdout is not None
    first, lines = 0.0, 0
    with process.stdout as out:
        while piece := out.read(1 << 20):
            first = first or time.perf_counter() - begin
            lines += piece.count(b"\n")
    if process.wait(LIMIT):
        raise Failed(f"{' '.join(command)}: exit {process.returncode}")
    return first, time.perf_counter() - begin, lines

"""`Client.iterate`, without a mount, beside webdataset on the same TARs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

import processes
import systems
from book import Book, Goal, Sample
from plan import KIB, Plan, one_round, size_name
from processes import run
from sampling import LIMIT, before, program
from serving import served
from systems import ITERATE, WEBDATASET
from world import Data, World

LATENCY = 10
SECONDS = 3.0


def measure(world: World, book: Book, plan: Plan) -> None:
    """Iterate over files of 4 KiB and of 100 KiB."""
    present = systems.note_absent(world, book)
    with served(world) as url:
        for size in (4 * KIB, 100 * KIB):
            data = world.data(size_name(size), plan.files(size), size)
            world.relay.delay(LATENCY)
            title = f"samples of {size_name(size)} without a mount, {LATENCY} ms"
            row = book.row(
                f"iterate-{size_name(size)}", title, "samples/s", [Goal(ITERATE, (WEBDATASET,), least=2)]
            )
            turns = {ITERATE: partial(_iterate, world, data, url)}
            if WEBDATASET in present:
                turns[WEBDATASET] = partial(webdataset, world, data)
            for number in range(plan.rounds):
                one_round(plan, book, row, turns, number)


def _iterate(world: World, data: Data, url: str) -> Mapping[str, Sample]:
    command = processes.script("iterate_reader.py", url, data.name, data.count, int(SECONDS))
    return {ITERATE: program(world, lambda: run(command, world.env, LIMIT), before(world))}


def webdataset(world: World, data: Data) -> Mapping[str, Sample]:
    """Read the TARs with webdataset."""
    assert world.peers is not None
    job = json.dumps({"urls": [world.signed(key) for key in data.objects], "seconds": SECONDS})
    command = [world.peers, processes.HERE / "webdataset_reader.py"]
    return {WEBDATASET: program(world, lambda: run(command, world.env, LIMIT, job), before(world))}

"""Reading all files of a dataset in order after `ls`, cold and warm, beside ceilings and peers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import processes
import systems
import tars
from book import Book, Goal, Row, Sample
from plan import KIB, MIB, Contestant, Plan, one_round, size_name
from processes import run
from sampling import LIMIT, before, counters, from_counters, program, raw, read, read_mount, whole
from systems import BOTO3, LOCAL, NULL, NULL_C, OURS, RATARMOUNT, RAW, RCLONE, S3FS, WEBDATASET
from world import Data, World

from sections.iterate import webdataset

STEP = 8 * MIB  # bytes of one range request, as the mount's
AHEAD = 8  # of those at once; more of them were not faster
NULL_SECONDS = 3.0
BUDGET = 256 * MIB  # DATAS3TFS_MEMORY_BUDGET, unless the environment says otherwise
WARM, DISK = f"{OURS} again", f"{OURS} disk-warm"
SLOW = 10  # milliseconds at which the peers compete that read file by file


def measure(world: World, book: Book, plan: Plan) -> None:
    """Scan files of 4 KiB, 100 KiB and, unless it is to be quick, 1 MiB."""
    present = systems.note_absent(world, book)
    for size in (4 * KIB, 100 * KIB) if plan.quick else (4 * KIB, 100 * KIB, MIB):
        data = world.data(size_name(size), plan.files(size), size)
        latencies = plan.latencies if size < MIB else (0, 10)
        rows = {latency: _row(book, data, latency) for latency in latencies}
        turns = {latency: _contestants(world, data, latency, plan, present) for latency in latencies}
        slow = {
            latency: _peers(world, data, plan, present) for latency in latencies if _peers_at(data, latency)
        }
        for number in range(plan.rounds):
            for latency in latencies:
                world.relay.delay(latency)
                one_round(plan, book, rows[latency], turns[latency], number)
                if latency in slow and number < plan.slow_rounds and slow[latency]:
                    one_round(plan, book, rows[latency], slow[latency], number)
        _hidden(book, data, rows)
        shutil.rmtree(_copy(world, data), ignore_errors=True)
    relay_cost(world, book, plan)


def _peers_at(data: Data, latency: int) -> bool:
    return latency == SLOW and data.size < MIB


def _row(book: Book, data: Data, latency: int) -> Row:
    """Return an empty row with the goals that hold for it."""
    small, medium = data.size == 4 * KIB, data.size == 100 * KIB
    goals = []
    if small or medium:
        goals += [Goal(OURS, (NULL,), least=0.8), Goal(DISK, (NULL,), least=0.9)]
        goals += [Goal(WARM, figure="reads_per_file", most=0), Goal(OURS, figure="memory_of_limit", most=1)]
    if _peers_at(data, latency):
        goals += [Goal(OURS, (peer,), least=20) for peer in (RCLONE, S3FS, BOTO3)]
        goals += [Goal(peer, (OURS,), "gets_per_file", least=100) for peer in (RCLONE, S3FS, BOTO3)]
    if (small or medium) and latency <= 10:
        if small:
            goals += [Goal(OURS, (NULL,), least=5, issue=6), Goal(OURS, (WEBDATASET,), least=2, issue=6)]
        else:
            goals += [Goal(OURS, (RAW,), least=0.8, issue=6), Goal(OURS, (WEBDATASET,), least=1.5, issue=6)]
        goals += [Goal(OURS, figure="reads_per_file", most=0.05, issue=6)]
        goals += [Goal(OURS, figure="pushed_unread", most=0.05, issue=6)]
    if (small or medium) and latency == 0:
        goals += [Goal(WARM, (LOCAL,), least=0.8, issue=6)]
    title = f"ls, then all {data.count} files of {size_name(data.size)} in order, S3 at {latency} ms"
    return book.row(f"scan-{size_name(data.size)}-{latency}ms", title, "files/s", goals)


def _contestants(
    world: World, data: Data, latency: int, plan: Plan, present: set[str]
) -> dict[str, Contestant]:
    """Return who takes part in every round."""

    def null() -> Mapping[str, Sample]:
        with systems.null(world, data.count, data.size) as mount:
            return {NULL: read_mount(world, mount, before(world), check=False, seconds=NULL_SECONDS)}

    def null_c() -> Mapping[str, Sample]:
        with systems.null_c(world, data.count, data.size) as mount:
            return {NULL_C: read_mount(world, mount, before(world), check=False, seconds=NULL_SECONDS)}

    def gets() -> Mapping[str, Sample]:
        return {RAW: raw(world, data, whole(data, STEP), threads=AHEAD)}

    found: dict[str, Contestant] = {
        NULL: null,
        OURS: lambda: scan_ours(world, data),
        RAW: gets,
    }
    if latency <= 10 and WEBDATASET in present:
        found[WEBDATASET] = partial(webdataset, world, data)
    if latency == 0:
        found[LOCAL] = lambda: _local(world, data)
        if NULL_C in present:
            found[NULL_C] = null_c
    return found


def scan_ours(world: World, data: Data) -> Mapping[str, Sample]:
    """Read all with nothing cached; again; and after a new mount, with what the disk has."""
    since = before(world)
    with systems.ours(world, data, cold=True) as mount:
        cold = read_mount(world, mount, since)
        first = counters(world, mount)
        cold |= from_counters(cold, first)
        cold["memory_of_limit"] = cold["memory"] / (150 * MIB + BUDGET + 20 * data.count)
        warm = read_mount(world, mount, before(world))
        warm |= from_counters(warm, counters(world, mount), first)
    since = before(world)
    with systems.ours(world, data, cold=False) as mount:
        disk = read_mount(world, mount, since)
        disk |= from_counters(disk, counters(world, mount))
    return {OURS: cold, WARM: warm, DISK: disk}


def _local(world: World, data: Data) -> Mapping[str, Sample]:
    """Read a copy in memory."""
    copy = _copy(world, data)
    if not copy.exists():
        tars.write_files(copy, 0, data.count, data.size)
    read(world, copy)
    found = read(world, copy)
    return {LOCAL: {"rate": found["files"] / found["read"], "files": found["files"], "bytes": found["bytes"]}}


def _copy(world: World, data: Data) -> Path:
    return world.memory / f"copy-{data.name}"


def _peers(world: World, data: Data, plan: Plan, present: set[str]) -> dict[str, Contestant]:
    """Return those who read file by file: so slow that a part of the files must do."""
    count = min(data.count, plan.pick(2000, 500))
    limits = {"seconds": plan.slow_seconds}
    keys = world.plain_objects(data, count)

    def boto3() -> Mapping[str, Sample]:
        job = json.dumps({"bucket": world.bucket, "keys": keys} | limits)
        command = processes.script("object_gets.py")
        return {BOTO3: program(world, lambda: run(command, world.env, LIMIT, job), before(world))}

    def rclone() -> Mapping[str, Sample]:
        since = before(world)
        with systems.rclone(world, data.prefix) as mount:
            return {RCLONE: read_mount(world, mount, since, **limits)}

    def s3fs() -> Mapping[str, Sample]:
        since = before(world)
        with systems.s3fs(world, data.prefix) as mount:
            return {S3FS: read_mount(world, mount, since, **limits)}

    def ratarmount() -> Mapping[str, Sample]:
        since = before(world)
        with systems.ratarmount(world, data) as mount:
            return {RATARMOUNT: read_mount(world, mount, since, **limits)}

    found = {BOTO3: boto3, RCLONE: rclone, S3FS: s3fs, RATARMOUNT: ratarmount}
    return {name: turn for name, turn in found.items() if name == BOTO3 or name in present}


def _hidden(book: Book, data: Data, rows: dict[int, Row]) -> None:
    """Put our own figures at all latencies side by side."""
    if 30 not in rows or data.size == MIB:
        return
    goal = Goal(f"{OURS} 30 ms", (f"{OURS} 0 ms",), least=0.8)
    row = book.row(f"latency-{data.name}", "the same, latencies side by side", "files/s", [goal])
    for latency, other in rows.items():
        for sample in other.samples.get(OURS, []):
            row.add(f"{OURS} {latency} ms", {"rate": sample["rate"]})


def relay_cost(world: World, book: Book, plan: Plan) -> None:
    """Say what going through the relay costs when it delays nothing."""
    world.relay.delay(0)
    data = world.data(size_name(100 * KIB), plan.files(100 * KIB), 100 * KIB)
    ranges = [data.place(key) for key in range(0, data.count, 2)]
    row = book.row(
        "relay", f"what the relay costs ({world.relay.kind}): raw GETs with and without", "files/s"
    )
    for _ in range(plan.rounds):
        for name, endpoint in (("direct", world.direct), ("relay", world.endpoint)):
            row.add(f"8 MiB, {name}", raw(world, data, whole(data, STEP), threads=AHEAD, endpoint=endpoint))
            each = raw(world, data, ranges, threads=AHEAD, each_a_file=True, endpoint=endpoint)
            row.add(f"100 KiB, {name}", each)

"""Writing: many small files, one large one, fsync, and until it is visible in another mount."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import processes
import systems
from book import Book, Goal, Sample
from mounting import Mounted, mounted
from plan import GIB, KIB, MIB, Plan, one_round, size_name
from processes import Failed, run
from sampling import LIMIT, before, counters, requested
from systems import NULL, OURS, RCLONE
from world import PROGRAM, World

UPLOAD, CLOSED = "multipart upload", f"{OURS} until close()"
VISIBLE_LIMIT = 90.0  # seconds
# As it comes it waits 5 seconds before it uploads, so that with few files the wait is all that counts.
RCLONE_WRITING = {
    RCLONE: ("--vfs-cache-mode=writes",),
    f"{RCLONE}, tuned": ("--vfs-cache-mode=writes", "--vfs-write-back=0s", "--transfers=16"),
}


@contextmanager
def writable(world: World, dataset: str) -> Iterator[tuple[Mounted, Path]]:
    """Mount everything, make *dataset* in it; leave nothing in the journal."""
    path = world.mountpoint("writable")
    command = [*PROGRAM, "mount", path, "--journal-dir", world.scratch / "journal"]
    with mounted(command, path, world.env, world.log) as mount:
        directory = path / dataset
        directory.mkdir()
        yield mount, directory
        flush(mount)


def flush(mount: Mounted) -> float:
    """Commit everything as `datas3tfs flush` does, without the time a Python program takes to start."""
    begin = time.perf_counter()
    os.setxattr(mount.path, "user.datas3t.flush", b"1")
    return time.perf_counter() - begin


def write(world: World, directory: Path, count: int, size: int, *options: str) -> Sample:
    """Let writer.py create files; return its figures."""
    done = run(processes.script("writer.py", directory, count, size, *options), world.env, LIMIT)
    found: Sample = done.document
    return {
        "rate": count / found["create"],
        "files": count,
        "bytes": count * size,
        "seconds": found["create"],
        **({"p50": found["fsync"]} if found["fsync"] else {}),
    }


def _written(world: World, mount: Mounted, directory: Path, count: int, size: int, since) -> Sample:
    """Write and commit; return the sample with what it cost."""
    spent = processes.cpu_of([mount.pid])
    sample = write(world, directory, count, size)
    sample["flush"] = flush(mount)
    sample |= requested(world, since, count, sample["bytes"])
    sample["puts"] = sample.get("requests_put", counters(world, mount)["s3.put"])
    sample["cpu"] = processes.cpu_of([mount.pid]) - spent
    sample["memory"] = float(processes.peak_memory(mount.pid))
    return sample


def create(world: World, book: Book, plan: Plan) -> None:
    """Create, write and close small files beside the null file system; then until others see them."""
    world.relay.delay(0)
    for size, count in ((4 * KIB, plan.pick(10_000, 2_000)), (100 * KIB, plan.pick(2_000, 400))):
        goals = [Goal(OURS, (NULL,), least=0.6)] if size == 4 * KIB else []
        title = f"create, write and close {count} files of {size_name(size)}"
        row = book.row(f"create-{size_name(size)}", title, "files/s", goals)
        for number in range(plan.rounds):
            turns = {
                NULL: partial(_create_null, world, count, size),
                OURS: partial(_create_ours, world, count, size, f"created-{size}-{number}"),
            }
            one_round(plan, book, row, turns, number)
            world.drop(f"datas3t/created-{size}-{number}/")
    _visible(world, book, plan)


def _create_null(world: World, count: int, size: int) -> Mapping[str, Sample]:
    with systems.null(world, 0, size, writable=True) as mount:
        return {NULL: write(world, mount.path, count, size)}


def _create_ours(world: World, count: int, size: int, dataset: str) -> Mapping[str, Sample]:
    with writable(world, dataset) as (mount, directory):
        return {OURS: _written(world, mount, directory, count, size, before(world))}


def _visible(world: World, book: Book, plan: Plan) -> None:
    present = systems.note_absent(world, book)
    count, few, size = plan.pick(10_000, 2_000), plan.pick(2_000, 300), 4 * KIB
    title = f"create files of {size_name(size)} until another mount shows the last, 10 ms"
    row = book.row("visible", title, "files/s", [Goal(OURS, (RCLONE,), least=20)])
    world.relay.delay(10)
    for number in range(plan.rounds):
        turns = {OURS: partial(_visible_ours, world, count, size, f"visible-{number}")}
        if RCLONE in present and number < plan.slow_rounds:
            for party, options in RCLONE_WRITING.items():
                prefix = f"visible-{number}-{len(options)}"
                turns[party] = partial(_visible_rclone, world, few, size, prefix, party, options)
        one_round(plan, book, row, turns, number)


def _visible_ours(world: World, count: int, size: int, dataset: str) -> Mapping[str, Sample]:
    with writable(world, dataset) as (mount, directory):
        path = world.mountpoint()
        command = [*PROGRAM, "mount", path, "--read-only", "--dataset", dataset]
        with mounted(command, path, world.env, world.log):
            begin = time.perf_counter()
            write(world, directory, count, size)
            flush(mount)
            return {OURS: _seen(path, count, begin)}


def _visible_rclone(
    world: World, count: int, size: int, prefix: str, party: str, options: Sequence[str]
) -> Mapping[str, Sample]:
    watching = ("--read-only", "--vfs-cache-mode=off", "--dir-cache-time=200ms", "--attr-timeout=100ms")
    with systems.rclone(world, prefix, *options, where="writable") as mount:
        begin = time.perf_counter()
        write(world, mount.path, count, size)
        with systems.rclone(world, prefix, *watching) as other:
            return {party: _seen(other.path, count, begin)}


def _seen(path: Path, count: int, begin: float) -> Sample:
    """Wait until all *count* files are listed at *path*."""
    while len(os.listdir(path)) < count:
        if time.perf_counter() - begin > VISIBLE_LIMIT:
            raise Failed(f"{path}: not all visible after {VISIBLE_LIMIT:.0f} s")
        time.sleep(0.02)
    seconds = time.perf_counter() - begin
    return {"rate": count / seconds, "files": count, "seconds": seconds}


def bulk(world: World, book: Book, plan: Plan) -> None:
    """Write one large file until it is committed, beside a plain parallel multipart upload."""
    size = plan.pick(GIB, 128 * MIB)
    world.relay.delay(0)
    title = f"one file of {size // MIB} MiB, written and committed"
    row = book.row("bulk", title, "MB/s", [Goal(OURS, (UPLOAD,), least=0.8)])
    for number in range(plan.rounds):
        turns = {
            UPLOAD: partial(_upload, world, size, number),
            OURS: partial(_bulk_ours, world, size, f"bulk-{number}"),
        }
        one_round(plan, book, row, turns, number)
        world.drop(f"plain-bulk-{number}")
        world.drop(f"datas3t/bulk-{number}/")


def _upload(world: World, size: int, number: int) -> Mapping[str, Sample]:
    done = run(processes.script("upload.py", f"plain-bulk-{number}", size), world.env, LIMIT)
    seconds = done.document["seconds"]
    return {UPLOAD: {"rate": size / 1e6 / seconds, "seconds": seconds, "cpu": done.cpu}}


def _bulk_ours(world: World, size: int, dataset: str) -> Mapping[str, Sample]:
    with writable(world, dataset) as (mount, directory):
        sample = _written(world, mount, directory, 1, size, before(world))
        closed = {"rate": size / 1e6 / sample["seconds"], "seconds": sample["seconds"]}
        sample["seconds"] += sample["flush"]
        sample["rate"] = size / 1e6 / sample["seconds"]
        return {OURS: sample, CLOSED: closed}


def fsync(world: World, book: Book, plan: Plan) -> None:
    """Take the median of fsync of small new files, one after the other."""
    for latency in (0, 10):
        world.relay.delay(latency)
        row = book.row(f"fsync-{latency}ms", f"fsync of one new 4 KiB file, {latency} ms", "files/s")
        for number in range(plan.rounds):
            turns = {OURS: partial(_fsync, world, f"fsync-{latency}-{number}", plan.pick(20, 8))}
            one_round(plan, book, row, turns, number)


def _fsync(world: World, dataset: str, count: int) -> Mapping[str, Sample]:
    with writable(world, dataset) as (_, directory):
        return {OURS: write(world, directory, count, 4 * KIB, "--fsync")}

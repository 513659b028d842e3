"""Take one sample: let a reader work, and note what that cost whom.

What is counted at the relay (requests, bytes) is counted alike for all. Not for what is read (sections/).
For one thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
from book import Sample
from mounting import Mounted
from processes import Failed, run
from relay import Counts
from world import Data, World

LIMIT = 120.0  # seconds for any reader


@dataclass(frozen=True, slots=True)
class Before:
    """Where the counters stood."""

    counts: Counts
    server: float


def before(world: World) -> Before:
    return Before(world.relay.counts(), _others(world))


def _others(world: World) -> float:
    """CPU seconds of S3 server and relay: they share the machine."""
    return processes.cpu_of([pid for pid in (world.server, world.relay.pid) if pid])


def requested(world: World, since: Before, files: float, size: float) -> Sample:
    """Return what went over the relay *since*, for *files* files and *size* bytes read."""
    sample: Sample = {"cpu_others": _others(world) - since.server}
    now = world.relay.counts()
    if now:
        moved = {name: now[name] - since.counts[name] for name in now}
        sample |= {f"requests_{name}": float(amount) for name, amount in moved.items()}
        sample["gets_per_file"] = (moved["get"] + moved["head"] + moved["list"]) / max(files, 1)
        sample["fetched_per_byte"] = moved["down"] / max(size, 1)
    return sample


def read(
    world: World,
    directory: Path,
    *,
    names: Sequence[str] | None = None,
    jobs: int = 1,
    seconds: float = 0,
    check: bool = True,
    announce: Path | None = None,
    only_list: bool = False,
) -> dict[str, Any]:
    """Let the reader read *directory* and return what it says. Raises Failed if bytes are wrong."""
    command = [*world.reader(), str(directory), "--jobs", str(jobs)]
    if names is not None:
        order = world.scratch / "order"
        order.write_text("".join(name + "\n" for name in names))
        command += ["--names", str(order)]
    command += ["--seconds", str(seconds)] if seconds else []
    command += ["--check"] if check else []
    command += ["--list"] if only_list else []
    command += ["--announce", str(announce)] if announce else []
    done = run(command, world.env, LIMIT)
    found = done.document
    if found["wrong"] or found["errors"]:
        raise Failed(f"{directory}: {found['wrong']} wrong pages, {found['errors']} files not read")
    return found | {"cpu_reader": done.cpu}


def read_mount(world: World, mount: Mounted, since: Before, **options: Any) -> Sample:
    """Read a mount; return the sample, its daemon's costs included."""
    spent = processes.cpu_of([mount.pid])
    found = read(world, mount.path, **options)
    files = found["files"]
    sample: Sample = {
        "rate": files / found["read"] if files else found["listed"] / found["list"],
        "files": files,
        "bytes": found["bytes"],
        "seconds": found["read"],
        "list_rate": found["listed"] / max(found["list"], 1e-9),
        "p50": found["p50"],
        "p99": found["p99"],
        "cpu": processes.cpu_of([mount.pid]) - spent,
        "memory": float(processes.peak_memory(mount.pid)),
        "cpu_reader": found["cpu_reader"],
    }
    sample["cpu_ms_per_file"] = 1000 * sample["cpu"] / max(files, 1)
    return sample | requested(world, since, files, found["bytes"])


def program(world: World, what: Callable[[], processes.Done], since: Before) -> Sample:
    """Let a program read by itself; it prints files, bytes and seconds."""
    done = what()
    found = done.document
    sample: Sample = {
        "rate": found["files"] / found["seconds"],
        "files": found["files"],
        "bytes": found["bytes"],
        "seconds": found["seconds"],
        "cpu": done.cpu,
        "cpu_ms_per_file": 1000 * done.cpu / max(found["files"], 1),
    }
    return sample | requested(world, since, found["files"], found["bytes"])


def counters(world: World, mount: Mounted) -> dict[str, int]:
    """Return the counters of a mount of ours, as `datas3tfs stats` does, which takes a second to start."""
    try:
        document = json.loads(os.getxattr(mount.path, "user.datas3t.stats"))
    except OSError:
        document = world.ours("stats", mount.path, "--json").document
    found: dict[str, int] = document["counters"]
    return found


def from_counters(sample: Sample, now: dict[str, int], past: dict[str, int] | None = None) -> Sample:
    """Return what the mount's own counters say of *sample*, since *past*."""

    def moved(name: str) -> int:
        return now.get(name, 0) - (past or {}).get(name, 0)

    found: Sample = {"reads_per_file": moved("fuse.read") / max(sample["files"], 1)}
    pushed = moved("push.bytes")
    if pushed:
        # What the program read came by READ or had been pushed; the rest of what was pushed is for nothing.
        used = max(0.0, sample["bytes"] - moved("fuse.read_bytes"))
        found["pushed_unread"] = max(0.0, pushed - used) / pushed
    return found


def raw(
    world: World,
    data: Data,
    ranges: Sequence[tuple[str, int, int]],
    *,
    threads: int,
    each_a_file: bool = False,
    forks: int = 2,
    seconds: float = 0,
    endpoint: str | None = None,
) -> Sample:
    """GET *ranges* and do nothing with them; "rate" in files of *data* a second."""
    since = before(world)
    job = {
        "urls": {key: world.signed(key, endpoint) for key in data.objects},
        "ranges": ranges,
        "threads": max(1, threads // forks),
        "processes": forks if threads >= forks else 1,
        "seconds": seconds,
    }
    done = run(processes.script("raw_gets.py"), world.env, LIMIT, given=json.dumps(job))
    found = done.document
    files = found["requests"] if each_a_file else found["bytes"] / data.tars[0].stride
    sample: Sample = {
        "rate": files / found["seconds"],
        "files": files,
        "bytes": found["bytes"],
        "seconds": found["seconds"],
        "p50": found["p50"],
        "cpu": done.cpu,
        "cpu_ms_per_file": 1000 * done.cpu / max(files, 1),
    }
    return sample | requested(world, since, files, found["bytes"])


def whole(data: Data, step: int) -> list[tuple[str, int, int]]:
    """Return ranges of *step* bytes that cover all TARs of *data*."""
    return [
        (key, start, min(start + step, tar.length))
        for key, tar in zip(data.objects, data.tars, strict=True)
        for start in range(0, tar.length, step)
    ]


def slab() -> int:
    """Return the bytes of kernel memory in slabs."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("Slab:"):
                return int(line.split()[1]) << 10
    return 0


def cores() -> int:
    return len(os.sched_getaffinity(0))

"""SIGKILL the daemon at every step of a commit, a hundred times, and lose nothing that was promised.

A writer in processes of its own keeps a manifest of what close(), fsync(), rename() and unlink() have
promised (tests/harness/manifest.py), while the daemon is killed at points chosen by what it says to S3 and
Postgres (tests/harness/crashpoints.py), with faults of both in between. It is mounted again on the same
journal, and the writer goes on. At the end every name has what was promised.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.harness.arena import (
    Seat,
    Writers,
    check_files,
    check_kept,
    check_left_tidy,
    check_log,
    check_synced,
    flush,
    open_seat,
    open_writers,
    remove_temporaries,
    settled,
)
from tests.harness.crashpoints import Trigger
from tests.harness.faultproxy import Fault, FaultProxy, Kind, Moment
from tests.harness.manifest import read_manifest
from tests.harness.mounts import Mount, Stack, open_stack, until
from tests.harness.pgproxy import Statement
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DATASET = "ds"
JOURNAL_LIMIT = 2 << 20  # bytes of a journal with nothing in it, its reserve included
REACHED = 25.0  # seconds until a crash point must have been reached

# While files are written. What S3 and Postgres are asked is in the order of a commit.
LEASING = ["take:inside", "take:asked", "take:answered", "accept:asked", "accept:answered"]
IDLE = ["release:asked", "release:answered"]  # while nobody creates
COMMITTING = ["begin:inside", "begin:asked", "begin:answered", "confirm:asked", "confirm:answered",
              "tar:asked", "tar:halfway", "tar:answered", "index:asked", "index:answered",
              "publish:inside", "publish:asked", "publish:answered"]  # fmt: skip
IN_PARTS = ["parts-begin:asked", "parts-begin:answered", "part:asked", "part:halfway", "part:answered",
            "parts-complete:asked", "parts-complete:answered"]  # fmt: skip
PROMISED = ["closed", "synced", "moved", "removed"]  # just after that was promised to the writer
REPLAYING = ["enrol:asked", "enrol:answered", "abandon-all:asked", "abandon-all:answered",
             "held:asked", "held:answered"]  # fmt: skip
DRAINING = ["begin:answered", "tar:answered", "publish:asked", "publish:answered"]  # after SIGTERM
LOST = ["take:answered", "accept:answered", "begin:answered", "confirm:asked", "publish:asked",
        "publish:answered"]  # connections break there without a kill  # fmt: skip
LOST_REPLAYING = ["enrol:asked", "enrol:answered", "abandon-all:asked", "abandon-all:answered",
                  "held:asked", "held:answered"]  # … while it is mounted again  # fmt: skip
ENDING = ["dismiss:asked", "dismiss:answered"]  # when all is committed; once each, at the very end
# What a writer may be told while daemons die under it.
EXPECTED_ERRORS = {"EIO", "ENOTCONN", "ECONNABORTED", "ENOENT"}


@dataclass
class Arena:
    """What the test works with, and what it counts."""

    stack: Stack
    s3: FaultProxy
    seat: Seat
    writers: Writers
    trouble: Trigger  # lets answers get lost without a kill
    random: random.Random = field(default_factory=lambda: random.Random(3))
    kills: Counter[str] = field(default_factory=Counter)
    caught: Counter[str] = field(default_factory=Counter)  # … that left accepted datapoints uncommitted
    faults: Counter[str] = field(default_factory=Counter)  # those that were to happen; see `met`
    met_replaying: Counter[str] = field(default_factory=Counter)  # those that a mount met while it began
    restarts: int = 0  # of Postgres, while connections to it were open
    settled: dict[str, str | None] = field(default_factory=dict)  # names and what was sure of them at a kill
    checked: set[str] = field(default_factory=set)

    def killed(self, at: str) -> None:
        """Wait for the kill and look at what it left."""
        self.seat.reap(REACHED)
        self.kills[at] += 1
        self.mend()
        promises = read_manifest(*self.writers.manifests)
        self.settled = settled(promises)
        committed = check_synced(self.stack, promises)
        left = [says for says in self.seat.accepted() if int(says.name[:20]) not in committed]
        self.caught[at] += bool(left)
        if self.random.random() < 0.3:  # the next daemon is to meet a fault as soon as it begins
            self.trouble.arm(self.random.choice(LOST_REPLAYING), lambda: None)

    def remount(self) -> None:
        """Mount again."""
        before = self.trouble.hit.copy()
        self.seat.start()
        self.met_replaying += self.trouble.hit - before
        self.mend()

    def check_settled(self) -> None:
        """Look for what was sure when the last daemon was killed: all that is new, and some of what was found
        before."""
        again = self.random.sample(sorted(self.checked), min(20, len(self.checked)))
        kept = {n: says for n, says in self.settled.items() if n not in self.checked or n in again}
        check_kept(self.seat.path / DATASET, kept, self.writers.manifests)
        self.checked |= kept.keys()

    def met(self) -> tuple[int, int]:
        """Return how many faults of S3, and how many of Postgres, have really happened to somebody."""
        cut = self.seat.postgres.broken + self.restarts
        return self.s3.met().total(), self.trouble.hit.total() + cut

    def mend(self) -> None:
        """End the faults."""
        self.s3.clear()
        self.trouble.disarm()
        self.stack.postgres.start()

    def break_something(self) -> None:
        """Let something go wrong, in every other round."""
        faults: dict[str, Callable[[], None]] = {
            "503": lambda: self.s3.add(Fault(Kind.STATUS, times=3, method="PUT")),
            "500": lambda: self.s3.add(Fault(Kind.STATUS, times=2, method="", status=500)),
            "silent": lambda: self.s3.add(Fault(Kind.STALL_HEAD, times=1, method="PUT")),
            "answer lost": lambda: self.s3.add(Fault(Kind.LOSE_ANSWER, times=2, method="PUT")),
            "connections cut": self.seat.postgres.cut,
            "postgres restarted": self._restart_postgres,
        }
        for point in LOST:
            faults[f"{point} lost"] = partial(self.trouble.arm, point, lambda: None)
        if self.random.random() < 0.5:
            name = self.random.choice([*faults])
            faults[name]()
            self.faults[name] += 1

    def _restart_postgres(self) -> None:
        self.restarts += 1
        self.stack.postgres.stop()
        self.stack.postgres.start()


@pytest.fixture(scope="module")
def own_postgres(pg_server_factory: Callable[[], PostgresServer]) -> PostgresServer:
    """A server that may be stopped."""
    return pg_server_factory()


@pytest.fixture
def arena(
    fuse: None, own_postgres: PostgresServer, rclone_server: S3Server, tmp_path: Path
) -> Iterator[Arena]:
    trouble = Trigger()
    with open_stack(own_postgres, rclone_server, tmp_path) as stack, FaultProxy(stack.s3.process.port) as s3:
        stack.register(DATASET, endpoint=s3.endpoint)
        options = "--batch-age", "0.25", "--io-timeout", "4"
        with open_seat(stack, tmp_path, *options) as seat:

            def on_s3(moment: Moment, method: str, path: str) -> bool:
                return seat.trigger.on_s3(moment, method, path) or trouble.on_s3(moment, method, path)

            def on_sql(statement: Statement) -> bool:
                return seat.trigger.on_sql(statement) or trouble.on_sql(statement)

            s3.witness, seat.postgres.witness = on_s3, on_sql
            with open_writers([seat.path / DATASET] * 2, tmp_path, 2) as writers:
                yield Arena(stack, s3, seat, writers, trouble)


def test_nothing_that_was_promised_is_lost(arena: Arena) -> None:
    points = [(kind, point) for kind, group in POINTS.items() for point in group for _ in range(ROUNDS[kind])]
    arena.random.shuffle(points)
    arena.seat.start()
    for kind, point in points:
        arena.check_settled()
        arena.break_something()
        WAYS[kind](arena, point)
        arena.remount()
    print("kills:", dict(arena.kills), "caught:", dict(arena.caught), "faults:", dict(arena.faults))
    print("met:", arena.met(), dict(arena.s3.met()), dict(arena.trouble.hit), dict(arena.met_replaying))
    arena.writers.stop()
    arena.check_settled()
    assert arena.writers.failures() <= EXPECTED_ERRORS
    promises = read_manifest(*arena.writers.manifests)
    flush(arena.seat.path)
    assert check_files(arena.seat.path / DATASET, promises) > 200
    remove_temporaries(arena.seat.path / DATASET, promises)
    end(arena)
    with arena.stack.mount(cold=True) as second:
        check_files(second.path / DATASET, promises)
    check_left_tidy(arena.stack)
    assert arena.kills.total() >= 100
    for kind, group in POINTS.items():
        for point in group:
            assert arena.kills[point] >= ROUNDS[kind], point
            # Where a commit is under way it has something to commit; elsewhere that is likely only.
            is_sure = kind in ("committing", "in parts", "draining") and point != "publish:answered"
            assert arena.caught[point] or not is_sure, f"no kill at {point} caught journaled data"
    assert arena.caught.total() >= 80
    of_s3, of_postgres = arena.met()
    assert of_s3 >= 10
    assert of_postgres >= 10
    assert len(arena.met_replaying) >= 3, "hardly any mount met a fault while it began"
    assert len(arena.checked) > 200


def end(arena: Arena) -> None:
    """End the daemon as one should; but before, kill it at the last moments."""
    for point in ENDING:
        arena.seat.trigger.arm(point, arena.seat.mount.process.kill)
        arena.seat.mount.process.send_signal(signal.SIGTERM)
        arena.killed(point)
        arena.remount()
    assert arena.seat.mount.terminate() == 0
    check_log(arena.seat.mount)
    arena.seat.mount.close()
    assert arena.seat.journal_bytes() < JOURNAL_LIMIT


# -- ways to kill ----------------------------------------------------------------------------------


def at_random(arena: Arena, point: str) -> None:
    time.sleep(arena.random.uniform(0, 0.6))  # the point is a random one
    arena.seat.mount.process.kill()
    arena.killed(point)


def while_writing(arena: Arena, point: str) -> None:
    arena.seat.trigger.arm(point, arena.seat.mount.process.kill)
    arena.killed(point)


def while_idle(arena: Arena, point: str) -> None:
    def pause() -> None:
        arena.writers.tell_all("go")
        arena.writers.tell_all("pause")

    again_and_again(arena, point, pause)
    arena.writers.tell_all("go")


def in_parts(arena: Arena, point: str) -> None:
    again_and_again(arena, point, lambda: arena.writers.tell("large"))


def again_and_again(arena: Arena, point: str, prepare: Callable[[], None]) -> None:
    """Do what leads to *point* unless a fault is in the way."""
    process = arena.seat.mount.process
    arena.seat.trigger.arm(point, process.kill)
    for _ in range(5):
        prepare()
        with suppress(subprocess.TimeoutExpired):
            process.wait(REACHED / 5)
            break
    arena.killed(point)


def after_a_promise(arena: Arena, point: str) -> None:
    arena.writers.tell("kill", point, arena.seat.mount.pid)
    arena.killed(point)


def while_replaying(arena: Arena, point: str) -> None:
    at_random(arena, "random")
    arena.seat.trigger.arm(point, lambda: arena.seat.mount.process.kill())
    arena.seat.begin()
    arena.killed(point)


def while_draining(arena: Arena, point: str) -> None:
    for _ in range(5):
        mount = arena.seat.mount
        until(partial(_has_journaled, mount), what="something to drain")
        arena.seat.trigger.arm(point, mount.process.kill)
        mount.process.send_signal(signal.SIGTERM)
        if mount.process.wait(REACHED) != 0:
            break
        mount.close()  # all that there was had been begun already
        arena.seat.start()
    arena.killed(point)


def _has_journaled(mount: Mount) -> bool:
    return bool(mount.stats()["journal"]["journaled"])


POINTS = {
    "random": ["random"],
    "leasing": LEASING,
    "idle": IDLE,
    "committing": COMMITTING,
    "in parts": IN_PARTS,
    "promised": PROMISED,
    "replaying": REPLAYING,
    "draining": DRAINING,
}
ROUNDS = {kind: 3 if kind == "committing" else 2 for kind in POINTS}  # kills at each point
WAYS = {
    "random": at_random,
    "leasing": while_writing,
    "idle": while_idle,
    "committing": while_writing,
    "in parts": in_parts,
    "promised": after_a_promise,
    "replaying": while_replaying,
    "draining": while_draining,
}

"""Two mounts write into one dataset, and die: what was accepted is committed once, with its own bytes."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from datas3tfs.core.names import is_temporary
from tests.harness.archives import key_name, noise
from tests.harness.arena import (
    Seat,
    Writers,
    check_contents,
    check_files,
    check_left_tidy,
    check_log,
    check_synced,
    committed_keys,
    flush,
    open_seat,
    open_writers,
    remove_temporaries,
)
from tests.harness.manifest import Promise, read_manifest
from tests.harness.mounts import Stack, refusing, until

DATASET = "ds"
KILLS = 16  # every fourth of both at once
# Where the two meet in Postgres.
POINTS = ["take:answered", "accept:answered", "begin:answered", "publish:asked", "publish:answered"]
WON = 10  # keys; each gets more …
TURN = 5.0  # … though who leases them ahead gets most: while it is dead, the other has so many seconds
REACHED = 10.0  # seconds for a killed daemon to be gone
SEEN = 1.0  # seconds until the other mount shows what is committed …
MARGIN = 1.0  # … on a machine that does other things as well


@dataclass
class Two:
    """Two mounts of one dataset, each with a journal of its own."""

    stack: Stack
    seats: list[Seat]

    @property
    def folders(self) -> list[Path]:
        return [seat.path / DATASET for seat in self.seats]

    def holder(self, seat: Seat) -> str:
        """Return the SQL condition for the row of a mount's journal."""
        return f"place LIKE '%:{seat.journal}'"

    def expire(self, seat: Seat) -> None:
        """Let a mount's leases expire."""
        self.stack.sql(
            f"UPDATE lease_holders SET expires_at = now() - interval '1s' WHERE {self.holder(seat)}"
        )


@pytest.fixture
def new_two(stack: Stack, tmp_path: Path) -> Iterator[Callable[..., Two]]:
    """Makes two mounts with options."""
    with ExitStack() as opened:

        def make(*options: str) -> Two:
            stack.register(DATASET)
            seats = [opened.enter_context(open_seat(stack, tmp_path, *options)) for _ in range(2)]
            for seat in seats:
                seat.start()
            return Two(stack, seats)

        yield make


def kill_often(two: Two, writers: Writers, *, contended: bool) -> None:
    """Kill both, now this, now that one, now both, and mount again. Fails unless that hit them at work."""
    rng = random.Random(5)
    caught: Counter[Path] = Counter()  # kills that have left accepted datapoints uncommitted

    def has_won(manifest: Path) -> bool:
        return won(read_manifest(manifest)) > WON

    def has_met() -> bool:
        """Say whether kills have caught what they are for; as chance has it, that takes a few more."""
        # Where they want the same keys, one of them may just have nothing that is not committed.
        met = [bool(caught[seat.path]) for seat in two.seats]
        hit = sum(seat.trigger.hit.total() for seat in two.seats)
        return (any(met) if contended else all(met)) and hit >= 2 and all(map(has_won, writers.manifests))

    for number in range(5 * KILLS):
        if number >= KILLS and has_met():
            break
        # Where they want the same keys, the first to come back would get most of them.
        seats = two.seats if number % 4 == 3 and not contended else [two.seats[number % 2]]
        for seat in seats:
            if rng.random() < 0.5:
                seat.trigger.arm(rng.choice(POINTS), seat.mount.process.kill)
        for seat in seats:
            with suppress(subprocess.TimeoutExpired):  # it may lose each race, and never get there
                seat.mount.process.wait(rng.uniform(0, 2))
            seat.mount.process.kill()  # at any moment
        for seat in seats:
            seat.trigger.disarm()
            seat.reap(REACHED)
        committed = check_synced(two.stack, read_manifest(*writers.manifests))
        for seat in seats:
            caught[seat.path] += any(int(says.name[:20]) not in committed for says in seat.accepted())
        if contended:
            with suppress(AssertionError):
                until(partial(has_won, writers.manifests[1 - number % 2]), TURN)
        for seat in seats:
            seat.start()
    hits = [dict(seat.trigger.hit) for seat in two.seats]
    print("caught:", [caught[seat.path] for seat in two.seats], "killed at:", hits)
    assert has_met(), "no kill caught journaled data, or hardly one where the two meet"


def won(own: Mapping[str, Promise]) -> int:
    """Return how many keys a writer has got, as far as it knows."""
    return sum(promise.sure is not None for name, promise in own.items() if not is_temporary(name))


def end(two: Two) -> None:
    for seat in two.seats:
        assert seat.mount.terminate() == 0
        check_log(seat.mount)
        seat.mount.close()
    check_left_tidy(two.stack)


def test_interleaved_keys_of_two_mounts_that_die(new_two: Callable[..., Two], tmp_path: Path) -> None:
    two = new_two("--batch-age", "0.25", "--io-timeout", "5")
    with open_writers(two.folders, tmp_path, 2) as writers:
        kill_often(two, writers, contended=False)
        writers.stop()
        assert writers.failures() <= {"EIO", "ENOTCONN", "ECONNABORTED", "ENOENT"}
    for seat in two.seats:
        flush(seat.path)
    promises: dict[str, Promise] = {}
    for manifest, folder in zip(writers.manifests, two.folders, strict=True):
        own = read_manifest(manifest)
        check_contents(folder, own)
        remove_temporaries(folder, own)  # nobody else sees them
        promises |= own
    for folder in two.folders:
        assert check_files(folder, promises) > 50
    end(two)


def test_equal_keys_of_two_mounts_that_die(new_two: Callable[..., Two], tmp_path: Path) -> None:
    two = new_two("--batch-age", "0.25", "--io-timeout", "5")
    with open_writers(two.folders, tmp_path, 2, contended=True) as writers:
        kill_often(two, writers, contended=True)
        writers.stop()
        assert writers.failures() <= {"EIO", "ENOTCONN", "ECONNABORTED", "ENOENT"}
    for seat in two.seats:
        flush(seat.path)
    theirs = [read_manifest(manifest) for manifest in writers.manifests]
    for own, folder in zip(theirs, two.folders, strict=True):
        check_contents(folder, {name: promise for name, promise in own.items() if is_temporary(name)})
        remove_temporaries(folder, own)
    promises = {name: decided(name, theirs) for one in theirs for name in one}
    for folder in two.folders:
        assert check_files(folder, promises) > 50
    print("won:", [won(own) for own in theirs])
    assert min(won(own) for own in theirs) > WON, "one has won nearly all"
    assert sum(promise.lost for own in theirs for promise in own.values()) > 20, "they did not contend"
    end(two)


def decided(name: str, theirs: list[dict[str, Promise]]) -> Promise:
    """Return what two writers that wanted one name may find there: what the one that closed it wrote."""
    wanted = [own[name] for own in theirs if name in own]
    won = [promise for promise in wanted if promise.sure is not None]
    assert len(won) <= 1, f"{name}: both were promised that it is theirs"
    if won:
        return won[0]
    assert not all(promise.lost for promise in wanted) or len(wanted) == 1, f"{name}: both have lost it"
    nothing: set[str | None] = {None}
    return Promise(maybe=nothing.union(*(promise.maybe for promise in wanted)))


def test_what_one_commits_the_other_shows_within_a_second(new_two: Callable[..., Two]) -> None:
    here, there = new_two("--batch-age", "60").folders
    for key in range(5):
        content = noise(1000 * key, key)
        (here / key_name(key)).write_bytes(content)
        assert not (there / key_name(key)).exists()
        flush(here.parent)
        until((there / key_name(key)).exists, SEEN + MARGIN, "seeing it")
        assert (there / key_name(key)).read_bytes() == content
        with refusing(errno.EEXIST):
            (there / key_name(key, "txt")).touch()


def test_what_a_dead_mount_has_accepted_stays_its_own(new_two: Callable[..., Two]) -> None:
    """Its other keys are anybody's, but only when it must be dead."""
    two = new_two("--batch-age", "60")
    dead = two.seats[0]
    here, there = two.folders
    (here / key_name(5)).write_bytes(b"accepted")
    file = os.open(here / key_name(9), os.O_WRONLY | os.O_CREAT)
    os.write(file, b"open")
    dead.mount.kill9()
    with refusing(errno.ENOTCONN):
        os.close(file)
    for key in (5, 9):
        with refusing(errno.EEXIST):
            (there / key_name(key)).write_bytes(b"other")
    two.expire(dead)
    with refusing(errno.EEXIST):
        (there / key_name(5)).write_bytes(b"other")
    (there / key_name(9)).write_bytes(b"other")
    dead.start()
    for folder in two.folders:
        flush(folder.parent)
    for folder in two.folders:
        until((folder / key_name(5)).exists)
        until((folder / key_name(9)).exists)
        assert (folder / key_name(5)).read_bytes() == b"accepted"
        assert (folder / key_name(9)).read_bytes() == b"other"
    end(two)


SLEEPER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(file, b"late")
print("open", flush=True)
sys.stdin.readline()
try:
    os.close(file)
except OSError as exc:
    sys.exit(exc.errno)
"""


def test_who_slept_too_long_is_told_at_close(new_two: Callable[..., Two]) -> None:
    """In a process of its own: one that this one starts would close what it has open, which is a promise."""
    two = new_two("--batch-age", "60")
    here, there = two.folders
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(here / key_name(7))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as sleeper:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        two.expire(two.seats[0])
        (there / key_name(7)).write_bytes(b"other")
        sleeper.communicate(b"\n", timeout=20)
    assert sleeper.returncode == errno.EIO
    assert any("taken over" in line for line in two.seats[0].mount.errors())
    flush(there.parent)
    assert (there / key_name(7)).read_bytes() == b"other"
    assert committed_keys(two.stack) == {7}

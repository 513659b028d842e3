"""What the tests of writing share: a mount to write to, a witness who sees only what is committed.

Not a test module. The fixtures are imported by those that use them.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.harness.mounts import Mount, Stack, until

_NEVER = 3600.0  # seconds: nothing is committed unless asked for
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def shared(new_stack: Callable[..., Stack]) -> Stack:
    """A stack with a bucket, for a whole module."""
    stack = new_stack()
    stack.register()
    return stack


@pytest.fixture(scope="module")
def written(shared: Stack) -> Iterator[Mount]:
    """A mount that commits only what it is asked to."""
    with shared.mount("--batch-age", f"{_NEVER:g}", write=True) as mount:
        yield mount


@pytest.fixture(scope="module")
def witness(shared: Stack) -> Iterator[Mount]:
    """Another mount, read-only, that has seen nothing before."""
    with shared.mount(cold=True) as mount:
        yield mount


@pytest.fixture
def folder(written: Mount) -> Path:
    """A new dataset's directory in the mount."""
    path = written.path / f"set{next_number()}"
    path.mkdir()
    return path


def next_number() -> int:
    """Return a number that no dataset is called by yet."""
    return next(_numbers)


def sh(command: str, *words: str | Path, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """Run a shell command that must succeed and say nothing on stderr; *words* are $1, $2 ..."""
    done = subprocess.run(
        ["bash", "-euc", command, "bash", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.returncode}, {done.stderr}"
    return done


def python(script: str, *words: str | Path, timeout: float = 60) -> str:
    """Run a Python script that must succeed, in a process of its own, which maps and blocks as it likes."""
    done = subprocess.run(
        ["python3", "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def flush(mount: Mount) -> None:
    """Commit what is closed."""
    os.setxattr(mount.path, "user.datas3t.flush", b"1")


def state(path: Path) -> str:
    """Return how far a file has come."""
    return os.getxattr(path, "user.datas3t.state").decode()


def states(folder: Path, names: Iterable[str]) -> set[str]:
    """Return how far files have come."""
    return {state(folder / name) for name in names}


def contents(folder: Path) -> dict[str, bytes]:
    """Return name → bytes of all files in a directory; each size is what stat says."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            found[entry.name] = Path(entry.path).read_bytes()
            assert entry.stat().st_size == len(found[entry.name]) == os.stat(entry.path).st_size
    return found


def check(written: Mount, witness: Mount, folder: Path, expected: Mapping[str, bytes]) -> None:
    """Check the datapoints in *folder*: uncommitted, then committed, then as another mount sees them."""
    assert contents(folder) == expected
    assert states(folder, expected) == {"journaled"}
    flush(written)
    assert contents(folder) == expected
    assert states(folder, expected) == {"committed"}
    seen = witness.path / folder.name
    until(lambda: seen.is_dir() and len(os.listdir(seen)) == len(expected), what="the witness seeing it")
    assert contents(seen) == expected

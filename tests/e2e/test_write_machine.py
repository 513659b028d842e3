"""The state machine of tests/harness/posix_model.py on a real mount, beside a plain directory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.e2e.writing import flush, next_number, state
from tests.harness.mounts import Mount, Stack
from tests.harness.posix_model import WritingMachine

T = TypeVar("T")


class Daemon:
    """A mount that comes back."""

    def __init__(self, stack: Stack, path: Path) -> None:
        self._stack = stack
        self._path = path
        self.mount = self._begin()

    def _begin(self) -> Mount:
        # As long as a run lasts: what has been closed for more than a second is taken along by any commit.
        mount = self._stack.begin_mount(self._path, "--batch-age", "3600")
        mount.wait_ready(time.monotonic() + 30)
        return mount

    def again(self, *, kill: bool) -> None:
        """End it one way or the other, and mount again."""
        if kill:
            self.mount.kill9()
        else:
            assert self.mount.terminate() == 0, self.mount.log
            self.mount.close()
        self.mount = self._begin()


@contextmanager
def open_daemon(stack: Stack) -> Iterator[Daemon]:
    """Mount; in the end unmount."""
    daemon = Daemon(stack, stack.new_mountpoint())
    try:
        yield daemon
    finally:
        daemon.mount.close()


class Mounted:
    """A dataset of a mount, and a plain directory to which the same is done; a `Subject`.

    What the mount refuses is not done to the directory; what it does must have the same result there.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._temporary = tempfile.TemporaryDirectory()
        self._plain = Path(self._temporary.name)
        self._descriptors: dict[int, int] = {}  # of the mount → of the directory
        self._mounted = daemon.mount.path / f"machine{next_number()}"
        self._mounted.mkdir()

    def _both(self, work: Callable[[Path], T]) -> T:
        found = work(self._mounted)
        assert work(self._plain) == found
        return found

    def _both_open(self, descriptor: int, work: Callable[[int], T]) -> T:
        found = work(descriptor)
        assert work(self._descriptors[descriptor]) == found
        return found

    def open(self, name: str, flags: int) -> int:
        """See Subject."""
        descriptor = os.open(self._mounted / name, flags, 0o644)
        self._descriptors[descriptor] = os.open(self._plain / name, flags, 0o644)
        return descriptor

    def dup(self, descriptor: int) -> int:
        """See Subject."""
        copy = os.dup(descriptor)
        self._descriptors[copy] = os.dup(self._descriptors[descriptor])
        return copy

    def close(self, descriptor: int) -> None:
        """See Subject."""
        os.close(self._descriptors.pop(descriptor))
        os.close(descriptor)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        """See Subject."""
        return self._both_open(descriptor, lambda one: os.pread(one, size, offset))

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        """See Subject."""
        return self._both_open(descriptor, lambda one: os.pwrite(one, data, offset))

    def ftruncate(self, descriptor: int, size: int) -> None:
        """See Subject."""
        self._both_open(descriptor, lambda one: os.ftruncate(one, size))

    def fsync(self, descriptor: int) -> None:
        """See Subject."""
        os.fsync(descriptor)

    def size_of(self, descriptor: int) -> int:
        """See Subject."""
        return self._both_open(descriptor, lambda one: os.fstat(one).st_size)

    def truncate(self, name: str, size: int) -> None:
        """See Subject."""
        self._both(lambda path: os.truncate(path / name, size))

    def unlink(self, name: str) -> None:
        """See Subject."""
        self._both(lambda path: os.unlink(path / name))

    def rename(self, old: str, new: str) -> None:
        """See Subject."""
        self._both(lambda path: os.rename(path / old, path / new))

    def read(self, name: str) -> bytes:
        """See Subject."""
        return self._both(lambda path: (path / name).read_bytes())

    def size(self, name: str) -> int:
        """See Subject."""
        return self._both(lambda path: (path / name).stat().st_size)

    def state(self, name: str) -> str:
        """See Subject."""
        return state(self._mounted / name)

    def listdir(self) -> list[str]:
        """See Subject."""
        names = os.listdir(self._mounted)
        assert sorted(names) == sorted(os.listdir(self._plain))
        return names

    def flush(self) -> None:
        """See Subject."""
        flush(self._daemon.mount)

    def fsyncdir(self) -> None:
        """See Subject."""
        directory = os.open(self._mounted, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def forget(self) -> None:
        """See Subject. Only root may ask for it, and it is a hint."""
        with suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("2")

    def remount(self) -> None:
        """See Subject."""
        self._daemon.again(kill=False)

    def kill(self) -> None:
        """See Subject."""
        self._daemon.again(kill=True)
        for descriptor, plain in self._descriptors.items():
            os.close(plain)
            with suppress(OSError):  # ENOTCONN from the dead mount
                os.close(descriptor)
        self._descriptors.clear()
        there = set(os.listdir(self._mounted))
        for path in self._plain.iterdir():  # what a crash may have changed is for the model to judge
            if path.name in there:
                path.write_bytes((self._mounted / path.name).read_bytes())
            else:
                path.unlink()

    def end(self) -> None:
        """See Subject."""
        for descriptor, plain in self._descriptors.items():
            os.close(plain)
            os.close(descriptor)
        self._temporary.cleanup()


@pytest.fixture
def daemon(stack: Stack) -> Iterator[Daemon]:
    """A mount of an empty catalog."""
    stack.register()
    with open_daemon(stack) as opened:
        yield opened


def test_writing_is_that_of_a_plain_directory(daemon: Daemon) -> None:
    class OnMount(WritingMachine):
        """Drives the mount."""

        @staticmethod
        def make() -> Mounted:
            return Mounted(daemon)

    run_state_machine_as_test(
        OnMount,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # shrinking would take minutes
            report_multiple_bugs=False,
        ),
    )

"""A state machine on the handlers of a mount that can be written to, beside a dict."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from datas3tfs.engine.committer import BatchLimits
from tests.harness.posix_model import WritingMachine
from tests.harness.vfs import Vfs, open_vfs, patch_replies
from tests.harness.world import World, new_world
from tests.harness.writing import Gate, killed, open_host

T = TypeVar("T")
LIMIT = 60.0  # seconds for any step
_DATASET = "photos"


@pytest.fixture(autouse=True, scope="module")
def _replies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch_replies(patch)
        yield


class Twin:
    """The handlers on memory twins and a real journal, on a thread of their own; a `Subject`."""

    limits = BatchLimits(64 << 20, 3600.0)

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._ready, self._wish = threading.Event(), ""
        self._vfs: Vfs | None = None
        self._again: trio.Event | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        self._wait()

    # -- its life ------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            trio.run(self._lives)
        except BaseException as exc:
            self._failure = exc
            self._ready.set()

    async def _lives(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        world = await new_world()
        while self._wish != "end":
            gate = Gate()
            with killed(gate):
                await self._live(world, gate)

    async def _live(self, world: World, gate: Gate) -> None:
        journal = Path(self._directory.name) / "journal"
        async with open_host(world, journal, gate=gate, limits=self.limits) as host, open_vfs(host) as vfs:
            async with trio.open_nursery() as self._later:
                self._vfs, self._again = vfs, trio.Event()
                self._ready.set()
                await self._again.wait()
                if self._wish == "kill":
                    gate.die()
                    gate.check()
            await host.committer.drain()

    def _wait(self) -> None:
        assert self._ready.wait(LIMIT), "it hangs"
        if self._failure is not None:
            raise self._failure

    def _live_again(self, wish: str) -> None:
        self._wish = wish
        self._ready.clear()
        again = self._again
        assert again is not None
        trio.from_thread.run_sync(again.set, trio_token=self._token)
        if wish != "end":
            self._wait()

    def remount(self) -> None:
        """See Subject."""
        self._live_again("remount")

    def kill(self) -> None:
        """See Subject."""
        self._live_again("kill")

    def end(self) -> None:
        """See Subject."""
        if self._failure is None:
            with suppress(trio.RunFinishedError):
                self._live_again("end")
        self._thread.join(LIMIT)
        self._directory.cleanup()
        if self._failure is not None:
            raise self._failure

    # -- what is asked of it -------------------------------------------------------------------------

    def _do(self, work: Callable[[Vfs], Awaitable[T]]) -> T:
        async def limited() -> T:
            assert self._vfs is not None
            with trio.fail_after(LIMIT):
                return await work(self._vfs)

        return trio.from_thread.run(limited, trio_token=self._token)

    def open(self, name: str, flags: int) -> int:
        """See Subject."""
        return self._do(lambda vfs: vfs.open(f"{_DATASET}/{name}", flags))

    def dup(self, descriptor: int) -> int:
        """See Subject."""
        assert self._vfs is not None
        return self._vfs.dup(descriptor)

    def close(self, descriptor: int) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.close(descriptor, self._later))

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        """See Subject."""
        return self._do(lambda vfs: vfs.pread(descriptor, size, offset))

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        """See Subject."""
        return self._do(lambda vfs: vfs.pwrite(descriptor, data, offset))

    def ftruncate(self, descriptor: int, size: int) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.setattr("", fd=descriptor, size=size))

    def fsync(self, descriptor: int) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.fsync(descriptor))

    def size_of(self, descriptor: int) -> int:
        """See Subject."""
        return self._do(lambda vfs: vfs.fstat(descriptor)).st_size

    def truncate(self, name: str, size: int) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.setattr(f"{_DATASET}/{name}", size=size))

    def unlink(self, name: str) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.unlink(f"{_DATASET}/{name}"))

    def rename(self, old: str, new: str) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.rename(f"{_DATASET}/{old}", f"{_DATASET}/{new}"))

    def read(self, name: str) -> bytes:
        """See Subject."""
        return self._do(lambda vfs: vfs.read(f"{_DATASET}/{name}"))

    def size(self, name: str) -> int:
        """See Subject."""
        return self._do(lambda vfs: vfs.stat(f"{_DATASET}/{name}")).st_size

    def state(self, name: str) -> str:
        """See Subject."""
        return self._do(lambda vfs: vfs.xattrs(f"{_DATASET}/{name}"))["state"]

    def listdir(self) -> list[str]:
        """See Subject."""
        return self._do(lambda vfs: vfs.listdir(_DATASET, 2))

    def flush(self) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.setxattr("", "user.datas3t.flush"))

    def fsyncdir(self) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.fsyncdir(_DATASET))

    def forget(self) -> None:
        """See Subject."""
        self._do(lambda vfs: vfs.forget())


class Eager(Twin):
    """Commits all the time."""

    limits = BatchLimits(64 << 20, 0.0)


class OnTwin(WritingMachine):
    """Nothing is committed unless asked for."""

    make = Twin


class OnEager(WritingMachine):
    """Whatever is closed is committed at once, in the middle of everything."""

    make = Eager


_SETTINGS = settings(
    max_examples=40, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_writing_is_that_of_a_dict() -> None:
    run_state_machine_as_test(OnTwin, settings=_SETTINGS)


def test_writing_while_committing_is_that_of_a_dict() -> None:
    run_state_machine_as_test(OnEager, settings=_SETTINGS)

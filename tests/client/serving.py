"""A real `datas3tfs serve` over a stack, that can be killed and started again on the same port."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import launcher
from tests.harness.mounts import Stack, until
from tests.harness.s3 import free_port

_READY_LIMIT = 30.0  # seconds
_STOP_LIMIT = 40.0


@dataclass
class Serve:
    """The server. *port* stays the same."""

    stack: Stack
    words: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    _process: launcher.Launched | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """Where its log goes."""
        return self.stack.home / f"serve-{self.port}.log"

    def start(self) -> None:
        """Start it and wait until it answers."""
        told = self.log_file.with_suffix(".url")
        words = ["serve", "--addr", f"127.0.0.1:{self.port}", *self.words]
        with self.log_file.open("ab") as log, told.open("wb") as out:
            environ = self.stack.environ | dict(self.env)
            process = self._process = launcher.start(words, environ, out, log, signal.SIGKILL)

        def is_ready() -> bool:
            assert process.poll() is None, self.log_file.read_text()[-3000:]
            return self.url in told.read_text()

        until(is_ready, _READY_LIMIT, "serving")

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._reap()

    def stop(self) -> None:
        """Ask it to end; fails unless it does, with exit code 0."""
        assert self._process is not None
        self._process.terminate()
        assert self._reap() == 0, self.log_file.read_text()[-3000:]

    def _reap(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        try:
            return process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def close(self) -> None:
        """End it, however it is."""
        if self._process is not None:
            self.kill()


@contextmanager
def serving(stack: Stack, *words: str, env: Mapping[str, str] | None = None) -> Iterator[Serve]:
    """Run a server for the block."""
    server = Serve(stack, words, env or {})
    try:
        server.start()
        yield server
    except BaseException as exc:
        exc.add_note(f"log of the server:\n{server.log_file.read_text()[-4000:]}")
        raise
    finally:
        server.close()

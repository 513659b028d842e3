"""Mounts forked from a process that has the program loaded already: a crash test starts a hundred of them.

Loading takes a second, and nearly all the time of a start. Everything else is as in mounts.py. One mount at
a time for each `Forge`. Use it from one thread.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.harness.mounts import ROOT, Mount

_FORGE = """
import ctypes, gc, json, os, sys
from datas3tfs.cli.main import main
gc.freeze()  # or every child would copy the memory it looks through
for line in sys.stdin:
    log, *words = json.loads(line)
    if (child := os.fork()) == 0:
        ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG: SIGTERM when this process dies, however it dies
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["datas3tfs", *words]
        main()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forked:
    """A daemon that is not a child of ours."""

    def __init__(self, pid: int, forge: subprocess.Popen[bytes]) -> None:
        self.pid = pid
        self._forge = forge
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended. Raises TimeoutExpired."""
        if self._code is None:
            assert self._forge.stdout is not None
            if not select.select([self._forge.stdout], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("datas3tfs mount", timeout or 0)
            self._code = int(self._forge.stdout.readline())
        return self._code

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended. From any thread: its number is not used again so soon."""
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)


class Forge:
    """Starts mounts; made by `open_forge`."""

    def __init__(self, process: subprocess.Popen[bytes], home: Path) -> None:
        self._process = process
        self._home = home
        self._count = 0

    def mount(self, path: Path, *options: str) -> Mount:
        """Begin to mount at *path*; `wait_ready` must follow. The one before must have ended."""
        self._count += 1
        log = self._home / f"{path.name}-{self._count}.log"
        log.touch()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps([str(log), "mount", str(path), *options])
        self._process.stdin.write(line.encode() + b"\n")
        return Mount(path, Forked(int(self._process.stdout.readline()), self._process), log)


@contextmanager
def open_forge(environ: Mapping[str, str], home: Path, prefix: Sequence[str] = ()) -> Iterator[Forge]:
    """Load the program, once. Mounts must have ended when this does."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *prefix, sys.executable, "-c", _FORGE],
        env={**environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's threads would not survive a fork
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # so that select() sees all there is
    ) as process:
        try:
            yield Forge(process, home)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)

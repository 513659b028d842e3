"""Commands, mounts and servers forked from a process that has the program loaded already.

Loading takes one to two seconds, nearly all the time of most commands, and the tests start thousands. What
is started is the program all the same: a process of its own with its own environment, arguments and files.

The launcher (one for each test process) forks a nurse for each command, the nurse forks the command, tells
its number, waits for it and tells its exit code. Use it from any thread.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import datas3tfs
from datas3tfs.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LONGEST = 1 << 17  # bytes of one request: an environment and some words
_NUMBER = struct.Struct("i")


class Launched:
    """A process started by the launcher: what subprocess.Popen has, as far as the tests need it."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._code: int | None = None
        self.pid = self._next()

    def _next(self) -> int:
        data = os.read(self._answers, _NUMBER.size)
        assert data, "the launcher has died"
        number: int = _NUMBER.unpack(data)[0]
        return number

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended. Raises TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while self._code is None:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._answers], [], [], left)[0]:
                raise subprocess.TimeoutExpired("datas3tfs", timeout or 0)
            with self._lock:
                if self._code is None:
                    self._code = self._next()
        return self._code

    def __del__(self) -> None:
        os.close(self._answers)

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Launcher:
    """The test's end; see `start`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __name__, str(theirs.fileno())],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's threads would not survive a fork
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait(20)

    def start(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        deathsig: signal.Signals,
    ) -> Launched:
        """Run `datas3tfs` with *words*; it gets *deathsig* when this process dies, however it dies."""
        answers, told = os.pipe()
        request = json.dumps({"words": list(words), "env": dict(env), "deathsig": deathsig}).encode()
        outputs = [one if isinstance(one, int) else one.fileno() for one in (stdout, stderr)]
        try:
            socket.send_fds(self._socket, [request], [*outputs, told])
        finally:
            os.close(told)
        return Launched(answers)


_lock = threading.Lock()
_launcher: Launcher | None = None


def start(
    words: Sequence[str],
    env: Mapping[str, str],
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    deathsig: signal.Signals = signal.SIGTERM,
) -> Launched:
    """Run `datas3tfs` with *words*; see Launcher.start."""
    global _launcher
    with _lock:
        if _launcher is None:
            _launcher = Launcher()
        return _launcher.start(words, env, stdout, stderr, deathsig)


def _die_with_parent(sig: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sig)


def _nurse(request: bytes, stdout: int, stderr: int, told: int) -> None:
    """Start a command and wait for it; returns in the command's process only."""
    asked = json.loads(request)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _die_with_parent(signal.SIGKILL)
    child = os.fork()
    if child:
        for fd in (stdout, stderr):
            os.close(fd)
        os.write(told, _NUMBER.pack(child))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(BrokenPipeError):
            os.write(told, _NUMBER.pack(code))
        os._exit(0)
    _die_with_parent(asked["deathsig"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in (stdout, stderr, told):
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["env"])
    time.tzset()
    sys.argv = ["datas3tfs", *asked["words"]]


def _main(listening: socket.socket) -> None:
    for module in pkgutil.walk_packages(datas3tfs.__path__, "datas3tfs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for nurses
    gc.freeze()  # or every child would copy the memory it looks through
    while True:
        request, fds, _, _ = socket.recv_fds(listening, _LONGEST, 3)
        if not request:
            return
        if os.fork() == 0:
            listening.close()
            _nurse(request, *fds)
            main()
        for fd in fds:
            os.close(fd)


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))

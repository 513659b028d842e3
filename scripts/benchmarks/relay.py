"""The relay between everybody and the S3 server: it delays requests, and counts them.

native/relay.c does the work; without a C compiler the proxy of the tests does, which cannot count and costs
more. Not for faults. For one thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
Counts = dict[str, int]


class Relay(Protocol):
    """What stands before the S3 server."""

    port: int
    pid: int
    kind: str

    def delay(self, milliseconds: float) -> None:
        """Delay every request by so much from now on."""

    def counts(self) -> Counts:
        """Return requests by kind and bytes up and down since the start; nothing if it does not count."""

    def stop(self) -> None: ...


class NativeRelay:
    """relay.c, compiled."""

    kind = "relay.c"

    def __init__(self, program: Path, upstream: int) -> None:
        self._process = subprocess.Popen(
            [program, str(upstream)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.pid = self._process.pid
        self.port = int(self._out.readline())

    def _say(self, line: str) -> None:
        self._in.write(line + "\n")
        self._in.flush()

    def delay(self, milliseconds: float) -> None:
        self._say(f"delay {milliseconds * 1000:.0f}")

    def counts(self) -> Counts:
        self._say("count")
        found: Counts = json.loads(self._out.readline())
        return found

    def stop(self) -> None:
        self._in.close()
        self._process.wait(10)
        self._out.close()


class TestRelay:
    """The proxy of the tests, started anew on the same port for another delay."""

    kind = "tests/harness/faultproxy.py"

    def __init__(self, upstream: int) -> None:
        self._upstream, self.port, self._delay = upstream, 0, 0.0
        self._start()

    def _start(self) -> None:
        options = ["--upstream", self._upstream, "--listen", self.port, "--latency", self._delay / 1000]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.faultproxy", *map(str, options)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout
        self.pid = self._process.pid
        self.port = int(self._out.readline())

    def delay(self, milliseconds: float) -> None:
        if milliseconds != self._delay:
            self._delay = milliseconds
            self.stop()
            self._start()

    def counts(self) -> Counts:
        return {}

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._out.close()


def start(program: Path | None, upstream: int) -> Relay:
    """Start a relay to *upstream*, a port on loopback; *program* is relay.c compiled, if it could be."""
    return NativeRelay(program, upstream) if program else TestRelay(upstream)

"""`datas3tfs serve` as a subprocess, for whoever calls it over the network.

It ends with its test, and by the kernel if the test's process is killed. Its log is checked when it ends:
no traceback, no secret.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.harness import launcher
from tests.harness.api import Api
from tests.harness.mounts import Process, Stack

_READY_LIMIT = 30.0
_END_LIMIT = 45.0  # more than what it gives to requests that run


@dataclass
class Server:
    """A server that answers."""

    url: str
    process: Process
    log_file: Path
    stack: Stack

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return self.log_file.read_text(errors="replace")

    @property
    def bucket(self) -> dict[str, str]:
        """The body of a request that registers the stack's bucket, but for the name."""
        s3 = self.stack.s3
        keys = {"access_key": s3.access_key, "secret_key": s3.secret_key}
        return {"endpoint": s3.endpoint, "bucket": s3.bucket, **keys}

    def kill(self) -> None:
        """End it as the kernel's memory killer would."""
        self.process.kill()
        self.process.wait(_END_LIMIT)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; return the exit code."""
        self.process.send_signal(how)
        return self.process.wait(_END_LIMIT)

    def close(self) -> None:
        """End it whatever its state. Fails if it has to be forced, or has written what it must not."""
        forced = False
        if self.process.poll() is None:
            try:
                assert self.stop() == 0, self.log
            except subprocess.TimeoutExpired:
                forced = True
                self.kill()
        assert not forced, f"it did not end within {_END_LIMIT:g} s:\n{self.log[-4000:]}"
        assert "Traceback" not in self.log, self.log[-4000:]
        for secret in [*self.stack.secrets, "X-Amz-Signature"]:
            assert secret not in self.log, "a secret is in the log"

    @asynccontextmanager
    async def api(self, **headers: str) -> AsyncIterator[Api]:
        """Call it as a client."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=60.0, headers=headers) as http,
            httpx.AsyncClient(timeout=60.0, limits=limits) as s3,
        ):
            yield Api(http, RealUrls(s3), dict(self.bucket))


@contextmanager
def memory_watched(pid: int) -> Iterator[Callable[[], int]]:
    """Yield what tells how far the peak of a process's memory has risen since, in bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is measured anew (proc_pid_clear_refs(5))
    begun = _peak(pid)
    yield lambda: _peak(pid) - begun


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


class RealUrls:
    """Presigned URLs of a real S3."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def put(self, url: str, body: bytes) -> str:
        """See tests.harness.api.Urls."""
        answer = await self._http.put(url, content=body)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        return answer.headers["etag"]

    async def get(self, url: str, wanted: str | None) -> tuple[int, bytes]:
        """See tests.harness.api.Urls."""
        answer = await self._http.get(url, headers={} if wanted is None else {"range": wanted})
        # rclone says 200 to a range it answers; the Go clients do without that server.
        is_range = wanted is not None and "content-range" in answer.headers
        return (206 if is_range else answer.status_code), answer.content


@contextmanager
def serving(
    stack: Stack,
    *words: str,
    addr: str = "127.0.0.1:0",
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run `datas3tfs serve` with *words* on a stack."""
    log = stack.home / f"serve-{secrets.token_hex(4)}.log"
    told, environ = log.with_suffix(".url"), stack.environ | dict(env or {})
    with log.open("wb") as stderr, told.open("wb") as stdout:
        process = launcher.start(["serve", "--addr", addr, *words], environ, stdout, stderr, signal.SIGKILL)
    server = Server("", process, log, stack)
    try:
        server.url = _url(server, told)
        yield server
    except BaseException as exc:
        exc.add_note(f"log of the server:\n{server.log[-4000:]}")
        with suppress(AssertionError):  # the first failure is the one to report
            server.close()
        raise
    server.close()


def _url(server: Server, told: Path) -> str:
    """Wait for the line with the URL."""
    deadline = time.monotonic() + _READY_LIMIT
    while not (line := told.read_text()).endswith("\n"):
        code = server.process.poll()
        assert code is None, f"it has ended with {code}:\n{server.log}"
        assert time.monotonic() < deadline, f"not ready in time:\n{server.log}"
        time.sleep(0.01)
    return line.strip()


def token_of(stack: Stack, name: str, *words: str) -> str:
    """Make a token with the command line; return it."""
    made: str = json.loads(stack.run("token", "add", name, *words, "--json").stdout)["token"]
    return made

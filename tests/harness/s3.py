"""Real S3 servers on loopback, as subprocesses: moto's (AWS-like) and rclone's (a folder).

Not for faults (faultproxy.py). A server outlives no test session: it is killed by its fixture, and by
the kernel if the session itself is killed. A test may stop, kill and start it: the fixture starts it
again for the next test. moto forgets its objects when stopped, rclone keeps them.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from datas3tfs.core.model import BucketSpec

_START_LIMIT = 30.0  # seconds; moto needs 1, on a loaded machine more
_STOP_LIMIT = 5.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)

# Made up for each session. rclone refuses short ones.
ACCESS_KEY = "AK" + secrets.token_hex(9).upper()
SECRET_KEY = secrets.token_hex(20)


def free_port() -> int:
    """Return a loopback port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast("int", probe.getsockname()[1])


class ServerProcess:
    """A server on a fixed loopback port that can be stopped and started again."""

    def __init__(self, command: Callable[[int], list[str]], environment: Mapping[str, str]) -> None:
        self.port = free_port()
        self._command = command
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it accepts connections."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            self._command(self.port),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        deadline = time.monotonic() + _START_LIMIT
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"server did not start: {self._command(self.port)[:3]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end, and see to it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=0.5).close()
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class S3Server:
    """An empty bucket of its own on a running server."""

    endpoint: str
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    process: ServerProcess = field(repr=False, compare=False)

    def stop(self) -> None:
        """Stop the server; start() brings it back on the same port."""
        self.process.stop()

    def start(self) -> None:
        """Start the server again."""
        self.process.start()

    def kill(self) -> None:
        """Kill the server."""
        self.process.kill()

    def spec(self, endpoint: str | None = None, name: str = "test") -> BucketSpec:
        """Return the spec of this bucket, reached through *endpoint* (a proxy) if given."""
        return BucketSpec(name, endpoint or self.endpoint, self.bucket, self.access_key, self.secret_key)

    def client(self) -> Any:
        """Return a plain boto3 client, to look at the bucket past the adapter."""
        return _client(self.endpoint)

    def unfinished(self) -> list[str]:
        """Return the keys of unfinished multipart uploads."""
        try:
            answer = self.client().list_multipart_uploads(Bucket=self.bucket)
        except ClientError as exc:  # rclone's way to say that there are none
            if exc.response["Error"]["Code"] != "NoSuchUpload":
                raise
            return []
        return [upload["Key"] for upload in answer.get("Uploads", [])]


_clients: dict[str, Any] = {}


def _client(endpoint: str) -> Any:
    if endpoint not in _clients:
        _clients[endpoint] = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    return _clients[endpoint]


def moto_process() -> ServerProcess:
    """Return moto's server, not yet started."""

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    return ServerProcess(command, {})


def rclone_process(folder: Path) -> ServerProcess:
    """Return rclone's server over *folder*, not yet started; it keeps objects as plain files there."""

    def command(port: int) -> list[str]:
        binary = Path(sys.executable).with_name("rclone")
        return [str(binary), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]

    # Credentials in argv would show in ps. The quotes are rclone's: the value is CSV.
    return ServerProcess(
        command, {"RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"', "RCLONE_CONFIG": os.devnull}
    )


def fresh_bucket(process: ServerProcess) -> S3Server:
    """Return a new bucket on *process*, which is started if it does not run."""
    process.start()
    endpoint = f"http://127.0.0.1:{process.port}"
    bucket = f"test-{secrets.token_hex(6)}"
    _client(endpoint).create_bucket(Bucket=bucket)
    return S3Server(endpoint, bucket, ACCESS_KEY, SECRET_KEY, process)


@pytest.fixture(scope="session")
def moto_server_process() -> Iterator[ServerProcess]:
    """moto's server for the whole session."""
    process = moto_process()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def rclone_server_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """rclone's server for the whole session."""
    process = rclone_process(tmp_path_factory.mktemp("rclone"))
    yield process
    process.kill()


@pytest.fixture
def moto_server(moto_server_process: ServerProcess) -> S3Server:
    """A fresh bucket on moto."""
    return fresh_bucket(moto_server_process)


@pytest.fixture
def rclone_server(rclone_server_process: ServerProcess) -> S3Server:
    """A fresh bucket on rclone."""
    return fresh_bucket(rclone_server_process)


@pytest.fixture(params=["moto", "rclone"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """A fresh bucket on each kind of server."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server

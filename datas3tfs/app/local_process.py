"""Background processes of the embedded stack: start detached, recognise, stop.

A process writes who it is (boot, pid, start time) into its record before it becomes the program, so a
crash between start and record cannot happen, and a pid that the kernel gave to somebody else since is
never taken for ours, let alone killed. Not for what the programs are: local_postgres.py, local_s3.py.
Callers hold the home's lock; nothing here waits for longer than it is told.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from datas3tfs.core.names import printable
from datas3tfs.errors import Unavailable

# stdout is the record, stderr the log. The inner process is orphaned on purpose: init reaps it, and the
# session that start_new_session makes keeps it from the terminal's signals.
_LAUNCHER = """{
    read -r boot </proc/sys/kernel/random/boot_id
    read -r stat </proc/self/stat
    printf '%s\\n%s\\n' "$boot" "$stat"
    exec "$@" >&2
} &"""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POLL = 0.03  # seconds between two looks at something that is starting
_LOG_LINES = 5  # of a log shown in an error


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the servers; *switch* if that is not who calls."""

    uid: int
    gid: int
    name: str
    switch: bool

    def identity(self) -> dict[str, Any]:
        """Return the arguments that make subprocess run something as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}

    def run(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a short command as this account with *text* as its input; return it with its output."""
        return subprocess.run(
            [str(part) for part in argv],
            cwd="/",
            env=dict(env),
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            umask=0o077,
            **self.identity(),
        )


@dataclass(frozen=True, slots=True)
class _Identity:
    boot: str
    pid: int
    start: int  # clock ticks since boot


def spawn(
    account: Account,
    argv: Sequence[str | Path],
    *,
    record: Path,
    log: Path,
    cwd: Path,
    env: Mapping[str, str],
) -> None:
    """Start *argv* in the background; who it became will stand in *record*, what it says in *log*."""
    with _private(record, os.O_TRUNC) as who, _private(log, os.O_APPEND) as said:
        subprocess.run(
            ["/bin/sh", "-c", _LAUNCHER, "sh", *(str(part) for part in argv)],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=who,
            stderr=said,
            check=True,
            start_new_session=True,
            umask=0o077,
            **account.identity(),
        )


def running(record: Path) -> int | None:
    """Return the pid of the process that wrote *record* if it still runs, else None."""
    identity = _recorded(record)
    return identity.pid if identity is not None and _is_alive(identity) else None


def wait_until(ready: Callable[[int], bool], record: Path, seconds: float) -> bool:
    """Wait until *ready* says yes of the recorded process; False if it died or time ran out."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        identity = _recorded(record)  # None: the launcher has not come to it yet
        if identity is not None:
            if not _is_alive(identity):
                return False
            if ready(identity.pid):
                return True
        time.sleep(_POLL)
    return False


def stop(record: Path, plan: Sequence[tuple[signal.Signals, float]]) -> bool:
    """Send the signals of *plan* in turn, with seconds for each to work; return whether it was running.

    Raises Unavailable if the process outlives them all.
    """
    identity = _recorded(record)
    if identity is None:
        return False
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        # Looked at after the handle was taken: from here on it cannot come to mean another process.
        if not _is_alive(identity):
            return False
        if not any(_ends_by(handle, number, seconds) for number, seconds in plan):
            raise Unavailable(f"process {identity.pid} does not end, not even when killed")
        return True
    finally:
        os.close(handle)


def last_lines(log: Path) -> str:
    """Return the end of a log in one line, safe for a terminal."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return "no log"
    shown = [printable(line.strip()) for line in lines if line.strip()]
    return " / ".join(shown[-_LOG_LINES:]) or "nothing in the log"


def working_in(directory: Path) -> list[int]:
    """Return the processes (of those we may look at) whose current directory is *directory*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                here = (entry / "cwd").readlink()
            except OSError:
                continue  # gone meanwhile, or somebody else's
            if here == directory:
                found.append(int(entry.name))
    return found


def _ends_by(handle: int, number: signal.Signals, seconds: float) -> bool:
    with contextlib.suppress(ProcessLookupError):  # it ended just now: the poll says so
        signal.pidfd_send_signal(handle, number)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _recorded(record: Path) -> _Identity | None:
    try:
        lines = record.read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return None
    return _identity(lines[0], lines[1]) if len(lines) > 2 else None


def _is_alive(identity: _Identity) -> bool:
    try:
        boot = _BOOT_ID.read_text().strip()
        stat = Path(f"/proc/{identity.pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return _identity(boot, stat) == identity and _after_name(stat)[0] not in "ZX"


def _identity(boot: str, stat: str) -> _Identity | None:
    # proc(5): the name, field 2, may hold blanks and parentheses; start time is field 22.
    try:
        return _Identity(boot, int(stat.split(" ", 1)[0]), int(_after_name(stat)[19]))
    except (ValueError, IndexError):
        return None


def _after_name(stat: str) -> list[str]:
    return stat.rpartition(")")[2].split()


def _private(path: Path, flags: int) -> BinaryIO:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600), "wb")

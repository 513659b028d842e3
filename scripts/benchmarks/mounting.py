"""Mount something and take it away again, for sure and within a time.

A FUSE daemon that hangs leaves its callers in sleep that no signal ends, so every mount ends with: SIGTERM,
SIGKILL, lazy unmount, and the connection's abort file; and a timer does that to a mount that lasts too long,
because this very process may be the one that sleeps. Not for what is mounted (systems.py). For one thread;
the timers have theirs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from processes import Failed

READY_LIMIT = 60.0  # seconds; a peer may read whole TARs first
LEAVE_LIMIT = 20.0
LIFE_LIMIT = 300.0
CONNECTIONS = Path("/sys/fs/fuse/connections")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A file system that is there."""

    path: Path
    pid: int
    seconds: float  # that mounting took


@contextmanager
def mounted(
    command: Sequence[str | Path], path: Path, env: Mapping[str, str], log: Path
) -> Iterator[Mounted]:
    """Start a file system in the foreground and wait until it is at *path*. Raises Failed."""
    words = [str(word) for word in command]
    begin = time.monotonic()
    with log.open("ab") as errors:
        process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
    device: int | None = None
    watchdog: threading.Timer | None = None
    try:
        while not os.path.ismount(path):
            if process.poll() is not None or time.monotonic() > begin + READY_LIMIT:
                raise Failed(f"{' '.join(words[:5])}: did not mount; see {log}: {_last_line(log)}")
            time.sleep(0.01)
        device = _device(path)
        watchdog = threading.Timer(LIFE_LIMIT, _cut_off, (process, device))
        watchdog.daemon = True
        watchdog.start()
        yield Mounted(path, process.pid, time.monotonic() - begin)
    finally:
        _end(process, path, device)
        if watchdog is not None:
            watchdog.cancel()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _device(path: Path) -> int | None:
    """Return the minor device number of what is mounted at *path*, which names its FUSE connection."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():  # proc_pid_mountinfo(5)
        fields = line.split()
        if fields[4] == str(path):
            return int(fields[2].partition(":")[2])
    return None


def _end(process: subprocess.Popen[bytes], path: Path, device: int | None) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(LEAVE_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
    if _device(path) is not None:
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
        subprocess.run([*command, str(path)], capture_output=True, check=False, timeout=LEAVE_LIMIT)
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        _abort(device)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_LIMIT)


def _cut_off(process: subprocess.Popen[bytes], device: int | None) -> None:
    """Wake whoever waits for the mount, with an error: the kernel gives one when the daemon is gone."""
    process.kill()
    _abort(device)


def _abort(device: int | None) -> None:
    """Give everybody who waits for the connection an error."""
    if device is None or os.geteuid() != 0:
        return
    if not (CONNECTIONS / str(device)).exists():
        subprocess.run(["mount", "-t", "fusectl", "none", CONNECTIONS], check=False, capture_output=True)
    with suppress(OSError):
        (CONNECTIONS / str(device) / "abort").write_text("1")

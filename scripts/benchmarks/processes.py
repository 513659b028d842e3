"""Run programs with a time limit, and tell what processes and their children cost.

Not for mounts (mounting.py). A child's output goes to files, not pipes: a child in unkillable sleep must
not hold us up, whoever mounted what it waits for aborts that. For one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Failed(Exception):
    """A program did not do what it should; the text says which and what it said."""


class TookTooLong(Failed):
    """A program was still running when its time was up."""


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended well."""

    out: str
    seconds: float
    cpu: float  # user and system, with the children it waited for

    @property
    def document(self) -> dict[str, Any]:
        """What it printed, as JSON."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def run(
    command: Sequence[str | Path], env: Mapping[str, str], limit: float = 300.0, given: str | None = None
) -> Done:
    """Run *command* to its end, *given* on its standard input. Raises Failed, TookTooLong."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as feed:
        feed.write((given or "").encode())
        feed.seek(0)
        begin = time.perf_counter()
        process = subprocess.Popen(words, env=env, stdin=feed, stdout=out, stderr=err)
        usage = _wait(process, begin + limit)
        seconds = time.perf_counter() - begin
        shown = " ".join(words[:6])
        if usage is None:
            raise TookTooLong(f"{shown}: more than {limit:.0f} s")
        out.seek(0)
        err.seek(0)
        if process.returncode:
            said = err.read().decode(errors="replace").strip().splitlines()[-3:]
            raise Failed(f"{shown}: exit {process.returncode}; {' | '.join(said)}")
        return Done(out.read().decode(), seconds, usage)


def _wait(process: subprocess.Popen[bytes], deadline: float) -> float | None:
    """Wait for the end; return CPU seconds, or None if it had to be killed."""
    killed = False
    pause = 0.0005
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return None if killed else usage.ru_utime + usage.ru_stime
        if killed and time.perf_counter() > deadline + 5:
            return None  # in unkillable sleep: leave it to whoever can wake it
        if not killed and time.perf_counter() > deadline:
            process.kill()
            killed = True
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def script(name: str, *arguments: str | int | Path) -> list[str]:
    """Return the command that runs the program *name* beside this file with our interpreter."""
    return [sys.executable, str(HERE / name), *map(str, arguments)]


# What /proc says of running processes: proc_pid_stat(5).


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None  # ended meanwhile


def family(pid: int) -> list[int]:
    """Return *pid* and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := _stat(int(entry))):
            parents.setdefault(int(found[1]), []).append(int(entry))
    members, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        members.append(one)
        waiting.extend(parents.get(one, ()))
    return members


def cpu_of(pids: Iterable[int]) -> float:
    """Return the CPU seconds that *pids* and all their descendants, ended ones included, have used."""
    total = 0
    for pid in {member for root in pids for member in family(root)}:
        if found := _stat(pid):
            total += sum(map(int, found[11:15]))  # utime stime cutime cstime
    return total / TICK


def peak_memory(pid: int) -> int:
    """Return the sum of the largest resident sizes, in bytes, of *pid* and its descendants.

    What they share counts several times: never less than what they need.
    """
    total = 0
    for member in family(pid):
        try:
            lines = Path(f"/proc/{member}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    return total

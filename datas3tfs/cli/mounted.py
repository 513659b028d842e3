"""`datas3tfs umount | flush | stats`: what is done to a mount that is there."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from datas3tfs.app.mountpoint import mounted_at, require_ours, unmount
from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag, Mountpoint
from datas3tfs.core.sizes import format_size
from datas3tfs.errors import Datas3tError, Unavailable
from datas3tfs.fs.xattrs import FLUSH, STATS

_LOOK_SECONDS = 0.02
_SILENT_SECONDS = 5.0  # afterwards it is said what is being waited for

Lazy = Annotated[
    bool, typer.Option("--lazy", help="Also if it is in use or cannot commit; the daemon is not waited for.")
]


def flush(mountpoint: Mountpoint) -> None:
    """Commit everything that was written and closed; return when it is."""
    target = require_ours(mountpoint)
    try:
        _flush(target)
    except Unavailable as exc:
        raise Unavailable(f"{mountpoint}: {exc}") from exc


def umount(mountpoint: Mountpoint, lazy: Lazy = False) -> None:
    """Commit, unmount, and wait until the daemon has ended. What cannot be committed stays mounted."""
    target = require_ours(mountpoint)
    found = None if lazy else _answer(target)
    if found is not None:
        try:
            _flush(target)
        except Unavailable as exc:
            raise Unavailable(
                f"{mountpoint}: still mounted: {exc} (--lazy leaves it in the journal)"
            ) from exc
    unmount(target, lazy=lazy)
    if found is not None:
        _wait_for(int(found["pid"]))
        _check_journal(found)
    if mounted_at(target) is not None and not lazy:
        raise Unavailable(f"{mountpoint}: something is still mounted there")


def stats(mountpoint: Mountpoint, as_json: JsonFlag = False) -> None:
    """Show what a mount has done (requests, bytes, cache hits), and what waits to be committed."""
    found = _stats_of(require_ours(mountpoint))
    if as_json:
        output.print_json(found)
        return
    counters: dict[str, int] = found.pop("counters")
    journal: dict[str, Any] = found.pop("journal", {})
    found |= {f"journal.{name}": value for name, value in journal.items()} | counters
    lines = [{"name": name, "value": _figure(name, value)} for name, value in found.items()]
    output.print_table(lines, (output.Column("name", "name"), output.Column("value", "value")), as_json=False)


def _figure(name: str, value: object) -> object:
    if name.endswith("bytes") and isinstance(value, int):
        return f"{value} ({format_size(value)})"
    return value


def _flush(target: Path) -> None:
    """Have a mount commit. Raises Unavailable, saying what it failed of."""
    try:
        os.setxattr(target, FLUSH, b"1")
    except OSError as exc:
        if exc.errno == errno.EROFS:
            return  # a read-only mount has nothing to commit
        raise Unavailable(f"not everything could be committed: {_reason(target)}") from exc


def _reason(target: Path) -> str:
    try:
        return os.getxattr(target, FLUSH).decode("utf-8", "replace")
    except OSError:
        return "see the mount's log"


def _stats_of(mountpoint: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(os.getxattr(mountpoint, STATS))
    except OSError as exc:
        raise Unavailable(f"{mountpoint}: the mount does not answer ({exc.strerror})") from exc
    return found


def _answer(mountpoint: Path) -> dict[str, Any] | None:
    """Return the figures of a mount; None if its daemon is dead, and need not be waited for."""
    try:
        return _stats_of(mountpoint)
    except Unavailable:
        return None


def _wait_for(pid: int) -> None:
    """Wait until a daemon has ended: for as long as it commits, which has limits of its own."""
    born, begun, silent = _birth(pid), time.monotonic(), True
    while born is not None and _birth(pid) == born:
        if silent and time.monotonic() - begun > _SILENT_SECONDS:
            output.say(f"unmounted; waiting for process {pid}, which commits what was written last")
            silent = False
        time.sleep(_LOOK_SECONDS)  # another process's child cannot be waited for


def _birth(pid: int) -> str | None:
    """Return when a process was started (proc_pid_stat(5)), None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _check_journal(found: dict[str, Any]) -> None:
    """Raise Unavailable if the daemon has left datapoints in its journal."""
    from datas3tfs.app.journals import examine

    directory = (found.get("journal") or {}).get("directory")
    if directory is None:
        return
    try:
        journal = examine(Path(directory))
    except Datas3tError:
        return  # another user's; its daemon has said so in its log
    left = sum(file.state != "temporary" for file in journal.files)
    if left and journal.process is None:
        files = "1 file is" if left == 1 else f"{left} files are"
        raise Unavailable(f"unmounted, but {files} not committed: datas3tfs journal replay {directory}")

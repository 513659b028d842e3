"""`datas3tfs mount | umount | flush | stats`."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from datas3tfs import config
from datas3tfs.app.daemon import Readiness, daemonize
from datas3tfs.app.mount import MountOptions, serve_mount
from datas3tfs.app.mountpoint import mounted_at, prepare, require_ours, unmount
from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag, log_to, settings
from datas3tfs.cli.running import run
from datas3tfs.core.sizes import format_size
from datas3tfs.errors import Invalid, Unavailable
from datas3tfs.fs.attributes import Ownership
from datas3tfs.fs.xattrs import FLUSH, STATS

_GONE_SECONDS = 30.0  # for the daemon to leave after its mount is gone

Mountpoint = Annotated[Path, typer.Argument(help="The directory.", metavar="MOUNTPOINT")]


Uid = Annotated[
    int | None, typer.Option(min=0, max=2**32 - 2, help="Whom files belong to.", show_default="you")
]
Gid = Annotated[int | None, typer.Option(min=0, max=2**32 - 2, help="And which group.", show_default="yours")]
Bucket = Annotated[
    str | None, typer.Option(help="Where mkdir makes datasets.", show_default="the only one there is")
]
JournalDir = Annotated[
    Path | None,
    typer.Option(help="Where files wait to be committed.", show_default="one for each mount point"),
]
Fsync = Annotated[
    str | None, typer.Option(help="What fsync waits for: commit, or journal (this machine's disk).")
]
Lazy = Annotated[bool, typer.Option("--lazy", help="Also if it is in use or cannot commit.")]


def mount(
    ctx: typer.Context,
    mountpoint: Mountpoint,
    dataset: Annotated[str | None, typer.Option(help="Show this dataset alone, at the root.")] = None,
    daemon: Annotated[bool, typer.Option("--daemon", help="Return once it is mounted.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Write nothing; reads are faster.")] = False,
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users in, too.")] = False,
    uid: Uid = None,
    gid: Gid = None,
    umask: Annotated[str, typer.Option(help="Permission bits to take away, octal.")] = "022",
    cache_dir: Annotated[Path | None, typer.Option(help="Where indices are cached.")] = None,
    cache_size: Annotated[str | None, typer.Option(help="How large the cache may be, e.g. 10GiB.")] = None,
    bucket: Bucket = None,
    journal_dir: JournalDir = None,
    journal_size: Annotated[str | None, typer.Option(help="How much may wait there, e.g. 10GiB.")] = None,
    batch_bytes: Annotated[str | None, typer.Option(help="Commit when so much waits, e.g. 64MiB.")] = None,
    batch_age: Annotated[float | None, typer.Option(help="Or seconds after the oldest was closed.")] = None,
    fsync: Fsync = None,
    io_timeout: Annotated[float | None, typer.Option(help="Seconds after which a read gives EIO.")] = None,
    log_file: Annotated[Path | None, typer.Option(help="Where log lines go instead of stderr.")] = None,
) -> None:
    """Show datasets as directories until unmounted, or stopped by SIGTERM or Ctrl-C."""
    sizes = {"cache_size": cache_size, "journal_size": journal_size, "batch_bytes": batch_bytes}
    rest = {"batch_age": batch_age, "fsync": fsync, "io_timeout": io_timeout}
    chosen = settings(ctx, cache_dir=cache_dir, journal_dir=journal_dir, **sizes, **rest)
    kept = chosen.journal_dir or config.journals_dir() / _plain(mountpoint.absolute())
    options = MountOptions(
        mountpoint.absolute(),
        dataset,
        Ownership(os.getuid() if uid is None else uid, os.getgid() if gid is None else gid, _octal(umask)),
        allow_other,
        None if read_only else kept,
        bucket,
    )
    prepare(options.mountpoint)  # so that wrong usage is reported before anything else happens

    def serve(readiness: Readiness) -> None:
        run(lambda: serve_mount(chosen, options, readiness), stop_on=())

    if daemon:
        log_to(log_file or _default_log(chosen, options.mountpoint), chosen.log_level)
        daemonize(serve, config.notify_socket())
    else:
        log_to(log_file, chosen.log_level)
        serve(Readiness(None, config.notify_socket()))


def flush(mountpoint: Mountpoint) -> None:
    """Commit everything that was written and closed; return when it is."""
    target = require_ours(mountpoint)
    try:
        os.setxattr(target, FLUSH, b"1")
    except OSError as exc:
        if exc.errno == errno.EROFS:
            return  # a read-only mount has nothing to commit
        raise Unavailable(f"{mountpoint}: not everything could be committed; see the mount's log") from exc


def umount(
    mountpoint: Mountpoint,
    lazy: Lazy = False,
) -> None:
    """Commit, unmount, and wait until the daemon has ended."""
    target = require_ours(mountpoint)
    pid = None if lazy else _pid_of(target)
    if pid is not None:
        flush(mountpoint)
    unmount(target, lazy=lazy)
    deadline = time.monotonic() + _GONE_SECONDS
    while pid is not None and _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)  # another process's child cannot be waited for
    if mounted_at(target) is not None and not lazy:
        raise Unavailable(f"{mountpoint}: something is still mounted there")


def stats(mountpoint: Mountpoint, as_json: JsonFlag = False) -> None:
    """Show what a mount has done: requests, bytes, cache hits."""
    found = _stats_of(require_ours(mountpoint))
    if as_json:
        output.print_json(found)
        return
    counters: dict[str, int] = found.pop("counters")
    journal: dict[str, Any] = found.pop("journal", {})
    found |= {f"journal.{name}": value for name, value in journal.items()}
    lines: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in found.items()]
    lines += [
        {"name": name, "value": f"{value} ({format_size(value)})" if name.endswith("bytes") else value}
        for name, value in counters.items()
    ]
    output.print_table(lines, (output.Column("name", "name"), output.Column("value", "value")), as_json=False)


def _stats_of(mountpoint: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(os.getxattr(mountpoint, STATS))
    except OSError as exc:
        raise Unavailable(f"{mountpoint}: the mount does not answer ({exc.strerror})") from exc
    return found


def _pid_of(mountpoint: Path) -> int | None:
    try:
        return int(_stats_of(mountpoint)["pid"])
    except Unavailable:
        return None  # a dead daemon need not be waited for


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _octal(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise Invalid(f"--umask {text}: not an octal number like 022")
    return int(text, 8)


def _default_log(chosen: config.Settings, mountpoint: Path) -> Path:
    """A daemon has no stderr; its log is beside its cache, named like its mount point."""
    return chosen.cache_dir / "logs" / f"{_plain(mountpoint)}.log"


def _plain(mountpoint: Path) -> str:
    """Return a file name made of a mount point's."""
    return str(mountpoint).strip("/").replace("/", "-") or "root"

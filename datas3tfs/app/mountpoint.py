"""Mount points: is it one of ours, is it dead, take it away. Blocking calls; no FUSE binding in here."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from datas3tfs.errors import Conflict, Invalid, NotFound, Unavailable

FILE_SYSTEM = "fuse.datas3tfs"
_MOUNTINFO = Path("/proc/self/mountinfo")
_UNMOUNT_SECONDS = 30.0
_ANSWER_SECONDS = 5.0
_LINKS = 40  # what the kernel follows before it says ELOOP


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of mountinfo (proc_pid_mountinfo(5)): what is mounted where."""

    path: str
    file_system: str


def mounted_at(path: Path) -> Mounted | None:
    """Return what is mounted exactly at *path* (the topmost, if several are), or None."""
    wanted = os.path.abspath(path)
    found = None
    # Not splitlines, nor text mode: the kernel escapes blanks and newlines only, and a mount point of
    # anybody's may have a carriage return or a form feed in its name.
    for line in os.fsdecode(_MOUNTINFO.read_bytes()).split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if _unescape(fields[4]) == wanted:
            found = Mounted(wanted, after.split(" ")[0])
    return found


def real_path(path: Path) -> Path:
    """Return *path* without symbolic links, without asking what is mounted there: it may be dead."""
    target = Path(os.path.abspath(path))
    for _ in range(_LINKS):
        target = Path(os.path.realpath(target.parent)) / target.name if target.name else target
        if mounted_at(target) is not None or not os.path.islink(target):
            break
        target = Path(os.path.abspath(target.parent / os.readlink(target)))
    return target


def prepare(path: Path) -> Path:
    """Make sure that *path* can be mounted on; return it resolved.

    The remains of a daemon that died are taken away. Raises Conflict if something of ours is mounted
    there and alive, Invalid if it is not a directory.
    """
    target = real_path(path)
    mounted = mounted_at(target)
    if mounted is not None and mounted.file_system == FILE_SYSTEM:
        if not _is_dead(target):
            raise Conflict(f"{path}: a datas3tfs is mounted there already")
        unmount(target, lazy=True)
    try:
        if not target.is_dir():
            raise Invalid(f"{path}: not a directory" if target.exists() else f"{path}: no such directory")
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc
    return target


def require_ours(path: Path) -> Path:
    """Return *path* resolved. Raises NotFound unless a datas3tfs is mounted there."""
    target = real_path(path)
    mounted = mounted_at(target)
    if mounted is None or mounted.file_system != FILE_SYSTEM:
        raise NotFound(f"{path}: no datas3tfs is mounted there")
    return Path(mounted.path)


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount *path*. Raises Conflict if it is in use (never when *lazy*), Unavailable if it fails."""
    command = [*_unmounter(), *(["-z" if os.geteuid() else "-l"] if lazy else []), "--", str(path)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_UNMOUNT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unavailable(f"{path}: could not be unmounted ({exc})") from exc
    if done.returncode == 0:
        return
    reason = " ".join(done.stderr.split())
    if "busy" in reason:
        raise Conflict(f"{path}: in use; close what is open there, or use --lazy")
    raise Unavailable(f"{path}: could not be unmounted ({reason})")


def _unmounter() -> list[str]:
    """umount(8) for root, which needs no helper; fusermount3 for everybody else."""
    if os.geteuid() == 0:
        return ["umount", "-i"]
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise Unavailable("fusermount3 is not installed (package fuse3)")
    return [helper, "-u"]


def _is_dead(path: Path) -> bool:
    """Say whether the daemon behind the mount is gone; one that does not answer counts as alive.

    Another process asks, because who asks a daemon that hangs cannot be woken, let alone killed.
    """
    process = subprocess.Popen(
        ["stat", "--", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": os.defpath, "LC_ALL": "C"},
        text=True,
    )
    try:
        _, reason = process.communicate(timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return any(os.strerror(number) in reason for number in (errno.ENOTCONN, errno.ECONNABORTED))


def _unescape(field: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field

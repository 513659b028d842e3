"""`mount.datas3tfs`: what mount(8) calls for lines of /etc/fstab of type datas3tfs.

    photos  /data/photos  datas3tfs  config=/etc/datas3tfs.toml,allow_other,_netdev  0 0
    all     /data/all     datas3tfs  config=/etc/datas3tfs.toml,_netdev              0 0

The source is a dataset, or "all". Link it to /sbin/mount.datas3tfs. Options of mount(8) itself are
passed over; those of `datas3tfs mount` are handed on; anything else is refused.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from datas3tfs.cli.main import main as datas3tfs
from datas3tfs.errors import Invalid

_FLAGS = {"allow_other": "--allow-other", "ro": "--read-only", "no_express": "--no-express"}
_VALUES = {
    *("uid", "gid", "umask", "cache_dir", "cache_size", "io_timeout", "log_file"),
    *("bucket", "journal_dir", "journal_size", "batch_bytes", "batch_age", "fsync"),
}
# What mount(8) and systemd keep to themselves, and what holds for every datas3tfs anyway.
_PASSED_OVER = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
    | {"rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "async", "dirsync"}
    | {"atime", "noatime", "relatime", "nodiratime"}
)


def main() -> NoReturn:
    """Mount as mount(8) asks: SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]."""
    try:
        sys.argv[1:] = command_line(sys.argv[1:])
    except Invalid as exc:
        print(f"mount.datas3tfs: error: {exc}", file=sys.stderr)
        sys.exit(2)
    datas3tfs()


def command_line(arguments: list[str]) -> list[str]:
    """Return the arguments of `datas3tfs` that say the same. Raises Invalid."""
    options: list[str] = []
    places: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o":
            options += next(rest, "").split(",")
        elif not argument.startswith("-"):
            places.append(argument)
    if len(places) != 2:
        raise Invalid("usage: mount.datas3tfs DATASET|all MOUNTPOINT [-o OPTIONS]")
    before, after = _translate(options)
    source, mountpoint = places
    shown = [] if source == "all" else ["--dataset", source]
    return [*before, "mount", mountpoint, "--daemon", *shown, *after]


def _translate(options: list[str]) -> tuple[list[str], list[str]]:
    before: list[str] = []
    after: list[str] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "config":
            before += ["--config", value]
        elif name in _VALUES:
            after += ["--" + name.replace("_", "-"), value]
        elif name in _FLAGS:
            after.append(_FLAGS[name])
        elif name and name not in _PASSED_OVER and not name.startswith(("x-", "comment")):
            raise Invalid(f"unknown mount option {option!r}")
    return before, after

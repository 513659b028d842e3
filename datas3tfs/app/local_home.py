"""The directory of the embedded stack: who owns what in it, its lock, and programs put within reach.

    DIR/            0700, or 0711 for root (the servers' account must pass through)
      lock          held by up and down; also marks DIR as ours
      config.toml   0600: ports and secrets (local_state.py)
      run/ log/     written through descriptors that we open
      pgdata/ s3/   owned by the account that runs the servers
      programs/     copies of the servers, only where that account cannot reach the installed ones

Never changes anything outside DIR, except that root creates the account.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from datas3tfs import config
from datas3tfs.app.local_process import Account
from datas3tfs.core.names import printable
from datas3tfs.errors import Invalid, NotFound

_ACCOUNT = "datas3tfs"


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one embedded stack."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings file that `env` names."""
        return self.path / "config.toml"

    @property
    def pgdata(self) -> Path:
        """Where Postgres keeps its data."""
        return self.path / "pgdata"

    @property
    def s3(self) -> Path:
        """The folder the S3 server shows; a bucket is a folder in it."""
        return self.path / "s3"

    def record(self, name: str) -> Path:
        """Return the file that says which process a server is."""
        return self.path / "run" / f"{name}.pid"

    def log(self, name: str) -> Path:
        """Return a server's log."""
        return self.path / "log" / f"{name}.log"

    def folder(self, name: str, account: Account) -> Path:
        """Return the folder *name*, made if absent, that only *account* can use."""
        path = self.path / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if account.switch:
            os.chown(path, account.uid, account.gid)
        return path


def existing_home(path: Path) -> Home:
    """Return the home at *path*. Raises NotFound if there is none, Invalid if it is somebody else's."""
    try:
        owner = path.stat().st_uid
        found = (path / "lock").exists()
    except OSError:
        found = False
    if not found:
        raise NotFound(f"{printable(str(path))}: no embedded stack here; `datas3tfs local up` makes one")
    if owner != os.geteuid():
        raise Invalid(
            f"{printable(str(path))}: this stack belongs to {_user(owner)}; run the command as that user"
        )
    return Home(path)


def made_home(path: Path) -> Home:
    """Return the home at *path*, made if need be. Raises Invalid if the directory is not fit for it."""
    try:
        home = existing_home(path)
    except NotFound:
        _make_directory(path)
        home = existing_home(path)
    path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    for name in ("run", "log"):
        (path / name).mkdir(mode=0o700, exist_ok=True)
    return home


@contextmanager
def locked(home: Home) -> Iterator[None]:
    """Hold the home against every other `up` and `down`; waits for theirs to end."""
    with (home.path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def server_account(home: Home) -> Account:
    """Return who runs the servers: ourselves; for root an account of its own, as Postgres refuses root.

    Raises Invalid if that account cannot be made or cannot enter the home.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), _user(os.geteuid()), switch=False)
    entry = _system_user()
    account = Account(entry.pw_uid, entry.pw_gid, entry.pw_name, switch=True)
    if not _can_enter(account, home.path):
        raise Invalid(
            f"{printable(str(_barrier(home.path)))}: the user {_ACCOUNT}, who runs root's servers, cannot "
            f"enter this directory; choose another --dir, such as {config.default_local_dir()}"
        )
    return account


def within_reach(home: Home, account: Account, program: Path, name: str, parts: dict[str, Path]) -> Path:
    """Return *program*, or its copy in the home if *account* cannot reach it (a checkout under /root).

    *parts* are the files and trees to copy, by their place below programs/*name*; one contains *program*.
    """
    if _can_execute(account, program):
        return program
    target = home.path / "programs" / name
    copies = {source: target / place for place, source in parts.items()}
    if not target.exists():
        fresh = target.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        for place, source in parts.items():
            _copy(source, fresh / place)
        _open_to_all(target.parent)
        fresh.rename(target)
    source = next(source for source in copies if program.is_relative_to(source))
    return copies[source] / program.relative_to(source)


def _make_directory(path: Path) -> None:
    shown = printable(str(path))
    try:
        missing = [parent for parent in path.parents if not parent.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for parent in missing:
            parent.chmod(0o755)  # whatever our umask: the servers' account must pass through
        if any(path.iterdir()):  # somebody's data: neither chmod it nor mix ours in
            raise Invalid(f"{shown}: not empty and not an embedded stack; choose another --dir")
        (path / "lock").touch(mode=0o600)
    except OSError as exc:
        raise Invalid(f"{shown}: cannot hold the embedded stack: {exc.strerror}") from exc


def _system_user() -> pwd.struct_passwd:
    with suppress(KeyError):
        return pwd.getpwnam(_ACCOUNT)
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    command += ["--shell", "/usr/sbin/nologin", _ACCOUNT]
    try:
        subprocess.run(command, check=True, capture_output=True, env=config.child_environment())
        return pwd.getpwnam(_ACCOUNT)
    except (OSError, subprocess.CalledProcessError, KeyError) as exc:
        raise Invalid(f"Postgres does not run as root; make a user for it: {shlex.join(command)}") from exc


def _can_enter(account: Account, directory: Path) -> bool:
    return account.run(["test", "-x", directory], env=config.child_environment()).returncode == 0


def _can_execute(account: Account, program: Path) -> bool:
    if not account.switch:
        return True
    readable = account.run(["test", "-r", program, "-a", "-x", program], env=config.child_environment())
    return readable.returncode == 0


def _barrier(path: Path) -> Path:
    for directory in [*reversed(path.parents), path]:
        if not directory.stat().st_mode & stat.S_IXOTH:
            return directory
    return path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        # Not for linking programs against: half the size.
        shutil.copytree(
            source, target, symlinks=True, ignore=shutil.ignore_patterns("*.a", "include", "__pycache__")
        )
    else:
        shutil.copy2(source, target)


def _open_to_all(tree: Path) -> None:
    for directory, _, files in os.walk(tree):
        for path in [Path(directory), *(Path(directory, name) for name in files)]:
            if not path.is_symlink():
                mode = stat.S_IMODE(path.stat().st_mode) & 0o755
                path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)


def _user(uid: int) -> str:
    try:
        return printable(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return f"user {uid}"

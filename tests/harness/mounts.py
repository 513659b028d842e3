"""A whole product to test: a database, a bucket, commands as processes (launcher.py), and real mounts.

Not for faults themselves (faultproxy.py) nor for servers (postgres.py, s3.py). The fixtures are in
tests/e2e/conftest.py. A stuck FUSE request cannot be killed, so nothing here waits without a limit:
every mount has a timer that aborts its connection, and leaving a mount ends its daemon, by force if
need be. Never map a mounted file in this process (a page fault holds the interpreter lock): use a
subprocess. Start mounts from the main thread only: the kernel ends the daemon with that thread.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio

from datas3tfs.app import ingest as ingesting
from datas3tfs.catalog import Catalog, generate_key, open_catalog
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Datarange, Dataset
from datas3tfs.engine.writer import Writer
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import open_stores
from tests.harness import launcher
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import S3Server

ROOT = launcher.ROOT
BUCKET = "main"  # the name under which a stack's bucket is registered

_COMMAND_LIMIT = 120.0  # seconds for any command but a mount
_READY_LIMIT = 30.0
_LEAVE_LIMIT = 15.0  # for a daemon to end after SIGTERM
_LIFE_LIMIT = 200.0  # for a whole mount, below pytest's own limit, which would leave it stuck
T = TypeVar("T")

_CONNECTIONS = Path("/sys/fs/fuse/connections")


def until(
    condition: Callable[[], object], limit: float = 10.0, what: str = "it", every: float = 0.02
) -> float:
    """Wait until *condition* holds; return how many seconds that took. Fails after *limit* seconds."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < limit, f"{what} did not happen within {limit:g} s"
        time.sleep(every)
    return time.monotonic() - begun


@contextmanager
def refusing(*numbers: int) -> Iterator[None]:
    """Fail unless the block raises OSError with one of the errnos *numbers*."""
    got = 0
    try:
        yield
    except OSError as exc:
        got = exc.errno or 0
    assert got in numbers, f"{errno.errorcode.get(got)} instead of {[errno.errorcode[n] for n in numbers]}"


def check_fuse() -> str | None:
    """Return what is wrong with /dev/fuse here, or None."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as exc:
        return (
            f"/dev/fuse cannot be used ({exc.strerror}): load the kernel's fuse module (modprobe fuse); "
            "for a container add --device /dev/fuse --cap-add SYS_ADMIN"
        )
    return None


def device_at(path: Path) -> str | None:
    """Return the device (major:minor) of the datas3tfs mounted at *path*, dead or alive; asks no daemon."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():  # proc_pid_mountinfo(5)
        before, _, after = line.partition(" - ")
        if before.split()[4].replace("\\040", " ") == str(path):
            found = before.split()[2] if after.split()[0] == "fuse.datas3tfs" else None
    return found


def abort_connection(device: str) -> None:
    """Abort the FUSE connection of *device* (major:minor): whoever waits for it gets an error."""
    if not any(_CONNECTIONS.iterdir()) and os.geteuid() == 0:
        subprocess.run(["mount", "-t", "fusectl", "none", _CONNECTIONS], check=False, capture_output=True)
    with suppress(OSError):  # ended by itself meanwhile
        (_CONNECTIONS / device.partition(":")[2] / "abort").write_text("1")


def unmount_lazily(path: Path) -> None:
    """Take a mount away whatever state it is in."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
    subprocess.run([*command, str(path)], check=False, capture_output=True, timeout=_LEAVE_LIMIT)


def refusal(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """Return the one line of error of a command that must have failed with *code*."""
    lines = done.stderr.splitlines()
    assert done.returncode == code, f"{done.args}: {done.returncode}, {done.stdout}{done.stderr}"
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("datas3tfs: error: "), lines[0]
    assert not done.stdout, done.stdout
    return lines[0].removeprefix("datas3tfs: error: ")


class Process(Protocol):
    """A daemon: what subprocess.Popen has, and others may."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, sig: int) -> None: ...


class Mount:
    """A mount and its daemon, a process in the foreground."""

    def __init__(self, path: Path, process: Process, log: Path) -> None:
        self.path = path
        self.process = process
        self._log = log
        self._timer: threading.Timer | None = None
        self.device = ""

    @property
    def pid(self) -> int:
        """The daemon's."""
        return self.process.pid

    def workers(self) -> list[int]:
        """Return the processes that the daemon has beside it; they end with it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(child) for child in children.read_text().split()] if children.exists() else []

    @property
    def log(self) -> str:
        """What the daemon has written to stderr so far."""
        return self._log.read_text(errors="replace")

    def errors(self) -> list[str]:
        """Return the log lines of level ERROR, without time."""
        return [line.partition(" ERROR ")[2] for line in self.log.splitlines() if " ERROR " in line]

    def stats(self) -> dict[str, Any]:
        """Return what `datas3tfs stats --json` shows."""
        found: dict[str, Any] = json.loads(os.getxattr(self.path, "user.datas3t.stats"))
        return found

    def counters(self) -> Counters:
        """Return the counters of this moment."""
        counters = Counters()
        for name, value in self.stats()["counters"].items():
            counters.add(name, value)
        return counters

    def rss(self) -> int:
        """Return the daemon's resident memory in bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def is_mounted(self) -> bool:
        """Say whether a datas3tfs is mounted here; never asks the daemon."""
        return device_at(self.path) is not None

    def wait_ready(self, deadline: float) -> None:
        """Wait until it is mounted. Fails if the daemon ends before."""
        # The log too: something dead may have been mounted there before.
        while not (self.is_mounted() and f"{self.path}: mounted" in self.log):
            code = self.process.poll()
            assert code is None, f"the mount ended with {code}:\n{self.log}"
            assert time.monotonic() < deadline, f"not mounted in time:\n{self.log}"
            time.sleep(0.01)
        self.device = device_at(self.path) or ""
        self._timer = threading.Timer(_LIFE_LIMIT, self.abort)
        self._timer.daemon = True
        self._timer.start()

    def terminate(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send *how* and return the exit code."""
        self.process.send_signal(how)
        return self.process.wait(_LEAVE_LIMIT)

    def kill9(self) -> None:
        """Kill the daemon as the kernel's memory killer would; its mount stays behind, dead."""
        workers = self.workers()
        self.process.kill()
        self.process.wait(_LEAVE_LIMIT)
        until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), what="its end")
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Abort the connection: everybody stuck in it gets an error. Not if the mount is gone: its device
        number may be another mount's by now."""
        if device_at(self.path) == self.device:
            abort_connection(self.device)

    def close(self) -> None:
        """End it whatever its state. Fails if the daemon had to be forced, or left something behind."""
        forced = False
        try:
            if self.process.poll() is None:
                self.terminate()
        except subprocess.TimeoutExpired:
            forced = True
            self.abort()
            self.kill9()
        finally:
            self._disarm()
            left = self.is_mounted()
            if left:
                unmount_lazily(self.path)
        assert not forced, f"the daemon did not end within {_LEAVE_LIMIT:g} s of SIGTERM:\n{self.log}"
        assert not left, f"something was left mounted:\n{self.log}"
        assert "Traceback" not in self.log, self.log


@dataclass
class Stack:
    """A database and a bucket of their own, and everything one does with them."""

    postgres: PostgresServer
    db_url: str = field(repr=False)
    s3: S3Server
    home: Path
    encryption_key: str = field(default_factory=generate_key, repr=False)
    _mounts: int = field(default=0, repr=False)

    @property
    def environ(self) -> dict[str, str]:
        """The environment that makes every command work on this stack."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DATAS3TFS_")}
        return kept | {
            "DATAS3TFS_DB_URL": self.db_url,
            "DATAS3TFS_ENCRYPTION_KEY": self.encryption_key,
            "DATAS3TFS_CACHE_DIR": str(self.home / "cache"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "DATAS3TFS_S3_ENDPOINT": self.s3.endpoint,
            "DATAS3TFS_S3_BUCKET": self.s3.bucket,
            "DATAS3TFS_S3_ACCESS_KEY": self.s3.access_key,
            "DATAS3TFS_S3_SECRET_KEY": self.s3.secret_key,
            "LC_ALL": "C.UTF-8",
        }

    @property
    def secrets(self) -> list[str]:
        """What nobody may ever see."""
        return [self.postgres.password, self.encryption_key, self.s3.secret_key, self.s3.access_key]

    def register(self, *datasets: str, endpoint: str | None = None) -> None:
        """Register the bucket (reached through *endpoint*, a proxy, if given) and *datasets* in it.

        This and the next two work in this process: the commands, tested elsewhere, take a second each.
        """

        async def work(catalog: Catalog) -> None:
            if not await catalog.registry.buckets():
                await catalog.registry.add_bucket(self.s3.spec(endpoint, BUCKET))
            for name in datasets:
                await catalog.registry.add_dataset(name, BUCKET)

        self._with_catalog(work)

    def ingest(
        self, dataset: str, *paths: Path, start: int | None = None, datarange_bytes: int = 1 << 28
    ) -> list[Datarange]:
        """Do what `datas3tfs ingest` does; return what was committed."""

        async def work(catalog: Catalog) -> list[Datarange]:
            async with _writing(catalog) as writer:
                return await _ingest(writer, await _found(catalog, dataset), paths, start, datarange_bytes)

        return self._with_catalog(work)

    def ingest_into_each(self, datasets: Iterable[str], *paths: Path, datarange_bytes: int = 1 << 28) -> None:
        """Put the same files into many empty datasets."""

        async def work(catalog: Catalog) -> None:
            async with _writing(catalog) as writer:
                for dataset in datasets:
                    await _ingest(writer, await _found(catalog, dataset), paths, 0, datarange_bytes)

        self._with_catalog(work)

    def upload_tar(self, dataset: str, path: Path) -> Datarange:
        """Do what `datas3tfs upload-tar` does; return what was committed."""

        async def work(catalog: Catalog) -> Datarange:
            scanned = await ingesting.scan_tar(path, _ignore)
            async with _writing(catalog) as writer:
                into = await _found(catalog, dataset)
                return await ingesting.upload_tar(writer, into, path, scanned, _ignore)

        return self._with_catalog(work)

    def _with_catalog(self, work: Callable[[Catalog], Awaitable[T]]) -> T:
        async def opened() -> T:
            async with open_catalog(self.db_url, self.encryption_key, Counters()) as catalog:
                return await work(catalog)

        return trio.run(opened)

    def run(
        self, *words: str | Path, env: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `datas3tfs` with *words* as a user would; fails unless it exits with 0, if *check*."""
        environ = self.environ | dict(env or {})
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = launcher.start([*map(str, words)], environ, out, err)
            try:
                code = process.wait(_COMMAND_LIMIT)
            except BaseException:
                process.kill()
                raise
            shown = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
        done = subprocess.CompletedProcess([*map(str, words)], code, *shown)
        assert not check or code == 0, f"{words} failed with {code}: {done.stderr}"
        return done

    def json(self, *words: str | Path) -> Any:
        """Run a command with --json and return its document."""
        return json.loads(self.run(*words, "--json").stdout)

    def refused(self, *words: str | Path, code: int = 1) -> str:
        """Run a command that must fail with *code*; return its one line of error."""
        return refusal(self.run(*words, check=False), code)

    def run_each(self, commands: Iterable[Sequence[str | Path]]) -> list[subprocess.CompletedProcess[str]]:
        """Run commands, one after the other, however each ends."""
        return [self.run(*words, check=False) for words in commands]

    def sql(self, script: str) -> str:
        """Run *script* on the stack's database; return what it prints."""
        return self.postgres.sql(self.db_url.rpartition("/")[2], script)

    def objects(self) -> dict[str, int]:
        """Return the keys in the bucket with their sizes, asked of S3 itself."""
        pages = self.s3.client().get_paginator("list_objects_v2").paginate(Bucket=self.s3.bucket)
        return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", [])}

    def get_object(self, key: str) -> bytes:
        """Return an object, past the product."""
        body: bytes = self.s3.client().get_object(Bucket=self.s3.bucket, Key=key)["Body"].read()
        return body

    def put_object(self, key: str, body: bytes) -> None:
        """Write an object, past the product."""
        self.s3.client().put_object(Bucket=self.s3.bucket, Key=key, Body=body)

    def journal_of(self, mountpoint: Path) -> Path:
        """Return the journal's directory of a mount at *mountpoint*."""
        return self.home / "state" / "datas3tfs" / "journals" / str(mountpoint).strip("/").replace("/", "-")

    def new_mountpoint(self) -> Path:
        """Make an empty directory to mount on."""
        self._mounts += 1
        path = self.home / f"mnt{self._mounts}"
        path.mkdir()
        return path

    def begin_mount(
        self,
        path: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        fresh: bool = False,
    ) -> Mount:
        """Begin to mount at *path*; `wait_ready` must follow. *prefix* is a command to run it under; then,
        or if *fresh*, its process is one that has loaded the program itself."""
        log = self.home / f"{path.name}-{secrets.token_hex(4)}.log"
        words, environ = ["mount", str(path), *options], self.environ | dict(env or {})
        with log.open("wb") as stream:
            if not prefix and not fresh:
                return Mount(path, launcher.start(words, environ, stream, stream), log)
            process = subprocess.Popen(
                # The kernel asks the daemon to end when this process dies, however it dies.
                ["setpriv", "--pdeathsig", "TERM", *prefix, sys.executable, "-m", "datas3tfs", *words],
                env=environ,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        return Mount(path, process, log)

    @contextmanager
    def mount(
        self,
        *words: str,
        dataset: str | None = None,
        io_timeout: float | None = None,
        path: Path | None = None,
        cold: bool = False,
        write: bool = False,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        fresh: bool = False,
    ) -> Iterator[Mount]:
        """Mount with the options *words*, read-only unless *write*; *cold* gives it a cache directory of its
        own, empty. The journal's is derived from *path*, as for users.

        Leaving fails unless all is gone. For the rest see `begin_mount`.
        """
        path = path or self.new_mountpoint()
        options = [*words] if write else [*words, "--read-only"]
        options += ["--dataset", dataset] if dataset else []
        options += ["--io-timeout", f"{io_timeout:g}"] if io_timeout else []
        options += ["--cache-dir", str(self.home / f"cache-{secrets.token_hex(4)}")] if cold else []
        mount = self.begin_mount(path, *options, env=env, prefix=prefix, fresh=fresh)
        try:
            mount.wait_ready(time.monotonic() + _READY_LIMIT)
            yield mount
        except BaseException as exc:
            exc.add_note(f"log of the mount:\n{mount.log[-4000:]}")
            with suppress(AssertionError):  # the first failure is the one to report
                mount.close()
            raise
        mount.close()


@asynccontextmanager
async def _writing(catalog: Catalog) -> AsyncIterator[Writer]:
    async with open_stores(catalog.reader.bucket, S3Settings(), Counters()) as stores:
        yield Writer(catalog.uploads, stores)


async def _found(catalog: Catalog, name: str) -> Dataset:
    return next(dataset for dataset in await catalog.reader.datasets() if dataset.name == name)


async def _ingest(
    writer: Writer, dataset: Dataset, paths: Sequence[Path], start: int | None, datarange_bytes: int
) -> list[Datarange]:
    steps = ingesting.ingest(
        writer,
        dataset,
        ingesting.find_sources(paths),
        first=ingesting.next_key(dataset) if start is None else start,
        datarange_bytes=datarange_bytes,
        advance=_ignore,
    )
    async with aclosing(steps):
        return [datarange async for datarange, _ in steps]


def _ignore(amount: int) -> None:
    """Progress nobody looks at."""


@contextmanager
def open_stack(postgres: PostgresServer, s3: S3Server, home: Path) -> Iterator[Stack]:
    """Give a stack with a fresh database; its mounts must be gone before it is."""
    with postgres.database() as db_url:
        yield Stack(postgres, db_url, s3, home)

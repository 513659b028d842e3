"""The stack that is measured: Postgres, S3 server, relay, compiled programs, datasets; one for a whole run.

The stack lies in memory where there is room (/dev/shm), so that no disk decides how fast the S3 server is;
caches, journals and logs lie on disk, as a user's do. Not for what
is measured (sections/) nor for how (sampling.py). For one thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clients
import compiling
import processes
import relay
import tars
from processes import Done, run
from tars import Tar

PROGRAM = [sys.executable, "-m", "datas3tfs"]
SHARED_MEMORY = Path("/dev/shm")
ROOM = 6 << 30  # bytes that a full run keeps in the S3 server, and some more
TAR_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Data:
    """A dataset: the same files in TARs, and some of them as an object each under *prefix*."""

    name: str
    count: int
    size: int
    tars: list[Tar]
    objects: list[str]  # keys of the TARs

    @property
    def prefix(self) -> str:
        return f"plain-{self.name}"

    def names(self) -> list[str]:
        return [tars.name_of(key) for key in range(self.count)]

    def place(self, key: int) -> tuple[str, int, int]:
        """Return object, start and end of the bytes of *key*."""
        for tar, name in zip(self.tars, self.objects, strict=True):
            if key < tar.first + tar.count:
                return name, *tar.content(key)
        raise KeyError(key)


@dataclass(slots=True)
class World:
    """Made by `open_world`."""

    scratch: Path
    env: dict[str, str]
    programs: compiling.Programs
    relay: relay.Relay
    direct: str  # the S3 server's own URL
    endpoint: str  # its URL through the relay
    server: int  # process id of the S3 server
    bucket: str
    memory: Path  # a directory in memory, or what comes closest here
    peers: Path | None  # the Python of the environment that has the peers
    known: dict[str, Data] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.scratch / "cache"

    @property
    def log(self) -> Path:
        return self.scratch / "log"

    def ours(self, *words: str | Path | int, limit: float = 300.0, env: dict[str, str] | None = None) -> Done:
        """Run a command of datas3tfs."""
        return run([*PROGRAM, *map(str, words)], env or self.env, limit)

    def mountpoint(self, name: str = "mnt") -> Path:
        path = self.scratch / name
        path.mkdir(exist_ok=True)
        return path

    def reader(self) -> list[str]:
        return [str(self.programs.reader)] if self.programs.reader else processes.script("reader.py")

    def s3(self, endpoint: str | None = None) -> Any:
        """Return a boto3 client; through the relay unless told otherwise."""
        return clients.s3(self.env, endpoint)

    def signed(self, key: str, endpoint: str | None = None) -> str:
        """Return an address from which anybody can GET *key* for an hour."""
        parameters = {"Bucket": self.bucket, "Key": key}
        address: str = self.s3(endpoint).generate_presigned_url("get_object", Params=parameters)
        return address

    def data(self, name: str, count: int, size: int) -> Data:
        """Return the dataset *name*, made when first asked for."""
        if name not in self.known:
            self.relay.delay(0)
            self.known[name] = self._make(name, count, size)
        return self.known[name]

    def _make(self, name: str, count: int, size: int) -> Data:
        parts = tars.cut(count, size, TAR_BYTES)
        self.ours("dataset", "add", name, "--bucket", "bench")
        path = self.scratch / "upload.tar"
        for part in parts:
            tars.write(path, part)
            self.ours("upload-tar", name, path)
        path.unlink()
        answer = self.s3(self.direct).list_objects_v2(
            Bucket=self.bucket, Prefix=f"datas3t/{name}/dataranges/"
        )
        objects = sorted(one["Key"] for one in answer["Contents"] if one["Key"].endswith(".tar"))
        return Data(name, count, size, parts, objects)

    def drop(self, prefix: str) -> None:
        """Remove the objects under *prefix*, which fill memory though nobody reads them any more."""
        s3 = self.s3(self.direct)
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for one in page.get("Contents", ()):
                s3.delete_object(Bucket=self.bucket, Key=one["Key"])

    def plain_objects(self, data: Data, count: int) -> list[str]:
        """Return the keys of the first *count* files of *data* as objects, put when first asked for."""
        keys = [f"{data.prefix}/{tars.name_of(key)}" for key in range(count)]
        stamp = self.scratch / f"{data.prefix}.done"
        if not stamp.exists():
            files = self.scratch / "files"
            tars.write_files(files, 0, count, data.size)
            job = {"bucket": self.bucket, "prefix": data.prefix, "directory": str(files)}
            run(
                processes.script("object_puts.py"),
                self.env | {"DATAS3TFS_S3_ENDPOINT": self.direct},
                given=json.dumps(job),
            )
            shutil.rmtree(files)
            stamp.touch()
        return keys


def evict(directory: Path) -> None:
    """Take what the files of *directory* hold out of the page cache, so that it is read from disk again.

    Emptying the whole page cache instead would also throw out the programs that are about to be started.
    """
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def open_world(peers: Path | None) -> Iterator[World]:
    """Start everything; stop and remove it at the end."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="datas3tfs-bench-")))
        scratch.chmod(0o711)  # Postgres runs as another user when we are root
        memory = scratch
        if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM < _free_memory() / 2:
            made = tempfile.TemporaryDirectory(prefix="datas3tfs-bench-", dir=SHARED_MEMORY)
            memory = Path(stack.enter_context(made))
            memory.chmod(0o711)
        home = memory / "local"
        env = dict(os.environ) | {
            "DATAS3TFS_CACHE_DIR": str(scratch / "cache"),
            "DATAS3TFS_LOG_LEVEL": "warning",
        }
        run([*PROGRAM, "local", "up", "--dir", home], env)
        stack.callback(run, [*PROGRAM, "local", "down", "--dir", home], env)
        env |= run([*PROGRAM, "local", "env", "--dir", home, "--json"], env).document
        settings = tomllib.loads(Path(env["DATAS3TFS_CONFIG"]).read_text())
        env |= {
            f"DATAS3TFS_{name.upper()}": str(value) for name, value in settings.items() if name[:3] == "s3_"
        }
        direct = env["DATAS3TFS_S3_ENDPOINT"]
        port = int(direct.rpartition(":")[2])
        programs = compiling.compile_all(scratch)
        between = relay.start(programs.relay, port)
        stack.callback(between.stop)
        endpoint = f"http://127.0.0.1:{between.port}"
        env["DATAS3TFS_S3_ENDPOINT"] = endpoint
        run([*PROGRAM, "bucket", "add", "bench"], env)
        bucket = env["DATAS3TFS_S3_BUCKET"]
        yield World(scratch, env, programs, between, direct, endpoint, _listener(port), bucket, memory, peers)


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _listener(port: int) -> int:
    """Return the process that serves S3 on *port*, or 0; it was started by `datas3tfs local up`."""
    needle = f":{port}"
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "serve" in words and any(word.endswith(needle) for word in words):
                return int(entry)
    return 0


def has_command(words: list[str]) -> bool:
    """Tell whether such a program exists and can say how it is used."""
    try:
        return subprocess.run(words, capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False

"""Measure reading and writing through the mount beside a null pyfuse3 file system, interleaved, in one run.

Every round mounts both afresh (nothing is cached in the kernel; the index is cached on disk from the
second round on) and reads, or creates, the same number of files of the same size. One large file is
written beside a plain multipart upload. Medians and ratios are printed; absolute figures on a shared machine
mean little.

    scripts/bench [--rounds N] [--quick] [--write | --api] [--million]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROGRAM = [sys.executable, "-m", "datas3tfs"]


def run(*command: str, env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def mounted(command: list[str], mountpoint: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a file system and wait until it is there; take it away again, for sure."""
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command)}: did not mount")
            time.sleep(0.01)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        subprocess.run(["umount", "-l", str(mountpoint)], capture_output=True, check=False)


def read(directory: Path, env: dict[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run(sys.executable, str(HERE / "reader.py"), str(directory), env=env))
    return result


def memory_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


class Bench:
    """One stack, some datasets, rounds of reading."""

    def __init__(self, scratch: Path, rounds: int) -> None:
        self.scratch, self.rounds = scratch, rounds
        self.mountpoint = scratch / "mnt"
        self.mountpoint.mkdir()
        self.env = os.environ | {
            "DATAS3TFS_CACHE_DIR": str(scratch / "cache"),
            "DATAS3TFS_LOG_LEVEL": "warning",
        }

    @contextmanager
    def stack(self) -> Iterator[None]:
        directory = str(self.scratch / "local")
        run(*PROGRAM, "local", "up", "--dir", directory, env=self.env)
        try:
            found = json.loads(run(*PROGRAM, "local", "env", "--dir", directory, "--json", env=self.env))
            settings = tomllib.loads(Path(found["DATAS3TFS_CONFIG"]).read_text())
            s3 = {f"DATAS3TFS_{name.upper()}": value for name, value in settings.items() if name[:3] == "s3_"}
            self.env = self.env | found | s3
            run(*PROGRAM, "bucket", "add", "bench", env=self.env)
            yield
        finally:
            run(*PROGRAM, "local", "down", "--dir", directory, env=self.env)

    def dataset(self, name: str, count: int, size: int) -> None:
        source = self.scratch / f"source-{name}"
        source.mkdir()
        for number in range(count):
            (source / f"{number:08d}.bin").write_bytes(os.urandom(size))
        run(*PROGRAM, "dataset", "add", name, "--bucket", "bench", env=self.env)
        run(*PROGRAM, "ingest", name, str(source), env=self.env)
        subprocess.run(["rm", "-rf", str(source)], check=True)

    def compare(self, name: str, count: int, size: int) -> None:
        self.dataset(name, count, size)
        null = [sys.executable, str(HERE / "nullfs.py"), str(self.mountpoint), str(count), str(size)]
        real = [*PROGRAM, "mount", str(self.mountpoint), "--dataset", name, "--read-only"]
        nulls, reals, gets = [], [], 0
        for _ in range(self.rounds):
            with mounted(null, self.mountpoint, self.env):
                nulls.append(read(self.mountpoint, self.env))
            with mounted(real, self.mountpoint, self.env):
                reals.append(read(self.mountpoint, self.env))
                stats = json.loads(run(*PROGRAM, "stats", str(self.mountpoint), "--json", env=self.env))
                gets = stats["counters"]["s3.get"]
        for what, amount, unit in (("list", count, "entries/s"), ("read", count, "files/s")):
            ceiling = statistics.median(amount / result[what] for result in nulls)
            ours = statistics.median(amount / result[what] for result in reals)
            ratio = statistics.median(n[what] / r[what] for n, r in zip(nulls, reals, strict=True))
            speed = f"  {ours * size / 1e6:6.0f} MB/s" if what == "read" else ""
            figures = f"null {ceiling:9.0f} {unit}  datas3tfs {ours:9.0f}  ratio {ratio:.2f}{speed}"
            print(f"{name:8} {what}: {figures}")
        print(f"{name:8} {gets} GETs for {count} datapoints, {1000 * gets / count:.1f} per 1,000", flush=True)

    def write_small(self, count: int, size: int) -> None:
        """Create + write + close, beside the null file system; then until all is committed."""
        null = [sys.executable, str(HERE / "nullfs.py"), str(self.mountpoint), "0", str(size), "--write"]
        nulls, ours, flushes, puts, queries = [], [], [], [], []
        for number in range(self.rounds):
            with mounted(null, self.mountpoint, self.env):
                nulls.append(self._write(self.mountpoint, count, size)["create"])
            with self.write_mount(f"small{size}-{number}") as directory:
                ours.append(self._write(directory, count, size)["create"])
                flushes.append(self._flush())
                counters = self._counters()
                puts.append(counters["s3.put"])
                queries.append(counters["sql.query"])
        ratio = statistics.median(null / our for null, our in zip(nulls, ours, strict=True))
        rate, ceiling = count / statistics.median(ours), count / statistics.median(nulls)
        print(
            f"write {size} B: null {ceiling:6.0f} files/s  datas3tfs {rate:6.0f}  ratio {ratio:.2f}; "
            f"flush afterwards {statistics.median(flushes):.2f} s; "
            f"{10_000 * statistics.median(puts) / count:.0f} PUTs and "
            f"{10_000 * statistics.median(queries) / count:.0f} SQL statements per 10,000",
            flush=True,
        )

    def write_large(self, size: int) -> None:
        """One file, until it is committed, beside a plain multipart upload of as many bytes."""
        plain, ours, writes = [], [], []
        for number in range(self.rounds):
            out = run(sys.executable, str(HERE / "upload.py"), f"plain-{number}", str(size), env=self.env)
            plain.append(json.loads(out)["seconds"])
            with self.write_mount(f"large-{number}") as directory:
                begin = time.perf_counter()
                writes.append(self._write(directory, 1, size)["create"])
                self._flush()
                ours.append(time.perf_counter() - begin)
        ratio = statistics.median(p / o for p, o in zip(plain, ours, strict=True))
        print(
            f"write {size >> 20} MiB: plain upload {size / 1e6 / statistics.median(plain):.0f} MB/s  "
            f"datas3tfs until committed {size / 1e6 / statistics.median(ours):.0f}  ratio {ratio:.2f}; "
            f"until close() {size / 1e6 / statistics.median(writes):.0f} MB/s",
            flush=True,
        )

    def fsync_latency(self, count: int) -> None:
        with self.write_mount("fsync") as directory:
            median = self._write(directory, count, 4096, "--fsync")["fsync"]
        print(f"fsync of one new 4 KiB file: median {1000 * median:.0f} ms (of {count})", flush=True)

    @contextmanager
    def write_mount(self, name: str) -> Iterator[Path]:
        """Mount everything writable and make the dataset *name* in it; leaves nothing in the journal."""
        command = [*PROGRAM, "mount", str(self.mountpoint), "--journal-dir", str(self.scratch / "journal")]
        with mounted(command, self.mountpoint, self.env):
            directory = self.mountpoint / name
            directory.mkdir()
            yield directory
            self._flush()

    def api(self, size: int) -> None:
        """Presigning, and transfers through the client, beside plain boto3; see api.py."""
        run(*PROGRAM, "dataset", "add", "api", "--bucket", "bench", env=self.env)
        with self.served() as url:
            arguments = url, str(self.scratch), "api", str(size), str(self.rounds)
            found = json.loads(run(sys.executable, str(HERE / "api.py"), *arguments, env=self.env))
        print(
            f"presign: {found['presign_per_s']:.0f} calls/s, an empty answer {found['empty_per_s']:.0f}/s, "
            f"ratio {found['presign_per_s'] / found['empty_per_s']:.2f}"
        )
        for ours, plain, what in (("put", "plain_put", "upload"), ("get", "plain_get", "download")):
            print(
                f"{what} {size >> 20} MiB: boto3 {size / 1e6 / found[plain]:.0f} MB/s  "
                f"datas3tfs {size / 1e6 / found[ours]:.0f}  ratio {found[plain] / found[ours]:.2f}",
                flush=True,
            )

    @contextmanager
    def served(self) -> Iterator[str]:
        """Run `datas3tfs serve`; yield its address."""
        command = [*PROGRAM, "serve", "--addr", "127.0.0.1:0"]
        process = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield line[line.index("http://") :].split()[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def _write(self, directory: Path, count: int, size: int, *options: str) -> dict[str, Any]:
        command = sys.executable, str(HERE / "writer.py"), str(directory), str(count), str(size), *options
        result: dict[str, Any] = json.loads(run(*command, env=self.env))
        return result

    def _flush(self) -> float:
        """Commit everything as `datas3tfs flush` does, without the time a Python program takes to start."""
        begin = time.perf_counter()
        os.setxattr(self.mountpoint, "user.datas3t.flush", b"1")
        return time.perf_counter() - begin

    def _counters(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(os.getxattr(self.mountpoint, "user.datas3t.stats"))["counters"]
        return found

    def million(self) -> None:
        self.dataset("million", 1_000_000, 16)
        command = [*PROGRAM, "mount", str(self.mountpoint), "--read-only"]
        with mounted(command, self.mountpoint, self.env) as process:
            before = memory_of(process.pid)
            begin = time.perf_counter()
            listed = len(os.listdir(self.mountpoint / "million"))
            seconds = time.perf_counter() - begin
            print(
                f"million: {listed} entries in {seconds:.1f} s; RSS {before / 2**20:.0f} MiB before, "
                f"{memory_of(process.pid) / 2**20:.0f} MiB after"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the files")
    parser.add_argument("--million", action="store_true", help="also list a million datapoints (minutes)")
    parser.add_argument("--write", action="store_true", help="only the measurements of writing")
    parser.add_argument("--api", action="store_true", help="only those of the HTTP API and the client")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    with tempfile.TemporaryDirectory(prefix="datas3tfs-bench-") as scratch:
        os.chmod(scratch, 0o711)  # Postgres runs as another user when we are root
        bench = Bench(Path(scratch), options.rounds)
        with bench.stack():
            if options.api:
                bench.api((512 << 20) // scale)
                return
            if not options.write:
                bench.compare("4KiB", 20_000 // scale, 4096)
                bench.compare("100KiB", 5_000 // scale, 100 * 1024)
                bench.compare("16MiB", 40 // scale, 16 << 20)
            bench.write_small(10_000 // scale, 4096)
            bench.write_small(2_000 // scale, 100 * 1024)
            bench.write_large((1 << 30) // scale)
            bench.fsync_latency(50 // min(scale, 5))
            if options.million:
                bench.million()


if __name__ == "__main__":
    main()

"""Measure reading through the mount beside a null pyfuse3 file system, interleaved, in one run.

Every round mounts both afresh (nothing is cached in the kernel; the index is cached on disk from the
second round on) and reads the same number of files of the same size. Medians and ratios are printed;
absolute figures on a shared machine mean little.

    scripts/bench [--rounds N] [--quick] [--million]
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
            self.env = self.env | found
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
        real = [*PROGRAM, "mount", str(self.mountpoint), "--dataset", name]
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

    def million(self) -> None:
        self.dataset("million", 1_000_000, 16)
        with mounted([*PROGRAM, "mount", str(self.mountpoint)], self.mountpoint, self.env) as process:
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
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    with tempfile.TemporaryDirectory(prefix="datas3tfs-bench-") as scratch:
        os.chmod(scratch, 0o711)  # Postgres runs as another user when we are root
        bench = Bench(Path(scratch), options.rounds)
        with bench.stack():
            bench.compare("4KiB", 20_000 // scale, 4096)
            bench.compare("100KiB", 5_000 // scale, 100 * 1024)
            bench.compare("16MiB", 40 // scale, 16 << 20)
            if options.million:
                bench.million()


if __name__ == "__main__":
    main()

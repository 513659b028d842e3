"""What is large: a datapoint of 5 GiB, a datarange of a million datapoints; and memory all the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from datas3tfs.core import tar
from datas3tfs.core.names import datapoint_name
from tests.harness.mounts import ROOT, Stack

GIB = 1 << 30
MIB = 1 << 20
MILLION = 1_000_000
# A command's own memory, whatever the size of the data: four parts of 16 MiB in flight, an interpreter
# with its libraries. An index being built takes some hundred bytes for each datapoint on top.
FLAT = 400 * MIB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def peak_memory_of(stack: Stack, *words: str | Path) -> int:
    """Run a command that must succeed; return the most memory it had, in bytes.

    Read from VmHWM while it runs: what wait4(2) reports begins with the memory of whoever forked it.
    """
    # The server puts gigabytes together on a disk that others use: how long it takes is not the question.
    env = stack.environ | {"DATAS3TFS_IO_TIMEOUT": "600"}
    process = subprocess.Popen([sys.executable, "-m", "datas3tfs", *map(str, words)], env=env, cwd=ROOT)
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, int(found[1]))
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    assert process.returncode == 0
    assert peak, "it ended before it was looked at"
    return peak * 1024


def require_free(path: Path, size: int) -> None:
    """Fail, rather than fill the disk."""
    free = shutil.disk_usage(path).free
    assert free > size, f"this test needs {size >> 30} GiB free below {path}, there are {free >> 30}"


def test_a_datapoint_of_5_gib_reads_back_and_streams(stack: Stack, tmp_path: Path) -> None:
    require_free(tmp_path, 12 * GIB)
    source, size = tmp_path / "large.bin", 5 * GIB
    marks = {0: b"first", GIB + 7: b"second", 4 * GIB - 3: b"over the border", size - 4: b"last"}
    with source.open("wb") as file:
        file.truncate(size)
        for offset, mark in marks.items():
            os.pwrite(file.fileno(), mark, offset)
    stack.register("big")
    assert peak_memory_of(stack, "ingest", "big", source) < FLAT
    with stack.mount(dataset="big") as mount:
        path = mount.path / datapoint_name(0, "bin")
        assert path.stat().st_size == size
        with path.open("rb", buffering=0) as file:
            for offset, mark in marks.items():
                assert os.pread(file.fileno(), len(mark), offset) == mark
            assert os.pread(file.fileno(), 10, size) == b""
        subprocess.run(["cmp", path, source], check=True, timeout=900)
        assert mount.rss() < FLAT + 256 * MIB, "no more than its budget on top"
        assert mount.counters().get("s3.get") < size // (4 * MIB)


def write_million(path: Path) -> None:
    """A TAR of a million datapoints of 16 bytes, each its own key."""
    with path.open("wb") as file:
        for first in range(0, MILLION, 1000):
            keys = range(first, first + 1000)
            names = [(key, datapoint_name(key, "txt")) for key in keys]
            headers = [(key, tar.build_header(name, 16, key * 10**9)) for key, name in names]
            file.write(b"".join(header + b"%016d" % key + bytes(496) for key, header in headers))
        file.write(tar.END_OF_ARCHIVE)


def test_a_million_datapoints_are_listed(
    stack: Stack, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    require_free(tmp_path, 3 * GIB)
    archive = tmp_path / "million.tar"
    write_million(archive)
    stack.register("million")
    assert peak_memory_of(stack, "upload-tar", "million", archive) < FLAT + 256 * MILLION
    with stack.mount(dataset="million") as mount:
        (mount.path / datapoint_name(0, "txt")).stat()  # brings the index
        before, memory = mount.counters(), mount.rss()
        listed = subprocess.run(
            f"ls -U {mount.path} | tee {tmp_path}/names | wc -l", shell=True, check=True, capture_output=True
        )
        assert int(listed.stdout) == MILLION
        after = mount.counters()
        record_property("rss_before_listing", memory)
        record_property("rss_after_listing", mount.rss())
        print(f"\nRSS before listing {memory / MIB:.0f} MiB, after {mount.rss() / MIB:.0f} MiB")
        assert after.get("s3.get") == before.get("s3.get")
        assert mount.rss() < 300 * MIB
        names = (tmp_path / "names").read_text().splitlines()
        assert names == [datapoint_name(key, "txt") for key in range(MILLION)]
        for key in (0, 1, 499_999, MILLION - 1):
            found = mount.path / datapoint_name(key, "txt")
            assert found.read_bytes() == b"%016d" % key
            assert found.stat().st_mtime == key
        assert not (mount.path / datapoint_name(MILLION, "txt")).exists()

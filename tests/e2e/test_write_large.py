"""What is written in parts: several at once, and no more in memory than is said, however much there is."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

from datas3tfs.objects.settings import S3Settings
from tests.harness.archives import key_name, noise
from tests.harness.arena import check_left_tidy
from tests.harness.crashpoints import s3_point
from tests.harness.faultproxy import FaultProxy, Moment
from tests.harness.mounts import Mount, Stack, until

MIB = 1 << 20
SETTINGS = S3Settings()
ALL_PARTS = SETTINGS.parts_at_once * SETTINGS.part_size
# Parts being put together, or just sent and not let go of yet, what requests and the journal take. Without
# the limit that all uploads share, twenty parts would be there.
MARGIN = 96 * MIB
# What is freed goes back at once, so that what is seen is what is held: glibc keeps as much again otherwise.
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(MIB // 2)}


class Gate:
    """A witness that lets parts through when it is opened, and counts those that wait."""

    def __init__(self) -> None:
        self.waiting = 0
        self._lock = threading.Lock()
        self._open = threading.Event()

    def __call__(self, moment: Moment, method: str, path: str) -> bool:
        """See faultproxy.Witness."""
        point = s3_point(moment, method, path)
        if point == "part:asked" and not self._open.is_set():
            with self._lock:
                self.waiting += 1
            self._open.wait(60)
            with self._lock:
                self.waiting -= 1
        return False

    def open(self) -> None:
        """Let all go."""
        self._open.set()


def high_water(mount: Mount) -> int:
    """Return the most memory that a daemon has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{mount.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def write(path: Path, content: bytes, times: int) -> None:
    """Write a file of that content, again and again."""
    with path.open("xb") as file:
        for _ in range(times):
            file.write(content)


def test_parts_go_side_by_side_and_memory_is_bounded(stack: Stack, proxy: FaultProxy) -> None:
    """Four batches and a large file at once want twenty places; there are fewer."""
    datasets = [f"set{number}" for number in range(4)]
    stack.register("large", *datasets, endpoint=proxy.endpoint)
    proxy.witness = gate = Gate()
    mib = noise(MIB)
    limits = "--batch-age", "0.2", "--batch-bytes", "64MiB"
    with stack.mount(*limits, write=True, env=EXACT, fresh=True) as mount:
        before = high_water(mount)
        write(mount.path / "large" / key_name(0), mib, 130)
        for dataset in datasets:
            folder = mount.path / dataset
            for key in range(5):
                write(folder / f".{key}", mib, 12)  # so that they become ready at once
            for key in range(5):
                os.rename(folder / f".{key}", folder / key_name(key))
        begun = "SELECT count(*) FROM datarange_uploads"
        until(lambda: int(stack.sql(begun)) >= 5, 60, "five uploads side by side", every=0.2)
        until(lambda: gate.waiting == SETTINGS.parts_at_once, 30, "parts side by side")
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert gate.waiting <= SETTINGS.parts_at_once
        gate.open()
        until(lambda: mount.stats()["journal"]["committed"] == 21, 60, "committing")
        assert high_water(mount) - before < ALL_PARTS + MARGIN
        for dataset, size in (("large", 130), ("set0", 12), ("set3", 12)):
            with (mount.path / dataset / key_name(0)).open("rb") as file:
                assert all(file.read(MIB) == mib for _ in range(size))
                assert not file.read(1)
    check_left_tidy(stack)


def test_parts_of_one_file_go_side_by_side(stack: Stack, proxy: FaultProxy) -> None:
    stack.register("ds", endpoint=proxy.endpoint)
    proxy.witness = gate = Gate()
    with stack.mount("--batch-age", "0.2", write=True) as mount:
        write(mount.path / "ds" / key_name(0), noise(MIB), 100)
        until(lambda: gate.waiting == SETTINGS.parts_in_flight, 30, "parts side by side")
        gate.open()
        until(lambda: mount.stats()["journal"]["committed"] == 1, 60, "committing")
    assert sum(stack.objects().values()) > 100 * MIB

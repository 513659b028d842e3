"""The lane of read-only mounts: no file is opened at our door, hardly one is asked for, nobody ever hangs.

Whatever dies, in whatever state, whoever reads gets bytes or an error within seconds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import LARGE, SMALL, Library
from tests.e2e.test_mount_pushing import read_all, read_or_fail
from tests.harness.archives import Sample, key_name, noise, samples, write_folder
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import Mount, Stack, refusing, until

SECONDS = 10.0  # for whatever must not hang


def read_elsewhere(path: Path) -> subprocess.Popen[bytes]:
    """Begin to read a file in another process: one that hangs can then be left alone."""
    return subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def stalled(mount: Mount, proxy: FaultProxy, paths: list[Path]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Have readers wait for S3, which says nothing."""
    proxy.add(Fault(Kind.STALL_BODY))
    before = proxy.requests("GET")
    readers = [read_elsewhere(path) for path in paths]
    until(lambda: proxy.requests("GET") > before, what="S3 being asked")
    try:
        yield readers
    finally:
        proxy.clear()
        for reader in readers:
            assert reader.wait(SECONDS) != 0, "an error, not an empty file"


def test_no_file_is_opened_at_our_door_and_hardly_one_asked_for(library: Library) -> None:
    content = library.content("small")
    with library.stack.mount(cold=True) as opened:
        folder = opened.path / "small"
        names = sorted(os.listdir(folder))
        assert read_all(folder, names) == content
        first = opened.counters()
        assert first.get("fuse.open") == 0
        assert first.get("push.heartbeats") > 0
        assert 0 <= opened.stats()["ahead_bytes"] <= 64 << 20, "at most two windows"
        assert read_all(folder, names) == content
        assert opened.counters().get("fuse.read") == first.get("fuse.read"), "from the page cache"


def test_it_can_be_turned_off(library: Library) -> None:
    content = library.content("small")
    with library.stack.mount("--no-express", cold=True) as opened:
        folder = opened.path / "small"
        assert read_all(folder, sorted(os.listdir(folder))) == content
        assert opened.counters().get("fuse.open") == SMALL
        assert opened.counters().get("push.heartbeats") == 0


@pytest.mark.parametrize("order", ["forwards", "backwards", "every third"])
def test_few_requests_in_whatever_order_there_is(library: Library, order: str) -> None:
    content = library.content("small")
    with library.stack.mount(cold=True) as opened:
        folder = opened.path / "small"
        names = sorted(os.listdir(folder))
        names = {"forwards": names, "backwards": names[::-1], "every third": names[::3]}[order]
        before = opened.counters().get("s3.get")
        assert read_all(folder, names) == {name: content[name] for name in names}
        assert opened.counters().get("s3.get") - before < 15


def test_many_readers_in_any_order_get_the_right_bytes(library: Library) -> None:
    digests = {
        (folder, name): hashlib.sha256(body).hexdigest()
        for folder in ("small", "sizes")
        for name, body in library.content(folder).items()
    }
    places = sorted(digests)
    with library.stack.mount(cold=True) as opened, ThreadPoolExecutor(8) as pool:

        def check(seed: int) -> int:
            mine = random.Random(seed).sample(places, 150)
            done = subprocess.run(
                ["sha256sum", *(f"{folder}/{name}" for folder, name in mine)],
                cwd=opened.path,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            for place, line in zip(mine, done.stdout.splitlines(), strict=True):
                assert line.split()[0] == digests[place], place
            return len(mine)

        assert sum(pool.map(check, range(32))) == 32 * 150


def test_a_file_is_mapped_and_one_larger_than_our_memory_is_read(library: Library) -> None:
    (name,) = library.content("large")
    digest = hashlib.sha256(library.content("large")[name]).hexdigest()
    program = (
        "import hashlib, mmap, os, sys\n"
        "f = os.open(sys.argv[1], os.O_RDONLY)\n"
        "print(hashlib.sha256(mmap.mmap(f, 0, prot=mmap.PROT_READ)).hexdigest())\n"
    )
    small = {"DATAS3TFS_MEMORY_BUDGET": str(LARGE // 8)}
    with library.stack.mount(cold=True, env=small) as opened:
        command = [sys.executable, "-c", program, str(opened.path / "large" / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == digest
        assert opened.stats()["memory_bytes"] <= LARGE // 4


# -- nobody hangs ----------------------------------------------------------------------------------


@pytest.fixture
def slow(stack: Stack, proxy: FaultProxy, tmp_path: Path) -> Stack:
    """A stack with a dataset `d` behind the proxy."""
    stack.register("d", endpoint=proxy.endpoint)
    stack.ingest("d", write_folder(tmp_path / "src", samples([4096] * 300 + [1 << 20] * 4)))
    return stack


def test_the_daemon_is_killed_while_readers_wait(slow: Stack, proxy: FaultProxy) -> None:
    with slow.mount(cold=True) as opened:
        names = sorted(os.listdir(opened.path / "d"))
        (worker,) = opened.workers()
        with stalled(opened, proxy, [opened.path / "d" / name for name in names[::40]]):
            opened.kill9()
        until(lambda: not Path(f"/proc/{worker}").exists(), SECONDS, "the worker ending, too")
        with refusing(errno.ENOTCONN):
            os.listdir(opened.path / "d")
        with slow.mount(path=opened.path) as again:
            assert (again.path / "d" / names[0]).stat().st_size == 4096
            assert len((again.path / "d" / names[5]).read_bytes()) == 4096


def test_told_to_end_it_does_while_readers_wait(slow: Stack, proxy: FaultProxy) -> None:
    with slow.mount(cold=True) as opened:
        names = sorted(os.listdir(opened.path / "d"))
        with stalled(opened, proxy, [opened.path / "d" / name for name in names[::40]]):
            begun = time.monotonic()
            assert opened.terminate() == 0
            assert time.monotonic() - begun < SECONDS


def test_unmounted_lazily_while_readers_wait(slow: Stack, proxy: FaultProxy) -> None:
    """They may finish; then the daemon ends."""
    with slow.mount(cold=True) as opened:
        names = sorted(os.listdir(opened.path / "d"))
        proxy.add(Fault(Kind.STALL_BODY, times=1))
        before = proxy.requests("GET")
        reader = read_elsewhere(opened.path / "d" / names[7])
        until(lambda: proxy.requests("GET") > before, what="S3 being asked")
        subprocess.run(["fusermount3", "-uz", opened.path], check=True, timeout=30)
        proxy.clear()
        assert reader.wait(SECONDS) == 0
        assert opened.process.wait(SECONDS) == 0


def test_the_worker_is_killed_and_the_mount_goes_on(library: Library) -> None:
    content = library.content("small")
    with library.stack.mount(cold=True) as opened:
        folder = opened.path / "small"
        names = sorted(os.listdir(folder))
        assert read_all(folder, names[:200]) == {name: content[name] for name in names[:200]}
        (worker,) = opened.workers()
        os.kill(worker, signal.SIGKILL)
        assert read_all(folder, names[200:]) == {name: content[name] for name in names[200:]}
        until(lambda: "has died" in opened.log, what="a warning")


def test_what_is_removed_goes_without_a_worker_too(stack: Stack, tmp_path: Path) -> None:
    stack.register("d")
    stack.ingest("d", write_folder(tmp_path / "src", samples([100] * 10)))
    with stack.mount() as opened:
        assert len(os.listdir(opened.path / "d")) == 10
        os.kill(opened.workers()[0], signal.SIGKILL)
        stack.run("dataset", "clear", "d", "--yes")
        until(lambda: not (opened.path / "d" / key_name(3)).exists(), what="going")


# -- nothing is stale ------------------------------------------------------------------------------


def test_a_file_held_open_is_the_old_one_for_ever_or_stale(stack: Stack, tmp_path: Path) -> None:
    """Again and again the keys come with other content of the same length; what is open never changes."""
    stack.register("d")
    held: list[tuple[int, bytes]] = []
    numbers: set[int] = set()
    try:
        with stack.mount("--dataset", "d", cold=True) as opened:
            for life in range(3):
                made = [Sample(key_name(key), noise(3000, 100 * life + key), 10**18) for key in range(40)]
                stack.ingest("d", write_folder(tmp_path / f"src{life}", made), start=0)
                until(lambda: len(os.listdir(opened.path)) == 40, what="filling")
                before = len(numbers)
                numbers |= {os.stat(opened.path / one.name).st_ino for one in made}
                assert len(numbers) == before + 40, "other files, other numbers"
                assert read_all(opened.path, [one.name for one in made[:30]]) == {
                    one.name: one.content for one in made[:30]
                }
                held += [(os.open(opened.path / one.name, os.O_RDONLY), one.content) for one in made[20:]]
                stack.run("dataset", "clear", "d", "--yes")
                until(lambda: not os.listdir(opened.path), what="clearing")
            for handle, content in held:
                assert read_or_fail(handle) in (content, None)
    finally:
        for handle, _ in held:
            os.close(handle)


def test_a_merge_changes_neither_inodes_nor_pages(stack: Stack, tmp_path: Path) -> None:
    stack.register("d")
    folder = write_folder(tmp_path / "src", samples([3000] * 60))
    stack.ingest("d", folder, datarange_bytes=100_000)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with stack.mount("--dataset", "d", cold=True) as opened:
        names = sorted(os.listdir(opened.path))
        assert read_all(opened.path, names) == content
        numbers = [os.stat(opened.path / name).st_ino for name in names]
        before = opened.counters()
        stack.run("aggregate", "d", "--first", "0", "--last", "59")
        until(lambda: opened.counters().get("sql.query") > before.get("sql.query"), what="hearing of it")
        assert read_all(opened.path, names) == content
        assert [os.stat(opened.path / name).st_ino for name in names] == numbers
        assert opened.counters().get("fuse.read") == before.get("fuse.read"), "the pages are still good"

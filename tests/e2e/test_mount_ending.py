"""Every way in which a mount that is written to ends: committed and 0, or kept in the journal and said so."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.archives import key_name
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import Mount, Stack, device_at, refusal, unmount_lazily, until

LATER = ("--batch-age", "3600")  # so that nothing is committed unless somebody asks for it
LIMIT = 2.0  # --io-timeout
BODIES = {key_name(key): bytes([key]) * 10_000 for key in range(5)} | {key_name(5): bytes(300_000)}


def write_all(mount: Mount) -> None:
    for name, content in BODIES.items():
        (mount.path / "ds" / name).write_bytes(content)


def files_in(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def is_committed(stack: Stack) -> bool:
    (dataset,) = stack.json("dataset", "list")
    return bool(dataset["datapoints"] == len(BODIES))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waiting(stack: Stack) -> list[int]:
    """How many files wait in each journal."""
    return [journal["count"] for journal in stack.json("journal", "list")]


@pytest.fixture
def ready(stack: Stack, proxy: FaultProxy) -> Iterator[Stack]:
    """A stack with the dataset "ds", behind the proxy."""
    stack.register("ds", endpoint=proxy.endpoint)
    yield stack
    proxy.clear()


# -- committed, and 0 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "umount", "fusermount3", "datas3tfs"])
def test_ending_commits_what_was_closed(ready: Stack, how: str) -> None:
    if how == "umount" and os.geteuid() != 0:
        pytest.skip("umount(8) of a FUSE mount is root's")
    with ready.mount(*LATER, write=True) as mount:
        write_all(mount)
        if how.startswith("SIG"):
            assert mount.terminate(signal.Signals[how]) == 0
        elif how == "datas3tfs":
            ready.run("umount", mount.path)
            assert mount.process.poll() == 0  # it waits for the daemon
        else:
            command = ["umount"] if how == "umount" else ["fusermount3", "-u"]
            subprocess.run([*command, mount.path], check=True, timeout=30)
            assert mount.process.wait(15) == 0
        assert not mount.is_mounted()
    assert is_committed(ready)
    assert waiting(ready) == [0]


def test_umount_waits_for_as_long_as_the_daemon_commits(
    ready: Stack, proxy: FaultProxy, tmp_path: Path
) -> None:
    with ready.mount(*LATER, write=True) as mount:
        proxy.add(Fault(Kind.STALL_HEAD, method="PUT", times=None))
        with ThreadPoolExecutor(1) as pool:
            umount = pool.submit(umount_late, ready, mount, tmp_path)
            until(lambda: proxy.requests("PUT") > 0, what="the daemon's last commit")
            assert not mount.is_mounted()
            with pytest.raises(TimeoutError):
                umount.result(1)
            proxy.clear()
            assert umount.result(30).returncode == 0
        assert mount.process.poll() == 0
    assert waiting(ready) == [0]


def umount_late(stack: Stack, mount: Mount, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `datas3tfs umount` while somebody writes a file after its flush, just before the mount is gone."""
    for name in ("umount", "fusermount3"):
        real = shutil.which(name)
        script = folder / name
        script.write_text(f'#!/bin/sh\necho late >{mount.path}/ds/{key_name(9)}\nexec {real} "$@"\n')
        script.chmod(0o755)
    return stack.run("umount", mount.path, env={"PATH": f"{folder}:{os.environ['PATH']}"}, check=False)


def test_a_daemon_is_waited_for_and_lets_the_next_one_in(ready: Stack, proxy: FaultProxy) -> None:
    point = ready.new_mountpoint()
    ready.run("mount", point, "--daemon", *LATER)
    try:
        for name, content in BODIES.items():
            (point / "ds" / name).write_bytes(content)
        pid = ready.json("stats", point)["pid"]
        ready.run("umount", point)
        assert not lives(pid)
        ready.run("mount", point, "--daemon", *LATER)
        assert files_in(point / "ds") == BODIES
        ready.run("umount", point)
    finally:
        if device_at(point) is not None:
            unmount_lazily(point)
    assert is_committed(ready)


def test_a_remount_waits_for_the_one_before_to_leave_the_journal(ready: Stack, proxy: FaultProxy) -> None:
    with ready.mount(*LATER, write=True) as first:
        write_all(first)
        proxy.add(Fault(Kind.STALL_HEAD, method="PUT", times=None))
        subprocess.run(["fusermount3", "-u", first.path], check=True, timeout=30)
        until(lambda: proxy.requests("PUT") > 0, what="the last commit")

        def lift_when_somebody_waits() -> None:
            logs = f"{first.path.name}-*.log"
            until(lambda: any("waiting: " in log.read_text() for log in ready.home.glob(logs)), 25)
            proxy.clear()

        lift = threading.Thread(target=lift_when_somebody_waits)
        lift.start()
        with ready.mount(*LATER, path=first.path, write=True) as second:
            assert f"in use by process {first.pid}" in second.log
            assert first.process.wait(10) == 0
            assert files_in(second.path / "ds") == BODIES
        lift.join()
    assert waiting(ready) == [0]


# -- not committed, and said so --------------------------------------------------------------------------


def test_a_second_signal_leaves_the_journal_as_it_is(ready: Stack, proxy: FaultProxy) -> None:
    with ready.mount(*LATER, write=True) as mount:
        write_all(mount)
        proxy.add(Fault(Kind.STALL_HEAD, method="PUT", times=None))
        mount.process.send_signal(signal.SIGTERM)
        until(lambda: proxy.requests("PUT") > 0, what="the commit")
        begun = time.monotonic()
        assert mount.terminate() == 0
        assert time.monotonic() - begun < 5
        assert f"{len(BODIES)} datapoints stay in the journal" in mount.log
    assert waiting(ready) == [len(BODIES)]
    proxy.clear()
    with ready.mount(*LATER, path=mount.path, write=True) as again:
        assert files_in(again.path / "ds") == BODIES
    assert is_committed(ready)


def test_without_s3_it_ends_with_1_in_time_and_the_next_mount_commits(
    ready: Stack, proxy: FaultProxy
) -> None:
    with ready.mount(*LATER, io_timeout=LIMIT, write=True) as mount:
        write_all(mount)
        proxy.stop()
        begun = time.monotonic()
        assert mount.terminate() == 1
        assert time.monotonic() - begun < 6 * LIMIT
        assert not mount.is_mounted()
        last = mount.log.splitlines()[-1]
        assert last.startswith(f"datas3tfs: error: {len(BODIES)} datapoints stay in the journal")
    assert waiting(ready) == [len(BODIES)]
    proxy.start()
    with ready.mount(*LATER, path=mount.path, write=True) as again:
        assert files_in(again.path / "ds") == BODIES
    assert is_committed(ready)


def test_what_cannot_be_committed_stays_mounted_unless_lazily(ready: Stack, proxy: FaultProxy) -> None:
    with ready.mount(*LATER, io_timeout=LIMIT, write=True) as mount:
        write_all(mount)
        proxy.stop()
        flushed, unmounted = ready.run_each([["flush", mount.path], ["umount", mount.path]])
        for said in (refusal(flushed), refusal(unmounted)):
            assert "not everything could be committed: " in said
            assert "see the mount's log" not in said  # but why
        assert "still mounted" in refusal(unmounted)
        assert files_in(mount.path / "ds") == BODIES
        figures = dict(line.split(None, 1) for line in ready.run("stats", mount.path).stdout.splitlines())
        assert figures["journal.journaled"] == str(len(BODIES))
        assert figures["journal.used_bytes"].endswith(" KiB)")
        until(lambda: mount.stats()["journal"]["problem"], what="the next attempt's failure")
        ready.run("umount", "--lazy", mount.path)
        assert not mount.is_mounted()
        assert mount.process.wait(6 * LIMIT) == 1
    proxy.start()
    assert waiting(ready) == [len(BODIES)]


def test_an_unmount_after_which_something_is_left_is_an_error(
    ready: Stack, proxy: FaultProxy, tmp_path: Path
) -> None:
    with ready.mount(*LATER, io_timeout=LIMIT, write=True) as mount:
        proxy.stop()
        done = umount_late(ready, mount, tmp_path)
        said = done.stderr.splitlines()[-1]
        assert done.returncode == 1
        assert "unmounted, but 1 file is not committed" in said
        assert f"datas3tfs journal replay {ready.journal_of(mount.path)}" in said
        assert mount.process.poll() == 1
    proxy.start()


# -- what others have left -------------------------------------------------------------------------------


def test_a_mount_says_where_files_of_dead_mounts_wait(ready: Stack) -> None:
    with ready.mount(*LATER, write=True) as dead:
        write_all(dead)
        dead.kill9()
        unmount_lazily(dead.path)
    with ready.mount(*LATER, write=True) as mount:
        until(lambda: " WARNING " in mount.log, what="the warning")
        warnings = [line for line in mount.log.splitlines() if " WARNING " in line]
        assert len(warnings) == 1
        assert f"`datas3tfs journal replay {ready.journal_of(dead.path)}`" in warnings[0]
        ready.run("journal", "replay")
    with ready.mount(*LATER, write=True) as mount:
        assert files_in(mount.path / "ds") == BODIES
        ready.run("stats", mount.path)  # time enough to look at the other journals
        assert " WARNING " not in mount.log


def test_large_uncommitted_files_may_be_more_than_a_shell_allows_descriptors(ready: Stack) -> None:
    limit = ["prlimit", "--nofile=128:4096"]
    with ready.mount(*LATER, write=True, prefix=limit) as mount:
        for key in range(200):
            (mount.path / "ds" / key_name(key)).write_bytes(bytes(128 * 1024 + 1))
        assert mount.stats()["journal"]["journaled"] == 200
        mount.kill9()
        unmount_lazily(mount.path)
    with ready.mount(*LATER, write=True, prefix=limit, path=mount.path) as again:
        assert len(os.listdir(again.path / "ds")) == 200
        assert again.terminate() == 0

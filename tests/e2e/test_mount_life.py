"""Mounting and unmounting: every way out leaves nothing behind, and every way in says what is wrong."""

import errno
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Library
from tests.harness.archives import key_name
from tests.harness.mounts import Stack, refusal, refusing, unmount_lazily, until


def mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def reads(library: Library, root: Path) -> None:
    name, content = list(library.content("sizes").items())[3]
    assert (root / "sizes" / name).read_bytes() == content


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_ends_with_0(library: Library, how: signal.Signals) -> None:
    with library.stack.mount() as opened:
        reads(library, opened.path)
        assert opened.terminate(how) == 0
        assert not opened.is_mounted()
        assert os.listdir(opened.path) == []


def test_a_signal_ends_it_while_a_file_is_open_and_being_read(library: Library) -> None:
    (name,) = library.content("large")
    with library.stack.mount(cold=True) as opened:
        reader = subprocess.Popen(
            ["sh", "-c", 'while cat "$1" || exit; do :; done', "sh", str(opened.path / "large" / name)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: opened.counters().get("fuse.read") > 10, what="the reader reading")
            assert opened.terminate() == 0
            assert not opened.is_mounted()
        finally:
            reader.kill()
            reader.wait(10)


@pytest.mark.parametrize("tool", ["umount", "fusermount3", "datas3tfs"])
def test_an_unmount_from_outside_ends_the_daemon_with_0(library: Library, tool: str) -> None:
    if tool == "umount" and os.geteuid() != 0:
        pytest.skip("umount(8) of a FUSE mount is root's")
    with library.stack.mount() as opened:
        reads(library, opened.path)
        if tool == "datas3tfs":
            library.stack.run("umount", opened.path)
            assert opened.process.poll() == 0  # it waits for the daemon
        else:
            command = ["umount"] if tool == "umount" else ["fusermount3", "-u"]
            subprocess.run([*command, opened.path], check=True, timeout=30)
            assert opened.process.wait(10) == 0
        assert not opened.is_mounted()


def test_a_mount_in_use_is_not_unmounted_unless_lazily(library: Library) -> None:
    (name,) = library.content("large")
    with library.stack.mount() as opened:
        with (opened.path / "large" / name).open("rb") as file:
            file.read(1)
            assert "in use" in library.stack.refused("umount", opened.path)
            reads(library, opened.path)  # it has not been harmed
            library.stack.run("umount", "--lazy", opened.path)
            assert not opened.is_mounted()
            assert opened.process.poll() is None
        assert opened.process.wait(10) == 0


def test_unmounting_what_is_not_mounted_is_an_error(library: Library, tmp_path: Path) -> None:
    for done in library.stack.run_each([["umount", tmp_path], ["stats", tmp_path / "missing"]]):
        assert "no datas3tfs is mounted" in refusal(done)


def test_after_kill_9_the_same_point_can_be_mounted_again(library: Library) -> None:
    with library.stack.mount() as first:
        handle = os.open(first.path / "sizes" / key_name(9), os.O_RDONLY)  # somebody still holds a file
        try:
            first.kill9()
            with refusing(errno.ENOTCONN, errno.ECONNABORTED):
                os.listdir(first.path)
            with library.stack.mount(path=first.path) as second:
                reads(library, second.path)
        finally:
            with suppress(OSError):  # close tells what has become of the file
                os.close(handle)
        assert not first.is_mounted()


def test_the_remains_of_kill_9_can_be_unmounted(library: Library) -> None:
    with library.stack.mount() as opened:
        opened.kill9()
        assert opened.is_mounted()
        library.stack.run("umount", opened.path)
        assert not opened.is_mounted()


# -- in --------------------------------------------------------------------------------------------


def test_a_second_mount_on_the_same_point_is_refused(library: Library) -> None:
    with library.stack.mount() as opened:
        assert "mounted there already" in library.stack.refused("mount", opened.path)
        reads(library, opened.path)


def test_only_a_directory_can_be_mounted_on(library: Library, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    targets = [tmp_path / name for name in ("missing", "file", "file/below")]
    for target, done in zip(
        targets, library.stack.run_each(["mount", target] for target in targets), strict=True
    ):
        assert str(target) in refusal(done)


def test_a_mount_point_reached_through_a_link_is_found_again(library: Library, tmp_path: Path) -> None:
    real = library.stack.new_mountpoint()
    link = tmp_path / "a link"
    link.symlink_to(real)
    with library.stack.mount(path=real):
        shown, unmounted = library.stack.run_each([["stats", link, "--json"], ["umount", link]])
        assert json.loads(shown.stdout)["mountpoint"] == str(real)
        assert unmounted.returncode == 0, unmounted.stderr


def test_an_unknown_dataset_is_reported(library: Library) -> None:
    point = library.stack.new_mountpoint()
    assert "no dataset 'nonesuch'" in library.stack.refused("mount", point, "--dataset", "nonesuch")
    assert not mounted(point)


def test_wrong_usage_is_reported_before_anything_happens(library: Library) -> None:
    point = library.stack.new_mountpoint()
    wrong = (["--umask", "9"], 1), (["--nonsense"], 2), (["--uid", "me"], 2), (["and", "more"], 2)
    commands: list[list[str | Path]] = [["mount", point, *words] for words, _ in wrong]
    for done, (_, code) in zip(library.stack.run_each(commands), wrong, strict=True):
        refusal(done, code)
    assert "MOUNTPOINT" in library.stack.refused("mount", code=2)
    assert not mounted(point)


# -- as a daemon -----------------------------------------------------------------------------------


@contextmanager
def daemon(stack: Stack, *words: str) -> Iterator[Path]:
    """Mount with --daemon for the block; however it ends, nothing is left."""
    point = stack.new_mountpoint()
    stack.run("mount", "--daemon", point, *words)
    assert mounted(point)
    pid = int(json.loads(os.getxattr(point, "user.datas3t.stats"))["pid"])
    try:
        yield point
    finally:
        if lives(pid):
            os.kill(pid, signal.SIGTERM)
        try:
            until(lambda: not lives(pid), what="the daemon ending")
        finally:
            unmount_lazily(point)


def test_daemon_returns_when_the_mount_is_ready(library: Library) -> None:
    with daemon(library.stack) as point:
        reads(library, point)
        pid = library.stack.json("stats", point)["pid"]
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"
        library.stack.run("umount", point)
        assert not lives(pid)
        assert not mounted(point)


def test_a_daemon_logs_to_its_file(library: Library, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "mount.log"
    with daemon(library.stack, "--log-file", str(log)):
        assert ": mounted" in log.read_text()
    assert ": unmounted" in log.read_text()
    assert log.parent.stat().st_mode & 0o077 == 0


def test_a_daemon_that_cannot_start_says_why_and_exits_with_1(library: Library) -> None:
    point = library.stack.new_mountpoint()
    message = library.stack.refused("mount", "--daemon", point, "--dataset", "nonesuch")
    assert "no dataset 'nonesuch'" in message
    assert not mounted(point)


def test_a_mount_without_postgres_says_so(library: Library) -> None:
    stack = library.stack
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"postgresql://u:hidden-word@127.0.0.1:{unused.getsockname()[1]}/d"
        begun = time.monotonic()
        command = "mount", "--io-timeout", "2", stack.new_mountpoint()
        done = stack.run(*command, env={"DATAS3TFS_DB_URL": nowhere}, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "hidden-word" not in done.stderr
    assert time.monotonic() - begun < 10


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(library: Library, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(15)
        with library.stack.mount(env={"NOTIFY_SOCKET": address}) as opened:
            assert listener.recv(100) == b"READY=1"
            reads(library, opened.path)
            assert opened.terminate() == 0
            assert listener.recv(100) == b"STOPPING=1"


# -- stats -----------------------------------------------------------------------------------------


def test_stats_show_what_the_mount_has_done(library: Library) -> None:
    with library.stack.mount() as opened:
        reads(library, opened.path)
        as_json, plain = library.stack.run_each([["stats", opened.path, "--json"], ["stats", opened.path]])
        shown = json.loads(as_json.stdout)
        assert shown["pid"] == opened.pid
        assert shown["counters"]["fuse.read"] == 1
        assert any(line.split()[:2] == ["fuse.read", "1"] for line in plain.stdout.splitlines())

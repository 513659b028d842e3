"""What is announced is fetched ahead, in few requests, on mounts of both kinds; whoever announces what."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import SMALL, Library
from tests.harness.archives import key_name
from tests.harness.mounts import Mount, refusing, unmount_lazily, until

KINDS = pytest.mark.parametrize("write", [False, True], ids=["read-only", "read-write"])


@pytest.fixture(scope="module", params=[False, True], ids=["read-only", "read-write"])
def mount(library: Library, request: pytest.FixtureRequest) -> Iterator[Mount]:
    with library.stack.mount(write=request.param) as opened:
        yield opened


def shuffled(library: Library, seed: int = 1) -> list[str]:
    names = sorted(library.content("small"))
    return random.Random(seed).sample(names, len(names))


def way_in(opened: Mount, dataset: str = "small") -> Path:
    return opened.path / dataset / ".datas3tfs" / "prefetch"


def announce(path: Path, text: str) -> None:
    """Write as a shell does."""
    subprocess.run(["sh", "-c", 'cat > "$0"', path], input=text, text=True, timeout=30, check=True)


def taken(opened: Mount, count: int) -> None:
    until(lambda: opened.counters().get("announce.streams") >= count, what="taking it", every=0.001)


def accepted(opened: Mount, count: int) -> None:
    until(lambda: opened.counters().get("announce.datapoints") >= count, what="the announcement")


@KINDS
def test_an_announced_order_costs_a_handful_of_requests(library: Library, write: bool) -> None:
    content, names = library.content("small"), shuffled(library)
    with library.stack.mount(cold=True, write=write) as opened:
        announce(way_in(opened), "\n".join(names))
        accepted(opened, SMALL)
        until(lambda: opened.counters().get("prefetch.bytes") > 0, what="the fetch")
        for name in names:
            assert (opened.path / "small" / name).read_bytes() == content[name]
        counters = opened.counters()
        assert counters.get("s3.get") <= 4, "its index among them"
        assert counters.get("read.miss") == 0
        assert counters.get("s3.get_bytes") <= 1.2 * SMALL * 4608


@KINDS
def test_the_command_announces_names_and_keys(library: Library, tmp_path: Path, write: bool) -> None:
    names = shuffled(library)
    (tmp_path / "order").write_text("".join(f"{name}\n" for name in names[:600]))
    (tmp_path / "keys").write_text("".join(f"{int(name[:20])}\n" for name in names[600:]) + "1000\n2000")
    with library.stack.mount(cold=True, write=write) as opened:
        found = library.stack.json("prefetch", opened.path / "small", tmp_path / "order")
        assert found == {"accepted": 600, "unknown": 0, "dropped": 0}
        found = library.stack.json("prefetch", opened.path / "small", tmp_path / "keys")
        assert found == {"accepted": 400, "unknown": 2, "dropped": 0}
        for name in names:
            assert (opened.path / "small" / name).read_bytes() == library.content("small")[name]
        assert opened.counters().get("s3.get") <= 12
        assert opened.counters().get("read.miss") == 0


def test_the_command_reads_its_input_if_there_is_no_file(library: Library, mount: Mount) -> None:
    command = [sys.executable, "-m", "datas3tfs", "prefetch", str(mount.path / "small")]
    environ = library.stack.environ
    done = subprocess.run(command, input="3\n4\n", env=environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["accepted", "2", "unknown", "0", "dropped", "0"]


def test_the_command_says_what_is_wrong(library: Library, mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "order").write_text("1\nhello\x1b[2J\n2\nx\n")
    refused = library.stack.refused("prefetch", mount.path / "small", tmp_path / "order")
    assert refused.startswith(
        "2 of the lines are neither a name nor a key, the first: hello\\x1b[2J (2 others"
    )
    assert "hello\\x1b[2J" in mount.log
    assert "not a dataset in a mount" in library.stack.refused("prefetch", tmp_path, tmp_path / "order")
    assert "not a dataset in a mount" in library.stack.refused("prefetch", mount.path, tmp_path / "order")
    assert "No such file" in library.stack.refused("prefetch", mount.path / "small", tmp_path / "none")
    (tmp_path / ".datas3tfs").mkdir()
    (tmp_path / ".datas3tfs" / "prefetch").symlink_to(tmp_path / "order")
    assert "not a dataset in a mount" in library.stack.refused("prefetch", tmp_path, tmp_path / "order")
    assert (tmp_path / "order").read_text().startswith("1\n"), "nothing was written to it"


def test_echo_of_a_single_name_is_enough(library: Library, mount: Mount) -> None:
    name = shuffled(library)[0]
    before = mount.counters()
    for mode in (">", ">>"):
        subprocess.run(["sh", "-c", f'echo "$1" {mode} "$0"', way_in(mount), name], timeout=30, check=True)
    accepted(mount, before.get("announce.datapoints") + 2)


def test_a_program_keeps_it_open_and_announces_bit_by_bit(library: Library) -> None:
    content, names = library.content("small"), shuffled(library, 2)
    with library.stack.mount(cold=True) as opened:
        with way_in(opened).open("w") as file:
            for at in range(0, SMALL, 50):
                text = "".join(f"{name}\n" for name in names[at : at + 50])
                for piece in (text[:333], text[333:]):  # a line is cut in two
                    file.write(piece)
                    file.flush()
                accepted(opened, at + 50)
                until(lambda: opened.counters().get("prefetch.bytes") > 0, what="the fetch")
                for name in names[at : at + 50]:
                    assert (opened.path / "small" / name).read_bytes() == content[name]
        assert opened.counters().get("announce.unknown") == 0


def test_workers_announce_their_shares_at_once(library: Library) -> None:
    content, names = library.content("small"), shuffled(library, 3)
    shares = [names[n::4] for n in range(4)]
    script = "import sys\nfor name in sys.stdin.read().split(): open(sys.argv[1] + '/' + name, 'rb').read()"
    with library.stack.mount(cold=True) as opened:
        write = ["sh", "-c", 'cat > "$0"', str(way_in(opened))]
        writers = [subprocess.Popen(write, stdin=subprocess.PIPE) for _ in shares]
        for share, writer in zip(shares, writers, strict=True):
            writer.communicate("\n".join(share).encode(), timeout=30)
        accepted(opened, SMALL)
        until(lambda: opened.counters().get("prefetch.bytes") >= 0.9 * SMALL * 4608, what="the fetch")
        folder = str(opened.path / "small")
        readers = [
            subprocess.Popen([sys.executable, "-c", script, folder], stdin=subprocess.PIPE) for _ in shares
        ]
        for share, reader in zip(shares, readers, strict=True):
            reader.communicate("\n".join(share).encode(), timeout=60)
        counters = opened.counters()
        assert counters.get("read.miss") == 0
        assert counters.get("s3.get") <= 100
        assert counters.get("s3.get_bytes") <= 1.2 * SMALL * 4608
        for name in names[::50]:
            assert (Path(folder) / name).read_bytes() == content[name]


# -- what it looks like ----------------------------------------------------------------------------


def test_the_way_in_is_hidden_and_a_link(mount: Mount) -> None:
    folder = mount.path / "small"
    assert ".datas3tfs" not in os.listdir(folder)
    assert len(os.listdir(folder)) == SMALL
    assert os.listdir(folder / ".datas3tfs") == ["prefetch"]
    assert stat.S_ISDIR(os.lstat(folder / ".datas3tfs").st_mode)
    assert stat.S_ISLNK(os.lstat(folder / ".datas3tfs" / "prefetch").st_mode)
    assert os.readlink(way_in(mount)) != os.readlink(way_in(mount)), "a stream of its own each time"
    for path in (mount.path / ".datas3tfs", folder / ".datas3tfs" / "other"):
        with refusing(errno.ENOENT):
            os.lstat(path)


def test_a_single_dataset_at_the_root_has_it_at_the_root(library: Library) -> None:
    names = shuffled(library)[:20]
    with library.stack.mount(dataset="small") as opened:
        announce(opened.path / ".datas3tfs" / "prefetch", "\n".join(names))
        accepted(opened, 20)
        assert library.stack.run("prefetch", opened.path, "/dev/null").stdout.split()[1] == "0"
        assert len(os.listdir(opened.path)) == SMALL


def test_nothing_there_can_be_changed(mount: Mount) -> None:
    folder = mount.path / "small"
    with refusing(errno.EROFS, errno.EPERM):
        os.unlink(way_in(mount))
    with refusing(errno.EROFS, errno.EPERM):
        os.rename(way_in(mount), folder / key_name(5000))
    with refusing(errno.EROFS, errno.EPERM):
        os.rename(folder / ".datas3tfs", folder / ".other")
    with refusing(errno.EROFS, errno.EPERM):
        os.close(os.open(folder / ".datas3tfs" / "new", os.O_CREAT | os.O_WRONLY))
    with refusing(errno.EROFS, errno.EEXIST, errno.EISDIR):
        os.close(os.open(folder / ".datas3tfs", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with refusing(errno.EROFS, errno.EEXIST):
        os.mkdir(folder / ".datas3tfs")
    with refusing(errno.EROFS, errno.EPERM, errno.ENOTEMPTY, errno.ENOENT):
        os.rmdir(folder / ".datas3tfs")


# -- whoever writes it -----------------------------------------------------------------------------


def pipes(opened: Mount) -> int:
    """Return how many named pipes the daemon has open."""
    found = 0
    for entry in os.scandir(f"/proc/{opened.pid}/fd"):
        with suppress(FileNotFoundError):
            found += "/datas3tfs/mount-" in os.readlink(entry) and stat.S_ISFIFO(os.stat(entry).st_mode)
    return found


def test_nonsense_costs_nothing_but_a_line_in_the_log(library: Library) -> None:
    with library.stack.mount(cold=True) as opened:
        begun = opened.rss()
        noise = random.Random(1).randbytes(1 << 20)
        for data in (
            noise,
            b"1" * (4 << 20),
            b"\n" * (1 << 20),
            b"\0" * 1000,
            b"",
            b"-1\n" + b"9" * 20,
        ):
            with way_in(opened).open("wb", buffering=0) as file:
                file.write(data)
        until(lambda: opened.counters().get("announce.streams") >= 4, what="reading")
        for name in shuffled(library)[:5]:
            assert (opened.path / "small" / name).read_bytes() == library.content("small")[name]
        assert opened.rss() < begun + (40 << 20)
        assert len(opened.log.splitlines()) < 12


def test_pipes_and_announcements_are_limited(library: Library) -> None:
    with library.stack.mount() as opened:
        for _ in range(500):
            os.readlink(way_in(opened))
        until(lambda: pipes(opened) == 64, what="giving up the oldest")
        held = []
        with refusing(errno.EAGAIN):
            for _ in range(500):
                held.append(os.open(way_in(opened), os.O_WRONLY))
                os.write(held[-1], b"1\n")
                taken(opened, len(held))
        assert len(held) == 64
        for descriptor in held:
            os.close(descriptor)
        until(lambda: not pipes(opened), what="closing them")
        announce(way_in(opened), "1\n2\n3\n")


def test_a_million_keys_take_eight_bytes_each(library: Library, tmp_path: Path) -> None:
    (tmp_path / "order").write_text("".join(f"{n % SMALL}\n" for n in range(1_000_000)))
    with library.stack.mount() as opened:
        os.listdir(opened.path / "small")
        begun = opened.rss()
        found = library.stack.json("prefetch", opened.path / "small", tmp_path / "order")
        assert found["accepted"] == 1_000_000
        assert opened.rss() < begun + (8 << 20) + (40 << 20), "and what was fetched"


def test_a_writer_is_no_hindrance_to_unmounting_and_is_told(library: Library, tmp_path: Path) -> None:
    with library.stack.mount(env={"DATAS3TFS_RUNTIME_DIR": str(tmp_path / "run")}) as opened:
        file = way_in(opened).open("w", buffering=1)
        file.write("1\n")
        accepted(opened, 1)
        assert len(os.listdir(tmp_path / "run")) == 1
        library.stack.run("umount", opened.path)
        assert opened.process.wait(10) == 0
        with refusing(errno.EPIPE):
            file.write("2\n")
        with pytest.raises(BrokenPipeError):
            file.close()
    assert os.listdir(tmp_path / "run") == []


def test_what_a_dead_mount_has_left_is_removed_by_the_next(library: Library, tmp_path: Path) -> None:
    env, path = {"DATAS3TFS_RUNTIME_DIR": str(tmp_path / "run")}, library.stack.new_mountpoint()
    with library.stack.mount(env=env) as alive:
        os.readlink(way_in(alive))
        with library.stack.mount(env=env, path=path) as opened:
            os.readlink(way_in(opened))
            opened.kill9()
            assert len(os.listdir(tmp_path / "run")) == 2
            subprocess.run(["umount", "-l", path], check=False, timeout=10)
        with library.stack.mount(env=env, path=path):
            assert len(os.listdir(tmp_path / "run")) == 2
        announce(way_in(alive), "1\n2\n")
        accepted(alive, 2)


def test_a_writer_that_is_killed_leaves_what_it_has_said(library: Library) -> None:
    with library.stack.mount() as opened:
        script = "import sys, time; f = open(sys.argv[1], 'wb', 0); f.write(b'1\\n2\\n3'); time.sleep(60)"
        writer = subprocess.Popen([sys.executable, "-c", script, str(way_in(opened))])
        accepted(opened, 2)
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        accepted(opened, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_only_whom_the_files_belong_to_can_announce(library: Library) -> None:
    home = Path(tempfile.mkdtemp(prefix="datas3tfs-"))  # not below pytest's, which others may not enter
    try:
        home.chmod(0o755)
        (home / "mnt").mkdir()
        options = ("--allow-other", "--uid", "65534", "--gid", "65534")
        env = {"DATAS3TFS_RUNTIME_DIR": str(home / "run")}
        with library.stack.mount(*options, path=home / "mnt", env=env) as opened:
            assert as_user(65534, way_in(opened)) == 0
            accepted(opened, 1)
            assert as_user(65533, way_in(opened)) != 0
            announce(way_in(opened), "2\n")
            accepted(opened, 2)
    finally:
        unmount_lazily(home / "mnt")
        shutil.rmtree(home)


def as_user(user: int, path: Path) -> int:
    switch = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return subprocess.run(
        [*switch, "sh", "-c", 'echo 1 > "$0"', str(path)], timeout=30, check=False
    ).returncode

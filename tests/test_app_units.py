"""The parts of the app that need neither a mount nor a stack: mount points, the daemon, what is ingested."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datas3tfs.app import mountpoint
from datas3tfs.app.daemon import Readiness
from datas3tfs.app.ingest import Source, batches, find_sources
from datas3tfs.app.mount import MountOptions, _fuse_options
from datas3tfs.app.mountpoint import mounted_at, prepare, real_path, require_ours, unmount
from datas3tfs.client import sources as client_sources
from datas3tfs.client.sources import READ_SIZE, file_chunks
from datas3tfs.core.layout import plan_layout
from datas3tfs.core.names import parse_datapoint_name
from datas3tfs.engine.threads import in_thread
from datas3tfs.errors import Conflict, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.fs.attributes import Ownership

OURS = "fuse.datas3tfs"

# -- options -------------------------------------------------------------------------------------------


def test_the_kernel_looks_at_modes_wherever_that_could_change_anything() -> None:
    own = os.getuid()

    def looks(*, uid: int = own, umask: int = 0o022, allow_other: bool = False, write: bool = True) -> bool:
        journal = Path("/journal") if write else None
        options = MountOptions(Path("/m"), None, Ownership(uid, 0, umask), allow_other, journal, None)
        return "default_permissions" in _fuse_options(options)

    assert not looks()
    assert not looks(umask=0o077)
    assert looks(umask=0o222)
    assert looks(uid=own + 1)
    assert looks(allow_other=True)
    assert looks(write=False)


# -- mount points --------------------------------------------------------------------------------------

Mount = Callable[[Path | str, str], None]


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mount:
    """Pretend that a file system of some type is mounted somewhere."""
    table = tmp_path / "mountinfo"
    table.write_bytes(b"")
    monkeypatch.setattr(mountpoint, "_MOUNTINFO", table)

    def pretend(path: Path | str, file_system: str) -> None:
        line = f"36 35 0:45 / {escaped(str(path))} rw,nosuid,nodev - {file_system} datas3tfs ro,user_id=0\n"
        table.write_bytes(table.read_bytes() + os.fsencode(line))

    return pretend


def escaped(path: str) -> str:
    """Write a path as the kernel does in mountinfo: show_mountinfo() in its fs/proc_namespace.c."""
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in path)


@pytest.mark.parametrize(
    "path",
    [
        "/plain",
        "/with space",
        "/tab\there",
        "/new\nline",
        "/back\\slash",
        "/looks like\\040a space",
        "/\\134",
        "/\\\\040",
        "/a - b",
        "/#hash",
        "/größe",
        "/not-utf8-\udcff",
        "/return\rhere",
        "/form\x0cfeed",
        "/\x1c\x1d\x1e\x85\u2028\u2029",
    ],
)
def test_a_mount_is_found_whatever_its_name(mount: Mount, path: str) -> None:
    mount("/", "ext4")
    mount(path, "tmpfs")
    mount("/other", OURS)
    found = mounted_at(Path(path))
    assert found is not None
    assert (found.path, found.file_system) == (path, "tmpfs")
    other = mounted_at(Path("/other"))
    assert other is not None, "one odd name does not hide the others"
    assert other.file_system == OURS
    assert mounted_at(Path(path + "x")) is None
    assert mounted_at(Path(path) / "below") is None


def test_the_topmost_of_several_mounts_counts(mount: Mount) -> None:
    mount("/mnt", "ext4")
    mount("/mnt", OURS)
    mount("/mnt/below", "tmpfs")
    found = mounted_at(Path("/mnt"))
    assert found is not None
    assert found.file_system == OURS


@pytest.mark.parametrize("optional", ["", "shared:1 ", "shared:1 master:2 propagate_from:3 unbindable "])
def test_lines_have_any_number_of_optional_fields(mount: Mount, tmp_path: Path, optional: str) -> None:
    (tmp_path / "mountinfo").write_text(
        f"36 35 98:0 /mnt1 /mnt2 rw,noatime {optional}- {OURS} /dev/root rw\n"
    )
    found = mounted_at(Path("/mnt2"))
    assert found is not None
    assert found.file_system == OURS
    assert mounted_at(Path("/mnt1")) is None


def test_where_nothing_at_all_is_mounted_nothing_is_found(mount: Mount) -> None:
    assert mounted_at(Path("/")) is None  # as in a chroot


def test_the_kernels_own_table_can_be_read() -> None:
    assert mounted_at(Path("/proc")) is not None
    assert mounted_at(Path("/proc/self/nowhere")) is None


def test_a_directory_is_prepared_and_resolved(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    (tmp_path / "link").symlink_to("mnt")
    (tmp_path / "links").symlink_to(tmp_path / "link")
    (tmp_path / "parent").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for way in ("mnt", "./mnt/", "mnt/../mnt", "link", "links", "parent/link", "parent/parent/mnt"):
        assert prepare(Path(way)) == target
        assert real_path(tmp_path / way) == target
    mount(target, "tmpfs")  # somebody else's: mounting over it is no mistake we could judge
    assert prepare(target) == target


def test_what_cannot_be_mounted_on_is_named(mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    reasons = {
        "none": "no such directory",
        "none/below": "no such directory",
        "file": "not a directory",
        "file/below": "no such directory",
        "dangling": "no such directory",
        "loop": "no such directory",
        "one": "no such directory",
        "x" * 300: "File name too long",
    }
    for name, reason in reasons.items():
        with pytest.raises(Invalid) as caught:
            prepare(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {reason}"


def test_a_mount_of_ours_that_lives_is_not_mounted_over(mount: Mount, tmp_path: Path) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    mount(target, OURS)
    for way in (target, tmp_path / "link"):
        with pytest.raises(Conflict, match="mounted there already") as caught:
            prepare(way)
        assert str(way) in str(caught.value)


def test_only_a_mount_of_ours_is_required_ours(mount: Mount, tmp_path: Path) -> None:
    ours, other, none = tmp_path / "ours", tmp_path / "other", tmp_path / "none"
    for directory in (ours, other, none):
        directory.mkdir()
    (tmp_path / "link").symlink_to(ours)
    mount(ours, OURS)
    mount(other, "fuse.sshfs")
    for way in (ours, tmp_path / "link", tmp_path / "none" / ".." / "ours"):
        assert require_ours(way) == ours
    for way in (other, none, tmp_path / "absent", ours / "below"):
        with pytest.raises(NotFound, match="no datas3tfs") as caught:
            require_ours(way)
        assert str(way) in str(caught.value)


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path: Path) -> None:
    for lazy in (False, True):
        with pytest.raises(Unavailable, match=str(tmp_path)):
            unmount(tmp_path, lazy=lazy)


# -- the daemon ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_in_datagrams(tmp_path: Path, abstract: bool) -> None:
    name = f"datas3tfs-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(20)
        systemd.bind("\0" + name if abstract else str(tmp_path / "notify"))
        readiness = Readiness(None, "@" + name if abstract else str(tmp_path / "notify"))
        readiness.ready()
        assert systemd.recv(100) == b"READY=1"
        readiness.stopping()
        assert systemd.recv(100) == b"STOPPING=1"
        systemd.setblocking(False)
        readiness.failed("not systemd's business")
        with pytest.raises(BlockingIOError):
            systemd.recv(100)


@pytest.mark.parametrize(
    "address", [None, "", "/nowhere/at/all", "@nobody-listens", "/" + "x" * 200, "relative"]
)
def test_it_does_not_matter_if_nobody_listens(address: str | None) -> None:
    readiness = Readiness(None, address)
    readiness.ready()
    readiness.stopping()


def test_the_parent_is_told_once_and_the_pipe_is_closed() -> None:
    reading, writing = os.pipe()
    readiness = Readiness(writing, None)
    readiness.ready()
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "ready\n", "the end of file shows that it is closed"


def test_after_the_parent_was_told_the_descriptor_is_somebody_elses(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    readiness = Readiness(writing, None)
    readiness.ready()
    os.close(reading)
    taken = [os.open(tmp_path / f"{number}", os.O_CREAT | os.O_WRONLY) for number in range(5)]
    assert writing in taken, "the number is used again"
    readiness.failed("an error long after")
    readiness.ready()
    for descriptor in taken:
        os.close(descriptor)  # none has been closed behind our back
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b""] * 5


def test_a_parent_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    Readiness(writing, None).ready()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writing)


DAEMON = """
import os, signal, sys
from datas3tfs.app.daemon import daemonize
from datas3tfs.errors import Conflict, Unavailable

what, witness = sys.argv[1], int(sys.argv[2])

def work(readiness):
    print("nobody sees this")
    print("nor this", file=sys.stderr)
    if what == "refuses":
        raise Conflict("it is\\n  taken")
    if what == "breaks":
        raise KeyboardInterrupt
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    readiness.ready()
    answer = [os.getcwd(), os.getsid(0) != os.getpid(), os.getsid(0) != int(sys.argv[3]), os.getppid() != 0]
    os.write(witness, repr(answer).encode())
    raise Unavailable("too late for the parent")

try:
    daemonize(work, None)
except Unavailable as exc:
    print(f"failed: {exc}")
else:
    print("came up")
"""


def run_daemon(what: str, tmp_path: Path) -> tuple[str, bytes]:
    """Return what the parent says, and what the daemon says through a pipe, which ends with it."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        parent = subprocess.run(
            [sys.executable, "-c", DAEMON, what, str(writing), str(os.getsid(0))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            timeout=60,
            pass_fds=[writing],
            check=True,
        )
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return parent.stdout, pipe.read()


def test_the_parent_of_a_daemon_returns_when_it_is_ready(tmp_path: Path) -> None:
    said, witnessed = run_daemon("works", tmp_path)
    assert said == "came up\n"
    assert witnessed == b"['/', True, True, True]", "left its directory and session, and leads none"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("refuses", "it is taken"),
        ("breaks", "KeyboardInterrupt"),
        ("dies", "the daemon has died before the mount was ready"),
    ],
)
def test_the_parent_of_a_daemon_says_why_it_failed(what: str, message: str, tmp_path: Path) -> None:
    assert run_daemon(what, tmp_path) == (f"failed: {message}\n", b"")


# -- what is ingested -----------------------------------------------------------------------------------


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def found(root: Path, *paths: Path) -> list[str]:
    return [str(source.path.relative_to(root)) for source in find_sources(paths)]


def test_sources_come_in_the_order_given_and_directories_sorted(tmp_path: Path) -> None:
    tree(tmp_path, "d/b", "d/a/z", "d/a/y", "d/a.x", "d/B", "d/10", "d/9", "d/ä", "d/.hidden", "x", "c")
    (tmp_path / "d" / "empty").mkdir()
    inside = ["d/.hidden", "d/10", "d/9", "d/B", "d/a/y", "d/a/z", "d/a.x", "d/b", "d/ä"]
    assert found(tmp_path, tmp_path / "d") == inside
    assert found(tmp_path, tmp_path / "x", tmp_path / "d", tmp_path / "c") == ["x", *inside, "c"]
    assert found(tmp_path, tmp_path / "x", tmp_path / "x") == ["x", "x"], "as often as it is named"
    assert found(tmp_path) == []


def test_names_of_any_bytes_are_found(tmp_path: Path) -> None:
    names = [b"\xff.jpg", b"new\nline.txt", b" ", "größe.txt".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "d") + b"/" + name)).parent.mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(tmp_path / "d") + b"/" + name)).write_bytes(b"")
    sources = find_sources([tmp_path / "d"])
    assert {os.fsencode(source.path.name) for source in sources} == set(names)
    assert {source.extension for source in sources} == {"jpg", "txt", "bin"}


def test_a_source_says_how_large_and_how_old_it_is(tmp_path: Path) -> None:
    tree(tmp_path, "some.jpg")
    os.utime(tmp_path / "some.jpg", ns=(5, 1_600_000_000_123_456_789))
    (source,) = find_sources([tmp_path])
    assert source == Source(tmp_path / "some.jpg", 8, 1_600_000_000_123_456_789)


def test_links_to_files_are_followed_and_links_to_directories_only_if_named(tmp_path: Path) -> None:
    tree(tmp_path, "real/file.txt", "d/own")
    d = tmp_path / "d"
    (d / "to-file").symlink_to(tmp_path / "real" / "file.txt")
    (d / "to-link").symlink_to("to-file")
    (d / "to-directory").symlink_to(tmp_path / "real")
    (d / "to-itself").symlink_to(d)
    (d / "dangling").symlink_to("nowhere")
    (d / "loop").symlink_to("loop")
    assert found(tmp_path, d) == ["d/own", "d/to-file", "d/to-link"]
    assert found(tmp_path, d / "to-directory") == ["d/to-directory/file.txt"]
    (linked,) = find_sources([d / "to-file"])
    assert linked.size == len("real/file.txt"), "of the file, not of the link"


@pytest.fixture
def specials(tmp_path: Path) -> Iterator[Path]:
    """A directory with a pipe and a socket in it."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        yield tmp_path


def test_what_is_no_file_is_skipped_inside_and_refused_if_named(specials: Path) -> None:
    tree(specials, "file")
    assert found(specials, specials) == ["file"]
    (specials / "link").symlink_to("pipe")
    assert found(specials, specials) == ["file"]
    for name in ("pipe", "socket", "link"):
        with pytest.raises(Invalid, match=f"{name}: neither a file nor a directory"):
            find_sources([specials / name])
    with pytest.raises(Invalid, match="/dev/null"):
        find_sources([Path("/dev/null")])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    tree(tmp_path, "file")
    for name in ("none", "dangling", "file/below", "x" * 300):
        with pytest.raises(Invalid) as caught:
            find_sources([tmp_path / "file", tmp_path / name])
        assert str(tmp_path / name) in str(caught.value)


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "d/locked/file")
    real = os.listdir

    def listdir(path: Path) -> list[str]:  # root may list anything, so a mode would not do
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(Invalid, match="d/locked: Permission denied"):
        find_sources([tmp_path])


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("a.jpg", "jpg"),
        ("a.JPG", "JPG"),
        ("a.b.jpg", "jpg"),
        ("a.tar.gz", "tar.gz"),
        ("a.b.json.zst", "json.zst"),
        ("a.tar.GZ", "tar.GZ"),
        ("a.gz", "gz"),
        ("a.gz.jpg", "jpg"),
        ("a.größe", "größe"),
        ("a.v1 final", "v1 final"),
        ("a..b", "b"),
        ("README", "bin"),
        (".bashrc", "bin"),
        (".config.toml", "toml"),
        ("..x.y", "y"),
        ("a.", "bin"),
        ("a..", "bin"),
        ("...", "bin"),
        ("a..gz", "bin"),
        ("a.new\nline", "bin"),
        ("a.\x1b[2J", "bin"),
        ("a.\u202egpj", "bin"),
        ("a.\udcff", "bin"),
        ("a." + "x" * 234, "x" * 234),
        ("a." + "x" * 235, "bin"),
        ("a." + "ß" * 117, "ß" * 117),
        ("a." + "ß" * 118, "bin"),
    ],
)
def test_extensions(name: str, extension: str) -> None:
    source = Source(Path("/somewhere.else") / name, 0, 0)
    assert source.extension == extension
    assert parse_datapoint_name(f"{7:020d}.{extension}").extension == extension


@pytest.mark.parametrize("mtime", [-(2**62), -1, 0, 2**62, 2**63 - 1])
def test_impossible_times_are_cut_to_what_a_tar_can_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mtime: int
) -> None:
    tree(tmp_path, "file")
    status = os.stat(tmp_path / "file")

    class Status:
        st_mode, st_size, st_mtime_ns = status.st_mode, status.st_size, mtime

    monkeypatch.setattr(Path, "stat", lambda _: Status())  # hardly a file system stores them
    (source,) = find_sources([tmp_path / "file"])
    ((planned,),) = batches([source], 0, 1 << 20)
    assert planned.header
    assert abs(source.mtime_ns) <= abs(mtime)


def sources(*sizes: int) -> list[Source]:
    return [Source(Path(f"/{number}.jpg"), size, 0) for number, size in enumerate(sizes)]


def cut(files: list[Source], limit: int, first: int = 0) -> list[list[int]]:
    """Return the keys of each batch."""
    return [[planned.key for planned in batch] for batch in batches(files, first, limit)]


def test_batches_are_cut_by_bytes_in_the_tar() -> None:
    files = sources(512, 512, 1, 0, 512, 10_000, 1)  # 1024, 1024, 1024, 512, 1024, 10752, 1024 in the TAR
    assert cut(files, 2048) == [[0, 1], [2, 3], [4], [5], [6]], "what is larger is alone"
    assert cut(files, 1) == [[key] for key in range(7)]
    assert cut(files, 1 << 30) == [list(range(7))]
    assert cut([], 2048) == []


def test_batches_are_numbered_through_from_the_first_key_on() -> None:
    batched = list(batches(sources(1, 1, 1, 1, 1), 2**63 - 5, 2048))
    assert [planned.key for batch in batched for planned in batch] == list(range(2**63 - 5, 2**63))
    for batch in batched:
        assert plan_layout(batch).keys.start == batch[0].key
    assert {planned.extension for batch in batched for planned in batch} == {"jpg"}


def test_batches_are_cut_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_sources, "DATAPOINTS_LIMIT", 3)
    assert cut(sources(*[0] * 7), 1 << 30, 10) == [[10, 11, 12], [13, 14, 15], [16]]


def test_batches_are_made_as_they_are_asked_for() -> None:
    asked: list[int] = []

    def endless() -> Iterator[Source]:
        for source in sources(*[1] * 100):
            asked.append(1)
            yield source

    assert len(next(batches(endless(), 0, 4096))) == 4
    assert len(asked) == 5


# -- files, read in threads ------------------------------------------------------------------------------


async def test_files_are_read_in_pieces_that_are_counted(tmp_path: Path) -> None:
    body = os.urandom(1000) * 9000  # two pieces and a bit
    (tmp_path / "file").write_bytes(body)
    told: list[int] = []
    chunks = [chunk async for chunk in in_thread(file_chunks(tmp_path / "file", size=len(body)), told.append)]
    assert b"".join(chunks) == body
    assert told == [len(chunk) for chunk in chunks] == [READ_SIZE, READ_SIZE, len(body) - 2 * READ_SIZE]


@pytest.mark.parametrize("size", [0, 4, 6, 100])
async def test_a_file_that_has_changed_size_is_invalid(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(Invalid, match="file: has changed size"):
        async for _ in in_thread(file_chunks(tmp_path / "file", size=size)):
            pass


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(Datas3tError, match=str(path)):
            async for _ in in_thread(file_chunks(path)):
                pass

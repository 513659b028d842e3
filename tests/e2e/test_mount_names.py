"""What a mount shows besides bytes: names, modes, times, attributes, figures; and that it is read-only."""

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datas3tfs.core.checksums import crc32c
from tests.e2e.conftest import SECOND_START, SIZES, Library
from tests.harness.archives import key_name
from tests.harness.mounts import Mount, refusing, unmount_lazily

NOBODY = 65534


# -- what is not there -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(key_name(len(SIZES)), id="key behind the last"),
        pytest.param(key_name(SECOND_START - 1, "txt"), id="key in a gap"),
        pytest.param(key_name(2**62), id="key far away"),
        pytest.param(key_name(2**63), id="key that cannot be"),
        pytest.param(key_name(2, "txt"), id="another extension"),
        pytest.param(key_name(2, "BIN"), id="another case"),
        pytest.param(key_name(2, "bi"), id="part of the extension"),
        pytest.param(f"{2:020d}", id="no extension"),
        pytest.param(f"{2:019d}.bin", id="19 digits"),
        pytest.param("README", id="not a name"),
        pytest.param(".git", id="a hidden name"),
        pytest.param("é\udcff\n", id="odd bytes"),
    ],
)
def test_what_is_no_datapoint_is_not_found(mount: Mount, name: str) -> None:
    for path in (mount.path / "sizes" / name, mount.path / "empty" / name, mount.path / name):
        with refusing(errno.ENOENT):
            os.stat(path)
        with refusing(errno.ENOENT):
            os.open(path, os.O_RDONLY)


def test_a_datapoint_of_one_dataset_is_not_in_another(mount: Mount) -> None:
    assert (mount.path / "small" / key_name(500)).exists()
    with refusing(errno.ENOENT):
        os.stat(mount.path / "sizes" / key_name(500))
    with refusing(errno.ENOENT):
        os.stat(mount.path / "no-such-dataset" / key_name(500))


def test_what_is_below_a_file_is_no_directory(mount: Mount) -> None:
    with refusing(errno.ENOTDIR):
        os.stat(mount.path / "sizes" / key_name(2) / "x")
    with refusing(errno.ENOTDIR):
        os.listdir(mount.path / "sizes" / key_name(2))


# -- nothing can be written ------------------------------------------------------------------------

WRITES: dict[str, Callable[[Path], object]] = {
    "create": lambda sizes: os.open(sizes / key_name(50), os.O_CREAT | os.O_WRONLY),
    "create at the root": lambda sizes: os.open(sizes.parent / "new", os.O_CREAT | os.O_WRONLY),
    "open for writing": lambda sizes: os.open(sizes / key_name(2), os.O_WRONLY),
    "open for both": lambda sizes: os.open(sizes / key_name(2), os.O_RDWR),
    "append": lambda sizes: os.open(sizes / key_name(2), os.O_WRONLY | os.O_APPEND),
    "truncate on open": lambda sizes: os.open(sizes / key_name(2), os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda sizes: os.truncate(sizes / key_name(2), 0),
    "unlink": lambda sizes: os.unlink(sizes / key_name(2)),
    "rename": lambda sizes: os.rename(sizes / key_name(2), sizes / key_name(60)),
    "rename onto": lambda sizes: os.rename(sizes / key_name(2), sizes / key_name(3)),
    "rename a dataset": lambda sizes: os.rename(sizes, sizes.parent / "other"),
    "chmod": lambda sizes: os.chmod(sizes / key_name(2), 0o600),
    "chown": lambda sizes: os.chown(sizes / key_name(2), 1, 1),
    "utime": lambda sizes: os.utime(sizes / key_name(2), (0, 0)),
    "mkdir": lambda sizes: os.mkdir(sizes.parent / "new"),
    "mkdir in a dataset": lambda sizes: os.mkdir(sizes / "new"),
    "rmdir": lambda sizes: os.rmdir(sizes.parent / "empty"),
    "symlink": lambda sizes: os.symlink("x", sizes / "link"),
    "link": lambda sizes: os.link(sizes / key_name(2), sizes / key_name(61)),
    "mknod": lambda sizes: os.mknod(sizes / "fifo", stat.S_IFIFO),
    "setxattr": lambda sizes: os.setxattr(sizes / key_name(2), "user.mine", b"x"),
    "removexattr": lambda sizes: os.removexattr(sizes / key_name(2), "user.datas3t.key"),
}


@pytest.mark.parametrize("what", WRITES)
def test_writes_are_refused_as_on_any_read_only_file_system(mount: Mount, what: str) -> None:
    with refusing(errno.EROFS):
        WRITES[what](mount.path / "sizes")


# -- what stat says --------------------------------------------------------------------------------


def test_a_file_has_size_blocks_links_mode_owner_and_time(library: Library, mount: Mount) -> None:
    for name, sample in library.sources["sizes"].items():
        found = os.stat(mount.path / "sizes" / name)
        assert found.st_size == len(sample.content)
        assert found.st_blocks == -(-len(sample.content) // 512)
        assert found.st_nlink == 1
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o444
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
        assert found.st_mtime_ns == sample.mtime_ns // 10**9 * 10**9  # as written: whole seconds
        assert found.st_ctime_ns == found.st_mtime_ns


def test_a_directory_has_links_mode_owner_and_time(library: Library, mount: Mount) -> None:
    root, sizes, empty = (os.stat(mount.path / name) for name in ("", "sizes", "empty"))
    for found in (root, sizes, empty):
        assert stat.S_ISDIR(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o555
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
        assert found.st_mtime > 1_600_000_000
    assert root.st_nlink == 2 + len(library.sources)
    assert sizes.st_nlink == 2


def test_an_empty_dataset_is_an_empty_directory(mount: Mount) -> None:
    assert os.listdir(mount.path / "empty") == []


def test_owner_group_and_umask_are_as_asked_for(library: Library) -> None:
    with library.stack.mount("--uid", "12", "--gid", "34", "--umask", "027") as opened:
        file, folder = os.stat(opened.path / "sizes" / key_name(2)), os.stat(opened.path / "sizes")
        assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (12, 34, 0o440)
        assert (folder.st_uid, folder.st_gid, stat.S_IMODE(folder.st_mode)) == (12, 34, 0o550)


def test_inode_numbers_are_the_same_in_every_mount(library: Library, mount: Mount) -> None:
    def numbers(root: Path) -> dict[str, int]:
        files = {f"{path.parent.name}/{path.name}": path.stat().st_ino for path in root.glob("*/*")}
        listed = {f"{root.name}/{entry.name}": entry.inode() for entry in os.scandir(root / "sizes")}
        assert set(listed.values()) <= set(files.values())
        return files | {path.name: path.stat().st_ino for path in root.iterdir()}

    first = numbers(mount.path)
    assert len(set(first.values())) == len(first)
    with library.stack.mount() as other:
        assert numbers(other.path) == first


def test_a_single_dataset_is_shown_at_the_root(library: Library) -> None:
    with library.stack.mount(dataset="sizes") as opened:
        assert {path.name: path.read_bytes() for path in opened.path.iterdir()} == library.content("sizes")
        assert os.stat(opened.path).st_nlink == 2
        assert os.getxattr(opened.path, "user.datas3t.dataset") == b"sizes"
        with refusing(errno.ENOENT):
            os.stat(opened.path / "small")
        with refusing(errno.ENOENT):
            os.stat(opened.path / "sizes")
        assert os.statvfs(opened.path).f_files == len(library.sources["sizes"])


# -- figures and attributes ------------------------------------------------------------------------


def test_df_shows_the_bytes_and_datapoints_there_are(library: Library, mount: Mount) -> None:
    figures = os.statvfs(mount.path)
    total = sum(found["bytes"] for found in library.stack.json("dataset", "list"))
    assert figures.f_blocks == -(-total // figures.f_frsize)
    assert figures.f_files == sum(len(sources) for sources in library.sources.values())
    assert (figures.f_bfree, figures.f_bavail, figures.f_ffree) == (0, 0, 0)
    assert figures.f_namemax == 255
    assert figures.f_flag & os.ST_RDONLY


def test_extended_attributes_say_where_a_datapoint_lies(library: Library, mount: Mount) -> None:
    for name, sample in library.sources["sizes"].items():
        path = mount.path / "sizes" / name
        values = {key: os.getxattr(path, key).decode() for key in os.listxattr(path)}
        assert sorted(values) == [
            f"user.datas3t.{key}"
            for key in ("crc32c", "datarange", "key", "object", "offset", "size", "state")
        ]
        assert int(values["user.datas3t.key"]) == int(name[:20])
        assert int(values["user.datas3t.size"]) == len(sample.content)
        assert values["user.datas3t.crc32c"] == f"{crc32c(sample.content):08x}"
        assert values["user.datas3t.state"] == "committed"
        body = library.stack.get_object(values["user.datas3t.object"])
        offset = int(values["user.datas3t.offset"])
        assert body[offset : offset + len(sample.content)] == sample.content


def test_a_dataset_tells_its_figures_as_attributes(library: Library, mount: Mount) -> None:
    path = mount.path / "sizes"
    values = {key: os.getxattr(path, key).decode() for key in os.listxattr(path)}
    assert values["user.datas3t.dataset"] == "sizes"
    assert values["user.datas3t.datapoints"] == str(len(library.sources["sizes"]))
    assert values["user.datas3t.dataranges"] == "2"


def test_getfattr_lists_them(mount: Mount) -> None:
    done = subprocess.run(
        ["getfattr", "-d", "--absolute-names", mount.path / "sizes" / key_name(2)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert 'user.datas3t.key="2"' in done.stdout.splitlines()


def test_other_attributes_do_not_exist(mount: Mount) -> None:
    for path in (mount.path, mount.path / "sizes", mount.path / "sizes" / key_name(2)):
        for name in ("user.other", "user.datas3t.other", "security.selinux", "system.posix_acl_access"):
            with refusing(errno.ENODATA, errno.EOPNOTSUPP):
                os.getxattr(path, name)


# -- whom it is shown to ---------------------------------------------------------------------------


def as_nobody(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def public_mountpoint() -> Iterator[Path]:
    # Not below pytest's directory, which others may not enter at all.
    parent = Path(tempfile.mkdtemp(prefix="datas3tfs-"))
    parent.chmod(0o755)
    path = parent / "mnt"
    path.mkdir()
    yield path
    unmount_lazily(path)
    shutil.rmtree(parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_mount_is_private(library: Library, public_mountpoint: Path) -> None:
    with library.stack.mount(path=public_mountpoint):
        assert "Permission denied" in as_nobody("ls", public_mountpoint).stderr
        assert "Permission denied" in as_nobody("cat", public_mountpoint / "sizes" / key_name(2)).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_allow_other_lets_others_in_as_far_as_modes_go(library: Library, public_mountpoint: Path) -> None:
    with library.stack.mount("--allow-other", "--umask", "007", path=public_mountpoint):
        assert "Permission denied" in as_nobody("ls", public_mountpoint / "sizes").stderr
    with library.stack.mount("--allow-other", path=public_mountpoint):
        assert as_nobody("cmp", public_mountpoint / "sizes" / key_name(2), "/dev/null").returncode == 1
        assert len(as_nobody("ls", public_mountpoint / "sizes").stdout.split()) == len(
            library.sources["sizes"]
        )

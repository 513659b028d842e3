"""What the kernel makes of writing: mappings, descriptors, names that go while files are open, races."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.writing import (
    check,
    contents,
    flush,
    folder,
    python,
    sh,
    shared,
    state,
    witness,
    written,
)
from tests.harness.archives import key_name, noise
from tests.harness.mounts import Mount, Stack, refusing, unmount_lazily, until

__all__ = ["folder", "shared", "witness", "written"]

ONE, TWO = key_name(1), key_name(2)
_CREATE = os.O_RDWR | os.O_CREAT
_LARGE = 300_000  # bytes: has a file of its own in the journal
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def has_left(path: Path) -> bool:
    """Say whether a file is not the journal's any more: its number is a datapoint's."""
    return os.stat(path).st_ino < 1 << 60


def renameat2(old: Path, new: Path, flags: int) -> None:
    """rename(2) with flags, which Python does not have."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# -- mappings --------------------------------------------------------------------------------------

MAP = """
import mmap, os, sys
def mapped(path, size, create=True):
    fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0))
    if create:
        os.ftruncate(fd, size)
    return fd, mmap.mmap(fd, size)
path = sys.argv[1]
"""


@pytest.mark.parametrize("size", [5000, _LARGE])
def test_what_is_written_through_a_mapping_is_there(
    written: Mount, witness: Mount, folder: Path, size: int
) -> None:
    script = (
        MAP
        + f"""
fd, view = mapped(path, {size})
view[0:5] = b"begin"
view[-3:] = b"end"
os.close(fd)                         # the mapping lives on
view[2000:2006] = b"middle"
assert open(path, "rb").read()[2000:2006] == b"middle"
view.close()
fd = os.open(path, os.O_RDWR)
view = mmap.mmap(fd, {size})
os.pwrite(fd, b"both ways", 1000)
assert view[1000:1009] == b"both ways"
view[3000:3004] = b"more"
assert os.pread(fd, 4, 3000) == b"more"
view.close()
os.close(fd)
"""
    )
    python(script, folder / ONE)
    expected = bytearray(size)
    for at, piece in (
        (0, b"begin"),
        (size - 3, b"end"),
        (2000, b"middle"),
        (1000, b"both ways"),
        (3000, b"more"),
    ):
        expected[at : at + len(piece)] = piece
    check(written, witness, folder, {ONE: bytes(expected)})


def test_msync_commits_what_was_written_through_a_mapping(written: Mount, folder: Path) -> None:
    script = (
        MAP
        + """
fd, view = mapped(path, 10000)
view[9000:9003] = b"abc"
view.flush()                         # msync(MS_SYNC)
assert os.getxattr(path, "user.datas3t.state") == b"committed"
assert os.pread(fd, 3, 9000) == b"abc" == view[9000:9003]
"""
    )
    python(script, folder / ONE)
    assert (folder / ONE).read_bytes() == bytes(9000) + b"abc" + bytes(997)


def test_what_is_refused_does_not_stay_in_the_page_cache(written: Mount, folder: Path) -> None:
    """A mapping is changed before anybody is asked."""
    (folder / TWO).write_bytes(b"something else")
    script = (
        MAP
        + """
import time
fd, view = mapped(path, 10000)
view[0:3] = b"abc"
view.flush()
reader = os.open(path, os.O_RDONLY)
view[0:3] = b"BAD"
try:
    view.flush()
except PermissionError:
    pass
else:
    raise AssertionError("not told")
deadline = time.monotonic() + 10
while not os.pread(reader, 3, 0) == open(path, "rb").read(3) == view[0:3] == b"abc":
    assert time.monotonic() < deadline, view[0:3]
    time.sleep(0.01)
"""
    )
    python(script, folder / ONE)
    assert (folder / ONE).read_bytes() == b"abc" + bytes(9997)


def test_a_mapping_of_a_temporary_file_may_be_synced_again_and_again(written: Mount, folder: Path) -> None:
    script = (
        MAP
        + """
fd, view = mapped(path, 10000)
for n in range(5):
    view[n:n + 1] = b"x"
    view.flush()
os.close(fd)
view.close()
os.rename(path, sys.argv[2])
"""
    )
    python(script, folder / ".mapped", folder / ONE)
    assert (folder / ONE).read_bytes() == b"xxxxx" + bytes(9995)


@pytest.mark.parametrize("size", [5000, _LARGE])
def test_a_reader_holds_file_and_mapping_across_the_commit(written: Mount, folder: Path, size: int) -> None:
    content = noise(size)
    (folder / ONE).write_bytes(content)
    script = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
view = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
first = view[:4096]                  # the rest is not in the page cache yet
print("mapped", flush=True)
sys.stdin.readline()
assert os.fstat(fd).st_size == len(view)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
sys.stdout.buffer.write(view[:] + os.pread(fd, len(view) + 1, 0))
"""
    with subprocess.Popen(
        ["python3", "-c", script, str(folder / ONE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"mapped\n"
        flush(written)
        until(partial(has_left, folder / ONE), what="the entry leaving the journal")
        out, _ = reader.communicate(b"\n", timeout=30)
    assert out == content * 2


# -- descriptors -----------------------------------------------------------------------------------


def test_truncating_up_and_down(written: Mount, witness: Mount, folder: Path) -> None:
    expected = {}
    for key, sizes in enumerate([[3, 10], [200_000, 5], [5, 200_000], [140_000, 135_000, 140_000], [0]]):
        path, content = folder / key_name(key), noise(150_000, key)
        descriptor = os.open(path, _CREATE)
        os.write(descriptor, content)
        for size in sizes:
            os.ftruncate(descriptor, size)
            content = content[:size].ljust(size, b"\0")
            assert os.fstat(descriptor).st_size == os.stat(path).st_size == size
            assert os.pread(descriptor, 1 << 20, 0) == content
        os.close(descriptor)
        os.truncate(path, 1000)
        content = content[:1000].ljust(1000, b"\0")
        assert path.read_bytes() == content
        os.truncate(path, 1010)
        expected[key_name(key)] = content + bytes(10)
    check(written, witness, folder, expected)


def test_opening_with_o_trunc_empties(written: Mount, witness: Mount, folder: Path) -> None:
    (folder / ONE).write_bytes(noise(_LARGE))
    reader = os.open(folder / ONE, os.O_RDONLY)
    assert os.pread(reader, 5, 0) == noise(_LARGE)[:5]  # into the page cache
    writer = os.open(folder / ONE, os.O_WRONLY | os.O_TRUNC)
    assert os.stat(folder / ONE).st_size == os.fstat(reader).st_size == 0
    assert os.pread(reader, 5, 0) == b""
    os.write(writer, b"new")
    assert os.pread(reader, 5, 0) == b"new"
    os.close(writer)
    os.close(reader)
    check(written, witness, folder, {ONE: b"new"})


def test_two_processes_append_and_no_line_is_lost(written: Mount, witness: Mount, folder: Path) -> None:
    script = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for n in range(200):
    assert os.write(fd, b"%s %03d\\n" % (sys.argv[2].encode(), n)) == 6
"""
    writers = [subprocess.Popen(["python3", "-c", script, str(folder / ONE), who]) for who in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = (folder / ONE).read_bytes().splitlines()
    for who in b"a", b"b":
        assert [line for line in lines if line.startswith(who)] == [b"%s %03d" % (who, n) for n in range(200)]
    assert len(lines) == 400
    check(written, witness, folder, {ONE: b"".join(line + b"\n" for line in lines)})


def test_sparse_files_are_filled_with_zeros(written: Mount, witness: Mount, folder: Path) -> None:
    with (folder / ONE).open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x")
        file.seek(10)
        file.write(b"y")
    check(written, witness, folder, {ONE: bytes(10) + b"y" + bytes((1 << 20) - 11) + b"x"})


def test_duplicates_and_children_flush_and_the_file_is_written_on(
    written: Mount, witness: Mount, folder: Path
) -> None:
    script = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, b"one ")
os.close(os.dup(fd))
os.write(fd, b"two ")
if (child := os.fork()) == 0:
    os.write(fd, b"child ")
    os._exit(0)                      # closes, as every exit does
os.waitpid(child, 0)
os.write(fd, b"three")
os.close(fd)
"""
    python(script, folder / ONE)
    check(written, witness, folder, {ONE: b"one two child three"})


def test_what_is_open_for_writing_is_not_committed_by_a_flush(written: Mount, folder: Path) -> None:
    with (folder / ONE).open("wb", buffering=0) as file:
        file.write(b"half")
        os.close(os.dup(file.fileno()))
        flush(written)
        assert state(folder / ONE) == "journaled"
        file.write(b" whole")
    flush(written)
    assert (folder / ONE).read_bytes() == b"half whole"


def test_after_fsync_nothing_changes_any_more(written: Mount, witness: Mount, folder: Path) -> None:
    descriptor = os.open(folder / ONE, _CREATE)
    os.write(descriptor, b"content")
    os.fsync(descriptor)
    seen = witness.path / folder.name / ONE
    until(seen.exists, what="the witness seeing it")
    assert seen.read_bytes() == b"content"
    changes: list[Callable[[], object]] = [
        lambda: os.pwrite(descriptor, b"damage", 0),
        lambda: os.pwrite(descriptor, b"damage", 7),
        lambda: os.ftruncate(descriptor, 2),
    ]
    for change in changes:
        with refusing(errno.EPERM):
            change()
        # The page cache must not keep what was refused.
        assert os.pread(descriptor, 100, 0) == b"content"
        assert (folder / ONE).read_bytes() == b"content"
        assert os.fstat(descriptor).st_size == 7
    os.fsync(descriptor)
    os.close(descriptor)


def same(path: Path, content: bytes, *descriptors: int) -> None:
    """Check that a file looks the same by name and by descriptor."""
    assert path.read_bytes() == content
    found = os.stat(path)
    assert found.st_size == len(content)
    for descriptor in descriptors:
        assert os.fstat(descriptor).st_size == len(content)
        assert os.pread(descriptor, len(content) + 1, 0) == content
        assert os.fstat(descriptor).st_mtime_ns == found.st_mtime_ns
    assert found.st_mtime_ns % 1_000_000_000 == 0


@pytest.mark.parametrize("size", [10, _LARGE])
def test_sizes_and_contents_are_never_stale(written: Mount, folder: Path, size: int) -> None:
    """After each step, by name and by descriptor, for one who wrote and one who only reads."""
    for key in range(6):
        path, content = folder / key_name(key), b""
        both = os.open(path, _CREATE), os.open(path, os.O_RDONLY)
        same(path, content, *both)
        for step in range(3):
            content += noise(size, step)
            os.write(both[0], noise(size, step))
            same(path, content, *both)
        os.ftruncate(both[0], size + 1)
        content = content[: size + 1]
        same(path, content, *both)
        os.utime(path, (5, 5 + key))
        if key % 2:
            os.fsync(both[0])
        same(path, content, *both)
        os.close(both[0])
        same(path, content, both[1])
        flush(written)
        for _ in range(3):
            same(path, content, both[1])
        until(partial(has_left, path), what="the entry leaving the journal")
        same(path, content, both[1])
        assert os.stat(path).st_mtime == 5 + key
        os.close(both[1])


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, _LARGE])
def test_an_unlinked_file_lives_on_while_it_is_open(
    written: Mount, witness: Mount, folder: Path, size: int
) -> None:
    path, content = folder / ONE, noise(size)
    path.write_bytes(content)
    old = os.open(path, os.O_RDWR)
    os.unlink(path)
    assert not path.exists()
    assert os.fstat(old).st_nlink == 0
    again = os.open(path, _CREATE | os.O_EXCL)  # the same name while the old one is open
    os.write(again, b"another")
    os.pwrite(old, b"more", size)
    os.ftruncate(old, size + 3)
    assert os.pread(old, 2 * size + 10, 0) == content + b"mor"
    assert os.pread(again, 100, 0) == b"another"
    os.close(again)
    flush(written)
    assert os.pread(old, 2 * size + 10, 0) == content + b"mor"
    os.close(old)
    assert contents(folder) == {ONE: b"another"}


@pytest.mark.parametrize("size", [5, _LARGE])
def test_a_rename_replaces_an_uncommitted_file_that_somebody_reads(
    written: Mount, witness: Mount, folder: Path, size: int
) -> None:
    (folder / ONE).write_bytes(noise(size, 1))
    (folder / ".new").write_bytes(noise(size, 2))
    reader = os.open(folder / ONE, os.O_RDONLY)
    writer = os.open(folder / ".new", os.O_WRONLY | os.O_APPEND)
    os.rename(folder / ".new", folder / ONE)
    assert (folder / ONE).read_bytes() == noise(size, 2)
    os.write(writer, b"and on")
    os.close(writer)
    assert os.pread(reader, size + 1, 0) == noise(size, 1)
    os.close(reader)
    check(written, witness, folder, {ONE: noise(size, 2) + b"and on"})


def test_flags_of_rename(folder: Path) -> None:
    (folder / ONE).write_bytes(b"one")
    (folder / TWO).write_bytes(b"two")
    with refusing(errno.EEXIST):
        renameat2(folder / ONE, folder / TWO, RENAME_NOREPLACE)
    with refusing(errno.EINVAL):
        renameat2(folder / ONE, folder / TWO, RENAME_EXCHANGE)
    renameat2(folder / ONE, folder / key_name(3), RENAME_NOREPLACE)
    assert contents(folder) == {TWO: b"two", key_name(3): b"one"}


def test_files_move_between_datasets_and_between_kinds_of_names(
    written: Mount, witness: Mount, folder: Path
) -> None:
    other = written.path / (folder.name + "-other")
    other.mkdir()
    (folder / "x.part").write_bytes(b"content")
    for name in (folder / ONE, other / TWO, other / key_name(2, "jpg"), other / "x~", folder / key_name(9)):
        at = next(iter([*folder.iterdir(), *other.iterdir()]))
        os.rename(at, name)
        assert name.read_bytes() == b"content"
    os.rmdir(other)
    check(written, witness, folder, {key_name(9): b"content"})


def test_of_many_who_create_one_name_exclusively_one_succeeds(folder: Path) -> None:
    script = """
import errno, os, sys
won = 0
for key in range(40):
    try:
        os.close(os.open(sys.argv[1] + "/%020d.bin" % key, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        won += 1
    except FileExistsError:
        pass
print(won)
"""
    racers = [
        subprocess.Popen(["python3", "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert sum(int(racer.communicate(timeout=60)[0]) for racer in racers) == 40
    assert len(os.listdir(folder)) == 40


# -- directories -----------------------------------------------------------------------------------


def test_a_lister_sees_every_name_exactly_once_while_files_are_copied_and_committed(
    shared: Stack, tmp_path: Path
) -> None:
    shared.register("listed")
    source = tmp_path / "source"
    source.mkdir()
    for key in range(1500):
        (source / key_name(key)).write_bytes(b"x" * (key % 50))
    with shared.mount("--batch-age", "0.2", write=True) as mount:
        into = mount.path / "listed"
        copying = subprocess.Popen(["sh", "-c", 'cp "$1"/* "$2"/', "sh", str(source), str(into)])
        seen: set[str] = set()
        listings = 0
        while copying.poll() is None or mount.counters().get("commit.datapoints") < 1500:
            names = os.listdir(into)
            assert len(names) == len(set(names))
            assert seen <= set(names)
            assert sorted(names) == names
            seen = set(names)
            listings += 1
        assert copying.wait() == 0
        assert len(os.listdir(into)) == 1500
        assert mount.counters().get("commit.dataranges") > 3
        assert listings > 5


def test_a_listing_goes_on_from_any_place_it_was_told(written: Mount, folder: Path) -> None:
    last = 2**63 - 1
    keys = [0, 1, 5, 2**40, 2**62, last - 2**41]
    for key in keys[::2]:
        (folder / key_name(key)).touch()
    flush(written)
    for key in [*keys[1::2], last - 1, last]:
        (folder / key_name(key)).touch()
    for name in (".c", ".b", ".a"):
        (folder / name).touch()
    script = """
import ctypes, os, sys
class Entry(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_uint16),
                ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir64.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
libc.readdir64.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
at = libc.opendir(os.fsencode(sys.argv[1]))
def rest():
    found = []
    while (entry := libc.readdir64(at)):
        found.append((ctypes.cast(entry, ctypes.POINTER(Entry)).contents.name.decode(), libc.telldir(at)))
    return found
everything = rest()
print(*[name for name, _ in everything])
for number, (name, place) in enumerate(everything):
    if place >= 0:
        libc.seekdir(at, place)
        assert rest() == everything[number + 1:], name
print(sum(place < 0 for _, place in everything))
"""
    names, refused = python(script, folder).splitlines()
    assert names.split() == [*map(key_name, [*keys, last - 1, last]), ".c", ".b", ".a"]
    assert int(refused) == 2, "only the last keys of all have places that lseek(2) does not take"


def test_directories_are_made_and_removed(written: Mount, witness: Mount, folder: Path) -> None:
    seen = witness.path / folder.name
    until(seen.is_dir, what="the witness seeing it")
    with refusing(errno.EEXIST):
        folder.mkdir()
    (folder / ".x").touch()
    with refusing(errno.ENOTEMPTY):
        folder.rmdir()
    (folder / ".x").unlink()
    for key in range(5):  # keys are leased ahead
        (folder / key_name(key)).touch()
    with refusing(errno.ENOTEMPTY):
        folder.rmdir()
    for key in range(5):
        (folder / key_name(key)).unlink()
    folder.rmdir()
    assert not folder.exists()
    until(lambda: not seen.exists(), what="the witness seeing it go")
    folder.mkdir()
    (folder / ONE).write_bytes(b"x")
    flush(written)
    with refusing(errno.ENOTEMPTY):
        folder.rmdir()


# -- refused ---------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[int, Callable[[Path], object]]] = {
    "create a committed name anew": (errno.EEXIST, lambda f: os.open(f / ONE, _CREATE | os.O_EXCL)),
    "open what is committed for writing": (errno.EPERM, lambda f: os.open(f / ONE, os.O_WRONLY)),
    "and for appending": (errno.EPERM, lambda f: os.open(f / ONE, os.O_WRONLY | os.O_APPEND)),
    "and with O_TRUNC": (errno.EPERM, lambda f: os.open(f / ONE, os.O_RDONLY | os.O_TRUNC)),
    "and with O_CREAT": (errno.EPERM, lambda f: os.open(f / ONE, _CREATE)),
    "truncate it": (errno.EPERM, lambda f: os.truncate(f / ONE, 0)),
    "give it another time": (errno.EPERM, lambda f: os.utime(f / ONE, (5, 5))),
    "unlink it": (errno.EPERM, lambda f: os.unlink(f / ONE)),
    "rename it": (errno.EPERM, lambda f: os.rename(f / ONE, f / key_name(50))),
    "rename it to a temporary name": (errno.EPERM, lambda f: os.rename(f / ONE, f / ".x")),
    "rename onto it": (errno.EPERM, lambda f: os.rename(f / TWO, f / ONE)),
    "a committed key with another extension": (
        errno.EEXIST,
        lambda f: os.open(f / key_name(1, "txt"), _CREATE),
    ),
    "an uncommitted one": (errno.EEXIST, lambda f: os.open(f / key_name(2, "txt"), _CREATE)),
    "rename to a committed key": (errno.EEXIST, lambda f: os.rename(f / TWO, f / key_name(1, "txt"))),
    "rename to an uncommitted key": (errno.EEXIST, lambda f: os.rename(f / ".tmp", f / key_name(2, "txt"))),
    "a name that is none": (errno.EINVAL, lambda f: os.open(f / "README", _CREATE)),
    "too few digits": (errno.EINVAL, lambda f: os.open(f / f"{5:019d}.bin", _CREATE)),
    "a key that cannot be": (errno.EINVAL, lambda f: os.open(f / key_name(2**63), _CREATE)),
    "no extension": (errno.EINVAL, lambda f: os.open(f / f"{5:020d}", _CREATE)),
    "rename to a name that is none": (errno.EINVAL, lambda f: os.rename(f / TWO, f / "README")),
    "a control character": (errno.EINVAL, lambda f: os.open(f / ".a\nb", _CREATE)),
    "a name that is too long": (errno.ENAMETOOLONG, lambda f: os.open(f / ("." + 255 * "x"), _CREATE)),
    "a file at the root": (errno.EPERM, lambda f: os.open(f.parent / ONE, _CREATE)),
    "a temporary one": (errno.EPERM, lambda f: os.open(f.parent / ".x", _CREATE)),
    "move a file to the root": (errno.EPERM, lambda f: os.rename(f / TWO, f.parent / TWO)),
    "a directory in a dataset": (errno.EPERM, lambda f: os.mkdir(f / "sub")),
    "a dataset of a bad name": (errno.EINVAL, lambda f: os.mkdir(f.parent / "a.b")),
    "rename a dataset": (errno.EPERM, lambda f: os.rename(f, f.parent / "renamed")),
    "remove a dataset with files": (errno.ENOTEMPTY, lambda f: os.rmdir(f)),
    "rmdir of a file": (errno.ENOTDIR, lambda f: os.rmdir(f / ONE)),
    "unlink of a dataset": (errno.EISDIR, lambda f: os.unlink(f)),
    "what is below a file": (errno.ENOTDIR, lambda f: os.open(f / TWO / "x", _CREATE)),
    "write a directory": (errno.EISDIR, lambda f: os.open(f, os.O_WRONLY)),
    "a hard link": (errno.EPERM, lambda f: os.link(f / TWO, f / key_name(51))),
    "a symbolic link": (errno.EPERM, lambda f: os.symlink("x", f / key_name(51))),
    "a pipe": (errno.EPERM, lambda f: os.mkfifo(f / key_name(51))),
    "a device": (errno.EPERM, lambda f: os.mknod(f / key_name(51), 0o600 | 0o020000, 0)),
    "an extended attribute": (errno.ENOTSUP, lambda f: os.setxattr(f / TWO, "user.mine", b"1")),
    "allocate": (errno.ENOTSUP, lambda f: _fallocate(f / TWO)),
    "a file without a name": (errno.ENOTSUP, lambda f: os.open(f, os.O_WRONLY | os.O_TMPFILE)),
}


def _fallocate(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file:
        if libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(100)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture(scope="module")
def refusing_folder(written: Mount) -> Path:
    """A dataset with a committed file, an uncommitted one and one with a temporary name."""
    folder = written.path / "refusing"
    folder.mkdir()
    (folder / ONE).write_bytes(b"committed")
    flush(written)
    (folder / TWO).write_bytes(b"uncommitted")
    (folder / ".tmp").write_bytes(b"temporary")
    return folder


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_and_how(refusing_folder: Path, what: str) -> None:
    number, attempt = REFUSED[what]
    with refusing(number):
        attempt(refusing_folder)
    assert contents(refusing_folder) == {ONE: b"committed", TWO: b"uncommitted", ".tmp": b"temporary"}


def test_modes_owners_and_equal_times_may_be_set_and_change_nothing(refusing_folder: Path) -> None:
    for name in ONE, TWO, ".tmp":
        path = refusing_folder / name
        before = os.stat(path)
        os.chmod(path, 0o600)
        os.chown(path, before.st_uid, before.st_gid)
        os.utime(path, ns=(5, before.st_mtime_ns + 999_999_999))
        after = os.stat(path)
        assert before.st_mode == after.st_mode
        assert before.st_mtime_ns == after.st_mtime_ns
    os.utime(refusing_folder)
    os.chmod(refusing_folder, 0o700)


# -- the rest --------------------------------------------------------------------------------------


def test_attributes_and_timeouts_before_and_after_the_commit(written: Mount, folder: Path) -> None:
    path = folder / ONE
    descriptor = os.open(path, _CREATE)
    assert state(path) == "open"
    os.write(descriptor, b"abc")
    os.close(descriptor)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    (folder / ".x").touch()
    assert state(folder / ".x") == "temporary"
    before = os.stat(path)
    assert state(path) == "journaled"
    assert before.st_mode == 0o100644
    assert before.st_ino >= 1 << 60
    flush(written)
    assert state(path) == "committed"
    until(partial(has_left, path), what="the entry leaving the journal")
    after = os.stat(path)
    names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_mtime_ns", "st_blksize")
    assert {name: getattr(before, name) for name in names} == {name: getattr(after, name) for name in names}
    assert os.getxattr(path, "user.datas3t.datarange") == b"1-1"
    # Once committed the kernel may believe it for ever: it asks no more.
    time.sleep(1.1)  # longer than what is uncommitted may be believed: nothing else can show it
    os.stat(path)
    asked = written.counters()
    for _ in range(10):
        os.stat(path)
    assert written.counters().get("fuse.getattr") - asked.get("fuse.getattr") <= 2
    assert written.counters().get("fuse.lookup") == asked.get("fuse.lookup")


def test_new_files_cost_the_kernel_no_question_about_their_directory(written: Mount, folder: Path) -> None:
    """Nor more than a lookup, a create, a write and a flush each (and a release, which nobody waits for)."""
    count, before, begun = 200, written.counters(), time.monotonic()
    for key in range(count):
        with open(folder / key_name(key), "wb", buffering=0) as file:
            file.write(b"content")
    after, seconds = written.counters(), time.monotonic() - begun
    asked = {name: after.get(f"fuse.{name}") - before.get(f"fuse.{name}") for name in ("lookup", "getattr")}
    assert asked["getattr"] <= 10 + count // 10  # Python's open asks for nothing that is not known already
    assert asked["lookup"] <= count + 10 + 3 * seconds  # the directory may be believed for a second
    for name in ("create", "write", "flush"):
        assert after.get(f"fuse.{name}") - before.get(f"fuse.{name}") == count


def test_whoever_mounts_may_do_all_but_execute_files(written: Mount, folder: Path) -> None:
    (folder / ONE).write_bytes(b"#!/bin/sh\nexit 0\n")
    for step in range(2):
        assert all(os.access(folder, mode) for mode in (os.R_OK, os.W_OK, os.X_OK, os.F_OK))
        assert all(os.access(folder / ONE, mode) for mode in (os.R_OK, os.W_OK, os.F_OK))
        assert not os.access(folder / ONE, os.X_OK)
        assert not os.access(folder / TWO, os.F_OK)
        with refusing(errno.EACCES):
            subprocess.run([folder / ONE], check=False)
        if not step:
            flush(written)


def test_df_shows_how_much_may_be_written(written: Mount, folder: Path) -> None:
    before = os.statvfs(written.path)
    assert 0 < before.f_bavail * before.f_frsize <= 10 << 30
    (folder / ONE).write_bytes(bytes(10 << 20))
    after = os.statvfs(written.path)
    assert before.f_bavail - after.f_bavail >= (10 << 20) // after.f_frsize - 100


def test_one_dataset_at_the_root_can_be_written_to(shared: Stack) -> None:
    shared.register("alone")
    with shared.mount("--batch-age", "3600", dataset="alone", write=True) as mount:
        (mount.path / ONE).write_bytes(b"content")
        (mount.path / ".x").write_bytes(b"more")
        os.rename(mount.path / ".x", mount.path / TWO)
        with refusing(errno.EPERM):
            (mount.path / "sub").mkdir()
        assert contents(mount.path) == {ONE: b"content", TWO: b"more"}
        flush(mount)
        assert state(mount.path / ONE) == state(mount.path / TWO) == "committed"
        descriptor = os.open(mount.path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@pytest.fixture
def public() -> Iterator[Path]:
    """A mount point that everybody can reach."""
    parent = Path(tempfile.mkdtemp(dir="/tmp"))
    parent.chmod(0o755)
    path = parent / "mnt"
    path.mkdir()
    yield path
    unmount_lazily(path)
    shutil.rmtree(parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_others_are_let_in_as_far_as_modes_go(shared: Stack, public: Path) -> None:
    shared.register("others")
    as_nobody = 'setpriv --reuid 65534 --regid 65534 --clear-groups sh -euc "$1" sh "$2"'
    options = ["--allow-other", "--uid", "65534", "--gid", "65534", "--batch-age", "3600"]
    with shared.mount(*options, path=public, write=True):
        sh(as_nobody, 'echo x > "$1"/others/00000000000000000001.txt', public)
        sh(as_nobody, 'echo y >> "$1"/others/00000000000000000001.txt', public)
        assert (public / "others" / key_name(1, "txt")).read_bytes() == b"x\ny\n"
        assert os.stat(public / "others" / key_name(1, "txt")).st_uid == 65534
    with shared.mount("--allow-other", path=public, write=True):
        for command in ('echo x > "$1"/others/00000000000000000002.txt', 'mkdir "$1"/mine'):
            with pytest.raises(AssertionError, match="Permission denied"):
                sh(as_nobody, command, public)
        sh(as_nobody, 'cat "$1"/others/* > /dev/null', public)


def test_a_second_mount_sees_only_whole_committed_files(written: Mount, witness: Mount, folder: Path) -> None:
    """While files come into being slowly and are committed as they are closed."""
    content, done = noise(50_000), threading.Event()

    def write() -> None:
        for key in range(12):
            with (folder / key_name(key)).open("wb", buffering=0) as file:
                for at in range(0, len(content), 5000):
                    file.write(content[at : at + 5000])
                    if at % 20_000 == 0:
                        flush(written)
            flush(written)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = witness.path / folder.name
    try:
        until(lambda: done.is_set() or seen.is_dir(), 30)
        looks = 0
        while not done.is_set() and looks < 10_000:
            assert all(one == content for one in contents(seen).values())
            looks += 1
    finally:
        writer.join(60)
    until(lambda: len(os.listdir(seen)) == 12, what="the witness seeing all")
    assert contents(seen) == {key_name(key): content for key in range(12)}

"""Listings: complete, cheap, stable while the dataset changes, and soon up to date."""

import ctypes
import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Library
from tests.harness.archives import key_name, samples, write_folder
from tests.harness.mounts import Mount, Stack, until

POLLS = 3  # queries of the change feed, which polls now and then whatever is listed


class Dirent(ctypes.Structure):
    """glibc's struct dirent on 64-bit Linux, readdir(3)."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.opendir.restype = LIBC.readdir.restype = ctypes.c_void_p
LIBC.opendir.argtypes = [ctypes.c_char_p]
LIBC.readdir.argtypes = LIBC.closedir.argtypes = LIBC.telldir.argtypes = [ctypes.c_void_p]
LIBC.telldir.restype = ctypes.c_long
LIBC.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Listing:
    """An open directory that can be asked where it is and sent elsewhere."""

    def __init__(self, path: Path) -> None:
        self._stream = LIBC.opendir(os.fsencode(path))
        assert self._stream, os.strerror(ctypes.get_errno())

    def next(self) -> str | None:
        entry = LIBC.readdir(self._stream)
        return os.fsdecode(ctypes.cast(entry, ctypes.POINTER(Dirent)).contents.name) if entry else None

    def tell(self) -> int:
        return int(LIBC.telldir(self._stream))

    def seek(self, position: int) -> None:
        LIBC.seekdir(self._stream, position)

    def rest(self) -> list[str]:
        return list(iter(self.next, None))

    def close(self) -> None:
        LIBC.closedir(self._stream)


@contextmanager
def listing(path: Path) -> Iterator[Listing]:
    opened = Listing(path)
    try:
        yield opened
    finally:
        opened.close()


def names(path: Path) -> list[str]:
    with listing(path) as opened:
        return opened.rest()


def test_entries_come_once_each_and_in_key_order(library: Library, mount: Mount) -> None:
    for dataset, content in library.sources.items():
        assert names(mount.path / dataset) == list(content)
    assert sorted(os.listdir(mount.path)) == sorted(library.sources)


def test_a_listing_goes_on_from_any_place_it_was_told(mount: Mount) -> None:
    with listing(mount.path / "small") as opened:
        places = {}
        while True:
            place = opened.tell()
            if (name := opened.next()) is None:
                break
            places[name] = place
        for name in random.Random(5).sample(list(places), 50):
            opened.seek(places[name])
            assert opened.next() == name


def test_a_listing_can_be_read_twice_at_once(library: Library, mount: Mount) -> None:
    with listing(mount.path / "small") as one, listing(mount.path / "small") as other:
        pairs = list(zip(iter(one.next, None), iter(other.next, None), strict=True))
    assert pairs == [(name, name) for name in library.sources["small"]]


def test_listing_and_stat_ask_neither_s3_nor_postgres(library: Library, mount: Mount) -> None:
    names(mount.path / "small")  # loads snapshot and index
    before = mount.counters()
    library.proxy.forget()
    found = subprocess.run(
        ["find", mount.path / "small", "-type", "f", "-size", "+0", "-printf", "%s\n"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stdout.split() == ["4096"] * len(library.sources["small"])
    after = mount.counters()
    assert library.proxy.requests("GET") + library.proxy.requests("HEAD") == 0
    assert after.get("s3.get") == before.get("s3.get")
    assert after.get("sql.query") - before.get("sql.query") <= POLLS


def test_names_that_do_not_exist_cost_no_request_either(library: Library, mount: Mount) -> None:
    names(mount.path / "small")
    before = mount.counters()
    for key in range(5000, 5200):
        assert not (mount.path / "small" / key_name(key)).exists()
    after = mount.counters()
    assert after.get("fuse.lookup") - before.get("fuse.lookup") >= 200
    assert after.get("s3.get") == before.get("s3.get")
    assert after.get("sql.query") - before.get("sql.query") <= POLLS


@pytest.fixture
def changing(stack: Stack, tmp_path: Path) -> Stack:
    """A stack with the keys 2000..3999 in a dataset."""
    stack.register("d")
    stack.ingest("d", write_folder(tmp_path / "first", samples([10] * 2000, first=2000)), start=2000)
    return stack


def test_a_listing_resumed_after_changes_neither_repeats_nor_skips(changing: Stack, tmp_path: Path) -> None:
    with changing.mount() as opened, listing(opened.path / "d") as under_way:
        begun = [under_way.next() for _ in range(1000)]
        place = under_way.tell()
        changing.ingest("d", write_folder(tmp_path / "before", samples([10] * 50)), start=0)
        changing.ingest("d", write_folder(tmp_path / "after", samples([10] * 50, first=5000)), start=5000)
        until(lambda: os.path.exists(opened.path / "d" / key_name(5049)), what="the change is seen")
        until(lambda: os.path.exists(opened.path / "d" / key_name(0)), what="the change is seen")
        under_way.seek(place)  # drops what libc has read ahead
        expected = [key_name(key) for key in [*range(2000, 4000), *range(5000, 5050)]]
        assert [*begun, *under_way.rest()] == expected
        assert names(opened.path / "d") == [key_name(key) for key in range(50)] + expected


def test_a_datarange_committed_by_another_process_appears_within_a_second(
    changing: Stack, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "later", samples([100] * 5, first=7000))
    with changing.mount() as opened:
        assert key_name(7000) not in names(opened.path / "d")
        with pytest.raises(FileNotFoundError):
            os.stat(opened.path / "d" / key_name(7002))  # which the kernel may not remember
        changing.run("ingest", "d", folder, "--start", "7000")
        until(lambda: (opened.path / "d" / key_name(7002)).exists(), 1.0, "the new datapoint appearing")
        assert (opened.path / "d" / key_name(7002)).read_bytes() == (folder / key_name(7002)).read_bytes()
        assert names(opened.path / "d")[-5:] == [key_name(key) for key in range(7000, 7005)]
        until(lambda: os.statvfs(opened.path).f_files == 2005, 1.0, "df being right")


def test_a_new_dataset_appears_and_a_removed_one_goes(changing: Stack) -> None:
    with changing.mount() as opened:
        assert os.listdir(opened.path) == ["d"]
        changing.register("e")
        until(lambda: sorted(os.listdir(opened.path)) == ["d", "e"], 1.0, "the new dataset appearing")
        assert os.listdir(opened.path / "e") == []
        changing.sql("DELETE FROM datasets WHERE name = 'e'")
        until(lambda: os.listdir(opened.path) == ["d"], 1.0, "the dataset going")
        until(lambda: not (opened.path / "e").exists(), 2.0, "the kernel forgetting it")


def test_a_datarange_that_goes_is_gone_for_the_kernel_too(changing: Stack, tmp_path: Path) -> None:
    with changing.mount() as opened:
        path = opened.path / "d" / key_name(2500)
        old = path.read_bytes()
        changing.sql("DELETE FROM dataranges")
        until(lambda: not path.exists(), 2.0, "the datapoint going")
        # The same keys again, with other content: another generation, which must not be confused.
        fresh = samples([20] * 2000, first=2000, extension="bin")
        changing.ingest("d", write_folder(tmp_path / "again", fresh), start=2000)
        until(path.exists, 2.0, "the new generation appearing")
        assert path.stat().st_size == 20
        assert path.read_bytes() == fresh[500].content != old


def test_many_small_getdents_see_every_entry(library: Library, mount: Mount) -> None:
    # Python's and libc's buffers are 32 KiB; a program may ask for one entry at a time.
    program = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "buffer = ctypes.create_string_buffer(64)\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)\n"
        "while (size := libc.syscall(int(sys.argv[2]), handle, buffer, 64)) > 0:\n"
        "    at = 0\n"
        "    while at < size:\n"
        "        length = int.from_bytes(buffer.raw[at + 16 : at + 18], 'little')\n"
        "        print(buffer.raw[at + 19 : at + length].split(b'\\0')[0].decode())\n"
        "        at += length\n"
        "sys.exit(size != 0)\n"
    )
    getdents64 = 217 if platform.machine() == "x86_64" else 61  # asm/unistd_64.h, asm-generic/unistd.h
    command = [sys.executable, "-c", program, str(mount.path / "small"), str(getdents64)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == list(library.sources["small"])

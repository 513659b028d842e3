"""What is fetched ahead is in the kernel before it is asked for, and never in the wrong place."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.e2e.conftest import SMALL, Library
from tests.harness.archives import Sample, key_name, noise, write_folder
from tests.harness.mounts import Mount, Stack, until


def read_all(directory: Path, names: list[str]) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in names}


def test_listed_files_read_in_order_cost_hardly_any_read_requests(library: Library) -> None:
    content = library.content("small")
    for write in (False, True):
        with library.stack.mount(cold=True, write=write) as opened:
            folder = opened.path / "small"
            assert read_all(folder, sorted(os.listdir(folder))) == content
            counters = opened.counters()
            assert counters.get("fuse.open") == (SMALL if write else 0), "read-only: not opened at our door"
            assert counters.get("fuse.read") + counters.get("push.files") >= SMALL
            most = SMALL // 2 if write else SMALL // 5
            assert counters.get("fuse.read") < most, "the rest was there before it was asked for"
            # Nothing is pushed that was not fetched for somebody.
            assert counters.get("push.bytes") <= counters.get("s3.get_bytes")


def test_files_that_are_not_listed_first_are_read_all_the_same(library: Library) -> None:
    content = library.content("small")
    with library.stack.mount(cold=True) as opened:
        assert read_all(opened.path / "small", list(content)) == content
        assert opened.counters().get("push.files") < SMALL // 10, "the kernel does not know what comes"


def test_a_random_reader_has_nothing_pushed(library: Library) -> None:
    content = library.content("small")
    names = random.Random(5).sample(list(content)[::50], 20)
    with library.stack.mount(cold=True) as opened:
        os.listdir(opened.path / "small")
        for name in names:
            assert (opened.path / "small" / name).read_bytes() == content[name]
        assert opened.counters().get("push.files") == 0


def test_several_readers_of_listed_files_get_the_right_bytes(library: Library) -> None:
    content = library.content("small")
    with library.stack.mount(cold=True) as opened:
        folder = opened.path / "small"
        names = sorted(os.listdir(folder))
        lists = [names[start::4] for start in range(4)] + [names[::-1], names]
        readers = [
            subprocess.Popen(["sha256sum", *mine], cwd=folder, stdout=subprocess.PIPE, text=True)
            for mine in lists  # processes: threads would wait for each other
        ]
        for mine, reader in zip(lists, readers, strict=True):
            lines = reader.communicate(timeout=60)[0].splitlines()
            assert lines == [f"{hashlib.sha256(content[name]).hexdigest()}  {name}" for name in mine]


def made(seed: int, count: int = 400) -> list[Sample]:
    return [Sample(key_name(key), noise(3000, seed * 1000 + key), 10**18) for key in range(count)]


def test_keys_that_come_again_never_show_the_old_bytes_nor_change_an_open_file(
    stack: Stack, tmp_path: Path
) -> None:
    old, new = made(1), made(2)
    stack.register("d")
    stack.ingest("d", write_folder(tmp_path / "old", old))
    with stack.mount("--dataset", "d", cold=True) as opened:
        names = sorted(os.listdir(opened.path))
        assert read_all(opened.path, names) == {one.name: one.content for one in old}
        held = [os.open(opened.path / name, os.O_RDONLY) for name in names[300:310]]
        try:
            stack.run("dataset", "clear", "d", "--yes")
            until(lambda: not os.listdir(opened.path), what="clearing")
            stack.ingest("d", write_folder(tmp_path / "new", new))
            until(lambda: len(os.listdir(opened.path)) == len(new), what="filling")
            assert read_all(opened.path, names) == {one.name: one.content for one in new}
            for handle, one in zip(held, old[300:310], strict=True):
                assert read_or_fail(handle) in (one.content, None)
        finally:
            for handle in held:
                with suppress(OSError):  # the kernel has given the old files up
                    os.close(handle)


def read_or_fail(handle: int) -> bytes | None:
    """Return what a descriptor reads, None if it is refused: the object may be gone."""
    try:
        return os.pread(handle, 10_000, 0)
    except OSError:
        return None


def test_damage_is_not_pushed(stack: Stack, tmp_path: Path) -> None:
    stack.register("d")
    (datarange,) = stack.ingest("d", write_folder(tmp_path / "src", made(3)))
    body = bytearray(stack.get_object(datarange.data_key))
    body[300 * 3584 + 1000] ^= 1
    stack.put_object(datarange.data_key, bytes(body))
    with stack.mount("--dataset", "d", cold=True) as opened:
        names = sorted(os.listdir(opened.path))
        wrong = [name for name in names if not is_right(opened, name)]
        assert wrong == [names[300]]


def is_right(opened: Mount, name: str) -> bool:
    try:
        return (opened.path / name).read_bytes() == made(3)[int(name[:20])].content
    except OSError:
        return False

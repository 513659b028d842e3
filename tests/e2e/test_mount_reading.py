"""Whatever program reads a mounted file, and however, it gets the right bytes, in few requests."""

import ctypes
import hashlib
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import CHUNK, LARGE, NEEDLE, NEEDLE_KEY, SMALL, Library
from tests.harness.archives import key_name, samples, write_folder
from tests.harness.mounts import Mount, Stack


def output(*command: str | Path) -> bytes:
    done = subprocess.run([*map(str, command)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def drop_pages(path: Path) -> None:
    """Let the kernel forget what it has read of a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def test_every_file_reads_back_whatever_its_size(library: Library, mount: Mount) -> None:
    assert contents(mount.path / "sizes") == library.content("sizes")


def test_ls_shows_names_and_sizes(library: Library, mount: Mount) -> None:
    lines = output("ls", "-l", "--block-size=1", mount.path / "sizes").decode().splitlines()[1:]
    shown = {line.split()[-1]: int(line.split()[4]) for line in lines}
    assert shown == {name: len(content) for name, content in library.content("sizes").items()}


def test_find_sees_each_datapoint_once(library: Library, mount: Mount) -> None:
    found = output("find", mount.path, "-type", "f", "-printf", "%P %s\n").decode().splitlines()
    assert sorted(found) == sorted(
        f"{dataset}/{name} {len(content)}"
        for dataset in library.sources
        for name, content in library.content(dataset).items()
    )


def test_cat_joins_files_as_they_are(library: Library, mount: Mount) -> None:
    content = library.content("sizes")
    assert output("cat", *(mount.path / "sizes" / name for name in content)) == b"".join(content.values())


def test_sha256sum_agrees_with_the_sources(library: Library, mount: Mount) -> None:
    content = library.content("sizes")
    lines = output("sha256sum", *(mount.path / "sizes" / name for name in content)).decode().splitlines()
    assert [line.split()[0] for line in lines] == [hashlib.sha256(c).hexdigest() for c in content.values()]


def test_grep_finds_what_is_in_one_file_only(library: Library, mount: Mount) -> None:
    found = output("grep", "-rlF", NEEDLE, mount.path / "small").decode().split()
    assert found == [str(mount.path / "small" / key_name(NEEDLE_KEY))]


def test_cp_copies_content_and_times(library: Library, mount: Mount, tmp_path: Path) -> None:
    output("cp", "-r", "--preserve=timestamps", mount.path / "sizes", tmp_path / "copy")
    assert contents(tmp_path / "copy") == library.content("sizes")
    for name, sample in library.sources["sizes"].items():
        assert (tmp_path / "copy" / name).stat().st_mtime_ns == sample.mtime_ns // 10**9 * 10**9


def test_tar_packs_the_mount(library: Library, mount: Mount, tmp_path: Path) -> None:
    output("tar", "-C", mount.path / "sizes", "-cf", tmp_path / "packed.tar", ".")
    with tarfile.open(tmp_path / "packed.tar") as archive:
        packed = {
            info.name.removeprefix("./"): archive.extractfile(info).read()  # type: ignore[union-attr]  # a file
            for info in archive
            if info.isfile()
        }
    assert packed == library.content("sizes")


def test_rsync_copies_and_then_finds_nothing_to_do(library: Library, mount: Mount, tmp_path: Path) -> None:
    output("rsync", "-a", f"{mount.path}/sizes/", tmp_path / "copy")
    assert contents(tmp_path / "copy") == library.content("sizes")
    assert not output("rsync", "-ai", f"{mount.path}/sizes/", tmp_path / "copy")


def test_a_mapped_file_has_the_right_bytes(library: Library, mount: Mount) -> None:
    # In a process of its own: a page fault that hangs holds the interpreter lock.
    program = (
        "import hashlib, mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:\n"
        "    backwards = [mapped[at : at + 4096] for at in range(0, len(mapped), 4096)][::-1]\n"
        "    print(hashlib.sha256(b''.join(backwards[::-1])).hexdigest())\n"
    )
    for name, content in library.content("sizes").items():
        if content:
            found = output(sys.executable, "-c", program, mount.path / "sizes" / name).decode().strip()
            assert found == hashlib.sha256(content).hexdigest(), name


def test_reads_anywhere_in_a_file_give_the_right_bytes(library: Library, mount: Mount) -> None:
    chance = random.Random(1)
    for name, content in library.content("sizes").items():
        path = mount.path / "sizes" / name
        drop_pages(path)
        handle = os.open(path, os.O_RDONLY)
        try:
            for _ in range(60):
                offset = chance.randrange(len(content) + 10)
                size = chance.choice([1, 100, 4096, 131_072, 300_000])
                assert os.pread(handle, size, offset) == content[offset : offset + size], (name, offset, size)
        finally:
            os.close(handle)


def test_reads_past_the_page_cache_are_right_too(library: Library, mount: Mount) -> None:
    content = library.content("large")
    (name,) = content
    handle = os.open(mount.path / "large" / name, os.O_RDONLY | os.O_DIRECT)
    buffer = ctypes.create_string_buffer(2 * (1 << 20))
    start = -ctypes.addressof(buffer) % 4096
    view = memoryview(buffer)[start : start + (1 << 20)].cast("B")
    try:
        for offset in (0, 7 * 4096, LARGE // 2 + 4096, LARGE - (1 << 19), 12 * (1 << 20)):
            count = os.preadv(handle, [view], offset)
            assert bytes(view[:count]) == content[name][offset : offset + (1 << 20)]
    finally:
        os.close(handle)


def test_eight_readers_at_once_each_get_their_bytes(library: Library) -> None:
    jobs = [(dataset, name) for dataset in ("small", "sizes") for name in library.content(dataset)]
    random.Random(2).shuffle(jobs)
    with library.stack.mount(cold=True) as opened, ThreadPoolExecutor(8) as pool:

        def is_right(job: tuple[str, str]) -> bool:
            dataset, name = job
            return (opened.path / dataset / name).read_bytes() == library.sources[dataset][name].content

        assert all(pool.map(is_right, jobs))
        (name,) = library.content("large")
        spans = [(part * LARGE // 8, LARGE // 8) for part in range(8)]

        def part_of(span: tuple[int, int]) -> bytes:
            with (opened.path / "large" / name).open("rb") as file:
                file.seek(span[0])
                return file.read(span[1])

        assert b"".join(pool.map(part_of, spans)) == library.content("large")[name]


def test_a_large_file_streams_in_few_requests(library: Library) -> None:
    (name,) = library.content("large")
    with library.stack.mount(cold=True) as opened:
        library.proxy.forget()
        assert (opened.path / "large" / name).read_bytes() == library.content("large")[name]
        counters = opened.counters()
        assert counters.get("s3.get") == library.proxy.requests("GET")
        assert counters.get("s3.get") <= 20  # 40 MiB, at most 8 MiB each, and the first steps are small
        assert counters.get("s3.get_bytes") < LARGE + (1 << 20)


def test_a_thousand_small_files_in_order_cost_at_most_ten_requests(library: Library) -> None:
    with library.stack.mount(cold=True) as opened:
        library.proxy.forget()
        for name, content in library.content("small").items():
            assert (opened.path / "small" / name).read_bytes() == content
        counters = opened.counters()
        assert counters.get("s3.get") == library.proxy.requests("GET")
        assert counters.get("s3.get") <= 10
        assert counters.get("s3.get_bytes") < SMALL * (4096 + 512) + (1 << 20)


def test_files_read_backwards_or_in_strides_are_right(library: Library) -> None:
    content = library.content("small")
    names = list(content)
    with library.stack.mount(cold=True) as opened:
        for name in [*names[300:150:-1], *names[400::7], *names[1::50]]:
            assert (opened.path / "small" / name).read_bytes() == content[name]


def test_random_files_cost_one_request_each_and_never_a_whole_tar(library: Library) -> None:
    # Far apart, as random reads in a large dataset are: near misses may be read together.
    chosen = list(library.content("small"))[::100]
    random.Random(3).shuffle(chosen)
    with library.stack.mount(cold=True) as opened:
        library.proxy.forget()
        for name in chosen:
            assert (opened.path / "small" / name).read_bytes() == library.content("small")[name]
        counters = opened.counters()
        assert counters.get("s3.get") == library.proxy.requests("GET")
        assert counters.get("s3.get") <= len(chosen) + 1  # and the index
        assert counters.get("s3.get_bytes") <= len(chosen) * (4096 + 512) + 64 * 1024


def test_random_reads_in_a_large_file_fetch_about_what_they_need(library: Library) -> None:
    ((name, content),) = library.content("large").items()
    offsets = random.Random(4).sample(range(1 << 20, LARGE, 2 << 20), 15)
    with library.stack.mount(cold=True) as opened:
        handle = os.open(opened.path / "large" / name, os.O_RDONLY)
        try:
            for offset in offsets:
                assert os.pread(handle, 4096, offset) == content[offset : offset + 4096]
        finally:
            os.close(handle)
        counters = opened.counters()
        assert counters.get("s3.get") <= len(offsets) + 2  # the index, and the file's TAR header
        assert counters.get("s3.get_bytes") <= len(offsets) * CHUNK + 64 * 1024


def test_what_was_read_once_is_not_fetched_again(library: Library, mount: Mount) -> None:
    contents(mount.path / "sizes")
    before = mount.counters()
    contents(mount.path / "sizes")
    after = mount.counters()
    assert after.get("s3.get") == before.get("s3.get")
    assert after.get("fuse.read") == before.get("fuse.read")  # the kernel's page cache had it all


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_reads_are_right_on_either_s3_server(
    new_stack: Callable[..., Stack], kind: str, tmp_path: Path
) -> None:
    made = samples([0, 1, 513, 300_000, 2_000_000])
    stack = new_stack(kind)
    stack.register("d")
    stack.ingest("d", write_folder(tmp_path / "src", made), datarange_bytes=1 << 20)
    with stack.mount() as opened:
        assert contents(opened.path / "d") == {sample.name: sample.content for sample in made}

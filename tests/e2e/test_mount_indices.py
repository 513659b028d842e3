"""Indices: remembered on disk, shared, checked; those of Go servers learnt; those that lie never believed."""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from tests.e2e.conftest import Library
from tests.harness.archives import go_index, go_record, key_name, samples, write_folder, write_go_layout
from tests.harness.faultproxy import FaultProxy
from tests.harness.mounts import Mount, Stack, refusing


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def index_gets(proxy: FaultProxy) -> int:
    return proxy.requests("GET", ".index")


# -- the cache -------------------------------------------------------------------------------------


def test_an_index_is_fetched_once_for_all_restarts(library: Library) -> None:
    cache = "--cache-dir", str(library.stack.home / "cache-restarts")
    for expected in (1, 0):
        library.proxy.forget()
        with library.stack.mount(*cache, dataset="small") as opened:
            assert names(opened.path) == sorted(library.sources["small"])
            assert index_gets(library.proxy) == expected
            assert opened.counters().get("cache.index_hit") == 1 - expected


def test_two_mounts_share_one_cache(library: Library) -> None:
    cache = "--cache-dir", str(library.stack.home / "cache-shared")
    library.proxy.forget()
    with library.stack.mount(*cache) as one, library.stack.mount(*cache) as other:
        for opened in (one, other):
            for dataset, content in library.sources.items():
                assert names(opened.path / dataset) == sorted(content)
    assert index_gets(library.proxy) == 4  # three datasets, one with two dataranges


def spoilt(raw: bytes, way: str) -> bytes:
    middle = len(raw) // 2
    return {
        "bit": raw[:middle] + bytes([raw[middle] ^ 4]) + raw[middle + 1 :],
        "short": raw[:-7],
        "foreign": b"other" * 999,
        "empty": b"",
    }[way]


def test_a_damaged_cache_entry_is_detected_and_fetched_again(library: Library) -> None:
    folder = library.stack.home / "cache-damaged"
    datasets = [name for name, content in library.sources.items() if content]

    def shown(opened: Mount) -> dict[str, dict[str, bytes]]:
        return {
            dataset: {path.name: path.read_bytes() for path in [*(opened.path / dataset).iterdir()][:50]}
            for dataset in datasets
        }

    right = {dataset: dict([*library.content(dataset).items()][:50]) for dataset in datasets}
    with library.stack.mount("--cache-dir", str(folder)) as opened:
        assert shown(opened) == right
    entries = {path: path.read_bytes() for path in folder.rglob("*.val")}
    for (path, raw), way in zip(entries.items(), ("bit", "short", "foreign", "empty"), strict=True):
        path.write_bytes(spoilt(raw, way))
    library.proxy.forget()
    with library.stack.mount("--cache-dir", str(folder)) as opened:
        assert shown(opened) == right
        assert opened.counters().get("cache.index_damaged") == 3  # an empty file counts as none
    assert index_gets(library.proxy) == 4
    assert sorted(path.read_bytes() for path in folder.rglob("*.val")) == sorted(entries.values())


def test_a_cache_that_cannot_be_written_costs_no_read(library: Library, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = library.stack.refused(
        "mount", library.stack.new_mountpoint(), "--cache-dir", tmp_path / "file" / "below"
    )
    assert "cache cannot be used" in message


def test_the_cache_stays_within_its_size(library: Library) -> None:
    folder = library.stack.home / "cache-small"
    with library.stack.mount("--cache-dir", str(folder), "--cache-size", "64KiB") as opened:
        for dataset in library.sources:
            assert names(opened.path / dataset) == sorted(library.sources[dataset])
    assert sum(path.stat().st_size for path in folder.rglob("*.val")) <= 64 * 1024


# -- as Go servers write them ----------------------------------------------------------------------

COUNT = 200
FIRST = 500


@dataclass(frozen=True, slots=True)
class Foreign:
    """Datapoints from FIRST on in a TAR as Go programs write it, with its raw index."""

    content: dict[str, bytes]
    tar: bytes
    index: bytes

    def commit(self, stack: Stack, dataset: str, index: bytes | None, suffix: str = ".index.zst") -> None:
        """Put TAR and index into the bucket and the rows into Postgres, as a Go server's would be."""
        last = FIRST + len(self.content) - 1
        stem = f"datas3t/{dataset}/dataranges/{FIRST:020d}-{last:020d}"
        stack.put_object(f"{stem}.tar", self.tar)
        if index is not None:
            stack.put_object(stem + suffix, index)
        stack.sql(
            f"""
            WITH claim AS (
                INSERT INTO key_claims (dataset_id, first_key, last_key)
                SELECT id, {FIRST}, {last} FROM datasets WHERE name = '{dataset}'
                RETURNING *)
            INSERT INTO dataranges (dataset_id, claim_id, data_object_key, index_object_key,
                                    min_datapoint_key, max_datapoint_key, size_bytes)
            SELECT dataset_id, id, '{stem}.tar', '{stem}{suffix}', first_key, last_key, {len(self.tar)}
            FROM claim
            """
        )


def make_foreign(sizes: list[int], folder: Path) -> Foreign:
    made = samples(sizes, first=FIRST, extension="txt")
    archive = folder.with_suffix(".tar")
    write_go_layout(write_folder(folder, made), archive)
    return Foreign({sample.name: sample.content for sample in made}, archive.read_bytes(), go_index(archive))


GO_FORMS: dict[
    str, tuple[str, Callable[[bytes], bytes]]
] = {  # dataset: (suffix of the index object, what packs it)
    "raw-zst": (".index.zst", bytes),
    "raw": (".index", bytes),
    "zstd-zst": (".index.zst", zstandard.compress),
    "zstd": (".index", zstandard.compress),
}


def test_a_go_written_index_is_read_learnt_and_remembered(
    stack: Stack, proxy: FaultProxy, tmp_path: Path
) -> None:
    foreign = make_foreign([(key * 7) % 900 for key in range(COUNT)], tmp_path / "go")
    stack.register(*GO_FORMS, endpoint=proxy.endpoint)
    for dataset, (suffix, pack) in GO_FORMS.items():
        foreign.commit(stack, dataset, pack(foreign.index), suffix)
    for gets in (1 + 1, 0):  # the index, and all headers in one request; then nothing
        with stack.mount() as opened:
            for dataset in GO_FORMS:
                proxy.forget()
                assert names(opened.path / dataset) == sorted(foreign.content)
                assert proxy.requests("GET") == gets
                proxy.forget()
                found = {path.name: path.read_bytes() for path in (opened.path / dataset).iterdir()}
                assert found == foreign.content
                assert proxy.requests("GET") <= 10
                path = opened.path / dataset / key_name(FIRST, "txt")
                assert "user.datas3t.crc32c" not in os.listxattr(path)
            assert not opened.errors()


def test_a_datarange_without_checksums_verifies_by_its_headers(stack: Stack, tmp_path: Path) -> None:
    foreign = make_foreign([100] * 20, tmp_path / "go")
    stack.register("d")
    foreign.commit(stack, "d", foreign.index)
    assert stack.json("verify", "d") == {"dataranges": 1, "without_checksums": 1, "problems": [], "ok": True}


# -- that lie --------------------------------------------------------------------------------------


def swapped(index: bytes, one: int, other: int) -> bytes:
    records = [index[at : at + 16] for at in range(0, len(index), 16)]
    records[one], records[other] = records[other], records[one]
    return b"".join(records)


def with_record(index: bytes, slot: int, **changes: int) -> bytes:
    offset, blocks, high, low = struct.unpack(">QHHI", index[16 * slot : 16 * slot + 16])
    values = {"offset": offset, "header_blocks": blocks, "size": high << 32 | low} | changes
    return index[: 16 * slot] + go_record(**values) + index[16 * slot + 16 :]


def flipped(index: bytes, place: int) -> bytes:
    return index[:place] + bytes([index[place] ^ 0x10]) + index[place + 1 :]


LIES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda index: None,
    "empty": lambda index: b"",
    "short": lambda index: index[:-16],
    "cut in a record": lambda index: index[:-5],
    "one record too many": lambda index: index + index[-16:],
    "offset behind the object": lambda index: with_record(index, 3, offset=1 << 40),
    "offset enormous": lambda index: with_record(index, 3, offset=2**64 - 512),
    "offset not a block": lambda index: with_record(index, 3, offset=100),
    "offset of the datapoint before": lambda index: with_record(index, 3, offset=1024 * 2),
    "offset inside content": lambda index: with_record(index, 3, offset=3 * 1024 + 512),
    "size too large": lambda index: with_record(index, 3, size=512),
    "size too small": lambda index: with_record(index, 3, size=99),
    "size enormous": lambda index: with_record(index, 19, size=2**48 - 1),
    "no header block": lambda index: with_record(index, 3, header_blocks=0),
    "two header blocks": lambda index: with_record(index, 3, header_blocks=2, size=10),
    "swapped": lambda index: swapped(index, 3, 7),
    "of the keys one further on": lambda index: index[16:] + index[:16],
    "flipped bit in an offset": lambda index: flipped(index, 16 * 3 + 6),
    "flipped bit in a size": lambda index: flipped(index, 16 * 3 + 15),
    "zstd cut short": lambda index: zstandard.compress(index)[:-9],
    "zstd of something else": lambda index: zstandard.compress(b"another file"),
    "zstd with a flipped bit": lambda index: flipped(
        zstandard.ZstdCompressor(write_checksum=True).compress(index), 20
    ),
    "a page of HTML": lambda index: b"<html><body>It works!</body></html>",
    "all zeros": lambda index: bytes(len(index)),
    "noise": lambda index: os.urandom(len(index)),
}


def dataset_of(lie: str) -> str:
    return lie.replace(" ", "-")


@pytest.fixture(scope="module")
def liars(new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount of a dataset for each lie, and of one that tells the truth."""
    foreign = make_foreign([100] * 20, tmp_path_factory.mktemp("liars") / "go")
    stack = new_stack()
    stack.register("truth", *map(dataset_of, LIES))
    foreign.commit(stack, "truth", foreign.index)
    for lie, spoil in LIES.items():
        foreign.commit(stack, dataset_of(lie), spoil(foreign.index))
    with stack.mount() as opened:
        assert {path.name: path.read_bytes() for path in (opened.path / "truth").iterdir()} == foreign.content
        yield opened


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_gives_eio_and_one_line_never_wrong_bytes(liars: Mount, lie: str) -> None:
    folder = liars.path / dataset_of(lie)
    for _ in range(3):
        with refusing(errno.EIO):
            os.listdir(folder)
        for key in (FIRST, FIRST + 3, FIRST + 7, FIRST + 19):
            with refusing(errno.EIO):
                (folder / key_name(key, "txt")).read_bytes()
    lines = [line for line in liars.errors() if f"datas3t/{dataset_of(lie)}/dataranges/" in line]
    assert len(lines) == 1, liars.log

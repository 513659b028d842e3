"""TARs of every writer go up as they are and come back byte for byte; bad ones do not go up at all."""

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.archives import (
    BAD,
    SHORT_NAMES,
    WRITERS,
    Sample,
    Writer,
    go_index,
    key_name,
    samples,
    with_directories,
    with_global_header,
    write_folder,
)
from tests.harness.faultproxy import FaultProxy
from tests.harness.mounts import Mount, Stack, refusal

CHUNK = 256 * 1024
FIRST = 41
GOOD: dict[str, Writer] = WRITERS | {"directories": with_directories, "global-header": with_global_header}
# Those whose archives differ in more than the name of the writer.
DIFFERENT = [
    "gnu-tar",
    "gnu-tar-b1",
    "gnu-tar-v7",
    "bsdtar-pax",
    "tarfile-pax",
    "go",
    "directories",
    "global-header",
]
PLAIN = samples([0, 1, 511, 512, 513, CHUNK - 1, CHUNK, CHUNK + 1, 0, 3_000_007], first=FIRST)
# Names that need extended headers, or two, and one that is not ASCII.
LONG = [
    Sample(f"{FIRST + len(PLAIN) + number:020d}.{extension}", b"content of " + extension.encode(), 10**18)
    for number, extension in enumerate(["x" * 80, "y" * 230, "jpég", "tar.gz", "a b"])
]
KEEPS_FRACTIONS = {"gnu-tar-pax", "bsdtar-pax", "tarfile-pax"}  # of the seconds in times


def made_by(writer: str) -> list[Sample]:
    return PLAIN if writer in SHORT_NAMES else PLAIN + LONG


def content_of(made: list[Sample]) -> dict[str, bytes]:
    return {sample.name: sample.content for sample in made}


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A dataset for every writer, and a mount of them all."""

    stack: Stack
    mount: Mount
    folder: Path  # with the archives


@pytest.fixture(scope="module")
def uploaded(new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploaded]:
    stack, folder = new_stack(), tmp_path_factory.mktemp("archives")
    write_folder(folder / "plain", PLAIN)
    write_folder(folder / "all", PLAIN + LONG)
    for name, write in GOOD.items():
        write(folder / ("plain" if name in SHORT_NAMES else "all"), folder / f"{name}.tar")
    stack.register(*GOOD)
    for name in GOOD:
        stack.upload_tar(name, folder / f"{name}.tar")
    with stack.mount() as opened:
        yield Uploaded(stack, opened, folder)


@pytest.mark.parametrize("writer", GOOD)
def test_a_tar_of_any_writer_is_stored_as_it_is(uploaded: Uploaded, writer: str) -> None:
    last = FIRST + len(made_by(writer)) - 1
    key = f"datas3t/{writer}/dataranges/{FIRST:020d}-{last:020d}.tar"
    assert uploaded.stack.get_object(key) == (uploaded.folder / f"{writer}.tar").read_bytes()


@pytest.mark.parametrize("writer", GOOD)
def test_a_tar_of_any_writer_reads_back_through_the_mount(uploaded: Uploaded, writer: str) -> None:
    folder = uploaded.mount.path / writer
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content_of(made_by(writer))


@pytest.mark.parametrize("writer", WRITERS)
def test_times_are_those_the_writer_recorded(uploaded: Uploaded, writer: str) -> None:
    unit = 1 if writer in KEEPS_FRACTIONS else 10**9
    for sample in made_by(writer):
        shown = os.stat(uploaded.mount.path / writer / sample.name).st_mtime_ns
        assert abs(shown - sample.mtime_ns // unit * unit) < 1000  # tarfile keeps times as floats


def test_a_tar_of_any_writer_comes_down_again_for_gnu_tar_to_unpack(uploaded: Uploaded) -> None:
    last = FIRST + len(PLAIN + LONG) - 1
    keys = "--first", str(FIRST), "--last", str(last)
    commands: list[list[str | Path]] = [
        ["download-tar", name, *keys, "-o", uploaded.folder / f"{name}.down"] for name in GOOD
    ]
    for name, done in zip(GOOD, uploaded.stack.run_each(commands), strict=True):
        assert done.returncode == 0, done.stderr
        unpacked = uploaded.folder / f"{name}.unpacked"
        unpacked.mkdir()
        archive = uploaded.folder / f"{name}.down"
        said = subprocess.run(
            ["tar", "-C", unpacked, "-xf", archive], capture_output=True, text=True, timeout=60, check=True
        )
        assert not said.stderr
        files = {path.name: path.read_bytes() for path in unpacked.iterdir() if path.is_file()}
        assert files == content_of(made_by(name))


def test_what_they_wrote_verifies(uploaded: Uploaded) -> None:
    for done in uploaded.stack.run_each(["verify", name] for name in DIFFERENT):
        assert done.returncode == 0, done.stderr


def test_what_ingest_writes_is_plain_ustar(stack: Stack, tmp_path: Path) -> None:
    stack.register("d")
    (datarange,) = stack.ingest("d", write_folder(tmp_path / "src", PLAIN), start=FIRST)
    archive = tmp_path / "stored.tar"
    archive.write_bytes(stack.get_object(datarange.data_key))
    assert archive.read_bytes()[-1024:] == bytes(1024)
    with tarfile.open(archive) as opened:
        infos = opened.getmembers()
    assert [info.name for info in infos] == [sample.name for sample in PLAIN]
    assert {info.type for info in infos} == {tarfile.REGTYPE}
    assert not any(info.pax_headers for info in infos)


def test_any_zstd_decoder_gets_the_16_byte_records(uploaded: Uploaded, tmp_path: Path) -> None:
    for key in uploaded.stack.objects():
        if not key.startswith("datas3t/go/") or not key.endswith(".index.zst"):
            continue
        (tmp_path / "index.zst").write_bytes(uploaded.stack.get_object(key))
        subprocess.run(["zstd", "-dq", tmp_path / "index.zst"], check=True, timeout=30)
        assert (tmp_path / "index").read_bytes() == go_index(uploaded.folder / "go.tar")
        return
    pytest.fail("there is no index object")


# -- bad ones --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refused:
    """What came of uploading every bad archive into the same empty dataset."""

    stack: Stack
    done: dict[str, subprocess.CompletedProcess[str]]
    folder: Path
    sent: int  # requests that would store something


@pytest.fixture(scope="module")
def refused(new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refused]:
    stack, folder = new_stack(), tmp_path_factory.mktemp("bad")
    for name, bad in BAD.items():
        bad.write(folder / f"{name}.tar")
    with FaultProxy(stack.s3.process.port) as proxy:
        stack.register("d", endpoint=proxy.endpoint)
        done = stack.run_each(["upload-tar", "d", folder / f"{name}.tar", "--json"] for name in BAD)
        sent = sum(proxy.requests(method) for method in ("PUT", "POST"))
        yield Refused(stack, dict(zip(BAD, done, strict=True)), folder, sent)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused_in_one_line_that_names_the_entry(refused: Refused, name: str) -> None:
    message = refusal(refused.done[name])
    assert message.startswith(f"{refused.folder / name}.tar: ")
    assert BAD[name].says in message
    assert message.isprintable()


def test_of_bad_archives_nothing_was_sent_and_their_keys_are_free(refused: Refused, tmp_path: Path) -> None:
    assert refused.sent == 0
    assert refused.stack.objects() == {}
    assert refused.stack.sql("SELECT count(*) FROM key_claims") == "0"
    good = tmp_path / "good.tar"
    write_folder(tmp_path / "src", samples([10, 10], first=7))
    WRITERS["gnu-tar"](tmp_path / "src", good)
    (committed,) = refused.stack.json("upload-tar", "d", good)["dataranges"]
    assert (committed["first_key"], committed["last_key"]) == (7, 8)


def test_a_tar_whose_keys_are_taken_is_refused_by_name(stack: Stack, tmp_path: Path) -> None:
    stack.register("d")
    stack.ingest("d", write_folder(tmp_path / "first", samples([10] * 5)))
    write_folder(tmp_path / "src", samples([10, 10], first=4))
    WRITERS["gnu-tar"](tmp_path / "src", tmp_path / "overlapping.tar")
    before = stack.objects()
    assert "overlapping.tar: datapoints 4 to 5 of d" in stack.refused(
        "upload-tar", "d", tmp_path / "overlapping.tar"
    )
    assert stack.objects() == before
    assert not (tmp_path / key_name(4)).exists()

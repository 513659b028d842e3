"""What the journal's directory must do, on real disks, with all that befalls disks and processes."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.journalcodec import SEGMENT_HEADER_SIZE
from datas3tfs.core.journalrecords import Accepted, Begun, EntryId, Gone, Place, Record, Renamed
from datas3tfs.core.model import DatasetId, UploadId
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Full, Invalid, NotFound, Unavailable
from datas3tfs.journal.reserve import RESERVE_BYTES
from datas3tfs.journal.store import DiskJournal, open_journal
from datas3tfs.ports import JournalContent, JournalStore

HERE = "7b0f6f0e-52fb-4a53-9d4e-2d1c4f8b7a10"  # an installation
ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 60  # seconds for what must not take long

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def content_of(entry: int, size: int = 4096) -> bytes:
    return hashlib.shake_128(str(entry).encode()).digest(size)


def file(entry: int, size: int = 100) -> Accepted:
    """An accepted file with its content inside."""
    content = content_of(entry, size)
    return Accepted(
        EntryId(entry), DatasetId(1), "pets", f"{entry:020d}.jpg", entry, size, crc32c(content), content
    )


def large(entry: int) -> Accepted:
    """An accepted file whose content is elsewhere."""
    return Accepted(EntryId(entry), DatasetId(1), "pets", f"{entry:020d}.tif", entry, 10**7, None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@contextmanager
def opened(
    directory: Path, segment_bytes: int = 1 << 20
) -> Iterator[tuple[DiskJournal, dict[Place, Record]]]:
    """The journal and what was in it."""
    with open_journal(directory, HERE, segment_bytes=segment_bytes) as journal:
        yield journal, {place: record for record, place in journal.records()}


def found_in(directory: Path, segment_bytes: int = 1 << 20) -> list[Record]:
    """What is in the journal; every inline content is checked."""
    with opened(directory, segment_bytes) as (journal, records):
        for place, record in records.items():
            if isinstance(record, Accepted) and record.crc is not None:
                assert crc32c(journal.read(place, 0, record.size)) == record.crc
        return list(records.values())


def entries(records: list[Record]) -> list[int]:
    return [record.entry for record in records if isinstance(record, Accepted)]


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "log").glob("*.seg"))


def numbers(directory: Path) -> list[int]:
    return [int(path.stem) for path in segments(directory)]


def fill(directory: Path, *written: Record, segment_bytes: int = 1 << 20) -> list[Place]:
    with opened(directory, segment_bytes) as (journal, _):
        return [journal.append(record) for record in written]


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def tree(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a directory that a program could change."""
    return {
        str(path): (
            path.stat().st_mode,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [directory, *directory.rglob("*")]
    }


@pytest.fixture(autouse=True)
def no_unexpected_warnings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing is worth a warning, unless the test looks at them itself."""
    unexpected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            unexpected.append(record.getMessage())

    handler = Collector(logging.WARNING)
    logging.getLogger("datas3tfs").addHandler(handler)
    yield
    logging.getLogger("datas3tfs").removeHandler(handler)
    assert "caplog" in inspect.signature(request.function).parameters or unexpected == []


# --- the log ---------------------------------------------------------------------------------------


def test_what_is_appended_is_there_again_when_reopened(directory: Path) -> None:
    written: list[Record] = [
        file(1),
        large(2),
        Renamed(EntryId(1), DatasetId(1), "pets", "other~", EntryId(2)),
        Begun(UploadId(5), (EntryId(1),)),
        Gone((EntryId(1), EntryId(2))),
        file(3, 0),
    ]
    with opened(directory) as (journal, records):
        store: JournalStore = journal
        assert records == {}
        places = [store.append(record) for record in written]
        assert journal.read(places[0], 0, 1000) == content_of(1, 100)
        assert store.log_bytes == sum(path.stat().st_size for path in segments(directory))
    with opened(directory) as (journal, records):
        assert list(records) == places
        assert entries(list(records.values())) == [1, 2, 3]
        assert [record for record in records.values() if not isinstance(record, Accepted)] == written[2:5]
        assert journal.read(places[0], 90, 1000) == content_of(1, 100)[90:]
        assert journal.read(places[0], 100, 10) == b""
        assert journal.read(places[1], 0, 10) == b""
        assert dict(zip(records.values(), places, strict=True)) == dict(journal.records())


def test_the_journal_keeps_its_name(directory: Path) -> None:
    with opened(directory) as (journal, _):
        holder = journal.holder
        assert journal.place.endswith(f":{directory}")
        assert journal.installation == HERE
    with opened(directory) as (journal, _):
        assert journal.holder == holder


def test_nobody_else_can_look_into_it(directory: Path) -> None:
    umask = os.umask(0)
    try:
        with opened(directory) as (journal, _):
            journal.append(file(1))
            journal.create_content(EntryId(2)).close()
    finally:
        os.umask(umask)
    for path in [directory, *directory.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    directory.chmod(0o755)
    assert entries(found_in(directory)) == [1]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_records_are_read_before_anything_is_appended(directory: Path) -> None:
    fill(directory, file(1))
    with open_journal(directory, HERE) as journal, pytest.raises(RuntimeError):
        journal.append(file(2))


def test_a_record_that_cannot_be_written_changes_nothing(directory: Path) -> None:
    with opened(directory) as (journal, _):
        journal.append(file(1))
        with pytest.raises(Invalid):
            journal.append(Gone((EntryId(-1),)))
        journal.append(file(2))
    assert entries(found_in(directory)) == [1, 2]


# --- segments come and go --------------------------------------------------------------------------


def test_segments_go_in_order_whatever_the_order_of_drops(directory: Path) -> None:
    with opened(directory, 1000) as (journal, _):
        places = [journal.append(file(entry, 300)) for entry in range(10)]
        assert numbers(directory) == [1, 2, 3, 4]
        assert [place.segment for place in places] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
        for place in places[3:6]:  # all of the second
            journal.drop(place)
        journal.drop(places[0])
        journal.drop(places[0])  # once more is harmless
        journal.drop(places[1])
        assert (numbers(directory), journal.oldest()) == ([1, 2, 3, 4], 1)
        journal.drop(places[2])
        assert (numbers(directory), journal.oldest()) == ([3, 4], 3)
        for place in places[6:]:
            journal.drop(place)
        assert (numbers(directory), journal.oldest()) == ([4], None)
        assert journal.log_bytes == sum(path.stat().st_size for path in segments(directory))
        with pytest.raises(Unavailable):
            journal.read(places[0], 0, 300)
        assert journal.read(places[9], 0, 300) == content_of(9, 300)  # it is still there to be read
    assert entries(found_in(directory)) == [9]


def test_moving_what_is_left_frees_the_oldest_segment(directory: Path) -> None:
    with opened(directory, 1000) as (journal, _):
        places = [journal.append(file(entry, 300)) for entry in range(9)]
        for place in places[1:]:
            journal.drop(place)
        assert journal.oldest() == 1
        journal.append(file(0, 300))
        journal.drop(places[0])
        assert numbers(directory) == [4]
        assert journal.oldest() is None
    assert entries(found_in(directory)) == [0]


def test_what_nothing_needs_goes_when_opened(directory: Path) -> None:
    fill(directory, file(1, 2000), *(Gone((EntryId(n),)) for n in range(200)), segment_bytes=1000)
    assert len(segments(directory)) > 3
    segments(directory)[0].unlink()
    last = numbers(directory)[-1]
    with opened(directory, 1000) as (journal, _):
        assert numbers(directory) == [last]
        assert journal.oldest() is None
        journal.append(file(1))
        assert numbers(directory) == [last + 1]  # numbers go on


def test_what_is_superseded_goes_when_it_is_dropped_after_a_replay(directory: Path) -> None:
    fill(directory, *(file(1, 300) for _ in range(9)), segment_bytes=1000)
    with open_journal(directory, HERE, segment_bytes=1000) as journal:
        previous: Place | None = None
        for record, place in journal.records():
            assert isinstance(record, Accepted)
            if previous is not None:
                journal.drop(previous)
                assert numbers(directory) == [1, 2, 3]  # not while it is being read
            previous = place
        assert numbers(directory) == [3]
        assert journal.oldest() == 3
        assert previous is not None
        assert journal.read(previous, 0, 300) == content_of(1, 300)
    assert entries(found_in(directory, 1000)) == [1, 1, 1]


def test_each_process_appends_to_a_segment_of_its_own(directory: Path) -> None:
    for entry in range(3):
        fill(directory, file(entry))
    assert numbers(directory) == [1, 2, 3]
    with opened(directory):
        pass
    assert numbers(directory) == [1, 2, 3]  # none is made for nothing


# --- what a killed process, and a bad disk, leave ---------------------------------------------------


def test_a_tail_torn_anywhere_is_cut_off(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(directory, file(1), Gone((EntryId(9),)))
    size = segments(directory)[0].stat().st_size
    shutil.rmtree(directory)
    fill(directory, file(1), Gone((EntryId(9),)), file(2))
    complete = segments(directory)[0].stat().st_size
    for cut in range(size + 1, complete):
        torn = tmp_path / "torn"
        shutil.copytree(directory, torn)
        os.truncate(segments(torn)[0], cut)
        caplog.clear()
        with opened(torn) as (journal, records):
            assert entries(list(records.values())) == [1]
            assert journal.log_bytes == size
        (warning,) = messages(caplog, logging.WARNING)
        assert f" {cut - size} bytes" in warning
        assert segments(torn)[0].stat().st_size == size
        caplog.clear()
        fill(torn, file(3))
        assert entries(found_in(torn)) == [1, 3]
        assert messages(caplog, logging.WARNING) == []
        shutil.rmtree(torn)


@pytest.mark.parametrize("size", [0, 1, SEGMENT_HEADER_SIZE - 1, SEGMENT_HEADER_SIZE])
def test_a_segment_that_was_hardly_begun(
    directory: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    fill(directory, file(1))
    fill(directory, file(2))
    os.truncate(segments(directory)[1], size)
    for _ in range(2):
        assert entries(found_in(directory)) == [1]
    assert len(messages(caplog, logging.WARNING)) == (size not in (0, SEGMENT_HEADER_SIZE))
    caplog.clear()
    fill(directory, file(3))
    assert entries(found_in(directory)) == [1, 3]
    assert numbers(directory) == [1, 2, 3]


def damage(path: Path, offset: int, data: bytes = b"\xff\xff\xff") -> None:
    with path.open("r+b") as opened_file:
        opened_file.seek(offset)
        opened_file.write(data)


@pytest.mark.parametrize("is_last", [False, True])
def test_damage_costs_one_record_and_the_segment_is_put_aside(
    directory: Path, is_last: bool, caplog: pytest.LogCaptureFixture
) -> None:
    places = fill(directory, *(file(entry) for entry in range(5)))
    if not is_last:
        fill(directory, file(5))
    first = segments(directory)[0]
    damage(first, places[2].offset + 5)
    kept = first.read_bytes()
    left = [0, 1, 3, 4] + ([] if is_last else [5])
    for _ in range(2):  # it is there for as long as it is needed
        caplog.clear()
        assert entries(found_in(directory)) == left
        (error,) = messages(caplog, logging.ERROR)
        assert str(first) in error
        assert messages(caplog, logging.WARNING) == []
    with opened(directory) as (journal, records):
        assert journal.read(places[4], 0, 100) == content_of(4, 100)
        journal.append(file(6))
        for place, record in records.items():
            if place.segment == 1 and isinstance(record, Accepted):
                journal.drop(place)
    assert first.with_suffix(".seg.damaged").read_bytes() == kept
    caplog.clear()
    assert entries(found_in(directory)) == ([6] if is_last else [5, 6])
    assert messages(caplog, logging.ERROR) == []


def test_the_last_record_damaged_is_no_torn_tail(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    places = fill(directory, file(1), file(2))
    size = segments(directory)[0].stat().st_size
    damage(segments(directory)[0], places[1].offset + 5)
    assert entries(found_in(directory)) == [1]
    assert segments(directory)[0].stat().st_size == size
    assert len(messages(caplog, logging.ERROR)) == 1


def test_a_tail_missing_from_an_earlier_segment_is_damage(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(directory, file(1), file(2))
    fill(directory, file(3))
    first = segments(directory)[0]
    os.truncate(first, first.stat().st_size - 5)
    size = first.stat().st_size
    assert entries(found_in(directory)) == [1, 3]
    assert len(messages(caplog, logging.ERROR)) == 1
    assert first.stat().st_size == size


def test_a_segment_of_another_journal_is_not_believed(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(directory, file(1))
    fill(tmp_path / "other", file(2))
    shutil.copy(segments(tmp_path / "other")[0], directory / "log" / f"{2:016d}.seg")
    assert entries(found_in(directory)) == [1]
    assert len(messages(caplog, logging.ERROR)) == 1


def test_content_that_has_gone_is_said_to_be(directory: Path) -> None:
    with opened(directory) as (journal, _):
        place = journal.append(file(1))
        os.truncate(segments(directory)[0], place.offset + 50)
        assert journal.read(place, 0, 50) == content_of(1, 100)[:50]
        with pytest.raises(Corrupt):
            journal.read(place, 0, 100)


APPENDER = """
import hashlib, sys
from pathlib import Path
from tests.contract.test_journal_store import HERE, content_of, file, large, opened
from datas3tfs.core.journalrecords import EntryId
with opened(Path(sys.argv[1]), 200_000) as (journal, records):
    entry = max((record.entry for record in records.values()), default=0)
    while True:
        entry += 1
        if entry % 50:
            journal.append(file(entry, entry * 7919 % 20_000))
        else:
            content = journal.create_content(EntryId(entry))
            content.write(0, content_of(entry, 150_000))
            journal.append(large(entry))
            content.close()
        sys.stdout.write(f"{entry}\\n")
        sys.stdout.flush()
"""

OWNER = """
import sys, time
from pathlib import Path
from tests.contract.test_journal_store import opened
with opened(Path(sys.argv[1])):
    print("opened", flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
            process.wait(PATIENCE)


def test_nothing_that_was_appended_is_lost_when_the_process_is_killed(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(7)
    reported: list[int] = []
    for _ in range(5):
        with child(APPENDER, directory) as process:
            assert process.stdout is not None
            reported += [int(process.stdout.readline()) for _ in range(rng.randrange(200, 1500))]
            process.kill()
            reported += [int(line) for line in process.stdout if line.endswith("\n")]
    assert messages(caplog, logging.ERROR) == []
    found = found_in(directory, 200_000)
    assert set(reported) <= set(entries(found))
    with opened(directory, 200_000) as (journal, _):
        for entry in reported:
            if entry % 50 == 0:
                content = journal.open_content(EntryId(entry))
                assert content.read(0, 200_000) == content_of(entry, 150_000)
                content.close()


# --- who may open it --------------------------------------------------------------------------------


def test_one_process_at_a_time_until_it_dies(directory: Path) -> None:
    with child(OWNER, directory) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "opened\n"
        with pytest.raises(Conflict, match=rf"in use by process {process.pid}\b"), opened(directory):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        with opened(directory) as (journal, _), pytest.raises(Conflict), opened(directory):
            journal.append(file(1))
    with opened(directory):
        pass


def test_another_installation_is_refused(directory: Path) -> None:
    fill(directory, file(1))
    before = tree(directory / "log")
    other = HERE.replace("7", "8")
    for read_only in (False, True):
        with (
            pytest.raises(Invalid, match="another installation"),
            open_journal(directory, other, read_only=read_only),
        ):
            pass
    assert tree(directory / "log") == before
    with open_journal(directory, None) as journal:
        assert entries([record for record, _ in journal.records()]) == [1]


def test_without_an_installation_no_journal_is_made(directory: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(NotFound), open_journal(directory, None, read_only=read_only):
            pass
        assert not directory.exists()
    directory.mkdir()
    with pytest.raises(NotFound), open_journal(directory, None):
        pass


def test_a_newer_format_is_refused(directory: Path) -> None:
    fill(directory, file(1))
    path = directory / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2, "holder": 5}))
    with pytest.raises(Invalid, match="newer"), opened(directory):
        pass


GARBAGE = {
    "empty": b"",
    "binary": b"\x00\xff" * 100,
    "no object": b"[]",
    "a number": b"1",
    "deep": b"[" * 60_000,
    "missing": b'{"format": 1}',
    "no version": b'{"format": true, "holder": "", "installation": "", "created": ""}',
    "version 0": b'{"format": 0, "holder": "", "installation": "", "created": ""}',
    "no uuid": b'{"format": 1, "holder": "me", "installation": "x", "created": ""}',
    "no string": b'{"format": 1, "holder": "%b", "installation": 3, "created": ""}' % HERE.encode(),
    "huge": b" " * 70_000 + b'{"format": 1}',
}


@pytest.mark.parametrize("case", GARBAGE)
def test_a_damaged_identity_is_not_replaced(directory: Path, case: str) -> None:
    fill(directory, file(1))
    (directory / "identity.json").write_bytes(GARBAGE[case])
    for read_only in (False, True):
        with pytest.raises(Corrupt), open_journal(directory, HERE, read_only=read_only):
            pass
    assert (directory / "identity.json").read_bytes() == GARBAGE[case]


@pytest.mark.parametrize("what", ["log", "content"])
def test_a_lost_identity_is_not_made_anew(directory: Path, what: str) -> None:
    with opened(directory) as (journal, _):
        if what == "log":
            journal.append(file(1))
        else:
            journal.create_content(EntryId(1)).close()
    (directory / "identity.json").unlink()
    with pytest.raises(Corrupt, match="missing"), opened(directory):
        pass
    assert not (directory / "identity.json").exists()


def test_a_journal_whose_making_was_interrupted_is_made(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / "lock").touch()
    (directory / "identity.json.new").write_bytes(b"{")
    fill(directory, file(1))
    assert entries(found_in(directory)) == [1]


@needs_root
@pytest.mark.parametrize("what", [".", "log", "content"])
def test_a_directory_of_another_user_is_refused(directory: Path, what: str) -> None:
    fill(directory, file(1))
    os.chown(directory / what, 12345, -1)
    with pytest.raises(Unavailable, match="another user"), opened(directory):
        pass


@pytest.mark.parametrize("what", ["log", "content"])
def test_a_link_in_place_of_a_directory_is_refused(directory: Path, tmp_path: Path, what: str) -> None:
    fill(directory, file(1))
    (directory / what).rename(tmp_path / "elsewhere")
    (directory / what).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable), opened(directory):
        pass


def test_a_link_in_place_of_a_file_is_refused(directory: Path, tmp_path: Path) -> None:
    with opened(directory) as (journal, _):
        journal.append(file(1))
        journal.create_content(EntryId(2)).close()
    for path in (segments(directory)[0], directory / "content" / f"{2:016d}"):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    with open_journal(directory, HERE) as journal:
        with pytest.raises(Unavailable):
            list(journal.records())
        with pytest.raises(Unavailable):
            journal.open_content(EntryId(2))


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="file/journal"), opened(tmp_path / "file" / "journal"):
        pass


# --- reading only -----------------------------------------------------------------------------------


def test_reading_only_changes_nothing(directory: Path) -> None:
    fill(directory, file(8), file(9))
    places = fill(directory, file(1), file(2), segment_bytes=1000)
    os.truncate(segments(directory)[-1], places[-1].offset + 3)
    before = tree(directory)
    with open_journal(directory, None, read_only=True) as journal:
        assert journal.owner is None
        records = list(journal.records())
        assert entries([record for record, _ in records]) == [8, 9, 1]
        assert journal.read(places[0], 0, 100) == content_of(1, 100)
        for _, place in records:
            journal.drop(place)
        changes: list[Callable[[], object]] = [
            lambda: journal.append(file(3)),
            lambda: journal.create_content(EntryId(1)),
            journal.sync,
        ]
        for change in changes:
            with pytest.raises(Unavailable, match="reading only"):
                change()
        assert tree(directory) == before


def test_reading_only_is_in_nobodys_way(directory: Path) -> None:
    fill(directory, file(1))
    with open_journal(directory, None, read_only=True) as journal:
        assert entries(found_in(directory)) == [1]
        assert entries([record for record, _ in journal.records()]) == [1]


def test_reading_only_while_another_process_has_it(directory: Path) -> None:
    with opened(directory) as (journal, _):
        journal.append(file(1))
        content = journal.create_content(EntryId(2))
        content.write(0, b"content")
        with open_journal(directory, HERE, read_only=True) as reader:
            assert reader.owner == str(os.getpid())
            assert entries([record for record, _ in reader.records()]) == [1]
            assert reader.contents() == [2]
            read = reader.open_content(EntryId(2))
            assert read.read(0, 100) == b"content"
            with pytest.raises(Unavailable):
                read.write(0, b"x")
            read.close()
        content.close()
        journal.append(file(3))


# --- content files ----------------------------------------------------------------------------------


def test_a_content_file(directory: Path) -> None:
    with opened(directory) as (journal, _):
        content: JournalContent = journal.create_content(EntryId(5))
        content.write(3, memoryview(b"hello"))
        assert content.size() == 8
        assert content.read(0, 100) == b"\0\0\0hello"
        assert content.read(4, 2) == b"el"
        assert content.read(8, 10) == b""
        content.truncate(5)
        content.truncate(7)
        assert content.read(0, 100) == b"\0\0\0he\0\0"
        content.sync()
        journal.sync()
        with pytest.raises(Unavailable):
            journal.create_content(EntryId(5))  # it is never overwritten
        content.close()
    with opened(directory) as (journal, _):
        assert journal.contents() == [5]
        content = journal.open_content(EntryId(5))
        content.remove()
        content.remove()
        assert journal.contents() == []
        assert content.read(3, 2) == b"he"  # whoever has it open still reads it
        content.write(0, b"x")
        content.close()
        content.close()
        with pytest.raises(Unavailable):
            content.read(0, 1)
        with pytest.raises(NotFound):
            journal.open_content(EntryId(5))


def test_what_is_no_content_of_ours_is_let_be(directory: Path) -> None:
    with opened(directory) as (journal, _):
        (directory / "content" / "lost+found").mkdir()
        (directory / "content" / "7").touch()
        journal.create_content(EntryId(10**17)).close()
        journal.create_content(EntryId(3)).close()
        assert journal.contents() == [3, 10**17]


def test_a_content_closed_while_it_is_read_never_reads_another_file(directory: Path) -> None:
    with opened(directory) as (journal, _):
        failures: list[bytes] = []
        for entry in range(300):
            content = journal.create_content(EntryId(entry))
            content.write(0, bytes([entry % 251]) * 50_000)
            started = threading.Event()

            def read(
                content: JournalContent = content, mark: int = entry % 251, started: threading.Event = started
            ) -> None:
                started.set()
                with suppress(Unavailable):
                    while True:
                        data = content.read(0, 50_000)
                        if data != bytes([mark]) * 50_000:
                            failures.append(data[:10])
                            return

            reader = threading.Thread(target=read)
            reader.start()
            started.wait(PATIENCE)
            content.remove()
            content.close()
            other = [journal.create_content(EntryId(10_000 + 4 * entry + i)) for i in range(4)]
            for one in other:
                one.write(0, b"\xff" * 50_000)
            reader.join(PATIENCE)
            for one in other:
                one.remove()
                one.close()
        assert failures == []


# --- threads ----------------------------------------------------------------------------------------


def test_threads_read_the_right_bytes_or_none_while_segments_go(directory: Path) -> None:
    with opened(directory, 20_000) as (journal, _):
        live: dict[int, Place] = {}
        stop = threading.Event()
        wrong: list[object] = []
        reads = [0, 0]

        def read() -> None:
            rng = random.Random()
            while not stop.is_set():
                try:
                    entry, place = rng.choice(list(live.items()))
                    data = journal.read(place, 0, 3000)
                except (Unavailable, IndexError, RuntimeError):  # dropped; empty; changed while we looked
                    reads[1] += 1
                    continue
                reads[0] += 1
                if data != content_of(entry, 3000):
                    wrong.append(entry)

        def sync() -> None:
            while not stop.is_set():
                try:
                    journal.sync()
                except Datas3tError as exc:
                    wrong.append(exc)

        threads = [threading.Thread(target=target) for target in (read, read, read, sync, sync)]
        for thread in threads:
            thread.start()
        try:
            for entry in range(6000):
                live[entry] = journal.append(file(entry, 3000))
                if entry >= 60:
                    journal.drop(live[entry - 60])
                    if entry >= 80:
                        del live[entry - 80]
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert wrong == []
        assert reads[0] > 100
        assert len(segments(directory)) < 15


def test_a_sync_waits_for_the_one_before_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()
    fdatasync = os.fdatasync

    def slow(descriptor: int) -> None:
        inside.set()
        assert go_on.wait(PATIENCE)
        fdatasync(descriptor)

    with opened(directory) as (journal, _):
        journal.append(file(1))
        monkeypatch.setattr(os, "fdatasync", slow)
        done: list[None] = []

        def sync() -> None:
            journal.sync()
            done.append(None)

        threads = [threading.Thread(target=sync) for _ in range(2)]
        threads[0].start()
        assert inside.wait(PATIENCE)
        threads[1].start()
        threads[1].join(0.1)
        assert done == []
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(done) == 2


def test_what_the_disk_has_lost_is_never_said_to_be_safe(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    with opened(directory) as (journal, _):
        place = journal.append(file(1))
        content = journal.create_content(EntryId(2))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            for sync in (journal.sync, content.sync):
                with pytest.raises(Unavailable, match="I/O error"):
                    sync()
        for sync in (journal.sync, content.sync):  # the kernel would now say that all is well
            with pytest.raises(Unavailable, match="lost"):
                sync()
        content.close()
        moved = journal.append(file(1))
        assert (place.segment, moved.segment) == (1, 2)
        with pytest.raises(Unavailable, match="lost"):
            journal.sync()
        journal.drop(place)
        journal.sync()


def test_the_first_sync_covers_what_a_killed_process_wrote(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(directory, file(1))
    fill(directory, file(2))
    synced: list[str] = []
    fdatasync = os.fdatasync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fdatasync(descriptor)

    with opened(directory) as (journal, _):
        monkeypatch.setattr(os, "fdatasync", watched)
        journal.append(file(3))
        journal.sync()
        assert synced == list(map(str, segments(directory)))
        synced.clear()
        journal.sync()
        assert synced == []
        journal.append(file(4))
        journal.sync()
        assert synced == [str(segments(directory)[-1])]


# --- no room ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0755", "tmpfs", path], check=True, timeout=PATIENCE
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True, timeout=PATIENCE)


def append_until_full(journal: DiskJournal, first: int, size: int) -> dict[int, Place]:
    places: dict[int, Place] = {}
    for entry in range(first, first + 10_000):
        before = journal.log_bytes
        try:
            places[entry] = journal.append(file(entry, size))
        except Full:
            assert journal.log_bytes == before
            return places
    pytest.fail("the disk does not get full")


@pytest.mark.parametrize("segment_bytes", [100_000, 1 << 30])
def test_a_full_disk_refuses_files_and_nothing_else(small_disk: Path, segment_bytes: int) -> None:
    directory = small_disk / "journal"
    ballast = small_disk / "ballast"
    with opened(directory, segment_bytes) as (journal, _):
        assert 0 < journal.free_bytes() <= 4 << 20
        ballast.write_bytes(bytes(1 << 20))
        places = append_until_full(journal, 0, 9_999)
        append_until_full(journal, 10_000, 9_999)  # it stays so
        done = Gone(tuple(EntryId(n) for n in range(50_000)))  # of a size that does not fit
        journal.append(done)
        with pytest.raises(Full):
            journal.append(file(20_000, 10))
        journal.append(Gone((EntryId(5),)))  # what little there is, is for these
        ballast.unlink()
        journal.append(file(30_000))
        for entry, place in places.items():
            assert journal.read(place, 0, 9_999) == content_of(entry, 9_999)
        assert (directory / "reserve").stat().st_size == RESERVE_BYTES
        assert journal.log_bytes == sum(path.stat().st_size for path in segments(directory))
    left = found_in(directory, segment_bytes)
    assert entries(left) == [*places, 30_000]
    assert done in left


def test_a_content_file_on_a_full_disk(small_disk: Path) -> None:
    with opened(small_disk / "journal") as (journal, _):
        content = journal.create_content(EntryId(1))
        with pytest.raises(Full):
            content.write(0, bytes(8 << 20))
        with pytest.raises(Full):
            content.write(8 << 20, b"more")
        content.truncate(0)
        content.write(0, b"again")
        assert content.read(0, 10) == b"again"
        content.close()


def test_a_journal_on_a_full_disk_opens_and_can_be_emptied(small_disk: Path) -> None:
    directory = small_disk / "journal"
    with opened(directory, 100_000) as (journal, _):
        append_until_full(journal, 0, 50_000)
    with suppress(OSError):
        (small_disk / "ballast").write_bytes(bytes(4 << 20))
    with opened(directory, 100_000) as (journal, records):
        journal.append(
            Begun(
                UploadId(1),
                tuple(record.entry for record in records.values() if isinstance(record, Accepted)),
            )
        )
        journal.append(Gone((EntryId(1),)))
        for place in records:
            journal.drop(place)
        assert len(segments(directory)) == 1
        journal.append(file(1))


LIMITED = """
import resource, sys
from pathlib import Path
from tests.contract.test_journal_store import file, opened
from datas3tfs.core.journalrecords import EntryId
from datas3tfs.errors import Unavailable
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))
with opened(Path(sys.argv[1]), 1 << 30) as (journal, _):
    failed = 0
    for entry in range(20):
        try:
            journal.append(file(entry, 400_000 if entry < 6 else 1000))
            print(entry, flush=True)
        except Unavailable:
            failed += 1
    assert failed == 3, failed
    content = journal.create_content(EntryId(1))
    try:
        content.write(0, bytes(2_000_000))
    except Unavailable:
        print("refused", flush=True)
"""


def test_a_write_that_stops_halfway_leaves_no_trace(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, directory], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    *written, refused = done.stdout.split()
    assert refused == "refused"
    assert list(map(str, entries(found_in(directory)))) == written


def test_half_a_record_that_cannot_be_cut_off_ends_the_segment(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pwritev = os.pwritev

    def halfway(descriptor: int, buffers: list[bytes], offset: int) -> int:
        pwritev(descriptor, [buffers[0][:-3]], offset)
        raise OSError(errno.EIO, "I/O error")

    def fails(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    with opened(directory) as (journal, _):
        journal.append(file(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", halfway)
            patch.setattr(os, "ftruncate", fails)
            with pytest.raises(Unavailable, match="I/O error"):
                journal.append(file(2))
        assert len(messages(caplog, logging.WARNING)) == 1
        journal.append(file(3))
        assert numbers(directory) == [1, 2]
    assert entries(found_in(directory)) == [1, 3]


def test_a_segment_that_cannot_be_deleted_is_tried_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with opened(directory, 1000) as (journal, _):
        places = [journal.append(file(entry, 1000)) for entry in range(4)]
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", fails)
            journal.drop(places[0])
        assert numbers(directory) == [1, 2, 3, 4]
        assert len(messages(caplog, logging.WARNING)) == 1
        journal.drop(places[1])
        assert numbers(directory) == [3, 4]

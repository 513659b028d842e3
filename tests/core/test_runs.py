"""Runs: datapoints looked at together are what they are one by one, or are left to whoever does that."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core import headers
from datas3tfs.core.runs import Run, RunFinder
from datas3tfs.core.scan import Scanned, scan
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid
from tests.harness.archives import WRITERS, key_name, samples, write_folder

SIZES = [0, 1, 511, 512, 513, 5000, 0, 70, 3, 9, 700, 12]
ALL = Span(0, 2**63)


def packed(names: list[str], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a TAR of files with *names*, each of another size, and times that change."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as opened:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = SIZES[number % len(SIZES)], 1_700_000_000 + number
            opened.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def runs_of(raw: bytes, first: int = 0) -> list[Run]:
    """Return all runs there are from the beginning on, up to the first place where there is none."""
    finder, at, found = RunFinder(), 0, list[Run]()
    while (run := finder.find(memoryview(raw), at, Span(first, 2**63))) is not None:
        found.append(run)
        at, first = run.stop, first + len(run.names)
    return found


def said_by(run: Run) -> list[tuple[str, int, int, int]]:
    return list(zip(run.names, run.starts, run.sizes, run.seconds, strict=True))


def said_one_by_one(scanned: list[Scanned]) -> list[tuple[str, int, int, int]]:
    return [
        (str(one.name), one.offset + 512 * one.header_blocks, one.size, one.mtime_ns // 10**9)
        for one in scanned
    ]


@pytest.mark.parametrize("extensions", [["bin"], ["jpg", "json", "tar.gz", "ü", "x" * 79]])
def test_many_are_found_whatever_their_extensions(extensions: list[str]) -> None:
    raw = packed([key_name(key, extensions[key % len(extensions)]) for key in range(10_000)])
    runs = runs_of(raw)
    assert [line for run in runs for line in said_by(run)] == said_one_by_one(list(scan([raw])))
    assert len(runs) < 10


def test_what_bsdtar_writes_is_plain_too(tmp_path: Path) -> None:
    # It ends its numbers with a space.
    archive = tmp_path / "a.tar"
    WRITERS["bsdtar-ustar"](write_folder(tmp_path / "src", samples(SIZES)), archive)
    (run,) = runs_of(archive.read_bytes())
    assert len(run.names) == len(SIZES)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_run_ends_before_what_has_more_headers(form: int) -> None:
    names = [key_name(key, "y" * 90 if key in (7, 20) else "bin") for key in range(30)]
    raw, finder = packed(names, form), RunFinder()
    scanned = list(scan([raw]))
    run = finder.find(memoryview(raw), 0, ALL)
    assert run is not None
    assert run.names == names[:7]
    assert run.stop == scanned[7].offset
    assert finder.find(memoryview(raw), run.stop, Span(7, 30)) is None
    run = finder.find(memoryview(raw), scanned[8].offset, Span(8, 30))
    assert run is not None
    assert run.names == names[8:20]


def test_no_more_than_was_asked_for() -> None:
    run = RunFinder().find(memoryview(packed([key_name(key) for key in range(30)])), 0, Span(0, 9))
    assert run is not None
    assert len(run.names) == 9


def test_what_is_not_there_whole_is_left() -> None:
    raw = packed([key_name(key) for key in range(12)])
    scanned = list(scan([raw]))
    for cut in range(scanned[5].offset, scanned[6].offset + 512, 100):
        run = RunFinder().find(memoryview(raw[:cut]), 0, ALL)
        assert run is not None
        assert run.names == [key_name(key) for key in range(5 if cut < scanned[6].offset else 6)]


def test_headers_in_another_form_are_not_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = bytearray(packed([key_name(key) for key in range(3000)]))
    for one in scan([bytes(raw)]):
        header = raw[one.offset : one.offset + 512]
        header[136:148] = b"%10o\0\0" % 1  # a time that is right, and not padded with zeros
        header[148:156] = b"        "
        header[148:156] = b"%06o\0 " % sum(header)
        raw[one.offset : one.offset + 512] = header
    looked_at, read_columns = list[int](), headers.read_columns

    def counting(rows: headers.Bytes, names: Sequence[bytes]) -> headers.Columns:
        looked_at.append(len(rows))
        return read_columns(rows, names)

    monkeypatch.setattr(headers, "read_columns", counting)
    finder = RunFinder()
    for key, one in enumerate(scan([bytes(raw)])):
        assert finder.find(memoryview(raw), one.offset, Span(key, 3000)) is None
    assert 0 < sum(looked_at) <= 3000


@given(st.integers(0, 11), st.integers(0, 511), st.binary(min_size=1, max_size=20))
def test_whatever_a_header_says_a_run_says_no_more_than_the_scan(slot: int, at: int, text: bytes) -> None:
    raw = bytearray(WHOLE)
    start = PLACES[slot].offset
    raw[start + at : start + min(512, at + len(text))] = text[: 512 - at]
    header = raw[start : start + 512]
    header[148:156] = b"        "
    raw[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    said = [line for run in runs_of(bytes(raw)) for line in said_by(run)]
    right = list[Scanned]()
    try:
        for one in scan([bytes(raw)]):
            right.append(one)
    except Invalid:
        pass
    assert said == said_one_by_one(right)[: len(said)]
    assert len(said) >= slot or slot < 4


WHOLE = packed([key_name(key) for key in range(12)])
PLACES = list(scan([WHOLE]))

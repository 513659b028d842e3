"""The walk through part of a TAR: whatever the pieces it comes in, just what was asked for, or nothing."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.client.datapoints import Content
from datas3tfs.client.walking import Mangled, Walked, Walker
from datas3tfs.core.scan import Scanned, scan
from datas3tfs.core.spans import Span
from datas3tfs.core.tar import padded
from tests.harness.archives import WRITERS, key_name, noise, samples, write_folder

SIZES = [0, 1, 511, 512, 513, 10_000, 0, 300_000, 7]


def held(size: int) -> Content:
    return Content(size, 100_000)


def walked(walker: Walker, raw: bytes, *cuts: int) -> list[Walked]:
    found: list[Walked] = []
    borders = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    for start, stop in itertools.pairwise(borders):
        found += walker.feed(raw[start:stop])
    walker.finish()
    return found


def content_of(one: Walked) -> bytes:
    assert isinstance(one.sink, Content)
    return one.sink.read()


def part_of(raw: bytes, scanned: list[Scanned], first: int, last: int) -> bytes:
    """Return the bytes of the entries *first* to *last*, as the server names them."""
    end = scanned[last]
    return raw[scanned[first].offset : end.offset + end.header_blocks * 512 + padded(end.size)]


@pytest.mark.parametrize("writer", WRITERS)
def test_what_any_program_has_written_is_found_whatever_the_pieces(writer: str, tmp_path: Path) -> None:
    made = samples(SIZES, first=40)
    folder, archive = write_folder(tmp_path / "src", made), tmp_path / "a.tar"
    WRITERS[writer](folder, archive)
    raw = archive.read_bytes()
    scanned = list(scan([raw]))
    for first, last in ((0, 8), (3, 5), (8, 8), (0, 0)):
        part = part_of(raw, scanned, first, last)
        for step in (1 << 20, 512, 700):
            crcs = [one.crc for one in scanned[first : last + 1]]
            walker = Walker(Span(40 + first, 41 + last), crcs, held)
            found = walked(walker, part, *range(step, len(part), step))
            assert [(one.key, one.name, content_of(one)) for one in found] == [
                (40 + at, made[at].name, made[at].content) for at in range(first, last + 1)
            ]
            assert [one.mtime_ns for one in found] == [one.mtime_ns for one in scanned[first : last + 1]]


@given(cuts=st.lists(st.integers(1, 20_000), max_size=8), flip=st.integers(0, 13_823))
def test_no_flipped_bit_gets_through(cuts: list[int], flip: int) -> None:
    contents = [noise(size, size) for size in (3000, 0, 9000)]
    raw = archive_of(contents)
    scanned = list(scan([raw]))
    part = part_of(raw, scanned, 0, 2)
    assert len(part) == 13_824
    crcs = [one.crc for one in scanned]
    assert [content_of(one) for one in walked(Walker(Span(0, 3), crcs, held), part, *cuts)] == contents
    damaged = part[:flip] + bytes([part[flip] ^ 4]) + part[flip + 1 :]
    if any(content_stop(one) <= flip < padded(content_stop(one)) for one in scanned):
        assert [content_of(one) for one in walked(Walker(Span(0, 3), crcs, held), damaged, *cuts)] == contents
    else:
        with pytest.raises(Mangled, match="datapoint 0000000000000000000"):
            walked(Walker(Span(0, 3), crcs, held), damaged, *cuts)


def content_stop(one: Scanned) -> int:
    return one.offset + 512 * one.header_blocks + one.size


def archive_of(contents: list[bytes], first: int = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as opened:
        for key, content in enumerate(contents, first):
            info = tarfile.TarInfo(key_name(key))
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return out.getvalue()


THREE = archive_of([b"a" * 600, b"b", b"c" * 600])
WRONG: dict[str, tuple[Span, bytes]] = {
    "an error page": (Span(0, 3), b"<html>It works!</html>".ljust(4096, b" ")),
    "zeros": (Span(0, 3), bytes(4096)),
    "other keys": (Span(1, 4), THREE[:4096]),
    "one too many": (Span(0, 2), THREE[:4096]),
    "one too few": (Span(0, 4), THREE[:4096]),
    "cut in content": (Span(0, 3), THREE[:3500]),
    "cut in a header": (Span(0, 3), THREE[:1600]),
    "cut in padding": (Span(0, 3), THREE[:4095]),
    "the end of the archive after it": (Span(0, 3), THREE[: 4096 + 512]),
    "nothing": (Span(0, 3), b""),
    "shifted": (Span(0, 3), THREE[512 : 512 + 4096]),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_was_not_asked_for_is_refused(what: str) -> None:
    keys, raw = WRONG[what]
    with pytest.raises(Mangled):
        walked(Walker(keys, None, held), raw, 512, 1000, 3000)


def test_the_tail_is_what_has_not_become_a_whole_datapoint() -> None:
    walker = Walker(Span(0, 3), None, held)
    seen = []
    for at in range(0, 4096, 256):
        walker.feed(THREE[at : at + 256])
        seen.append(walker.tail)
    # Entries of 1,536, 1,024 and 1,536 bytes … of which the first ends after 6 steps.
    whole = [0] * 5 + [1536] * 4 + [2560] * 6 + [4096]
    assert seen == [256 * (step + 1) - whole[step] for step in range(16)]


def outcome(walker: Walker, raw: bytes, *cuts: int) -> tuple[list[tuple[object, ...]], str]:
    """Return what a walker finds, and what is wrong behind that."""
    found: list[Walked] = []
    try:
        for start, stop in itertools.pairwise([0, *cuts, len(raw)]):
            found += walker.feed(raw[start:stop])
        walker.finish()
    except Mangled as exc:
        return [described(one) for one in found], str(exc)
    return [described(one) for one in found], ""


def described(one: Walked) -> tuple[object, ...]:
    return one.key, one.name, one.size, one.mtime_ns, one.crc, content_of(one)


MANY = archive_of([noise(key * 37 % 1300, key) for key in range(40)], first=5)
MANY_SCANNED = list(scan([MANY]))
MANY_PART = part_of(MANY, MANY_SCANNED, 0, 39)


@given(flip=st.integers(0, len(MANY_PART) - 1), bit=st.integers(0, 7), cut=st.integers(0, len(MANY_PART)))
def test_many_at_once_are_judged_as_each_by_itself(flip: int, bit: int, cut: int) -> None:
    damaged = bytearray(MANY_PART)
    damaged[flip] ^= 1 << bit

    def walker() -> Walker:
        return Walker(Span(5, 45), [one.crc for one in MANY_SCANNED], held)

    for raw in (bytes(damaged), MANY_PART[:cut]):
        one_by_one = outcome(walker(), raw, *range(512, len(raw), 512))  # no two are whole in a block
        assert outcome(walker(), raw) == one_by_one
        assert outcome(walker(), raw, len(raw) // 2) == one_by_one


@given(flip=st.integers(0, len(MANY_PART) - 1))
def test_what_is_wrong_is_the_tail(flip: int) -> None:
    damaged = bytearray(MANY_PART)
    damaged[flip] ^= 4
    walker = Walker(Span(5, 45), [one.crc for one in MANY_SCANNED], held)
    try:
        found = walker.feed(bytes(damaged))
    except Mangled:
        found = []
    ends = [0, *(one.offset + 512 + padded(one.size) for one in MANY_SCANNED)]
    assert walker.tail == len(MANY_PART) - ends[len(found)]

"""All pieces at once are judged as each by itself is."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datas3tfs.core import tar
from datas3tfs.core.checking import check_piece, find_problems
from datas3tfs.core.checksums import CHUNK, ContentChecksum
from datas3tfs.core.index import Index, open_index
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.names import datapoint_name
from datas3tfs.core.reads import pieces_of
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt

SIZES = [0, 1, 511, 512, 513, 5000, 0, 70, CHUNK, 3, CHUNK + 1, 9, 2 * CHUNK + 700, 12, 40, 8]


def packed(
    sizes: Sequence[int], extension: str = "bin", form: int = tarfile.USTAR_FORMAT
) -> tuple[bytes, Index]:
    """A TAR as Python's tarfile writes it, and its index."""
    builder, file = IndexBuilder(), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for key, size in enumerate(sizes):
            info = tarfile.TarInfo(datapoint_name(key, extension))
            info.size, info.mtime, offset = size, 1_700_000_000, archive.offset
            content = bytes((key + i) % 251 for i in range(min(size, 999))).ljust(size, b"x")
            archive.addfile(info, io.BytesIO(content))
            checksum = ContentChecksum()
            checksum.update(content)
            crc, chunks = checksum.finish()
            blocks = (archive.offset - offset - tar.padded(size)) // tar.BLOCK
            builder.add(
                offset=offset, header_blocks=blocks, size=size, mtime_ns=0, extension=extension, crc=crc,
                chunk_crcs=chunks,
            )  # fmt: skip
    whole = file.getvalue()
    flat = builder.finish(first=0, object_size=len(whole))
    return whole, open_index(memoryview(flat), first=0, count=len(sizes), object_size=len(whole))


WHOLE, INDEX = packed(SIZES)


def problems_one_by_one(index: Index, span: Span, data: bytes) -> list[tuple[int, int]]:
    """(slot, piece number) of what is not right, each piece looked at by itself."""
    wrong = []
    for slot in range(index.count):
        for piece in pieces_of(index.entry(slot), span):
            part = memoryview(data)[piece.span.start - span.start : piece.span.stop - span.start]
            try:
                check_piece(index, slot, index.entry(slot), piece, part)
            except Corrupt:
                wrong.append((slot, piece.number))
    return wrong


def found(index: Index, span: Span, data: bytes) -> list[tuple[int, int]]:
    return [(one.slot, one.number) for one in find_problems(index, span, data)]


EXTENSIONS = ["bin", "x" * 79, "x" * 80, "ü" * 60]
FORMS = [(tarfile.USTAR_FORMAT, one) for one in EXTENSIONS[:2]]  # it cannot say the longer ones
FORMS += [(form, one) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT) for one in EXTENSIONS]


@pytest.mark.parametrize(("form", "extension"), FORMS)
def test_what_is_right_has_no_problems(form: int, extension: str) -> None:
    whole, index = packed(SIZES, extension, form)
    assert not find_problems(index, Span(0, len(whole)), whole)


@given(st.data())
def test_a_flipped_bit_is_seen_where_it_is(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(WHOLE) - 1) | st.integers(0, 9 * 512))
    bit = data.draw(st.integers(0, 7))
    mangled = bytearray(WHOLE)
    mangled[position] ^= 1 << bit
    span = Span(0, len(WHOLE))
    assert found(INDEX, span, bytes(mangled)) == problems_one_by_one(INDEX, span, bytes(mangled))


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
@example(0, 0)
@example(1, 511)
@example(len(WHOLE) - 1024, len(WHOLE))
def test_any_part_of_an_archive(one: int, other: int) -> None:
    span = Span(min(one, other), max(one, other))
    part = WHOLE[span.start : span.stop]
    assert not find_problems(INDEX, span, part)
    zeros = bytes(len(part))
    assert found(INDEX, span, zeros) == problems_one_by_one(INDEX, span, zeros)


@given(st.integers(0, 5), st.integers(0, 511), st.binary(min_size=1, max_size=20))
def test_a_header_with_a_right_checksum_is_judged_by_what_it_says(slot: int, at: int, text: bytes) -> None:
    mangled = bytearray(WHOLE)
    start = INDEX.entry(slot).header.start
    mangled[start + at : start + min(512, at + len(text))] = text[: 512 - at]
    header = mangled[start : start + 512]
    header[148:156] = b"        "
    mangled[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    span = Span(0, len(WHOLE))
    assert found(INDEX, span, bytes(mangled)) == problems_one_by_one(INDEX, span, bytes(mangled))


@pytest.mark.parametrize("field", ["name", "size", "mtime", "checksum", "kind", "prefix"])
@given(value=st.binary(min_size=1, max_size=12), sign=st.booleans())
def test_fields_of_any_form(field: str, value: bytes, sign: bool) -> None:
    at = {"name": 0, "size": 124, "mtime": 136, "checksum": 148, "kind": 156, "prefix": 345}[field]
    mangled = bytearray(WHOLE)
    start = INDEX.entry(4).header.start
    value = value[: 1 if field == "kind" else 8 if field == "checksum" else 12]
    mangled[start + at : start + at + len(value)] = value
    if sign and field != "checksum":
        header = mangled[start : start + 512]
        header[148:156] = b"        "
        mangled[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    span = Span(0, len(WHOLE))
    assert found(INDEX, span, bytes(mangled)) == problems_one_by_one(INDEX, span, bytes(mangled))

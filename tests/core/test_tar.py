"""TAR headers, with the standard library's tarfile as second opinion."""

import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core import tar
from datas3tfs.core.checksums import CHUNK
from datas3tfs.errors import Invalid

KEY = "00000000000000000042"
SECOND = 1_000_000_000


def by_tarfile(blocks: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(blocks + tar.END_OF_ARCHIVE), mode="r:") as archive:
        found = archive.next()
    assert found is not None
    return found


@given(
    st.text(
        alphabet=st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/."),
        min_size=1,
        max_size=110,
    ),
    st.sampled_from([0, 1, 511, 8**11 - 1, 8**11, 2**40]),
    st.sampled_from([0, 1, 1_700_000_000, 8**11 - 1, 8**11, -1, -(10**6)]),
)
def test_what_we_write_tarfile_and_we_read_alike(extension: str, size: int, seconds: int) -> None:
    name = f"{KEY}.{extension}"
    blocks = tar.build_header(name, size, seconds * SECOND + 7)
    assert len(blocks) == tar.header_length(name, size, seconds * SECOND + 7)
    info = by_tarfile(blocks)
    assert (info.name, info.size, int(info.mtime)) == (name, size, seconds)
    assert info.isreg()
    assert info.mode == 0o644
    member = tar.parse_group(blocks)
    assert (member.name, member.size, member.mtime_ns) == (name, size, seconds * SECOND)
    assert member.header_blocks * tar.BLOCK == len(blocks)


def test_values_that_fit_are_written_as_plain_ustar() -> None:
    blocks = tar.build_header(f"{KEY}.jpg", 123, 1_700_000_000 * SECOND)
    assert len(blocks) == 512
    assert blocks[257:265] == b"ustar\x0000"


@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(0, 8**11 - 1),
    st.integers(0, 2**32),
    st.sampled_from(["jpg", "j" * 60, "j" * 200]),
)
def test_what_tarfile_writes_we_read(form: int, size: int, seconds: int, extension: str) -> None:
    info = tarfile.TarInfo(f"{KEY}.{extension}")
    info.size, info.mtime = size, seconds
    try:
        blocks = info.tobuf(form)  # type: ignore[arg-type]  # the stubs want a literal
    except ValueError:
        return  # ustar cannot say it
    member = tar.parse_group(blocks)
    assert (member.name, member.size, member.mtime_ns) == (info.name, size, seconds * SECOND)


def test_fractional_pax_times_are_kept_to_the_nanosecond() -> None:
    info = tarfile.TarInfo(f"{KEY}.jpg")
    info.mtime = 1700000000.25
    assert tar.parse_group(info.tobuf(tarfile.PAX_FORMAT)).mtime_ns == 1700000000_250000000


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1", SECOND),
        ("1.5", 1_500_000_000),
        ("-1.5", -1_500_000_000),
        ("0.0000000019", 1),
        ("7.", 7 * SECOND),
    ],
)
def test_pax_times(text: str, nanoseconds: int) -> None:
    assert tar.parse_pax_time(text) == nanoseconds


@pytest.mark.parametrize(
    "text", ["", ".", "x", "1e5", "1.x", "9" * 13, "9200000000", "--1", "1_0", "١", "1.²"]
)
def test_malformed_pax_times_are_refused(text: str) -> None:
    with pytest.raises(Invalid):
        tar.parse_pax_time(text)


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_damaged_header_never_reads_as_another_datapoint(position: int, flip: int) -> None:
    blocks = bytearray(tar.build_header(f"{KEY}.jpg", 1000, 0))
    blocks[position] ^= flip
    try:
        member = tar.parse_group(bytes(blocks))
    except Invalid:
        return
    assert (member.name, member.size) == (f"{KEY}.jpg", 1000)


@given(st.binary(max_size=4 * 512))
def test_arbitrary_bytes_are_parsed_or_refused(data: bytes) -> None:
    with suppress(Invalid):
        tar.parse_group(data)


@given(st.binary(max_size=300))
def test_arbitrary_pax_records_are_parsed_or_refused(data: bytes) -> None:
    with suppress(Invalid):
        tar.parse_pax(data)


def test_base_256_numbers() -> None:
    info = tarfile.TarInfo(f"{KEY}.jpg")
    info.size, info.mtime = 2**40, -5
    member = tar.parse_group(info.tobuf(tarfile.GNU_FORMAT))
    assert (member.size, member.mtime_ns) == (2**40, -5 * SECOND)


def test_old_headers_with_signed_checksums_are_read() -> None:
    block = bytearray(tar.build_header(f"{KEY}.ä", 5, 0))
    block[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % signed
    assert tar.parse_group(bytes(block)).size == 5


def test_a_chunk_is_whole_blocks() -> None:
    assert CHUNK % tar.BLOCK == 0

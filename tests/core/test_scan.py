"""Walking through archives: what is accepted, what is refused, and that chunk borders do not matter."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core import tar
from datas3tfs.core.checksums import CHUNK, crc32c
from datas3tfs.core.names import datapoint_name
from datas3tfs.core.scan import Scanned, scan
from datas3tfs.errors import Invalid

Entry = tuple[tarfile.TarInfo, bytes]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def entry(name: str, content: bytes = b"", **fields: object) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def archive(*entries: Entry, form: int = tarfile.USTAR_FORMAT, **options: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, **options) as out:  # type: ignore[call-overload]  # the options vary
        for info, content in entries:
            out.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def datapoints(contents: list[bytes], first: int = 0, **fields: object) -> list[Entry]:
    return [entry(datapoint_name(first + i, "bin"), content, **fields) for i, content in enumerate(contents)]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def scanned(data: bytes, size: int = 1 << 20) -> list[Scanned]:
    return list(scan(pieces(data, size)))


@given(
    st.sampled_from(FORMATS),
    st.lists(st.integers(0, 2000), min_size=1, max_size=6),
    st.integers(0, 10**6),
    st.integers(1, 3000),
)
def test_every_datapoint_is_found_where_it_lies_however_the_bytes_arrive(
    form: int, sizes: list[int], first: int, chunk: int
) -> None:
    contents = [bytes([i % 256]) * size for i, size in enumerate(sizes)]
    data = archive(*datapoints(contents, first, mtime=1.5), form=form)
    found = scanned(data, chunk)
    assert [item.name.key for item in found] == list(range(first, first + len(sizes)))
    for item, content in zip(found, contents, strict=True):
        start = item.offset + item.header_blocks * tar.BLOCK
        assert data[start : start + item.size] == content
        assert item.crc == crc32c(content)
        member = tar.parse_group(data[item.offset : start])
        assert (member.name, member.size) == (str(item.name), item.size)


def test_one_byte_at_a_time_is_as_good_as_all_at_once() -> None:
    data = archive(*datapoints([b"", b"x" * 700, b"y"], mtime=2.25), form=tarfile.PAX_FORMAT)
    assert scanned(data, 1) == scanned(data, len(data))


def test_large_datapoints_have_a_checksum_for_every_chunk() -> None:
    content = bytes(range(256)) * (CHUNK // 256) * 2 + b"tail"
    (found,) = scanned(archive(*datapoints([content])), 100_001)
    assert found.crc == crc32c(content)
    assert found.chunk_crcs == [crc32c(content[i : i + CHUNK]) for i in range(0, len(content), CHUNK)]


def test_a_datapoint_of_one_chunk_needs_no_chunk_checksums() -> None:
    (found,) = scanned(archive(*datapoints([bytes(CHUNK)])))
    assert found.chunk_crcs == []


def test_directories_are_skipped() -> None:
    entries = datapoints([b"a", b"b"])
    entries[1:1] = [entry("./", type=tarfile.DIRTYPE), entry("d" * 120 + "/", type=tarfile.DIRTYPE)]
    found = scanned(archive(*entries, form=tarfile.GNU_FORMAT))
    assert [item.name.key for item in found] == [0, 1]


def test_a_directory_with_a_size_is_refused_as_programs_disagree_on_what_follows() -> None:
    info = tarfile.TarInfo("sub")
    info.type, info.size = tarfile.DIRTYPE, 7
    archive = info.tobuf(tarfile.USTAR_FORMAT) + b"content".ljust(512, b"\0")
    after = tarfile.TarInfo(datapoint_name(0, "bin"))
    with pytest.raises(Invalid, match=r"sub.*directory with a size"):
        list(scan([archive + after.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)]))


def test_harmless_global_headers_are_skipped_and_are_no_part_of_a_datapoint() -> None:
    data = archive(*datapoints([b"a"]), form=tarfile.PAX_FORMAT, pax_headers={"comment": "made by hand"})
    (found,) = scanned(data)
    assert found.offset > 0
    assert tar.parse_group(data[found.offset : found.offset + 512 * found.header_blocks]).size == 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (entry("00000000000000000001.bin", type=tarfile.SYMTYPE, linkname="x"), "symbolic link"),
        (entry("00000000000000000001.bin", type=tarfile.LNKTYPE, linkname="x"), "hard link"),
        (entry("00000000000000000001.bin", type=tarfile.FIFOTYPE), "FIFO"),
        (entry("00000000000000000001.bin", type=tarfile.CHRTYPE), "character device"),
        (entry("00000000000000000001.bin", type=b"S"), "sparse"),
        (entry("readme.txt"), "not a datapoint name"),
        (entry("./00000000000000000001.bin"), "not a datapoint name"),
        (entry("00000000000000000001."), "extension"),
        (entry("00000000000000000001.a/../b"), "extension"),
        (entry("00000000000000000001.a\x1bb"), "extension"),
        (entry("09223372036854775808.bin"), "beyond"),
        (entry("00000000000000000000.bin"), "duplicate"),
        (entry("00000000000000000000.txt"), "duplicate"),
        (entry("00000000000000000002.bin"), "gap"),
    ],
)
def test_entries_that_are_no_datapoints_are_refused_by_name(bad: Entry, words: str) -> None:
    data = archive(*datapoints([b"first"]), bad)
    with pytest.raises(Invalid, match=words) as caught:
        scanned(data)
    assert bad[0].name[:20] in str(caught.value)


def test_out_of_order_is_refused() -> None:
    data = archive(*datapoints([b"a"], 5), *datapoints([b"b"], 6), *datapoints([b"c"], 2))
    with pytest.raises(Invalid, match=r"00000000000000000002\.bin: is out of order, expected key 7"):
        scanned(data)


@pytest.mark.parametrize("key", ["path", "size", "linkpath", "GNU.sparse.major"])
def test_global_headers_that_change_entries_are_refused(key: str) -> None:
    data = archive(*datapoints([b"a"]), form=tarfile.PAX_FORMAT, pax_headers={key: "1"})
    with pytest.raises(Invalid, match="global PAX header"):
        scanned(data)


def test_pax_sparse_files_are_refused() -> None:
    (info, content) = entry("00000000000000000000.bin", b"abc")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": info.name}
    with pytest.raises(Invalid, match="sparse"):
        scanned(archive((info, content), form=tarfile.PAX_FORMAT))


GOOD = archive(*datapoints([b"a" * 600, b"", b"b"]))


@given(st.integers(0, 5 * 512 + 600))
def test_a_cut_archive_is_refused_wherever_it_is_cut(length: int) -> None:
    end = next(i for i in range(0, len(GOOD), 512) if not any(GOOD[i:]))
    if length > end:
        return
    with pytest.raises(Invalid, match=r"cut short|no datapoint"):
        scanned(GOOD[:length])


@pytest.mark.parametrize("tail", [b"", bytes(512), bytes(1024), bytes(10240), bytes(777)])
def test_any_padding_of_zeros_is_accepted(tail: bytes) -> None:
    end = next(i for i in range(0, len(GOOD), 512) if not any(GOOD[i:]))
    assert len(scanned(GOOD[: end + 512] + tail)) == 3


def test_data_after_the_end_is_refused() -> None:
    with pytest.raises(Invalid, match="after the end"):
        scanned(GOOD + GOOD)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 10240, b"\x1f\x8b" + b"x" * 2000, b"hello\n" * 500, bytes(100)]
)
def test_what_is_no_archive_of_datapoints_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        scanned(data)


def test_a_huge_extended_header_is_refused_before_it_is_read() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 1 << 30
    with pytest.raises(Invalid, match="too large"):
        scanned(info.tobuf(tarfile.USTAR_FORMAT))


@given(st.binary(max_size=2048), st.integers(0, 4096))
def test_damage_anywhere_never_crashes(junk: bytes, at: int) -> None:
    data = bytearray(GOOD)
    data[at : at + len(junk)] = junk
    with suppress(Invalid):
        scanned(bytes(data))


def test_many_extended_headers_are_as_large_as_one() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 512
    one = info.tobuf(tarfile.USTAR_FORMAT) + b"30 comment=xxxxxxxxxxxxxxxxxx\n".ljust(512, b"\0")
    with pytest.raises(Invalid, match="too large"):
        scanned(one * 3000 + GOOD)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_an_archive_that_ends_after_an_extended_header_is_refused(kind: bytes) -> None:
    """As by Python's tarfile, which would not read such an archive to its end."""
    info = tarfile.TarInfo("x")
    info.type = kind
    body = archive(*datapoints([b"a"]))[:1024] + info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    with pytest.raises(Invalid, match="ends after an extended header"):
        scanned(body)
    with pytest.raises(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(body)) as opened:
        opened.getmembers()

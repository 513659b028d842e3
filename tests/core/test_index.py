"""The flat index and its form in S3: round trips, any damage found, lies found, foreign forms read."""

import struct
from contextlib import suppress
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core import zstdframes
from datas3tfs.core.checksums import CHUNK, crc32c
from datas3tfs.core.index import HEADER_SIZE, Index, IndexHeader, check_records, open_index
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import BareRecords, decode_index_file, encode_index_file, index_file_limit
from datas3tfs.core.tar import padded
from datas3tfs.errors import Corrupt

SECOND = 1_000_000_000

members = st.lists(
    st.tuples(
        st.integers(0, 3 * CHUNK),
        st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, SECOND]),
        st.sampled_from(["jpg", "json.zst", "txt", "ä"]),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=30,
)
Members = list[tuple[int, int, str, int]]


def build(entries: Members, first: int = 0, *, crc: bool = True) -> tuple[bytes, int]:
    builder, offset = IndexBuilder(), 0
    for size, mtime_ns, extension, checksum in entries:
        chunks = -(-size // CHUNK) if size > CHUNK else 0
        builder.add(
            offset=offset,
            header_blocks=1,
            size=size,
            mtime_ns=mtime_ns,
            extension=extension,
            crc=checksum if crc else None,
            chunk_crcs=[(checksum + i) % 2**32 for i in range(chunks)],
        )
        offset += 512 + padded(size)
    total = offset + 1024
    return builder.finish(first=first, object_size=total), total


def opened(flat: bytes, entries: Members, total: int, first: int = 0) -> Index:
    return open_index(memoryview(flat), first=first, count=len(entries), object_size=total)


@given(members, st.integers(0, 2**63 - 100), st.booleans())
def test_what_goes_in_comes_out(entries: Members, first: int, crc: bool) -> None:
    flat, total = build(entries, first, crc=crc)
    index = opened(flat, entries, total, first)
    offset = 0
    for slot, (size, mtime_ns, extension, checksum) in enumerate(entries):
        entry = index.entry(slot)
        assert entry.name == f"{first + slot:020d}.{extension}"
        assert (entry.header.start, entry.header.length, entry.size) == (offset, 512, size)
        assert entry.mtime_ns == mtime_ns
        assert entry.crc == (checksum if crc else None)
        for chunk in range(-(-size // CHUNK) if size > CHUNK else 0):
            assert index.chunk_crc(slot, chunk) == ((checksum + chunk) % 2**32 if crc else None)
        offset += 512 + padded(size)
    assert index.names(0, len(entries)) == [index.entry(s).name.encode() for s in range(len(entries))]
    assert index.sizes(0, len(entries)) == [entry[0] for entry in entries]
    assert index.mtimes_ns(0, len(entries)) == [entry[1] for entry in entries]


@given(members)
def test_the_object_round_trips_and_any_decoder_yields_the_records(entries: Members) -> None:
    flat, total = build(entries)
    raw = encode_index_file(flat)
    assert decode_index_file(raw, count=len(entries), object_size=total) == flat
    records = flat[HEADER_SIZE : HEADER_SIZE + 16 * len(entries)]
    with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
        assert reader.read() == records
    assert len(raw) <= index_file_limit(len(entries), total)


def test_records_are_those_of_the_go_implementations() -> None:
    builder = IndexBuilder()
    builder.add(offset=1024, header_blocks=1, size=2048, mtime_ns=0, extension="x", crc=0)
    flat = builder.finish(first=0, object_size=5000)
    assert flat[HEADER_SIZE : HEADER_SIZE + 16] == bytes.fromhex("00000000000004000001000000000800")


@given(st.data())
def test_any_flipped_bit_of_the_flat_index_is_found(data: st.DataObject) -> None:
    entries = [(700, SECOND, "a", 1), (CHUNK + 1, 2 * SECOND, "b", 2), (0, 0, "a", 3)]
    flat, total = build(entries)
    position = data.draw(st.integers(0, len(flat) - 1))
    damaged = bytearray(flat)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Corrupt):
        opened(bytes(damaged), entries, total)


@given(st.data())
def test_any_flipped_bit_of_the_object_is_found_or_harmless(data: st.DataObject) -> None:
    entries = [(700, SECOND, "a", 1), (CHUNK + 1, 2 * SECOND, "b", 2), (0, 0, "a", 3)]
    flat, total = build(entries)
    damaged = bytearray(encode_index_file(flat))
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = decode_index_file(bytes(damaged), count=3, object_size=total)
        if isinstance(decoded, BareRecords):  # our frame is no longer recognised as ours
            assert decoded.records == flat[HEADER_SIZE : HEADER_SIZE + 48]
            return
        opened(decoded, entries, total)
    except Corrupt:
        return
    assert decoded == flat  # e.g. the unused bits of zstd's frame header


@given(st.data())
def test_a_cut_index_is_found(data: st.DataObject) -> None:
    entries = [(700, 0, "a", 1), (10, SECOND, "b", 2)]
    flat, total = build(entries)
    raw = encode_index_file(flat)
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    try:
        decoded = decode_index_file(cut, count=2, object_size=total)
    except Corrupt:
        return
    assert isinstance(decoded, BareRecords)  # cut exactly between the frames: what is left is true
    assert decoded.records == flat[HEADER_SIZE : HEADER_SIZE + 32]


def test_the_index_of_another_datarange_is_refused() -> None:
    entries = [(10, 0, "a", 1)] * 3
    flat, total = build(entries, 5)
    for first, count, size in ((6, 3, total), (5, 2, total), (5, 3, total + 1)):
        with pytest.raises(Corrupt, match="not of"):
            open_index(memoryview(flat), first=first, count=count, object_size=size)


def test_an_index_of_a_later_version_is_refused_and_says_so() -> None:
    flat, _ = build([(10, 0, "a", 1)])
    body = flat[:8] + b"\0\x02" + flat[10:60]
    with pytest.raises(Corrupt, match="version 2"):
        IndexHeader.decode(body + crc32c(body).to_bytes(4, "big"))


def record(offset: int, blocks: int, size: int) -> bytes:
    return struct.pack(">QQ", offset, blocks << 48 | size)


@pytest.mark.parametrize(
    "records",
    [
        record(0, 1, 10_000),
        record(10_240, 1, 0),
        record(2**63, 1, 0),
        record(2**64 - 512, 1, 512),
        record(0, 65535, 0),
        record(0, 0, 100),
        record(100, 1, 0),
        record(512, 1, 0) + record(0, 1, 0),
        record(0, 1, 600) + record(1024, 1, 0),
        record(0, 1, 2**48 - 1),
    ],
)
def test_records_that_lead_outside_or_into_each_other_are_refused(records: bytes) -> None:
    with pytest.raises(Corrupt, match="record"):
        check_records(records, 10_240)


def test_raw_indices_as_the_go_implementations_write_are_accepted() -> None:
    records = record(0, 1, 5) + record(1024, 1, 0)
    assert decode_index_file(records, count=2, object_size=10_240) == BareRecords(records)
    compressed = zstandard.ZstdCompressor().compress(records)
    assert decode_index_file(compressed, count=2, object_size=10_240) == BareRecords(records)


@pytest.mark.parametrize("raw", [b"", b"x", bytes(15), bytes(48), record(0, 1, 5), b"\x28\xb5\x2f\xfd"])
def test_raw_indices_of_the_wrong_length_are_refused(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_index_file(raw, count=2, object_size=10_240)


def test_a_frame_that_expands_beyond_its_records_is_refused_without_expanding_it() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    with pytest.raises(Corrupt, match="more than"):
        decode_index_file(bomb, count=2, object_size=10_240)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_bare(raw: bytes) -> None:
    for prefix in (b"", zstdframes.MAGIC, zstdframes.SKIPPABLE_MAGIC):
        with suppress(Corrupt):
            assert isinstance(decode_index_file(prefix + raw, count=1, object_size=10_240), BareRecords)


@given(
    st.lists(st.binary(max_size=1000), min_size=1, max_size=4), st.lists(st.binary(max_size=50), max_size=3)
)
def test_frames_are_split_where_they_end(contents: list[bytes], payloads: list[bytes]) -> None:
    frames = [zstandard.ZstdCompressor(write_checksum=i % 2 == 0).compress(c) for i, c in enumerate(contents)]
    data = b"".join(frames) + b"".join(map(zstdframes.skippable_frame, payloads))
    assert zstdframes.split(data) == (frames, payloads)
    assert [zstdframes.decompress(frame, 999) for frame in frames] == contents


def test_many_extensions_need_no_string_each() -> None:
    one, _ = build([(10, 0, "jpg", 0)] * 1000)
    many, _ = build([(10, 0, f"e{i % 300}", 0) for i in range(1000)])
    assert len(one) == HEADER_SIZE + 16 * 1000 + 8 + 4 * 1000 + 4
    assert len(many) - len(one) < 2 * 1000 + 300 * 6


def test_slots_are_found_by_position() -> None:
    entries = [(700, 0, "a", 1), (0, 0, "a", 1), (10, 0, "a", 1)]
    flat, total = build(entries)
    index = opened(flat, entries, total)
    starts = [index.record(slot)[0] for slot in range(3)]
    for position in range(total):
        expected = max((s for s in range(3) if starts[s] <= position), default=0)
        assert index.slot_at(position) == expected


@given(members, st.booleans())
def test_checksums_and_footprint_at_once(entries: Members, crc: bool) -> None:
    flat, total = build(entries, crc=crc)
    index = opened(flat, entries, total)
    assert index.footprint() == total - 1024
    for slot in range(len(entries)):
        expected = [checksum for _, _, _, checksum in entries[slot : slot + 2]]
        assert index.crcs(slot, 2) == (expected if crc else None)
    assert encode_index_file(bytes(index.flat)) == encode_index_file(flat)
    assert bytes(index.records) == flat[HEADER_SIZE : HEADER_SIZE + 16 * len(entries)]


@pytest.mark.parametrize(("width", "latest"), [(0, 0), (4, 2**32 - 1), (8, 2**64 - 1)])
def test_times_beyond_64_bits_are_refused(width: int, latest: int) -> None:
    flat, total = build([(10, 0, "a", 1)] * 2, crc=False)
    header = IndexHeader.decode(flat[:HEADER_SIZE])
    records, extensions = flat[HEADER_SIZE : HEADER_SIZE + 32], flat[HEADER_SIZE + 40 :]
    for base, fits in ((2**63 - 1 - latest * (SECOND if width == 4 else 1), True), (2**63 - 1, width == 0)):
        column = (0).to_bytes(width, "big") + latest.to_bytes(width, "big")
        tail = base.to_bytes(8, "big", signed=True) + column + extensions
        changed = replace(header, mtime_width=width, tail_size=len(tail), tail_crc=crc32c(tail))
        made = memoryview(changed.encode() + records + tail)
        if fits:
            last = base + latest * (SECOND if width == 4 else 1)
            assert open_index(made, first=0, count=2, object_size=total).mtimes_ns(1, 1) == [last]
        else:
            with pytest.raises(Corrupt, match="impossible times"):
                open_index(made, first=0, count=2, object_size=total)


def test_a_file_of_very_many_frames_is_refused_at_once() -> None:
    frame = zstandard.ZstdCompressor().compress(b"")
    with pytest.raises(Corrupt, match="too many"):
        decode_index_file(frame * 1_000_000, count=1, object_size=10_240)


def test_a_limit_that_is_a_lie_is_not_asked_for_as_memory() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(100))
    assert zstdframes.decompress(frame, 2**62) == bytes(100)

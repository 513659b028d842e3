"""The journal's bytes: what is written is read again, and damage never becomes a record."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.journalcodec import (
    INLINE_LIMIT,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    Found,
    Gap,
    decode_segment,
    encode,
    seal_of,
    segment_header,
)
from datas3tfs.core.journalrecords import Accepted, Begun, EntryId, Gone, Record, Renamed
from datas3tfs.core.model import DatasetId, HolderId, UploadId
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid

HOLDER = HolderId("6c8f0d7e-0c2e-4f0e-9d3a-0123456789ab")
OTHER_HOLDER = HolderId("6c8f0d7e-0c2e-4f0e-9d3a-0123456789ac")
NUMBER = 7

ids = st.integers(0, 2**63 - 1)
entries = st.lists(st.integers(0, 2**64 - 1).map(EntryId), max_size=20).map(tuple)
labels = st.from_regex(r"[a-zA-Z0-9_-]{1,200}", fullmatch=True)
names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..")
)


@st.composite
def accepted(draw: st.DrawFn) -> Accepted:
    content = draw(st.none() | st.binary(max_size=300))
    return Accepted(
        EntryId(draw(st.integers(0, 2**64 - 1))),
        DatasetId(draw(ids)),
        draw(labels),
        draw(names),
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(st.integers(0, 2**64 - 1)) if content is None else len(content),
        draw(st.none() | st.integers(0, 2**32 - 1)),
        content,
        draw(st.booleans()),
    )


renamed = st.builds(
    Renamed, ids.map(EntryId), ids.map(DatasetId), labels, names, st.none() | ids.map(EntryId)
)
records = accepted() | renamed | st.builds(Gone, entries) | st.builds(Begun, ids.map(UploadId), entries)


HEAD = RECORD_HEADER_SIZE


def segment(*contents: Record | bytes, number: int = NUMBER, holder: HolderId = HOLDER) -> bytes:
    """The segment of these records; bytes are put in as they are."""
    data = segment_header(number, holder)
    for content in contents:
        if isinstance(content, bytes):
            data += content
        else:
            data += b"".join(encode(content, seal_of(number, holder), len(data)))
    return data


def sealed(kind: int, payload: bytes, offset: int) -> bytes:
    """A record as docs/FORMAT.md describes it, of a payload that need not make sense."""
    head = struct.pack(">4sB3xII", b"D3jr", kind, len(payload), crc32c(payload))
    return (
        head + struct.pack(">I", crc32c(struct.pack(">Q", offset) + head, seal_of(NUMBER, HOLDER))) + payload
    )


def decoded(data: bytes) -> list[Found | Gap]:
    """What is in a segment; checks that every byte of it is either in a record or in a gap."""
    steps = list(decode_segment(data, NUMBER, HOLDER))
    at = (
        0
        if steps and isinstance(steps[0], Gap) and not steps[0].span.start
        else min(len(data), SEGMENT_HEADER_SIZE)
    )
    for step in steps:
        span = step.span if isinstance(step, Gap) else Span(step.start, step.end)
        assert span
        assert span.start == at
        at = span.stop
    assert at == len(data)
    return steps


def found(data: bytes) -> list[Record]:
    return [step.record for step in decoded(data) if isinstance(step, Found)]


def gaps(data: bytes) -> list[Gap]:
    return [step for step in decoded(data) if isinstance(step, Gap)]


def bare(record: Record) -> Record:
    """The record as decoding yields it: without its inline content."""
    return replace(record, content=None) if isinstance(record, Accepted) else record


def file(entry: int, name: str, content: bytes | None = None) -> Accepted:
    size = 10**9 if content is None else len(content)
    crc = None if content is None else crc32c(content)
    return Accepted(EntryId(entry), DatasetId(3), "pets", name, 1_700_000_000_123_456_789, size, crc, content)


SAMPLE: tuple[Record, ...] = (
    file(1, "00000000000000000007.jpg", b"content of seven"),
    file(2, ".large", None),
    Renamed(EntryId(2), DatasetId(3), "pets", "00000000000000000008.jpg", None),
    Begun(UploadId(99), (EntryId(1), EntryId(2))),
    Gone((EntryId(1), EntryId(2))),
    file(3, "empty~", b""),
)


def starts_of(data: bytes) -> list[int]:
    return [step.start for step in decoded(data) if isinstance(step, Found)] + [len(data)]


@given(st.lists(records, max_size=8))
def test_what_is_written_is_read(written: list[Record]) -> None:
    data = segment(*written)
    steps = decoded(data)
    assert [step.record for step in steps if isinstance(step, Found)] == [bare(record) for record in written]
    for step, record in zip(steps, written, strict=True):
        assert isinstance(step, Found)
        inline = (record.content or b"") if isinstance(record, Accepted) else b""
        assert data[step.content.start : step.content.stop] == inline


def test_the_largest_content_fits_and_is_not_copied() -> None:
    content = bytes(range(256)) * (INLINE_LIMIT // 256)
    pieces = encode(file(1, "x" * 255, content), 0, 0)
    assert pieces[-1] is content
    data = segment(file(1, "x" * 255, content))
    (step,) = decoded(data)
    assert isinstance(step, Found)
    assert data[step.content.start : step.content.stop] == content


def test_every_bit_flip_costs_the_record_it_is_in_and_nothing_else() -> None:
    data = segment(*SAMPLE)
    starts = starts_of(data)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        hit = next((i for i in range(len(SAMPLE)) if starts[i] <= bit // 8 < starts[i + 1]), None)
        assert found(bytes(flipped)) == [bare(record) for i, record in enumerate(SAMPLE) if i != hit]
        (gap,) = gaps(bytes(flipped))
        assert bit // 8 in gap.span
        assert not gap.torn


def test_every_truncation_is_seen_as_such() -> None:
    data = segment(*SAMPLE)
    starts = starts_of(data)
    for length in range(len(data)):
        complete = sum(1 for end in starts[1:] if end <= length)
        for tail in (b"", bytes(1), bytes(5000)):  # a file system may have made room, and lost the rest
            cut = data[:length] + tail
            assert found(cut) == [bare(record) for record in SAMPLE[:complete]]
            if not tail:
                expected = [] if length in (0, *starts) else [(True, length)]
                assert [(gap.torn, gap.span.stop) for gap in gaps(cut)] == expected


def test_room_that_was_made_and_not_used_is_a_torn_tail() -> None:
    data = segment(*SAMPLE)
    (gap,) = gaps(data + bytes(4096))
    assert (gap.torn, gap.span) == (True, Span(len(data), len(data) + 4096))
    (gap,) = gaps(bytes(4096))
    assert (gap.torn, gap.span) == (True, Span(0, 4096))


def test_garbage_at_the_end_is_no_torn_tail() -> None:
    (gap,) = gaps(segment(*SAMPLE, b"this is not what an interrupted write leaves"))
    assert not gap.torn


def test_a_stretch_of_damage_costs_what_it_covers() -> None:
    data = segment(*SAMPLE)
    starts = starts_of(data)
    damaged = data[: starts[1] + 3] + bytes(starts[3] - starts[1]) + data[starts[3] + 3 :]
    assert found(damaged) == [bare(SAMPLE[0]), *(bare(record) for record in SAMPLE[4:])]


def test_content_that_looks_like_records_is_never_taken_for_any() -> None:
    # Somebody stores a copy of this very journal as a file, and then the record around it is damaged.
    inner = segment(*SAMPLE)
    data = bytearray(segment(SAMPLE[0], file(5, "copy.seg.tmp", inner), SAMPLE[4]))
    first_end = starts_of(bytes(data))[1]
    for at in (first_end, first_end + 9, first_end + RECORD_HEADER_SIZE + 2):
        damaged = data.copy()
        damaged[at] ^= 0xFF
        assert found(bytes(damaged)) == [bare(SAMPLE[0]), SAMPLE[4]]


@pytest.mark.parametrize(("number", "holder"), [(NUMBER + 1, HOLDER), (NUMBER, OTHER_HOLDER)])
def test_a_segment_of_another_place_has_no_records_here(number: int, holder: HolderId) -> None:
    data = segment(*SAMPLE, number=number, holder=holder)
    assert found(data) == []
    (gap,) = gaps(data)
    assert not gap.torn


@given(st.binary(max_size=2000))
def test_random_bytes_are_no_segment(data: bytes) -> None:
    assert found(data) == []


@given(
    st.lists(
        st.sampled_from([b"D3jr", b"D3TFSJNL", b"\0\0", b"\xff" * 12, segment(*SAMPLE)[40:90]]), max_size=40
    )
)
def test_bytes_that_try_to_look_like_records_are_none(pieces: list[bytes]) -> None:
    assert found(segment_header(NUMBER, HOLDER) + b"x" + b"".join(pieces)) == []


@given(st.integers(0, 6), st.binary(max_size=200))
def test_a_payload_that_makes_no_sense_is_passed_over(kind: int, payload: bytes) -> None:
    bad = sealed(kind, payload, SEGMENT_HEADER_SIZE)
    steps = decoded(segment(bad, *SAMPLE))
    assert [step.record for step in steps[1:] if isinstance(step, Found)] == [
        bare(record) for record in SAMPLE
    ]


ACCEPTED = ">QqqQIBBBx"
RENAMED = ">QqQBBBx"
MALFORMED = {
    "unknown kind": (9, b""),
    "cut short": (1, b"\0" * 12),
    "unknown flag": (1, struct.pack(ACCEPTED, 1, 1, 1, 1, 0, 8, 1, 1) + b"dn"),
    "names that do not fit": (1, struct.pack(ACCEPTED, 1, 1, 1, 1, 0, 0, 200, 255) + b"dn"),
    "content that does not fit": (1, struct.pack(ACCEPTED, 1, 1, 1, 2**63, 0, 2, 1, 1) + b"dn" + b"content"),
    "content too large": (
        1,
        struct.pack(ACCEPTED, 1, 1, 1, 2**20 + 1, 0, 2, 1, 1) + b"dn" + bytes(2**20 + 1),
    ),
    "bytes left over": (1, struct.pack(ACCEPTED, 1, 1, 1, 1, 0, 0, 1, 1) + b"dn?"),
    "no name": (1, struct.pack(ACCEPTED, 1, 1, 1, 1, 0, 0, 1, 0) + b"d"),
    "bad UTF-8": (1, struct.pack(ACCEPTED, 1, 1, 1, 1, 0, 0, 1, 1) + b"d\xff"),
    "a surrogate": (1, struct.pack(ACCEPTED, 1, 1, 1, 1, 0, 0, 1, 3) + b"d\xed\xb2\x80"),
    "dot": (1, struct.pack(ACCEPTED, 1, 1, 1, 1, 0, 0, 1, 1) + b"d."),
    "dots": (2, struct.pack(RENAMED, 1, 1, 1, 0, 1, 2) + b"d.."),
    "slash": (2, struct.pack(RENAMED, 1, 1, 1, 0, 1, 3) + b"da/b"),
    "NUL": (2, struct.pack(RENAMED, 1, 1, 1, 0, 1, 3) + b"da\0b"),
    "dataset": (2, struct.pack(RENAMED, 1, 1, 1, 0, 2, 1) + b"..n"),
    "dataset bad UTF-8": (2, struct.pack(RENAMED, 1, 1, 1, 0, 1, 1) + b"\xffn"),
    "flag of a rename": (2, struct.pack(RENAMED, 1, 1, 1, 8, 1, 1) + b"dn"),
    "more entries than bytes": (3, struct.pack(">I", 2**32 - 1) + bytes(8)),
    "fewer entries than bytes": (3, struct.pack(">I", 0) + bytes(8)),
    "entries cut short": (4, struct.pack(">qI", 1, 2) + bytes(15)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_no_record_can_say_is_passed_over(case: str) -> None:
    kind, payload = MALFORMED[case]
    data = segment(SAMPLE[0], SAMPLE[0])
    start = starts_of(data)[1]
    bad = sealed(kind, payload, start)
    data = data[:start] + bad
    data += b"".join(encode(SAMPLE[4], seal_of(NUMBER, HOLDER), len(data)))
    assert found(data) == [bare(SAMPLE[0]), SAMPLE[4]]
    (gap,) = gaps(data)
    assert gap.span == Span(start, start + len(bad))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256, "ä" * 128, "\udc80"])
def test_what_is_no_file_name_is_not_written(name: str) -> None:
    with pytest.raises(Invalid):
        encode(file(1, name), 0, 0)
    with pytest.raises(Invalid):
        encode(Renamed(EntryId(1), DatasetId(1), "pets", name, None), 0, 0)


@pytest.mark.parametrize(
    "record",
    [
        Accepted(EntryId(1), DatasetId(1), "a/b", "n", 0, 0, None),
        Accepted(EntryId(-1), DatasetId(1), "d", "n", 0, 0, None),
        Accepted(EntryId(1), DatasetId(2**63), "d", "n", 0, 0, None),
        Accepted(EntryId(1), DatasetId(1), "d", "n", 2**63, 0, None),
        Accepted(EntryId(1), DatasetId(1), "d", "n", 0, 2**64, None),
        Accepted(EntryId(1), DatasetId(1), "d", "n", 0, 0, 2**32),
        Accepted(EntryId(1), DatasetId(1), "d", "n", 0, 3, 0, b"two"[:2]),
        Accepted(EntryId(1), DatasetId(1), "d", "n", 0, INLINE_LIMIT + 1, 0, bytes(INLINE_LIMIT + 1)),
        Renamed(EntryId(1), DatasetId(1), "d" * 201, "n", None),
        Gone((EntryId(2**64),)),
        Gone((EntryId(1),) * 2_100_000),
    ],
    ids=lambda record: type(record).__name__,
)
def test_what_could_not_be_read_again_is_not_written(record: Record) -> None:
    with pytest.raises(Invalid):
        encode(record, 0, 0)


def test_a_newer_format_is_refused_and_not_guessed_at() -> None:
    head = struct.pack(">8sHHQ16s", b"D3TFSJNL", 2, 0, NUMBER, bytes(16))
    with pytest.raises(Invalid, match="newer"):
        list(decode_segment(head + struct.pack(">I", crc32c(head)) + b"what it likes", NUMBER, HOLDER))


@pytest.mark.parametrize("at", range(HEAD, HEAD + 82))
@pytest.mark.parametrize("bits", [1, 0x80, 0xFF])
def test_a_damaged_record_about_a_file_still_tells_which_or_nothing(at: int, bits: int) -> None:
    """Whatever byte of it is hit: by its number or its name the file is known."""
    name = "00000000000000000007.bin"
    record = Accepted(EntryId(7), DatasetId(3), "cats", name, 1, 10, 5, b"0123456789")
    data = bytearray(segment(record, SAMPLE[0]))
    assert len(data) > SEGMENT_HEADER_SIZE + HEAD + 82
    data[SEGMENT_HEADER_SIZE + at] ^= bits
    (gap,) = gaps(bytes(data))
    if gap.about is not None:
        (says,) = gap.about
        assert says.entry == 7 or (says.dataset_id, says.name) == (3, name)


@pytest.mark.parametrize(
    ("record", "about"),
    [
        (Gone((EntryId(7),)), None),
        (Renamed(EntryId(7), DatasetId(3), "cats", "x", None), None),
        (Begun(UploadId(7), (EntryId(7),)), ()),
    ],
)
def test_other_damaged_records_tell_nothing_unless_they_change_no_file(
    record: Record, about: tuple[()] | None
) -> None:
    data = bytearray(segment(record, SAMPLE[0]))
    data[SEGMENT_HEADER_SIZE + HEAD + 3] ^= 1
    (gap,) = gaps(bytes(data))
    assert gap.about == about


def test_what_is_lost_with_a_header_may_have_been_anything() -> None:
    accepted = Accepted(EntryId(7), DatasetId(3), "cats", "x", 1, 10, 5, b"0123456789")
    for damaged in (0, 1):  # the header of one of two, and the content of the other
        data = bytearray(segment(accepted, accepted, SAMPLE[0]))
        starts = SEGMENT_HEADER_SIZE, SEGMENT_HEADER_SIZE + (len(data) - len(segment(SAMPLE[0]))) // 2
        data[starts[damaged] + 5] ^= 1
        data[starts[1 - damaged] + HEAD + 50] ^= 1
        (gap,) = gaps(bytes(data))
        assert gap.about is None

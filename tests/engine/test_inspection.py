"""Whatever is uploaded: it is refused, or what gets published reads back as what was uploaded."""

import io
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3tfs.core import tar, zstdframes
from datas3tfs.core.checksums import crc32c
from datas3tfs.core.counters import Counters
from datas3tfs.core.index import HEADER_SIZE, Index
from datas3tfs.core.indexfile import BareRecords, decode_index_file
from datas3tfs.core.model import BucketId, Datarange, DatarangeId, DatasetId, Upload, UploadId, UploadIntent
from datas3tfs.core.names import index_object_key, staged_index_key
from datas3tfs.core.spans import Span
from datas3tfs.core.uploadcheck import HeaderCheck, InspectionLimits
from datas3tfs.engine import inspection
from datas3tfs.engine.indices import open_indices
from datas3tfs.engine.inspection import Inspector
from datas3tfs.errors import Corrupt, Invalid
from tests.harness.archives import (
    BAD,
    SHORT_NAMES,
    WRITERS,
    go_record,
    key_name,
    noise,
    samples,
    with_directories,
    with_global_header,
    write_folder,
)
from tests.harness.memory_cache import MemoryIndexCache
from tests.harness.memory_objects import MemoryStore, MemoryStores
from tests.harness.uploading import MIB, archive_of, read_back

KEY = "datas3t/photos/dataranges/x.tar"
BUCKET = BucketId(1)
WHOLE, HEADERS, SAMPLE = (
    InspectionLimits(1 << 40, 1 << 40),
    InspectionLimits(0, 1 << 40),
    InspectionLimits(0, 0),
)
DEPTHS = pytest.mark.parametrize("depth", [WHOLE, HEADERS, SAMPLE], ids=["whole", "headers", "sample"])
depths = st.sampled_from([WHOLE, HEADERS, SAMPLE])


class Bench:
    """A bucket with an upload in it."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.stores = MemoryStores({BUCKET: self.store})

    async def inspect(
        self, keys: Span, body: bytes, index: bytes, depth: InspectionLimits = WHOLE, key: str = KEY
    ) -> bytes:
        """Upload both objects and return the index object that is made."""
        self.store.objects[key] = body
        return await self.inspect_there(keys, len(body), index, depth, key)

    async def inspect_there(
        self, keys: Span, size: int, index: bytes, depth: InspectionLimits = WHOLE, key: str = KEY
    ) -> bytes:
        """The same for an object that lies there."""
        self.store.objects[staged_index_key(key)] = index
        intent = UploadIntent(DatasetId(1), keys, size, presigned=True)
        upload = Upload(UploadId(1), intent, BUCKET, key, index_object_key(key))
        async with open_indices(MemoryIndexCache(), self.stores, Counters()) as indices:
            return await Inspector(indices, depth).inspect(self.store, upload, size)

    async def published(self, keys: Span, size: int, index: bytes) -> Index:
        """Return the index as readers see it, once *index* is stored."""
        self.store.objects[index_object_key(KEY)] = index
        datarange = Datarange(DatarangeId(1), DatasetId(1), keys, KEY, index_object_key(KEY), size, 0)
        async with open_indices(MemoryIndexCache(), self.stores, Counters()) as indices:
            return await indices.of(BUCKET, datarange)


def true_records(body: bytes) -> bytes:
    """The records of all members that tarfile finds, whatever they are, but directories."""
    with tarfile.open(fileobj=io.BytesIO(body)) as opened:
        return b"".join(
            go_record(info.offset, info.size, (info.offset_data - info.offset) // 512)
            for info in opened
            if not info.isdir()
        )


def members(body: bytes) -> list[tuple[str, bytes]]:
    """What tarfile, a second opinion, finds in an archive."""
    with tarfile.open(fileobj=io.BytesIO(body)) as opened:
        return [(info.name, opened.extractfile(info).read()) for info in opened if info.isreg()]  # type: ignore[union-attr]  # regular files have content


# -- good archives --------------------------------------------------------------------------------


@DEPTHS
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("extension", ["bin", "x" * 120])
async def test_archives_of_all_programs_are_taken(
    writer: str, extension: str, depth: InspectionLimits, tmp_path: Path
) -> None:
    if len(extension) > 100 and writer in SHORT_NAMES:
        return
    made = samples([0, 1, 511, 512, 513, 300_000], first=3, extension=extension)
    WRITERS[writer](write_folder(tmp_path / "folder", made), tmp_path / "made.tar")
    body, keys = (tmp_path / "made.tar").read_bytes(), Span(3, 9)
    bench = Bench()
    index = await bench.inspect(keys, body, true_records(body), depth)
    found = read_back(await bench.published(keys, len(body), index), body)
    assert found == [(sample.name, sample.content) for sample in made]


@DEPTHS
@pytest.mark.parametrize("write", [with_directories, with_global_header])
async def test_what_may_be_skipped_is_skipped(
    write: Callable[[Path, Path], None], depth: InspectionLimits, tmp_path: Path
) -> None:
    made = samples([10, 20, 30])
    write(write_folder(tmp_path / "folder", made), tmp_path / "made.tar")
    body, keys = (tmp_path / "made.tar").read_bytes(), Span(0, 3)
    bench = Bench()
    index = await bench.inspect(keys, body, true_records(body), depth)
    assert read_back(await bench.published(keys, len(body), index), body) == [
        (sample.name, sample.content) for sample in made
    ]


@DEPTHS
@pytest.mark.parametrize("end", [512, 777, 1024, 10_240, 3 * MIB, 3 * MIB + 1])
async def test_any_padding_of_zeros_is_taken(end: int, depth: InspectionLimits) -> None:
    archive = archive_of([b"a", b"b"], end=end)
    assert await Bench().inspect(Span(0, 2), archive.body, archive.go_index, depth)


@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(st.integers(0, 3000), min_size=1, max_size=8),
    st.integers(0, 2**63 - 10),
    st.sampled_from(["records", "zstd", "frames", "full", "full without checksums"]),
    depths,
)
@settings(deadline=None)
async def test_a_true_index_of_any_form_is_taken(
    form: int, sizes: list[int], first: int, kind: str, depth: InspectionLimits
) -> None:
    archive = archive_of([noise(size, size) for size in sizes], first, form=form, mtime=1.5)
    records = archive.records
    index = {
        "records": records,
        "zstd": zstandard.compress(records),
        "frames": zstandard.compress(records[:16]) + zstandard.compress(records[16:]),
        "full": archive.full_index(),
        "full without checksums": archive.full_index(checksums=False),
    }[kind]
    bench, keys = Bench(), Span(first, first + len(sizes))
    made = await bench.inspect(keys, archive.body, index, depth)
    published = await bench.published(keys, len(archive.body), made)
    assert read_back(published, archive.body) == members(archive.body)
    crcs = [crc32c(content) for content in archive.contents]
    is_known = depth is WHOLE or kind == "full"
    assert published.crcs(0, len(sizes)) == (crcs if is_known else None)
    assert published.mtimes_ns(0, 1) == [int(archive_time(archive.body) * 10**9)]


def archive_time(body: bytes) -> float:
    with tarfile.open(fileobj=io.BytesIO(body)) as opened:
        return opened.getmembers()[0].mtime


async def test_times_and_names_are_those_of_the_archive_where_every_header_is_read() -> None:
    archive, lies = archive_of([b"a"]), archive_of([b"a"], extension="exe", mtime=5)
    for depth in (WHOLE, HEADERS):
        bench = Bench()
        made = await bench.inspect(Span(0, 1), archive.body, lies.full_index(), depth)
        index = await bench.published(Span(0, 1), len(archive.body), made)
        assert (index.names(0, 1), index.mtimes_ns(0, 1)) == ([b"%020d.bin" % 0], [1_700_000_000 * 10**9])
    with pytest.raises(Invalid, match="another name"):
        await Bench().inspect(Span(0, 1), archive.body, lies.full_index(), SAMPLE)


async def test_large_datapoints_keep_the_checksums_of_their_chunks() -> None:
    archive = archive_of([noise(700_000), b"x", noise(300_000, 1)])
    for depth in (WHOLE, HEADERS, SAMPLE):
        bench = Bench()
        made = await bench.inspect(Span(0, 3), archive.body, archive.full_index(), depth)
        index = await bench.published(Span(0, 3), len(archive.body), made)
        assert [index.chunk_crc(0, i) for i in range(3)] == [
            crc32c(archive.contents[0][i : i + 262_144]) for i in range(0, 700_000, 262_144)
        ]


async def test_a_bare_index_of_a_sampled_object_is_stored_as_records_only() -> None:
    archive = archive_of([b"a", b"b"])
    made = await Bench().inspect(Span(0, 2), archive.body, archive.go_index, SAMPLE)
    assert zstandard.decompress(made) == archive.go_index
    assert isinstance(decode_index_file(made, count=2, object_size=len(archive.body)), BareRecords)


# -- bad archives ---------------------------------------------------------------------------------


def claimed_records(body: bytes) -> bytes:
    """The records that a hostile uploader of *body* would send."""
    with suppress(tarfile.TarError, EOFError, OSError):
        if records := true_records(body):
            return records
    return go_record(0, 3000) + go_record(512 + 3072, 3000)


@DEPTHS
@pytest.mark.parametrize("name", [name for name in BAD if name != "empty"])
async def test_bad_archives_are_refused(name: str, depth: InspectionLimits, tmp_path: Path) -> None:
    BAD[name].write(tmp_path / "bad.tar")
    body = (tmp_path / "bad.tar").read_bytes()
    records = claimed_records(body)
    keys = Span(7, 7 + len(records) // 16)
    with pytest.raises(Invalid):
        await Bench().inspect(keys, body, records, depth)


@DEPTHS
async def test_a_go_index_where_extended_headers_come_before(depth: InspectionLimits) -> None:
    for form, extension in ((tarfile.PAX_FORMAT, "bin"), (tarfile.GNU_FORMAT, "x" * 120)):
        archive = archive_of([b"a", b"b"], form=form, extension=extension, mtime=1.5 if form == 2 else 1)
        with pytest.raises(Invalid, match="--format=ustar"):
            await Bench().inspect(Span(0, 2), archive.body, archive.go_index, depth)


def block(kind: bytes, name: str, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


BETWEEN = {
    "a datapoint": block(b"0", key_name(1)),
    "another name": block(b"0", "hidden.txt"),
    "a link": block(b"2", key_name(1)),
    "junk": b"x" * 512,
    "the end": bytes(1024),
    "half a header": block(b"x", "pax", 512),
    "a global header that names": block(b"g", "pax", 21) + b"21 path=elsewhere....".ljust(512, b"\0"),
}


@DEPTHS
@pytest.mark.parametrize("what", BETWEEN)
async def test_nothing_hides_between_datapoints(what: str, depth: InspectionLimits) -> None:
    archive = archive_of([b"a", b"b"])
    body = archive.body[:1024] + BETWEEN[what] + archive.body[1024:]
    records = go_record(0, 1) + go_record(1024 + len(BETWEEN[what]), 1)
    with pytest.raises(Invalid):
        await Bench().inspect(Span(0, 2), body, records, depth)


@DEPTHS
async def test_nothing_hides_before_the_first_and_behind_the_last(depth: InspectionLimits) -> None:
    archive = archive_of([b"a"])
    hidden = block(b"0", "hidden.txt", 5) + b"hello".ljust(512, b"\0")
    with pytest.raises(Invalid):
        await Bench().inspect(Span(0, 1), hidden + archive.body, go_record(1024, 1), depth)
    for behind in (hidden + bytes(1024), bytes(1024) + hidden, bytes(4 * MIB) + hidden, b"\0" * 511 + b"x"):
        with pytest.raises(Invalid):
            await Bench().inspect(Span(0, 1), archive.body[:1024] + behind, go_record(0, 1), depth)


@pytest.mark.parametrize("depth", [HEADERS, SAMPLE], ids=["headers", "sample"])
async def test_what_lies_before_a_datapoint_is_bounded(depth: InspectionLimits) -> None:
    archive = archive_of([b"a"])
    body = block(b"5", "large/", 4 * MIB) + bytes(4 * MIB) + archive.body
    with pytest.raises(Invalid, match="too much lies before"):
        await Bench().inspect(Span(0, 1), body, go_record(4 * MIB + 512, 1), depth)


async def test_many_gaps_in_a_sampled_object_are_refused() -> None:
    archive = archive_of([b""] * 1100)
    blocks = [archive.body[i : i + 512] for i in range(0, 512 * 1100, 512)]
    body = b"".join(block(b"5", "d/") + one for one in blocks) + bytes(1024)
    records = b"".join(go_record(1024 * i + 512, 0) for i in range(1100))
    assert await Bench().inspect(Span(0, 1100), body, records, HEADERS)
    with pytest.raises(Invalid, match="at 1100 places"):
        await Bench().inspect(Span(0, 1100), body, records, SAMPLE)


@DEPTHS
async def test_fewer_datapoints_than_announced(depth: InspectionLimits) -> None:
    archive = archive_of([b"a", b"b"], end=10_240)
    records = archive.go_index + go_record(2048, 1)
    with pytest.raises(Invalid):
        await Bench().inspect(Span(0, 3), archive.body, records, depth)


# -- bad indices ----------------------------------------------------------------------------------

GOOD = archive_of(
    [noise(size, size) for size in (700, 0, 1, 512, 3000)], 40, form=tarfile.PAX_FORMAT, mtime=1.5
)
KEYS = Span(40, 45)


def skippable(payload: bytes) -> bytes:
    return zstdframes.skippable_frame(payload)


BOMB = zstandard.compress(bytes(1 << 30))
BAD_INDICES = {
    "bomb": BOMB,
    "two bombs": BOMB * 2,
    "bomb in the tail": GOOD.full_index()[: len(zstdframes.compress(GOOD.records))]
    + skippable(GOOD.flat()[:HEADER_SIZE] + BOMB),
    "huge window": b"\x28\xb5\x2f\xfd\x00\xb0" + bytes(20),
    "a thousand frames": zstandard.compress(GOOD.records) + zstandard.compress(b"") * 1000,
    "a thousand skipped": zstandard.compress(GOOD.records) + skippable(b"x") * 1000,
    "two of ours": GOOD.full_index() + skippable(GOOD.flat()[:HEADER_SIZE] + zstdframes.compress(b"")),
    "skipped only": skippable(b"x" * 80),
    "skipped beyond the end": zstandard.compress(GOOD.records) + b"\x50\x2a\x4d\x18\xff\xff\xff\xffx",
    "a frame of nothing": zstandard.compress(b""),
    "cut": GOOD.full_index()[:-1],
    "cut records": zstandard.compress(GOOD.records)[:-1],
    "more behind": GOOD.full_index() + b"\0" * 16,
    "not zstd": b"\x28\xb5\x2f\xfd" + b"\xff" * 76,
    "no records": b"",
    "one byte": b"x",
    "one record too few": GOOD.records[:-16],
    "one record too many": GOOD.records + GOOD.records[-16:],
    "not a multiple of 16": GOOD.records[:-1],
    "zeros": bytes(80),
    "ones": b"\xff" * 80,
}


@DEPTHS
@pytest.mark.parametrize("name", BAD_INDICES)
async def test_bad_indices_are_refused(name: str, depth: InspectionLimits) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Invalid):
            await Bench().inspect(KEYS, GOOD.body, BAD_INDICES[name], depth)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


@DEPTHS
async def test_an_index_longer_than_any_is_not_even_fetched(depth: InspectionLimits) -> None:
    bench = Bench()
    with pytest.raises(Invalid, match="at most"):
        await bench.inspect(KEYS, GOOD.body, bytes(17 * MIB), depth)
    assert bench.store.gets == []


# -- whatever is flipped --------------------------------------------------------------------------


async def refused_or_harmless(keys: Span, body: bytes, index: bytes, depth: InspectionLimits) -> bool:
    """Return whether it was taken; then what is published must read back as what was uploaded."""
    bench = Bench()
    try:
        made = await bench.inspect(keys, body, index, depth)
    except Invalid:
        return False
    published = await bench.published(keys, len(body), made)
    assert read_back(published, body) == members(body)
    crcs = published.crcs(0, published.count)
    if depth is WHOLE:
        assert crcs == [crc32c(content) for _, content in members(body)]
    return True


FORMS = {
    "records": GOOD.records,
    "zstd": zstandard.compress(GOOD.records),
    "full": GOOD.full_index(),
}


@given(st.sampled_from(sorted(FORMS)), st.integers(0, 10**6), st.integers(1, 255), depths)
@settings(deadline=None, max_examples=300)
async def test_a_byte_flipped_in_the_index(form: str, at: int, by: int, depth: InspectionLimits) -> None:
    index = bytearray(FORMS[form])
    index[at % len(index)] ^= by
    await refused_or_harmless(KEYS, GOOD.body, bytes(index), depth)


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD.body) - 1), st.integers(1, 255)), min_size=1, max_size=3),
    depths,
)
@settings(deadline=None, max_examples=300)
async def test_bytes_flipped_in_the_archive(flips: list[tuple[int, int]], depth: InspectionLimits) -> None:
    body = bytearray(GOOD.body)
    for at, by in flips:
        body[at] ^= by
    await refused_or_harmless(KEYS, bytes(body), GOOD.records, depth)


@given(st.integers(0, len(GOOD.body)), st.integers(0, len(GOOD.body)), st.binary(max_size=2000), depths)
@settings(deadline=None, max_examples=200)
async def test_pieces_of_the_archive_replaced(
    start: int, stop: int, junk: bytes, depth: InspectionLimits
) -> None:
    body = GOOD.body[:start] + junk + GOOD.body[stop:]
    await refused_or_harmless(KEYS, body, GOOD.records, depth)


@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=2), depths)
@settings(deadline=None, max_examples=200)
async def test_entries_in_another_order_or_twice(
    order: list[int], twice: list[int], depth: InspectionLimits
) -> None:
    borders = [*(int.from_bytes(GOOD.records[i : i + 8], "big") for i in range(0, 80, 16))]
    stops = [*borders[1:], len(GOOD.body) - 1024]
    entries = [GOOD.body[start:stop] for start, stop in zip(borders, stops, strict=True)]
    chosen = [entries[i] for i in [*order, *twice]]
    body = b"".join(chosen) + bytes(1024)
    records = true_records(body)
    taken = await refused_or_harmless(Span(40, 40 + len(chosen)), body, records, depth)
    assert taken == ([*order, *twice] == list(range(5)))


hostile_members = st.tuples(
    st.sampled_from(
        [b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"g", b"x", b"L", b"K", b"S", b"V", b"M"]
    ),
    st.sampled_from(
        [
            *(key_name(key) for key in range(3)),
            key_name(1, "a/b"),
            f"./{key_name(1)}",
            "x" * 99,
            key_name(1) + "/",
        ]
    ),
    st.sampled_from(
        [
            b"",
            b"content",
            key_name(1).encode() + b"\0",
            b"34 path=00000000000000000001.bin\n",
            b"12 size=512\n",
            b"22 GNU.sparse.major=1\n",
            b"30 mtime=99999999999999999999\n",
        ]
    ),
)


@given(st.lists(hostile_members, max_size=6), st.integers(0, 3), depths)
@settings(deadline=None, max_examples=500)
async def test_archives_made_to_deceive(
    made: list[tuple[bytes, str, bytes]], count: int, depth: InspectionLimits
) -> None:
    """Any members in any order: if they are taken, tarfile finds just the datapoints announced."""
    body = b""
    records: list[bytes] = []
    start = 0
    for kind, name, content in made:
        body += block(kind, name, len(content)) + content.ljust(tar.padded(len(content)), b"\0")
        if kind in (b"0", b"\0"):
            blocks = (len(body) - tar.padded(len(content)) - start) // 512
            records.append(go_record(start, len(content), blocks))
        if kind not in (b"x", b"L", b"K"):
            start = len(body)
    body += bytes(1024)
    chosen = records[: count or None]
    if not chosen:
        return
    keys = Span(0, len(chosen))
    if await refused_or_harmless(keys, body, b"".join(chosen), depth):
        assert [name for name, _ in members(body)] == [key_name(key) for key in range(len(chosen))]


@given(
    st.lists(
        st.tuples(st.integers(0, 8192), st.integers(0, 4), st.integers(0, 4000)), min_size=5, max_size=5
    ),
    depths,
)
@settings(deadline=None, max_examples=200)
async def test_records_that_lie(lies: list[tuple[int, int, int]], depth: InspectionLimits) -> None:
    records = b"".join(go_record(offset // 512 * 512, size, blocks) for offset, blocks, size in lies)
    taken = await refused_or_harmless(KEYS, GOOD.body, records, depth)
    assert taken == (records == GOOD.records)


# -- how much is fetched, and how much is in memory ------------------------------------------------


class Endless(MemoryStore):
    """A bucket whose one object, of *count* datapoints of *size* zeros each, is made when it is asked for."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.count, self.size_of_each, self.step = count, size, 512 + tar.padded(size)
        self.total = count * self.step + 1024
        self.in_flight = self.most_in_flight = 0

    @property
    def records(self) -> bytes:
        return b"".join(go_record(i * self.step, self.size_of_each) for i in range(self.count))

    async def get_range(self, key: str, span: Span, total: int) -> bytes:
        assert total == self.total
        self.gets.append((key, span))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await trio.lowlevel.checkpoint()
        self.in_flight -= 1
        body = bytearray(span.length)
        for number in range(max(0, span.start // self.step), self.count):
            at = number * self.step - span.start
            if at >= span.length:
                break
            header = tar.build_header(key_name(number), self.size_of_each, 0)
            part = header[max(0, -at) : span.length - at]
            body[max(0, at) : max(0, at) + len(part)] = part
        return bytes(body)


async def test_headers_close_together_are_read_in_few_large_requests() -> None:
    store = Endless(1000, 100 * 1024)
    await Bench(store).inspect_there(Span(0, 1000), store.total, store.records, HEADERS)
    gets = [span for key, span in store.gets if key == KEY]
    assert len(gets) <= store.total // (8 * MIB) + 3
    assert max(span.length for span in gets) <= 8 * MIB


async def test_headers_far_apart_are_read_without_what_lies_between() -> None:
    store = Endless(40, 3 * MIB)
    await Bench(store).inspect_there(Span(0, 40), store.total, store.records, HEADERS)
    gets = [span for key, span in store.gets if key == KEY]
    assert len(gets) <= 41
    assert sum(span.length for span in gets) < 50_000


async def test_of_a_huge_object_a_sample_is_read() -> None:
    store = Endless(100_000, 1536 * 1024)
    await Bench(store).inspect_there(Span(0, 100_000), store.total, store.records, SAMPLE)
    gets = [span for key, span in store.gets if key == KEY]
    assert len(gets) <= 260
    assert sum(span.length for span in gets) < MIB
    assert {0, store.total - 1024 - store.step} <= {span.start for span in gets}
    assert store.total in {span.stop for span in gets}


async def test_a_lie_about_the_first_or_the_last_of_a_huge_object_is_seen() -> None:
    store = Endless(3000, 1536 * 1024 + 7)
    for lie in (0, 2999):
        records = bytearray(store.records)
        records[16 * lie + 15] ^= 1
        with pytest.raises(Invalid, match=f"datapoint {lie}"):
            await Bench(store).inspect_there(Span(0, 3000), store.total, bytes(records), SAMPLE)


@DEPTHS
async def test_memory_is_flat_however_large_the_object(depth: InspectionLimits) -> None:
    store = Endless(300, MIB)
    records = store.records
    tracemalloc.start()
    try:
        await Bench(store).inspect_there(Span(0, 300), store.total, records, depth)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    assert store.most_in_flight <= 4


@DEPTHS
async def test_the_work_is_done_beside_the_loop(
    depth: InspectionLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def work(*args: object, **kwargs: object) -> object:
            threads.add(threading.get_ident())
            return real(*args, **kwargs)

        return work

    for name in ("scan", "read_client_index", "check_against", "encode_index_file"):
        monkeypatch.setattr(inspection, name, watched(getattr(inspection, name)))
    monkeypatch.setattr(HeaderCheck, "look", watched(HeaderCheck.look))
    archive = archive_of([b"a", b"b"])
    await Bench().inspect(Span(0, 2), archive.body, archive.go_index, depth)
    assert threads
    assert threading.get_ident() not in threads


async def test_few_objects_are_inspected_at_a_time() -> None:
    class Gate(MemoryStore):
        inside = most = 0

        async def get_range(self, key: str, span: Span, total: int) -> bytes:
            self.inside += 1
            self.most = max(self.most, self.inside)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            self.inside -= 1
            return await super().get_range(key, span, total)

    store = Gate()
    archive = archive_of([b"a"])
    stores = MemoryStores({BUCKET: store})
    async with (
        open_indices(MemoryIndexCache(), stores, Counters()) as indices,
        trio.open_nursery() as nursery,
    ):
        inspector = Inspector(indices, WHOLE)
        for number in range(20):
            key = f"datas3t/photos/dataranges/{number}.tar"
            store.objects[key], store.objects[staged_index_key(key)] = archive.body, archive.go_index
            intent = UploadIntent(DatasetId(1), Span(0, 1), len(archive.body), presigned=True)
            upload = Upload(UploadId(number), intent, BUCKET, key, index_object_key(key))
            nursery.start_soon(inspector.inspect, store, upload, len(archive.body))
    assert 1 < store.most <= 4


async def test_cancelling_an_inspection_ends_it() -> None:
    class Stuck(MemoryStore):
        asked = trio.Event()

        async def get_range(self, key: str, span: Span, total: int) -> bytes:
            self.asked.set()
            await trio.sleep_forever()
            raise AssertionError

    store = Stuck()
    archive = archive_of([b"a"])

    async def inspect() -> None:
        await Bench(store).inspect(Span(0, 1), archive.body, archive.go_index)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inspect)
        await store.asked.wait()
        nursery.cancel_scope.cancel()


async def test_what_s3_says_about_the_object_is_said_as_it_is() -> None:
    archive = archive_of([b"a"])
    bench = Bench()
    bench.store.objects[KEY] = archive.body
    with pytest.raises(Corrupt):
        await bench.inspect_there(Span(0, 1), len(archive.body) + 512, archive.go_index)

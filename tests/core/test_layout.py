"""Planning and composing TARs: what tarfile and our own scan read back is what went in."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.compose import compose
from datas3tfs.core.index import open_index
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.layout import Planned, plan_layout
from datas3tfs.core.scan import scan
from datas3tfs.errors import Invalid

SECOND = 1_000_000_000


def plan(contents: list[bytes], first: int = 0, extension: str = "bin") -> list[Planned]:
    return [Planned(first + i, extension, len(c), i * SECOND + 5) for i, c in enumerate(contents)]


@given(
    st.lists(st.integers(0, 2000), min_size=1, max_size=8).map(lambda sizes: [bytes([7]) * n for n in sizes]),
    st.integers(0, 2**63 - 10),
    st.sampled_from(["bin", "x" * 120]),
)
def test_the_composed_tar_is_as_planned_and_reads_back(
    contents: list[bytes], first: int, extension: str
) -> None:
    layout = plan_layout(plan(contents, first, extension))
    builder = IndexBuilder()
    data = b"".join(compose(layout, lambda i: [contents[i][:3], contents[i][3:]], builder))
    assert len(data) == layout.size
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        infos = archive.getmembers()
        assert [info.name for info in infos] == [member.name for member in layout.members]
        files = [archive.extractfile(info) for info in infos]
        assert [file.read() for file in files if file is not None] == contents
        assert [info.mtime for info in infos] == list(range(len(contents)))
    index = open_index(
        memoryview(builder.finish(first=first, object_size=len(data))),
        first=first,
        count=len(contents),
        object_size=len(data),
    )
    for slot, found in enumerate(scan([data])):
        entry = index.entry(slot)
        assert (entry.header.start, entry.size, entry.crc) == (found.offset, found.size, found.crc)
        assert entry.mtime_ns == found.mtime_ns


def test_the_layout_ends_with_two_zero_blocks_and_nothing_else() -> None:
    layout = plan_layout(plan([b"a"]))
    assert layout.size == 512 + 512 + 1024
    assert layout.keys.stop - layout.keys.start == 1


def test_large_content_is_composed_piecewise() -> None:
    content = bytes(3 * CHUNK + 1)
    layout = plan_layout(plan([content]))
    builder = IndexBuilder()
    chunks = list(
        compose(layout, lambda _: (content[i : i + 1000] for i in range(0, len(content), 1000)), builder)
    )
    assert sum(map(len, chunks)) == layout.size


def test_large_pieces_are_handed_on_as_they_are() -> None:
    """Between what is joined, in order."""
    contents = [b"small", bytes(4 * CHUNK + 1), b"small, too", bytes(4 * CHUNK)]
    layout = plan_layout(plan(contents))
    chunks = list(compose(layout, lambda i: [contents[i]], IndexBuilder()))
    assert any(chunk is contents[1] for chunk in chunks)
    assert any(chunk is contents[3] for chunk in chunks)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        files = [archive.extractfile(info) for info in archive.getmembers()]
        assert [file.read() for file in files if file is not None] == contents


@pytest.mark.parametrize("actual", [b"", b"ab", b"abcd"])
def test_a_source_that_has_changed_is_refused_by_name(actual: bytes) -> None:
    layout = plan_layout(plan([b"abc"]))
    with pytest.raises(Invalid, match=r"00000000000000000000\.bin: its source has changed"):
        list(compose(layout, lambda _: [actual], IndexBuilder()))


def test_gaps_and_emptiness_are_refused() -> None:
    first, second = plan([b"a", b"b"])
    with pytest.raises(Invalid, match="contiguous"):
        plan_layout([first, Planned(second.key + 1, "bin", 1, 0)])
    with pytest.raises(Invalid, match="at least one"):
        plan_layout([])


def test_keys_beyond_the_limit_are_refused() -> None:
    with pytest.raises(Invalid):
        plan_layout([Planned(2**63, "bin", 0, 0)])


def test_bad_extensions_are_refused() -> None:
    with pytest.raises(Invalid, match="extension"):
        plan_layout([Planned(0, "a/b", 0, 0)])

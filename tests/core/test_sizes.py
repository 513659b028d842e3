"""parse_size and format_size: what people write, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.sizes import format_size, parse_size
from datas3tfs.errors import Invalid


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("512b", 512),
        ("1k", 1024),
        ("1K", 1024),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("500M", 500 * 2**20),
        ("10GiB", 10 * 2**30),
        ("10 gib", 10 * 2**30),
        (" 1.5GB ", 1_500_000_000),
        ("0.5K", 512),
        ("2TiB", 2 * 2**40),
        ("7EiB", 7 * 2**60),
    ],
)
def test_sizes_people_write(text: str, size: int) -> None:
    assert parse_size(text) == size


_NOT_SIZES = "GiB|-1|+1|1e3|1,5G|.5G|1.G|1 G B|10Gib2|1Q|inf|nan|٣|8EiB"


@pytest.mark.parametrize("text", ["", " ", *_NOT_SIZES.split("|")])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_size(text)


def test_the_refusal_is_harmless_in_a_terminal() -> None:
    with pytest.raises(Invalid) as caught:
        parse_size("1\x1b[2J")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10 * 2**10, "10.0 KiB"),
        (100 * 2**20, "100 MiB"),
        (2**20 - 1, "1.00 MiB"),
        (2**63 - 1, "8.00 EiB"),
    ],
)
def test_sizes_people_read(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**62))
def test_what_is_shown_can_be_typed_back_within_a_percent(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size / 100

"""Names of datapoints, objects and datasets (PRODUCT section 3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.names import (
    check_file_name,
    check_label,
    data_object_key,
    index_object_key,
    is_temporary,
    parse_data_object_key,
    parse_datapoint_name,
    printable,
)
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid

KEY = "00000000000000000042"


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        (f"{KEY}.jpg", 42, "jpg"),
        (f"{KEY}.json.zst", 42, "json.zst"),
        ("00000000000000000000.x", 0, "x"),
        ("09223372036854775807.bin", 2**63 - 1, "bin"),
        (f"{KEY}.größe", 42, "größe"),
        (f"{KEY}. ", 42, " "),
    ],
)
def test_valid_names(name: str, key: int, extension: str) -> None:
    parsed = parse_datapoint_name(name)
    assert (parsed.key, parsed.extension) == (key, extension)
    assert str(parsed) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        KEY,
        f"{KEY}.",
        f"{KEY}",
        f"{KEY[1:]}.jpg",
        f"0{KEY}.jpg",
        f"./{KEY}.jpg",
        f"dir/{KEY}.jpg",
        f"{KEY}.a/b",
        f"{KEY}.a/../../b",
        f"{KEY}...",
        f"{KEY}.a..b",
        f"{KEY}.a\0b",
        f"{KEY}.a\nb",
        f"{KEY}.\x1b[2J",
        f"{KEY}.\u202egpj",
        f"{KEY}.\udcff",
        f"{KEY}-jpg",
        "0000000000000000004２.jpg",
        "+0000000000000000042.jpg",
        "09223372036854775808.jpg",
        "99999999999999999999.x",
        f"{KEY}.{'x' * 300}",
    ],
)
def test_anything_else_is_refused_and_the_message_is_one_harmless_line(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_datapoint_name(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@given(st.text(max_size=60))
def test_whatever_is_accepted_is_a_plain_file_name(extension: str) -> None:
    try:
        parsed = parse_datapoint_name(f"{KEY}.{extension}")
    except Invalid:
        return
    name = str(parsed)
    assert "/" not in name
    assert "\0" not in name
    assert ".." not in name
    assert len(name.encode()) <= 255
    assert printable(name) == name


@given(st.text(max_size=400))
def test_printable_text_cannot_drive_a_terminal(text: str) -> None:
    shown = printable(text)
    assert all(char.isprintable() or char == " " for char in shown if ord(char) < 0xA0)
    assert "\x1b" not in shown
    assert "\n" not in shown


@given(st.integers(0, 2**63 - 2), st.integers(1, 10**6), st.none() | st.integers(0, 10**12 - 1))
def test_object_keys_round_trip(first: int, count: int, generation: int | None) -> None:
    keys = Span(first, min(first + count, 2**63))
    key = data_object_key("photos", keys, generation)
    assert parse_data_object_key(key) == ("photos", keys, generation)
    assert index_object_key(key) == key[: -len(".tar")] + ".index.zst"


def test_object_keys_look_as_the_contract_says() -> None:
    assert data_object_key("d", Span(100, 200), None) == (
        "datas3t/d/dataranges/00000000000000000100-00000000000000000199.tar"
    )
    assert data_object_key("d", Span(100, 200), 7).endswith("00000000000000000199-000000000007.tar")


@pytest.mark.parametrize(
    "key",
    [
        "datas3t/d/dataranges/1-2.tar",
        "datas3t/d/e/dataranges/00000000000000000100-00000000000000000199.tar",
        "datas3t/d/dataranges/00000000000000000200-00000000000000000199.tar",
        "datas3t/d/dataranges/00000000000000000100-99999999999999999999.tar",
        "datas3t/d/dataranges/00000000000000000100-00000000000000000199.tar\n",
    ],
)
def test_foreign_object_keys_are_refused(key: str) -> None:
    with pytest.raises(Invalid):
        parse_data_object_key(key)


@pytest.mark.parametrize("label", ["", "a b", "a/b", "..", "a\n", "ä", "x" * 201, "a.b"])
def test_bad_dataset_names_are_refused(label: str) -> None:
    with pytest.raises(Invalid):
        check_label("dataset", label)


def test_good_dataset_names_pass() -> None:
    assert check_label("dataset", "train_2026-11") == "train_2026-11"


TEMPORARY = [
    ".00000000000000000007.jpg.Xy3bQ1",  # rsync
    ".hidden",
    ".00000000000000000007.jpg.swp",
    "..strange",
    "00000000000000000007.jpg~",
    "a~",
    "#00000000000000000007.jpg#",
    "00000000000000000007.jpg.part",
    "archive.partial",
    "film.filepart",
    "page.crdownload",
    "00000000000000000007.tmp",
    "00000000000000000007.jpg.tmp",
    "x.temp",
    "x.swp",
    "x.swx",
    "tmp1a_b2c3d",  # Python's tempfile
    "sedAb12Cd",
    ".with\nnewline",
]


@pytest.mark.parametrize("name", TEMPORARY)
def test_names_that_programs_give_to_files_they_will_rename(name: str) -> None:
    assert is_temporary(name)


@pytest.mark.parametrize(
    "name",
    [
        "00000000000000000007.jpg",
        "00000000000000000007.tmp.jpg",
        "00000000000000000007.partial.json",
        ".",
        "~",
        "##",
        "part",
        "tmp1a_b2c3",
        "tmp1a_b2c3de",
        "tmpABCDEFGH",
        "sedAb12C",
        "sedAb12Cde",
        "notes.txt",
    ],
)
def test_names_that_are_not_temporary(name: str) -> None:
    assert not is_temporary(name)


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "7.jpg",
        "00000000000000000007",
        "." + "x" * 255,
        ".bad\x1bescape",
        ".bad\udcffbyte",
        "ä" * 128 + "~",
        "00000000000000000007.a..b",
    ],
)
def test_names_that_no_new_file_may_have(name: str) -> None:
    with pytest.raises(Invalid):
        check_file_name(name)


@pytest.mark.parametrize("name", [f"{KEY}.jpg", f"{KEY}.jpg.part", ".x", "." + "x" * 254, "ä~"])
def test_names_that_new_files_may_have(name: str) -> None:
    check_file_name(name)


@given(st.text(max_size=300))
def test_a_name_is_a_datapoints_or_temporary_or_refused(name: str) -> None:
    try:
        check_file_name(name)
    except Invalid:
        return
    assert "\0" not in name
    assert printable(name) == name
    assert len(name.encode()) <= 255
    assert is_temporary(name) or str(parse_datapoint_name(name)) == name

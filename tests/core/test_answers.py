"""Which answers of S3 are believed: every header that matters, right and wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.objects.answers import (
    Answer,
    check_asked,
    check_length,
    check_range,
    check_whole,
    error_code,
    refusal,
)

KEY = "datas3t/x/dataranges/a.tar"
SPAN = Span(100, 200)
TOTAL = 1000
RIGHT = Answer(206, "bytes 100-199/1000", "100", "application/x-tar", None)


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT,
        replace(RIGHT, status=200),  # rclone
        replace(RIGHT, content_type=None),
        replace(RIGHT, content_encoding="identity"),
        replace(RIGHT, content_encoding=" Identity "),
        replace(RIGHT, content_encoding=""),
    ],
)
def test_the_range_asked_for_passes(answer: Answer) -> None:
    assert check_range(KEY, SPAN, TOTAL, answer) == 100


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, None, "1000", "application/x-tar"),  # the whole object
        Answer(200, None, "100", "application/x-tar"),  # a length that happens to fit
        Answer(200, None, "100", "text/html"),
        replace(RIGHT, content_length=None),
        replace(RIGHT, transfer_encoding="chunked"),
        replace(RIGHT, content_range=None),
        replace(RIGHT, content_range=""),
        replace(RIGHT, content_range="bytes 100-199/*"),
        replace(RIGHT, content_range="bytes */1000"),
        replace(RIGHT, content_range="bytes=100-199/1000"),
        replace(RIGHT, content_range="items 100-199/1000"),
        replace(RIGHT, content_range="bytes 100-199/1000, bytes 300-399/1000"),
        replace(RIGHT, content_range="bytes -100-199/1000"),
        replace(RIGHT, content_range="bytes ١٠٠-199/1000"),
        replace(RIGHT, content_range="bytes 0-99/1000"),
        replace(RIGHT, content_range="bytes 101-200/1000"),
        replace(RIGHT, content_range="bytes 100-198/1000"),
        replace(RIGHT, content_range="bytes 100-200/1000"),
        replace(RIGHT, content_range="bytes 99-199/1000"),
        replace(RIGHT, content_range="bytes 199-100/1000"),
        replace(RIGHT, content_length="99"),
        replace(RIGHT, content_length="101"),
        replace(RIGHT, content_length="1000"),
        replace(RIGHT, content_length="-100"),
        replace(RIGHT, content_length="100, 100"),
        replace(RIGHT, content_length="many"),
        replace(RIGHT, content_type="multipart/byteranges; boundary=x"),
        replace(RIGHT, content_encoding="gzip"),
        replace(RIGHT, content_encoding="aws-chunked"),
        replace(RIGHT, content_encoding="identity, gzip"),
        *(replace(RIGHT, status=status) for status in (100, 201, 204, 301, 304, 307, 416, 500)),
    ],
)
def test_anything_else_is_refused(answer: Answer) -> None:
    with pytest.raises(Unavailable, match=KEY):
        check_range(KEY, SPAN, TOTAL, answer)


@pytest.mark.parametrize("total", [0, 999, 1001, 2000])
def test_another_length_of_the_object_is_corrupt(total: int) -> None:
    with pytest.raises(Corrupt, match=KEY):
        check_range(KEY, SPAN, TOTAL, replace(RIGHT, content_range=f"bytes 100-199/{total}"))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.sampled_from([200, 206]))
def test_only_the_one_content_range_passes(first: int, last: int, total: int, status: int) -> None:
    answer = Answer(status, f"bytes {first}-{last}/{total}", None)
    try:
        check_range(KEY, SPAN, 256, answer)
        passed = True
    except Datas3tError:
        passed = False
    assert passed == ((first, last, total) == (100, 199, 256))


@given(
    status=st.integers(100, 599),
    content_range=st.none() | st.text(max_size=30),
    content_length=st.none() | st.text(max_size=5),
    content_type=st.none() | st.text(max_size=20),
    content_encoding=st.none() | st.text(max_size=10),
)
def test_nonsense_never_passes_nor_escapes_the_error_tree(
    status: int,
    content_range: str | None,
    content_length: str | None,
    content_type: str | None,
    content_encoding: str | None,
) -> None:
    answer = Answer(status, content_range, content_length, content_type, content_encoding)
    with pytest.raises(Datas3tError):
        check_range(KEY, SPAN, TOTAL, answer)


@pytest.mark.parametrize("span", [Span(0, 1001), Span(1000, 1001), Span(-1, 5)])
def test_a_span_outside_the_object_is_corrupt(span: Span) -> None:
    with pytest.raises(Corrupt, match=KEY):
        check_asked(KEY, span, TOTAL)


@pytest.mark.parametrize("span", [Span(0, 1000), Span(0, 0), Span(1000, 1000), Span(999, 1000)])
def test_a_span_inside_may_be_asked_for(span: Span) -> None:
    check_asked(KEY, span, TOTAL)


WHOLE = Answer(200, None, "100", "application/octet-stream")


@pytest.mark.parametrize("limit", [100, 101, 1 << 40])
def test_a_whole_object_within_the_limit_passes(limit: int) -> None:
    assert check_whole(KEY, limit, WHOLE) == 100


def test_an_empty_object_passes() -> None:
    assert check_whole(KEY, 0, replace(WHOLE, content_length="0")) == 0


def test_a_longer_object_is_corrupt() -> None:
    with pytest.raises(Corrupt, match=KEY):
        check_whole(KEY, 99, WHOLE)


@pytest.mark.parametrize(
    "answer",
    [
        replace(WHOLE, status=206, content_range="bytes 0-99/100"),
        replace(WHOLE, content_range="bytes 0-99/100"),
        replace(WHOLE, status=206),
        replace(WHOLE, status=203),
        replace(WHOLE, content_length=None),
        replace(WHOLE, content_length="x"),
        replace(WHOLE, content_type="text/html; charset=utf-8"),
        replace(WHOLE, content_type="application/xml"),
        replace(WHOLE, content_type="TEXT/XML"),
        replace(WHOLE, content_type="multipart/byteranges"),
        replace(WHOLE, content_encoding="zstd"),
    ],
)
def test_what_is_not_the_whole_object_is_refused(answer: Answer) -> None:
    with pytest.raises(Unavailable, match=KEY):
        check_whole(KEY, 1000, answer)


def test_the_body_must_be_as_long_as_announced() -> None:
    check_length(KEY, 100, 100)
    for got in (0, 99, 101):
        with pytest.raises(Unavailable, match=KEY):
            check_length(KEY, 100, got)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'<?xml version="1.0"?>\n<Error>\n <Code>NoSuchKey</Code><Key>x</Key></Error>', "NoSuchKey"),
        (b"<Error><Code> SlowDown </Code></Error>", "SlowDown"),
        (b"<html>NoSuchKey</html>", ""),
        (b"", ""),
        (b"\xff\x00<Code>\xff</Code>", ""),
        (b"<Code>" + b"A" * 65 + b"</Code>", ""),
        (b"<Code>two\nlines</Code>", ""),
    ],
)
def test_the_code_of_an_error_document(body: bytes, code: str) -> None:
    assert error_code(body) == code


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchVersion", NotFound),
        (404, "404", NotFound),  # HEAD
        (404, "NoSuchBucket", Unavailable),
        (404, "NoSuchUpload", NotFound),
        (400, "InvalidPart", Invalid),
        (400, "InvalidPartOrder", Invalid),
        (400, "EntityTooSmall", Invalid),
        (400, "MalformedXML", Invalid),
        (500, "InvalidPart", Invalid),  # 200 at first, and then an error in the body
        (400, "InvalidRequest", Unavailable),
        (404, "", Unavailable),  # somebody's page
        (416, "InvalidRange", Corrupt),
        (416, "", Corrupt),
        *((status, "", Unavailable) for status in (301, 307, 400, 401, 403, 405, 429, 500, 502, 503, 504)),
        (403, "NoSuchKey", Unavailable),
        (503, "SlowDown", Unavailable),
    ],
)
def test_refusals(status: int, code: str, kind: type[Datas3tError]) -> None:
    error = refusal(KEY, status, code)
    assert type(error) is kind
    assert KEY in str(error)
    assert "\n" not in str(error)

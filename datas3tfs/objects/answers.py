"""What an S3 answer is worth: pure checks that decide whether bytes may be believed.

Not for sending requests (download.py, bucket.py). A server, or a proxy before it, may answer a
request for a range with something else: the whole object, another range, an error page with status
200, half a body. None of it may pass for the range. Concurrency: plain functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Datas3tError, Invalid, NotFound, Unavailable

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_CONTENT_LENGTH = re.compile(r"\d{1,19}", re.ASCII)
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")
_PAGES = ("text/html", "text/xml", "application/xml", "application/xhtml+xml", "multipart/")
_NO_OBJECT = frozenset({"NoSuchKey", "NoSuchVersion", "404"})  # "404": a HEAD has no body to name a code
# Of CompleteMultipartUpload; such an error may also come in the body of an answer with status 200.
_REFUSED_PARTS = frozenset({"InvalidPart", "InvalidPartOrder", "EntityTooSmall", "MalformedXML"})


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, as far as it matters here; None is a header that is not there."""

    status: int
    content_range: str | None = None
    content_length: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    transfer_encoding: str | None = None


def check_asked(key: str, span: Span, total: int) -> None:
    """Raise Corrupt if *span* does not lie within an object of *total* bytes (a damaged index)."""
    if span.start < 0 or span.stop > total:
        raise Corrupt(f"{key}: bytes {span.start}..{span.stop} asked for, but it has {total}")


def check_range(key: str, span: Span, total: int, answer: Answer) -> int:
    """Return the length of *span* if *answer* carries exactly that span of *key*, *total* bytes long.

    The status must be 206, or 200 with a right Content-Range (rclone's way). Raises Corrupt (the
    object has another length), Unavailable (whatever else came).
    """
    if answer.status not in (200, 206):
        raise Unavailable(f"{key}: status {answer.status} instead of the range asked for")
    _check_plain(key, answer)
    match = _CONTENT_RANGE.fullmatch((answer.content_range or "").strip())
    if match is None:
        raise Unavailable(f"{key}: status {answer.status} without a usable Content-Range")
    first, last, length = (int(group) for group in match.groups())
    if length != total:
        raise Corrupt(f"{key}: {length} bytes long, must be {total}")
    if (first, last) != (span.start, span.last):
        raise Unavailable(f"{key}: bytes {first}-{last} came, {span.start}-{span.last} were asked for")
    announced = _announced_length(key, answer)
    if announced != span.length:
        raise Unavailable(f"{key}: {announced} bytes announced, {span.length} asked for")
    return span.length


def check_whole(key: str, limit: int, answer: Answer) -> int:
    """Return the length announced by an answer that carries all of *key*.

    Raises Corrupt (longer than *limit*), Unavailable (an error page, a part, no length).
    """
    if answer.status != 200 or answer.content_range is not None:
        raise Unavailable(f"{key}: status {answer.status} with a part instead of the whole object")
    _check_plain(key, answer)
    if (answer.content_type or "").strip().lower().startswith(_PAGES):
        raise Unavailable(f"{key}: a page came instead of the object")
    announced = _announced_length(key, answer)
    if announced is None:
        raise Unavailable(f"{key}: the answer does not tell its length")
    if announced > limit:
        raise Corrupt(f"{key}: {announced} bytes long, at most {limit} expected")
    return announced


def check_length(key: str, expected: int, got: int) -> None:
    """Raise Unavailable unless as many bytes came as were announced."""
    if got != expected:
        raise Unavailable(f"{key}: {got} bytes came, {expected} were announced")


def error_code(body: bytes) -> str:
    """Return the code in an S3 error document, or "" if *body* is something else."""
    match = _CODE.search(body)
    return match.group(1).decode("ascii") if match else ""


def refusal(subject: str, status: int, code: str) -> Datas3tError:
    """Return the error for an answer with *status* (not 2xx) and S3's error *code* ("" if none).

    A 404 counts as NotFound only if S3 itself says that the key is absent: a proxy's 404 page, or an
    absent bucket, tells nothing about the object.
    """
    if status == 404 and code in _NO_OBJECT:
        return NotFound(f"{subject}: no such object")
    if code == "NoSuchUpload":
        return NotFound(f"{subject}: no such multipart upload")
    if code in _REFUSED_PARTS:
        return Invalid(f"{subject}: S3 refuses the parts ({code})")
    if status == 416:
        return Corrupt(f"{subject}: shorter than it must be (status 416)")
    return Unavailable(f"{subject}: S3 answered {status}{f' {code}' if code else ''}")


def _check_plain(key: str, answer: Answer) -> None:
    if (answer.content_encoding or "identity").strip().lower() not in ("identity", ""):
        raise Unavailable(f"{key}: the body came encoded, not as it is stored")
    if answer.transfer_encoding is not None:
        # http.client believes whatever a chunk says of its size; and objects have a length.
        raise Unavailable(f"{key}: the body came in chunks, not with a length")
    if (answer.content_type or "").strip().lower().startswith("multipart/byteranges"):
        raise Unavailable(f"{key}: several ranges came, one was asked for")


def _announced_length(key: str, answer: Answer) -> int | None:
    if answer.content_length is None:
        return None
    if not _CONTENT_LENGTH.fullmatch(answer.content_length.strip()):
        raise Unavailable(f"{key}: the answer's length makes no sense")
    return int(answer.content_length)

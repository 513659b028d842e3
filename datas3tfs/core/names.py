"""Names: of datapoints, of objects in the bucket, of datasets and buckets.

A datapoint is called `{key:020d}.{extension}`. The rule is PRODUCT section 3's: 20 digits, a dot, an
extension of one or more characters without "/", NUL or "..". Control characters are refused too,
because a listing of such a name would drive the reader's terminal.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid

KEY_LIMIT = 2**63  # keys are Postgres bigints
NAME_LIMIT = 255  # bytes; NAME_MAX of every Linux file system and of FUSE
_KEY_DIGITS = 20
_LABEL = re.compile(r"[a-zA-Z0-9_-]{1,200}\Z")
_DATARANGE_KEY = re.compile(
    r"datas3t/(?P<dataset>[^/]+)/dataranges/(?P<first>\d{20})-(?P<last>\d{20})(?:-(?P<generation>\d{12}))?\.tar\Z"
)
# rsync, vim and most atomic writers put a dot in front; editors' backups end with "~"; downloads and copies
# in progress have one of the suffixes; emacs locks and saves as "#name#"; Python's tempfile and `sed -i`
# make up the last two.
_TEMPORARY = re.compile(
    r"\..+|.+~|#.+#|.+\.(?:part|partial|filepart|crdownload|tmp|temp|swp|swx)|tmp[a-z0-9_]{8}|sed[A-Za-z0-9]{6}",
    re.DOTALL,
)


_REMEMBERED = 256  # a name is asked about several times on its way; extensions are few


@dataclass(frozen=True, slots=True)
class DatapointName:
    """A valid datapoint name, taken apart."""

    key: int
    extension: str

    def __str__(self) -> str:
        return f"{self.key:0{_KEY_DIGITS}d}.{self.extension}"


def datapoint_name(key: int, extension: str) -> str:
    """Return the file name of datapoint *key*; the caller has checked both parts."""
    return f"{key:0{_KEY_DIGITS}d}.{extension}"


@lru_cache(_REMEMBERED)
def parse_datapoint_name(name: str) -> DatapointName:
    """Take *name* apart. Raises Invalid, naming it, if it is not a datapoint name."""
    digits, dot, extension = name[:_KEY_DIGITS], name[_KEY_DIGITS : _KEY_DIGITS + 1], name[_KEY_DIGITS + 1 :]
    if len(digits) != _KEY_DIGITS or not (digits.isascii() and digits.isdigit()) or dot != ".":
        raise Invalid(f"{printable(name)}: not a datapoint name (20 digits, a dot, an extension)")
    key = int(digits)
    if key >= KEY_LIMIT:
        raise Invalid(f"{printable(name)}: key is beyond 2^63-1")
    check_extension(extension, name)
    return DatapointName(key, extension)


def check_extension(extension: str, name: str) -> None:
    """Raise Invalid, naming *name*, if *extension* may not follow the dot of a datapoint name."""
    if (problem := _problem_of(extension)) is not None:
        raise Invalid(f"{printable(name)}: {problem}")


@lru_cache(_REMEMBERED)
def _problem_of(extension: str) -> str | None:
    if not extension or "/" in extension or ".." in f".{extension}" or _has_control(extension):
        return "extension is empty or has a slash, '..' or a control character"
    try:
        length = len(extension.encode())
    except UnicodeEncodeError:
        return "extension is not valid UTF-8"
    return f"longer than {NAME_LIMIT} bytes" if length > NAME_LIMIT - _KEY_DIGITS - 1 else None


@lru_cache(_REMEMBERED)
def is_temporary(name: str) -> bool:
    """Say whether *name* is one that programs give to files they are about to rename, or keep beside
    others while they edit: such files live in the journal and are never committed under that name.

    It wins over being a datapoint name: `00000000000000000007.jpg.part` is temporary.
    """
    return _TEMPORARY.fullmatch(name) is not None


def check_file_name(name: str) -> None:
    """Raise Invalid, naming it, unless a new file may be called *name*: as a datapoint, or temporarily."""
    if not is_temporary(name):
        parse_datapoint_name(name)
    elif len(name.encode("utf-8", "surrogateescape")) > NAME_LIMIT:
        raise Invalid(f"{printable(name)}: longer than {NAME_LIMIT} bytes")
    elif _has_control(name):
        raise Invalid(f"{printable(name)}: has a control character, or is not valid UTF-8")


def check_label(kind: str, label: str) -> str:
    """Return *label* if it may name a *kind* (dataset, bucket). Raises Invalid otherwise.

    Letters, digits, "_" and "-" only (as the Go servers), so it is a file name, a part of an object
    key and harmless in a terminal.
    """
    if not _LABEL.match(label):
        raise Invalid(f"{printable(label)}: not a {kind} name (letters, digits, '_' and '-', at most 200)")
    return label


def printable(text: str) -> str:
    """Return *text* safe to show in one line of a terminal or a log; control characters are escaped."""
    shown = text if len(text) <= 300 else text[:297] + "..."
    return "".join(_escaped(char) for char in shown)


def _escaped(char: str) -> str:
    if unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029":
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _has_control(text: str) -> bool:
    # Category C*: control, format (bidi overrides), surrogate (undecodable byte), unassigned.
    return any(unicodedata.category(char)[0] == "C" or char in "\u2028\u2029" for char in text)


def data_object_key(dataset: str, keys: Span, generation: int | None) -> str:
    """Return the key of a datarange's TAR; *generation* is None the first time a range is written."""
    suffix = "" if generation is None else f"-{generation:012d}"
    return f"datas3t/{dataset}/dataranges/{keys.start:020d}-{keys.last:020d}{suffix}.tar"


def index_object_key(data_key: str) -> str:
    """Return the key of the index that belongs to the TAR *data_key*."""
    return data_key.removesuffix(".tar") + ".index.zst"


def staged_index_key(data_key: str) -> str:
    """Return where an uploader puts its index of the TAR *data_key*: never where readers look, as its URL
    stays valid after the server has checked what was put there and written the index of its own."""
    return data_key.removesuffix(".tar") + ".index"


def parse_data_object_key(key: str) -> tuple[str, Span, int | None]:
    """Return (dataset, keys, generation) of a TAR's object key. Raises Invalid if it is not one."""
    match = _DATARANGE_KEY.match(key)
    if match is None:
        raise Invalid(f"{printable(key)}: not the object key of a datarange")
    first, last = int(match["first"]), int(match["last"])
    if last < first or last >= KEY_LIMIT:
        raise Invalid(f"{printable(key)}: not a valid range of keys")
    generation = match["generation"]
    return match["dataset"], Span(first, last + 1), None if generation is None else int(generation)

"""TARs of datapoints as other programs make them, good and bad, and the index a Go server writes.

Not for what datas3tfs itself writes. `WRITERS` are ways to pack a folder of datapoints; `BAD` are
archives that must be refused, each with what the refusal has to say. GNU tar and bsdtar are run as
they are; what no program would write is made with tarfile or by hand.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SECOND = 1_000_000_000
_MOMENT = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A datapoint to be: its name in the folder, its content and its time."""

    name: str
    content: bytes
    mtime_ns: int


def noise(size: int, seed: int = 0) -> bytes:
    """Return *size* bytes that do not repeat, the same for the same *seed*."""
    return random.Random(seed).randbytes(size)


def key_name(key: int, extension: str = "bin") -> str:
    """Return the name of datapoint *key*."""
    return f"{key:020d}.{extension}"


def samples(sizes: Sequence[int], *, first: int = 0, extension: str = "bin") -> list[Sample]:
    """Return datapoints of *sizes*, each with a time of its own that has a fraction."""
    return [
        Sample(key_name(key, extension), noise(size, key), (_MOMENT + key) * _SECOND + 123_456_700)
        for key, size in enumerate(sizes, first)
    ]


def write_folder(folder: Path, made: Sequence[Sample]) -> Path:
    """Write the datapoints as files into *folder*, which is made."""
    folder.mkdir(parents=True)
    for sample in made:
        path = folder / sample.name
        path.write_bytes(sample.content)
        os.utime(path, ns=(sample.mtime_ns, sample.mtime_ns))
    return folder


# -- good archives --------------------------------------------------------------------------------

Writer = Callable[[Path, Path], None]  # (folder, archive to write)


def _run(*command: str | Path) -> None:
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=60)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _gnu_tar(*options: str) -> Writer:
    return lambda folder, archive: _run("tar", *options, "-C", folder, "-cf", archive, *_names(folder))


def _bsdtar(*options: str) -> Writer:
    return lambda folder, archive: _run("bsdtar", *options, "-C", folder, "-cf", archive, *_names(folder))


def _tarfile(form: int) -> Writer:
    def write(folder: Path, archive: Path) -> None:
        with tarfile.open(archive, "w", format=form) as opened:
            for name in _names(folder):
                opened.add(folder / name, name)

    return write


def write_go_layout(folder: Path, archive: Path) -> None:
    """Write what the Go programs write: one ustar block per datapoint, two zero blocks at the end."""
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as opened:
        for name in _names(folder):
            content = (folder / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), 0o644, int((folder / name).stat().st_mtime)
            opened.addfile(info, io.BytesIO(content))
        end = opened.offset  # behind the last padding
    with archive.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(bytes(1024))


# Those in SHORT_NAMES cannot store a name of more than 100 bytes without a slash.
WRITERS: dict[str, Writer] = {
    "gnu-tar": _gnu_tar(),
    "gnu-tar-b1": _gnu_tar("-b1"),
    "gnu-tar-gnu": _gnu_tar("--format=gnu"),
    "gnu-tar-pax": _gnu_tar("--format=pax"),
    "gnu-tar-ustar": _gnu_tar("--format=ustar"),
    "gnu-tar-v7": _gnu_tar("--format=v7"),
    "bsdtar": _bsdtar(),
    "bsdtar-pax": _bsdtar("--format=pax"),
    "bsdtar-gnutar": _bsdtar("--format=gnutar"),
    "bsdtar-ustar": _bsdtar("--format=ustar"),
    "tarfile-pax": _tarfile(tarfile.PAX_FORMAT),
    "tarfile-gnu": _tarfile(tarfile.GNU_FORMAT),
    "tarfile-ustar": _tarfile(tarfile.USTAR_FORMAT),
    "go": write_go_layout,
}
SHORT_NAMES = frozenset({"gnu-tar-ustar", "gnu-tar-v7", "bsdtar-ustar", "tarfile-ustar", "go"})


def go_index(archive: Path) -> bytes:
    """Return the index a Go server writes for *archive*: raw records, header blocks always 1."""
    with tarfile.open(archive, "r:") as opened:
        return b"".join(go_record(info.offset, info.size) for info in opened)


def go_record(offset: int, size: int, header_blocks: int = 1) -> bytes:
    """Return one record: 8 bytes offset, 2 bytes number of header blocks, 6 bytes size."""
    return struct.pack(">QHHI", offset, header_blocks, size >> 32, size & 0xFFFFFFFF)


# -- archives with something to skip --------------------------------------------------------------


def with_directories(folder: Path, archive: Path) -> None:
    """Write directory entries before and between datapoints."""
    _packed(archive, [_directory("stuff/"), *_members(folder)[:2], _directory("more"), *_members(folder)[2:]])


def with_global_header(folder: Path, archive: Path) -> None:
    """Write a harmless global PAX header first, as `git archive` does."""
    _packed(archive, _members(folder), {"comment": "0123456789abcdef"})


Member = tuple[tarfile.TarInfo, bytes]


def _members(folder: Path) -> list[Member]:
    return [_member(name, (folder / name).read_bytes()) for name in _names(folder)]


def _member(name: str, content: bytes = b"some content", kind: bytes = tarfile.REGTYPE) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.mtime = kind, _MOMENT
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content if kind == tarfile.REGTYPE else b""


def _directory(name: str) -> Member:
    return _member(name, kind=tarfile.DIRTYPE)


def _link(name: str, target: str, kind: bytes) -> Member:
    info, content = _member(name, kind=kind)
    info.linkname = target
    return info, content


def _packed(archive: Path, members: Sequence[Member], pax_globals: dict[str, str] | None = None) -> None:
    form = tarfile.GNU_FORMAT if pax_globals is None else tarfile.PAX_FORMAT
    with tarfile.open(archive, "w", format=form, pax_headers=pax_globals) as opened:
        for info, content in members:
            opened.addfile(info, io.BytesIO(content))


# -- bad archives ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bad:
    """An archive to be refused; the refusal must contain *says*."""

    write: Callable[[Path], None]
    says: str


def _listed(*members: Member) -> Callable[[Path], None]:
    return lambda archive: _packed(archive, members)


def _raw(content: bytes) -> Callable[[Path], None]:
    def write(archive: Path) -> None:
        archive.write_bytes(content)

    return write


def _edited(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Write a good archive of two datapoints, of 3,000 bytes each, after *edit*."""

    def write(archive: Path) -> None:
        _packed(archive, [_member(key_name(7), noise(3000)), _member(key_name(8), noise(3000, 1))])
        archive.write_bytes(edit(archive.read_bytes()))

    return write


def _named(name: str) -> Callable[[Path], None]:
    return _listed(_member(key_name(7)), _member(name))


def _with_globals(**values: str) -> Callable[[Path], None]:
    return lambda archive: _packed(archive, [_member(key_name(7))], values)


def _sparse(form: str) -> Callable[[Path], None]:
    """Let GNU tar pack a file with a hole, as it does when told to look for holes."""

    def write(archive: Path) -> None:
        folder = archive.with_suffix(".sparse")
        folder.mkdir()
        with (folder / key_name(7)).open("wb") as file:
            file.truncate(1 << 20)
            file.seek(1 << 19)
            file.write(b"in the middle")
        _run("tar", "-S", f"--format={form}", "-C", folder, "-cf", archive, key_name(7))

    return write


_CONTENT = 512 + 3072  # a datapoint of 3,000 bytes, headers and padding included

BAD: dict[str, Bad] = {
    "symbolic-link": Bad(
        _listed(_member(key_name(7)), _link(key_name(8), "/etc/passwd", tarfile.SYMTYPE)),
        f"{key_name(8)}: is a symbolic link",
    ),
    "hard-link": Bad(
        _listed(_member(key_name(7)), _link(key_name(8), key_name(7), tarfile.LNKTYPE)),
        f"{key_name(8)}: is a hard link",
    ),
    "fifo": Bad(_listed(_member(key_name(7), kind=tarfile.FIFOTYPE)), f"{key_name(7)}: is a FIFO"),
    "device": Bad(_listed(_member(key_name(7), kind=tarfile.CHRTYPE)), f"{key_name(7)}: is a character"),
    "global-path": Bad(_with_globals(path="elsewhere"), "global PAX header sets path"),
    "global-size": Bad(_with_globals(size="1"), "global PAX header sets size"),
    "out-of-order": Bad(
        _listed(_member(key_name(7)), _member(key_name(3))), f"{key_name(3)}: is out of order"
    ),
    "gap": Bad(_listed(_member(key_name(7)), _member(key_name(9))), f"{key_name(9)}: is after a gap"),
    "duplicate": Bad(_listed(_member(key_name(7)), _member(key_name(7))), f"{key_name(7)}: is a duplicate"),
    "same-key-other-extension": Bad(
        _listed(_member(key_name(7)), _member(key_name(7, "txt"))), f"{key_name(7, 'txt')}: is a duplicate"
    ),
    "dot-slash": Bad(_named(f"./{key_name(8)}"), f"./{key_name(8)}: not a datapoint name"),
    "slash": Bad(_named(f"{8:020d}.a/b"), f"{8:020d}.a/b: "),
    "subfolder": Bad(_named(f"train/{key_name(8)}"), f"train/{key_name(8)}: "),
    "dot-dot": Bad(_named(f"{8:020d}.a..b"), f"{8:020d}.a..b: "),
    "escape": Bad(_named(f"../../{key_name(8)}"), f"../../{key_name(8)}: "),
    "no-extension": Bad(_named(f"{8:020d}"), f"{8:020d}: "),
    "empty-extension": Bad(_named(f"{8:020d}."), f"{8:020d}.: "),
    "19-digits": Bad(_named(f"{8:019d}.bin"), f"{8:019d}.bin: "),
    "21-digits": Bad(_named(f"{8:021d}.bin"), f"{8:021d}.bin: "),
    "control-character": Bad(_named(f"{8:020d}.\x1b[31m"), f"{8:020d}.\\x1b[31m: "),
    "line-break": Bad(_named(f"{8:020d}.a\nb"), f"{8:020d}.a\\x0ab: "),
    "not-utf-8": Bad(_named(f"{8:020d}.\udcff"), f"{8:020d}.\\udcff: "),
    "too-long": Bad(_named(f"{8:020d}.{'x' * 235}"), "longer than 255 bytes"),
    "key-too-large": Bad(_listed(_member(key_name(2**63))), f"{key_name(2**63)}: key is beyond"),
    "sparse-gnu": Bad(_sparse("gnu"), f"{key_name(7)}: "),
    "sparse-pax": Bad(_sparse("pax"), f"{key_name(7)}: sparse"),
    "cut-in-header": Bad(_edited(lambda raw: raw[: _CONTENT + 100]), "cut short"),
    "cut-in-content": Bad(_edited(lambda raw: raw[: _CONTENT + 512 + 1000]), "cut short"),
    "cut-in-padding": Bad(_edited(lambda raw: raw[: 2 * _CONTENT - 10]), "cut short"),
    "cut-before-end": Bad(_edited(lambda raw: raw[: 2 * _CONTENT]), "cut short"),
    "damaged-header": Bad(
        _edited(lambda raw: raw[:_CONTENT] + b"1" + raw[_CONTENT + 1 :]), f"at byte {_CONTENT}"
    ),
    "data-after-end": Bad(_edited(lambda raw: raw + raw), "data after the end"),
    "random": Bad(_raw(noise(10_240)), "at byte 0"),
    "gzip": Bad(_edited(lambda raw: gzip.compress(raw)), "not a TAR header"),
    "empty": Bad(_raw(b""), "cut short"),
    "only-zeros": Bad(_raw(bytes(10_240)), "no datapoint"),
    "only-directory": Bad(_listed(_directory("stuff/")), "no datapoint"),
}

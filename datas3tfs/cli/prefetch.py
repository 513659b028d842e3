"""`datas3tfs prefetch`: tell a mount what will be read, in which order."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag
from datas3tfs.core.announcing import DIRECTORY, LINK
from datas3tfs.errors import Invalid, NotFound, Unavailable
from datas3tfs.fs.xattrs import PREFETCH

_PIECE = 64 * 1024
_LOOK_SECONDS = 0.01
_ANSWER_SECONDS = 60.0
_COLUMNS = (
    output.Column("accepted", "accepted"),
    output.Column("unknown", "unknown"),
    output.Column("dropped", "dropped"),
)


def prefetch(
    dataset: Annotated[Path, typer.Argument(help="A dataset in a mount.", metavar="MOUNTPOINT/DATASET")],
    file: Annotated[Path, typer.Argument(help="Names or keys, one a line; - is stdin.")] = Path("-"),
    as_json: JsonFlag = False,
) -> None:
    """Tell a mount what will be read, in which order: it is fetched ahead.

    Returns when all of it is accepted; with millions of lines, that is as the reader gets on.
    """
    try:
        pipe = os.readlink(dataset / DIRECTORY / LINK)
    except OSError as exc:
        raise NotFound(f"{dataset}: not a dataset in a mount ({exc.strerror})") from exc
    try:
        with _input(file) as lines, _opened(dataset, pipe) as descriptor:
            while piece := lines.read(_PIECE):
                _write(descriptor, piece)
        found = _result(dataset, os.path.basename(pipe))
    except OSError as exc:
        raise Unavailable(f"{dataset}: the mount takes no announcement ({exc.strerror})") from exc
    if bad := found["bad"]:
        raise Invalid(
            f"{bad} of the lines {'is' if bad == 1 else 'are'} neither a name nor a key, the first: "
            f"{found['example']} ({found['accepted']} others were accepted)"
        )
    shown = {column.key: found[column.key] for column in _COLUMNS}
    output.print_record(shown, as_json=as_json, columns=_COLUMNS)


@contextmanager
def _input(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as exc:
        raise NotFound(f"{file}: {exc.strerror}") from exc
    with opened:
        yield opened


@contextmanager
def _opened(dataset: Path, pipe: str) -> Iterator[int]:
    """Open the pipe, for as long as there is a mount at its other end."""
    descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise NotFound(f"{dataset}: not a dataset in a mount")
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(descriptor, left) :]


def _result(dataset: Path, name: str) -> dict[str, Any]:
    """Return what came of it, once all of it has arrived."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline:
        found: dict[str, Any] = json.loads(os.getxattr(dataset, PREFETCH + name))
        if found["ended"]:
            return found
        time.sleep(_LOOK_SECONDS)
    raise Unavailable(f"{dataset}: the mount does not say what it has accepted")

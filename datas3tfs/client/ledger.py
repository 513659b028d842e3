"""Uploads under way, each a small file that its process keeps locked: what tells of them if it is killed.

The kernel drops the lock with the process. So a file that can be locked is of an upload that nobody works on
any more, and whoever locks it may give that upload up. A file holds no URL and no token. Not for going on
with an upload (resumption.py). Where files cannot be written, or the machine is lost with them, an upload
that was left behind expires by itself.

Concurrency: any number of processes and tasks; files of other hosts (a home directory on the network) are
left alone, as locks may not reach there.
"""

from __future__ import annotations

import fcntl
import json
import logging
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO
from uuid import UUID, uuid4

from datas3tfs.core.spans import Span

log = logging.getLogger(__name__)

_SUFFIX = ".upload"


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload that has begun, or will within moments. *attempt* is what the server knows it by."""

    attempt: str
    dataset: str
    first_key: int
    count: int
    size: int

    @staticmethod
    def anew(dataset: str, keys: Span, size: int) -> Begun:
        """Return an attempt that never was."""
        return Begun(str(uuid4()), dataset, keys.start, keys.length, size)

    @property
    def keys(self) -> Span:
        """Its keys."""
        return Span(self.first_key, self.first_key + self.count)


class Ledger:
    """The files in *folder*, which need not exist; None: nothing is noted."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @contextmanager
    def noted(self, begun: Begun) -> Iterator[Callable[[], None]]:
        """Keep *begun* noted for the block, and after it unless what is yielded was called."""
        path = None if self._folder is None else self._folder / f"{begun.attempt}{_SUFFIX}"
        file = None if path is None else _written(path, begun)
        if path is None or file is None:
            yield lambda: None
            return
        with file:
            yield partial(path.unlink, missing_ok=True)

    def left_behind(self) -> Generator[tuple[Begun, Callable[[], None]], None, None]:
        """Yield uploads whose processes are gone, and what strikes each off; locked until the next."""
        found = sorted(self._folder.glob(f"*{_SUFFIX}")) if self._folder is not None else []
        for path in found:
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    begun = _parsed(file.read())
                    if begun is not None:
                        yield begun, partial(path.unlink, missing_ok=True)
            except OSError as exc:  # it is under way, somebody else sees to it, or it is gone
                log.debug("%s: %s", path, exc.strerror)


def _written(path: Path, begun: Begun) -> BinaryIO | None:
    """Write a file, locked before it is found under its name; return it open, None if that cannot be."""
    hidden = path.with_suffix(".new")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = stack.enter_context(hidden.open("xb", buffering=0))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(json.dumps(asdict(begun) | {"host": socket.gethostname()}).encode())
            hidden.replace(path)
        except OSError as exc:
            log.debug("%s: an upload is not noted: %s", path, exc.strerror)
            with suppress(OSError):
                hidden.unlink()
            return None
        stack.pop_all()
        return file


def _parsed(content: bytes) -> Begun | None:
    """Return what a file says; None if it is another host's, or says nothing that can be."""
    try:
        kept = json.loads(content)
        if kept.pop("host") != socket.gethostname():
            return None
        begun = Begun(**kept)
        UUID(begun.attempt)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return begun

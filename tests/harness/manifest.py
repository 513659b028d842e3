"""A writer in a process of its own that keeps a manifest of what it was promised, and how to read one.

    python -m tests.harness.manifest FOLDER MANIFEST --first KEY --step N --threads N --seed N

It writes files of many sizes in many ways into FOLDER, a dataset's directory, and appends a line to
MANIFEST before it tries something, and another after each close(), fsync(), rename() and unlink() that has
returned: what that call promised. When the mount fails it waits until FOLDER is there again and goes on,
half the time by trying the same again, as people do. Commands come as lines on stdin: `large` makes the
next file so long that it is uploaded in parts, `kill EVENT PID` sends SIGKILL as soon as EVENT (closed,
synced, moved, removed) has been noted, `pause` and `go` are what they say (before a pause one more file is
created and removed, which leaves its key leased); the end of stdin ends it.

With --contend another writer wants the same keys: a file is created, or renamed, and written once, and who
is told that it exists already notes that it has lost.

Not for the judgement whether a file is right: that is `Promise.allows`. A line is written by one write(2)
to a file opened for appending, so threads and processes may share one.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
# Around what the journal keeps in its log, and what is one write of the kernel: 128 KiB.
SIZES = (0, 1, 10, 4 * KIB, 4 * KIB, 20 * KIB, 100 * KIB, 127 * KIB, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1,
         129 * KIB, 300 * KIB)  # fmt: skip
IN_PLACE = 128 * KIB  # longer content is a file of its own in the journal, which changes in place
FEW_MIB = (MIB + 1, 3 * MIB)
IN_PARTS = 17 * MIB  # above the 16 MiB that are stored by one request
_PIECE = 64 * KIB
_RUN = 8
_PAUSE = 0.01  # between looks whether the mount is back


def sha256(content: bytes) -> str:
    """Return the checksum as the manifest has it."""
    return hashlib.sha256(content).hexdigest()


# -- reading ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Promise:
    """What is known of a name. *sure*: the checksum of its content, None if it is absent; *maybe*: what
    else it may be, because a call has not returned; *torn*: how often it may be partly overwritten;
    *lost*: it was somebody else's."""

    sure: str | None = None
    maybe: set[str | None] = field(default_factory=set)
    torn: int = 0
    synced: bool = False  # fsync has returned: it is committed
    lost: bool = False

    def settle(self, sure: str | None) -> None:
        """Take note of a call that has returned."""
        self.sure, self.torn = sure, 0
        self.maybe.clear()

    def allows(self, found: str | None) -> bool:
        """Say whether a name may have this content (its checksum, None if it is absent)."""
        return found == self.sure or found in self.maybe or (self.torn > 0 and found is not None)


def read_manifest(*paths: Path) -> dict[str, Promise]:
    """Return what was promised of each name; of paths that share a name, the later says more."""
    promises: dict[str, Promise] = {}
    for path in paths:
        whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
        for line in whole.splitlines():
            _take_in(promises, json.loads(line))
    return promises


def _take_in(promises: dict[str, Promise], said: dict[str, str]) -> None:
    promise = promises.setdefault(said["name"], Promise())
    match said["what"]:
        case "trying":
            promise.maybe.add(said["sha256"])
        case "overwriting":
            promise.maybe.add(said["sha256"])
            promise.torn += 1
        case "refused":
            promise.maybe.discard(said["sha256"])
            promise.torn -= 1
        case "closed":
            promise.settle(said["sha256"])
        case "synced":
            promise.settle(said["sha256"])
            promise.synced = True
        case "lost":
            promise.lost = True
            promise.maybe.clear()
        case "removing":
            promise.maybe.add(None)
        case "removed":
            promise.settle(None)
        case "moving":
            promise.maybe.add(None)
            promises.setdefault(said["to"], Promise()).maybe.add(said["sha256"])
        case "moved":
            promise.settle(None)
            promises.setdefault(said["to"], Promise()).settle(said["sha256"])


# -- writing ----------------------------------------------------------------------------------------


class Manifest:
    """The file that promises are noted in."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._killing: dict[str, int] = {}

    def kill_after(self, event: str, pid: int) -> None:
        """Kill *pid* as soon as *event* has been noted."""
        self._killing[event] = pid

    def note(self, what: str, name: str, **more: str) -> None:
        """Append a line."""
        os.write(self._file, json.dumps({"what": what, "name": name, **more}).encode() + b"\n")
        if self._killing and (pid := self._killing.pop(what, None)) is not None:
            os.kill(pid, signal.SIGKILL)


class _Thread:
    """One thread's work."""

    def __init__(self, folder: Path, manifest: Manifest, seed: int, sizes: _Sizes, contending: bool) -> None:
        self._folder = folder
        self._contending = contending
        self._lost = False
        self._manifest = manifest
        self._random = random.Random(seed)
        self._sizes = sizes
        self._ways: list[Callable[[str], None]] = [
            self._plain, self._plain, self._plain, self._appended, self._moved, self._overwritten,
            self._replaced, self._synced, self._removed,
        ]  # fmt: skip
        if contending:
            self._ways = [self._plain, self._plain, self._synced, self._moved]

    def run(self, keys: _Keys, going: threading.Event, stop: threading.Event) -> None:
        """Write until told to stop."""
        for key in keys:
            going.wait()
            if stop.is_set():
                return
            name = f"{key:020d}.bin"
            if not self.attempt(self._random.choice(self._ways), name):
                self._recover(name, stop)
            if self._lost:
                keys.skip()  # the other is ahead: get before it
            time.sleep(self._random.uniform(0, 0.02))  # a pace, so that the end can be checked in time

    def attempt(self, way: Callable[[str], None], name: str) -> bool:
        """Do something; note what it fails of."""
        self._lost = False
        try:
            way(name)
        except OSError as exc:
            # A rename onto what is committed is refused otherwise than a create.
            if self._contending and exc.errno in (errno.EEXIST, errno.EPERM):
                self._manifest.note("lost", name)
                self._lost = True
                return True
            self._manifest.note("failed", name, errno=errno.errorcode.get(exc.errno or 0, "?"))
            return False
        return True

    def create_and_remove(self, key: int) -> None:
        """Leave the key without a file."""
        self.attempt(self._removed, f"{key:020d}.bin")

    def _recover(self, name: str, stop: threading.Event) -> None:
        while not stop.is_set() and not _is_there(self._folder):
            time.sleep(_PAUSE)
        if self._contending or self._random.random() < 0.5:
            return
        # What is there now, a promise or not, is overwritten as a whole, under a name that only we use.
        content = self._content() + b"again"  # never what was tried before, which may be there
        self._note("overwriting", name, content)
        try:
            _write(self._folder / name, content, os.O_CREAT | os.O_TRUNC)
        except OSError as exc:
            if exc.errno == errno.EPERM:  # it had been committed
                self._note("refused", name, content)
            else:
                self._manifest.note("failed", name, errno=errno.errorcode.get(exc.errno or 0, "?"))
        else:
            self._note("closed", name, content)

    def _content(self) -> bytes:
        return self._random.randbytes(self._sizes.next(self._random))

    def _note(self, what: str, name: str, content: bytes) -> None:
        self._manifest.note(what, name, sha256=sha256(content))

    def _create(self, name: str, content: bytes) -> None:
        self._note("trying", name, content)
        _write(self._folder / name, content, os.O_CREAT | os.O_EXCL)
        self._note("closed", name, content)

    def _plain(self, name: str) -> None:
        self._create(name, self._content())

    def _appended(self, name: str) -> None:
        first, second = self._content(), self._content()
        self._create(name, first)
        self._change(name, first, first + second, second, os.O_APPEND)

    def _overwritten(self, name: str) -> None:
        first, second = self._content(), self._content()
        self._create(name, first)
        self._change(name, first, second, second, os.O_TRUNC)

    def _change(self, name: str, before: bytes, after: bytes, written: bytes, flags: int) -> None:
        self._note("overwriting" if len(before) > IN_PLACE else "trying", name, after)
        try:
            _write(self._folder / name, written, flags)
        except PermissionError:  # it has been committed: nothing has changed
            self._note("closed", name, before)
        else:
            self._note("closed", name, after)

    def _moved(self, name: str) -> None:
        content = self._content()
        temporary = self._random.choice([f".{name}.x1", f"{name}~", f"{name}.part"])
        self._create(temporary, content)
        self._move(temporary, name, content)

    def _replaced(self, name: str) -> None:
        """Save as editors do: over what is there."""
        first, second = self._content(), self._content()
        self._create(name, first)
        self._create(f".{name}.new", second)
        try:
            self._move(f".{name}.new", name, second)
        except PermissionError:
            self._note("closed", name, first)
            self._note("closed", f".{name}.new", second)

    def _move(self, old: str, new: str, content: bytes) -> None:
        self._manifest.note("moving", old, to=new, sha256=sha256(content))
        os.rename(self._folder / old, self._folder / new)
        self._manifest.note("moved", old, to=new, sha256=sha256(content))

    def _synced(self, name: str) -> None:
        content = self._content()
        self._note("trying", name, content)
        with _opened(self._folder / name, os.O_CREAT | os.O_EXCL) as file:
            _write_all(file, content)
            os.fsync(file)
            self._note("synced", name, content)
        self._note("closed", name, content)

    def _removed(self, name: str) -> None:
        content = self._content()
        self._create(name, content)
        self._manifest.note("removing", name)
        try:
            os.unlink(self._folder / name)
        except PermissionError:
            self._note("closed", name, content)
        else:
            self._manifest.note("removed", name)


class _Sizes:
    """Sizes at random; a long one when asked for."""

    def __init__(self) -> None:
        self._large = 0
        self._lock = threading.Lock()

    def ask_for_large(self) -> None:
        """Let the next file be a long one."""
        with self._lock:
            self._large += 1

    def next(self, rng: random.Random) -> int:
        """Return a size."""
        with self._lock:
            if self._large:
                self._large -= 1
                return IN_PARTS
        return rng.choice(FEW_MIB) if rng.random() < 0.01 else rng.choice(SIZES)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Open for writing; close at the end, and let an error of close() come out."""
    file = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        yield file
    except BaseException:
        with suppress(OSError):  # the first error counts
            os.close(file)
        raise
    os.close(file)


def _write(path: Path, content: bytes, flags: int) -> None:
    with _opened(path, flags) as file:
        _write_all(file, content)


def _write_all(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left[:_PIECE]) :]


def _is_there(folder: Path) -> bool:
    try:
        os.scandir(folder).close()  # stat() would be answered by the kernel, the daemon dead or not
    except OSError:
        return False
    return True


def _obey(
    lines: Iterable[str], manifest: Manifest, sizes: _Sizes, going: threading.Event, last: Callable[[], None]
) -> None:
    for line in lines:
        match line.split():
            case ["pause"]:
                going.clear()
                last()
            case ["go"]:
                going.set()
            case ["large"]:
                sizes.ask_for_large()
            case ["kill", event, pid]:
                manifest.kill_after(event, int(pid))


class _Keys:
    """Numbers for all threads: every *step*-th run of eight."""

    def __init__(self, first: int, step: int) -> None:
        runs = itertools.count(first, step)
        self._numbers = (run * _RUN + number for run in runs for number in range(_RUN))
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            yield self.next()

    def next(self) -> int:
        """Return a number."""
        with self._lock:
            return next(self._numbers)

    def skip(self) -> None:
        """Leave a run out."""
        for _ in range(_RUN):
            self.next()


def main() -> None:
    """Write until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contend", action="store_true")
    options = parser.parse_args()
    manifest, sizes = Manifest(options.manifest), _Sizes()
    going, stop = threading.Event(), threading.Event()
    going.set()
    keys = _Keys(options.first, options.step)
    first, *others = [
        _Thread(options.folder, manifest, options.seed * 1000 + number, sizes, options.contend)
        for number in range(options.threads + 1)
    ]
    threads = [threading.Thread(target=one.run, args=(keys, going, stop)) for one in others]
    for thread in threads:
        thread.start()
    _obey(sys.stdin, manifest, sizes, going, lambda: first.create_and_remove(keys.next()))
    stop.set()
    going.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

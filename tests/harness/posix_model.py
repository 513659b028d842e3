"""What a mount promises to those who write, as a model, and the state machine that holds a mount to it.

The model is a dict of files, each with its bytes, its last accepted bytes and who has it open. A `Subject`
is what is tested: the handlers with a played kernel (tests/fs), or a real mount (tests/e2e). Errors are
OSError. When a closed datapoint is committed is the mount's affair: what would change it may be refused with
EPERM instead, if it then says that it is committed; and what is committed never changes again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from datas3tfs.core.names import is_temporary, parse_datapoint_name
from datas3tfs.engine.draft import INLINE_LIMIT
from tests.harness.archives import key_name
from tests.harness.mounts import refusing

# Committed names are of no use any more, so there are many; some share a key.
_KEYS = [*range(6), *range(20, 26), 2**63 - 1]
NAMES = [
    *(key_name(key, extension) for key in _KEYS for extension in ("bin", "txt")),
    ".a",
    "b.part",
    "c~",
    ".d",
]
# Around the border between content in the log and content in a file of its own, and of the kernel's pages.
OFFSETS = st.sampled_from([0, 1, 2, 3, 4095, 4096, 5000, INLINE_LIMIT - 2, INLINE_LIMIT, INLINE_LIMIT + 10])
PICKS = st.integers(0, 9999)
CONTENTS = st.sampled_from([b"", b"a", b"bc", b"x" * 4096, b"y" * 5000, bytes(range(256)) * 513])
_WRITABLE = os.O_WRONLY | os.O_RDWR


class Subject(Protocol):
    """One dataset's directory of a mount. A descriptor is a number; names are names in it."""

    def open(self, name: str, flags: int) -> int: ...
    def dup(self, descriptor: int) -> int: ...
    def close(self, descriptor: int) -> None: ...
    def pread(self, descriptor: int, size: int, offset: int) -> bytes: ...
    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int: ...
    def ftruncate(self, descriptor: int, size: int) -> None: ...
    def fsync(self, descriptor: int) -> None: ...
    def size_of(self, descriptor: int) -> int: ...
    def truncate(self, name: str, size: int) -> None: ...
    def unlink(self, name: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def read(self, name: str) -> bytes: ...
    def size(self, name: str) -> int: ...
    def state(self, name: str) -> str: ...
    def listdir(self) -> list[str]: ...
    def flush(self) -> None:
        """Commit what is closed."""

    def fsyncdir(self) -> None: ...
    def forget(self) -> None:
        """Let the kernel drop its caches."""

    def remount(self) -> None:
        """End it as SIGTERM does, and mount again; nothing is open."""

    def kill(self) -> None:
        """Kill it and mount again; what was open is lost, its descriptors are closed already."""

    def end(self) -> None:
        """End it for good."""


@dataclass(eq=False)
class File:
    """A file of the model."""

    content: bytearray = field(default_factory=bytearray)
    accepted: bytes | None = None  # what a crash leaves; None: nothing
    history: list[bytes] = field(default_factory=list)  # contents since then
    large: bool = False  # accepted in a file of its own, which is changed in place
    is_committed: bool = False
    name: str | None = None  # None: removed
    handles: int = 0
    writers: int = 0

    def change(self, content: bytes) -> None:
        """Give it other bytes."""
        assert not self.is_committed
        self.content[:] = content
        self.history.append(content)

    def accept(self) -> None:
        """Somebody who wrote has closed it."""
        if self.name is not None:
            self.accepted = bytes(self.content)
            self.large = self.large or any(len(one) > INLINE_LIMIT for one in self.history)
            self.history = []

    def may_be_after_a_crash(self, found: bytes | None) -> bool:
        """Say whether *found* is what a crash may leave of it (None: nothing)."""
        if self.accepted is None or found is None:
            return found is self.accepted
        if not self.large or not self.history:
            return found == self.accepted
        versions = [self.accepted, *self.history]
        if len(found) > max(map(len, versions)):
            return False
        return all(
            byte == 0 or any(at < len(one) and one[at] == byte for one in versions)
            for at, byte in enumerate(found)
        )


@dataclass(eq=False)
class Handle:
    """An open file."""

    descriptor: int
    file: File
    flags: int

    @property
    def writes(self) -> bool:
        """Whether it may write."""
        return bool(self.flags & _WRITABLE)

    @property
    def reads(self) -> bool:
        """Whether it may read."""
        return not self.flags & os.O_WRONLY


class Model:
    """All files by name."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}

    def at_key_of(self, name: str) -> File | None:
        """Return the file with the key of *name*, if that is a datapoint's, whatever its extension."""
        if is_temporary(name):
            return self.files.get(name)
        for other, file in self.files.items():
            if not is_temporary(other) and parse_datapoint_name(other).key == parse_datapoint_name(name).key:
                return file
        return None

    def add(self, name: str) -> File:
        """Make an empty file."""
        file = self.files[name] = File(name=name)
        return file

    def remove(self, file: File) -> None:
        """Take a file's name away."""
        assert file.name is not None
        del self.files[file.name]
        file.name = None

    def rename(self, file: File, name: str) -> None:
        """Give a file another name, in place of what has it."""
        replaced = self.files.get(name)
        if replaced is not None:
            if replaced.accepted is not None and file.accepted is None:
                file.accept()  # a crash leaves one of the two
            self.remove(replaced)
        self.remove(file)
        self.files[name], file.name = file, name


class WritingMachine(RuleBasedStateMachine):
    """Does to a subject and to the model the same, and compares."""

    make: Callable[[], Subject]  # of a subject with an empty dataset

    def __init__(self) -> None:
        super().__init__()
        self.subject = type(self).make()
        self.model = Model()
        self.handles: list[Handle] = []

    def teardown(self) -> None:
        """Close everything, and end it."""
        try:
            for handle in list(self.handles):
                self._close(handle)
            self.everything_is_as_it_must_be()
        finally:
            self.subject.end()

    # -- outcomes ------------------------------------------------------------------------------------

    def _changed(self, work: Callable[[], object], *files: File | None) -> bool:
        """Do what changes *files*; say whether it was done. It is not if one of them is committed."""
        there = [file for file in files if file is not None]
        try:
            work()
        except OSError as exc:
            if exc.errno != errno.EPERM:
                raise
            for file in there:
                self._learn(file)
            assert any(file.is_committed for file in there), "refused without a reason"
            return False
        assert not any(file.is_committed for file in there), "what is committed was changed"
        return True

    def _learn(self, file: File) -> None:
        """Find out whether a file has been committed: it was closed then, with what was accepted."""
        if file.name is None or file.is_committed or is_temporary(file.name):
            return
        if self.subject.state(file.name) == "committed":
            assert file.accepted == bytes(file.content)
            assert not file.writers, "committed while somebody was writing, without fsync"
            file.is_committed = True

    # -- rules ---------------------------------------------------------------------------------------

    @rule(
        pick=PICKS,
        access=st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]),
        create=st.booleans(),
        more=st.sampled_from([0, 0, os.O_TRUNC, os.O_APPEND, os.O_EXCL]),
    )
    def open_one(self, pick: int, access: int, create: bool, more: int) -> None:
        if len(self.handles) < 6:
            self.open(self._name(pick), access, create, more)

    def open(self, name: str, access: int, create: bool, more: int) -> None:
        """Open a file."""
        flags = access | (os.O_CREAT if create or more == os.O_EXCL else 0)
        flags |= more if access != os.O_RDONLY or more == os.O_EXCL else 0
        file = self.model.files.get(name)
        if file is None:
            self._make(name, flags)
        elif more == os.O_EXCL:
            with refusing(errno.EEXIST):
                self.subject.open(name, flags)
        elif not flags & _WRITABLE:
            self._opened(self.subject.open(name, flags), file, flags)
        else:
            found: list[int] = []
            if self._changed(lambda: found.append(self.subject.open(name, flags)), file):
                self._opened(found[0], file, flags)
                if flags & os.O_TRUNC and file.content:
                    file.change(b"")

    def _make(self, name: str, flags: int) -> None:
        if not flags & os.O_CREAT:
            with refusing(errno.ENOENT):
                self.subject.open(name, flags)
        elif self.model.at_key_of(name) is not None:
            with refusing(errno.EEXIST):
                self.subject.open(name, flags)
        else:
            # Whoever makes a file is its writer until it is closed, even with O_RDONLY.
            self._opened(self.subject.open(name, flags), self.model.add(name), flags, made=True)

    def _opened(self, descriptor: int, file: File, flags: int, *, made: bool = False) -> None:
        handle = Handle(descriptor, file, flags | (os.O_CREAT if made else 0))
        if not made:
            handle.flags &= ~os.O_CREAT
        file.handles += 1
        file.writers += self._is_writer(handle)
        self.handles.append(handle)

    def _is_writer(self, handle: Handle) -> bool:
        return handle.writes or bool(handle.flags & os.O_CREAT)

    @rule(pick=PICKS)
    def close(self, pick: int) -> None:
        handle = self._handle(pick)
        if handle is not None:
            self._close(handle)

    def _close(self, handle: Handle) -> None:
        self.handles.remove(handle)
        self.subject.close(handle.descriptor)
        handle.file.handles -= 1
        if self._is_writer(handle):
            handle.file.writers -= 1
            handle.file.accept()

    @rule(pick=PICKS)
    def close_a_duplicate(self, pick: int) -> None:
        handle = self._handle(pick)
        if handle is None:
            return
        self.subject.close(self.subject.dup(handle.descriptor))
        if self._is_writer(handle):
            handle.file.accept()

    @rule(pick=PICKS, offset=OFFSETS, content=CONTENTS)
    def write(self, pick: int, offset: int, content: bytes) -> None:
        handle = self._handle(pick, writes=True)
        if handle is None or not content:
            return
        file = handle.file
        at = len(file.content) if handle.flags & os.O_APPEND else offset
        if self._changed(lambda: self.subject.pwrite(handle.descriptor, content, offset), file):
            grown = bytes(file.content).ljust(at, b"\0")
            file.change(grown[:at] + content + grown[at + len(content) :])

    @rule(pick=PICKS, size=OFFSETS)
    def ftruncate(self, pick: int, size: int) -> None:
        handle = self._handle(pick, writes=True)
        if handle is None:
            return
        if self._changed(lambda: self.subject.ftruncate(handle.descriptor, size), handle.file):
            handle.file.change(bytes(handle.file.content[:size]).ljust(size, b"\0"))

    # What there is to choose from depends on what was committed when; what is drawn must not.

    def _name(self, pick: int) -> str:
        """Choose a name: mostly of a file that may still change."""
        known = [name for name, file in self.model.files.items() if not file.is_committed]
        return (known + known + NAMES)[pick % (2 * len(known) + len(NAMES))]

    def _handle(self, pick: int, *, writes: bool = False, reads: bool = False) -> Handle | None:
        """Choose an open file, if there is one."""
        fit = [one for one in self.handles if (one.writes or not writes) and (one.reads or not reads)]
        return fit[pick % len(fit)] if fit else None

    @rule(pick=PICKS, content=CONTENTS)
    def put(self, pick: int, content: bytes) -> None:
        """Write a whole file, as `cp` does."""
        name = self._name(pick)
        before = len(self.handles)
        self.open(name, os.O_WRONLY, True, os.O_TRUNC)
        if len(self.handles) > before:
            handle = self.handles[-1]
            if content and self._changed(
                lambda: self.subject.pwrite(handle.descriptor, content, 0), handle.file
            ):
                rest = bytes(handle.file.content[len(content) :])
                handle.file.change(content + rest)
            self._close(handle)

    @rule(pick=PICKS, size=OFFSETS)
    def truncate(self, pick: int, size: int) -> None:
        name = self._name(pick)
        file = self.model.files.get(name)
        if file is None:
            with refusing(errno.ENOENT):
                self.subject.truncate(name, size)
        elif self._changed(lambda: self.subject.truncate(name, size), file):
            file.change(bytes(file.content[:size]).ljust(size, b"\0"))
            if not file.writers:
                file.accept()

    @rule(pick=PICKS, offset=OFFSETS, size=OFFSETS)
    def pread(self, pick: int, offset: int, size: int) -> None:
        handle = self._handle(pick, reads=True)
        if handle is None:
            return
        found = self.subject.pread(handle.descriptor, size, offset)
        assert found == handle.file.content[offset : offset + size]

    @rule(pick=PICKS)
    def fsync(self, pick: int) -> None:
        handle = self._handle(pick)
        if handle is None:
            return
        file = handle.file
        self.subject.fsync(handle.descriptor)
        if file.name is not None and not file.is_committed:
            file.accept()
            if not is_temporary(file.name):
                file.is_committed = True
                assert self.subject.state(file.name) == "committed"

    @rule(pick=PICKS)
    def unlink(self, pick: int) -> None:
        name = self._name(pick)
        file = self.model.files.get(name)
        if file is None:
            with refusing(errno.ENOENT):
                self.subject.unlink(name)
        elif self._changed(lambda: self.subject.unlink(name), file):
            self.model.remove(file)

    @rule(pick=PICKS, other=PICKS)
    def rename(self, pick: int, other: int) -> None:
        old, new = self._name(pick), self._name(other)
        file, there = self.model.files.get(old), self.model.files.get(new)
        in_the_way = self.model.at_key_of(new)
        if file is None:
            with refusing(errno.ENOENT):
                self.subject.rename(old, new)
        elif file is there:
            self.subject.rename(old, new)
        elif in_the_way not in (None, file, there):
            self._learn(file)
            with refusing(errno.EEXIST, *([errno.EPERM] if file.is_committed else [])):
                self.subject.rename(old, new)
        elif self._changed(lambda: self.subject.rename(old, new), file, there):
            self.model.rename(file, new)

    @rule(directory=st.booleans(), sure=st.sampled_from([False, False, True]))
    def flush(self, directory: bool, sure: bool) -> None:
        if not sure:
            return
        (self.subject.fsyncdir if directory else self.subject.flush)()
        for name, file in self.model.files.items():
            if not is_temporary(name) and not file.writers:
                file.is_committed = True
                assert self.subject.state(name) == "committed"

    @rule()
    def forget(self) -> None:
        self.subject.forget()

    @rule(sure=st.sampled_from([False, False, True]))
    def remount(self, sure: bool) -> None:
        if not sure:
            return
        for handle in list(self.handles):
            self._close(handle)
        self.subject.remount()

    @rule()
    def kill(self) -> None:
        self.subject.kill()
        self.handles.clear()
        there = set(self.subject.listdir())
        for name, file in list(self.model.files.items()):
            found = self.subject.read(name) if name in there else None
            if file.is_committed:
                assert found == bytes(file.content)
            else:
                assert file.may_be_after_a_crash(found), (name, file.accepted, found)
            if found is None:
                self.model.remove(file)
            else:
                self.model.files[name] = File(
                    bytearray(found),
                    found,
                    large=file.large,
                    is_committed=file.is_committed,
                    name=name,
                )

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        names = self.subject.listdir()
        assert sorted(names) == sorted(self.model.files)
        for name in names:
            file = self.model.files[name]
            assert self.subject.size(name) == len(file.content)
            assert self.subject.read(name) == file.content
            if file.is_committed:
                assert self.subject.state(name) == "committed"
        for handle in self.handles:
            assert self.subject.size_of(handle.descriptor) == len(handle.file.content)

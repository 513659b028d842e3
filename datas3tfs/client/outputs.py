"""Files that are written whole or not at all, and TARs written into them as they come in.

Plain functions that block: called in worker threads, or for moments only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from datas3tfs.client.reading import Step
from datas3tfs.errors import Invalid

_HELD = 32 << 20  # bytes in memory of what a pipe may not be given yet; more wait in an unnamed file


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of *path* once it is whole. Raises Invalid.

    What is there and no regular file (a pipe, /dev/stdout) is written to as it is, never replaced.
    """
    try:
        if path.exists() and (path.is_symlink() or not path.is_file()):
            with path.open("wb") as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".datas3tfs-", delete=False) as partial:
            try:
                yield cast(BinaryIO, partial)
                partial.flush()
                Path(partial.name).chmod(0o666 & ~_umask())
                Path(partial.name).replace(path)
            except BaseException:
                Path(partial.name).unlink(missing_ok=True)
                raise
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


class TarOutput:
    """Writes the steps of a reading to a file. What has to come again takes the place of what came."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = file.tell() if file.seekable() else None
        self._held = tempfile.SpooledTemporaryFile(_HELD)  # noqa: SIM115 - closed by leaving this
        self.written = 0  # bytes, those that may have to come again included
        self.good = 0  # … without them

    def __enter__(self) -> TarOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def take(self, step: Step) -> None:
        """Write the step's bytes."""
        if step.restarted:
            self._go_back()
            return
        self.written += len(step.raw)
        self.good = self.written - step.tail
        if self._start is not None:
            self._file.write(step.raw)
        else:
            self._write_what_is_whole(step)

    def end(self, data: bytes) -> None:
        """Write what comes after all datapoints."""
        self._file.write(data)
        self.good += len(data)

    def _go_back(self) -> None:
        self.written = self.good
        self._held.seek(0)
        self._held.truncate()
        if self._start is not None:
            self._file.seek(self._start + self.good)
            self._file.truncate()

    def _write_what_is_whole(self, step: Step) -> None:
        """Give a pipe only what will not come again."""
        self._held.write(step.raw)
        ready = self._held.tell() - step.tail
        if not ready:
            return
        self._held.seek(0)
        while ready:
            piece = self._held.read(min(ready, 1 << 20))
            self._file.write(piece)
            ready -= len(piece)
        rest = self._held.read()  # less than a step brings
        self._held.seek(0)
        self._held.truncate()
        self._held.write(rest)

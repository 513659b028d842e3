"""Take an announcement apart: lines, each a key or the file name of a datapoint, in pieces of any length.

Whoever writes it is not trusted: a line may be cut anywhere, endless, or anything at all. What is neither a
key nor a name is counted and left out. Of a name only the number counts. Not for what the keys are good for
(core/announced.py). One reader of lines belongs to one stream.
"""

from __future__ import annotations

import re

from datas3tfs.core.names import KEY_LIMIT, NAME_LIMIT

DIRECTORY = ".datas3tfs"  # hidden in each dataset's directory; in it …
LINK = "prefetch"  # … what one writes announcements to

# 20 digits, a dot, an extension; or a number. Lines are looked at all at once, in C: half a microsecond each.
_LINE = re.compile(rb"^(?:([0-9]{20})\.[^/\0\r\n]{1,%d}|([0-9]{1,20}))\r?$" % (NAME_LIMIT - 21), re.MULTILINE)
_SHOWN = 80  # bytes of a line that is neither, for the log


class LineReader:
    """Turns bytes into keys. *bad*: lines that are neither a key nor a name; *example*: the first of them."""

    def __init__(self) -> None:
        self._rest = b""  # the begin of a line whose end has not come
        self._skipping = False  # … and which is too long to be anything
        self.bad = 0
        self.example: str | None = None

    def feed(self, data: bytes) -> list[int]:
        """Return the keys of the lines that *data* completes. Empty lines count as none."""
        head, newline, tail = data.rpartition(b"\n")
        if not newline:
            self._keep(tail)
            return []
        if self._skipping:
            head = head.partition(b"\n")[2]
            self._skipping = False
        else:
            head = self._rest + head
        self._rest = b""
        keys = self._keys(head)
        self._keep(tail)
        return keys

    def finish(self) -> list[int]:
        """Return the key of the last line, which may have no end."""
        last, self._rest = self._rest, b""
        return [] if self._skipping else self._keys(last)

    def _keep(self, data: bytes) -> None:
        if self._skipping:
            return
        self._rest += data
        if len(self._rest) > NAME_LIMIT:
            self._skipping = True
            self._complain(self._rest)
            self._rest = b""

    def _keys(self, lines: bytes) -> list[int]:
        found = [int(name or number) for name, number in _LINE.findall(lines)]
        keys = [key for key in found if key < KEY_LIMIT]
        every = [line for line in lines.split(b"\n") if line.rstrip(b"\r")]
        if len(keys) < len(every):
            self._look_closely(every, len(every) - len(keys))
        return keys

    def _look_closely(self, lines: list[bytes], bad: int) -> None:
        self.bad += bad
        if self.example is None:
            self._complain(next(line for line in lines if not _is_good(line)), 0)

    def _complain(self, line: bytes, count: int = 1) -> None:
        self.bad += count
        if self.example is None:
            self.example = line[:_SHOWN].decode("utf-8", "backslashreplace")


def _is_good(line: bytes) -> bool:
    found = _LINE.fullmatch(line)
    return found is not None and int(found[1] or found[2]) < KEY_LIMIT

"""Messages between a mount and its worker: words as JSON, and bytes that belong to them.

    length of the words (4), length of the bytes (4), words, bytes

Sans I/O. Both ends are this program, so what does not parse is a bug, not an attack; lengths are bounded
all the same. Descriptors travel beside the messages, in their order (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

Words = dict[str, Any]  # as json has them

_HEAD = struct.Struct("=II")
_LONGEST = 64 << 20


def frame(words: Words, payload: bytes = b"") -> bytes:
    """Return one message."""
    encoded = json.dumps(words, separators=(",", ":")).encode()
    return _HEAD.pack(len(encoded), len(payload)) + encoded + payload


class Frames:
    """Puts messages together from what arrives."""

    def __init__(self) -> None:
        self._arrived = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Words, bytes]]:
        """Yield (words, bytes) of every message that *data* completes. Raises ValueError."""
        self._arrived += data
        while len(self._arrived) >= _HEAD.size:
            words_length, payload_length = _HEAD.unpack_from(self._arrived)
            if words_length + payload_length > _LONGEST:
                raise ValueError("a message of impossible length")
            start = _HEAD.size + words_length
            stop = start + payload_length
            if len(self._arrived) < stop:
                return
            words = json.loads(self._arrived[_HEAD.size : start])
            payload = bytes(self._arrived[start:stop])
            del self._arrived[:stop]
            yield words, payload

"""The one table from errors to errnos, and who is told of them.

Callers get the errno; operators get a log line, written here and nowhere deeper. The same line is not
repeated within a minute: a program that reads a damaged file in a loop must not fill the disk.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from datas3tfs.errors import (
    Conflict,
    Corrupt,
    Datas3tError,
    Forbidden,
    Full,
    Invalid,
    NotFound,
    Unavailable,
)

log = logging.getLogger(__name__)

# The class nearest to an error's own counts.
ERRNOS: dict[type[Datas3tError], int] = {
    Forbidden: errno.EPERM,
    Full: errno.ENOSPC,
    NotFound: errno.ENOENT,
    Conflict: errno.EEXIST,
    Invalid: errno.EINVAL,
    Corrupt: errno.EIO,
    Unavailable: errno.EIO,
}

_REPEAT_SECONDS = 60.0
_REMEMBERED = 1024  # lines; beyond that the memory starts afresh

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")
_Handler = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]


def errno_of(error: Datas3tError) -> int:
    """Return the errno a caller gets for *error*; EIO for one that nobody should have raised."""
    return next((ERRNOS[cls] for cls in type(error).__mro__ if cls in ERRNOS), errno.EIO)


class Complaints:
    """Logs what ends in EIO, each line at most once a minute."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def log(self, message: str) -> None:
        """Log *message* as an error unless it was logged a moment ago."""
        now = time.monotonic()
        if now - self._seen.get(message, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[message] = now
        log.error("%s", message)


_complaints = Complaints()


def answers_errno(handler: _Handler[S, P, T]) -> _Handler[S, P, T]:
    """Make a handler raise FUSEError, the only exception pyfuse3 lets handlers raise.

    Anything that is neither that nor one of our errors is a bug: it is logged with its traceback and
    the caller gets EIO, but the mount lives on.
    """

    @functools.wraps(handler)
    async def wrapped(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except Datas3tError as exc:
            number = errno_of(exc)
            if number in (errno.EIO, errno.ENOSPC):
                _complaints.log(str(exc))
            else:
                log.debug("%s: %s", handler.__name__, exc)
            raise pyfuse3.FUSEError(number) from exc
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("%s: unexpected failure; please report it", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return wrapped

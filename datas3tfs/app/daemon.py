"""Going into the background, and telling whoever waits that the mount is ready.

`daemonize` forks before anything is opened (threads and event loops do not survive a fork). The
parent waits for one line from the child: "ready", or the error to show. systemd is told through its
socket (sd_notify(3)): READY=1 and STOPPING=1.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable

from datas3tfs.errors import Unavailable

log = logging.getLogger(__name__)


class Readiness:
    """Says that the mount is ready, or that it has come to nothing, and then that it stops.

    *pipe* leads to the parent of a daemon, *notify_socket* to systemd; either may be None.
    """

    def __init__(self, pipe: int | None, notify_socket: str | None) -> None:
        self._pipe = pipe
        self._notify_socket = notify_socket

    def ready(self) -> None:
        """The mount answers requests."""
        _notify(self._notify_socket, "READY=1")
        self._tell("ready\n")

    def stopping(self) -> None:
        """The mount is being taken away."""
        _notify(self._notify_socket, "STOPPING=1")

    def failed(self, message: str) -> None:
        """It has come to nothing; the parent shows *message*, if it still listens."""
        self._tell(message + "\n")

    def _tell(self, line: str) -> None:
        """Write to the parent, once: afterwards the descriptor's number may belong to another file."""
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        with contextlib.suppress(OSError):  # the parent is gone
            os.write(pipe, line.encode())
        os.close(pipe)


def daemonize(work: Callable[[Readiness], None], notify_socket: str | None) -> None:
    """Run *work* in a daemon; return when it says it is ready. Raises Unavailable if it fails before."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_daemon()
        _run_and_exit(work, Readiness(writing, notify_socket))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        line = pipe.readline().rstrip("\n")
    os.waitpid(child, 0)
    if line != "ready":
        raise Unavailable(line or "the daemon has died before the mount was ready")


def _become_daemon() -> None:
    """Leave session, terminal and directory, as daemon(7) asks; a second fork gives up the session."""
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _run_and_exit(work: Callable[[Readiness], None], readiness: Readiness) -> None:
    code = 0
    try:
        work(readiness)
    except BaseException as exc:
        log.error("ended by an error", exc_info=exc)
        readiness.failed(" ".join(str(exc).split()) or type(exc).__name__)
        code = 1
    finally:
        os._exit(code)  # the parent's exit handlers and buffers are not ours


def _notify(address: str | None, message: str) -> None:
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    # If nobody listens, that is not our business.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection, contextlib.suppress(OSError):
        connection.sendto(message.encode(), target)

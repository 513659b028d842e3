"""How a worker comes about and ends: forked before there are threads or an event loop.

Forked, it has the program loaded already (a fresh interpreter takes half a second) and shares its memory. It
ends when the mount does: at the end of the socket, and by the kernel if the mount is killed, so that
its copy of /dev/fuse keeps no mount alive. Signals from a terminal are the mount's alone.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from datas3tfs.worker.serving import serve

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # prctl(2)
_DESCRIPTORS = 65536
_END_SECONDS = 2.0
_POLL_SECONDS = 0.01


@contextmanager
def forked_worker() -> Iterator[socket.socket]:
    """Run a worker; yield the socket to it. Call this from the main thread, which must outlive the block."""
    _allow_descriptors()
    ours, theirs = socket.socketpair()
    with ours:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            ours.close()
            _run(theirs, parent)
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            _reap(child)


def _run(connection: socket.socket, parent: int) -> None:
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has died before that
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        gc.freeze()  # what is shared stays so
        serve(connection)
    except BaseException:
        log.exception("the worker ends; the mount goes on without")
    finally:
        os._exit(0)  # the mount's exit handlers and buffers are not ours


def _allow_descriptors() -> None:
    """Let both have many open files, as far as we may: every block of shared memory is one."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _reap(child: int) -> None:
    deadline = time.monotonic() + _END_SECONDS
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(_POLL_SECONDS)

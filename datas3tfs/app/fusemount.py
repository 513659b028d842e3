"""Mount and unmount by fusermount3(1), as libfuse itself does, for root and for everybody else.

The descriptor of /dev/fuse comes back through a socket (_FUSE_COMMFD). Doing it ourselves leaves it in our
hands: libfuse gets it as "/dev/fd/N", or something that stands before it. Blocking calls, milliseconds.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datas3tfs.errors import Unavailable

_PROGRAM = "fusermount3"
_SECONDS = 30.0


@contextmanager
def fuse_mount(mountpoint: Path, options: Iterable[str]) -> Iterator[int]:
    """Mount a FUSE file system; yield the descriptor of its /dev/fuse. Then take it away, lazily.

    Raises Unavailable with what fusermount3 says."""
    if shutil.which(_PROGRAM) is None:
        raise Unavailable(f"{mountpoint}: cannot be mounted: {_PROGRAM} is missing (Debian's package fuse3)")
    device = _mount(mountpoint, options)
    try:
        yield device
    finally:
        if not _is_gone(device):
            command = [_PROGRAM, "-u", "-q", "-z", "--", str(mountpoint)]
            subprocess.run(command, check=False, capture_output=True, timeout=_SECONDS)
        os.close(device)


def _mount(mountpoint: Path, options: Iterable[str]) -> int:
    command = [_PROGRAM, "-o", ",".join(sorted(options)), "--", str(mountpoint)]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            done = subprocess.run(
                ["env", f"_FUSE_COMMFD={theirs.fileno()}", *command],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_SECONDS,
            )
        if done.returncode == 0:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            if descriptors:
                os.set_inheritable(descriptors[0], False)
                return descriptors[0]
    said = " ".join(done.stderr.split()).removeprefix(f"{_PROGRAM}: ") or f"{_PROGRAM} failed"
    raise Unavailable(f"{mountpoint}: cannot be mounted: {said}")


def _is_gone(device: int) -> bool:
    """Say whether the mount was taken away already: another one may stand in its place."""
    poll = select.poll()
    poll.register(device, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))

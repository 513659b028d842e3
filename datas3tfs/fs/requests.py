"""How names and flags in the kernel's requests are to be read. Plain functions."""

from __future__ import annotations

import errno
import os

import pyfuse3

from datas3tfs.core.names import NAME_LIMIT


def new_name(name: bytes) -> str:
    """Return the name of something to be made. Raises FUSEError: FUSE would let 1024 bytes pass."""
    if len(name) > NAME_LIMIT:
        raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
    return os.fsdecode(name)


def is_writable(flags: int) -> bool:
    """Say whether a file is opened for writing."""
    return flags & os.O_ACCMODE != os.O_RDONLY


def is_synchronous(flags: int) -> bool:
    """Say whether it is opened with O_SYNC, which contains the bit of O_DSYNC, or with that."""
    return bool(flags & os.O_DSYNC)

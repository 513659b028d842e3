"""The few messages of the FUSE protocol that we read and write ourselves; pyfuse3 speaks the rest.

Source: Linux include/uapi/linux/fuse.h, protocol 7.31 and later, in the machine's own byte order.

    request       header (40 bytes), then by opcode:
      READ          handle, offset, size, …                 (only these three are read)
      INTERRUPT     unique of the request it is about
    answer        header (16): length, -errno, unique; then the content
      INIT          see `widened`
    notification  the same header with unique 0 and a code in place of the errno; then by code:
      INVAL_INODE   inode, offset, length (0, 0: all of it)
      INVAL_ENTRY   parent inode, length of the name, flags; the name, NUL
      STORE         inode, offset, size, padding; the bytes

Plain functions and structures; nothing here waits.
"""

from __future__ import annotations

import struct
from enum import IntEnum

REQUEST = struct.Struct("=IIQQIIII")  # length, opcode, unique, inode, uid, gid, pid, extensions
ANSWER = struct.Struct("=IiQ")
READ_BODY = struct.Struct("=QQI")
_INVAL_INODE = struct.Struct("=Qqq")
_INVAL_ENTRY = struct.Struct("=QII")
_STORE = struct.Struct("=QQII")
_INIT_HEAD = struct.Struct("=II")  # major, minor
# In an answer to INIT, behind the header: major, minor, max_readahead, flags (4 bytes each), then these two.
_BACKGROUND = struct.Struct("=HH")
_BACKGROUND_AT = ANSWER.size + 16


class Opcode(IntEnum):
    """Of requests (enum fuse_opcode)."""

    FORGET = 2
    OPEN = 14
    READ = 15
    FLUSH = 25
    INIT = 26
    DESTROY = 38
    INTERRUPT = 36
    BATCH_FORGET = 42


class _Code(IntEnum):
    """Of notifications (enum fuse_notify_code)."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4


def answer(unique: int, length: int, error: int = 0) -> bytes:
    """Return the header of an answer with *length* bytes of content, or of an *error* (an errno)."""
    return ANSWER.pack(ANSWER.size + length, -error, unique)


def invalidate_inode(inode: int) -> bytes:
    """Return what makes the kernel drop attributes and pages of *inode*."""
    return _notification(_Code.INVAL_INODE, _INVAL_INODE.pack(inode, 0, 0))


def invalidate_entry(parent: int, name: bytes) -> bytes:
    """Return what makes the kernel drop the entry *name* of a directory."""
    return _notification(_Code.INVAL_ENTRY, _INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0")


def store(inode: int, length: int) -> bytes:
    """Return what comes before the *length* bytes that the kernel shall take as the content of *inode*."""
    whole = ANSWER.size + _STORE.size + length
    return ANSWER.pack(whole, _Code.STORE, 0) + _STORE.pack(inode, 0, length, 0)


def widened(init_answer: bytearray | memoryview, background: int) -> None:
    """Let the kernel have *background* requests under way that nobody waits for (read-ahead; libfuse says
    12), in an answer to INIT. Does nothing to one too short or without success."""
    if len(init_answer) < _BACKGROUND_AT + _BACKGROUND.size or ANSWER.unpack_from(init_answer)[1]:
        return
    _BACKGROUND.pack_into(init_answer, _BACKGROUND_AT, background, background * 3 // 4)


def _notification(code: _Code, body: bytes) -> bytes:
    return ANSWER.pack(ANSWER.size + len(body), code, 0) + body

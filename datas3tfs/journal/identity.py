"""Who a journal is: the name under which it holds leases, and the installation they are held in.

Written once, when the journal is made. A journal without it, or with a damaged one, is not touched: under
another name its leases would not be its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from datas3tfs.core.model import HolderId
from datas3tfs.core.names import printable
from datas3tfs.errors import Corrupt, Invalid, NotFound
from datas3tfs.journal.files import failing, open_file, read_at, sync_directory, write_all

FORMAT = 1
_NAME = "identity.json"
_SIZE_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """What identity.json says."""

    format: int
    holder: HolderId
    installation: str  # of which the datasets are; other installations have other ones by the same ids
    created: str  # ISO 8601


def read_identity(directory: Path) -> Identity:
    """Read who the journal is. Raises NotFound, Corrupt, Invalid (newer format), Unavailable."""
    path = directory / _NAME
    with failing(path):
        try:
            descriptor = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            raise NotFound(f"{directory}: there is no journal") from None
        try:
            raw = read_at(descriptor, 0, _SIZE_LIMIT)
        finally:
            os.close(descriptor)
    try:
        return _parsed(path, json.loads(raw.decode()))
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Corrupt(f"{path}: not the identity of a journal ({printable(str(exc))})") from exc


def _parsed(path: Path, told: dict[str, object]) -> Identity:
    version = told["format"]
    if type(version) is not int or version < 1:
        raise ValueError("format is no version")
    if version > FORMAT:
        raise Invalid(f"{path}: the journal is in format {version}, of a newer datas3tfs")
    holder, installation, created = told["holder"], told["installation"], told["created"]
    if not (isinstance(holder, str) and isinstance(installation, str) and isinstance(created, str)):
        raise TypeError("a value is no string")
    return Identity(version, HolderId(str(UUID(holder))), installation, created)


def create_identity(directory: Path, installation: str) -> Identity:
    """Make a new journal's identity, for good. Raises Full, Unavailable."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    identity = Identity(FORMAT, HolderId(str(uuid4())), installation, now)
    path, draft = directory / _NAME, directory / f"{_NAME}.new"
    with failing(path):
        descriptor = open_file(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(descriptor, [json.dumps(asdict(identity), indent=2).encode() + b"\n"], 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.rename(path)
        sync_directory(directory)
    return identity


def check_installation(directory: Path, identity: Identity, installation: str) -> None:
    """Raise Invalid unless the journal is of *installation*."""
    if identity.installation != installation:
        raise Invalid(
            f"{directory}: the journal is of another installation ({printable(identity.installation)}, not "
            f"{printable(installation)}); mount that one, or choose another --journal-dir"
        )

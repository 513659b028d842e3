"""The small file by which another process can go on with an upload: which it is, and of what.

It is written before the upload begins, with the attempt's UUID, by which the server knows a start it has
heard before; and again with the upload's id. It holds no URL and no token. Concurrency: one process at a
time; it is replaced as a whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from datas3tfs.client.scanning import ScannedTar
from datas3tfs.core.checksums import crc32c
from datas3tfs.errors import Invalid

_VERSION = 2


@dataclass(frozen=True, slots=True)
class Pending:
    """An upload that has begun, or is about to. All but the last two say of what it is: the same TAR, to the
    same dataset."""

    dataset: str
    first_key: int
    count: int
    size: int
    index_crc32c: int  # of the index, which holds the checksums of all datapoints
    attempt: str = ""  # a UUID
    upload_id: int = 0  # 0: the server has not answered yet

    @staticmethod
    def of(dataset: str, scanned: ScannedTar) -> Pending:
        """Return what would be kept of uploading *scanned*, before it has begun."""
        keys = scanned.keys
        return Pending(dataset, keys.start, keys.length, scanned.size, crc32c(scanned.flat_index))


class ResumeFile:
    """The file at *path*, for an upload of *wanted*."""

    def __init__(self, path: Path, wanted: Pending) -> None:
        self._path = path
        self._wanted = wanted

    def found(self) -> Pending | None:
        """Return the upload to go on with; None if there is none yet. Raises Invalid if the file is about
        another upload, or is none of ours."""
        try:
            kept = json.loads(self._path.read_bytes())
            version = kept.pop("version")
            found = Pending(**kept)
            UUID(found.attempt)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise Invalid(f"{self._path}: {exc.strerror}") from exc
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Invalid(f"{self._path}: not a file that an upload can be resumed from") from None
        if version != _VERSION or replace(found, attempt="", upload_id=0) != self._wanted:
            raise Invalid(
                f"{self._path}: is of another upload ({found.size} bytes to dataset {found.dataset}, "
                f"keys from {found.first_key} on); remove it, or name another"
            )
        return found

    def begin(self) -> Pending:
        """Write that an attempt is about to begin; return it. Raises Invalid."""
        return self._write(replace(self._wanted, attempt=str(uuid4())))

    def remember(self, begun: Pending, upload_id: int) -> None:
        """Write which upload *begun* has become. Raises Invalid."""
        self._write(replace(begun, upload_id=upload_id))

    def _write(self, pending: Pending) -> Pending:
        partial = self._path.with_name(f"{self._path.name}.part")
        try:
            partial.write_text(json.dumps(asdict(pending) | {"version": _VERSION}) + "\n")
            partial.replace(self._path)
        except OSError as exc:
            raise Invalid(f"{self._path}: {exc.strerror}") from exc
        return pending

    def forget(self) -> None:
        """Remove it: the upload is committed, or gone."""
        self._path.unlink(missing_ok=True)

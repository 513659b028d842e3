"""The small file by which another process can go on with an upload: which it is, and of what.

It holds no URL and no token. Concurrency: one process at a time; it is replaced as a whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datas3tfs.client.scanning import ScannedTar
from datas3tfs.core.checksums import crc32c
from datas3tfs.errors import Invalid

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Pending:
    """An upload that has begun. All but its id says of what it is: the same TAR, to the same dataset."""

    dataset: str
    first_key: int
    count: int
    size: int
    index_crc32c: int  # of the index, which holds the checksums of all datapoints
    upload_id: int = 0

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

    def upload_id(self) -> int | None:
        """Return the id of the upload to go on with; None if there is none yet. Raises Invalid if the file
        is about another upload, or is none of ours."""
        try:
            kept = json.loads(self._path.read_bytes())
            version = kept.pop("version")
            found = Pending(**kept)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise Invalid(f"{self._path}: {exc.strerror}") from exc
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Invalid(f"{self._path}: not a file that an upload can be resumed from") from None
        if version != _VERSION or replace(found, upload_id=0) != self._wanted:
            raise Invalid(
                f"{self._path}: is of another upload ({found.size} bytes to dataset {found.dataset}, "
                f"keys from {found.first_key} on); remove it, or name another"
            )
        return found.upload_id

    def remember(self, upload_id: int) -> None:
        """Write it. Raises Invalid."""
        document = asdict(replace(self._wanted, upload_id=upload_id)) | {"version": _VERSION}
        partial = self._path.with_name(f"{self._path.name}.part")
        try:
            partial.write_text(json.dumps(document) + "\n")
            partial.replace(self._path)
        except OSError as exc:
            raise Invalid(f"{self._path}: {exc.strerror}") from exc

    def forget(self) -> None:
        """Remove it: the upload is committed, or gone."""
        self._path.unlink(missing_ok=True)

"""The journals of this machine, without a mount and without a database: which there are, what they hold, and
getting that out. Committing it is replaying.py's business.

Blocking calls. Nothing in a journal is changed, whoever has it open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from datas3tfs.core.journalrecords import Accepted, EntryId, Place
from datas3tfs.core.model import DatasetId, HolderId
from datas3tfs.core.names import is_temporary
from datas3tfs.engine.recovery import OUTDATED, Found, is_doubtful, replay
from datas3tfs.engine.salvage import check, pieces, stored_size
from datas3tfs.errors import Corrupt, Datas3tError, NotFound, Unavailable
from datas3tfs.journal.identity import read_identity
from datas3tfs.journal.locking import owner_of
from datas3tfs.journal.store import DiskJournal, open_journal

_LOST = "lost+found"  # in place of a dataset's name, which it cannot be
_NAMELESS = "its name is lost with a damaged part of the log"


@dataclass(frozen=True, slots=True)
class JournaledFile:
    """A file that a journal holds. *state*: accepted (it waits to be committed), temporary, doubtful (perhaps
    it was changed or removed since) or damaged."""

    dataset: str
    name: str
    size: int
    state: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Examined:
    """A journal and what it holds. *process* has it open, if any does; from *damaged* parts of its log
    records are missing, and nobody knows of what."""

    directory: Path
    holder: HolderId
    installation: str
    process: str | None
    files: tuple[JournaledFile, ...]
    damaged: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of one file; *problem* is None if its bytes are what was accepted."""

    path: Path
    size: int
    problem: str | None


def find_journals(directory: Path) -> list[Path]:
    """Return the journals in *directory*: itself, or those one level below; none if it is not there.

    Raises Unavailable."""
    try:
        if _is_journal(directory):
            return [directory]
        return sorted(path for path in directory.iterdir() if _is_journal(path))
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise Unavailable(f"{directory}: {exc.strerror}") from exc


def _is_journal(directory: Path) -> bool:
    return (directory / "identity.json").is_file() or (directory / "log").is_dir()


def examine(directory: Path) -> Examined:
    """Return what a journal holds. Large contents are looked for, but not read.

    Raises NotFound, Invalid (newer format), Corrupt, Unavailable."""
    with open_journal(directory, None, read_only=True) as store:
        files = tuple(_described(store, found) for found in _files_of(store, directory))
        damaged = tuple(map(str, _damaged(store, directory)))
        return Examined(directory, store.holder, store.installation, store.owner, files, damaged)


def unattended(own: Path, others: Path) -> list[Path]:
    """Return the journals below *others* of the same installation as *own*, from which datapoints wait to be
    committed that no process looks after; what cannot be read is passed over."""
    installation, found = read_identity(own).installation, []
    for directory in find_journals(others):
        with suppress(Datas3tError):
            if (
                directory.resolve() != own.resolve()
                and read_identity(directory).installation == installation
                and owner_of(directory) is None
                and any(file.state == "accepted" for file in examine(directory).files)
            ):
                found.append(directory)
    return found


def _files_of(store: DiskJournal, directory: Path) -> list[Found]:
    """Return all files, by dataset and name; those of which the log has lost the name are at the end."""
    found = list(replay(store).files.values())
    found.sort(key=lambda one: (one.says.dataset, one.says.name))
    if _damaged(store, directory) and store.owner is None:
        named = {one.says.entry for one in found if not one.inline}
        found += [_nameless(entry) for entry in store.contents() if entry not in named]
    return found


def _nameless(entry: EntryId) -> Found:
    """Return a content file of which the log says nothing, as one that was being changed."""
    says = Accepted(entry, DatasetId(0), _LOST, f"{entry:016d}", time.time_ns(), 0, None)
    return Found(says, Place(0, 0, 0), inline=False, last=Place(0, 0, 0))


def _damaged(store: DiskJournal, directory: Path) -> list[Path]:
    """Return the parts of the log that are damaged, those among them that a mount has put aside."""
    return sorted({*map(Path, store.damaged()), *directory.resolve().glob("log/*.damaged")})


def _described(store: DiskJournal, found: Found) -> JournaledFile:
    says = found.says
    size, state, problem = says.size, "temporary" if is_temporary(says.name) else "accepted", None
    try:
        size = stored_size(store, found)
    except Datas3tError as exc:
        state, problem = "damaged", str(exc)
    else:
        if is_doubtful(store, found):
            state, problem = "doubtful", OUTDATED
    if says.dataset == _LOST:
        state, problem = "damaged", _NAMELESS
    return JournaledFile(says.dataset, says.name, size, state, problem)


def export(directory: Path, target: Path, advance: Callable[[int], None]) -> Iterator[Exported]:
    """Write every file of a journal to *target*/DATASET/NAME, its bytes checked; nothing is overwritten.

    Of a damaged one, what is left goes to NAME.damaged. Parts of the log that are damaged are told of, too.
    Raises as `examine` does; what concerns one file only is its problem."""
    with open_journal(directory, None, read_only=True) as store:
        for found in _files_of(store, directory):
            exported = _export(store, found, target / found.says.dataset / found.says.name)
            is_lost = found.says.dataset == _LOST and exported.problem is None
            yield replace(exported, problem=_NAMELESS) if is_lost else exported
            advance(found.says.size)
        for path in _damaged(store, directory):
            yield Exported(path, 0, "damaged: what its missing records were of, nobody knows")
    os.sync()  # whoever deletes the journal next must be able to rely on the copies


def _export(store: DiskJournal, found: Found, path: Path) -> Exported:
    problem = None
    try:
        check(store, found)
    except NotFound as exc:
        return Exported(path, 0, str(exc))
    except Corrupt as exc:
        path, problem = path.with_name(f"{path.name}.damaged"), f"damaged: {exc}"
    except Unavailable as exc:
        return Exported(path, 0, str(exc))
    content = pieces(store, found)
    try:
        written = _write_new(path, content if problem is None else _as_it_is(content), found.says.mtime_ns)
    except FileExistsError:
        if problem is None and _is_equal(path, pieces(store, found)):
            return Exported(path, found.says.size, None)  # written by an earlier export
        return Exported(path, 0, problem or "there is another file of that name already")
    except OSError as exc:
        return Exported(path, 0, f"{exc.strerror}")
    except Datas3tError as exc:  # meanwhile the journal's process has gone on
        return Exported(path, 0, str(exc))
    return Exported(path, written, problem)


def _as_it_is(content: Iterable[bytes]) -> Iterator[bytes]:
    with suppress(Corrupt):
        yield from content


def _write_new(path: Path, content: Iterable[bytes], mtime_ns: int) -> int:
    """Make a file with *content*; return its size. Raises OSError, and what *content* raises: then there is
    none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        try:
            for piece in content:
                file.write(piece)
            file.flush()
            os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
            return file.tell()
        except BaseException:
            path.unlink()
            raise


def _is_equal(path: Path, content: Iterable[bytes]) -> bool:
    try:
        with path.open("rb") as file:
            return all(file.read(len(piece)) == piece for piece in content) and not file.read(1)
    except OSError:
        return False

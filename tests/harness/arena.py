"""What tests need that kill daemons which are being written to: seats to mount at, writers, final checks.

Not for where to kill (crashpoints.py) nor for what writers do (manifest.py).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from datas3tfs.catalog import open_catalog
from datas3tfs.core.counters import Counters
from datas3tfs.core.journalrecords import Accepted
from datas3tfs.core.names import is_temporary
from datas3tfs.engine.recovery import replay
from datas3tfs.engine.sweeper import sweep
from datas3tfs.fs.xattrs import FLUSH
from datas3tfs.journal.store import open_journal
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import open_stores
from tests.harness.crashpoints import Trigger
from tests.harness.manifest import Promise, read_manifest
from tests.harness.mounts import ROOT, Mount, Stack, unmount_lazily, until
from tests.harness.pgproxy import PgProxy, running_pgproxy

_NOT_SAFE = "datas3tfs.engine.journal: "  # a file whose close() has failed, or never came
_READY = 60.0  # seconds: a mount may have to wait until Postgres is back


@dataclass
class Seat:
    """A mount point with a journal and its own way to Postgres; daemons come and go there, one at a time."""

    path: Path
    journal: Path
    postgres: PgProxy
    trigger: Trigger  # is told of its SQL
    options: Sequence[str]
    stack: Stack
    environ: Mapping[str, str]
    mount: Mount = field(init=False)

    def begin(self) -> Mount:
        """Start a daemon; do not wait until it is mounted."""
        self.mount = self.stack.begin_mount(
            self.path, "--journal-dir", str(self.journal), *self.options, env=self.environ
        )
        return self.mount

    def start(self) -> Mount:
        """Mount."""
        self.begin().wait_ready(time.monotonic() + _READY)
        return self.mount

    def reap(self, limit: float) -> None:
        """Wait for the daemon to be killed by somebody. Fails if it ended otherwise, or not."""
        try:
            code = self.mount.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not killed within {limit:g} s:\n{self.mount.log[-3000:]}") from None
        assert code == -9, f"it ended with {code}:\n{self.mount.log[-3000:]}"
        self.mount.kill9()  # takes its timer away
        check_log(self.mount)

    def accepted(self) -> list[Accepted]:
        """Return the accepted datapoints that a dead daemon has left in its journal."""
        with open_journal(self.journal, None, read_only=True) as store:
            found = [one.says for one in replay(store).files.values()]
        return [says for says in found if not is_temporary(says.name)]

    def journal_bytes(self) -> int:
        """Return what the journal takes on disk."""
        return sum(path.stat().st_size for path in self.journal.rglob("*") if path.is_file())


@contextmanager
def open_seat(
    stack: Stack, home: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Seat]:
    """Make a seat; what was mounted there last is taken away at the end, in whatever state it is."""
    with ExitStack() as opened:
        path = stack.new_mountpoint()
        opened.callback(unmount_lazily, path)
        postgres = opened.enter_context(running_pgproxy(stack.db_url))
        trigger = Trigger()
        postgres.witness = trigger.on_sql
        environ = {"DATAS3TFS_DB_URL": postgres.url} | dict(env or {})
        seat = Seat(path, home / f"journal-{path.name}", postgres, trigger, options, stack, environ)

        def end() -> None:
            with suppress(AttributeError):  # nothing was ever mounted
                seat.mount.kill9()

        opened.callback(end)
        yield seat


def check_log(mount: Mount) -> None:
    """Fail if a daemon has reported what must not happen, whatever is killed or away."""
    assert "Traceback" not in mount.log, mount.log
    # Whoever got EIO is told why in a line; nothing else is an error.
    wrong = [line for line in mount.errors() if not line.startswith(("datas3tfs.fs.errnos:", _NOT_SAFE))]
    assert not wrong, "\n".join(wrong)


class Writers:
    """Writing processes; see tests/harness/manifest.py. Their keys are interleaved, or *contended* for."""

    def __init__(self, folders: Sequence[Path], home: Path, threads: int, *, contended: bool = False) -> None:
        self.manifests = [home / f"manifest-{number}" for number in range(len(folders))]
        self._processes = [
            subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.harness.manifest",
                 str(folder), str(manifest), "--threads", str(threads), "--seed", str(number + 1),
                 *(["--contend"] if contended else ["--first", str(number), "--step", str(len(folders))])],
                cwd=ROOT, stdin=subprocess.PIPE, text=True, bufsize=1,
            )
            for number, (folder, manifest) in enumerate(zip(folders, self.manifests, strict=True))
        ]  # fmt: skip
        self._turn = itertools.cycle(range(len(folders)))

    def tell(self, *words: object, number: int | None = None) -> None:
        """Send a command to one of them, each in turn if no *number* is given."""
        process = self._processes[next(self._turn) if number is None else number]
        assert process.poll() is None, "a writer has ended"
        assert process.stdin is not None
        print(*words, file=process.stdin)

    def tell_all(self, *words: object) -> None:
        """Send a command to all of them."""
        for number in range(len(self._processes)):
            self.tell(*words, number=number)

    def failures(self) -> set[str]:
        """Return the names of the errors they have got so far."""
        lines = [line for manifest in self.manifests for line in manifest.read_text().splitlines()]
        return {said["errno"] for line in lines if (said := json.loads(line))["what"] == "failed"}

    def stop(self) -> None:
        """Let them finish what they are at."""
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            assert process.wait(60) == 0

    def kill(self) -> None:
        """End them however they are."""
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()


@contextmanager
def open_writers(
    folders: Sequence[Path], home: Path, threads: int, *, contended: bool = False
) -> Iterator[Writers]:
    """Run a writer for each of *folders*, until stopped."""
    writers = Writers(folders, home, threads, contended=contended)
    try:
        yield writers
    finally:
        writers.kill()


# -- the end ----------------------------------------------------------------------------------------


def flush(path: Path, limit: float = 60.0) -> None:
    """Commit everything that is closed; again, as long as that fails."""

    def flushed() -> bool:
        with suppress(OSError):
            os.setxattr(path, FLUSH, b"1")
            return True
        return False

    until(flushed, limit, "committing everything")


def check_contents(folder: Path, promises: Mapping[str, Promise]) -> set[str]:
    """Fail unless every name has what was promised; return those that are there."""

    got = _checksums(folder, promises)
    wrong = {name: (promises[name], found) for name, found in got.items() if not promises[name].allows(found)}
    assert not wrong, f"{len(wrong)} of {len(got)} files are not as promised, such as {[*wrong.items()][:3]}"
    return {name for name, content in got.items() if content is not None}


def _checksums(folder: Path, wanted: Iterable[str]) -> dict[str, str | None]:
    """Return the checksums of files by name; None for one that is not there."""

    def found(name: str) -> str | None:
        try:
            with (folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    names = sorted(wanted)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(found, names), strict=True))


def settled(promises: Mapping[str, Promise]) -> dict[str, str | None]:
    """Return the names of which there is no doubt, with the checksums of their content (None: absent)."""
    return {name: says.sure for name, says in promises.items() if not (says.maybe or says.torn or says.lost)}


def check_kept(folder: Path, kept: Mapping[str, str | None], manifests: Sequence[Path]) -> None:
    """Fail unless what was *settled* before is as it was, or was changed since by those who go on writing."""
    found = _checksums(folder, kept)
    since = read_manifest(*manifests)
    wrong = {
        name: (kept[name], content)
        for name, content in found.items()
        if content != kept[name] and not since[name].allows(content)
    }
    assert not wrong, (
        f"{len(wrong)} of {len(kept)} files are not as they were, such as {[*wrong.items()][:3]}"
    )


def check_files(folder: Path, promises: Mapping[str, Promise]) -> int:
    """Do that, and fail if there are any other files; return how many there are."""
    there = check_contents(folder, promises)
    assert sorted(os.listdir(folder)) == sorted(there)
    return len(there)


def remove_temporaries(folder: Path, promises: Mapping[str, Promise]) -> None:
    """Remove what was left between close and rename: it would stay in the journal for ever."""
    for name in os.listdir(folder):
        if is_temporary(name):
            os.unlink(folder / name)
            promises[name].settle(None)


def committed_keys(stack: Stack) -> set[int]:
    """Return all keys in dataranges, of the only dataset. Fails if dataranges overlap."""
    rows = stack.sql("SELECT min_datapoint_key, max_datapoint_key FROM dataranges")
    spans = [tuple(map(int, row.split("|"))) for row in rows.splitlines()]
    keys = {key for first, last in spans for key in range(first, last + 1)}
    assert len(keys) == sum(last - first + 1 for first, last in spans), "dataranges overlap"
    return keys


def check_synced(stack: Stack, promises: Mapping[str, Promise]) -> set[int]:
    """Fail unless all that was fsynced is committed; return the keys that are committed."""
    keys = committed_keys(stack)
    missing = [name for name, promise in promises.items() if promise.synced and _key(name) not in keys]
    assert not missing, f"fsync returned for {missing}, but they are not in Postgres"
    return keys


def _key(name: str) -> int:
    return int(name.partition(".")[0])


def check_left_tidy(stack: Stack) -> None:
    """Fail unless, after a sweep, Postgres and S3 have what is committed and nothing else."""

    async def sweep_up() -> None:
        counters = Counters()
        async with (
            open_catalog(stack.db_url, stack.encryption_key, counters) as catalog,
            open_stores(catalog.reader.bucket, S3Settings(), counters) as stores,
        ):
            while await sweep(catalog.uploads, catalog.leases, catalog.graveyard, stores):
                pass

    trio.run(sweep_up)
    for table in ("key_leases", "lease_holders", "datarange_uploads", "objects_to_delete"):
        assert stack.sql(f"SELECT count(*) FROM {table}") == "0", table
    claims = "SELECT count(*) FROM key_claims WHERE id NOT IN (SELECT claim_id FROM dataranges)"
    assert stack.sql(claims) == "0"
    named = stack.sql(
        "SELECT data_object_key FROM dataranges UNION ALL SELECT index_object_key FROM dataranges"
    )
    assert sorted(stack.objects()) == sorted(named.splitlines())
    assert not stack.s3.unfinished()

"""What waits in journals, and getting it out: `datas3tfs journal …` after a mount was killed."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.archives import key_name
from tests.harness.mounts import ROOT, Stack, refusal, unmount_lazily, until

LATER = ("--batch-age", "3600")  # so that nothing is committed unless somebody asks for it
SIZES = (0, 1, 4096, 128 * 1024, 128 * 1024 + 1, 1_000_000)  # in the log, and in files of their own
NAMES = [key_name(key) for key in range(len(SIZES))]
INLINE, LARGE = 2, 5  # keys of one of either kind
MTIME = 1_600_000_000


def body(key: int) -> bytes:
    return (bytes((key * 7 + at) % 251 for at in range(997)) * (SIZES[key] // 997 + 1))[: SIZES[key]]


BODIES = {name: body(key) for key, name in enumerate(NAMES)}


def write_all(root: Path) -> None:
    for name, content in BODIES.items():
        (root / name).write_bytes(content)


def files_in(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture
def ready(stack: Stack) -> Stack:
    """A stack with the dataset "ds"."""
    stack.register("ds")
    return stack


@contextmanager
def dead_mount(stack: Stack) -> Iterator[Path]:
    """The journal of a mount that was killed when six files were accepted."""
    with stack.mount(*LATER, write=True) as mount:
        write_all(mount.path / "ds")
        mount.kill9()
        unmount_lazily(mount.path)
        yield stack.journal_of(mount.path)


def listed(stack: Stack, *words: str | Path) -> list[dict[str, Any]]:
    journals: list[dict[str, Any]] = stack.json("journal", "list", *words)
    return journals


def states(stack: Stack, journal: Path) -> dict[str, str]:
    (found,) = listed(stack, journal)
    return {file["name"]: file["state"] for file in found["files"]}


def committed(stack: Stack) -> dict[str, bytes]:
    with stack.mount() as mount:
        return files_in(mount.path / "ds")


def without(*keys: int) -> dict[str, bytes]:
    return {name: content for key, (name, content) in enumerate(BODIES.items()) if key not in keys}


# -- list, export, replay ----------------------------------------------------------------------------


def test_what_a_killed_mount_has_left_is_listed_exported_and_replayed(ready: Stack, tmp_path: Path) -> None:
    nowhere = {"DATAS3TFS_DB_URL": "postgresql://u:p@127.0.0.1:1/none"}  # neither of the two needs it
    with dead_mount(ready) as journal:
        (found,) = json.loads(ready.run("journal", "list", "--json", env=nowhere).stdout)
        assert (found["directory"], found["process"], found["count"]) == (str(journal), None, len(NAMES))
        assert found["bytes"] == sum(SIZES)
        assert [(file["name"], file["bytes"], file["state"]) for file in found["files"]] == [
            (name, size, "accepted") for name, size in zip(NAMES, SIZES, strict=True)
        ]
        ready.run("journal", "export", journal, tmp_path / "out", env=nowhere)
        assert files_in(tmp_path / "out" / "ds") == BODIES

        done = ready.run("journal", "replay", journal)
        assert f"{len(NAMES)} datapoints committed\n" in done.stderr
        assert listed(ready)[0]["files"] == []
        assert "0 datapoints committed" in ready.run("journal", "replay", journal).stderr  # again: no harm
        (dataset,) = ready.json("dataset", "list")
        assert (dataset["datapoints"], dataset["dataranges"]) == (len(NAMES), 1)
        assert ready.json("journal", "leases") == []
    assert committed(ready) == BODIES


def test_without_a_directory_all_journals_are_replayed_that_nobody_has(ready: Stack) -> None:
    with dead_mount(ready) as journal, ready.mount(*LATER, write=True) as mount:
        (mount.path / "ds" / key_name(100)).write_bytes(b"here")
        plain = ready.run("journal", "list").stdout
        assert str(journal) in plain
        assert f"in use by process  {mount.pid}\n" in plain
        (replayed,) = ready.json("journal", "replay")
        assert (replayed["directory"], replayed["committed"]) == (str(journal), len(NAMES))
        until(lambda: len(os.listdir(mount.path / "ds")) == len(NAMES) + 1, what="seeing what was replayed")
        assert mount.stats()["journal"]["journaled"] == 1


def test_a_journal_that_a_mount_has_is_not_replayed(ready: Stack) -> None:
    with ready.mount(*LATER, write=True) as mount:
        write_all(mount.path / "ds")
        said = ready.refused("journal", "replay", ready.journal_of(mount.path))
        assert f"in use by process {mount.pid}" in said
        assert mount.stats()["journal"]["journaled"] == len(NAMES)
        assert files_in(mount.path / "ds") == BODIES


def test_a_journal_of_another_installation_is_not_replayed(ready: Stack) -> None:
    with dead_mount(ready) as journal, ready.postgres.database(migrated=False) as other:
        env = {"DATAS3TFS_DB_URL": other}
        ready.run("migrate", env=env)
        said = refusal(ready.run("journal", "replay", journal, env=env, check=False))
        assert "of another installation" in said
        assert set(states(ready, journal).values()) == {"accepted"}


def test_where_there_is_no_journal_nothing_is_made(ready: Stack, tmp_path: Path) -> None:
    commands = [["journal", verb, tmp_path / "none"] for verb in ("list", "replay")]
    commands.append(["journal", "export", tmp_path / "none", tmp_path / "out"])
    for done in ready.run_each(commands):
        assert "there is no journal" in refusal(done)
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "out").exists()
    assert listed(ready) == []


def test_temporary_files_are_exported_and_stay(ready: Stack, tmp_path: Path) -> None:
    with ready.mount(*LATER, write=True) as mount:
        (mount.path / "ds" / ".00000000000000000001.jpg.x1y2z3").write_bytes(b"half")
        (mount.path / "ds" / key_name(7)).write_bytes(b"whole")
        mount.kill9()
        unmount_lazily(mount.path)
    journal = ready.journal_of(mount.path)
    assert sorted(states(ready, journal).values()) == ["accepted", "temporary"]
    done = ready.run("journal", "replay", journal, check=False)
    assert done.returncode == 1
    assert "1 datapoint committed, 1 left in the journal" in done.stderr
    assert ".00000000000000000001.jpg.x1y2z3: temporary" in done.stderr
    ready.run("journal", "export", journal, tmp_path)
    assert files_in(tmp_path / "ds") == {".00000000000000000001.jpg.x1y2z3": b"half"}


def test_an_export_overwrites_nothing_and_may_be_repeated(ready: Stack, tmp_path: Path) -> None:
    with ready.mount(*LATER, write=True) as mount:
        write_all(mount.path / "ds")
        os.utime(mount.path / "ds" / NAMES[LARGE], (MTIME, MTIME))
        mount.kill9()
        unmount_lazily(mount.path)
    journal, out = ready.journal_of(mount.path), tmp_path / "ds"
    out.mkdir()
    (out / NAMES[INLINE]).write_bytes(b"mine")
    for _ in range(2):
        done = ready.run("journal", "export", journal, tmp_path, check=False)
        assert done.returncode == 1
        assert "another file of that name" in done.stderr
        assert files_in(out) == BODIES | {NAMES[INLINE]: b"mine"}
    assert (out / NAMES[LARGE]).stat().st_mtime == MTIME
    (out / NAMES[INLINE]).unlink()
    exported = ready.json("journal", "export", journal, tmp_path)
    assert [one["problem"] for one in exported] == [None] * len(NAMES)


# -- damage -------------------------------------------------------------------------------------------


def test_a_content_file_that_is_cut_short_stays_and_the_others_are_committed(
    ready: Stack, tmp_path: Path
) -> None:
    with dead_mount(ready) as journal:
        (*_, last) = sorted((journal / "content").iterdir())
        os.truncate(last, 1000)
        assert states(ready, journal)[NAMES[LARGE]] == "damaged"
        done = ready.run("journal", "export", journal, tmp_path, check=False)
        assert (done.returncode, files_in(tmp_path / "ds")) == (
            1,
            without(LARGE) | {f"{NAMES[LARGE]}.damaged": body(LARGE)[:1000]},
        )
        for expected in (len(NAMES) - 1, 0):
            done = ready.run("journal", "replay", journal, "--json", check=False)
            (record,) = json.loads(done.stdout)
            assert (done.returncode, record["committed"]) == (1, expected)
            assert [(one["name"], one["state"]) for one in record["stayed"]] == [(NAMES[LARGE], "refused")]
        assert states(ready, journal) == {NAMES[LARGE]: "damaged"}
    assert committed(ready) == without(LARGE)


def test_a_content_file_with_another_byte_is_never_committed(ready: Stack, tmp_path: Path) -> None:
    with dead_mount(ready) as journal:
        (*_, last) = sorted((journal / "content").iterdir())
        flip(last, 500_000)
        assert states(ready, journal)[NAMES[LARGE]] == "accepted"  # a list reads no contents
        done = ready.run("journal", "replay", journal, check=False)
        assert done.returncode == 1
        assert "CRC32C" in done.stderr
        assert states(ready, journal) == {NAMES[LARGE]: "accepted"}
        assert ready.run("journal", "export", journal, tmp_path, check=False).returncode == 1
        assert list(files_in(tmp_path / "ds")) == [f"{NAMES[LARGE]}.damaged"]
    assert committed(ready) == without(LARGE)


def test_a_damaged_log_loses_no_more_than_the_record_that_was_hit(ready: Stack, tmp_path: Path) -> None:
    with dead_mount(ready) as journal:
        (segment,) = (journal / "log").iterdir()
        flip(segment, segment.read_bytes().index(body(INLINE)[:512]))
        (found,) = listed(ready, journal)
        assert found["damaged"] == [str(segment)]
        assert [file["name"] for file in found["files"]] == list(without(INLINE))
        done = ready.run("journal", "export", journal, tmp_path, check=False)
        assert (done.returncode, files_in(tmp_path / "ds")) == (1, without(INLINE))
        assert str(segment) in done.stderr
        done = ready.run("journal", "replay", journal, check=False)
        assert (done.returncode, f"{len(NAMES) - 1} datapoints committed" in done.stderr) == (1, True)
    assert committed(ready) == without(INLINE)


def test_what_may_be_outdated_is_committed_only_knowingly(ready: Stack) -> None:
    """The newest version of a file is lost with a part of the log; the one before it is still there."""
    with ready.mount(*LATER, write=True) as mount:
        write_all(mount.path / "ds")
        (mount.path / "ds" / NAMES[INLINE]).write_bytes(b"the newest version")
        mount.kill9()
        unmount_lazily(mount.path)
    journal = ready.journal_of(mount.path)
    (segment,) = (journal / "log").iterdir()
    flip(segment, segment.read_bytes().index(b"the newest version"))
    expected = dict.fromkeys(NAMES, "accepted") | {NAMES[INLINE]: "doubtful"}
    assert states(ready, journal) == expected
    done = ready.run("journal", "replay", journal, check=False)
    assert done.returncode == 1
    assert f"{len(NAMES) - 1} datapoints committed, 1 left in the journal" in done.stderr
    assert "perhaps outdated" in done.stderr
    assert states(ready, journal) == {NAMES[INLINE]: "doubtful"}
    done = ready.run("journal", "replay", "--force", journal, check=False)
    assert "1 datapoint committed\n" in done.stderr
    (dataset,) = ready.json("dataset", "list")
    assert dataset["datapoints"] == len(NAMES)


def test_a_large_file_whose_record_is_lost_is_exported_without_its_name(ready: Stack, tmp_path: Path) -> None:
    with dead_mount(ready) as journal:
        (segment,) = (journal / "log").iterdir()
        flip(segment, segment.read_bytes().index(NAMES[LARGE].encode()))
        for aside in (False, True):
            (found,) = listed(ready, journal)
            assert [Path(path).suffix for path in found["damaged"]] == [".damaged" if aside else ".seg"]
            (*_, last) = found["files"]
            assert (last["dataset"], last["state"], last["bytes"]) == ("lost+found", "damaged", SIZES[LARGE])
            out = tmp_path / f"out{aside}"
            assert ready.run("journal", "export", journal, out, check=False).returncode == 1
            assert list(files_in(out / "lost+found").values()) == [body(LARGE)]
            assert aside or files_in(out / "ds") == without(LARGE)
            assert ready.run("journal", "replay", journal, check=False).returncode == 1
            with ready.mount(write=True, path=ready.home / "mnt1") as mount:  # begins another segment
                (mount.path / "ds" / key_name(50 + aside)).write_bytes(b"new")
                ready.run("flush", mount.path)


def test_a_journal_without_its_identity_is_reported_and_left_alone(ready: Stack) -> None:
    with dead_mount(ready) as journal:
        (journal / "identity.json").write_text("{")
        done = ready.run("journal", "list", check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert "not the identity of a journal" in done.stderr
        assert "not the identity" in ready.refused("journal", "replay", journal)
        assert (journal / "identity.json").read_text() == "{"


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


# -- machines that are gone ---------------------------------------------------------------------------


def test_the_copy_of_a_dead_hosts_journal_is_replayed_once_its_owner_is_known_to_be_dead(
    ready: Stack, tmp_path: Path
) -> None:
    with dead_mount(ready) as journal:
        copy = shutil.copytree(journal, tmp_path / "copy")
        said = ready.refused("journal", "replay", copy)
        assert f"was in use as {os.uname().nodename}:{journal}" in said
        assert "--force" in said
        expire(ready)
        assert f"{len(NAMES)} datapoints committed" in ready.run("journal", "replay", copy).stderr
        # Should that host come back: what it still has was committed, and is not committed twice.
        done = ready.run("journal", "replay", "--force", journal, check=False)
        assert done.returncode == 1
        assert done.stderr.count("it is committed") >= len(NAMES)
        assert len(states(ready, journal)) == len(NAMES)
    assert committed(ready) == BODIES


def test_the_copy_of_a_journal_that_is_in_use_is_not_mounted(ready: Stack, tmp_path: Path) -> None:
    """It would abandon what the other uploads, and give up its keys when it ends."""
    with ready.mount(*LATER, write=True) as mount, ready.mount(*LATER, write=True) as other:
        write_all(mount.path / "ds")
        journal = ready.journal_of(mount.path)
        copy = shutil.copytree(journal, tmp_path / "copy")
        before = ready.json("journal", "leases")
        said = ready.refused("mount", ready.new_mountpoint(), "--journal-dir", copy)
        assert f"was in use as {os.uname().nodename}:{journal}" in said
        assert "--force" in said
        assert ready.json("journal", "leases") == before
        with pytest.raises(FileExistsError):
            (other.path / "ds" / NAMES[0]).open("xb")
        ready.run("flush", mount.path)
        assert mount.stats()["journal"]["refused"] == 0
    assert committed(ready) == BODIES


def test_the_copy_of_a_journal_is_mounted_knowingly(ready: Stack, tmp_path: Path) -> None:
    with dead_mount(ready) as journal:
        copy = shutil.copytree(journal, tmp_path / "copy")
        with ready.mount(*LATER, "--journal-dir", str(copy), "--force", write=True) as mount:
            assert files_in(mount.path / "ds") == BODIES
        assert ready.json("journal", "leases") == []
    assert committed(ready) == BODIES


def test_leases_of_a_dead_journal_are_shown_and_released_knowingly(ready: Stack, tmp_path: Path) -> None:
    with dead_mount(ready) as journal:
        (lease,) = ready.json("journal", "leases")
        assert lease["place"] == f"{os.uname().nodename}:{journal}"
        assert (lease["expired"], lease["accepted_keys"] >= len(NAMES)) == (False, True)
        release = ["journal", "release", lease["holder"]]
        alive, unknown = ready.run_each([release, ["journal", "release", "nobody"]])
        assert "within the last minutes" in refusal(alive)
        assert "no journal of that name" in refusal(unknown)
        expire(ready)
        with ready.mount(write=True) as other:
            with pytest.raises(FileExistsError):  # accepted keys are not taken over, however long ago
                (other.path / "ds" / NAMES[0]).open("xb")
            (undecided,) = ready.run_each([release])
            assert "can only be exported" in refusal(undecided)
            assert "keys freed" in ready.run(*release, "--yes").stderr
            (other.path / "ds" / NAMES[0]).write_bytes(b"another's")
            ready.run("flush", other.path)
        done = ready.run("journal", "replay", journal, check=False)
        assert done.returncode == 1
        assert f"{len(NAMES) - 1} datapoints committed, 1 left" in done.stderr
        ready.run("journal", "export", journal, tmp_path)
        assert files_in(tmp_path / "ds") == {NAMES[0]: BODIES[NAMES[0]]}
    assert committed(ready) == BODIES | {NAMES[0]: b"another's"}


def test_a_terminal_is_asked_before_leases_are_released(ready: Stack) -> None:
    with dead_mount(ready):
        (lease,) = ready.json("journal", "leases")
        for answer, left in (("n", 1), ("y", 0)):
            release_from_terminal(ready, lease["holder"], answer)
            assert len(ready.json("journal", "leases")) == left


def release_from_terminal(stack: Stack, holder: str, answer: str) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        subprocess.run(
            [sys.executable, "-m", "datas3tfs", "journal", "release", holder, "--force"],
            env=stack.environ,
            cwd=ROOT,
            stdin=theirs,
            capture_output=True,
            timeout=60,
            check=answer == "y",
        )
    finally:
        os.close(ours)
        os.close(theirs)


def expire(stack: Stack) -> None:
    """Let the last renewal of every journal have been long ago."""
    database = stack.db_url.rpartition("/")[2]
    stack.postgres.sql(database, "UPDATE lease_holders SET expires_at = now() - interval '1 second'")

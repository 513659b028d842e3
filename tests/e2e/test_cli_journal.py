"""What waits in journals, and getting it out: `datas3tfs journal …`, and every way in which a mount ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.archives import key_name
from tests.harness.mounts import Mount, Stack, unmount_lazily, until

LATER = ("--batch-age", "3600")  # so that nothing is committed unless somebody asks for it
SIZES = (0, 1, 4096, 128 * 1024, 128 * 1024 + 1, 1_000_000)  # in the log, and in files of their own
NAMES = [key_name(key) for key in range(len(SIZES))]


def content(key: int) -> bytes:
    return bytes((key * 7 + at) % 251 for at in range(997)) * (SIZES[key] // 997 + 1)


def bodies() -> dict[str, bytes]:
    return {name: content(key)[: SIZES[key]] for key, name in enumerate(NAMES)}


def write_all(root: Path) -> None:
    for name, body in bodies().items():
        (root / name).write_bytes(body)


def files_in(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture
def ready(stack: Stack) -> Stack:
    """A stack with the dataset "ds"."""
    stack.register("ds")
    return stack


@contextmanager
def dead_mount(stack: Stack, *words: str) -> Iterator[tuple[Path, Path]]:
    """A mount that was killed with six files accepted: its mount point and its journal."""
    with stack.mount(*LATER, *words, write=True) as mount:
        write_all(mount.path / "ds")
        mount.kill9()
        unmount_lazily(mount.path)
        yield mount.path, stack.journal_of(mount.path)


def listed(stack: Stack, *words: str | Path) -> list[dict[str, Any]]:
    journals: list[dict[str, Any]] = stack.json("journal", "list", *words)
    return journals


def test_what_a_killed_mount_has_left_is_listed_exported_and_replayed(ready: Stack, tmp_path: Path) -> None:
    with dead_mount(ready) as (_, journal):
        (found,) = listed(ready)
        assert (found["directory"], found["process"], found["count"]) == (str(journal), None, len(NAMES))
        assert found["bytes"] == sum(SIZES)
        assert [(file["name"], file["bytes"], file["state"]) for file in found["files"]] == [
            (name, size, "accepted") for name, size in zip(NAMES, SIZES, strict=True)
        ]
        ready.run("journal", "export", journal, tmp_path / "out", env={"DATAS3TFS_DB_URL": ""})
        assert files_in(tmp_path / "out" / "ds") == bodies()

        done = ready.run("journal", "replay", journal)
        assert f"{len(NAMES)} datapoints committed\n" in done.stderr
        assert listed(ready)[0]["files"] == []
        assert "0 datapoints committed" in ready.run("journal", "replay", journal).stderr  # again: no harm
        (dataset,) = ready.json("dataset", "list")
        assert (dataset["datapoints"], dataset["dataranges"]) == (len(NAMES), 1)
        assert ready.json("journal", "leases") == []
    with ready.mount() as mount:
        assert files_in(mount.path / "ds") == bodies()

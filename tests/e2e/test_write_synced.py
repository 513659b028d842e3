"""`--fsync=journal`: fsync() makes files safe on this machine, and commits nothing."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e.writing import contents, flush, state
from tests.harness.archives import key_name, noise
from tests.harness.arena import check_left_tidy, committed_keys
from tests.harness.faultproxy import FaultProxy
from tests.harness.mounts import Stack, unmount_lazily

SMALL, LARGE, TEMPORARY = key_name(0), key_name(1), ".00000000000000000002.bin.x"


def write_synced(path: Path, content: bytes, then: bytes) -> None:
    """Write, sync, and write on."""
    with path.open("xb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
        file.write(then)
        os.fsync(file.fileno())


def test_fsync_keeps_files_here_and_commits_nothing(stack: Stack, proxy: FaultProxy) -> None:
    stack.register("ds", endpoint=proxy.endpoint)
    files = {SMALL: noise(5_000, 1), LARGE: noise(3_000_000, 2), TEMPORARY: noise(70_000, 3)}
    options = "--fsync", "journal", "--batch-age", "3600"
    with stack.mount(*options, write=True) as mount:
        folder = mount.path / "ds"
        for name, content in files.items():
            write_synced(folder / name, content[:-1_000], content[-1_000:])
        with (folder / LARGE).open("r+b", buffering=0) as file:  # in place, after it was synced
            file.write(b"changed")
            os.fsync(file.fileno())
        files[LARGE] = b"changed" + files[LARGE][7:]
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        assert [state(folder / name) for name in files] == ["journaled", "journaled", "temporary"]
        assert proxy.requests("PUT") == proxy.requests("POST") == 0
        assert not committed_keys(stack)
        mount.kill9()
        unmount_lazily(mount.path)
    with stack.mount(*options, write=True, path=mount.path) as mount:
        folder = mount.path / "ds"
        assert contents(folder) == files
        os.rename(folder / TEMPORARY, folder / key_name(2))
        flush(mount)
        assert committed_keys(stack) == {0, 1, 2}
        assert (folder / LARGE).read_bytes() == files[LARGE]
    check_left_tidy(stack)

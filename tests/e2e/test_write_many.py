"""Many small files become few objects."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.e2e.writing import flush, sh
from tests.harness.archives import key_name, noise
from tests.harness.mounts import Stack


@pytest.mark.parametrize(
    ("how", "count", "age"),
    [
        pytest.param('cp "$1"/* "$2"/', 10_000, 5, id="in order"),
        pytest.param('ls "$1" | xargs -P 4 -n 50 cp -t "$2"', 10_000, 5, id="by several processes"),
        # What is missing between the keys that are there is waited for.
        pytest.param(
            'ls "$1" | shuf --random-source=/bin/sh | xargs cp -t "$2"', 10_000, 5, id="in no order"
        ),
    ],
)
def test_ten_thousand_small_files_become_a_handful_of_objects(
    stack: Stack, tmp_path: Path, how: str, count: int, age: int
) -> None:
    stack.register("many")
    source = tmp_path / "source"
    source.mkdir()
    for key in range(count):
        (source / key_name(key)).write_bytes(noise(key % 300, key))
    with stack.mount("--batch-age", str(age), write=True) as mount:
        into, begun = mount.path / "many", time.monotonic()
        sh(f'cd "$1"; {how}', source, into, timeout=150)
        assert len(os.listdir(into)) == count
        flush(mount)
        counters, rounds = mount.counters(), (time.monotonic() - begun) / age
        assert counters.get("commit.datapoints") == count
        dataranges = counters.get("commit.dataranges")
        assert dataranges <= 4 + 2 * rounds, "every few seconds what is old enough is committed"
        assert counters.get("s3.put") == len(stack.objects()) == 2 * dataranges
    with stack.mount(cold=True) as mount:
        sh('diff -r "$1" "$2"', source, mount.path / "many")

"""A database that is gone: a new one takes over what its bucket holds, and everything reads back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from datas3tfs.core.names import data_object_key, index_object_key, staged_index_key
from datas3tfs.core.spans import Span
from tests.harness import archives
from tests.harness.mounts import BUCKET, Stack, open_stack
from tests.harness.postgres import PostgresServer


def put_as_go_does(stack: Stack, home: Path, first: int, counter: int | None) -> dict[str, bytes]:
    """Put a datarange of the Go servers, of either generation; return its content."""
    made = archives.samples([100, 0, 3000], first=first, extension="txt")
    folder = archives.write_folder(home / f"go-{first}", made)
    archive = home / f"go-{first}.tar"
    archives.write_go_layout(folder, archive)
    key = data_object_key("photos", Span(first, first + 3), counter)
    stack.put_object(key, archive.read_bytes())
    index = index_object_key(key) if counter is None else staged_index_key(key)
    stack.put_object(index, archives.go_index(archive))
    return {one.name: one.content for one in made}


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_lost_database_is_made_good_from_the_bucket(
    new_stack: Callable[..., Stack], embedded_postgres: PostgresServer, kind: str, tmp_path: Path
) -> None:
    old = new_stack(kind)
    old.register("photos", "texts")
    made = archives.samples([0, 1, 5000, 700_000, 12], extension="bin")
    expected = {one.name: one.content for one in made}
    old.ingest("photos", archives.write_folder(tmp_path / "sources", made), datarange_bytes=1)
    old.ingest("texts", tmp_path / "sources")
    old.run("aggregate", "photos", "--first", "0", "--last", "2")  # whose sources are still there
    expected |= put_as_go_does(old, tmp_path, 50, None) | put_as_go_does(old, tmp_path, 60, 7)
    old.put_object("datas3t/photos/notes.txt", b"left by somebody")
    before = old.objects()

    with open_stack(embedded_postgres, old.s3, tmp_path) as new:
        new.register()
        report = new.json("dataset", "import", BUCKET)
        assert report["datasets"] == ["photos", "texts"]
        assert report["dataranges"] == 6
        skipped = {one["object"]: one["reason"] for one in report["skipped"]}
        assert len(skipped) == report["skipped_count"] == 4
        assert sum("newer" in why for why in skipped.values()) == 3, "what was merged"
        assert skipped["datas3t/photos/notes.txt"] == "not an object of a datarange"
        assert new.objects() == before
        again = new.json("dataset", "import", BUCKET)
        assert (again["dataranges"], again["skipped_count"]) == (0, 4)
        with new.mount(cold=True) as mount:
            found = {path.name: path.read_bytes() for path in (mount.path / "photos").iterdir()}
            assert _digests(found) == _digests(expected)
            assert len(list((mount.path / "texts").iterdir())) == 5
        assert new.run("verify", "photos").returncode == 0


def _digests(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}

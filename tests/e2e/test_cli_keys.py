"""Exchanging the encryption key and a bucket's credentials, in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datas3tfs.catalog import generate_key
from tests.harness.mounts import BUCKET, Stack, open_stack, refusal
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import ServerProcess, fresh_bucket

SEALED = "SELECT access_key, secret_key FROM s3_buckets ORDER BY id"


@pytest.fixture
def stack(
    embedded_postgres: PostgresServer, rclone_server_process: ServerProcess, tmp_path: Path
) -> Iterator[Stack]:
    """A database and a bucket, registered."""
    with open_stack(embedded_postgres, fresh_bucket(rclone_server_process), tmp_path) as opened:
        opened.register("photos")
        yield opened


def private(path: Path, text: str) -> Path:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


def test_the_encryption_key_is_exchanged_for_all_buckets_or_none(stack: Stack, tmp_path: Path) -> None:
    new = generate_key()
    file = private(tmp_path / "new", new)
    before = stack.sql(SEALED)
    file.chmod(0o644)
    assert "chmod 600" in stack.refused("rekey", file)
    file.chmod(0o600)
    wrong = {"DATAS3TFS_ENCRYPTION_KEY": generate_key()}
    assert "not the one" in refusal(stack.run("rekey", file, env=wrong, check=False))
    assert "base64" in stack.refused("rekey", private(tmp_path / "none", "!"))
    assert stack.sql(SEALED) == before
    assert stack.json("rekey", file) == {"buckets": 1}
    assert stack.sql(SEALED) != before
    assert "not the one" in stack.refused("rekey", file)  # the settings name the old key still
    (tmp_path / "0.bin").write_bytes(b"x")
    changed = replace(stack, encryption_key=new)
    changed.run("ingest", "photos", tmp_path / "0.bin")
    assert [key for key in changed.objects() if key.endswith(".tar")]


def test_a_bucket_gets_other_credentials_if_s3_takes_them(stack: Stack, tmp_path: Path) -> None:
    before = stack.sql(SEALED)
    bad = private(tmp_path / "bad", "not the secret key")
    assert BUCKET in stack.refused("bucket", "credentials", BUCKET, "--secret-key-file", bad)
    assert stack.sql(SEALED) == before
    good = private(tmp_path / "good", stack.s3.secret_key)
    assert stack.json("bucket", "credentials", BUCKET, "--secret-key-file", good) == {"name": BUCKET}
    assert stack.sql(SEALED) != before
    assert "none of this name" in stack.refused("bucket", "credentials", "nobody")
    for secret in stack.secrets:
        assert secret not in stack.sql(SEALED)
    (tmp_path / "0.bin").write_bytes(b"x")
    stack.run("ingest", "photos", tmp_path / "0.bin")

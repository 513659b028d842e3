"""Commands that know of a server and of nothing else: no database, no key, a token if one is asked for."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from datas3tfs import Client
from tests.client.conftest import Site
from tests.client.serving import serving
from tests.harness import launcher
from tests.harness.archives import key_name, samples, write_folder
from tests.harness.mounts import refusal, until
from tests.harness.s3 import fresh_bucket
from tests.harness.server import token_of


@pytest.fixture(scope="module")
def well(new_site: Callable[..., Site]) -> Site:
    """A site that asks for no token."""
    return new_site("rclone")


def nothing_but(url: str, token: str = "") -> dict[str, str]:
    """Return what commands are told: where the server is, and no way around it."""
    told = {"DATAS3TFS_SERVER_URL": url, "DATAS3TFS_SERVER_TOKEN": token}
    return told | {"DATAS3TFS_DB_URL": "", "DATAS3TFS_ENCRYPTION_KEY": ""}


def said(site: Site, *words: str | Path) -> Any:
    return json.loads(site.stack.run(*words, "--json", env=nothing_but(site.server.url)).stdout)


def ten_small_ones(site: Site, folder: Path) -> str:
    """Make a dataset of ten dataranges of one datapoint each; return its name."""
    dataset = site.dataset()
    files = write_folder(folder / "src", samples([3000] * 10))
    with Client(site.server.url) as client:
        client.ingest(dataset, [files], datarange_bytes=1)
        assert len(client.dataranges(dataset)) == 10
    return dataset


def test_a_bucket_is_registered_and_used(well: Site, tmp_path: Path) -> None:
    well.dataset()
    other = fresh_bucket(well.stack.s3.process)
    keys = {"DATAS3TFS_S3_ACCESS_KEY": other.access_key, "DATAS3TFS_S3_SECRET_KEY": other.secret_key}
    words = ["bucket", "add", "second", "--endpoint", other.endpoint, "--bucket", other.bucket, "--json"]
    done = well.stack.run(*words, env=nothing_but(well.server.url) | keys)
    assert json.loads(done.stdout)["bucket"] == other.bucket
    assert other.secret_key not in done.stdout
    assert [one["name"] for one in said(well, "bucket", "list")] == ["main", "second"]
    again = well.stack.run(*words, env=nothing_but(well.server.url) | keys, check=False)
    assert "registered already" in refusal(again)
    said(well, "dataset", "add", "in-second", "--bucket", "second")
    (tmp_path / "a.txt").write_text("content")
    said(well, "ingest", "in-second", tmp_path / "a.txt")
    listed = other.client().list_objects_v2(Bucket=other.bucket)["Contents"]
    assert len([one for one in listed if "/in-second/" in one["Key"]]) >= 2


def test_dataranges_are_merged_one_by_one_and_by_the_rule(well: Site, tmp_path: Path) -> None:
    dataset = ten_small_ones(well, tmp_path)
    made = said(well, "aggregate", dataset, "--first", "0", "--last", "1")
    assert (made["first_key"], made["last_key"]) == (0, 1)
    rule = ("--target-size", "1MiB", "--max-size", "2MiB")
    wanted = said(well, "optimize", dataset, "--dry-run", *rule)
    assert [one["outcome"] for one in wanted] == ["to be merged"] * len(wanted)
    assert wanted
    assert len(said(well, "datarange", "list", dataset)) == 9
    done = said(well, "optimize", dataset, *rule)
    assert {one["outcome"] for one in done} == {"merged"}
    assert done[0]["first_key"] == wanted[0]["first_key"]
    assert said(well, "optimize", dataset, *rule) == []
    with Client(well.server.url) as client:
        assert len(client.dataranges(dataset)) < 9
        found = [(one.name, one.read()) for one in client.iterate(dataset, 0, 100)]
    assert found == [(one.name, one.content) for one in samples([3000] * 10)]


def test_a_daemon_merges_what_comes_until_it_is_told_to_end(well: Site, tmp_path: Path) -> None:
    dataset = ten_small_ones(well, tmp_path)
    words = ["optimize", dataset, "--daemon", "--interval", "1", "--json", "--target-size", "1MiB"]
    environ = well.stack.environ | nothing_but(well.server.url)
    out, log = tmp_path / "out", tmp_path / "log"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = launcher.start([*words, "--max-size", "2MiB"], environ, stdout, stderr)
    try:
        until(lambda: len(out.read_text().splitlines()) >= 1, 30, "the first merge")
        with Client(well.server.url) as client:
            before = len(client.dataranges(dataset))
            files = [tmp_path / "src" / key_name(key) for key in range(10)]
            client.ingest(dataset, files, datarange_bytes=1)
            until(lambda: len(client.dataranges(dataset)) < before + 10, 30, "what came being merged")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
    assert all(json.loads(line)["done"] for line in out.read_text().splitlines())
    assert "Traceback" not in log.read_text()


def test_a_merge_that_a_client_has_begun_is_listed_and_given_up(well: Site, tmp_path: Path) -> None:
    dataset = ten_small_ones(well, tmp_path)
    asked = {"datas3t_name": dataset, "first_datapoint_index": 0, "last_datapoint_index": 9}
    begun = httpx.post(f"{well.server.url}/api/v1/aggregate", json=asked).json()["aggregate_upload_id"]
    (listed,) = said(well, "upload", "list", dataset)
    assert (listed["id"], listed["kind"], listed["last_key"]) == (begun, "aggregate", 9)
    shown = well.stack.run("upload", "list", dataset, env=nothing_but(well.server.url)).stdout
    assert shown.splitlines()[1].split()[:4] == [str(begun), "aggregate", "0", "9"]
    assert said(well, "upload", "cancel", str(begun), "--yes") == {"id": begun}
    assert said(well, "upload", "list", dataset) == []
    assert len(said(well, "datarange", "list", dataset)) == 10


# -- tokens ----------------------------------------------------------------------------------------


def test_a_token_is_shown_and_what_it_is_not_for_is_refused_in_one_line(
    new_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = new_site("rclone")
    dataset, hidden = site.dataset(), site.dataset()
    full = token_of(site.stack, "full")
    reader = token_of(site.stack, "reader", "--read-only")
    narrow = token_of(site.stack, "narrow", "--dataset", dataset)
    (tmp_path / "a.txt").write_text("content")
    out = tmp_path / "out.tar"
    ingest = ("ingest", dataset, tmp_path / "a.txt")
    download = ("download-tar", dataset, "--first", "0", "--last", "9", "-o", out)
    with serving(site.stack, "--auth", "token") as server:

        def run(token: str, *words: str | Path) -> str:
            done = site.stack.run(*words, env=nothing_but(server.url, token), check=False)
            assert token not in done.stdout + done.stderr or not token
            return "" if done.returncode == 0 else refusal(done)

        assert run(full, *ingest) == ""
        for token in (reader, narrow):
            assert run(token, "verify", dataset) == ""
            assert run(token, *download) == ""
            out.unlink()
        assert "only for reading" in run(reader, *ingest)
        assert "only for reading" in run(reader, "dataset", "clear", dataset, "--yes")
        assert "only for reading" in run(reader, "aggregate", dataset, "--first", "0", "--last", "0")
        assert run(narrow, *ingest) == ""
        assert "not for this dataset" in run(narrow, "datarange", "list", hidden)
        assert "needs all" in run(narrow, "dataset", "add", "new", "--bucket", "main")
        assert "a token is needed" in run("", *download)
        assert "not known" in run("d3t_" + "x" * 43, *download)
        assert "the token is not one" in run("two words", "dataset", "list")
        assert not out.exists()
    assert site.leftovers() == []

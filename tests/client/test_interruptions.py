"""Servers, clients and commands that die in the middle: what is begun is finished, resumed, or gone."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datas3tfs import Client
from datas3tfs.errors import Conflict, Invalid, Unavailable
from tests.client.conftest import QUICK, Site
from tests.client.test_client import content_of, packed
from tests.harness.archives import noise, samples
from tests.harness.faultproxy import Fault, Kind, Moment
from tests.harness.mounts import ROOT, refusal, until

MIB = 1 << 20
SIGNED = "X-Amz-Signature"
PATIENT = dataclasses.replace(QUICK, patience=40.0)
PARTS = samples([45 * MIB, 10, 30 * MIB])  # four parts of 20 MiB


@pytest.fixture(scope="module")
def lone_site(new_site: Callable[..., Site]) -> Site:
    """A site whose server is killed."""
    return new_site("rclone")


@pytest.fixture
def fragile(lone_site: Site) -> Site:
    """The same, everything well."""
    for proxy in (lone_site.s3, lone_site.api):
        proxy.clear()
        proxy.forget()
    return lone_site


# -- the server ------------------------------------------------------------------------------------

WHERE = {  # what the server is asked when it dies, and whether it has done it by then
    "before it begins": ("/api/v1/upload-datarange", Moment.ASKED),
    "after it has begun": ("/api/v1/upload-datarange", Moment.ANSWERED),
    "before it completes": ("/upload-datarange/complete", Moment.ASKED),
    "after it has completed": ("/upload-datarange/complete", Moment.ANSWERED),
}


@pytest.mark.parametrize("size", [500_000, 30 * MIB])
@pytest.mark.parametrize("where", WHERE)
def test_an_upload_outlives_a_server_that_is_killed(
    fragile: Site, where: str, size: int, tmp_path: Path
) -> None:
    made, (wanted, moment), dataset = samples([size, 10]), WHERE[where], fragile.dataset()
    archive, killed = packed(tmp_path, made), threading.Event()

    def witness(now: Moment, method: str, path: str) -> bool:
        if now is moment and path.endswith(wanted) and not killed.is_set():
            fragile.server.kill()
            killed.set()
            return True
        return False

    fragile.api.witness = witness
    try:
        with Client(fragile.api.endpoint, tuning=PATIENT) as client, ThreadPoolExecutor() as threads:
            uploading = threads.submit(client.upload, dataset, archive)
            assert killed.wait(30)
            fragile.server.start()  # from this thread: it ends with the thread that has started it
            uploaded = uploading.result(60)
            assert client.dataranges(dataset) == [uploaded]
            assert [one.read() for one in client.iterate(dataset, 0, 9)] == [one.content for one in made]
    finally:
        fragile.api.witness = lambda now, method, path: False
    assert fragile.leftovers() == []


def test_a_server_that_does_not_come_back_is_said_to_be_away(fragile: Site, tmp_path: Path) -> None:
    archive, dataset = packed(tmp_path, samples([500_000])), fragile.dataset()
    fragile.api.stop()
    try:
        with (
            Client(fragile.api.endpoint, tuning=dataclasses.replace(QUICK, patience=0.5)) as client,
            pytest.raises(Unavailable, match="no connection"),
        ):
            client.upload(dataset, archive)
    finally:
        fragile.api.start()
    assert fragile.leftovers() == []


# -- the client ------------------------------------------------------------------------------------


def command(site: Site, *words: str | Path, proxied: bool = True) -> subprocess.Popen[str]:
    """Start a command that knows of the server only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DATAS3TFS_")}
    url = site.api.endpoint if proxied else site.server.url
    return subprocess.Popen(
        [sys.executable, "-m", "datas3tfs", *map(str, words)],
        env=kept
        | {
            "DATAS3TFS_SERVER_URL": url,
            "LC_ALL": "C.UTF-8",
            "XDG_CONFIG_HOME": "/nonexistent",
            "XDG_STATE_HOME": str(site.stack.home / "state"),
        },
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_an_upload_is_gone_on_with_by_another_process(fragile: Site, tmp_path: Path) -> None:
    archive, dataset = packed(tmp_path, PARTS), fragile.dataset()
    state = tmp_path / "state"
    fragile.s3.add(Fault(Kind.STALL_HEAD, method="PUT", path="partNumber=4"))
    first = command(fragile, "upload-tar", dataset, archive, "--resume", state)
    try:
        until(lambda: fragile.s3.requests("PUT", "partNumber=4"), 60, "the last part being sent")
        until(lambda: all_arrived(fragile, 3), 60, "the other parts arriving")
        first.kill()
    finally:
        first.kill()
        first.communicate()
    kept = json.loads(state.read_text())
    assert SIGNED not in state.read_text()
    assert (kept["dataset"], kept["first_key"], kept["count"]) == (dataset, 0, 3)
    fragile.s3.clear()
    fragile.s3.forget()
    other = packed(tmp_path / "other", samples([10]))
    assert "is of another upload" in refusal(
        finished(command(fragile, "upload-tar", dataset, other, "--resume", state))
    )
    done = finished(command(fragile, "upload-tar", dataset, archive, "--resume", state, "--json"))
    assert done.returncode == 0, done.stderr
    assert fragile.s3.requests("PUT", "partNumber=") == 1
    assert not state.exists()
    (datarange,) = json.loads(done.stdout)["dataranges"]
    with Client(fragile.server.url) as client:
        assert [one.datarange_id for one in client.dataranges(dataset)] == [datarange["id"]]
        assert [one.read() for one in client.iterate(dataset, 0, 9)] == [one.content for one in PARTS]
    assert fragile.leftovers() == []


def test_a_download_is_gone_on_with_by_another_process(fragile: Site, tmp_path: Path) -> None:
    made, dataset = samples([40 * MIB, 100, 20 * MIB]), fragile.dataset()
    archive = packed(tmp_path, made)
    with Client(fragile.server.url) as client:
        first = client.upload(dataset, archive)
        second = client.ingest(dataset, [("x.bin", noise(5 * MIB))])[0]
    state, out = tmp_path / "state", tmp_path / "out.tar"
    out.write_text("what was there")
    words = ("download-tar", dataset, "--first", "0", "--last", "1000", "-o", out, "--resume", state)
    fragile.s3.add(Fault(Kind.STALL_HEAD, path=second.data_object_key))
    dying = command(fragile, *words)
    try:
        until(lambda: state.exists() and json.loads(state.read_text())["datapoints"] >= 2, 60, "some coming")
        assert "another process is downloading" in refusal(finished(command(fragile, *words)))
    finally:
        dying.kill()
        dying.communicate()
    fragile.s3.clear()
    fragile.s3.forget()
    assert out.read_text() == "what was there"
    kept = json.loads(state.read_text())
    assert SIGNED not in state.read_text()
    other = finished(command(fragile, *words[:5], "999", *words[6:]))
    assert "is of another download" in refusal(other)
    done = finished(command(fragile, *words, "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": str(out), "bytes": out.stat().st_size, "datapoints": 4}
    contents = [*(one.content for one in made), noise(5 * MIB)]
    assert [*content_of(out.read_bytes()).values()] == contents
    assert fragile.s3.requests("GET", first.data_object_key) <= (0 if kept["datapoints"] == 3 else 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "packed", "packed.tar"]


@pytest.mark.parametrize(
    "what", ["all had come", "it was cleared", "it was cut short", "no state", "no download"]
)
def test_a_download_that_is_gone_on_with_is_whole_or_refused(
    fragile: Site, what: str, tmp_path: Path
) -> None:
    dataset, state, out = fragile.dataset(), tmp_path / "state", tmp_path / "out.tar"
    partial = tmp_path / "out.tar.part"
    given = [("x.bin", noise(3000, key)) for key in range(3)]
    with Client(fragile.server.url) as client:
        client.ingest(dataset, given)
        client.download_tar(dataset, 0, 9, out)
        whole = out.read_bytes()
        partial.write_bytes(whole[:-1024])
        document = {"version": 1, "dataset": dataset, "first_key": 0, "last_key": 9}
        document |= {"next_key": 3, "size": len(whole) - 1024, "datapoints": 3}
        state.write_text(json.dumps(document))
        out.unlink()
        if what == "it was cleared":
            client.clear_dataset(dataset)
        elif what == "it was cut short":
            partial.write_bytes(whole[:100])
        elif what == "no state":
            state.unlink()
        elif what == "no download":
            state.write_text("{}")

        def download() -> None:
            client.download_tar(dataset, 0, 9, out, resume=state)

        if what in ("all had come", "it was cut short"):
            download()
            assert out.read_bytes() == whole
            assert [path.name for path in tmp_path.iterdir()] == ["out.tar"]
            return
        refused, says = {
            "it was cleared": (Conflict, "has changed since its download began"),
            "no state": (Invalid, r"out\.tar\.part: exists, but .* does not"),
            "no download": (Invalid, "state: not a file"),
        }[what]
        with pytest.raises(refused, match=says):
            download()
        assert not out.exists()
        assert partial.read_bytes() == whole[:-1024]


def all_arrived(site: Site, count: int) -> bool:
    """Say whether S3 has *count* parts of the only unfinished upload."""
    client, bucket = site.stack.s3.client(), site.stack.s3.bucket
    (upload,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    parts = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts", [])
    return len(parts) == count


@pytest.mark.parametrize("moment", [Moment.ASKED, Moment.ANSWERED])
def test_an_upload_that_died_as_it_began_is_gone_on_with(
    fragile: Site, moment: Moment, tmp_path: Path
) -> None:
    """The attempt is on disk before the server is asked: the repeated start is the same upload."""
    archive, dataset = packed(tmp_path, samples([25 * MIB, 10])), fragile.dataset()
    state, seen = tmp_path / "state", threading.Event()

    def witness(now: Moment, method: str, path: str) -> bool:
        if now is moment and path.endswith("/api/v1/upload-datarange"):
            first.kill()
            seen.set()
            return True
        return False

    fragile.api.witness = witness
    first = command(fragile, "upload-tar", dataset, archive, "--resume", state)
    try:
        assert seen.wait(60)
        first.communicate(timeout=30)
    finally:
        fragile.api.witness = lambda now, method, path: False
        first.kill()
        first.communicate()
    begun = fragile.stack.sql("SELECT count(*) FROM datarange_uploads")
    assert begun == ("1" if moment is Moment.ANSWERED else "0")
    assert json.loads(state.read_text())["upload_id"] == 0
    done = finished(command(fragile, "upload-tar", dataset, archive, "--resume", state, "--json"))
    assert done.returncode == 0, done.stderr
    assert not state.exists()
    assert fragile.leftovers() == []


@pytest.mark.parametrize("kind", ["over HTTP", "with the database"])
def test_what_was_killed_is_in_the_way_of_nobody_on_this_machine(
    fragile: Site, kind: str, tmp_path: Path
) -> None:
    """SIGKILL in the middle of an ingest; the same again just works, while one that lives is left alone."""
    packed(tmp_path, PARTS)
    dataset, folder = fragile.dataset(), tmp_path / "packed"

    def ingest(*words: str) -> subprocess.Popen[str]:
        if kind == "over HTTP":
            return command(fragile, "ingest", dataset, folder, *words)
        arguments = [sys.executable, "-m", "datas3tfs", "ingest", dataset, str(folder), *words]
        environ, pipe = fragile.stack.environ, subprocess.PIPE
        return subprocess.Popen(arguments, env=environ, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

    fragile.s3.add(Fault(Kind.STALL_HEAD, method="PUT", path=SIGNED))
    dying, living = ingest("--start", "0"), ingest("--start", "1000")
    try:
        until(lambda: fragile.s3.requests("PUT", SIGNED) >= 8, 60, "the parts being sent")
        dying.kill()
        dying.communicate()
        fragile.s3.clear()  # what stalls hangs up: the living one goes on
        again = finished(ingest("--start", "0"))
        assert again.returncode == 0, again.stderr
        lived = finished(living)
        assert lived.returncode == 0, lived.stderr
    finally:
        for process in (dying, living):
            process.kill()
            process.communicate()
    with Client(fragile.server.url) as client:
        assert [one.min_datapoint_key for one in client.dataranges(dataset)] == [0, 1000]
        assert client.uploads(dataset) == []
    assert fragile.leftovers() == []
    assert not list((fragile.stack.home / "state").rglob("*.upload"))


def test_what_was_killed_elsewhere_is_named_listed_and_cancelled(fragile: Site, tmp_path: Path) -> None:
    """As from another machine: nothing here tells that it is dead."""
    packed(tmp_path, PARTS)
    dataset, folder = fragile.dataset(), tmp_path / "packed"
    fragile.s3.add(Fault(Kind.STALL_HEAD, method="PUT", path=SIGNED))
    dying = command(fragile, "ingest", dataset, folder)
    try:
        until(lambda: fragile.s3.requests("PUT", SIGNED) >= 4, 60, "the parts being sent")
    finally:
        dying.kill()
        dying.communicate()
    fragile.s3.clear()
    for note in (fragile.stack.home / "state").rglob("*.upload"):
        note.unlink()
    listed = json.loads(finished(command(fragile, "upload", "list", dataset, "--json")).stdout)
    assert [(one["kind"], one["first_key"], one["last_key"]) for one in listed] == [("upload", 0, 2)]
    number = str(listed[0]["id"])
    said = refusal(finished(command(fragile, "ingest", dataset, folder)))
    assert f"upload {number} of datapoints 0 to 2" in said
    assert listed[0]["expires"] in said
    assert "--yes" in refusal(finished(command(fragile, "upload", "cancel", number)))
    for _ in range(2):
        done = finished(command(fragile, "upload", "cancel", number, "--yes", "--json"))
        assert (done.returncode, json.loads(done.stdout)) == (0, {"id": int(number)})
    assert finished(command(fragile, "ingest", dataset, folder)).returncode == 0
    assert json.loads(finished(command(fragile, "upload", "list", dataset, "--json")).stdout) == []
    assert "there is none" in refusal(finished(command(fragile, "upload", "cancel", "987654321", "--yes")))
    assert fragile.leftovers() == []


@pytest.mark.parametrize("end", ["completed", "cancelled", "never begun"])
def test_a_state_that_is_out_of_date_does_no_harm(fragile: Site, end: str, tmp_path: Path) -> None:
    archive, dataset = packed(tmp_path, samples([25 * MIB, 7])), fragile.dataset()
    state, calls = tmp_path / "state", 0
    path = "/complete"
    fragile.api.add(Fault(Kind.STATUS, method="POST", path=path, status=503))
    with Client(fragile.api.endpoint, tuning=dataclasses.replace(QUICK, patience=1.0)) as client:
        with pytest.raises(Unavailable):
            client.upload(dataset, archive, resume=state)
        fragile.api.clear()
        document = json.loads(state.read_text())
        if end == "completed":
            client.upload(dataset, archive, resume=state)
            state.write_text(json.dumps(document))
            calls = fragile.s3.requests("PUT")
        elif end == "cancelled":
            fragile.stack.sql("UPDATE datarange_uploads SET expires_at = now() - interval '1 hour'")
            fragile.stack.run("ingest", dataset, archive, "--start", "500")  # which sweeps
        else:
            state.write_text(json.dumps(document | {"upload_id": 10**12}))
            fragile.stack.sql("UPDATE datarange_uploads SET expires_at = now() - interval '1 hour'")
            fragile.stack.run("ingest", dataset, archive, "--start", "500")
        uploaded = client.upload(dataset, archive, resume=state)
        assert client.dataranges(dataset)[0] == uploaded
    if calls:
        assert fragile.s3.requests("PUT") == calls
    assert not state.exists()
    assert fragile.leftovers() == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', "\0"])
def test_a_state_that_is_none_is_refused(fragile: Site, content: str, tmp_path: Path) -> None:
    archive, dataset = packed(tmp_path, samples([10])), fragile.dataset()
    (tmp_path / "state").write_text(content)
    with Client(fragile.server.url) as client, pytest.raises(Invalid, match="state: not a file"):
        client.upload(dataset, archive, resume=tmp_path / "state")
    assert fragile.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_leaves_nothing_half(
    fragile: Site, number: signal.Signals, tmp_path: Path
) -> None:
    archive, dataset = packed(tmp_path, PARTS), fragile.dataset()
    with Client(fragile.server.url) as client:
        client.ingest(dataset, [("a", noise(30 * MIB))], start=100)
    fragile.s3.forget()
    fragile.s3.add(Fault(Kind.STALL_HEAD, method="PUT", path=SIGNED), Fault(Kind.STALL_BODY, path=SIGNED))
    (tmp_path / "out").mkdir()
    running = [
        command(fragile, "upload-tar", dataset, archive),
        command(fragile, "ingest", dataset, tmp_path / "packed", "--start", "200"),
        command(
            fragile,
            "download-tar",
            dataset,
            "--first",
            "0",
            "--last",
            "300",
            "-o",
            tmp_path / "out" / "o.tar",
        ),
    ]
    try:
        until(lambda: fragile.s3.requests("PUT", SIGNED) >= 8, 60, "the parts being sent")
        until(lambda: fragile.s3.requests("GET", "00000000000000000100-"), 60, "the download beginning")
        for process in running:
            process.send_signal(number)
        done = [finished(process) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    fragile.s3.clear()
    assert [(one.returncode, one.stdout) for one in done] == [(128 + number, "")] * 3
    assert not any("Traceback" in one.stderr for one in done)
    assert os.listdir(tmp_path / "out") == []
    with Client(fragile.server.url) as client:
        assert [one.min_datapoint_key for one in client.dataranges(dataset)] == [100]
    assert fragile.leftovers() == []


def test_ctrl_c_in_a_program_stops_what_it_called(fragile: Site, tmp_path: Path) -> None:
    archive, dataset = packed(tmp_path, PARTS), fragile.dataset()
    fragile.s3.add(Fault(Kind.STALL_HEAD, method="PUT", path=SIGNED))
    program = f"""
import sys
from datas3tfs import Client
with Client({fragile.server.url!r}) as client:
    try:
        client.upload({dataset!r}, {str(archive)!r})
    except KeyboardInterrupt:
        print("stopped", len(client.dataranges({dataset!r})))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: fragile.s3.requests("PUT", SIGNED) >= 4, 60, "the parts being sent")
        process.send_signal(signal.SIGINT)
        done = finished(process)
    finally:
        process.kill()
        process.communicate()
    fragile.s3.clear()
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped 0\n", "")
    assert fragile.leftovers() == []


# -- the command line with nothing but a server ----------------------------------------------------


def test_commands_need_nothing_but_a_server(fragile: Site, tmp_path: Path) -> None:
    made, dataset = samples([3000] * 5), fragile.dataset()
    archive = packed(tmp_path, made)

    def said(*words: str | Path) -> object:
        done = finished(command(fragile, *words, "--json", proxied=False))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    new = f"{dataset}-new"
    assert said("bucket", "list") == [
        {
            "name": "main",
            "endpoint": fragile.s3.endpoint,
            "bucket": fragile.stack.s3.bucket,
            "region": "us-east-1",
        }
    ]
    assert said("dataset", "add", new, "--bucket", "main") == {"name": new, "bucket": "main"}
    said("upload-tar", new, archive)
    said("ingest", new, tmp_path / "packed")
    listed = said("datarange", "list", new)
    assert isinstance(listed, list)
    assert [(one["first_key"], one["last_key"]) for one in listed] == [(0, 4), (5, 9)]
    out = tmp_path / "out.tar"
    downloaded = said("download-tar", new, "--first", "3", "--last", "6", "-o", out)
    assert downloaded == {"file": str(out), "bytes": out.stat().st_size, "datapoints": 4}
    assert [*content_of(out.read_bytes()).values()] == [made[at].content for at in (3, 4, 0, 1)]
    verified = said("verify", new)
    assert verified == {"dataranges": 2, "without_checksums": 0, "problems": [], "ok": True}
    said("datarange", "delete", new, "--first", "5", "--last", "9", "--yes")
    assert "--yes" in refusal(finished(command(fragile, "dataset", "clear", new, proxied=False)))
    assert said("dataset", "clear", new, "--yes") == {"name": new, "dataranges": 1}
    assert said("dataset", "delete", new, "--yes") == {"name": new}
    assert said("dataset", "import", "main") is not None
    assert fragile.leftovers() == []

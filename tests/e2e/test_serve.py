"""The life of `datas3tfs serve`: it begins, is told to end, is killed; with curl, with TLS, with tokens."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio

from datas3tfs import Client
from datas3tfs.client.connections import trust_for_server, trust_for_storage
from datas3tfs.errors import Invalid, Unavailable
from tests.harness.api import Json, go_archive, members
from tests.harness.archives import noise
from tests.harness.conformance import CONTENTS
from tests.harness.mounts import ROOT, Stack, open_stack, refusal, until
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import ServerProcess, fresh_bucket
from tests.harness.server import Server, serving, token_of


@pytest.fixture
def stack(
    embedded_postgres: PostgresServer, rclone_server_process: ServerProcess, tmp_path: Path
) -> Iterator[Stack]:
    """A database and a bucket of its own, nothing registered; no FUSE is needed here."""
    with open_stack(embedded_postgres, fresh_bucket(rclone_server_process), tmp_path) as opened:
        yield opened


def run_script(script: str, home: Path, **variables: str) -> str:
    """Run what a user would type; return what it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=home,
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


# The calls of the datas3t2 README with its bodies; only the endpoint and the credentials are this test's.
README = r"""
curl -sSf -X POST "$SERVER/api/bucket" \
  -H "Content-Type: application/json" \
  -d '{"name": "my-bucket-config", "endpoint": "'"$ENDPOINT"'", "bucket": "'"$BUCKET"'",
       "access_key": "'"$ACCESS_KEY"'", "secret_key": "'"$SECRET_KEY"'", "use_tls": false}'

curl -sSf -X POST "$SERVER/api/datas3t" \
  -H "Content-Type: application/json" \
  -d '{"name": "my-dataset", "bucket": "my-bucket-config"}'

curl -sSf -X POST "$SERVER/api/datarange/upload/start" \
  -H "Content-Type: application/json" \
  -d '{"datas3t_name": "my-dataset", "first_datapoint_index": 1, "number_of_datapoints": 1000,
       "data_size": 1048576}' > start.json

curl -sSf -T data.tar "$(jq -r .presigned_data_put_url start.json)"
curl -sSf -T data.index "$(jq -r .presigned_index_put_url start.json)"

curl -sSf -X POST "$SERVER/api/datarange/upload/complete" \
  -H "Content-Type: application/json" \
  -d '{"datarange_upload_id": '"$(jq .datarange_id start.json)"'}'

curl -sSf -X POST "$SERVER/api/download/presign" \
  -H "Content-Type: application/json" \
  -d '{"datas3t_name": "my-dataset", "first_datapoint": 100, "last_datapoint": 200}' > segments.json

curl -sSf -H "Range: $(jq -r '.download_segments[0].range' segments.json)" \
  "$(jq -r '.download_segments[0].presigned_url' segments.json)" > part.tar
head -c 1024 /dev/zero >> part.tar
tar -tf part.tar
"""
_JQ = """#!/usr/bin/python3
import json, sys
raw, words = sys.argv[1] == "-r", [word for word in sys.argv[1:] if word != "-r"]
value = json.load(open(words[1]))
for name in words[0].replace("[0]", ".0").strip(".").split("."):
    value = value[int(name)] if name.isdigit() else value[name]
print(value if raw else json.dumps(value))
"""  # jq is not on every machine, and these three lines are all that is needed of it


@pytest.fixture
def shell(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """What scripts find: where things are, and what a user has at hand."""
    (tmp_path / "jq").write_text(_JQ)
    (tmp_path / "jq").chmod(0o755)
    return {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "ENDPOINT": stack.s3.endpoint.removeprefix("http://"),
        "BUCKET": stack.s3.bucket,
        "ACCESS_KEY": stack.s3.access_key,
        "SECRET_KEY": stack.s3.secret_key,
    }


def test_the_calls_of_the_readme_work_as_they_are_written_there(
    stack: Stack, shell: dict[str, str], tmp_path: Path
) -> None:
    """Its numbers, too: 1,000 datapoints from 1 on in exactly a MiB, so with zeros at the end."""
    contents = [noise(key % 513, key) for key in range(1000)]
    tar, index = go_archive(1, contents)
    (tmp_path / "data.tar").write_bytes(tar.ljust(1_048_576, b"\0"))
    (tmp_path / "data.index").write_bytes(index)
    with serving(stack) as server:
        printed = run_script(README, tmp_path, SERVER=server.url, **shell)
    names = [f"{key:020d}.txt" for key in range(100, 201)]
    assert printed.splitlines() == names
    found = members((tmp_path / "part.tar").read_bytes())
    assert found == dict(zip(names, contents[99:200], strict=True))


def test_what_the_page_of_the_api_shows_works_as_it_is_written_there(
    stack: Stack, shell: dict[str, str], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "API.md").read_text()
    blocks = re.findall(r"^\n((?:    .*\n|\n(?=    ))+)", page, re.M)
    assert len(blocks) == 2
    contents = [noise(key % 100, key) for key in range(1000)]
    tar, index = go_archive(0, contents)
    (tmp_path / "data.tar").write_bytes(tar)
    (tmp_path / "data.index").write_bytes(index)
    with serving(stack) as server:
        script = "\n".join(blocks)
        for shown, meant in (
            ("http://127.0.0.1:8765", server.url),
            ("https://s3.example.com", stack.s3.endpoint),
            ("my-bucket", stack.s3.bucket),
            ('"access_key": "…"', f'"access_key": "{stack.s3.access_key}"'),
            ('"secret_key": "…"', f'"secret_key": "{stack.s3.secret_key}"'),
        ):
            assert shown in script
            script = script.replace(shown, meant)
        printed = run_script(script, tmp_path, **shell)
        (segment,) = json.loads(printed)["download_segments"]
        raw = httpx.get(segment["presigned_url"], headers={"Range": segment["range"]}).content
    assert list(members(raw + bytes(1024)).values()) == contents[100:201]


# -- beginning and ending -------------------------------------------------------------------------


@contextmanager
def silent_s3() -> Iterator[tuple[str, threading.Event, Callable[[], None]]]:
    """Give the endpoint of a server that accepts and says nothing, an event for when somebody has come, and
    what makes it hang up."""
    came = threading.Event()
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return
                came.set()

        def hang_up() -> None:
            while held:
                held.pop().close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", came, hang_up
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            hang_up()
            thread.join(5)


def add_in_background(server: Server, endpoint: str, answers: list[Json]) -> threading.Thread:
    """Register a bucket there, in a thread."""

    def add() -> None:
        body = {"name": "slow", **server.bucket, "endpoint": endpoint}
        try:
            answers.append(httpx.post(f"{server.url}/api/v1/buckets", json=body, timeout=60).status_code)
        except httpx.HTTPError as exc:
            answers.append(type(exc).__name__)

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    return thread


def accepts(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/healthz")
    except httpx.TransportError:
        return False
    return True


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_what_runs_and_takes_nothing_new(stack: Stack, how: signal.Signals) -> None:
    answers: list[Json] = []
    with silent_s3() as (endpoint, came, hang_up), serving(stack) as server:
        idle = httpx.Client(base_url=server.url)
        assert idle.get("/healthz").status_code == 200  # its connection stays open
        thread = add_in_background(server, endpoint, answers)
        assert came.wait(20)
        server.process.send_signal(how)
        until(lambda: not accepts(server), what="it no longer accepts")
        assert server.process.poll() is None
        hang_up()
        thread.join(20)
        assert answers == [422]
        assert server.process.wait(20) == 0
        idle.close()


def test_told_twice_it_ends_at_once(stack: Stack) -> None:
    answers: list[Json] = []
    with silent_s3() as (endpoint, came, hang_up), serving(stack) as server:
        thread = add_in_background(server, endpoint, answers)
        assert came.wait(20)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not accepts(server), what="it no longer accepts")
        server.process.send_signal(signal.SIGTERM)
        thread.join(20)  # the connection is closed long before S3 counts as silent
        assert answers in (["RemoteProtocolError"], ["ReadError"])
        hang_up()
        assert server.process.wait(20) == 0


def test_systemd_is_told_when_it_is_ready_and_when_it_ends(stack: Stack, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        with serving(stack, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as server:
            assert listener.recv(100) == b"READY=1"
            assert httpx.get(f"{server.url}/readyz").status_code == 200
            assert server.stop() == 0
        assert listener.recv(100) == b"STOPPING=1"


def test_it_prints_where_it_listens_and_a_taken_address_is_an_error(stack: Stack) -> None:
    with serving(stack) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert not server.url.endswith(":0")
        address = server.url.removeprefix("http://")
        assert "Address already in use" in stack.refused("serve", "--addr", address)
    with serving(stack, addr="[::1]:0") as server:
        assert server.url.startswith("http://[::1]:")
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_what_is_wrong_is_said_before_it_listens(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("not a key")
    (tmp_path / "key").chmod(0o600)
    for words, reason in (
        (["--addr", "nowhere"], "addr"),
        (["--auth", "maybe"], "auth"),
        (["--url-life", "5"], "url_life"),
        (["--tls-cert", "x"], "tls_cert and tls_key"),
        (["--tls-cert", str(tmp_path / "key"), "--tls-key", str(tmp_path / "key")], "not a certificate"),
    ):
        assert reason in stack.refused("serve", *words)
    empty = stack.postgres.url("postgres")
    done = stack.run("serve", "--addr", "127.0.0.1:0", env={"DATAS3TFS_DB_URL": empty}, check=False)
    assert "datas3tfs migrate" in refusal(done)


def test_without_postgres_it_is_alive_and_not_ready(stack: Stack) -> None:
    with serving(stack, env={"DATAS3TFS_IO_TIMEOUT": "2"}) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        stack.postgres.stop()
        try:
            answer = httpx.get(f"{server.url}/readyz", timeout=30)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            answer = httpx.get(f"{server.url}/api/v1/datas3ts", timeout=30)
            assert answer.status_code == 503
            assert stack.postgres.password not in answer.text
        finally:
            stack.postgres.start()
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, what="it is ready again")


def test_a_server_sweeps(stack: Stack) -> None:
    """An upload whose URLs have died, and an object that nothing refers to: both go by themselves."""
    stack.register("photos")
    tar, index = go_archive(0, CONTENTS)

    async def upload(server: Server) -> None:
        async with server.api() as api:
            grant = await api.start("photos", 0, len(CONTENTS), len(tar))
            await api.put(grant, tar, index)

    with serving(stack, "--no-sweep") as server:
        trio.run(upload, server)
    stack.put_object("left-behind", b"content")
    stack.sql(
        "UPDATE datarange_uploads SET expires_at = now() - interval '1 second';"
        "INSERT INTO objects_to_delete (s3_bucket_id, object_key) SELECT id, 'left-behind' FROM s3_buckets"
    )
    assert len(stack.objects()) == 3

    def is_swept() -> bool:
        left = "SELECT (SELECT count(*) FROM datarange_uploads) + (SELECT count(*) FROM objects_to_delete)"
        return stack.sql(left) == "0" and not stack.objects()

    with serving(stack):
        until(is_swept, 30, "both going")
    assert stack.sql("SELECT count(*) FROM key_claims") == "0"


# -- TLS and tokens -------------------------------------------------------------------------------


def test_over_tls_with_a_certificate(stack: Stack, tmp_path: Path) -> None:
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.pem"
    run_script(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout tls.key -out tls.pem -days 2 "
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2> /dev/null",
        tmp_path,
    )
    words = ("--tls-cert", str(certificate), "--tls-key", str(key))
    key.chmod(0o644)
    assert "chmod 600" in stack.refused("serve", "--addr", "127.0.0.1:0", *words)
    key.chmod(0o600)
    with serving(stack, *words) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=trusted) as client:
            assert client.get(f"{server.url}/api/v1/buckets").json() == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/healthz")
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http") + "/healthz")
        check_commands_and_clients_over_tls(stack, server, certificate, tmp_path)


def check_commands_and_clients_over_tls(
    stack: Stack, server: Server, certificate: Path, tmp_path: Path
) -> None:
    stack.register("photos")
    (tmp_path / "a.txt").write_text("content")
    believing = {"DATAS3TFS_SERVER_URL": server.url, "DATAS3TFS_SERVER_CA_FILE": str(certificate)}
    stack.run("ingest", "photos", tmp_path / "a.txt", env=believing)
    done = stack.run("dataset", "list", env={**believing, "DATAS3TFS_SERVER_CA_FILE": ""}, check=False)
    assert "no trusted TLS connection" in refusal(done)
    wrong = str(tmp_path / "a.txt")
    done = stack.run("dataset", "list", env={**believing, "DATAS3TFS_SERVER_CA_FILE": wrong}, check=False)
    assert "a.txt: not a file of certificates" in refusal(done)
    with Client(server.url, ca_file=certificate) as client:
        assert client.get("photos", 0).read() == b"content"
    with Client(server.url) as client, pytest.raises(Unavailable, match="no trusted TLS connection"):
        client.buckets()
    with pytest.raises(Invalid, match="No such file"), Client(server.url, ca_file=tmp_path / "none"):
        pass


def test_an_authority_of_ones_own_for_the_server_is_one_more_for_s3(tmp_path: Path) -> None:
    """S3 may have a certificate that the whole world believes."""
    run_script(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -out ca.pem -days 2 -subj /CN=own "
        "2> /dev/null",
        tmp_path,
    )
    known = trust_for_storage(None).cert_store_stats()["x509"]
    assert known > 1
    assert trust_for_storage(tmp_path / "ca.pem").cert_store_stats()["x509"] == known + 1
    assert trust_for_server(tmp_path / "ca.pem").cert_store_stats()["x509"] == 1


def test_tokens_are_made_shown_once_listed_and_removed(stack: Stack) -> None:
    stack.register("photos")
    with serving(stack) as server:

        def status(token: str | None, path: str = "/api/v1/buckets") -> int:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            return httpx.get(f"{server.url}{path}", headers=headers).status_code

        assert status(None) == 200
        full = stack.run("token", "add", "full").stdout.strip()
        until(lambda: status(None) == 401, what="tokens are asked for")
        assert status(full) == 200
        only = token_of(stack, "only", "--read-only", "--dataset", "photos")
        assert status(only) == 403
        assert status(only, "/api/v1/datas3ts") == 200
        listed = stack.run("token", "list").stdout
        assert [line.split()[0] for line in listed.splitlines()[1:]] == ["full", "only"]
        records = stack.json("token", "list")
        assert [record["datasets"] for record in records] == [None, ["photos"]]
        assert [record["rights"] for record in records] == ["read, write", "read"]
        for secret in (full, only):
            assert secret not in listed + json.dumps(records) + stack.sql("SELECT * FROM api_tokens")
        assert "full" in stack.refused("token", "add", "full")
        stack.run("token", "remove", "only")
        assert "only" in stack.refused("token", "remove", "only")
        until(lambda: status(only, "/api/v1/datas3ts") == 401, what="the removed token is refused")
        assert full not in server.log
        assert " full" in server.log  # whose it was is in the log


def test_the_command_line_of_a_token_shows_nothing_to_others(stack: Stack) -> None:
    """The token is on stdout alone, so that it can be put into a private file."""
    done = stack.run("token", "add", "x")
    assert (done.stdout.startswith("d3t_"), done.stderr) == (True, "")


# -- slow clients ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_never_ends_its_head_is_hung_up_on(stack: Stack) -> None:
    """So is one that says nothing; others are served meanwhile."""
    with serving(stack) as server:
        host, port = server.url.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port)), timeout=60) for _ in range(50)]
        for number, connection in enumerate(slow[:25]):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: %d" % number)
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert {connection.recv(1000) for connection in slow} == {b""}
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        for connection in slow:
            connection.close()


def test_bytes_that_are_no_http_do_no_harm(stack: Stack) -> None:
    with serving(stack) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for given in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
            b"GET " + b"x" * 100_000,
            b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
            b"POST /api/v1/buckets HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
            b"POST /api/v1/buckets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /api/v1/buckets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n",
            b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(1000),
            bytes(range(256)) * 10,
        ):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(given)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            wish = b"Upgrade: h2c\r\nConnection: Upgrade\r\n"
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + wish + b"\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")  # and not 101
        assert httpx.get(f"{server.url}/healthz").status_code == 200

"""`datas3tfs local`: a real Postgres and a real S3 server come up, die, come back, and keep their secrets."""

import asyncio
import contextlib
import json
import os
import pwd
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import boto3
import pytest
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
AS_ROOT = os.geteuid() == 0
NOBODY = 65534


def command(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `datas3tfs local …` as a user would; nothing of ours in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DATAS3TFS_")}
    return subprocess.run(
        [options.pop("python", sys.executable), "-m", "datas3tfs", "local", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=environment | options.pop("env", {}),
        check=options.pop("check", True),
        **options,
    )


def status(home: Path) -> dict[str, Any]:
    document = json.loads(command("status", "--dir", home, "--json").stdout)
    assert isinstance(document, dict)
    return document


def pids(home: Path) -> tuple[int | None, int | None]:
    now = status(home)
    return now["postgres"]["pid"], now["s3"]["pid"]


def settings(home: Path) -> dict[str, Any]:
    return tomllib.loads((home / "config.toml").read_text())


def secrets(home: Path) -> list[str]:
    values = settings(home)
    password = values["db_url"].split(":")[2].split("@")[0]
    return [password, values["encryption_key"], values["s3_secret_key"], values["s3_access_key"]]


def query(home: Path, *statements: str) -> Any:
    async def ask() -> Any:
        connection = await asyncpg.connect(settings(home)["db_url"])
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(ask())


@contextlib.contextmanager
def s3(home: Path) -> Iterator[Any]:
    values = settings(home)
    client = boto3.client(
        "s3",
        endpoint_url=values["s3_endpoint"],
        aws_access_key_id=values["s3_access_key"],
        aws_secret_access_key=values["s3_secret_key"],
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 1}),
    )
    try:
        yield client
    finally:
        client.close()


def kill(pid: int | None) -> None:
    """Kill a server and wait until it is gone."""
    assert pid is not None
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], 10)[0]
    finally:
        os.close(handle)


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    # Not tmp_path: pytest makes that 0700, which the servers' account may not enter when we are root.
    parent = Path(tempfile.mkdtemp(prefix="datas3tfs-"))
    parent.chmod(0o755)
    try:
        yield parent / "stack"
    finally:
        command("down", "--dir", parent / "stack", check=False)
        shutil.rmtree(parent)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A stack that is up; tests leave it up."""
    with temporary_home() as path:
        command("up", "--dir", path)
        yield path


def test_up_again_changes_nothing(home: Path) -> None:
    before = pids(home)
    assert None not in before
    assert "already running" in command("up", "--dir", home).stderr
    assert pids(home) == before


def test_both_servers_want_their_secret(home: Path) -> None:
    assert query(home, "SELECT 1") == 1
    values = settings(home)
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(asyncpg.connect(values["db_url"].replace("datas3tfs:", "datas3tfs:x")))
    with s3(home) as client:
        assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["datas3tfs"]
    anonymous = socket.create_connection(
        ("127.0.0.1", int(values["s3_endpoint"].rsplit(":", 1)[1])), timeout=5
    )
    with anonymous:
        anonymous.sendall(b"GET /datas3tfs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert anonymous.recv(12)[9:10] == b"4"


def test_the_bucket_outlives_its_last_object(home: Path) -> None:
    with s3(home) as client:
        client.put_object(Bucket="datas3tfs", Key="a/b/c", Body=b"x")
        client.delete_object(Bucket="datas3tfs", Key="a/b/c")
        assert "Contents" not in client.list_objects_v2(Bucket="datas3tfs")


def test_both_listen_on_loopback_only(home: Path) -> None:
    # All of 127.0.0.0/8 reaches this machine, so a server bound to every address would answer here.
    for url in (status(home)["postgres"]["url"], status(home)["s3"]["url"]):
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=5)


def test_env_is_one_line_for_a_shell_without_a_secret(home: Path) -> None:
    line = command("env", "--dir", home).stdout
    assert line.count("\n") == 1
    told = subprocess.run(
        ["sh", "-c", f'{line}\nprintf %s "$DATAS3TFS_CONFIG"'], capture_output=True, text=True, check=True
    ).stdout
    assert told == str(home / "config.toml")
    assert not [secret for secret in secrets(home) if secret in line]


def test_no_secret_in_arguments_output_or_logs(home: Path) -> None:
    seen = command("status", "--dir", home, "--json").stdout + command("up", "--dir", home, "--json").stdout
    seen += command("status", "--dir", home).stdout
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                seen += (entry / "cmdline").read_bytes().decode("utf-8", "replace")
    for log in (home / "log").iterdir():
        seen += log.read_text()
    assert str(home) in seen
    assert not [secret for secret in secrets(home) if secret in seen]


def test_nobody_else_can_read_anything(home: Path) -> None:
    assert stat.S_IMODE(home.stat().st_mode) == (0o711 if AS_ROOT else 0o700)
    loose = [path.name for path in home.iterdir() if stat.S_IMODE(path.lstat().st_mode) & 0o077]
    assert not [name for name in loose if name != "programs"]


@pytest.mark.skipif(not AS_ROOT, reason="only root switches accounts")
def test_root_runs_neither_server_as_root(home: Path) -> None:
    account = pwd.getpwnam("datas3tfs").pw_uid
    assert account != 0
    assert [Path(f"/proc/{pid}").stat().st_uid for pid in pids(home)] == [account, account]


def test_settings_a_user_adds_are_kept(home: Path) -> None:
    with (home / "config.toml").open("a") as file:
        file.write('cache_size = "1GiB"\n')
    command("down", "--dir", home)
    with socket.socket() as squatter:
        port = int(settings(home)["s3_endpoint"].rsplit(":", 1)[1])
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        said = json.loads(command("up", "--dir", home, "--json").stdout)
        assert said["moved"] == ["s3"]
        assert not said["s3"]["url"].endswith(str(port))
    assert settings(home)["cache_size"] == "1GiB"
    assert settings(home)["s3_endpoint"] == status(home)["s3"]["url"]


def test_data_survive_down_and_up(home: Path) -> None:
    query(home, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (42)", "SELECT 1")
    with s3(home) as client:
        client.put_object(Bucket="datas3tfs", Key="kept", Body=b"bytes")
    assert "postgres" in command("down", "--dir", home).stderr
    assert pids(home) == (None, None)
    assert "not running" in command("down", "--dir", home).stderr
    command("up", "--dir", home)
    assert query(home, "SELECT n FROM kept") == 42
    with s3(home) as client:
        assert client.get_object(Bucket="datas3tfs", Key="kept")["Body"].read() == b"bytes"


def test_killed_servers_start_again_with_their_data(home: Path) -> None:
    query(home, "CREATE TABLE IF NOT EXISTS survives (n int)", "INSERT INTO survives VALUES (7)", "SELECT 1")
    before = pids(home)
    for pid in before:
        kill(pid)
    said = json.loads(command("up", "--dir", home, "--json").stdout)
    assert said["started"] == ["postgres", "s3"]
    assert not set(before) & set(pids(home))
    assert query(home, "SELECT n FROM survives") == 7


def test_one_killed_server_starts_beside_the_other(home: Path) -> None:
    postgres, s3_server = pids(home)
    kill(s3_server)
    assert json.loads(command("up", "--dir", home, "--json").stdout)["started"] == ["s3"]
    assert pids(home)[0] == postgres


def test_a_pid_that_is_somebody_elses_now_is_left_alone(home: Path) -> None:
    """As after a reboot, or in a container: both records name a process that is not ours."""
    for pid in pids(home):
        kill(pid)
    account = (home / "pgdata").stat().st_uid
    bystander = subprocess.Popen(["sleep", "100"], user=account if AS_ROOT else None)
    try:
        for record in (home / "run").glob("*.pid"):
            boot, line, _ = record.read_text().split("\n")
            record.write_text(f"{boot}\n{bystander.pid} {line.split(' ', 1)[1]}\n")
        stale = home / "pgdata/postmaster.pid"
        stale.write_text("\n".join([str(bystander.pid), *stale.read_text().split("\n")[1:]]))
        assert pids(home) == (None, None)
        assert "not running" in command("down", "--dir", home).stderr
        assert json.loads(command("up", "--dir", home, "--json").stdout)["started"] == ["postgres", "s3"]
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_two_ups_at_once_start_one_stack() -> None:
    with temporary_home() as path:
        words = [sys.executable, "-m", "datas3tfs", "local", "up", "--json", "--dir", str(path)]
        both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [json.loads(process.communicate(timeout=120)[0]) for process in both]
        assert [process.returncode for process in both] == [0, 0]
        assert sorted(answer["started"] for answer in said) == [[], ["postgres", "s3"]]
        assert said[0]["postgres"]["pid"] == said[1]["postgres"]["pid"]


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    (tmp_path / "thesis.tex").touch()
    done = command("up", "--dir", tmp_path, check=False)
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(not AS_ROOT, reason="only root runs the servers as somebody else")
def test_a_directory_out_of_reach_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    done = command("up", "--dir", tmp_path / "stack", check=False)
    assert done.returncode == 1
    assert "cannot enter this directory" in done.stderr
    assert "--dir" in done.stderr
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_no_stack_here(tmp_path: Path) -> None:
    for verb in ("down", "status", "env"):
        done = command(verb, "--dir", tmp_path, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(f"datas3tfs: error: {tmp_path}")


@pytest.mark.skipif(not AS_ROOT, reason="we are not root anyway")
def test_it_works_without_root() -> None:
    python = _python_for_nobody()
    paths = f"{ROOT}:{Path(pytest.__file__).parents[1]}"
    environment = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    parent = Path(tempfile.mkdtemp(prefix="datas3tfs-"))
    os.chown(parent, NOBODY, NOBODY)
    try:
        where = ("--dir", parent / "stack")
        environment["HOME"] = str(parent)
        command("up", *where, python=python, env=environment, **identity)
        assert [path.owner() for path in (parent / "stack").iterdir() if path.stat().st_uid != NOBODY] == []
        assert command("status", *where, check=False).returncode == 1  # root keeps its hands off it
        command("down", *where, python=python, env=environment, **identity)
    finally:
        shutil.rmtree(parent)


def _python_for_nobody() -> str:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}"):
        with contextlib.suppress(OSError):
            done = subprocess.run([python, "-c", ""], user=NOBODY, group=NOBODY, extra_groups=[], check=False)
            if done.returncode == 0 and _may_enter(ROOT):
                return python
    pytest.skip(f"neither the checkout nor a {version} is open to other users")


def _may_enter(path: Path) -> bool:
    return not subprocess.run(
        ["ls", path], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, check=False
    ).returncode

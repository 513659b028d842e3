"""The command line itself: exit codes, one-line errors, output for people and for programs, signals."""

import base64
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import typer

from datas3tfs.cli import output
from datas3tfs.cli.running import run
from datas3tfs.config import Settings
from datas3tfs.core.sizes import parse_size
from datas3tfs.errors import Conflict, NotFound

ROOT = Path(__file__).resolve().parent.parent


def datas3tfs(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "datas3tfs", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def test_version() -> None:
    done = datas3tfs("--version")
    assert (done.returncode, done.stdout) == (0, "datas3tfs 0.1.0\n")


@pytest.mark.parametrize(
    "words",
    [
        *(["nope"], ["--nope"], ["keygen", "x"], ["local"], ["local", "up", "--dir"]),
        *(
            ["journal"],
            ["journal", "export", "x"],
            ["journal", "release"],
            ["mount", "/", "--batch-age", "x"],
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words: list[str]) -> None:
    done = datas3tfs(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("datas3tfs: error: ")


def test_without_a_command_the_help_is_shown() -> None:
    done = datas3tfs()
    assert (done.returncode, done.stdout) == (2, "")
    assert "keygen" in done.stderr


def test_the_help_of_mount_names_the_defaults() -> None:
    text = " ".join(datas3tfs("mount", "--help").stdout.split())
    fields = Settings.model_fields
    for name in ("cache_size", "journal_size", "batch_bytes"):
        shown = re.search(rf"--{name.replace('_', '-')} .*?default: \((.*?)\)", text)
        assert shown is not None
        assert parse_size(shown[1]) == fields[name].default
    for name in ("batch_age", "fsync", "io_timeout"):
        shown = re.search(rf"--{name.replace('_', '-')} .*?default: \((.*?)\)", text)
        assert shown is not None
        assert shown[1] == f"{fields[name].default}".removesuffix(".0")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--fsync", "never"), ("--batch-age", "-1"), ("--journal-size", "much"), ("--umask", "9")],
)
def test_a_mount_refuses_bad_values_in_one_line(option: str, value: str, tmp_path: Path) -> None:
    done = datas3tfs("mount", tmp_path, option, value)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert option.removeprefix("--").replace("-", "_") in done.stderr.replace("-", "_")


def test_keygen_prints_32_bytes_never_the_same() -> None:
    keys = {datas3tfs("keygen").stdout for _ in range(2)}
    assert [len(base64.b64decode(key, validate=False)) for key in keys] == [32, 32]


def test_keygen_writes_a_private_file_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert datas3tfs("keygen", "-o", path).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    again = datas3tfs("keygen", "-o", path)
    assert (again.returncode, again.stderr) == (
        1,
        f"datas3tfs: error: {path}: exists; a key is never overwritten\n",
    )
    assert path.read_text() == before


def test_a_traceback_only_with_debug(tmp_path: Path) -> None:
    words = ("keygen", "-o", tmp_path / "absent" / "key")
    assert "Traceback" not in datas3tfs(*words).stderr
    assert "Traceback" in datas3tfs("--debug", *words).stderr


def test_a_reader_that_leaves_is_no_error_to_print() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as broken:
        done = subprocess.run(
            [sys.executable, "-m", "datas3tfs", "--help"],
            stdout=broken,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
    assert done.stderr == b""


COLUMNS = (
    output.Column("name", "NAME"),
    output.Column("size", "SIZE", show=lambda size: f"{size}B", right=True),
)
RECORDS: list[output.Record] = [{"name": "a\x1b[2J", "size": 5}, {"name": "longer", "size": None}]


def test_a_table_for_a_pipe_is_aligned_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(RECORDS, COLUMNS, as_json=False)
    assert capsys.readouterr().out == "NAME      SIZE\na\\x1b[2J    5B\nlonger       -\n"


def test_json_is_one_document_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(RECORDS, COLUMNS[:1], as_json=True)
    text = capsys.readouterr().out
    assert json.loads(text) == RECORDS
    assert "\x1b" not in text


def test_a_table_for_a_terminal_takes_names_for_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_table([{"name": "[red]x\x1b[2J", "size": 1}], COLUMNS, as_json=False)
    text = capsys.readouterr().out
    assert "[red]x" in text
    assert "\x1b[2J" not in text


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("work", 2) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


_WORKING = """
import sys
from datas3tfs.cli import output
with output.progress("copy \\x1b[2J", int(sys.argv[1]) or None, in_bytes=True) as advance:
    advance(1 << 20)
    input()
"""


@pytest.mark.parametrize(("total", "shown"), [(2 << 20, "1.0/2.0 MiB"), (0, "1.0/? MiB")])
def test_progress_is_a_bar_on_a_terminal_which_goes_when_the_work_is_done(total: int, shown: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKING, str(total)],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    try:
        while shown.encode() not in seen:
            seen += os.read(ours, 4096)
        out, _ = process.communicate(b"\n", timeout=30)
        with suppress(OSError):  # EIO: the other end is closed
            while more := os.read(ours, 4096):
                seen += more
    finally:
        process.kill()
        os.close(ours)
    assert (process.returncode, out) == (0, b"")
    text = seen.decode()
    assert "copy \\x1b[2J" in text
    assert "\x1b[2J" not in text.replace("\\x1b[2J", "")
    assert "━" in text
    assert text.rstrip("\r\n").endswith("\x1b[2K")  # the line is erased


def test_run_returns_what_the_command_returns() -> None:
    async def command() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    assert run(command) == 7
    assert run(command, stop_on=()) == 7


def test_run_takes_a_lone_error_out_of_its_groups() -> None:
    async def fail() -> None:
        raise NotFound("it")

    async def command() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            inner.start_soon(fail)
            outer.start_soon(trio.sleep_forever)

    with pytest.raises(NotFound, match="it"):
        run(command)


def test_run_shows_one_of_several_errors_of_ours_but_no_bug_in_their_place() -> None:
    async def together(*errors: Exception) -> None:
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("several", errors)

    with pytest.raises(NotFound, match="first"):
        run(lambda: together(NotFound("first"), Conflict("second")))
    with pytest.raises(ExceptionGroup):
        run(lambda: together(NotFound("first"), ZeroDivisionError()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_and_cleans_up(number: signal.Signals) -> None:
    cleaned = []

    async def command() -> None:
        try:
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
        finally:
            cleaned.append(True)

    with pytest.raises(typer.Exit) as caught:
        run(command)
    assert caught.value.exit_code == 128 + number
    assert cleaned == [True]

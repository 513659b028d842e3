"""The notes of what is under way: found when their process is gone, and only then."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datas3tfs.client.ledger import Begun, Ledger
from datas3tfs.core.spans import Span
from tests.harness.mounts import ROOT

_PROGRAM = """
import sys, time
from pathlib import Path
from datas3tfs.client.ledger import Begun, Ledger
from datas3tfs.core.spans import Span
with Ledger(Path(sys.argv[1])).noted(Begun.anew("photos", Span(5, 8), 4711)):
    print("noted", flush=True)
    time.sleep(100)
"""


def left_behind(folder: Path) -> list[Begun]:
    return [begun for begun, _ in Ledger(folder).left_behind()]


def test_what_a_killed_process_was_at_is_found_and_struck_off(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    assert left_behind(folder) == []
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "noted\n"
        assert left_behind(folder) == [], "it lives"
    finally:
        process.kill()
        process.communicate()
    ((begun, strike),) = Ledger(folder).left_behind()
    assert (begun.dataset, begun.keys, begun.size) == ("photos", Span(5, 8), 4711)
    assert left_behind(folder) == [begun], "nobody has struck it off"
    strike()
    assert os.listdir(folder) == []


def test_while_one_sees_to_it_others_do_not(tmp_path: Path) -> None:
    with Ledger(tmp_path).noted(Begun.anew("photos", Span(0, 1), 1024)):
        assert left_behind(tmp_path) == []
    found = Ledger(tmp_path).left_behind()
    next(found)
    assert left_behind(tmp_path) == []
    found.close()
    assert len(left_behind(tmp_path)) == 1


def test_what_was_struck_off_is_gone_whatever_ends_the_block(tmp_path: Path) -> None:
    def fail() -> None:
        with Ledger(tmp_path).noted(Begun.anew("photos", Span(0, 1), 1024)) as strike:
            strike()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", "\0", '{"host": 5}', "another host's"])
def test_what_is_no_note_of_this_host_is_left_alone(content: str, tmp_path: Path) -> None:
    with Ledger(tmp_path).noted(Begun.anew("photos", Span(0, 1), 1024)):
        pass
    (path,) = tmp_path.iterdir()
    other = json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"})
    path.write_text(other if content == "another host's" else content)
    assert left_behind(tmp_path) == []
    assert path.exists()


def test_where_nothing_can_be_written_uploads_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    for ledger in (Ledger(None), Ledger(tmp_path / "file" / "notes")):
        with caplog.at_level(logging.INFO), ledger.noted(Begun.anew("photos", Span(0, 1), 1024)) as strike:
            strike()
        assert list(ledger.left_behind()) == []
    assert not caplog.records

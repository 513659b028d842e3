"""`ingest`, `upload-tar`, `download-tar`, `datarange list`, `verify`: what they do, say, and never show."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.archives import WRITERS, key_name, noise, samples, write_folder
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import ROOT, Stack, refusal, until


def unpacked(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive, "r:") as opened:
        found = {}
        for info in opened:
            file = opened.extractfile(info)
            assert file is not None, info.name
            found[info.name] = file.read()
        return found


def stored(stack: Stack) -> dict[str, bytes]:
    """Return name → content of all datapoints, past the product."""
    found: dict[str, bytes] = {}
    for key in stack.objects():
        if key.endswith(".tar"):
            path = stack.home / "stored.tar"
            path.write_bytes(stack.get_object(key))
            found |= unpacked(path)
    return found


# -- ingest ----------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files in directories, whose order by path is not the order of their making."""
    root = tmp_path / "tree"
    names = "b/2.txt b/1.TXT a/x.tar.gz a/.hidden a/noext c.json.zst b/deep/z.a-b d.. é.jpég"
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    (root / "a" / "dangling").symlink_to("nowhere")
    (root / "a" / "link.txt").symlink_to("../b/2.txt")
    (root / "loop").symlink_to(".")
    os.mkfifo(root / "a" / "pipe")
    return root


IN_ORDER = [  # (path, extension): sorted by path, links to files followed, the rest left out
    ("a/.hidden", "bin"),
    ("a/link.txt", "txt"),
    ("a/noext", "bin"),
    ("a/x.tar.gz", "tar.gz"),
    ("b/1.TXT", "TXT"),
    ("b/2.txt", "txt"),
    ("b/deep/z.a-b", "a-b"),
    ("c.json.zst", "json.zst"),
    ("d..", "bin"),
    ("é.jpég", "jpég"),
]


def test_ingest_numbers_files_in_the_order_of_their_paths(stack: Stack, tree: Path, tmp_path: Path) -> None:
    stack.register("d")
    manifest = tmp_path / "manifest.jsonl"
    document = stack.json("ingest", "d", tree, "--start", "7", "--manifest", manifest)
    assert [(r["first_key"], r["last_key"], r["datapoints"]) for r in document["dataranges"]] == [(7, 16, 10)]
    names = [key_name(key, extension) for key, (_, extension) in enumerate(IN_ORDER, 7)]
    assert [json.loads(line) for line in manifest.read_text().splitlines()] == [
        {"key": key, "name": names[key - 7], "path": str(tree / path)}
        for key, (path, _) in enumerate(IN_ORDER, 7)
    ]
    assert stored(stack) == {
        name: (tree / path).read_bytes() for name, (path, _) in zip(names, IN_ORDER, strict=True)
    }


def test_ingest_takes_files_as_given_and_goes_on_after_the_highest_key(stack: Stack, tmp_path: Path) -> None:
    stack.register("d")
    paths = [tmp_path / name for name in ("z.txt", "a.txt", "m.txt")]
    for path in paths:
        path.write_text(path.name)
    said = stack.run("ingest", "d", *paths[:2])
    assert "2 datapoints committed in 1 datarange" in said.stderr
    assert not said.stdout
    stack.run("ingest", "d", paths[2])
    stack.run("ingest", "d", paths[2], "--start", "100")
    found = {name: content.decode() for name, content in stored(stack).items()}
    assert found == {
        key_name(0, "txt"): "z.txt", key_name(1, "txt"): "a.txt",
        key_name(2, "txt"): "m.txt", key_name(100, "txt"): "m.txt",
    }  # fmt: skip


def test_ingest_splits_by_size(stack: Stack, tmp_path: Path) -> None:
    stack.register("d")
    folder = write_folder(tmp_path / "src", samples([100_000] * 10))
    document = stack.json("ingest", "d", folder, "--datarange-bytes", "300KiB")
    assert [(r["first_key"], r["last_key"]) for r in document["dataranges"]] == [
        (0, 2),
        (3, 5),
        (6, 8),
        (9, 9),
    ]
    listed = stack.json("datarange", "list", "d")
    assert listed == document["dataranges"]
    sizes = stack.objects()
    assert all(sizes[r["object"]] == r["bytes"] and r["index"] in sizes for r in listed)


@pytest.mark.parametrize("change", ["shrinks", "grows", "vanishes"])
def test_a_file_that_changes_while_it_is_ingested_ends_it_with_nothing_committed(
    stack: Stack, proxy: FaultProxy, tmp_path: Path, change: str
) -> None:
    stack.register("d", endpoint=proxy.endpoint)
    folder = write_folder(tmp_path / "src", samples([5000] * 3))
    file = folder / key_name(1)
    proxy.add(Fault(Kind.STALL_HEAD, method="HEAD"))  # after the files were measured, before they are read
    ingest = subprocess.Popen(
        [sys.executable, "-m", "datas3tfs", "ingest", "d", str(folder)],
        env=stack.environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: proxy.requests("HEAD"), 30, "the upload beginning")
        if change == "vanishes":
            file.unlink()
        else:
            os.truncate(file, 4000 if change == "shrinks" else 6000)
        proxy.clear()
        out, err = ingest.communicate(timeout=60)
    finally:
        ingest.kill()
        ingest.wait()
    message = refusal(subprocess.CompletedProcess(ingest.args, ingest.returncode, out, err))
    assert key_name(1) in message
    assert stack.objects() == {}
    assert stack.json("datarange", "list", "d") == []
    assert stack.sql("SELECT count(*) FROM key_claims") == "0"


def test_a_signal_ends_an_ingest_and_frees_its_keys(stack: Stack, proxy: FaultProxy, tmp_path: Path) -> None:
    stack.register("d", endpoint=proxy.endpoint)
    folder = write_folder(tmp_path / "src", samples([5000] * 3))
    proxy.add(Fault(Kind.STALL_HEAD, method="PUT"))
    ingest = subprocess.Popen(
        [sys.executable, "-m", "datas3tfs", "ingest", "d", str(folder)],
        env=stack.environ,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: proxy.requests("PUT"), 30, "the upload beginning")
        ingest.terminate()
        _, err = ingest.communicate(timeout=30)
    finally:
        ingest.kill()
        ingest.wait()
        proxy.clear()
    assert ingest.returncode == 128 + 15
    assert "Traceback" not in err
    assert stack.sql("SELECT count(*) FROM key_claims") == "0"


# -- download-tar, verify --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filled:
    """A stack whose dataset `d` has the keys 10..19, 20..24 and 30..34."""

    stack: Stack
    content: dict[int, bytes]


@pytest.fixture(scope="module")
def filled(new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Filled:
    stack, folder = new_stack(), tmp_path_factory.mktemp("filled")
    stack.register("d", "e")
    content: dict[int, bytes] = {}
    for number, (first, count) in enumerate([(10, 10), (20, 5), (30, 5)]):
        made = samples([key * 1000 for key in range(count)], first=first)
        content |= {first + at: sample.content for at, sample in enumerate(made)}
        write_folder(folder / str(number), made)
        WRITERS["tarfile-pax"](folder / str(number), folder / f"{number}.tar")
        stack.upload_tar("d", folder / f"{number}.tar")
    return Filled(stack, content)


RANGES = [(10, 34), (0, 2**63 - 1), (13, 13), (18, 21), (24, 30), (25, 33), (0, 10)]


def test_a_download_holds_just_the_keys_asked_for_that_exist(filled: Filled, tmp_path: Path) -> None:
    paths = [tmp_path / f"{first}-{last}.tar" for first, last in RANGES]
    downloads = filled.stack.run_each(
        ["download-tar", "d", "--first", str(first), "--last", str(last), "-o", path, "--json"]
        for (first, last), path in zip(RANGES, paths, strict=True)
    )
    for (first, last), path, done in zip(RANGES, paths, downloads, strict=True):
        expected = {key_name(key): content for key, content in filled.content.items() if first <= key <= last}
        assert unpacked(path) == expected
        # GNU tar says so if the end is missing.
        listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, timeout=30, check=True)
        assert (listed.stdout.split(), listed.stderr) == (list(expected), "")
        assert json.loads(done.stdout) == {
            "file": str(path), "bytes": path.stat().st_size, "datapoints": len(expected),
        }  # fmt: skip
    assert len(os.listdir(tmp_path)) == len(RANGES)


def test_a_download_of_keys_that_do_not_exist_leaves_what_was_there(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "kept.tar"
    path.write_text("what was there")
    message = filled.stack.refused("download-tar", "d", "--first", "25", "--last", "29", "-o", path)
    assert "no datapoint from 25 to 29" in message
    assert os.listdir(tmp_path) == ["kept.tar"]
    assert path.read_text() == "what was there"


def test_verify_is_content_with_what_is_right(filled: Filled) -> None:
    assert filled.stack.json("verify", "d") == {
        "dataranges": 3, "without_checksums": 0, "problems": [], "ok": True,
    }  # fmt: skip


def flip(stack: Stack, key: str, place: int) -> None:
    body = stack.get_object(key)
    stack.put_object(key, body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :])


@pytest.mark.parametrize("what", ["content", "large content", "header"])
def test_verify_finds_a_flipped_bit_and_names_the_datapoint(stack: Stack, tmp_path: Path, what: str) -> None:
    made = samples([100, 2000, 700_000, 300])
    stack.register("d")
    (datarange,) = stack.ingest("d", write_folder(tmp_path / "src", made))
    bad = 2 if what == "large content" else 1
    (stack.home / "looked-at.tar").write_bytes(stack.get_object(datarange.data_key))
    with tarfile.open(stack.home / "looked-at.tar") as opened:
        info = opened.getmembers()[bad]
    flip(
        stack,
        datarange.data_key,
        info.offset + 100 if what == "header" else info.offset_data + info.size - 10,
    )
    told, as_json, downloaded = stack.run_each(
        [
            ["verify", "d"],
            ["verify", "d", "--json"],
            ["download-tar", "d", "--first", "0", "--last", "3", "-o", tmp_path / "out.tar"],
        ]
    )
    assert (told.returncode, as_json.returncode) == (1, 1)
    assert any(key_name(bad) in line and datarange.data_key in line for line in told.stderr.splitlines())
    assert not any(key_name(key) in told.stderr for key in range(4) if key != bad)
    document = json.loads(as_json.stdout)
    assert document["ok"] is False
    assert {(problem["object"], problem["key"]) for problem in document["problems"]} == {
        (datarange.data_key, bad)
    }
    # The name itself may be what is damaged: a client goes by the key.
    assert f"datapoint {bad:020d}" in refusal(downloaded)
    assert not (tmp_path / "out.tar").exists()


def test_verify_reports_an_object_that_is_gone(stack: Stack, tmp_path: Path) -> None:
    stack.register("d")
    (datarange,) = stack.ingest("d", write_folder(tmp_path / "src", samples([100] * 3)))
    stack.s3.client().delete_object(Bucket=stack.s3.bucket, Key=datarange.data_key)
    document = json.loads(stack.run("verify", "d", "--json", check=False).stdout)
    assert [problem["object"] for problem in document["problems"]] == [datarange.data_key]
    assert not document["ok"]


# -- listing, exit codes, errors -------------------------------------------------------------------


def test_lists_are_tables_for_people_and_json_for_programs(filled: Filled) -> None:
    as_json, as_table, none, datasets = filled.stack.run_each(
        [
            ["datarange", "list", "d", "--json"],
            ["datarange", "list", "d"],
            ["datarange", "list", "e", "--json"],
            ["dataset", "list", "--json"],
        ]
    )
    assert [(r["first_key"], r["last_key"], r["datapoints"]) for r in json.loads(as_json.stdout)] == [
        (10, 19, 10), (20, 24, 5), (30, 34, 5),
    ]  # fmt: skip
    lines = as_table.stdout.splitlines()
    assert len(lines) == 1 + 3
    assert lines[1].split()[1:3] == ["10", "19"]
    assert json.loads(none.stdout) == []
    found, empty = json.loads(datasets.stdout)
    assert (found["name"], found["datapoints"], found["first_key"], found["last_key"]) == ("d", 20, 10, 34)
    assert (empty["name"], empty["datapoints"], empty["first_key"]) == ("e", 0, None)


REFUSALS: dict[str, tuple[int, list[str], str]] = {  # what: (exit code, words, what it must say)
    "no such dataset to ingest into": (1, ["ingest", "none", "FILE"], "dataset none: "),
    "no such dataset to upload to": (1, ["upload-tar", "none", "TAR"], "dataset none: "),
    "no such dataset to download": (
        1, ["download-tar", "none", "--first", "0", "--last", "1", "-o", "OUT"], "dataset none: ",
    ),
    "no such dataset to verify": (1, ["verify", "none"], "dataset none: "),
    "no such dataset to list": (1, ["datarange", "list", "none"], "dataset none: "),
    "keys taken": (1, ["ingest", "d", "FILE", "--start", "12"], "datapoints 12 to 12 of d: "),
    "key negative": (1, ["ingest", "d", "FILE", "--start", "-1"], "2^63"),
    "key too large": (1, ["ingest", "d", "FILE", "--start", str(2**63)], "2^63"),
    "no such file": (1, ["ingest", "d", "MISSING"], "MISSING: No such file"),
    "no such tar": (1, ["upload-tar", "d", "MISSING"], "MISSING: No such file"),
    "nothing to ingest": (1, ["ingest", "d", "EMPTY"], "no files"),
    "a directory for a tar": (1, ["upload-tar", "d", "EMPTY"], "EMPTY: "),
    "a device to ingest": (1, ["ingest", "d", "/dev/null"], "/dev/null: "),
    "range backwards": (1, ["download-tar", "d", "--first", "5", "--last", "4", "-o", "OUT"], "--last 4"),
    "output in no directory": (
        1, ["download-tar", "d", "--first", "10", "--last", "11", "-o", "MISSING/out"], "No such file",
    ),
    "size that is none": (1, ["ingest", "d", "FILE", "--datarange-bytes", "lots"], "lots"),
    "manifest that cannot be": (1, ["ingest", "d", "FILE", "--manifest", "MISSING/m"], "No such file"),
    "dataset's name": (1, ["dataset", "add", "../x", "--bucket", "main"], "../x: not a dataset name"),
    "dataset's name that drives a terminal": (
        1, ["dataset", "add", "\x1b[2J", "--bucket", "main"], "\\x1b[2J: not a dataset name",
    ),
    "dataset twice": (1, ["dataset", "add", "d", "--bucket", "main"], "d"),
    "no such bucket": (1, ["dataset", "add", "f", "--bucket", "none"], "none"),
    "no argument": (2, ["verify"], "DATASET"),
    "no option": (2, ["download-tar", "d", "--first", "1"], "--last"),
    "unknown option": (2, ["verify", "d", "--nonsense"], "--nonsense"),
    "unknown command": (2, ["nonsense"], "nonsense"),
    "number that is none": (2, ["ingest", "d", "FILE", "--start", "one"], "--start"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusals(
    filled: Filled, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, subprocess.CompletedProcess[str]]:
    """What came of all of them."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "FILE").write_text("a file")
    (folder / "EMPTY").mkdir()
    WRITERS["gnu-tar"](write_folder(folder / "src", samples([10])), folder / "TAR")

    def placed(word: str) -> str:
        ours = word.partition("/")[0] in ("FILE", "EMPTY", "TAR", "MISSING", "OUT")
        return str(folder / word) if ours else word

    before = filled.stack.objects()
    done = filled.stack.run_each([placed(word) for word in words] for _, words, _ in REFUSALS.values())
    assert filled.stack.objects() == before
    assert sorted(os.listdir(folder)) == ["EMPTY", "FILE", "TAR", "src"]
    return dict(zip(REFUSALS, done, strict=True))


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_done_is_refused_in_one_line(
    refusals: dict[str, subprocess.CompletedProcess[str]], what: str
) -> None:
    code, _, says = REFUSALS[what]
    message = refusal(refusals[what], code)
    assert says in message
    assert message.isprintable()


# -- secrets ---------------------------------------------------------------------------------------


def check_secret(text: str, stack: Stack) -> None:
    for secret in (*stack.secrets, "X-Amz-Signature", "X-Amz-Credential", "AWS4-HMAC"):
        assert secret not in text, text


def test_no_command_shows_a_secret_even_if_it_fails_and_even_with_debug(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("content")
    done = stack.run_each(
        [
            ["bucket", "add", "main", "--json"],
            ["bucket", "list", "--json"],
            ["dataset", "add", "d", "--bucket", "main"],
            ["--debug", "ingest", "d", file],
            ["--debug", "verify", "d"],
        ]
    )
    assert [one.returncode for one in done] == [0] * 5
    wrong = {"DATAS3TFS_S3_SECRET_KEY": stack.s3.secret_key[:-1] + "x", "DATAS3TFS_S3_BUCKET": "other"}
    password = stack.postgres.password
    wrong_password = {"DATAS3TFS_DB_URL": stack.db_url.replace(password, password[:-1] + "x")}
    another_key = {"DATAS3TFS_ENCRYPTION_KEY": "A" * 43 + "="}
    for env, words in (
        (wrong, ["--debug", "bucket", "add", "second"]),
        (wrong_password, ["--debug", "dataset", "list"]),
        (another_key, ["--debug", "verify", "d"]),
    ):
        failed = stack.run(*words, env=env, check=False)
        assert failed.returncode == 1
        assert "Traceback" in failed.stderr
        done.append(failed)
        for value in env.values():
            assert value not in failed.stderr or value == "other"
        assert password[:-1] not in failed.stderr
    stack.s3.client().delete_object(Bucket=stack.s3.bucket, Key=next(iter(stack.objects())))
    done.append(stack.run("--debug", "verify", "d", check=False))
    for one in done:
        check_secret(one.stdout + one.stderr, stack)


def test_neither_ps_nor_the_most_talkative_log_shows_a_secret(
    stack: Stack, proxy: FaultProxy, tmp_path: Path
) -> None:
    stack.register("d", endpoint=proxy.endpoint)
    stack.ingest("d", write_folder(tmp_path / "src", samples([1000] * 5)))
    talkative = {"DATAS3TFS_LOG_LEVEL": "debug"}
    with stack.mount(env=talkative, io_timeout=2, fresh=True) as opened:
        shown = Path(f"/proc/{opened.pid}/cmdline").read_bytes().decode()
        assert "mount" in shown
        assert (opened.path / "d" / key_name(0)).read_bytes() == noise(1000, 0)
        proxy.add(Fault(Kind.STATUS, status=403), Fault(Kind.STATUS, status=500))
        with pytest.raises(OSError, match="Input/output"):
            (opened.path / "d" / key_name(4)).read_bytes()
        attributes = json.dumps(opened.stats())
        log = opened.log
    assert " DEBUG " in log
    check_secret(shown + attributes + log, stack)

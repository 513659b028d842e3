"""Programs that write into a mount as they write anywhere: the bytes are right, at once and for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.e2e.writing import (
    check,
    contents,
    flush,
    folder,
    python,
    sh,
    shared,
    state,
    witness,
    written,
)
from tests.harness.archives import key_name, samples, write_folder
from tests.harness.mounts import Mount

__all__ = ["folder", "shared", "witness", "written"]

_SIZES = (0, 1, 511, 512, 4096, 70_000, 131_072, 131_073, 1_500_000)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of files of many sizes, some in the middle of nowhere."""
    made = [*samples(_SIZES), *samples([10] * 30, first=1000, extension="tar.gz")]
    return write_folder(tmp_path_factory.mktemp("source") / "files", made)


COPIES = {
    "cp": 'cp "$1"/* "$2"/',
    "cp -r": 'cp -r "$1"/. "$2"',
    "cp -a": 'cp -a "$1"/. "$2"',
    "cp -p": 'cp -p "$1"/* "$2"/',
    "tar": 'tar -C "$1" -cf - . | tar -C "$2" -xf -',
    "bsdtar": 'tar -C "$1" -cf - . | bsdtar -C "$2" -xf -',
    "rsync": 'rsync -a "$1"/ "$2"/',
    "rsync --inplace": 'rsync -a --inplace "$1"/ "$2"/',
    "rsync --partial": 'rsync -a --partial --whole-file "$1"/ "$2"/',
    "install": 'install -m 600 -p "$1"/* "$2"/',
    "mv": 'cp -a "$1" "$1.moved"; mv "$1.moved"/* "$2"/; rmdir "$1.moved"',
    "dd": 'for f in "$1"/*; do dd if="$f" of="$2/${f##*/}" bs=65536 status=none; done',
    "cat": 'for f in "$1"/*; do cat "$f" > "$2/${f##*/}"; done',
    "cat, from several processes": 'cd "$1"; ls | xargs -P 4 -I{} sh -c \'cat "$1" > "$2/$1"\' sh {} "$2"',
    "find, cpio-like": 'cd "$1"; find . -type f -exec cp -t "$2" {} +',
    "pieces": 'for f in "$1"/*; do head -c 5 "$f" > "$2/${f##*/}"; tail -c +6 "$f" >> "$2/${f##*/}"; done',
}
KEEP_TIMES = {
    "cp -a",
    "cp -p",
    "tar",
    "bsdtar",
    "rsync",
    "rsync --inplace",
    "rsync --partial",
    "install",
    "mv",
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_their_bytes_before_and_after_the_commit_and_elsewhere(
    written: Mount, witness: Mount, folder: Path, source: Path, how: str
) -> None:
    sh(COPIES[how], source, folder)
    if how in KEEP_TIMES:
        for path in source.iterdir():
            assert int((folder / path.name).stat().st_mtime) == int(path.stat().st_mtime)
    check(written, witness, folder, contents(source))
    if how in KEEP_TIMES:
        for path in source.iterdir():
            assert int((folder / path.name).stat().st_mtime) == int(path.stat().st_mtime)


@pytest.mark.parametrize("options", ["-a", "-a --inplace", "-rt"])
def test_rsync_finds_nothing_to_do_the_second_time(
    written: Mount, folder: Path, source: Path, options: str
) -> None:
    def transferred() -> int:
        done = sh(f'rsync {options} --stats "$1"/ "$2"/', source, folder)
        return int(done.stdout.partition("files transferred: ")[2].split()[0])

    assert transferred() == len(list(source.iterdir()))
    assert transferred() == 0
    flush(written)
    assert transferred() == 0
    assert contents(folder) == contents(source)


def test_rsync_mends_what_differs_until_it_is_committed(written: Mount, folder: Path, source: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    damaged = folder / key_name(8)
    with damaged.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"damage")
    sh('rsync -a --inplace --checksum "$1"/ "$2"/', source, folder)
    assert contents(folder) == contents(source)
    flush(written)
    other = source.parent / "other"
    shutil.copytree(source, other)
    (other / key_name(8)).write_bytes(b"other")
    for option in "--inplace", "--whole-file":
        done = subprocess.run(
            ["rsync", "-a", option, f"{other}/", f"{folder}/"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 23
        assert "Operation not permitted" in done.stderr
    assert contents(folder) == contents(source)
    shutil.rmtree(other)


def test_dd_writes_where_it_is_told(written: Mount, witness: Mount, folder: Path, source: Path) -> None:
    data = source / key_name(5)
    content = data.read_bytes()
    sh('dd if="$1" of="$2" bs=1 count=500 status=none', data, folder / key_name(0))
    sh('dd if="$1" of="$2" bs=100 seek=7 conv=notrunc status=none', data, folder / key_name(0))
    sh('dd if="$1" of="$2" bs=1000 seek=200 status=none', data, folder / key_name(1))
    sh('dd if="$1" of="$2" bs=1 count=2 seek=100 conv=notrunc status=none', data, folder / key_name(1))
    sh('dd if="$1" of="$2" bs=1M seek=1 count=0 status=none', data, folder / key_name(2))
    hole = bytes(200_000)
    expected = {
        key_name(0): content[:500] + bytes(200) + content,
        key_name(1): hole[:100] + content[:2] + hole[102:] + content,
        key_name(2): bytes(1 << 20),
    }
    check(written, witness, folder, expected)


@pytest.mark.parametrize(
    "how",
    [
        "conv=fsync",
        "conv=fdatasync",
        "conv=fsync oflag=dsync bs=10000",
        "oflag=direct bs=4096",  # it syncs of its own accord after the last block, which is not whole
    ],
)
def test_dd_that_syncs_has_committed(folder: Path, source: Path, how: str) -> None:
    sh(f'dd if="$1" of="$2" {how} status=none', source / key_name(5), folder / key_name(0))
    assert state(folder / key_name(0)) == "committed"
    assert (folder / key_name(0)).read_bytes() == (source / key_name(5)).read_bytes()


def test_dd_may_write_on_with_every_write_synchronous(folder: Path, source: Path) -> None:
    for key, how in enumerate(["oflag=sync", "oflag=dsync"]):
        sh(f'dd if="$1" of="$2" {how} bs=10000 status=none', source / key_name(5), folder / key_name(key))
        assert state(folder / key_name(key)) == "journaled"
        assert (folder / key_name(key)).read_bytes() == (source / key_name(5)).read_bytes()


def test_the_shell_writes_and_appends(written: Mount, witness: Mount, folder: Path) -> None:
    sh(
        """cd "$1"
        echo one > 00000000000000000001.txt; echo two >> 00000000000000000001.txt
        : > 00000000000000000002.txt
        echo gone > 00000000000000000003.txt; echo new > 00000000000000000003.txt
        { echo a; echo b; } > 00000000000000000004.txt
        for i in 1 2 3; do echo $i >> 00000000000000000005.txt; done
        exec 5<> 00000000000000000006.txt; echo both >&5; exec 5>&-
        sed -i s/two/2/ 00000000000000000001.txt
        truncate -s 3 00000000000000000004.txt
        ln -s x y 2>/dev/null || true; mkfifo f 2>/dev/null || true
        """,
        folder,
    )
    expected = {1: b"one\n2\n", 2: b"", 3: b"new\n", 4: b"a\nb", 5: b"1\n2\n3\n", 6: b"both\n"}
    check(written, witness, folder, {key_name(key, "txt"): content for key, content in expected.items()})


def test_python_writes(written: Mount, witness: Mount, folder: Path, source: Path) -> None:
    expected = {}
    with (folder / key_name(1)).open("wb") as file:
        for number in range(1000):
            file.write(b"%d\n" % number)
    expected[key_name(1)] = b"".join(b"%d\n" % number for number in range(1000))
    with (folder / key_name(2)).open("w+b", buffering=0) as raw:
        raw.write(b"0123456789")
        raw.seek(4)
        raw.write(b"xy")
        raw.seek(0)
        assert raw.read() == b"0123xy6789"
        raw.truncate(8)
    expected[key_name(2)] = b"0123xy67"
    shutil.copy2(source / key_name(7), folder / key_name(3))
    assert int((folder / key_name(3)).stat().st_mtime) == int((source / key_name(7)).stat().st_mtime)
    expected[key_name(3)] = (source / key_name(7)).read_bytes()
    shutil.copy(folder / key_name(3), folder / key_name(4))
    expected[key_name(4)] = expected[key_name(3)]
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as temporary:
        temporary.write(b"atomic")
        temporary.flush()
        os.fsync(temporary.fileno())
    os.replace(temporary.name, folder / key_name(5))
    expected[key_name(5)] = b"atomic"
    shutil.move(shutil.copy2(source / key_name(8), source.parent / "moved"), folder / key_name(6))
    expected[key_name(6)] = (source / key_name(8)).read_bytes()
    with tempfile.TemporaryFile(dir=folder) as unnamed:
        unnamed.write(b"nobody sees this")
    check(written, witness, folder, expected)


def test_copytree_makes_a_dataset(written: Mount, witness: Mount, source: Path) -> None:
    shutil.copytree(source, written.path / "tree")
    check(written, witness, written.path / "tree", contents(source))


EDITORS = {
    "write, sync, rename": """
        with open(d + "/.new", "wb") as f:
            f.write(data); f.flush(); os.fsync(f.fileno())
        os.rename(d + "/.new", name)
    """,
    "backup by renaming, then write anew (vim)": """
        os.rename(name, name + "~")
        with open(name, "xb") as f:
            f.write(data)
        os.unlink(name + "~")
    """,
    "backup by copying, then write in place (vim)": """
        shutil.copy2(name, name + "~")
        with open(name, "r+b") as f:
            f.truncate(0); f.write(data)
    """,
    "emacs": """
        with open(d + "/#%s#" % os.path.basename(name), "wb") as f:
            f.write(b"auto-saved")
        os.rename(name, name + "~")
        with open(name, "wb") as f:
            f.write(data)
        os.unlink(d + "/#%s#" % os.path.basename(name))
    """,
    "a library for atomic writes": """
        fd, temporary = tempfile.mkstemp(dir=d, prefix=".tmp-")
        os.write(fd, data); os.fchmod(fd, 0o644); os.close(fd)
        os.replace(temporary, name)
        dir_fd = os.open(d, os.O_RDONLY | os.O_DIRECTORY); os.close(dir_fd)
    """,
}


@pytest.mark.parametrize("how", EDITORS)
def test_editors_save(written: Mount, witness: Mount, folder: Path, how: str) -> None:
    script = (
        "import os, shutil, sys, tempfile\nd, name, data = sys.argv[1], sys.argv[2], b'saved' * 5000\nif 1:\n"
    )
    (folder / key_name(1)).write_bytes(b"before")
    for _ in range(2):
        python(script + EDITORS[how], folder, folder / key_name(1))
    (folder / (key_name(1) + "~")).unlink(missing_ok=True)
    check(written, witness, folder, {key_name(1): b"saved" * 5000})


def test_vim_saves(written: Mount, witness: Mount, folder: Path) -> None:
    vim = shutil.which("vim") or shutil.which("vim.tiny")  # scripts/setup --test sees to it
    assert vim is not None, "neither vim nor vim.tiny is installed"
    for options in "set nofsync backup", "set nofsync nobackup nowritebackup", "set nofsync backupcopy=yes":
        for text in "first", "second":
            sh(
                f"""cd "$1"; {vim} -esu NONE --cmd '{options}' -c %d -c 'normal! i{text}' -c wq "$2" """,
                folder,
                key_name(1, "txt"),
            )
            assert (folder / key_name(1, "txt")).read_text() == text + "\n"
    (folder / (key_name(1, "txt") + "~")).unlink(missing_ok=True)
    check(written, witness, folder, {key_name(1, "txt"): b"second\n"})

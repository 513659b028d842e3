"""mount.datas3tfs translates what mount(8) passes."""

import pytest

from datas3tfs.cli.fstab import command_line
from datas3tfs.errors import Invalid


def test_a_line_of_fstab_becomes_a_mount_command() -> None:
    options = "rw,_netdev,config=/etc/d.toml,allow_other,uid=5,x-systemd.automount"
    assert command_line(["photos", "/data/photos", "-n", "-o", options]) == [
        "--config", "/etc/d.toml", "mount", "/data/photos", "--daemon",
        "--dataset", "photos", "--allow-other", "--uid", "5",
    ]  # fmt: skip


def test_all_shows_every_dataset() -> None:
    assert command_line(["all", "/data"]) == ["mount", "/data", "--daemon"]


def test_ro_mounts_read_only_and_rw_as_usual() -> None:
    assert command_line(["all", "/data", "-o", "ro"]) == ["mount", "/data", "--daemon", "--read-only"]
    assert command_line(["all", "/data", "-o", "rw"]) == ["mount", "/data", "--daemon"]


def test_the_journal_is_set_as_on_the_command_line() -> None:
    options = "journal_dir=/srv/j,journal_size=50GiB,batch_bytes=8MiB,batch_age=1,fsync=journal,bucket=main"
    assert command_line(["all", "/data", "-o", options]) == [
        "mount", "/data", "--daemon", "--journal-dir", "/srv/j", "--journal-size", "50GiB",
        "--batch-bytes", "8MiB", "--batch-age", "1", "--fsync", "journal", "--bucket", "main",
    ]  # fmt: skip


@pytest.mark.parametrize("given", [[], ["photos"], ["a", "b", "c"], ["photos", "/data", "-o", "nonsense=1"]])
def test_what_cannot_be_understood_is_refused(given: list[str]) -> None:
    with pytest.raises(Invalid):
        command_line(given)

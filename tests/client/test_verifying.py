"""`verify` of the client: what is right, what is damaged, what is gone, what changes meanwhile."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from datas3tfs import Client
from datas3tfs.client import Bad, Read, Verified
from datas3tfs.errors import NotFound
from tests.client.conftest import QUICK, Site
from tests.harness.archives import samples, write_folder

SIZES = [100, 2000, 0, 700_000, 300]


def filled(site: Site, tmp_path: Path) -> tuple[str, list[str]]:
    """Make a dataset of two dataranges; return its name and their objects."""
    dataset = site.dataset()
    with Client(site.api.endpoint, tuning=QUICK) as client:
        folder = write_folder(tmp_path / "src", samples(SIZES))
        made = [client.ingest(dataset, [folder], start=start)[0] for start in (10, 20)]
    return dataset, [one.data_object_key for one in made]


def verified(site: Site, dataset: str) -> tuple[list[Bad], list[bool], int]:
    """Return what is bad, for each datarange that was read whether it has checksums, and bytes read."""
    with Client(site.api.endpoint, tuning=QUICK) as client:
        reports = list(client.verify(dataset))
    bad = [one for one in reports if isinstance(one, Bad)]
    whole = [one.is_checksummed for one in reports if isinstance(one, Verified)]
    return bad, whole, sum(one.amount for one in reports if isinstance(one, Read))


def test_what_is_right_is_read_to_its_end(site: Site, tmp_path: Path) -> None:
    dataset, _ = filled(site, tmp_path)
    bad, whole, read = verified(site, dataset)
    assert (bad, whole) == ([], [True, True])
    assert read > 2 * sum(SIZES)


@pytest.mark.parametrize("what", ["header", "content"])
def test_what_is_damaged_is_named_and_the_rest_is_read(site: Site, tmp_path: Path, what: str) -> None:
    dataset, (first, second) = filled(site, tmp_path)
    body = bytearray(site.stack.get_object(first))
    (tmp_path / "looked-at.tar").write_bytes(body)
    with tarfile.open(tmp_path / "looked-at.tar") as opened:
        members = opened.getmembers()
    for slot in (1, 3):
        info = members[slot]
        body[info.offset + 100 if what == "header" else info.offset_data + info.size - 10] ^= 1
    site.stack.put_object(first, bytes(body))
    bad, whole, _ = verified(site, dataset)
    assert [(one.object_key, one.key) for one in bad] == [(first, 11), (first, 13)]
    assert second not in {one.object_key for one in bad}
    assert whole == [True, True]


def test_an_object_that_is_gone_is_one_problem(site: Site, tmp_path: Path) -> None:
    dataset, (first, _) = filled(site, tmp_path)
    site.stack.s3.client().delete_object(Bucket=site.stack.s3.bucket, Key=first)
    bad, whole, _ = verified(site, dataset)
    assert [(one.object_key, one.key) for one in bad] == [(first, None)]
    assert "NoSuchKey" in bad[0].reason
    assert whole == [True]


def test_a_dataset_that_does_not_exist(site: Site) -> None:
    with Client(site.api.endpoint, tuning=QUICK) as client, pytest.raises(NotFound):
        list(client.verify("none"))

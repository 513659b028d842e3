"""The client against a real server: everything it can do, under both event loops and on both S3 servers."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from datas3tfs import Client
from datas3tfs.client import AsyncClient, Datapoint, Item, Tuning, scan_tar
from datas3tfs.errors import Conflict, Forbidden, Invalid, NotFound
from tests.client.conftest import QUICK, Run, Site
from tests.harness.archives import BAD, WRITERS, Sample, key_name, noise, samples, write_folder

MIB = 1 << 20


def packed(folder: Path, made: list[Sample], writer: str = "gnu-tar") -> Path:
    """Write a TAR of *made*; return its path."""
    archive = folder / "packed.tar"
    WRITERS[writer](write_folder(folder / "packed", made), archive)
    return archive


def content_of(raw: bytes) -> dict[str, bytes]:
    """Return name → content of a TAR, as Python's tarfile reads it."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as opened:
        for info in opened:
            file = opened.extractfile(info)
            assert file is not None
            found[info.name] = file.read()
    return found


async def everything(
    client: AsyncClient, dataset: str, first: int = 0, last: int = 2**63 - 1
) -> list[Datapoint]:
    async with aclosing(client.iterate(dataset, first, last)) as found:
        return [one async for one in found]


def test_a_day_with_the_library(site: Site, run: Run[None], tmp_path: Path) -> None:
    made = samples([0, 1, 70_000, 3000, 512], first=100)
    archive = packed(tmp_path, made)
    dataset, told = site.dataset(), list[int]()

    async def day() -> None:
        async with site.client() as client:
            assert [one.name for one in await client.buckets()] == ["main"]
            uploaded = await client.upload(dataset, archive, progress=told.append)
            assert (uploaded.min_datapoint_key, uploaded.max_datapoint_key) == (100, 104)
            assert sum(told) == uploaded.size_bytes == archive.stat().st_size
            given = [(name, name.encode()) for name in ("a.txt", "b.tar.gz", "c")]
            ingested = await client.ingest(dataset, given, datarange_bytes=2500)
            ends = [(one.min_datapoint_key, one.max_datapoint_key) for one in ingested]
            assert ends == [(105, 106), (107, 107)]
            assert await client.dataranges(dataset) == [uploaded, *ingested]
            (info,) = [one for one in await client.datasets() if one.datas3t_name == dataset]
            assert (info.total_datapoints, info.lowest_datapoint, info.highest_datapoint) == (8, 100, 107)
            assert list(await client.bitmap(dataset)) == list(range(100, 108))
            names = [one.name for one in made] + [
                "0" * 17 + end for end in ("105.txt", "106.tar.gz", "107.bin")
            ]
            contents = [one.content for one in made] + [content for _, content in given]
            found = await everything(client, dataset)
            assert [(one.key, one.name, one.read()) for one in found] == list(
                zip(range(100, 108), names, contents, strict=True)
            )
            assert [one.mtime_ns // 10**9 for one in found[:5]] == [one.mtime_ns // 10**9 for one in made]
            done = await client.download_tar(dataset, 101, 106, tmp_path / "out.tar")
            assert (done.datapoints, done.bytes) == (6, (tmp_path / "out.tar").stat().st_size)
            raw = (tmp_path / "out.tar").read_bytes()
            assert content_of(raw) == dict(zip(names[1:7], contents[1:7], strict=True))
            one = await client.get(dataset, 102)
            assert (one.name, one.size, one.read()) == (key_name(102), 70_000, made[2].content)
            merged = await client.aggregate(dataset, 100, 107)
            assert await client.dataranges(dataset) == [merged]
            assert await client.aggregate(dataset, 100, 107) == merged
            assert [one.read() for one in await everything(client, dataset)] == contents
            await client.delete_datarange(dataset, 100, 107)
            with pytest.raises(NotFound, match=f"dataset {dataset} has no datapoint from 0 to 500"):
                await client.download_tar(dataset, 0, 500, tmp_path / "none.tar")
            await client.ingest(dataset, [tmp_path / "packed"], start=5)
            assert (await client.clear_dataset(dataset)).dataranges_deleted == 1
            await client.delete_dataset(dataset)
            assert dataset not in [one.datas3t_name for one in await client.datasets()]

    run(day)
    assert site.leftovers() == []
    assert not (tmp_path / "none.tar").exists()


def test_the_same_without_waiting(site: Site, tmp_path: Path) -> None:
    made = samples([3000] * 500)
    archive = packed(tmp_path, made)
    dataset, told, committed = site.dataset(), list[int](), list[object]()
    with Client(site.api.endpoint, tuning=QUICK) as client:
        with archive.open("rb") as file:
            uploaded = client.upload(dataset, file, progress=told.append)
        assert sum(told) == uploaded.size_bytes
        given = (Item(f"{key}.jpg", noise(key, key), key=key) for key in (600, 601, 700))
        ingested = client.ingest(
            dataset, given, committed=lambda one, sources: committed.append((one, len(sources)))
        )
        assert committed == list(zip(ingested, (2, 1), strict=True))
        assert client.dataranges(dataset) == [uploaded, *ingested]
        expected = [one.content for one in made] + [noise(key, key) for key in (600, 601, 700)]
        assert [one.read() for one in client.iterate(dataset, 0, 10_000)] == expected
        for one in client.iterate(dataset, 0, 10_000):
            if one.key == 3:
                break
        assert client.get(dataset, 700).extension == "jpg"
        out = io.BytesIO()
        assert client.download_tar(dataset, 498, 650, out).datapoints == 4
        assert list(content_of(out.getvalue()).values()) == expected[498:502]
        assert len(client.bitmap(dataset)) == 503
        assert client.aggregate(dataset, 600, 601) == ingested[0]
        client.delete_datarange(dataset, 700, 700)
        client.clear_dataset(dataset)
        client.delete_dataset(dataset)
        assert client.buckets()
    assert site.leftovers() == []


@pytest.mark.parametrize("writer", WRITERS)
def test_any_program_s_tar_goes_up_and_comes_back(shared_site: Site, writer: str, tmp_path: Path) -> None:
    made = samples([0, 1, 513, 300_000], first=7)
    archive, dataset = packed(tmp_path, made, writer), shared_site.dataset()
    with Client(shared_site.server.url) as client:
        client.upload(dataset, archive)
        assert {one.name: one.read() for one in client.iterate(dataset, 0, 100)} == {
            one.name: one.content for one in made
        }


def test_large_ones_go_in_parts_and_come_in_pieces(site: Site, run: Run[None], tmp_path: Path) -> None:
    made = samples([45 * MIB, 10, 9 * MIB, 0, 7 * MIB])
    archive, dataset = packed(tmp_path, made), site.dataset()
    tuning = Tuning(piece=3 * MIB, held=8 * MIB)

    async def work() -> None:
        async with site.client(tuning) as client:
            told, back = list[int](), list[int]()
            await client.upload(dataset, archive, progress=told.append)
            assert site.s3.requests("PUT", "partNumber=") == -(-archive.stat().st_size // (20 * MIB))
            assert sum(told) == archive.stat().st_size
            found = await everything(client, dataset)
            assert [one.read() for one in found] == [one.content for one in made]
            with found[0].open() as first, found[0].open() as second:
                first.seek(MIB)
                assert second.read(10) == made[0].content[:10]
                assert first.read(10) == made[0].content[MIB : MIB + 10]
            done = await client.download_tar(dataset, 0, 9, str(tmp_path / "out.tar"), progress=back.append)
            assert sum(back) == done.bytes - 1024
            assert content_of((tmp_path / "out.tar").read_bytes()) == {one.name: one.content for one in made}
            ingested = await client.ingest(dataset, [tmp_path / "packed"])
            assert [one.min_datapoint_key for one in ingested] == [5]
            assert (await client.get(dataset, 5)).read() == made[0].content

    run(work)
    assert site.leftovers() == []


def test_a_pipe_gets_the_same_as_a_file(shared_site: Site, tmp_path: Path) -> None:
    made = samples([9 * MIB, 10, 3 * MIB])
    archive, dataset = packed(tmp_path, made), shared_site.dataset()

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with Client(shared_site.server.url) as client:
        client.upload(dataset, archive)
        pipe = Pipe()
        client.download_tar(dataset, 0, 2, pipe)
        assert content_of(pipe.getvalue()) == {one.name: one.content for one in made}


@pytest.mark.parametrize("what", BAD)
def test_a_tar_that_may_not_become_a_datarange_is_refused_before_anything_is_sent(
    shared_site: Site, what: str, tmp_path: Path
) -> None:
    archive = tmp_path / "bad.tar"
    BAD[what].write(archive)
    with Client(shared_site.server.url) as client, pytest.raises(Invalid) as caught:
        client.upload("none", archive)
    assert BAD[what].says in str(caught.value)


def test_what_is_refused(shared_site: Site, tmp_path: Path) -> None:
    made = samples([100] * 3)
    archive, dataset = packed(tmp_path, made), shared_site.dataset()
    with Client(shared_site.server.url) as client:
        scanned = scan_tar(archive)
        client.upload(dataset, scanned)
        with pytest.raises(Conflict, match=r"packed\.tar: .*overlaps"):
            client.upload(dataset, scanned)
        with pytest.raises(Conflict, match="overlaps"):
            client.ingest(dataset, [archive], start=2)
        with pytest.raises(Invalid, match="key 1 is not in order"):
            client.ingest(dataset, [(9, "a", b""), (1, "b", b"")])
        with pytest.raises(Invalid, match=r"2\^63"):
            client.ingest(dataset, [("a", b"")], start=-1)
        with pytest.raises(Invalid, match=r"2\^63"):
            client.ingest(dataset, [("a", b""), ("b", b"")], start=2**63 - 1)
        with pytest.raises(NotFound, match="dataset none: "):
            client.upload("none", scanned)
        with pytest.raises(NotFound, match="dataset none: "):
            client.dataranges("none")
        with pytest.raises(NotFound, match="dataset none: "):
            client.bitmap("none")
        with pytest.raises(NotFound, match="dataset none: "):
            client.get("none", 1)
        with pytest.raises(Conflict, match="contains"):
            client.delete_dataset(dataset)
        with pytest.raises(Conflict):
            client.add_dataset(dataset, "main")
        with pytest.raises(NotFound):
            client.add_dataset("another", "none")
        with pytest.raises(Invalid, match="not a range of keys"):
            client.download_tar(dataset, 2, 1, tmp_path / "out.tar")
        with pytest.raises(Invalid):
            client.aggregate(dataset, 0, 1)
        with pytest.raises(Invalid, match="out: No such file"):
            client.download_tar(dataset, 0, 1, tmp_path / "absent" / "out")
        with archive.open("r+b") as file:
            file.write(b"1")
        with pytest.raises(Invalid, match="has changed while it was uploaded"):
            client.upload(shared_site.dataset(), scanned)
    with pytest.raises(RuntimeError, match="use the client as a context"):
        client.buckets()
    assert shared_site.leftovers() == []


@pytest.mark.parametrize(
    "url", ["", "datas3t", "ftp://host", "http://", "http://user:secret@host", "http://h/?q=1"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(Invalid, match="the server's address") as caught:
        Client(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "a b", "secret\n", "sécret"])
def test_a_token_that_cannot_be_one(token: str) -> None:
    with pytest.raises(Invalid, match="token") as caught:
        Client("http://host", token=token)
    assert "cret" not in str(caught.value)


def test_no_secret_shows_anywhere(
    shared_site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = samples([100] * 3)
    archive, dataset = packed(tmp_path, made), shared_site.dataset()
    token = "a-token-nobody-may-see"
    caplog.set_level(logging.DEBUG)
    with Client(shared_site.server.url, token=token) as client:
        client.upload(dataset, archive)
        assert len(list(client.iterate(dataset, 0, 10))) == 3
        shown = repr(client)
    for secret in (token, "X-Amz-Signature", "X-Amz-Credential"):
        assert secret not in caplog.text + shown


def test_a_client_without_the_right_token_is_told_so(new_site: Callable[..., Site], tmp_path: Path) -> None:
    site = new_site("rclone", "--auth", "token")
    dataset = site.dataset()
    reader, writer = (
        site.stack.json("token", "add", *words)["token"] for words in (["r", "--read-only"], ["w"])
    )
    with Client(site.server.url) as client, pytest.raises(Forbidden):
        client.datasets()
    with Client(site.server.url, token=writer) as client:
        client.ingest(dataset, [("a.txt", b"content")])
    with Client(site.server.url, token=reader) as client:
        assert client.get(dataset, 0).read() == b"content"
        with pytest.raises(Forbidden):
            client.ingest(dataset, [("a.txt", b"content")])
    log = site.server.log_file.read_text()
    assert reader not in log
    assert writer not in log
    assert site.leftovers() == []


def test_a_generator_of_things_is_asked_for_them_as_they_are_needed(shared_site: Site) -> None:
    dataset, made, seen = shared_site.dataset(), list[int](), list[int]()

    def things() -> Iterator[tuple[str, bytes]]:
        for number in range(30):
            made.append(number)
            yield f"{number}.bin", noise(50_000, number)

    with Client(shared_site.server.url) as client:
        client.ingest(
            dataset, things(), datarange_bytes=200_000, committed=lambda one, sources: seen.append(len(made))
        )
    # Three fit; the fourth is asked for to know that it does not.
    assert seen == [*range(4, 29, 3), 30]

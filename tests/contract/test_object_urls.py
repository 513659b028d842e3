"""Presigned URLs of the S3 adapter: what is signed, for how long, and that servers see it the same way."""

from __future__ import annotations

import datetime
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore.auth
import pytest
import urllib3
from botocore.config import Config

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Bucket, BucketId, BucketSpec
from datas3tfs.errors import Invalid, NotFound
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.signing import Signer
from datas3tfs.objects.store import RetryingStore
from datas3tfs.objects.stores import open_stores
from tests.harness.s3 import S3Server

KEY = "datas3t/some-set/a b+c%20ü&=?/~x.tar"
SPEC = BucketSpec("test", "http://s3.example:9000", "pictures", "AKEXAMPLE", "s/e+cret", region="eu-north-1")
LIFE = 120
NOW = datetime.datetime(2026, 3, 1, 12, 30, tzinfo=datetime.UTC)
SIGNED = {
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
}


@pytest.fixture
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as pool:
        yield pool


@pytest.fixture
async def store(rclone_server: S3Server) -> AsyncIterator[RetryingStore]:
    """On rclone's server, which checks signatures (moto's does not)."""

    async def nothing_registered(bucket_id: BucketId) -> Bucket:
        raise NotFound(f"bucket {bucket_id}: not registered")

    async with open_stores(nothing_registered, S3Settings(url_life=LIFE), Counters()) as stores:
        yield stores.of(rclone_server.spec())


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime.datetime) -> None:
    """Let botocore believe that it is *moment*."""

    def told(remove_tzinfo: bool = True) -> datetime.datetime:
        return moment.replace(tzinfo=None) if remove_tzinfo else moment

    monkeypatch.setattr(botocore.auth, "get_current_datetime", told)


async def every_url(store: RetryingStore) -> list[str]:
    return [
        await store.get_url(KEY),
        await store.put_url(KEY),
        *await store.part_urls(KEY, "an/id+", [1, 20]),
    ]


async def test_nothing_but_the_host_is_signed_for_all_of_the_life(store: RetryingStore) -> None:
    for url in await every_url(store):
        asked = parse_qs(urlsplit(url).query, strict_parsing=True)
        assert asked["X-Amz-SignedHeaders"] == ["host"]
        assert asked["X-Amz-Expires"] == [str(LIFE)]
        assert asked.keys() - SIGNED in (set(), {"uploadId", "partNumber"})  # no checksum, no date


async def test_each_url_is_signed_when_it_is_asked_for(
    store: RetryingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in (NOW, NOW + datetime.timedelta(seconds=LIFE / 2)):
        at(monkeypatch, moment)
        for url in await every_url(store):
            assert parse_qs(urlsplit(url).query)["X-Amz-Date"] == [moment.strftime("%Y%m%dT%H%M%SZ")]


async def test_thousands_of_parts(store: RetryingStore) -> None:
    numbers = range(1, 10_001)
    urls = await store.part_urls(KEY, "an/id+", numbers)
    assert [parse_qs(urlsplit(url).query)["partNumber"] for url in urls] == [[str(one)] for one in numbers]


@pytest.mark.parametrize(
    ("method", "operation", "params"),
    [
        ("GET", "get_object", {}),
        ("PUT", "put_object", {}),
        ("PUT", "upload_part", {"UploadId": "an/id+ =", "PartNumber": 7}),
    ],
)
def test_boto3_signs_the_same(
    monkeypatch: pytest.MonkeyPatch, method: str, operation: str, params: dict[str, object]
) -> None:
    at(monkeypatch, NOW)
    client = boto3.client(
        "s3",
        endpoint_url=SPEC.endpoint_url,
        region_name=SPEC.region,
        aws_access_key_id=SPEC.access_key,
        aws_secret_access_key=SPEC.secret_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
        ),
    )
    theirs = client.generate_presigned_url(
        operation, Params={"Bucket": SPEC.bucket, "Key": KEY, **params}, ExpiresIn=LIFE
    )
    query = {"uploadId": str(params["UploadId"]), "partNumber": str(params["PartNumber"])} if params else None
    ours = Signer(SPEC).url(method, KEY, LIFE, query)
    assert urlsplit(ours)[:3] == urlsplit(theirs)[:3]
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)


@pytest.mark.parametrize(
    ("endpoint", "begins"),
    [
        ("https://S3.Example:443/", "https://s3.example/pictures/k?"),
        ("http://s3.example:80", "http://s3.example/pictures/k?"),
        ("http://s3.example:443", "http://s3.example:443/pictures/k?"),
        ("https://s3.example/base/", "https://s3.example/base/pictures/k?"),
        ("http://[::1]:9000", "http://[::1]:9000/pictures/k?"),
        ("s3.example:9000", "http://s3.example:9000/pictures/k?"),
        ("http://user:word@s3.example", "http://s3.example/pictures/k?"),
    ],
)
def test_the_host_is_written_as_clients_send_it(endpoint: str, begins: str) -> None:
    assert Signer(replace(SPEC, endpoint=endpoint)).url("GET", "k", LIFE).startswith(begins)


@pytest.mark.parametrize(
    "endpoint", ["", "ftp://s3.example", "http://", "http://s3.example:port", "http://[::1"]
)
def test_an_endpoint_that_is_no_url_is_invalid(endpoint: str) -> None:
    with pytest.raises(Invalid, match="test"):
        Signer(replace(SPEC, endpoint=endpoint)).url("GET", "k", LIFE)


async def test_a_url_dies_with_its_life(
    store: RetryingStore, pool: urllib3.PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(KEY, b"here")
    multipart = await store.begin_multipart(KEY)
    now = datetime.datetime.now(datetime.UTC)
    for age, statuses in ((LIFE - 60, {200}), (LIFE + 5, {400, 403})):  # rclone's says 400, Amazon's 403
        with monkeypatch.context() as patched:
            at(patched, now - datetime.timedelta(seconds=age))
            [part] = await store.part_urls(KEY, multipart, [1])
            get, put = await store.get_url(KEY), await store.put_url(KEY)
        assert pool.request("GET", get).status in statuses
        assert pool.request("PUT", put, body=b"there").status in statuses
        assert pool.request("PUT", part, body=b"there").status in statuses


async def test_a_url_is_for_one_thing(store: RetryingStore, pool: urllib3.PoolManager) -> None:
    await store.put(KEY, b"here")
    multipart = await store.begin_multipart(KEY)
    [part] = await store.part_urls(KEY, multipart, [1])
    get, put = await store.get_url(KEY), await store.put_url(KEY)
    refused = [
        ("PUT", get),
        ("DELETE", get),
        ("GET", put),
        ("DELETE", put),
        ("GET", get.replace("some-set", "other-set")),
        ("PUT", put.replace("some-set", "other-set")),
        ("PUT", part.replace("partNumber=1", "partNumber=2")),
        ("PUT", put.replace(f"X-Amz-Expires={LIFE}", f"X-Amz-Expires={LIFE * 2}")),
        ("PUT", f"{put}&uploadId={multipart}&partNumber=1"),
    ]
    for method, url in refused:
        assert pool.request(method, url, body=None if method == "GET" else b"there").status == 403, url
    assert await store.get(KEY, 9) == b"here"
    assert await store.parts(KEY, multipart) == []


async def test_no_url_is_logged(store: RetryingStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        urls = await every_url(store)
    assert urls
    assert "X-Amz" not in caplog.text
    assert "Signature" not in caplog.text

"""What both generations of Go clients send, what they must be answered, and what is answered to nonsense.

"A" is datas3t2, "B" its successor datas3t. The tables run against the application over memory twins
(tests/api/test_conformance.py) and against a server with Postgres and S3 (tests/e2e/test_api.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from tests.harness.api import Api, Json, even_shares, go_archive, members

FILLED, EMPTY = "filled", "empty"  # datasets that `prepare` makes
CONTENTS = [b"Content of file %d - " % number for number in range(5)]
SPANS = (0, 10)  # first keys of the two dataranges of FILLED, five keys each
PLAIN = "application/json"
PROBLEM = "application/problem+json"
MOST = 20 << 20  # bytes of a part
UNKNOWN = 987_654_321  # no upload's id
BEYOND = 2**63

# -- shapes: field → type; "?" behind a name: may be left out, and is if it is empty (Go's omitempty) --

Shape = Mapping[str, object]
_STATS = {
    "bucket_name": str,
    "datarange_count": int,
    "total_datapoints": int,
    "lowest_datapoint": int,
    "highest_datapoint": int,
    "total_bytes": int,
}
_UPLOAD = {
    "object_key": str,
    "use_direct_put": bool,
    "presigned_multipart_upload_urls?": [str],
    "presigned_data_put_url?": str,
    "presigned_index_put_url": str,
}
_DATARANGE = {
    "datarange_id": int,
    "data_object_key": str,
    "index_object_key": str,
    "min_datapoint_key": int,
    "max_datapoint_key": int,
    "size_bytes": int,
}
_SOURCE = {**_DATARANGE, "presigned_data_url": str, "presigned_index_url": str}
SHAPES: dict[str, dict[str, object]] = {
    "A": {
        "buckets": [{"name": str, "endpoint": str, "bucket": str, "use_tls": bool}],
        "datas3ts": [{"dataset_name": str, **_STATS}],
        "upload": {"datarange_id": int, "first_datapoint_index": int, **_UPLOAD},
        "download": {"download_segments": [{"presigned_url": str, "range": str}]},
    },
    "B": {
        "buckets": [{"name": str, "endpoint": str, "bucket": str}],
        "datas3ts": [{"datas3t_name": str, **_STATS}],
        "upload": {"datarange_id": int, "first_datapoint_index": int, **_UPLOAD},
        "download": {"download_segments": [{"presigned_url": str, "range": str}]},
        "import": {"imported_datas3ts": [str], "imported_count": int},
        "clear": {"dataranges_deleted": int, "objects_scheduled": int},
        "delete": {},
        "aggregate": {
            "aggregate_upload_id": int,
            "source_datarange_download_urls": [_SOURCE],
            **_UPLOAD,
        },
        "dataranges": {"dataranges": [_DATARANGE]},
    },
}


def check_shape(value: Json, shape: object, where: str = "answer") -> None:
    """Fail unless Go's decoder would fill every field of *shape* from *value*, and nothing is null."""
    if isinstance(shape, list):
        assert isinstance(value, list), where
        for number, one in enumerate(value):
            check_shape(one, shape[0], f"{where}[{number}]")
    elif isinstance(shape, Mapping):
        assert isinstance(value, dict), where
        assert None not in value.values(), f"{where}: {value}"
        for name, inner in shape.items():
            if name.endswith("?"):
                assert value.get(name[:-1], "left out") not in ("", []), f"{where}.{name}"
                if name[:-1] not in value:
                    continue
            check_shape(value[name.rstrip("?")], inner, f"{where}.{name}")
    else:
        assert type(value) is shape, f"{where}: {value!r}"


# -- what works ---------------------------------------------------------------------------------------

Step = Callable[[Api, str], Awaitable[None]]
STEPS: dict[str, Step] = {}  # name → what is done with an API and a generation of clients
GENERATIONS: list[tuple[str, str]] = []  # (generation, name of a step), for all that it knows


def _step(generations: str) -> Callable[[Step], Step]:
    def added(step: Step) -> Step:
        name = step.__name__.strip("_")
        STEPS[name] = step
        GENERATIONS.extend((generation, name) for generation in generations)
        return step

    return added


async def prepare(api: Api) -> None:
    """Fill a fresh server: a bucket, an empty dataset and one with two dataranges."""
    await api.add_bucket()
    await api.add_dataset(EMPTY)
    await api.add_dataset(FILLED)
    for first in SPANS:
        await api.upload(FILLED, first, CONTENTS)


@_step("AB")
async def _buckets(api: Api, generation: str) -> None:
    answer = await api.send("GET", "/api/v1/buckets")
    assert (answer.status_code, answer.headers["content-type"]) == (200, PLAIN)
    check_shape(answer.json(), SHAPES[generation]["buckets"])
    (found,) = answer.json()
    assert found["name"] == "main"
    assert found["endpoint"] == api.bucket["endpoint"]
    assert "key" not in answer.text


@_step("AB")
async def _datas3ts(api: Api, generation: str) -> None:
    answer = await api.send("GET", "/api/v1/datas3ts")
    assert (answer.status_code, answer.headers["content-type"]) == (200, PLAIN)
    check_shape(answer.json(), SHAPES[generation]["datas3ts"])
    names = [one["datas3t_name"] for one in answer.json()]
    assert names == sorted(names)
    found = {one["dataset_name"]: one for one in answer.json()}
    wanted = {
        "bucket_name": "main",
        "datarange_count": 2,
        "total_datapoints": 10,
        "lowest_datapoint": 0,
        "highest_datapoint": 14,
        "total_bytes": 2 * len(go_archive(0, CONTENTS)[0]),
    }
    assert wanted.items() <= found[FILLED].items()
    assert {found[EMPTY][name] for name in _STATS if name != "bucket_name"} == {0}


@_step("AB")
async def _add_dataset(api: Api, generation: str) -> None:
    for path in ("/api/v1/datas3ts", "/api/datas3t"):
        name = f"made-{generation}-{secrets.token_hex(6)}"
        answer = await api.send("POST", path, {"name": name, "bucket": "main", "unknown": [1]})
        assert (answer.status_code, answer.content) == (204, b"")
        assert name in [one["datas3t_name"] for one in await api.done("GET", "/api/v1/datas3ts")]


@_step("AB")
async def _upload(api: Api, generation: str) -> None:
    """Start, put, complete, complete again; with what each generation sends back."""
    dataset = await api.add_dataset()
    tar, index = go_archive(7, CONTENTS)
    numbers = {"first_datapoint_index": 7, "number_of_datapoints": 5, "data_size": len(tar)}
    answer = await api.send("POST", "/api/v1/upload-datarange", {"datas3t_name": dataset, **numbers})
    assert (answer.status_code, answer.headers["content-type"]) == (200, PLAIN)
    grant = answer.json()
    check_shape(grant, SHAPES[generation]["upload"])
    assert grant["use_direct_put"]
    assert "presigned_multipart_upload_urls" not in grant
    assert grant["first_datapoint_index"] == 7
    assert grant["object_key"] == f"datas3t/{dataset}/dataranges/{7:020d}-{11:020d}.tar"
    # What is not complete does not exist.
    assert await api.done("GET", f"/api/v1/dataranges?datas3t_name={dataset}") == {"dataranges": []}
    await api.put(grant, tar, index)
    tags: list[str] | None = None if generation == "A" else []
    body = {"datarange_upload_id": grant["datarange_id"], "upload_ids": tags}
    for _ in range(2):
        answer = await api.send("POST", "/api/v1/upload-datarange/complete", body)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == PLAIN
    answer = await api.send("POST", "/api/v1/upload-datarange/complete", {**body, "describe": True})
    check_shape(answer.json(), _DATARANGE)
    names = [f"{key:020d}.txt" for key in range(7, 12)]
    assert await api.download(dataset, 0, 100) == dict(zip(names, CONTENTS, strict=True))


@_step("AB")
async def _multipart(api: Api, generation: str) -> None:
    """One URL for each 20 MiB; the first generation sends even shares, the second parts of 20 MiB."""
    dataset = await api.add_dataset()
    contents = [bytes([number]) * (7 << 20) for number in range(6)]
    tar, index = go_archive(0, contents)
    assert len(tar) % 3, "shares that are rounded down leave something"
    grant = await api.start(dataset, 0, 6, len(tar))
    check_shape(grant, SHAPES[generation]["upload"])
    urls = grant["presigned_multipart_upload_urls"]
    assert (grant["use_direct_put"], len(urls), "presigned_data_put_url" in grant) == (False, 3, False)
    parts = (
        even_shares(tar, 3) if generation == "A" else [tar[at : at + MOST] for at in range(0, len(tar), MOST)]
    )
    assert len(parts[-1]) != len(parts[0])
    tags = [await api.urls.put(url, part) for url, part in zip(urls, parts, strict=True)]
    await api.urls.put(grant["presigned_index_put_url"], index)
    await api.complete(grant, tags)
    assert await api.download(dataset, 4, 4) == {f"{4:020d}.txt": contents[4]}


@_step("AB")
async def _cancel(api: Api, generation: str) -> None:
    dataset = await api.add_dataset()
    tar, _ = go_archive(0, CONTENTS)
    for _ in range(2):  # what is cancelled is free again
        grant = await api.start(dataset, 0, 5, len(tar))
        for _ in range(2):
            body = {"datarange_upload_id": grant["datarange_id"]}
            answer = await api.send("POST", "/api/v1/upload-datarange/cancel", body)
            assert (answer.status_code, answer.content) == (200, b"")


@_step("AB")
async def _download(api: Api, generation: str) -> None:
    """A range over a gap: a segment for each datarange, whole TAR blocks, any part of it can be asked for."""
    for path in ("/api/v1/download", "/api/download/presign"):
        body = {"datas3t_name": FILLED, "first_datapoint": 2, "last_datapoint": 12}
        answer = await api.send("POST", path, body)
        assert (answer.status_code, answer.headers["content-type"]) == (200, PLAIN)
        check_shape(answer.json(), SHAPES[generation]["download"])
        segments = answer.json()["download_segments"]
        assert [one["range"] for one in segments] == ["bytes=2048-5119", "bytes=0-3071"]
        joined = b""
        for one in segments:
            assert "x-amz-signedheaders=host&" in one["presigned_url"].lower() + (
                "x-amz-signedheaders=host&" if one["presigned_url"].startswith("memory:") else ""
            )
            status, body_of_it = await api.urls.get(one["presigned_url"], one["range"])
            assert status == 206
            joined += body_of_it
            first = int(one["range"].removeprefix("bytes=").partition("-")[0])
            status, part = await api.urls.get(one["presigned_url"], f"bytes={first}-{first + 511}")
            assert (status, part) == (206, body_of_it[:512])
        keys = [2, 3, 4, 10, 11, 12]
        names = [f"{key:020d}.txt" for key in keys]
        assert members(joined + bytes(1024)) == {
            name: CONTENTS[key % 10] for name, key in zip(names, keys, strict=True)
        }


@_step("B")
async def _download_of_nothing(api: Api, generation: str) -> None:
    body = {"datas3t_name": EMPTY, "first_datapoint": 0, "last_datapoint": 2**63 - 1}
    assert await api.done("POST", "/api/v1/download", body) == {"download_segments": []}


@_step("B")
async def _dataranges(api: Api, generation: str) -> None:
    answer = await api.send("GET", f"/api/v1/dataranges?datas3t_name={FILLED}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, PLAIN)
    check_shape(answer.json(), SHAPES["B"]["dataranges"])
    found = answer.json()["dataranges"]
    assert [(one["min_datapoint_key"], one["max_datapoint_key"]) for one in found] == [(0, 4), (10, 14)]
    assert await api.done("GET", "/api/v1/dataranges?datas3t_name=nobody") == {"dataranges": []}


@_step("B")
async def _bitmap(api: Api, generation: str) -> None:
    dataset = await api.add_dataset()
    for first in (0, 3000):
        await api.upload(dataset, first, [b""] * 2000)
    answer = await api.send("GET", f"/api/v1/datapoints-bitmap?datas3t_name={dataset}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    assert answer.content.hex() == "0100000000000000000000003b3000000100009f0f02000000cf07b80bcf07"
    for name in (EMPTY, "nobody"):
        answer = await api.send("GET", f"/api/v1/datapoints-bitmap?datas3t_name={name}")
        assert (answer.status_code, answer.content) == (200, bytes(8))


@_step("B")
async def _clear_and_delete(api: Api, generation: str) -> None:
    dataset = await api.add_dataset()
    await api.upload(dataset, 0, CONTENTS)
    for removed in (1, 0):
        cleared = await api.done("POST", "/api/v1/datas3ts/clear", {"name": dataset})
        check_shape(cleared, SHAPES["B"]["clear"])
        assert cleared == {"dataranges_deleted": removed, "objects_scheduled": 2 * removed}
    body = {"datas3t_name": dataset, "first_datapoint": 0, "last_datapoint": 10}
    assert await api.done("POST", "/api/v1/download", body) == {"download_segments": []}
    await api.upload(dataset, 0, CONTENTS[:2])
    await api.done("POST", "/api/v1/datas3ts/clear", {"name": dataset})
    assert await api.done("DELETE", "/api/v1/datas3ts", {"name": dataset}) == {}
    assert dataset not in [one["datas3t_name"] for one in await api.done("GET", "/api/v1/datas3ts")]


@_step("B")
async def _delete_datarange(api: Api, generation: str) -> None:
    dataset = await api.add_dataset()
    for first in (0, 5):
        await api.upload(dataset, first, CONTENTS)
    body = {"datas3t_name": dataset, "first_datapoint_key": 0, "last_datapoint_key": 4}
    answer = await api.send("POST", "/api/v1/datarange/delete", body)
    assert (answer.status_code, answer.content) == (200, b"")
    left = await api.done("GET", f"/api/v1/dataranges?datas3t_name={dataset}")
    assert [one["min_datapoint_key"] for one in left["dataranges"]] == [5]


@_step("B")
async def _aggregate(api: Api, generation: str) -> None:
    """The client fetches, merges and puts; then once more, cancelled."""
    dataset = await api.add_dataset()
    for first in (0, 5, 10):
        await api.upload(dataset, first, CONTENTS)
    asked = {"datas3t_name": dataset, "first_datapoint_index": 0, "last_datapoint_index": 9}
    grant = await api.done("POST", "/api/v1/aggregate", asked)
    check_shape(grant, SHAPES["B"]["aggregate"])
    sources = grant["source_datarange_download_urls"]
    assert [one["min_datapoint_key"] for one in sources] == [0, 5]
    for one in sources:
        assert len((await api.urls.get(one["presigned_data_url"], None))[1]) == one["size_bytes"]
        assert (await api.urls.get(one["presigned_index_url"], None))[1]
    tar, index = go_archive(0, CONTENTS * 2)
    tags = await api.put(grant, tar, index)
    body = {"aggregate_upload_id": grant["aggregate_upload_id"], "upload_ids": tags or None}
    for _ in range(2):
        answer = await api.send("POST", "/api/v1/aggregate/complete", body)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == PLAIN
    listed = await api.done("GET", f"/api/v1/dataranges?datas3t_name={dataset}")
    assert [one["max_datapoint_key"] for one in listed["dataranges"]] == [9, 14]
    assert len(await api.download(dataset, 0, 14)) == 15
    asked = {"datas3t_name": dataset, "first_datapoint_index": 0, "last_datapoint_index": 14}
    grant = await api.done("POST", "/api/v1/aggregate", asked)
    for _ in range(2):
        body = {"aggregate_upload_id": grant["aggregate_upload_id"]}
        answer = await api.send("POST", "/api/v1/aggregate/cancel", body)
        assert (answer.status_code, answer.content) == (200, b"")
    made = await api.done("POST", "/api/v1/aggregate/run", asked)
    check_shape(made, _DATARANGE)
    assert (made["min_datapoint_key"], made["max_datapoint_key"]) == (0, 14)
    assert len(await api.download(dataset, 0, 14)) == 15


@_step("B")
async def _import(api: Api, generation: str) -> None:
    found = await api.done("POST", "/api/v1/datas3ts/import", {"bucket_name": "main"})
    check_shape(found, SHAPES["B"]["import"])
    assert (found["imported_datas3ts"], found["imported_count"]) == ([], 0)


@_step("AB")
async def _head(api: Api, generation: str) -> None:
    """GET routes answer HEAD, with the same headers and nothing else."""
    for path in ("/api/v1/buckets", "/api/v1/datas3ts"):
        got, head = await api.send("GET", path), await api.send("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"]


# -- what does not ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """A request that must fail, with which status, and with which words for the Go command line."""

    name: str
    method: str
    path: str
    status: int
    body: Json = None
    words: tuple[str, ...] = ()
    raw: bytes | None = None


_START = "/api/v1/upload-datarange"
_UPLOADED = {
    "datas3t_name": EMPTY,
    "first_datapoint_index": 0,
    "number_of_datapoints": 5,
    "data_size": 6144,
}
_WANTED = {"datas3t_name": FILLED, "first_datapoint": 0, "last_datapoint": 4}
_MERGED = {"datas3t_name": FILLED, "first_datapoint_index": 0, "last_datapoint_index": 4}
_GONE = {"datas3t_name": FILLED, "first_datapoint_key": 0, "last_datapoint_key": 3}


def _starts() -> list[Refused]:
    """Every field of a start, missing, of another type, out of range."""
    found = []
    for name in _UPLOADED:
        left = {key: value for key, value in _UPLOADED.items() if key != name}
        found.append(Refused(f"start without {name}", "POST", _START, 400, left))
        found.append(Refused(f"start with null {name}", "POST", _START, 400, {**left, name: None}))
        found.append(Refused(f"start with a list as {name}", "POST", _START, 400, {**left, name: [1]}))
        if name == "datas3t_name":
            found.append(Refused("start with a number as name", "POST", _START, 400, {**left, name: 5}))
            continue
        for text, status in (
            ("1.5", 400),
            ("1.0", 400),
            ("1e3", 400),
            ('"5"', 400),
            ("true", 400),
            ("NaN", 400),
            ("-1", 422),
            (f"{BEYOND}", 422),
            (f"{2**64}", 422),
            ("9" * 4000, 422),
            ("9" * 5000, 400),  # more digits than the parser reads
        ):
            raw = b'{"datas3t_name": "empty", "first_datapoint_index": 0, "number_of_datapoints": 5, '
            raw += b'"data_size": 6144, "%s": %s}' % (name.encode(), text.encode())  # the last one wins
            found.append(
                Refused(f"start with {name} {text[:20]} {len(text)}", "POST", _START, status, raw=raw)
            )
    return found


REFUSED: list[Refused] = [
    *_starts(),
    # JSON
    *(
        Refused(f"JSON {raw[:12]!r}", "POST", "/api/v1/download", 400, raw=raw)
        for raw in (
            b"",
            b" \n",
            b"null",
            b"[]",
            b"5",
            b'"text"',
            b"{",
            b"{'name': 1}",
            b'{"datas3t_name": "\xff"}',
            b'{"datas3t_name": "\\ud800", "first_datapoint": 0, "last_datapoint": 1}',
            b"[" * 100_000,
            b'{"a":' * 5_000,
            b"name=x&bucket=y",
            b"\xef\xbb\xbf{}",
            b"{} {}",
        )
    ),
    # Buckets
    Refused("bucket of a taken name", "POST", "/api/v1/buckets", 409, "BUCKET"),
    Refused("bucket without a name", "POST", "/api/v1/buckets", 422, {"BUCKET": {"name": ""}}),
    Refused("bucket with a bad name", "POST", "/api/v1/buckets", 422, {"BUCKET": {"name": "a/b"}}),
    Refused("bucket with a newline", "POST", "/api/v1/buckets", 422, {"BUCKET": {"name": "a\n"}}),
    Refused(
        "bucket without endpoint", "POST", "/api/v1/buckets", 422, {"BUCKET": {"name": "x", "endpoint": ""}}
    ),
    Refused("bucket without bucket", "POST", "/api/v1/buckets", 422, {"BUCKET": {"name": "x", "bucket": ""}}),
    Refused(
        "bucket with TLS in words", "POST", "/api/bucket", 400, {"BUCKET": {"name": "x", "use_tls": "yes"}}
    ),
    # Datasets
    Refused("dataset of a taken name", "POST", "/api/v1/datas3ts", 409, {"name": FILLED, "bucket": "main"}),
    Refused("dataset in no bucket", "POST", "/api/datas3t", 404, {"name": "new", "bucket": "nowhere"}),
    Refused("dataset without a name", "POST", "/api/v1/datas3ts", 422, {"name": "", "bucket": "main"}),
    Refused("dataset without a bucket", "POST", "/api/v1/datas3ts", 422, {"name": "new", "bucket": ""}),
    Refused("dataset with a bad name", "POST", "/api/v1/datas3ts", 422, {"name": "../x", "bucket": "main"}),
    Refused("clear of nothing", "POST", "/api/v1/datas3ts/clear", 404, {"name": "nobody"}),
    Refused("clear without a name", "POST", "/api/v1/datas3ts/clear", 400, {}),
    Refused(
        "delete of a full dataset",
        "DELETE",
        "/api/v1/datas3ts",
        409,
        {"name": FILLED},
        (f"cannot delete datas3t {FILLED}", "contains"),
    ),
    Refused("delete of nothing", "DELETE", "/api/v1/datas3ts", 404, {"name": "nobody"}, ("does not exist",)),
    Refused("delete of a bad name", "DELETE", "/api/v1/datas3ts", 422, {"name": "a b"}),
    Refused("import of nothing", "POST", "/api/v1/datas3ts/import", 404, {"bucket_name": "nowhere"}),
    # Uploads
    *(
        Refused(
            f"start over {first}-{first + count - 1}",
            "POST",
            _START,
            409,
            {
                **_UPLOADED,
                "datas3t_name": FILLED,
                "first_datapoint_index": first,
                "number_of_datapoints": count,
                "data_size": 1 << 20,
            },
            ("datarange overlaps with existing dataranges",),
        )
        for first, count in ((0, 5), (4, 1), (3, 4), (9, 2), (5, 20))
    ),
    Refused("start in nothing", "POST", _START, 404, {**_UPLOADED, "datas3t_name": "nobody"}),
    Refused("start in no name", "POST", _START, 422, {**_UPLOADED, "datas3t_name": ""}),
    Refused("start of nothing", "POST", _START, 422, {**_UPLOADED, "number_of_datapoints": 0}),
    Refused("start of no bytes", "POST", _START, 422, {**_UPLOADED, "data_size": 0}),
    Refused(
        "start beyond the last key",
        "POST",
        _START,
        422,
        {**_UPLOADED, "first_datapoint_index": BEYOND - 4, "number_of_datapoints": 5},
    ),
    Refused("start with a tiny part size", "POST", _START, 422, {**_UPLOADED, "part_size": 1}),
    *(
        Refused(f"{verb} of no upload", "POST", f"{_START}/{verb}", 404, {"datarange_upload_id": UNKNOWN})
        for verb in ("complete", "cancel", "resume")
    ),
    Refused("complete without an id", "POST", f"{_START}/complete", 400, {}),
    Refused("complete of id 0", "POST", f"{_START}/complete", 422, {"datarange_upload_id": 0}),
    Refused(
        "complete with an ETag that is a number",
        "POST",
        f"{_START}/complete",
        400,
        {"datarange_upload_id": UNKNOWN, "upload_ids": [1]},
    ),
    Refused(
        "complete with an endless ETag",
        "POST",
        f"{_START}/complete",
        422,
        {"datarange_upload_id": UNKNOWN, "upload_ids": ["x" * 10_000]},
    ),
    # Downloads
    Refused("download from nothing", "POST", "/api/v1/download", 404, {**_WANTED, "datas3t_name": "nobody"}),
    Refused("download without a name", "POST", "/api/v1/download", 422, {**_WANTED, "datas3t_name": ""}),
    Refused("download backwards", "POST", "/api/v1/download", 422, {**_WANTED, "first_datapoint": 5}),
    Refused("download beyond", "POST", "/api/v1/download", 422, {**_WANTED, "last_datapoint": BEYOND}),
    Refused(
        "download of a gap",
        "POST",
        "/api/v1/download",
        404,
        {"datas3t_name": FILLED, "first_datapoint": 5, "last_datapoint": 9},
        ("no dataranges found for datapoints 5-9 in filled",),
    ),
    # Dataranges
    Refused("dataranges of no name", "GET", "/api/v1/dataranges", 400),
    Refused("bitmap of no name", "GET", "/api/v1/datapoints-bitmap", 400),
    Refused("dataranges that must exist", "GET", "/api/v1/dataranges?datas3t_name=no&must_exist=true", 404),
    Refused(
        "delete half a datarange",
        "POST",
        "/api/v1/datarange/delete",
        404,
        _GONE,
        ("failed to find datarange",),
    ),
    Refused(
        "delete of nobody's", "POST", "/api/v1/datarange/delete", 404, {**_GONE, "datas3t_name": "nobody"}
    ),
    Refused("delete backwards", "POST", "/api/v1/datarange/delete", 422, {**_GONE, "first_datapoint_key": 4}),
    # Aggregates
    Refused("aggregate of one", "POST", "/api/v1/aggregate", 422, _MERGED, ("at least two",)),
    Refused(
        "aggregate over a gap",
        "POST",
        "/api/v1/aggregate",
        422,
        {**_MERGED, "last_datapoint_index": 14},
        ("not fully covered",),
    ),
    Refused("aggregate of nobody's", "POST", "/api/v1/aggregate", 404, {**_MERGED, "datas3t_name": "nobody"}),
    Refused("aggregate backwards", "POST", "/api/v1/aggregate", 422, {**_MERGED, "first_datapoint_index": 5}),
    Refused(
        "aggregate here over a gap",
        "POST",
        "/api/v1/aggregate/run",
        422,
        {**_MERGED, "last_datapoint_index": 14},
    ),
    *(
        Refused(
            f"{verb} of no aggregate",
            "POST",
            f"/api/v1/aggregate/{verb}",
            404,
            {"aggregate_upload_id": UNKNOWN},
        )
        for verb in ("complete", "cancel")
    ),
    # Paths and methods
    *(
        Refused(f"{method} {path}", method, path, 404)
        for method, path in (
            ("GET", "/"),
            ("GET", "/api/v1/nothing"),
            ("POST", "/api/v1/buckets/"),
            ("GET", "//api/v1/buckets"),
            ("GET", "/api/v1/datas3ts/x"),
        )
    ),
    *(
        Refused(f"{method} {path}", method, path, 405)
        for method, path in (
            ("GET", "/api/v1/upload-datarange"),
            ("POST", "/api/v1/dataranges"),
            ("PUT", "/api/v1/buckets"),
            ("DELETE", "/api/bucket"),
            ("PATCH", "/api/v1/datas3ts"),
            ("OPTIONS", "/api/v1/download"),
            ("TRACE", "/api/v1/download"),
        )
    ),
]


async def check_refused(api: Api, case: Refused) -> None:
    """Fail unless *case* is refused as it says, in JSON, and in plain words for who wants these."""
    body = case.body
    if body == "BUCKET":
        body = {"name": "main", **api.bucket}
    elif isinstance(body, dict) and "BUCKET" in body:
        body = {**api.bucket, **body["BUCKET"]}
    answer = await api.send(case.method, case.path, body, raw=case.raw)
    assert answer.status_code == case.status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == case.status
    assert all(words in problem["detail"] for words in case.words), problem["detail"]
    assert api.bucket["secret_key"] not in answer.text
    if case.status == 405:
        assert case.method not in answer.headers["allow"].split(", ")
        assert answer.headers["allow"]
    answer = await api.send(case.method, case.path, body, raw=case.raw, headers={"accept": "text/plain"})
    assert answer.status_code == case.status
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.endswith("\n")
    assert all(words in answer.text for words in case.words), answer.text

"""Who may do what: every route with no token, wrong ones, one for reading, one for others, the right one."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import trio.testing

from datas3tfs.api.application import DOCUMENTED
from datas3tfs.api.operations import Operation, Scope
from datas3tfs.api.tokens import Access, digest_of, new_token
from tests.harness.api import Json, MemoryApi, go_archive, open_memory_api
from tests.harness.conformance import CONTENTS, EMPTY, FILLED, prepare

GUARDED = Access("token", is_loopback=False)
ELSEWHERE = "203.0.113.9:8765"


@dataclass
class Doors:
    """An API that asks for tokens, and one token of each kind."""

    api: MemoryApi
    tokens: dict[str, str]
    upload_id: int  # in flight, in FILLED
    aggregate_id: int

    async def send(self, method: str, path: str, body: Json, token: str | None) -> int:
        """Return the status of a request with the *token* of that kind."""
        headers = {} if token is None else {"authorization": f"Bearer {self.tokens[token]}"}
        return (await self.api.send(method, path, body, headers=headers)).status_code


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    """The API with something in it, made by somebody who may do everything."""
    async with open_memory_api(GUARDED, host=ELSEWHERE, allow=("127.0.0.1",)) as api:
        tokens = {
            "all": await api.add_token("all"),
            "reader": await api.add_token("reader", can_write=False),
            "filled": await api.add_token("filled", datasets=[FILLED]),
            "filled-reader": await api.add_token("filled-reader", can_write=False, datasets=[FILLED]),
            "empty": await api.add_token("empty", datasets=[EMPTY, "other"]),
            "wrong": new_token(),
            "garbage": "x" * 5000,
            "injection": "d3t_' OR 1=1 --",
        }
        api.http.headers["authorization"] = f"Bearer {tokens['all']}"
        await prepare(api)
        await api.upload(FILLED, 15, CONTENTS)
        grant = await api.start(FILLED, 100, 5, len(go_archive(100, CONTENTS)[0]))
        merged = {"datas3t_name": FILLED, "first_datapoint_index": 10, "last_datapoint_index": 19}
        begun = await api.done("POST", "/api/v1/aggregate", merged)
        del api.http.headers["authorization"]
        yield Doors(api, tokens, grant["datarange_id"], begun["aggregate_upload_id"])


def request_for(operation: Operation[Any], path: str, doors: Doors) -> tuple[str, Json]:
    """Return path and body of a request that would be answered, for dataset FILLED where there is one."""
    upload = {"datarange_upload_id": doors.upload_id}
    aggregate = {"aggregate_upload_id": doors.aggregate_id}
    bodies: dict[str, Json] = {
        "AddBucket": {"name": "second", **doors.api.bucket, "bucket": "second"},
        "ImportBucket": {"bucket_name": "main"},
        "AddDataset": {"name": "new", "bucket": "main"},
        "DatasetReference": {"name": FILLED if "clear" in path else EMPTY},
        "StartUpload": {
            "datas3t_name": FILLED,
            "first_datapoint_index": 1000,
            "number_of_datapoints": 1,
            "data_size": 2048,
        },
        "CompleteUpload": upload,
        "UploadReference": upload,
        "Download": {"datas3t_name": FILLED, "first_datapoint": 0, "last_datapoint": 9},
        "DeleteDatarange": {"datas3t_name": FILLED, "first_datapoint_key": 0, "last_datapoint_key": 4},
        "Aggregate": {"datas3t_name": FILLED, "first_datapoint_index": 10, "last_datapoint_index": 19},
        "CompleteAggregate": aggregate,
        "AggregateReference": aggregate,
    }
    if operation.method == "GET":
        return (f"{path}?datas3t_name={FILLED}" if operation.names else path), None
    return path, bodies[operation.takes.__name__]


ROUTES = [
    *((operation, path) for operation in DOCUMENTED for path in operation.paths),
]
NAMES = [f"{operation.method} {path}" for operation, path in ROUTES]


def verdicts(operation: Operation[Any]) -> dict[str | None, bool]:
    """Return which tokens get past the door: the rule once more, in other words than the code's."""
    if operation.scope is Scope.OPEN:
        return dict.fromkeys((None, "all", "reader", "filled", "filled-reader", "empty", "wrong"), True)
    is_write = operation.method != "GET" and not operation.paths[0].endswith("/download")
    is_everything = operation.paths[0] in ("/api/v1/buckets", "/api/v1/datas3ts/import") or (
        operation.paths[0] == "/api/v1/datas3ts" and operation.method != "GET"
    )
    is_list = operation.paths[0] == "/api/v1/datas3ts" and operation.method == "GET"
    return {
        None: False,
        "wrong": False,
        "garbage": False,
        "injection": False,
        "all": True,
        "reader": not is_write,
        "filled": not is_everything,
        "filled-reader": not is_everything and not is_write,
        "empty": is_list,
    }


@pytest.mark.parametrize(("operation", "path"), ROUTES, ids=NAMES)
async def test_every_route_and_every_token(
    doors: Doors, operation: Operation[Any], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "datas3tfs")
    where, body = request_for(operation, path, doors)
    for token, passes in sorted(verdicts(operation).items(), key=lambda item: item[1]):
        status = await doors.send(operation.method, where, body, token)
        if passes:
            assert status not in (401, 403, 429, 500), f"{token}: {status}"
        else:
            expected = 401 if token in (None, "wrong", "garbage", "injection") else 403
            assert status == expected, f"{token}: {status}"
    assert not [token for token in doors.tokens.values() if token in caplog.text]


async def test_figures_are_for_any_token(doors: Doors) -> None:
    assert await doors.send("GET", "/metrics", None, None) == 401
    assert await doors.send("GET", "/metrics", None, "wrong") == 401
    for token in ("all", "reader", "filled", "filled-reader", "empty"):
        assert await doors.send("GET", "/metrics", None, token) == 200


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_documents_are_for_everybody_and_say_nothing_of_what_is_there(doors: Doors, path: str) -> None:
    """A browser that opens them has no token to show; a token is asked for by what they describe."""
    answer = await doors.api.send("GET", path)
    assert answer.status_code == 200
    assert not [name for name in (FILLED, EMPTY, "all", *doors.tokens.values()) if f'"{name}"' in answer.text]
    for token in ("wrong", "all", "filled-reader"):
        assert await doors.send("GET", path, None, token) == 200


async def test_health_is_for_everybody_from_anywhere(doors: Doors) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await doors.api.send(
            "GET", path, headers={"host": "10.0.0.7:8765", "origin": "http://evil.test"}
        )
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_lists_show_what_a_token_is_for(doors: Doors) -> None:
    for token, shown in (("all", [EMPTY, FILLED]), ("filled", [FILLED]), ("empty", [EMPTY])):
        headers = {"authorization": f"bearer  {doors.tokens[token]} "}
        found = (await doors.api.send("GET", "/api/v1/datas3ts", headers=headers)).json()
        assert [one["datas3t_name"] for one in found] == shown


async def test_uploads_of_others_are_out_of_reach_even_published_or_given_up(doors: Doors) -> None:
    """The right to a dataset comes with the upload's id, whatever has become of the upload."""
    api, path = doors.api, "/api/v1/upload-datarange/complete"
    published = await api.catalog.dataranges(next(iter(api.catalog.all_datasets.values())).id)
    assert published == []  # EMPTY
    body = {"datarange_upload_id": doors.upload_id}
    assert await doors.send("POST", "/api/v1/upload-datarange/cancel", body, "empty") == 403
    assert await doors.send("POST", "/api/v1/upload-datarange/cancel", body, "filled") == 200
    assert await doors.send("POST", path, body, "all") == 409
    assert await doors.send("POST", path, {"datarange_upload_id": 10**9}, "empty") == 404
    own = {"authorization": f"Bearer {doors.tokens['all']}"}
    api.http.headers.update(own)
    grant = await api.upload(FILLED, 200, CONTENTS)
    del api.http.headers["authorization"]
    body = {"datarange_upload_id": grant["datarange_id"]}
    assert await doors.send("POST", path, body, "empty") == 403
    assert await doors.send("POST", path, body, "filled") == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Token {}",
        "{}",
        "Bearer {}x",
        "Bearer {} {}",
        "Bearer d3t_",
    ],
)
async def test_other_headers_are_no_tokens(doors: Doors, header: str) -> None:
    given = header.replace("{}", doors.tokens["all"])
    answer = await doors.api.send("GET", "/api/v1/datas3ts", headers={"authorization": given})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert doors.tokens["all"] not in answer.text


@pytest.mark.parametrize(
    ("access", "has_tokens", "asks"),
    [
        (Access("auto", is_loopback=True), False, False),
        (Access("auto", is_loopback=True), True, True),
        (Access("auto", is_loopback=False), False, True),
        (Access("token", is_loopback=True), False, True),
        (Access("none", is_loopback=True), True, False),
        (Access("none", is_loopback=False), True, False),
        (Access("token", is_loopback=False, is_trusted=True), True, False),
    ],
)
async def test_when_tokens_are_asked_for(access: Access, has_tokens: bool, asks: bool) -> None:
    async with open_memory_api(access) as api:
        if has_tokens:
            await api.add_token("somebody")
        assert (await api.send("GET", "/api/v1/datas3ts")).status_code == (401 if asks else 200)


async def test_a_removed_token_and_a_first_one_count_within_five_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_memory_api(Access("auto", is_loopback=True)) as api:
        assert (await api.send("GET", "/api/v1/datas3ts")).status_code == 200
        header = {"authorization": f"Bearer {await api.add_token('somebody')}"}
        await trio.sleep(5)
        assert (await api.send("GET", "/api/v1/datas3ts")).status_code == 401
        assert (await api.send("GET", "/api/v1/datas3ts", headers=header)).status_code == 200
        other = {"authorization": f"Bearer {await api.add_token('other')}"}
        assert (
            await api.send("GET", "/api/v1/datas3ts", headers=other)
        ).status_code == 200  # a new one at once
        await api.catalog.tokens.remove("somebody")
        await trio.sleep(5)
        assert (await api.send("GET", "/api/v1/datas3ts", headers=header)).status_code == 401


async def test_ten_wrong_tokens_close_the_door_for_who_has_no_right_one(
    mock_clock: trio.testing.MockClock, doors: Doors
) -> None:
    """The eleventh is not even looked up; who came with a right token before is let in from there."""
    assert await doors.send("GET", "/api/v1/datas3ts", None, "filled") == 200
    for _ in range(10):
        assert await doors.send("GET", "/api/v1/datas3ts", None, "wrong") == 401
    answer = await doors.api.send(
        "GET", "/api/v1/datas3ts", headers={"authorization": f"Bearer {new_token()}"}
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    assert await doors.send("GET", "/api/v1/datas3ts", None, "filled") == 200
    assert await doors.send("GET", "/api/v1/datas3ts", None, "reader") == 429
    assert await doors.send("GET", "/healthz", None, None) == 200
    mock_clock.jump(60)
    assert await doors.send("GET", "/api/v1/datas3ts", None, "reader") == 200


def test_tokens_are_long_and_never_the_same() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert {len(token) for token in made} == {47}
    assert len(digest_of(made.pop())) == 32


REFUSED_PAGES: Sequence[dict[str, str]] = [
    {"host": "evil.example"},
    {"host": "rebound.evil.example:8765"},
    {"host": "10.0.0.5:8765"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", REFUSED_PAGES, ids=str)
async def test_pages_cannot_use_a_server_that_asks_for_no_token(headers: dict[str, str]) -> None:
    async with open_memory_api(Access("auto", is_loopback=True)) as api:
        for method, path in (("GET", "/api/v1/buckets"), ("POST", "/api/v1/datas3ts"), ("GET", "/metrics")):
            answer = await api.send(method, path, headers=headers)
            assert answer.status_code == 403, path
        token = await api.add_token("somebody")
    async with open_memory_api(Access("token", is_loopback=True)) as api:
        token = await api.add_token("somebody")
        answer = await api.send(
            "GET", "/api/v1/buckets", headers={"authorization": f"Bearer {token}", **headers}
        )
        assert answer.status_code == 200  # no page has the token

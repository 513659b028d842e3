"""Bodies, times and numbers have limits, and whoever runs into one is told which."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from datas3tfs.api import application, datasets
from datas3tfs.api.bodies import BODY_LIMIT
from datas3tfs.api.operations import LONG, Call, Operation
from datas3tfs.api.running import Places
from datas3tfs.core.model import BucketSpec
from datas3tfs.errors import Corrupt, Unavailable
from datas3tfs.wire import requests
from tests.harness.api import Json, MemoryApi, open_memory_api

PATH = "/api/v1/datas3ts"


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    async def body() -> AsyncGenerator[bytes]:
        yield pytest.fail("it was read")

    async with open_memory_api() as api:
        status, detail = await call(api, {"content-length": str(BODY_LIMIT + 1)}, body())
        assert (status, f"{BODY_LIMIT} bytes" in detail) == (413, True)
        status, _ = await call(api, {"content-length": "many"}, body())
        assert status == 400


async def call(api: MemoryApi, headers: dict[str, str], body: AsyncGenerator[bytes]) -> tuple[int, str]:
    """Call the application as a server does, which hands the body over when it is asked for."""
    sent: list[Json] = []

    async def receive() -> Json:
        try:
            return {"type": "http.request", "body": await anext(body), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Json) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"host", b"localhost"), *((k.encode(), v.encode()) for k, v in headers.items())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    async with aclosing(body):
        await api.app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])["detail"]


async def test_of_a_body_without_a_length_no_more_than_the_limit_is_read() -> None:
    given = 0

    async def body() -> AsyncGenerator[bytes]:
        nonlocal given
        while True:
            given += 65_536
            yield bytes(65_536)

    async with open_memory_api() as api:
        status, _ = await call(api, {}, body())
    assert (status, given) == (413, BODY_LIMIT + 65_536)


async def test_the_largest_body_is_read() -> None:
    async with open_memory_api() as api:
        text = json.dumps({"name": "x", "bucket": "main"})
        answer = await api.send("POST", PATH, raw=text.encode() + b" " * (BODY_LIMIT - len(text)))
        assert (answer.status_code, answer.json()["detail"].startswith("bucket main")) == (404, True)


async def test_ten_thousand_etags_fit() -> None:
    async with open_memory_api() as api:
        body = {"datarange_upload_id": 5, "upload_ids": ['"' + "f" * 100 + '"'] * 10_000}
        answer = await api.send("POST", "/api/v1/upload-datarange/complete", body)
        assert answer.status_code == 404
        body["upload_ids"] = ["x"] * 10_001
        answer = await api.send("POST", "/api/v1/upload-datarange/complete", body)
        assert answer.status_code == 422


async def test_a_slow_client_is_told_so(autojump_clock: trio.testing.MockClock) -> None:
    async def body() -> AsyncGenerator[bytes]:
        while True:
            await trio.sleep(1)
            yield b" "

    async with open_memory_api() as api:
        begun = trio.current_time()
        assert (await call(api, {}, body()))[0] == 408
        assert trio.current_time() - begun == 60


async def test_what_takes_too_long_ends(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(spec: BucketSpec) -> None:
        await trio.sleep_forever()

    async with open_memory_api(try_bucket=hang) as api:
        answer = await api.send("POST", "/api/v1/buckets", {"name": "b", **api.bucket})
        assert (answer.status_code, "60 s" in answer.json()["detail"]) == (503, True)
        assert answer.headers["retry-after"]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Make the list of datasets wait, and clearing (which counts as heavy then) as well."""
    event = trio.Event()

    async def wait(call: Call, given: requests.Nothing) -> list[object]:
        await event.wait()
        return []

    def waiting(operation: Operation[Any]) -> Operation[Any]:
        if operation not in datasets.OPERATIONS or operation.method == "DELETE":
            return operation
        return replace(operation, run=wait, gives=None, is_heavy=operation.method == "POST", status=200)

    changed = tuple(waiting(operation) for operation in application.DOCUMENTED)
    monkeypatch.setattr(application, "DOCUMENTED", changed)
    return event


async def test_more_than_so_many_at_once_are_turned_away_but_health_is_not(gate: trio.Event) -> None:
    async with open_memory_api(places=Places(requests=3)) as api, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(api.done, "GET", PATH)
        await trio.testing.wait_all_tasks_blocked()
        answer = await api.send("GET", PATH)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert (await api.send("GET", "/healthz")).status_code == 200
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await api.send("GET", PATH)).status_code == 200


async def test_heavy_ones_wait_for_each_other(gate: trio.Event) -> None:
    statuses: list[int] = []

    async def clear(api: MemoryApi) -> None:
        statuses.append((await api.send("POST", f"{PATH}/clear", {"name": "x"})).status_code)

    async with open_memory_api(places=Places(heavy=2)) as api, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(clear, api)
        await trio.testing.wait_all_tasks_blocked()
        assert statuses == []
        assert (await api.send("GET", "/api/v1/buckets")).status_code == 200  # nobody else waits
        gate.set()
    assert statuses == [200] * 5


async def test_merges_and_imports_keep_no_upload_from_being_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = trio.Event()

    def waiting(operation: Operation[Any]) -> Operation[Any]:
        async def wait(call: Call, given: object) -> None:
            await over.wait()

        return replace(operation, run=wait, gives=None) if operation.seconds > LONG else operation

    slow = tuple(map(waiting, application.DOCUMENTED))
    monkeypatch.setattr(application, "DOCUMENTED", slow)
    merge = {"datas3t_name": "photos", "first_datapoint_index": 0, "last_datapoint_index": 9}
    async with open_memory_api() as api:
        await api.add_bucket()
        await api.add_dataset("photos")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(api.done, "POST", "/api/v1/aggregate/run", merge)
                nursery.start_soon(api.done, "POST", "/api/v1/datas3ts/import", {"bucket_name": "main"})
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                await api.upload("photos", 0, [b"content"])
            over.set()


async def test_a_place_is_given_back_whatever_happens() -> None:
    async with open_memory_api(places=Places(requests=1)) as api:
        for body in (None, {"name": "x", "bucket": "y"}, {"name": 5}):
            for _ in range(3):
                assert (await api.send("POST", PATH, body)).status_code in (400, 404)


# -- figures and logs -----------------------------------------------------------------------------


async def figures(api: MemoryApi) -> dict[str, float]:
    """Return name{labels} → value of what /metrics says."""
    text = (await api.send("GET", "/metrics")).text
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_figures_by_route_never_by_what_a_client_chose() -> None:
    async with open_memory_api() as api:
        before = len(await figures(api))
        for number in range(50):
            await api.send("GET", f"/nothing-{number}")
            await api.send(f"METHOD{number}", "/api/v1/buckets")
            await api.send("GET", f"/api/v1/dataranges?datas3t_name=name-{number}")
        found = await figures(api)
        assert len(found) < before + 100
        assert not [name for name in found if "name-" in name or "nothing" in name or "METHOD" in name]
        total = "datas3tfs_http_requests_total"
        assert found[f"{total}[('method', 'GET'), ('route', '(none)'), ('status', '404')]"] == 50
        assert found[f"{total}[('method', '(other)'), ('route', '/api/v1/buckets'), ('status', '405')]"] == 50
        assert found[f"{total}[('method', 'GET'), ('route', '/api/v1/dataranges'), ('status', '200')]"] == 50
        assert found["datas3tfs_http_request_seconds_count[('route', '/api/v1/dataranges')]"] == 50
        assert found["datas3tfs_http_requests_running[]"] == 1  # the one that asks


async def test_the_products_counters_are_figures_too() -> None:
    async with open_memory_api() as api:
        await api.add_bucket()
        await api.add_dataset("photos")
        await api.upload("photos", 0, [b"x"])
        await api.download("photos", 0, 0)
        assert (await figures(api))["datas3tfs_cache_index_miss_total[]"] == 1


async def test_the_log_has_routes_and_names_of_tokens_and_nothing_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "httpx")  # the test's own, which logs the URLs it asks
    caplog.set_level(logging.DEBUG)
    async with open_memory_api() as api:
        await api.add_bucket()
        await api.add_dataset("photos")
        grant = await api.upload("photos", 0, [b"x"])
        await api.send("GET", "/api/v1/dataranges?datas3t_name=photos&secret=hunter2")
        await api.send("GET", "/secret-path-hunter2")
        await api.send("POST", "/api/v1/buckets", {"name": "x\x1b[2J", **api.bucket})
        await api.send("GET", "/api/v1/buckets", headers={"authorization": "Bearer hunter2"})
        await api.send("POST", "/api/v1/buckets", raw=b'{"secret_key": "hunter2", "name": 5}')
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("datas3tfs.api")]
    assert any("GET /api/v1/dataranges 200" in line for line in lines)
    assert any("GET (no such path) 404" in line for line in lines)
    for secret in (
        "hunter2",
        api.bucket["access_key"],
        grant["presigned_index_put_url"],
        "signature=",
        "\x1b",
    ):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("S3 is away"), 503), (Corrupt("it is damaged"), 500)]
)
async def test_what_is_not_the_clients_fault_is_logged(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_memory_api() as api:

        async def fail() -> None:
            await trio.lowlevel.checkpoint()
            raise error

        monkeypatch.setattr(api.catalog, "datasets", fail)
        answer = await api.send("GET", PATH)
    assert (answer.status_code, answer.json()["detail"]) == (status, str(error))
    assert [record.getMessage() for record in caplog.records] == [str(error)]
    caplog.clear()


async def test_readiness_needs_postgres_and_life_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_memory_api() as api:
        assert (await api.send("GET", "/readyz")).status_code == 200

        async def fail(*_: object) -> None:
            await trio.lowlevel.checkpoint()
            raise Unavailable("postgresql://user:hunter2@host is away")

        for name in ("installation", "find"):
            with monkeypatch.context() as patch:
                patch.setattr(api.catalog.tokens if name == "find" else api.catalog, name, fail)
                answer = await api.send("GET", "/readyz")
                assert (answer.status_code, "hunter2" in answer.text) == (503, False)
                assert (await api.send("GET", "/healthz")).status_code == 200


async def test_answers_are_not_kept_nor_guessed_at_nor_framed() -> None:
    async with open_memory_api() as api:
        for path in ("/api/v1/buckets", "/nothing", "/docs", "/healthz"):
            headers = (await api.send("GET", path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"


async def test_a_websocket_is_closed() -> None:
    sent: list[Json] = []

    async def send(message: Json) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    async def receive() -> Json:
        await trio.lowlevel.checkpoint()
        return {"type": "websocket.connect"}

    async with open_memory_api() as api:
        await api.app({"type": "websocket", "path": PATH, "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]

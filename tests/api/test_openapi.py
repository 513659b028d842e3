"""The OpenAPI document is complete and true: whatever fits it or does not, the answers are those it names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, settings
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from datas3tfs.api.application import DOCUMENTED
from datas3tfs.api.operations import Scope
from datas3tfs.wire import requests
from tests.harness.api import Json, MemoryApi, open_memory_api
from tests.harness.conformance import FILLED, prepare

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


async def document() -> Json:
    async with open_memory_api() as api:
        return (await api.send("GET", "/openapi.json")).json()


DOCUMENT = trio.run(document)
Case = schemathesis.Case[Any]
schema = schemathesis.openapi.from_dict(DOCUMENT)


class Served:
    """An API with something in it, in a thread of its own: filling one for each example takes too long."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    async def _serve(self) -> None:
        self._token, self._over = trio.lowlevel.current_trio_token(), trio.Event()
        async with open_memory_api() as self._api:
            await prepare(self._api)
            self._ready.set()
            await self._over.wait()

    def answer_to(self, case: Case) -> httpx.Response:
        """Send a case; half of those that name a dataset name one that exists."""
        if isinstance(case.body, dict):
            for name in {"datas3t_name", "name"} & set(case.body):
                if isinstance(case.body[name], str) and len(str(case.body)) % 2:
                    case.body[name] = FILLED
        request = request_of(case, self._api)
        return trio.from_thread.run(self._api.http.send, request, trio_token=self._token)

    def close(self) -> None:
        """End the thread."""
        self._token.run_sync_soon(self._over.set)
        self._thread.join(10)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The API for all examples, which do change it."""
    opened = Served()
    yield opened
    opened.close()


def request_of(case: Case, api: MemoryApi) -> httpx.Request:
    """Return a case, which speaks requests', as httpx's."""
    given = case.as_transport_kwargs(base_url="http://localhost:8765")
    body: dict[str, Any] = {"json": given["json"]} if given.get("json") is not None else {}
    if isinstance(given.get("data"), bytes | str):
        body = {"content": given["data"]}
    headers = {
        name: value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        for name, value in dict(given.get("headers") or {}).items()
        if name.lower() not in ("host", "origin")
    }
    return api.http.build_request(
        case.method, given["url"], params=given.get("params"), headers=headers, **body
    )


@schema.parametrize()
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@pytest.mark.timeout(200)
def test_what_is_answered_is_what_the_document_says(served: Served, case: Case) -> None:
    answer = served.answer_to(case)
    case.validate_response(answer, checks=CHECKS)


@schema.parametrize()
@settings(
    max_examples=600,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_answered_is_what_the_document_says_whatever_else_is_made_up(
    served: Served, case: Case
) -> None:
    """Other cases each time; a failure says how to have its case again."""
    answer = served.answer_to(case)
    case.validate_response(answer, checks=CHECKS)


def test_the_document_is_valid_and_has_every_path() -> None:
    validate(DOCUMENT)
    paths = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert paths == {(operation.method, path) for operation in DOCUMENTED for path in operation.paths}


def test_every_operation_says_what_it_takes_what_it_needs_and_how_it_fails() -> None:
    for operation in DOCUMENTED:
        for path in operation.paths:
            said = DOCUMENT["paths"][path][operation.method.lower()]
            assert said["summary"]
            assert ("security" in said) == (operation.scope is not Scope.OPEN)
            assert ("requestBody" in said) == (operation.method != "GET")
            assert bool(said.get("parameters")) == (operation.takes is requests.DatasetQuery)
            statuses = set(said["responses"])
            assert statuses >= {str(operation.status), "400", "422", "500", "503"}
            assert statuses >= {str(status) for status in operation.errors}
    names = [item["operationId"] for methods in DOCUMENT["paths"].values() for item in methods.values()]
    assert len(names) == len(set(names))


def test_no_secret_is_in_the_document() -> None:
    text = str(DOCUMENT)
    assert "example" not in text
    assert "hunter2" not in text


async def test_the_page_shows_the_document() -> None:
    async with open_memory_api() as api:
        answer = await api.send("GET", "/docs")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert "openapi.json" in answer.text

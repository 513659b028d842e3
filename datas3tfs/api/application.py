"""The application: all operations under all their paths, and answers for what is none of them.

It owns nothing and starts nothing; it can be called as soon as it is made, as often as one likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import trio
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from datas3tfs.api import (
    aggregates,
    buckets,
    dataranges,
    datasets,
    documents,
    downloads,
    health,
    uploads,
)
from datas3tfs.api.backend import Backend
from datas3tfs.api.metrics import Metrics
from datas3tfs.api.observing import Observed
from datas3tfs.api.operations import Operation
from datas3tfs.api.problems import answer_problem
from datas3tfs.api.running import Places, Runner
from datas3tfs.api.tokens import Access, Guard

DOCUMENTED: tuple[Operation[Any], ...] = (
    *buckets.OPERATIONS,
    *datasets.OPERATIONS,
    *uploads.OPERATIONS,
    *downloads.OPERATIONS,
    *dataranges.OPERATIONS,
    *aggregates.OPERATIONS,
    *health.OPERATIONS,
)


def make_application(backend: Backend, access: Access, places: Places | None = None) -> FastAPI:
    """Return the application over *backend*, for whom *access* lets in."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    metrics = Metrics(backend.counters)
    runner = Runner(backend, Guard(backend.tokens, access), places or Places())
    own = documents.operations(metrics)
    for operation in (*DOCUMENTED, *own):
        _add(app, runner, operation, is_documented=operation not in own)
    _answer_the_rest(app, (*DOCUMENTED, *own))
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(documents.schema_of(app, DOCUMENTED))
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    app.add_middleware(Observed, metrics=metrics)
    return app


def _add(app: FastAPI, runner: Runner, operation: Operation[Any], *, is_documented: bool) -> None:
    handler = runner.handler(operation)
    for path in operation.paths:
        app.add_api_route(
            path,
            handler,
            methods=[operation.method],
            status_code=operation.status,
            summary=operation.summary,
            operation_id=f"{operation.method.lower()}{path.replace('/', '_').replace('-', '_')}",
            response_model=None if operation.gives is bytes else operation.gives,
            response_class=Response,
            responses=documents.responses(operation),
            openapi_extra=documents.extra(operation),
            include_in_schema=is_documented,
        )


def _answer_the_rest(app: FastAPI, operations: Iterable[Operation[Any]]) -> None:
    allowed: dict[str, set[str]] = {}
    for operation in operations:
        methods = {"GET", "HEAD"} if operation.method == "GET" else {operation.method}
        for path in operation.paths:
            allowed.setdefault(path, set()).update(methods)

    async def refuse(request: HttpRequest, exc: Exception) -> Response:
        await trio.lowlevel.checkpoint()
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        headers = None
        if status == 405:
            headers = {"Allow": ", ".join(sorted(allowed.get(request.url.path, ())))}
        detail = "there is nothing at this path" if status == 404 else HTTPStatus(status).phrase
        return answer_problem(status, detail, request.headers.get("accept"), headers)

    app.add_exception_handler(HTTPException, refuse)

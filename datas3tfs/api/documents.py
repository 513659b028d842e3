"""What the API says about itself: OpenAPI, a page to read it, and the figures.

FastAPI makes the document from the routes; bodies and queries are parsed by us (bodies.py), so their schemas
are put in here, and so are the problems that every operation can answer.
"""

from __future__ import annotations

from typing import Any

import trio
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse, Response

from datas3tfs import __version__
from datas3tfs.api.metrics import MEDIA_TYPE, Metrics
from datas3tfs.api.operations import Call, Operation, Scope
from datas3tfs.wire import requests
from datas3tfs.wire.answers import Problem

_REF = "#/components/schemas/{model}"
_BEARER = "bearer"
_ALWAYS = (400, 408, 413, 422, 500, 503)  # what any operation can answer …
_GUARDED = (401, 403, 429)  # … and those that need a token
_TITLE = "datas3tfs"
_DESCRIPTION = (
    "Datasets of numbered files, in indexed TARs on S3. Bulk bytes go through presigned URLs. "
    "Flows, statuses and what differs from the Go servers: docs/API.md."
)


def extra(operation: Operation[Any]) -> dict[str, Any]:
    """Return what FastAPI cannot know of an operation's request."""
    found: dict[str, Any] = {}
    if operation.scope is not Scope.OPEN:
        found["security"] = [{}, {_BEARER: []}]
    if operation.method == "GET":
        found["parameters"] = _parameters(operation.takes)
    else:
        schema = {"$ref": _REF.format(model=operation.takes.__name__)}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def responses(operation: Operation[Any]) -> dict[int | str, dict[str, Any]]:
    """Return what an operation can answer, in words and schemas."""
    statuses = {*_ALWAYS, *operation.errors, *(() if operation.scope is Scope.OPEN else _GUARDED)}
    problem = {
        "application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}},
        "text/plain; charset=utf-8": {"schema": {"type": "string"}},
    }
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": _WORDS[status], "content": problem} for status in sorted(statuses)
    }
    if operation.gives is bytes:
        schema = {"type": "string", "format": "binary"}
        found[operation.status] = {"content": {operation.media_type: {"schema": schema}}}
    return found


_WORDS = {
    400: "The request cannot be understood.",
    401: "A token is needed, or this one is not known.",
    403: "Not with this token, not from there, or never.",
    404: "What is named does not exist.",
    408: "The request did not arrive in time.",
    409: "Somebody else has it, or it has changed meanwhile.",
    413: "The body is too large.",
    422: "What was given breaks a rule.",
    429: "Too many wrong tokens.",
    500: "What is stored is damaged, or this is a bug.",
    503: "Postgres or S3 did not answer, or too much is going on: try again.",
}


def schema_of(app: FastAPI, operations: tuple[Operation[Any], ...]) -> dict[str, Any]:
    """Return the OpenAPI document."""
    document = get_openapi(
        title=_TITLE,
        version=__version__,
        description=_DESCRIPTION,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    models: list[type[BaseModel]] = [Problem, *{operation.takes for operation in operations}]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer"}}
    return document


def _parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": value}
        for name, value in schema.get("properties", {}).items()
    ]


async def _openapi(call: Call, _: requests.Nothing) -> Response:
    await trio.lowlevel.checkpoint()
    return JSONResponse(call.http.app.openapi())


async def _page(call: Call, _: requests.Nothing) -> Response:
    await trio.lowlevel.checkpoint()
    return get_swagger_ui_html(openapi_url="openapi.json", title=_TITLE)


def operations(metrics: Metrics) -> tuple[Operation[Any], ...]:
    """Return the routes of the documents; they are not part of what they describe."""

    async def figures(call: Call, _: requests.Nothing) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(metrics.text(), media_type=MEDIA_TYPE)

    shown = (
        ("/openapi.json", _openapi, Scope.OPEN),  # a browser that reads them has no token yet
        ("/docs", _page, Scope.OPEN),
        ("/metrics", figures, Scope.ANY),
    )
    return tuple(
        Operation(method="GET", paths=(path,), summary=path, takes=requests.Nothing, run=run, scope=scope)
        for path, run, scope in shown
    )

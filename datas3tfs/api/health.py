"""Is it alive, is it of use: for whoever restarts it, and for whoever sends it requests."""

from __future__ import annotations

import trio
from starlette.exceptions import HTTPException

from datas3tfs.api.operations import Call, Operation, Scope
from datas3tfs.errors import Datas3tError
from datas3tfs.wire import answers, requests

_NOBODYS = bytes(32)  # the digest of no token


async def _alive(call: Call, _: requests.Nothing) -> answers.Health:
    await trio.lowlevel.checkpoint()
    return answers.Health(status="ok")


async def _ready(call: Call, _: requests.Nothing) -> answers.Health:
    """Ask Postgres for what only the right schema has."""
    try:
        await call.backend.registry.installation()
        await call.backend.tokens.find(_NOBODYS)
    except Datas3tError as exc:
        raise HTTPException(503, "Postgres does not answer, or has another schema") from exc
    return answers.Health(status="ok")


OPERATIONS = (
    Operation(
        method="GET",
        paths=("/healthz",),
        summary="Say that the server is alive.",
        takes=requests.Nothing,
        run=_alive,
        scope=Scope.OPEN,
        gives=answers.Health,
    ),
    Operation(
        method="GET",
        paths=("/readyz",),
        summary="Say whether Postgres answers and has the right schema.",
        takes=requests.Nothing,
        run=_ready,
        scope=Scope.OPEN,
        gives=answers.Health,
        seconds=10.0,
    ),
)

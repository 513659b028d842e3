"""`datas3tfs serve` with a real Postgres and both S3 servers: held to the same tables as in process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from tests.harness.conformance import GENERATIONS, REFUSED, STEPS, Refused, check_refused, prepare
from tests.harness.mounts import open_stack
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import ServerProcess, fresh_bucket
from tests.harness.server import Server, serving


@pytest.fixture(scope="module", params=["rclone", "moto"])
def server(
    request: pytest.FixtureRequest,
    embedded_postgres: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server with something in it, on each kind of S3."""
    process: ServerProcess = request.getfixturevalue(f"{request.param}_server_process")
    home = tmp_path_factory.mktemp("stack")
    with open_stack(embedded_postgres, fresh_bucket(process), home) as stack, serving(stack) as opened:

        async def fill() -> None:
            async with opened.api() as api:
                await prepare(api)

        trio.run(fill)
        yield opened


@pytest.mark.parametrize(("generation", "name"), GENERATIONS)
async def test_a_go_client_is_served(server: Server, generation: str, name: str) -> None:
    async with server.api() as api:
        await STEPS[name](api, generation)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
async def test_what_cannot_be_is_refused(server: Server, case: Refused) -> None:
    async with server.api() as api:
        await check_refused(api, case)

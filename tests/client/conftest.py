"""Both event loops; stacks with a server, and proxies that misbehave on demand between everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import anyio
import pytest

from datas3tfs import AsyncClient
from datas3tfs.client import Tuning
from tests.client.serving import Serve, serving
from tests.harness.faultproxy import FaultProxy
from tests.harness.mounts import Stack, open_stack
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import ServerProcess, fresh_bucket

T = TypeVar("T")
Run = Callable[[Callable[[], Awaitable[T]]], T]

# Quick to try again, and to notice silence: the tests' networks are fast.
QUICK = Tuning(patience=20.0, first_pause=0.02, longest_pause=0.2, silence=2.0, connect=2.0)


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run[T]:
    """Runs a coroutine function under each event loop in turn, for two minutes at most."""

    async def limited(work: Callable[[], Awaitable[T]]) -> T:
        with anyio.fail_after(120):
            return await work()

    # The plain loop: where trio-asyncio is imported, asyncio's own policy makes one of that.
    options = {"loop_factory": asyncio.SelectorEventLoop} if request.param == "asyncio" else {}
    return lambda work: anyio.run(limited, work, backend=request.param, backend_options=options)


@dataclass
class Site:
    """A stack with a server. *s3* is between everybody and S3, *api* between the client and the server."""

    stack: Stack
    server: Serve
    s3: FaultProxy
    api: FaultProxy
    _datasets: int = 0

    def client(self, tuning: Tuning = QUICK) -> AsyncClient:
        """Return a client, not opened."""
        return AsyncClient(self.api.endpoint, tuning=tuning)

    def dataset(self) -> str:
        """Make an empty dataset; return its name."""
        self._datasets += 1
        name = f"d{self._datasets}"
        self.stack.register(name, endpoint=self.s3.endpoint)
        return name

    def leftovers(self) -> list[str]:
        """Return what uploads have left: claims that no datarange has, intents, open multipart uploads."""
        claims = self.stack.sql("SELECT count(*) FROM key_claims") != self.stack.sql(
            "SELECT count(*) FROM dataranges"
        )
        intents = self.stack.sql("SELECT count(*) FROM datarange_uploads") != "0"
        return ["claims"] * claims + ["intents"] * intents + self.stack.s3.unfinished()


@pytest.fixture(scope="module")
def new_site(
    embedded_postgres: PostgresServer,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Site]]:
    """Makes sites for a whole module; `new_site("moto")` uses the other S3 server."""
    with ExitStack() as opened:

        def make(kind: str = "rclone", *words: str) -> Site:
            process: ServerProcess = request.getfixturevalue(f"{kind}_server_process")
            bucket, home = fresh_bucket(process), tmp_path_factory.mktemp("site")
            stack = opened.enter_context(open_stack(embedded_postgres, bucket, home))
            server = opened.enter_context(serving(stack, *words))
            s3 = opened.enter_context(FaultProxy(process.port))
            api = opened.enter_context(FaultProxy(server.port))
            return Site(stack, server, s3, api)

        yield make


@pytest.fixture(scope="module", params=["rclone", "moto"])
def shared_site(request: pytest.FixtureRequest, new_site: Callable[..., Site]) -> Site:
    """A site on each kind of S3 server, for the whole module."""
    return new_site(request.param)


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """The site, everything well."""
    yield shared_site
    for proxy in (shared_site.s3, shared_site.api):
        proxy.clear()
        proxy.forget()

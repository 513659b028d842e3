"""Both event loops, and both S3 servers behind a proxy that misbehaves on demand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import anyio
import pytest

from tests.harness.faultproxy import FaultProxy
from tests.harness.s3 import S3Server

T = TypeVar("T")
Run = Callable[[Callable[[], Awaitable[T]]], T]


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[T]]], T]:
    """Runs a coroutine function under each event loop in turn, for two minutes at most."""

    async def limited(work: Callable[[], Awaitable[T]]) -> T:
        with anyio.fail_after(120):
            return await work()

    return lambda work: anyio.run(limited, work, backend=request.param)


@pytest.fixture
def proxied(s3_server: S3Server) -> Iterator[tuple[S3Server, FaultProxy]]:
    """A fresh bucket on each kind of server, and a proxy before it."""
    with FaultProxy(s3_server.process.port) as proxy:
        yield s3_server, proxy

"""What the client asks the server for, where that follows from more than the arguments."""

from __future__ import annotations

import json
import ssl

import httpx
import pytest
import trio

from datas3tfs.client import Tuning
from datas3tfs.client.api import Api
from datas3tfs.client.connections import open_pool
from datas3tfs.client.retrying import Retrier
from datas3tfs.client.server import Server
from datas3tfs.client.tuning import MIB
from datas3tfs.core.parts import PART_SIZE, check_part_size
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid
from datas3tfs.wire.answers import Problem


@pytest.mark.parametrize(
    ("size", "part_size"),
    [
        (1 << 20, None),
        (10_000 * 20 * MIB, None),
        (10_000 * 20 * MIB + 1, 21 * MIB),
        (10_000 * 21 * MIB, 21 * MIB),
        (5 << 40, 525 * MIB),
    ],
)
async def test_parts_are_as_long_as_ten_thousand_of_them_must_be(size: int, part_size: int | None) -> None:
    asked = list[dict[str, object]]()

    async def answer(request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        asked.append(json.loads(request.content))
        return httpx.Response(422, json=Problem(title="", status=422, detail="no").model_dump())

    tuning = Tuning()
    async with open_pool(
        tuning, ssl.create_default_context(), base_url="http://x", transport=httpx.MockTransport(answer)
    ) as pool:
        server = Server(Api(pool, Retrier(tuning, 1.0), tuning, "x"))
        with pytest.raises(Invalid):
            await server.start("photos", Span(0, 10), size, "0" * 32)
    assert asked[0].get("part_size") == part_size
    check_part_size(size, part_size or PART_SIZE)

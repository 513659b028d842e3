"""Large ranges are located piece by piece, as they are read: not every index of a dataset at once."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from datas3tfs.client import reading
from datas3tfs.errors import NotFound
from tests.client.conftest import Run, Site

INDEX = ".index.zst"


@pytest.mark.parametrize(
    ("keys", "spans", "windows"), [(10, 1000, 4), (1000, 3, 4), (1000, 1000, 1), (1, 1000, 40)]
)
def test_an_index_is_looked_into_when_its_datapoints_are_read(
    site: Site, run: Run[None], monkeypatch: pytest.MonkeyPatch, keys: int, spans: int, windows: int
) -> None:
    """Ten dataranges of four datapoints each, with a gap after each."""
    monkeypatch.setattr(reading, "_WINDOW", keys)
    monkeypatch.setattr(reading, "_SPANS", spans)
    dataset = site.dataset()

    async def work() -> None:
        async with site.client() as client:
            wanted = [first + key for first in range(0, 50, 5) for key in range(4)]
            given: list[Any] = [(key, "x.txt", b"content of %d" % key) for key in wanted]
            await client.ingest(dataset, given)
            site.s3.forget()
            site.api.forget()
            async with aclosing(client.iterate(dataset, 0, 2000)) as found:
                first = await anext(found)
                # … of this window and of the next.
                assert site.s3.requests("GET", INDEX) <= 2 * -(-10 // windows)
                assert [first.key, *[one.key async for one in found]] == wanted
            assert site.s3.requests("GET", INDEX) == 10
            assert site.api.requests("POST", "/api/v1/download") == windows
            assert site.api.requests("GET", "/api/v1/dataranges") == 1
            with pytest.raises(NotFound, match=f"dataset {dataset} has no datapoint from 100 to 5000"):
                [one async for one in client.iterate(dataset, 100, 5000)]

    run(work)


def test_a_few_keys_are_asked_for_in_one_call(site: Site, run: Run[None]) -> None:
    dataset = site.dataset()

    async def work() -> None:
        async with site.client() as client:
            await client.ingest(dataset, [("x.txt", b"content")] * 20, datarange_bytes=3000)
            site.api.forget()
            assert len([one async for one in client.iterate(dataset, 0, 1000)]) == 20
            assert site.api.requests("GET") == 0
            assert site.api.requests("POST") == 1

    run(work)

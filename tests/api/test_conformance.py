"""Both generations of Go clients get what they expect, field by field; nonsense gets what HTTP says."""

from collections.abc import AsyncIterator

import pytest

from datas3tfs.api.application import DOCUMENTED
from tests.harness.api import MemoryApi, open_memory_api
from tests.harness.conformance import GENERATIONS, REFUSED, STEPS, Refused, check_refused, prepare


@pytest.fixture
async def api() -> AsyncIterator[MemoryApi]:
    """An API with something in it."""
    async with open_memory_api() as opened:
        await prepare(opened)
        yield opened


@pytest.mark.parametrize(("generation", "name"), GENERATIONS)
async def test_a_go_client_is_served(api: MemoryApi, generation: str, name: str) -> None:
    await STEPS[name](api, generation)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
async def test_what_cannot_be_is_refused(api: MemoryApi, case: Refused) -> None:
    await check_refused(api, case)


def test_every_route_of_both_generations_and_of_the_readme_is_there() -> None:
    paths = {(operation.method, path) for operation in DOCUMENTED for path in operation.paths}
    assert paths >= {
        ("GET", "/api/v1/buckets"),
        ("POST", "/api/v1/buckets"),
        ("GET", "/api/v1/datas3ts"),
        ("POST", "/api/v1/datas3ts"),
        ("POST", "/api/v1/upload-datarange"),
        ("POST", "/api/v1/upload-datarange/complete"),
        ("POST", "/api/v1/upload-datarange/cancel"),
        ("POST", "/api/v1/download"),
        ("POST", "/api/v1/datas3ts/import"),
        ("POST", "/api/v1/datas3ts/clear"),
        ("DELETE", "/api/v1/datas3ts"),
        ("POST", "/api/v1/aggregate"),
        ("POST", "/api/v1/aggregate/complete"),
        ("POST", "/api/v1/aggregate/cancel"),
        ("POST", "/api/v1/datarange/delete"),
        ("GET", "/api/v1/dataranges"),
        ("GET", "/api/v1/datapoints-bitmap"),
        ("POST", "/api/bucket"),
        ("POST", "/api/datas3t"),
        ("POST", "/api/datarange/upload/start"),
        ("POST", "/api/datarange/upload/complete"),
        ("POST", "/api/download/presign"),
    }

"""Registering a bucket makes the server connect somewhere: only where it may, and it tells little."""

from __future__ import annotations

import pytest
import trio

from datas3tfs.api.tokens import Access
from datas3tfs.core.model import BucketSpec
from datas3tfs.errors import Unavailable
from tests.api.test_endpoints import SPECIAL, Names
from tests.harness.api import Json, MemoryApi, open_memory_api

HERE = Access("auto", is_loopback=True)
PUBLIC = Access("none", is_loopback=False)


async def add(api: MemoryApi, endpoint: str, **others: Json) -> int:
    """Return the status of registering a bucket there."""
    body = {"name": "b", **api.bucket, "endpoint": endpoint, **others}
    answer = await api.send("POST", "/api/v1/buckets", body)
    assert api.bucket["secret_key"] not in answer.text
    assert (answer.status_code == 201) == bool(api.tried)
    return answer.status_code


@pytest.mark.parametrize("address", SPECIAL)
async def test_special_addresses_are_not_connected_to(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    for allow in ((), ("*",), ("s3.test",)):
        for access in (HERE, PUBLIC):
            async with open_memory_api(access, allow=allow) as api:
                for endpoint in (f"http://{host}", f"https://{host}:9000/", f"{host}:80"):
                    assert await add(api, endpoint) == 403


@pytest.mark.parametrize("name", ["metadata.google.internal", "innocent.test"])
async def test_names_of_special_addresses_neither(name: str) -> None:
    trio.socket.set_custom_hostname_resolver(Names("10.0.0.1", "169.254.169.254"))
    async with open_memory_api(HERE) as api:
        assert await add(api, f"http://{name}:9000") == 403
    async with open_memory_api(PUBLIC, allow=("*",)) as api:
        assert await add(api, f"http://{name}:9000") == 403


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://user:password@127.0.0.1:9000",
        "http://127.0.0.1:9000/#x",
        "http://127.0.0.1:9000/?x",
        "file:///etc/passwd",
        "ftp://127.0.0.1",
        "http://127.0.0.1:9000\r\nX: y",
        "http://",
        "gopher://127.0.0.1:70/_",
        "https://https://127.0.0.1",
        "",
    ],
)
async def test_what_no_endpoint_needs_is_refused(endpoint: str) -> None:
    async with open_memory_api(HERE, allow=("127.0.0.1", "*")) as api:
        assert await add(api, endpoint) == 422


async def test_where_only_this_machine_can_connect_and_nobody_is_asked_any_ordinary_one_will_do() -> None:
    async with open_memory_api(HERE) as api:
        assert await add(api, "http://127.0.0.1:9000") == 201
    async with open_memory_api(HERE) as api:
        assert await add(api, "10.1.2.3:9000", use_tls=True) == 201
        assert api.tried[0].endpoint_url == "https://10.1.2.3:9000"


async def test_elsewhere_only_what_is_registered_or_set() -> None:
    async with open_memory_api(PUBLIC, known=("https://s3.test", "no endpoint at all")) as api:
        assert await add(api, "http://127.0.0.1:9000") == 403
        assert await add(api, "http://s3.test") == 403  # another port
        assert await add(api, "s3.test", use_tls=True) == 201
        api.tried.clear()
        await api.catalog.add_bucket(BucketSpec("other", "http://127.0.0.1:9000/", "x", "", ""))
        assert await add(api, "127.0.0.1:9001", name="c") == 403
        assert await add(api, "127.0.0.1:9000", name="c") == 201


async def test_a_token_makes_loopback_no_better() -> None:
    async with open_memory_api(HERE) as api:
        api.http.headers["authorization"] = f"Bearer {await api.add_token('somebody')}"
        answer = await api.send("POST", "/api/v1/buckets", {"name": "b", **api.bucket})
        assert answer.status_code == 403
        assert "--allow-endpoint 127.0.0.1:9000" in answer.json()["detail"]
        assert not api.tried


@pytest.mark.parametrize(
    ("allow", "endpoint", "status"),
    [
        ("s3.test", "http://s3.test:9000", 201),
        ("s3.test:9000", "http://S3.TEST:9000", 201),
        ("s3.test:9000", "http://s3.test:9001", 403),
        ("s3.test", "http://s3.test.evil.example", 403),
        ("127.0.0.1", "http://127.0.0.2:9000", 403),
        ("169.254.1.1", "http://169.254.1.1", 201),  # named: the operator knows
        ("*", "http://127.0.0.1:1", 201),
    ],
)
async def test_the_list_of_the_operator_counts(allow: str, endpoint: str, status: int) -> None:
    for access in (HERE, PUBLIC):
        async with open_memory_api(access, allow=(allow,)) as api:
            assert await add(api, endpoint) == status


async def test_whoever_has_the_database_may_name_any() -> None:
    async with open_memory_api(Access("auto", is_loopback=True, is_trusted=True)) as api:
        assert await add(api, "http://169.254.169.254") == 201


async def test_a_bucket_that_cannot_be_used_is_not_registered_and_the_reason_is_ours() -> None:
    async def fail(spec: BucketSpec) -> None:
        await trio.lowlevel.checkpoint()
        raise Unavailable(f"bucket {spec.name}: no connection")

    async with open_memory_api(HERE, try_bucket=fail) as api:
        answer = await api.send("POST", "/api/v1/buckets", {"name": "b", **api.bucket})
        assert (answer.status_code, answer.json()["detail"]) == (
            422,
            "bucket b cannot be used: bucket b: no connection",
        )
        assert await api.catalog.buckets() == []


async def test_an_endpoint_and_a_bucket_are_registered_once() -> None:
    async with open_memory_api(HERE) as api:
        await api.add_bucket("first")
        answer = await api.send("POST", "/api/v1/buckets", {"name": "second", **api.bucket})
        assert answer.status_code == 409
        answer = await api.send("POST", "/api/bucket", {"name": "first", **api.bucket, "bucket": "other"})
        assert answer.status_code == 409
        assert len(api.tried) == 2  # a name that is taken is no reason to connect


async def test_a_name_without_an_address_is_the_callers_mistake() -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    async with open_memory_api(HERE) as api:
        assert await add(api, "http://nowhere.invalid") == 422

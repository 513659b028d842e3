"""What only our client asks for, and what becomes of uploads that are wrong, late or not what they seem."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import datetime

import google_crc32c
import pytest

from tests.harness.api import Json, MemoryApi, go_archive, open_memory_api
from tests.harness.conformance import CONTENTS, FILLED, prepare

START = "/api/v1/upload-datarange"


@pytest.fixture
async def api() -> AsyncIterator[MemoryApi]:
    """An API with something in it."""
    async with open_memory_api() as opened:
        await prepare(opened)
        yield opened


def started(size: int, **others: Json) -> Json:
    numbers = {"first_datapoint_index": 100, "number_of_datapoints": 5, "data_size": size}
    return {"datas3t_name": FILLED, **numbers, **others}


async def test_going_on_gives_new_urls_and_says_which_parts_are_there(api: MemoryApi) -> None:
    part = 5 << 20
    tar, index = go_archive(100, [bytes([number]) * (3 << 20) for number in range(5)])
    grant = await api.done("POST", START, started(len(tar), part_size=part))
    assert grant["part_size"] == part
    assert "uploaded_parts" not in grant
    assert datetime.fromisoformat(grant["expires_at"]).tzinfo is not None
    urls = grant["presigned_multipart_upload_urls"]
    assert len(urls) == -(-len(tar) // part)
    for number in (1, 0):
        await api.urls.put(urls[number], tar[number * part : (number + 1) * part])
    again = await api.done("POST", f"{START}/resume", {"datarange_upload_id": grant["datarange_id"]})
    assert again["datarange_upload_id"] == grant["datarange_id"]
    assert again["object_key"] == grant["object_key"]
    assert [(one["number"], one["size"]) for one in again["uploaded_parts"]] == [(1, part), (2, part)]
    new = again["presigned_multipart_upload_urls"]
    assert len(new) == len(urls)
    for number in range(2, len(new)):
        await api.urls.put(new[number], tar[number * part : (number + 1) * part])
    await api.urls.put(again["presigned_index_put_url"], index)
    await api.complete(grant)  # without tags: S3 is asked
    assert len(await api.download(FILLED, 100, 104)) == 5


async def test_the_same_attempt_is_the_same_upload_and_another_one_is_refused(api: MemoryApi) -> None:
    attempt = str(uuid.uuid4())
    first = await api.done("POST", START, started(8192, attempt=attempt))
    again = await api.done("POST", START, started(8192, attempt=attempt))
    assert again["datarange_id"] == first["datarange_id"]
    for other in (str(uuid.uuid4()), None):
        answer = await api.send("POST", START, started(8192, attempt=other))
        assert answer.status_code == 409
    assert (await api.send("POST", START, started(8192, attempt="no uuid"))).status_code == 400


async def test_checksums_are_those_of_the_contents(api: MemoryApi) -> None:
    asked = {"datas3t_name": FILLED, "first_datapoint": 1, "last_datapoint": 10}
    plain = await api.done("POST", "/api/v1/download", asked)
    assert all("crc32c" not in segment for segment in plain["download_segments"])
    found = await api.done("POST", "/api/v1/download", {**asked, "checksums": True})
    crcs = [crc for segment in found["download_segments"] for crc in segment["crc32c"]]
    assert crcs == [google_crc32c.value(content) for content in [*CONTENTS[1:], CONTENTS[0]]]
    spans = [(one["first_datapoint"], one["last_datapoint"]) for one in found["download_segments"]]
    assert spans == [(1, 4), (10, 10)]


async def test_what_was_uploaded_wrong_is_refused_and_its_keys_are_free_again(api: MemoryApi) -> None:
    tar, index = go_archive(100, CONTENTS)
    for data, records in ((tar[:-512] + b"x" * 512, index), (tar, index[:-1]), (tar, index[16:])):
        grant = await api.start(FILLED, 100, 5, len(tar))
        await api.put(grant, data, records)
        body = {"datarange_upload_id": grant["datarange_id"]}
        answer = await api.send("POST", f"{START}/complete", body)
        assert answer.status_code == 422, answer.text
        assert (await api.send("POST", f"{START}/complete", body)).status_code == 409
    await api.upload(FILLED, 100, CONTENTS)


async def test_what_has_not_arrived_can_be_completed_when_it_has(api: MemoryApi) -> None:
    tar, index = go_archive(100, CONTENTS)
    grant = await api.start(FILLED, 100, 5, len(tar))
    body = {"datarange_upload_id": grant["datarange_id"]}
    assert (await api.send("POST", f"{START}/complete", body)).status_code == 409
    await api.put(grant, tar, index)
    await api.complete(grant)


async def test_an_upload_and_an_aggregate_are_not_mixed_up(api: MemoryApi) -> None:
    await api.upload(FILLED, 15, CONTENTS)
    asked = {"datas3t_name": FILLED, "first_datapoint_index": 10, "last_datapoint_index": 19}
    begun = await api.done("POST", "/api/v1/aggregate", asked)
    grant = await api.done("POST", START, started(8192))
    for path, body in (
        (f"{START}/complete", {"datarange_upload_id": begun["aggregate_upload_id"]}),
        (f"{START}/cancel", {"datarange_upload_id": begun["aggregate_upload_id"]}),
        ("/api/v1/aggregate/complete", {"aggregate_upload_id": grant["datarange_id"]}),
        ("/api/v1/aggregate/cancel", {"aggregate_upload_id": grant["datarange_id"]}),
    ):
        assert (await api.send("POST", path, body)).status_code == 404, path


async def test_what_is_in_flight_is_listed_until_it_is_done(api: MemoryApi) -> None:
    await api.upload(FILLED, 15, CONTENTS)
    asked = {"datas3t_name": FILLED, "first_datapoint_index": 10, "last_datapoint_index": 19}
    merge = await api.done("POST", "/api/v1/aggregate", asked)
    grant = await api.done("POST", START, started(8192))
    where = f"/api/v1/uploads?datas3t_name={FILLED}"
    found = (await api.done("GET", where))["uploads"]
    assert [
        (
            one["datarange_upload_id"],
            one["is_aggregate"],
            one["first_datapoint_index"],
            one["number_of_datapoints"],
            one["data_size"],
        )
        for one in found
    ] == [(merge["aggregate_upload_id"], True, 10, 10, 0), (grant["datarange_id"], False, 100, 5, 8192)]
    assert found[1]["object_key"] == grant["object_key"]
    assert found[1]["expires_at"][:13] == grant["expires_at"][:13]
    assert datetime.fromisoformat(found[1]["begun_at"]) < datetime.fromisoformat(found[1]["expires_at"])
    assert "http" not in str(found)
    await api.done("POST", f"{START}/cancel", {"datarange_upload_id": grant["datarange_id"]})
    await api.done("POST", "/api/v1/aggregate/cancel", {"aggregate_upload_id": merge["aggregate_upload_id"]})
    assert await api.done("GET", where) == {"uploads": []}
    assert await api.done("GET", "/api/v1/uploads?datas3t_name=nobody") == {"uploads": []}
    assert (await api.send("GET", "/api/v1/uploads?datas3t_name=nobody&must_exist=true")).status_code == 404

"""Measure HTTP API and Python client: presigning beside an empty answer, transfers beside plain boto3.

python api_client.py URL SCRATCH DATASET SIZE ROUNDS     (S3 from DATAS3TFS_S3_*; prints JSON)

The dataset exists and is empty. SIZE bytes are uploaded and downloaded in each round, by us and by boto3.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clients
import httpx

from datas3tfs import Client

AT_ONCE = 8  # connections
CALLS = 1000  # in all
MEMBER = 1 << 20  # bytes of one datapoint


def make_tar(path: Path, first: int, size: int) -> int:
    """Write a TAR of about *size* bytes; return how many datapoints it has."""
    count = size // MEMBER
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key in range(first, first + count):
            info = tarfile.TarInfo(f"{key:020d}.bin")
            info.size = MEMBER
            tar.addfile(info, io.BytesIO(os.urandom(MEMBER)))
    return count


def calls_per_second(url: str, method: str, path: str, body: dict | None) -> float:
    """Return how many such requests a second are answered, over a few connections that stay open."""

    def work(count: int) -> None:
        with httpx.Client(base_url=url) as client:
            for _ in range(count):
                client.request(method, path, json=body).raise_for_status()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        begin = time.perf_counter()
        list(pool.map(work, [CALLS // AT_ONCE] * AT_ONCE))
        return CALLS / (time.perf_counter() - begin)


def timed(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    url, scratch, dataset, size, rounds = (
        sys.argv[1],
        Path(sys.argv[2]),
        sys.argv[3],
        *map(int, sys.argv[4:6]),
    )
    bucket = os.environ["DATAS3TFS_S3_BUCKET"]
    s3 = clients.s3()
    times: dict[str, list[float]] = {name: [] for name in ("put", "plain_put", "get", "plain_get")}
    first = 0
    with Client(url) as client:
        for number in range(rounds):
            tar, out = scratch / "in.tar", scratch / "out.tar"
            count = make_tar(tar, first, size)
            plain = f"plain-{number}"
            times["plain_put"].append(timed(lambda: s3.upload_file(str(tar), bucket, plain)))  # noqa: B023
            times["put"].append(timed(lambda: client.upload(dataset, tar)))  # noqa: B023
            times["plain_get"].append(timed(lambda: s3.download_file(bucket, plain, str(out))))  # noqa: B023
            last = first + count - 1
            times["get"].append(timed(lambda: client.download_tar(dataset, first, last, out)))  # noqa: B023
            first += count
            s3.delete_object(Bucket=bucket, Key=plain)
    ask = {"datas3t_name": dataset, "first_datapoint": 3, "last_datapoint": 9}
    calls = [
        (
            calls_per_second(url, "GET", "/healthz", None),
            calls_per_second(url, "POST", "/api/v1/download", ask),
        )
        for _ in range(rounds)
    ]
    rounds = [
        {name: found[number] for name, found in times.items()} | {"empty_per_s": empty, "presign_per_s": full}
        for number, (empty, full) in enumerate(calls)
    ]
    print(json.dumps({"rounds": rounds}))


if __name__ == "__main__":
    main()

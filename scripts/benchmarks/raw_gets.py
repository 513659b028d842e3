"""Ranged GETs in parallel and nothing else: the ceiling for everything that reads from S3.

    python raw_gets.py        (a JSON object on standard input; prints one)

Input: urls (key → signed address), ranges ([key, start, stop] in order), threads in each of processes,
seconds (0: to the end). The way datas3tfs fetches: signed once, urllib3, one read into one buffer. Prints
requests, bytes, seconds, p50 (of one request).
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import urllib3


def fetch(pool: urllib3.PoolManager, url: str, start: int, stop: int) -> int:
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    response = pool.request(
        "GET",
        url,
        headers=headers,
        retries=False,
        redirect=False,
        preload_content=False,
        decode_content=False,
    )
    body = response.read(stop - start)
    response.release_conn()
    claimed = response.headers.get("Content-Range", "")  # some servers answer 200 to a range, with this
    if not claimed.startswith(f"bytes {start}-{stop - 1}/") or len(body) != stop - start:
        raise RuntimeError(f"{response.status} {claimed}, {len(body)} bytes of {stop - start}")
    return len(body)


def work(job: dict, number: int, gate, results) -> None:
    threads = job["threads"]
    pool = urllib3.PoolManager(num_pools=1, maxsize=threads)
    ranges = job["ranges"][number :: job["processes"]]
    gate.wait()
    deadline = time.perf_counter() + (job["seconds"] or 3600)

    def one(wanted: tuple[str, int, int]) -> tuple[int, float]:
        key, start, stop = wanted
        begin = time.perf_counter()
        if begin > deadline:
            return 0, 0.0
        return fetch(pool, job["urls"][key], start, stop), time.perf_counter() - begin

    try:
        with ThreadPoolExecutor(threads) as executor:
            results.put(list(executor.map(one, ranges)))
    except Exception as failure:
        results.put(failure)


def main() -> None:
    job = json.load(sys.stdin)
    context = multiprocessing.get_context("fork")
    gate, results = context.Event(), context.Queue()
    children = [
        context.Process(target=work, args=(job, number, gate, results)) for number in range(job["processes"])
    ]
    for child in children:
        child.start()
    begin = time.perf_counter()
    gate.set()
    answers = [results.get(timeout=300) for _ in children]
    seconds = time.perf_counter() - begin
    for answer in answers:
        if isinstance(answer, Exception):
            raise SystemExit(str(answer))
    found = [one for answer in answers for one in answer if one[1]]
    for child in children:
        child.join()
    took = statistics.median(each for _, each in found)
    total = sum(size for size, _ in found)
    print(json.dumps({"requests": len(found), "bytes": total, "seconds": seconds, "p50": took}))


if __name__ == "__main__":
    main()

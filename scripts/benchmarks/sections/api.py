"""The HTTP API and the client: presigning beside an empty answer, transfers beside plain boto3."""

from __future__ import annotations

import processes
from book import Book
from plan import MIB, Plan
from processes import run
from serving import served
from world import World


def measure(world: World, book: Book, plan: Plan) -> None:
    """Let api_client.py do all rounds, through the relay."""
    world.relay.delay(0)
    size = plan.pick(512 * MIB, 64 * MIB)
    world.ours("dataset", "add", "api", "--bucket", "bench")
    with served(world) as url:
        arguments = (url, world.scratch, "api", size, plan.rounds)
        rounds = run(processes.script("api_client.py", *arguments), world.env).document["rounds"]
    calls = book.row("presign", "calls of the API over 8 connections", "calls/s")
    moved = book.row("transfer", f"{size // MIB} MiB through the client, beside plain boto3", "MB/s")
    for found in rounds:
        calls.add("presign", {"rate": found["presign_per_s"]})
        calls.add("empty answer", {"rate": found["empty_per_s"]})
        for party, figure in PARTIES.items():
            moved.add(party, {"rate": size / 1e6 / found[figure], "seconds": found[figure]})


PARTIES = {"upload": "put", "upload, boto3": "plain_put", "download": "get", "download, boto3": "plain_get"}

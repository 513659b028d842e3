"""`datas3tfs aggregate | optimize`: fewer, larger dataranges."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any

import trio
import typer

from datas3tfs.app.optimizing import Merge, all_datasets, optimized, optimizing, planned
from datas3tfs.cli import output
from datas3tfs.cli.catalog import datarange_record
from datas3tfs.cli.context import JsonFlag, log_to, settings
from datas3tfs.cli.running import run
from datas3tfs.config import Settings
from datas3tfs.core.compaction import OptimizeRule
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.sizes import format_size, parse_size
from datas3tfs.errors import Invalid
from datas3tfs.wire.answers import DatarangeInfo

_MERGES = (
    output.Column("dataset", "dataset"),
    output.Column("first_key", "first key", right=True),
    output.Column("last_key", "last key", right=True),
    output.Column("dataranges", "dataranges", right=True),
    output.Column("bytes", "size", show=format_size, right=True),
    output.Column("outcome", "outcome"),
)


def aggregate(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help="The dataset.")],
    first: Annotated[int, typer.Option(help="First key of the first datarange.")],
    last: Annotated[int, typer.Option(help="Last key, included, of the last one.")],
    as_json: JsonFlag = False,
) -> None:
    """Make one datarange of the adjacent ones from --first to --last."""
    if not 0 <= first <= last < KEY_LIMIT:
        raise Invalid(f"--first {first} --last {last}: not a range of keys")
    made = run(lambda: _aggregate(settings(ctx), dataset, first, last))
    if as_json:
        output.print_json(datarange_record(made))
    else:
        output.say(f"keys {first} to {last}: one datarange of {format_size(made.size_bytes)}")


def optimize(
    ctx: typer.Context,
    datasets: Annotated[list[str] | None, typer.Argument(help="Datasets.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All datasets.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be merged first.")] = False,
    daemon: Annotated[
        bool, typer.Option("--daemon", help="Go on, look again every --interval seconds, until stopped.")
    ] = False,
    interval: Annotated[float, typer.Option(help="Seconds.", min=1.0, max=1e6)] = 300.0,
    target_size: Annotated[str, typer.Option(help="What dataranges grow to.")] = "1GiB",
    max_size: Annotated[str, typer.Option(help="What none exceeds; at least twice the target.")] = "5GiB",
    as_json: JsonFlag = False,
) -> None:
    """Merge small adjacent dataranges by the rule in docs/OPERATIONS.md, until there is nothing left to do.

    With --daemon, --json prints a line for each merge."""
    if bool(datasets) == every:
        raise typer.BadParameter("name datasets, or give --all")
    if daemon and dry_run:
        raise typer.BadParameter("--daemon and --dry-run exclude each other")
    rule = OptimizeRule(target=parse_size(target_size), largest=parse_size(max_size))
    names = None if every else datasets
    chosen = settings(ctx)
    if daemon:
        log_to(None, chosen.log_level)
        run(lambda: _for_ever(chosen, names, rule, interval, as_json), stop_on=())
        return
    records = run(lambda: _optimize(chosen, names, rule, dry_run))
    output.print_table(records, _MERGES, as_json=as_json)
    if any(record["problem"] for record in records):
        raise typer.Exit(1)


async def _aggregate(chosen: Settings, dataset: str, first: int, last: int) -> DatarangeInfo:
    from datas3tfs.app.clients import open_client  # what is behind it takes a while to load

    async with open_client(chosen) as client:
        return await client.aggregate(dataset, first, last)


async def _optimize(
    chosen: Settings, names: Sequence[str] | None, rule: OptimizeRule, dry_run: bool
) -> list[dict[str, Any]]:
    from datas3tfs.app.clients import open_client

    async with open_client(chosen) as client:
        wanted = list(await all_datasets(client) if names is None else names)
        if dry_run:
            return [_record(merge) for merge in await planned(client, wanted, rule)]
        records: list[dict[str, Any]] = []
        with output.progress("merging", None) as advance:
            async with aclosing(optimized(client, wanted, rule)) as merges:
                async for merge in merges:
                    advance(1)
                    records.append(_record(merge))
        return records


async def _for_ever(
    chosen: Settings, names: Sequence[str] | None, rule: OptimizeRule, interval: float, as_json: bool
) -> None:
    """Optimize until a signal comes: to be stopped is how it is meant to end."""
    from datas3tfs.app.clients import open_client

    def report(merge: Merge) -> None:
        record = _record(merge)
        line = json.dumps(record) if as_json else " ".join(str(record[column.key]) for column in _MERGES)
        print(line, flush=True)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_client(chosen) as client, trio.open_nursery() as nursery:
            nursery.start_soon(optimizing, client, names, rule, interval, report)
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


def _record(merge: Merge) -> dict[str, Any]:
    return {
        "dataset": merge.dataset,
        "first_key": merge.keys.start,
        "last_key": merge.keys.last,
        "dataranges": merge.dataranges,
        "bytes": merge.size,
        "done": merge.done,
        "problem": merge.problem,
        "outcome": _outcome(merge),
    }


def _outcome(merge: Merge) -> str:
    if merge.problem is not None:
        return merge.problem
    if merge.overtaken:
        return "overtaken by somebody else's change"
    return "merged" if merge.done else "to be merged"

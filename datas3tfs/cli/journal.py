"""`datas3tfs journal list | replay | export | leases | release`: what waits in journals, no mount needed."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from datas3tfs import config
from datas3tfs.app.journals import Examined, JournaledFile, examine, export, find_journals
from datas3tfs.app.replaying import Replay, replay_journal
from datas3tfs.app.services import open_registry
from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag, settings
from datas3tfs.cli.running import run
from datas3tfs.core.model import Holder
from datas3tfs.core.sizes import format_size
from datas3tfs.errors import Conflict, Datas3tError, Invalid, NotFound

app = typer.Typer(help="What mounts have accepted and not committed yet; needs no mount.")

_FILES = (
    output.Column("dataset", "dataset"),
    output.Column("name", "name"),
    output.Column("bytes", "size", show=format_size, right=True),
    output.Column("state", "state"),
    output.Column("problem", "problem"),
)
_JOURNAL = (
    output.Column("directory", "journal"),
    output.Column("process", "in use by process"),
    output.Column("installation", "installation"),
    output.Column("holder", "holder"),
    output.Column("count", "files"),
    output.Column("bytes", "size", show=format_size),
    output.Column("damaged", "damaged", show=lambda paths: ", ".join(paths) or "-"),
)
_HOLDERS = (
    output.Column("holder", "holder"),
    output.Column("place", "place"),
    output.Column("state", "state"),
    output.Column("renewed", "last heard of"),
    output.Column("leases", "leases", right=True),
    output.Column("keys", "keys", right=True),
    output.Column("accepted_keys", "… of files", right=True),
)

Directory = Annotated[
    Path | None,
    typer.Argument(help="A journal, or a directory of journals.", show_default="this user's", metavar="DIR"),
]


@app.command("list")
def list_journals(ctx: typer.Context, directory: Directory = None, as_json: JsonFlag = False) -> None:
    """Show what is in journals. Needs no database, and changes nothing."""
    found, problems = _examine_all(_journals(ctx, directory))
    if as_json:
        output.print_json([_journal_record(journal) | {"files": _file_records(journal)} for journal in found])
    else:
        for journal in found:
            output.print_record(_journal_record(journal), as_json=False, columns=_JOURNAL)
            print()
            if journal.files:
                output.print_table(_file_records(journal), _FILES, as_json=False)
                print()
    if problems:
        raise problems[0]


@app.command("replay")
def replay_journals(
    ctx: typer.Context,
    directory: Directory = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Even if it was in use elsewhere minutes ago, or files may be outdated."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Commit what dead mounts have left. Exit 1 if something stays in a journal, or was damaged there."""
    found, problems = _examine_all(_journals(ctx, directory))
    if directory is None:  # of all that there are, those that nobody looks after
        found = [journal for journal in found if journal.files and journal.process is None]
    records = []
    for journal in found:
        try:
            outcome = _replay(ctx, journal, force)
        except Datas3tError as exc:
            problems.append(exc)
            continue
        records.append(
            {
                "directory": str(journal.directory),
                "committed": outcome.committed,
                "stayed": [asdict(stayed) for stayed in outcome.stayed],
                "damaged": list(journal.damaged),
            }
        )
        if not as_json:
            _say_replayed(journal, outcome)
    if as_json and (records or not problems):
        output.print_json(records)
    for problem in problems[1:]:
        output.say(f"error: {problem}")
    if problems:
        raise problems[0]
    if any(record["stayed"] or record["damaged"] for record in records):
        raise typer.Exit(1)


def _replay(ctx: typer.Context, journal: Examined, force: bool) -> Replay:
    waiting = sum(file.state != "temporary" for file in journal.files)
    with output.progress(f"replay {journal.directory.name}", waiting) as advance:
        return run(lambda: replay_journal(settings(ctx), journal.directory, force=force, advance=advance))


def _say_replayed(journal: Examined, outcome: Replay) -> None:
    stay = f", {len(outcome.stayed)} left in the journal" if outcome.stayed else ""
    output.say(f"{journal.directory}: {_counted(outcome.committed, 'datapoint')} committed{stay}")
    for stayed in outcome.stayed:
        output.say(f"{stayed.dataset}/{stayed.name}: {stayed.state}: {stayed.problem}")


@app.command("export")
def export_journal(
    directory: Annotated[Path, typer.Argument(help="The journal.", metavar="DIR")],
    target: Annotated[Path, typer.Argument(help="Where DATASET/NAME are written.", metavar="OUTDIR")],
    as_json: JsonFlag = False,
) -> None:
    """Copy every file out of a journal, checked. Needs no database. Exit 1 if any is not whole.

    Nothing is overwritten. Temporary files come, too; what is left of a damaged one goes to NAME.damaged.
    """
    total = examine(directory).size
    with output.progress(f"export {directory.name}", total, in_bytes=True) as advance:
        exported = list(export(directory, target, advance))
    bad = [one for one in exported if one.problem is not None]
    if as_json:
        output.print_json([asdict(one) | {"path": str(one.path)} for one in exported])
    else:
        for one in bad:
            output.say(f"{one.path}: {one.problem}")
        whole = sum(one.size for one in exported if one.problem is None)
        output.say(f"{target}: {_counted(len(exported) - len(bad), 'file')}, {format_size(whole)}")
    if bad:
        raise typer.Exit(1)


@app.command("leases")
def list_leases(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Show which journals hold keys, here and on other machines."""

    async def work() -> list[Holder]:
        async with open_registry(settings(ctx)) as opened:
            return await opened.leases.holders()

    output.print_table([_holder_record(holder) for holder in run(work)], _HOLDERS, as_json=as_json)


@app.command("release")
def release(
    ctx: typer.Context,
    holder: Annotated[str, typer.Argument(help="As `journal leases` shows it.", metavar="HOLDER")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if its mount seems to be running.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Free the keys of a journal that is lost for good, so that others can write them.

    What is still in that journal loses its claim to them: where somebody else writes such a key, the file in
    the journal can only be exported, never committed.
    """
    found = run(lambda: _find_holder(ctx, holder))
    if not found.expired and not force:
        raise Conflict(f"{found.place} was heard of within the last minutes; end its mount, or use --force")
    if not yes:
        _ask(found)

    async def work() -> None:
        async with open_registry(settings(ctx)) as opened:
            await opened.leases.dismiss(found.id)

    run(work)
    if as_json:
        output.print_json(_holder_record(found))
    else:
        output.say(f"{found.place}: {_counted(found.keys, 'key')} freed")


async def _find_holder(ctx: typer.Context, wanted: str) -> Holder:
    async with open_registry(settings(ctx)) as opened:
        for holder in await opened.leases.holders():
            if holder.id == wanted.lower():
                return holder
    raise NotFound(f"{wanted}: no journal of that name holds leases; `datas3tfs journal leases` lists them")


def _ask(holder: Holder) -> None:
    meaning = (
        f"{holder.place} holds {_counted(holder.keys, 'key')}, {holder.accepted_keys} of them for files that "
        "are safe there. Others may write these keys then, and those files can only be exported."
    )
    if not sys.stdin.isatty():
        raise Invalid(f"{meaning} Say --yes if that is what you want")
    output.say(meaning)
    typer.confirm("Free them?", abort=True, err=True)


def _journals(ctx: typer.Context, directory: Path | None) -> list[Path]:
    if directory is None:
        own = settings(ctx).journal_dir
        return sorted({*find_journals(config.journals_dir()), *([] if own is None else find_journals(own))})
    found = find_journals(directory)
    if not found:
        raise NotFound(f"{directory}: there is no journal")
    return found


def _examine_all(directories: list[Path]) -> tuple[list[Examined], list[Exception]]:
    found: list[Examined] = []
    problems: list[Exception] = []
    for directory in directories:
        try:
            found.append(examine(directory))
        except Datas3tError as exc:
            problems.append(exc)
    return found, problems


def _journal_record(journal: Examined) -> dict[str, Any]:
    return {
        "directory": str(journal.directory),
        "process": journal.process,
        "installation": journal.installation,
        "holder": journal.holder,
        "count": len(journal.files),
        "bytes": journal.size,
        "damaged": list(journal.damaged),
    }


def _file_records(journal: Examined) -> list[dict[str, Any]]:
    return [_file_record(file) for file in journal.files]


def _file_record(file: JournaledFile) -> dict[str, Any]:
    return {
        "dataset": file.dataset,
        "name": file.name,
        "bytes": file.size,
        "state": file.state,
        "problem": file.problem,
    }


def _holder_record(holder: Holder) -> dict[str, Any]:
    renewed = datetime.fromtimestamp(holder.renewed_ns / 1e9, UTC)
    return {
        "holder": holder.id,
        "place": holder.place,
        "expired": holder.expired,
        "state": "expired" if holder.expired else "alive",
        "renewed": renewed.isoformat(timespec="seconds"),
        "leases": holder.leases,
        "keys": holder.keys,
        "accepted_keys": holder.accepted_keys,
    }


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

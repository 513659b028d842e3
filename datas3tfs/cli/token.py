"""`datas3tfs token …`: who may use the HTTP API. A token is shown once; Postgres keeps its digest only."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import typer

from datas3tfs.app.services import open_registry
from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag, settings
from datas3tfs.cli.running import run
from datas3tfs.core.model import Token

app = typer.Typer(help="Tokens: who may use the HTTP API.")

_COLUMNS = (
    output.Column("name", "name"),
    output.Column("rights", "rights"),
    output.Column("datasets", "datasets", show=lambda names: ", ".join(names)),
    output.Column("created", "created"),
)
Name = Annotated[str, typer.Argument(help="What to call it: whom it is for.")]


@app.command("add")
def add(
    ctx: typer.Context,
    name: Name,
    read_only: Annotated[bool, typer.Option("--read-only", help="It may list and download only.")] = False,
    dataset: Annotated[list[str] | None, typer.Option(help="Only this dataset; may be repeated.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a token and print it: it cannot be shown again."""
    from datas3tfs.api.tokens import digest_of, new_token  # the web framework takes half a second to load

    made = new_token()
    token = Token(name, not read_only, frozenset(dataset) if dataset else None, 0)

    async def work() -> None:
        async with open_registry(settings(ctx)) as opened:
            await opened.tokens.add(token, digest_of(made))

    run(work)
    if as_json:
        output.print_json({"name": name, "token": made})
    else:
        print(made)


@app.command("list")
def list_tokens(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List the tokens by name; not the tokens themselves, which nobody knows."""

    async def work() -> list[Token]:
        async with open_registry(settings(ctx)) as opened:
            return await opened.tokens.all()

    output.print_table([_record(token) for token in run(work)], _COLUMNS, as_json=as_json)


@app.command("remove")
def remove(ctx: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Let a token be of no use any more, five seconds from now at the latest."""

    async def work() -> None:
        async with open_registry(settings(ctx)) as opened:
            await opened.tokens.remove(name)

    run(work)
    if as_json:
        output.print_json({"name": name})
    else:
        output.say(f"token {name} removed")


def _record(token: Token) -> dict[str, object]:
    names: Iterable[str] | None = None if token.datasets is None else sorted(token.datasets)
    return {
        "name": token.name,
        "rights": "read, write" if token.can_write else "read",
        "datasets": names,
        "created": datetime.fromtimestamp(token.created_ns // 10**9, UTC).isoformat(),
    }

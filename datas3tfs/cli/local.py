"""`datas3tfs local …`: the embedded Postgres and S3 server."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from datas3tfs import config
from datas3tfs.app import local as stack
from datas3tfs.catalog import migrate
from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag
from datas3tfs.cli.running import run

app = typer.Typer(help="A Postgres and an S3 server of your own: on loopback, data kept in one directory.")

Directory = Annotated[
    Path | None,
    typer.Option("--dir", help="Where its data is.", show_default=str(config.default_local_dir())),
]


def _server(server: dict[str, object]) -> str:
    pid = f" (pid {server['pid']})" if server["pid"] is not None else ""
    return f"{server['state']} {server['url']}{pid}"


_COLUMNS = (
    output.Column("directory", "directory"),
    output.Column("postgres", "postgres", show=_server),
    output.Column("s3", "s3", show=_server),
    output.Column("bucket", "bucket"),
)


@app.command()
def up(directory: Directory = None, as_json: JsonFlag = False) -> None:
    """Start what does not run, and bring the database to the current schema."""
    result = stack.up(_place(directory), _migrate)
    if as_json:
        output.print_json(asdict(result.status) | {"started": result.started, "moved": result.moved})
        return
    _print(result.status, as_json=False)
    output.say(f"started: {', '.join(result.started)}" if result.started else "was already running")
    if "s3" in result.moved:
        output.say(
            "the S3 server's port was taken, it has another now: add its bucket again under a new name"
        )
    option = "" if directory is None else f" --dir {shlex.quote(str(directory))}"
    output.say(f'for the other commands: eval "$(datas3tfs local env{option})"')


@app.command()
def down(directory: Directory = None, as_json: JsonFlag = False) -> None:
    """Stop both servers; their data stays."""
    stopped = stack.down(_place(directory))
    if as_json:
        output.print_json({"stopped": stopped})
    else:
        output.say(f"stopped: {', '.join(stopped)}" if stopped else "was not running")


@app.command()
def env(directory: Directory = None, as_json: JsonFlag = False) -> None:
    """Print what a shell must evaluate so that the other commands use this stack."""
    if as_json:
        output.print_json({"DATAS3TFS_CONFIG": str(stack.config_file(_place(directory)))})
    else:
        typer.echo(stack.env(_place(directory)))


@app.command()
def status(directory: Directory = None, as_json: JsonFlag = False) -> None:
    """Show whether both servers run, and where."""
    _print(stack.status(_place(directory)), as_json=as_json)


def _migrate(db_url: str) -> None:
    run(lambda: migrate(db_url))


def _place(directory: Path | None) -> Path:
    return (directory or config.default_local_dir()).expanduser().absolute()


def _print(status: stack.LocalStatus, *, as_json: bool) -> None:
    output.print_record(asdict(status), as_json=as_json, columns=_COLUMNS)

"""The command line: global options, the commands by name, and what an error looks like.

Each command lives in a module of its own, named here, and loaded when it is asked for: all of them together
take a second. Exit codes: 0 done, 1 failed, 2 wrong
usage, 128 + n stopped by signal n. An error is one line on stderr; `--debug` adds the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_group

from datas3tfs import __version__
from datas3tfs.cli.context import Globals
from datas3tfs.core.names import printable
from datas3tfs.errors import Datas3tError

_PROGRAM = "datas3tfs"
_LINE = 2000  # characters of an error at most

_COMMANDS = {  # in the order that --help shows
    "local": "local:app",
    "mount": "mount:mount",
    "umount": "mounted:umount",
    "flush": "mounted:flush",
    "stats": "mounted:stats",
    "prefetch": "prefetch:prefetch",
    "journal": "journal:app",
    "migrate": "catalog:migrate",
    "keygen": "keygen:keygen",
    "rekey": "keys:rekey",
    "bucket": "catalog:bucket_app",
    "dataset": "catalog:dataset_app",
    "datarange": "catalog:datarange_app",
    "upload": "upload:app",
    "ingest": "data:ingest",
    "upload-tar": "data:upload_tar",
    "download-tar": "data:download_tar",
    "verify": "data:verify",
    "aggregate": "compaction:aggregate",
    "optimize": "compaction:optimize",
    "serve": "serve:serve",
    "token": "token:app",
}


class _Commands(TyperGroup):
    """The commands, each loaded when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return their names."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a name, None if there is none."""
        module, _, attribute = _COMMANDS.get(cmd_name, "").partition(":")
        if not module:
            return None
        found = getattr(import_module(f"datas3tfs.cli.{module}"), attribute)
        holder = typer.Typer(add_completion=False, rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=cmd_name)
        else:
            holder.command(cmd_name)(found)
        return get_group(holder).get_command(ctx, cmd_name)


app = typer.Typer(
    cls=_Commands,
    name=_PROGRAM,
    help="Millions of small numbered files on S3, as a directory.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_debug = False  # how `fail` shows an error; set once, by the global option


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        # Not standalone: typer would show usage errors in several lines.
        code = app(standalone_mode=False, prog_name=_PROGRAM)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = _reader_has_gone()
    except Exception as exc:
        code = _fail(exc)
    sys.exit(code if isinstance(code, int) else 0)


@app.callback()
def _globals(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="The settings file (TOML).")] = None,
    db_url: Annotated[
        str | None, typer.Option(help="The database; others see it in `ps`, DATAS3TFS_DB_URL they do not.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    global _debug
    _debug = debug
    if version:
        typer.echo(f"datas3tfs {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)
    ctx.obj = Globals(config=config, db_url=db_url, debug=debug)


def _fail(exc: Exception) -> int:
    if _debug:
        traceback.print_exception(exc)
    code, text = 1, str(exc)
    if isinstance(exc, typer.TyperException):  # wrong usage; the library knows the words and the code
        context = getattr(exc, "ctx", None)
        command = context.command_path if context else _PROGRAM
        code, text = exc.exit_code, f"{exc.format_message().rstrip('.')} (see {command} --help)"
    elif not isinstance(exc, Datas3tError):
        text = f"{type(exc).__name__}: {exc} (--debug shows where)"
    print(f"{_PROGRAM}: error: {_one_line(text)}", file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    words = " ".join(text.split())[:_LINE]
    # In pieces, as printable shortens what is long.
    return "".join(printable(words[at : at + 100]) for at in range(0, len(words), 100))


def _reader_has_gone() -> int:
    # Otherwise the interpreter would complain when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1

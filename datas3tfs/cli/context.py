"""What the global options said, and the settings that follow from them.

Settings are read when a command asks, so that `keygen` and `local` work beside a broken settings file.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from datas3tfs import config
from datas3tfs.errors import Invalid

# Not looked at before the command does: what is mounted there may be dead, or just dying.
Mountpoint = Annotated[Path, typer.Argument(help="The directory.", metavar="MOUNTPOINT", readable=False)]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True, slots=True)
class Globals:
    """The options before the command's name."""

    config: Path | None = None
    db_url: str | None = None
    debug: bool = False


def settings(ctx: typer.Context, **flags: object) -> config.Settings:
    """Return the settings; the command's own *flags* count unless they are None. Raises Invalid."""
    given = ctx.find_object(Globals) or Globals()
    return config.load(config=given.config, db_url=given.db_url, **flags)


def log_to(file: Path | None, level: str) -> None:
    """Send log lines of *level* and above to *file*, or to stderr. Raises Invalid if it cannot be written."""
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = logging.StreamHandler(sys.stderr) if file is None else logging.FileHandler(file)
    except OSError as exc:
        raise Invalid(f"{file}: {exc.strerror}") from exc
    logging.basicConfig(
        handlers=[handler],
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )

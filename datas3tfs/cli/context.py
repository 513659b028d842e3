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


def start_logging(level: str) -> None:
    """Send log lines of *level* and above to stderr, for commands that stay."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )

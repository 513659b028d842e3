"""`datas3tfs keygen`: a fresh key that seals the buckets' credentials in Postgres."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from datas3tfs.catalog import generate_key
from datas3tfs.core.names import printable
from datas3tfs.errors import Conflict, Invalid


def keygen(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write to this new file, readable by you only.")
    ] = None,
) -> None:
    """Print a fresh encryption key (32 random bytes in base64)."""
    key = generate_key()
    if output is None:
        typer.echo(key)
    else:
        _write(output, key)


def _write(path: Path, key: str) -> None:
    shown = printable(str(path))
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Conflict(f"{shown}: exists; a key is never overwritten") from None
    except OSError as exc:
        raise Invalid(f"{shown}: {exc.strerror}") from exc
    with open(handle, "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(handle)

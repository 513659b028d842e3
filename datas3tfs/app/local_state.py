"""What the embedded stack remembers: ports and secrets, kept in its config.toml.

That file is at once the memory of `local up` and the settings of every other command, so the two cannot
disagree. Settings a user adds there (cache_size, …) are kept. Written whole, atomically, by one at a time.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datas3tfs.app.local_home import Home
from datas3tfs.config import read_private
from datas3tfs.core.names import printable
from datas3tfs.errors import Invalid

BUCKET = "datas3tfs"
DATABASE = "datas3tfs"
DATABASE_USER = "datas3tfs"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Stack:
    """Ports and secrets of one embedded stack; no secret shows in its repr."""

    postgres_port: int
    s3_port: int
    password: str = field(repr=False)
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    encryption_key: str = field(repr=False)
    added: dict[str, Any] = field(default_factory=dict, repr=False)  # the user's own settings

    @property
    def db_url(self) -> str:
        """The database's URL, password included."""
        return f"postgresql://{DATABASE_USER}:{self.password}@{LOOPBACK}:{self.postgres_port}/{DATABASE}"

    @property
    def s3_endpoint(self) -> str:
        """The S3 server's URL."""
        return f"http://{LOOPBACK}:{self.s3_port}"

    def settings(self) -> dict[str, Any]:
        """Return what config.toml says."""
        return {
            "db_url": self.db_url,
            "encryption_key": self.encryption_key,
            "s3_endpoint": self.s3_endpoint,
            "s3_bucket": BUCKET,
            "s3_access_key": self.access_key,
            "s3_secret_key": self.secret_key,
        } | self.added


def new_stack(postgres_port: int, s3_port: int) -> Stack:
    """Return a stack with fresh secrets; they need no quoting in a URL, in CSV or in TOML."""
    return Stack(
        postgres_port=postgres_port,
        s3_port=s3_port,
        password=secrets.token_hex(24),
        access_key="AK" + secrets.token_hex(9).upper(),  # 20 characters, as S3 clients expect
        secret_key=secrets.token_hex(20),  # 40 characters, likewise
        encryption_key=base64.b64encode(secrets.token_bytes(32)).decode(),
    )


def load_stack(home: Home) -> Stack | None:
    """Return what the home remembers, None if nothing yet. Raises Invalid if that cannot be read."""
    if not home.config.exists():
        if home.pgdata.exists():
            raise Invalid(
                f"{printable(str(home.config))}: gone, and with it the password of the database beside it; "
                "put it back, or use another --dir"
            )
        return None
    try:
        return _stack(tomllib.loads(read_private(home.config).decode()))
    except (KeyError, ValueError, TypeError):
        # from None: the parser's message may quote a secret.
        raise Invalid(f"{printable(str(home.config))}: not as `datas3tfs local up` wrote it") from None


def save_stack(home: Home, stack: Stack) -> None:
    """Write config.toml: the old or the new is there whatever happens, and only its owner can read it."""
    text = "# Written by `datas3tfs local up`. Holds secrets.\n"
    # A JSON string, number or boolean is also a TOML one.
    for name, value in stack.settings().items():
        text += f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
    fresh = home.config.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(home.config)
    sync_directory(home.path)


def sync_directory(path: Path) -> None:
    """Make a rename in *path* survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stack(values: dict[str, Any]) -> Stack:
    database, s3 = urlsplit(values["db_url"]), urlsplit(values["s3_endpoint"])
    if database.port is None or s3.port is None or not database.password:
        raise ValueError("a port or the password is missing")
    stack = Stack(
        postgres_port=database.port,
        s3_port=s3.port,
        password=database.password,
        access_key=values["s3_access_key"],
        secret_key=values["s3_secret_key"],
        encryption_key=values["encryption_key"],
    )
    return replace(
        stack, added={name: value for name, value in values.items() if name not in stack.settings()}
    )

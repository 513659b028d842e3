"""`datas3tfs rekey | bucket credentials`: exchanging what is secret, in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag, settings
from datas3tfs.cli.running import run
from datas3tfs.config import Settings, read_private
from datas3tfs.errors import Invalid


def rekey(
    ctx: typer.Context,
    new_key_file: Annotated[Path, typer.Argument(help="A file (mode 600) with the key from now on.")],
    as_json: JsonFlag = False,
) -> None:
    """Seal all credentials in Postgres with another encryption key; the settings still name the old one."""
    from datas3tfs.catalog.sealing import reseal

    chosen = settings(ctx)
    db_url, old = chosen.require_db_url(), chosen.require_encryption_key()
    new = _text_of(new_key_file)
    count = run(lambda: reseal(db_url, old, new))
    if as_json:
        output.print_json({"buckets": count})
    else:
        output.say(f"credentials of {count} buckets are sealed with the new key: put it into the settings")


def credentials(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The bucket's name here.")],
    access_key: Annotated[str | None, typer.Option(help="Better as DATAS3TFS_S3_ACCESS_KEY.")] = None,
    secret_key_file: Annotated[Path | None, typer.Option(help="A file (mode 600) that holds it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a registered bucket other credentials, which S3 says can be used."""
    secret_key = None if secret_key_file is None else _text_of(secret_key_file)
    chosen = settings(ctx, s3_access_key=access_key, s3_secret_key=secret_key)
    run(lambda: _replace(chosen, name))
    if as_json:
        output.print_json({"name": name})
    else:
        output.say(f"bucket {name} has other credentials; restart what uses it")


async def _replace(chosen: Settings, name: str) -> None:
    from datas3tfs.app.services import open_registry
    from datas3tfs.catalog.sealing import replace_credentials
    from datas3tfs.core.counters import Counters
    from datas3tfs.objects.settings import S3Settings
    from datas3tfs.objects.stores import check_bucket

    if chosen.s3_access_key is None or chosen.s3_secret_key is None:
        raise Invalid(f"bucket {name}: the new keys are missing (as flags, DATAS3TFS_S3_… or settings)")
    new = chosen.s3_access_key.get_secret_value(), chosen.s3_secret_key.get_secret_value()
    async with open_registry(chosen) as opened:
        found = [bucket.spec for bucket in await opened.registry.buckets() if bucket.spec.name == name]
    if found:
        spec = replace(found[0], access_key=new[0], secret_key=new[1])
        await check_bucket(spec, S3Settings(io_timeout=chosen.io_timeout), Counters())
    await replace_credentials(chosen.require_db_url(), chosen.require_encryption_key(), name, *new)


def _text_of(path: Path) -> str:
    return read_private(path.absolute()).decode("utf-8", "replace").strip()

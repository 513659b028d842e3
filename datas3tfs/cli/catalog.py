"""`datas3tfs migrate | bucket … | dataset … | datarange …`: what Postgres knows."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

import datas3tfs
from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag, settings
from datas3tfs.cli.keys import credentials
from datas3tfs.cli.running import run
from datas3tfs.config import Settings, read_private
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.sizes import format_size
from datas3tfs.errors import Invalid
from datas3tfs.wire.answers import BucketInfo, DatarangeInfo, DatasetInfo

T = TypeVar("T")
NameArgument = Annotated[str, typer.Argument(help="The dataset.", metavar="NAME")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

bucket_app = typer.Typer(help="Registered buckets: endpoint, bucket and credentials under a name.")
dataset_app = typer.Typer(help="Datasets.")
datarange_app = typer.Typer(help="Dataranges: the TAR objects of a dataset.")

_BUCKETS = tuple(output.Column(key, key) for key in ("name", "endpoint", "bucket", "region"))
_DATASETS = (
    output.Column("name", "name"),
    output.Column("bucket", "bucket"),
    output.Column("dataranges", "dataranges", right=True),
    output.Column("datapoints", "datapoints", right=True),
    output.Column("bytes", "size", show=format_size, right=True),
    output.Column("first_key", "first key", right=True),
    output.Column("last_key", "last key", right=True),
)
_DATARANGES = (
    output.Column("id", "id", right=True),
    output.Column("first_key", "first key", right=True),
    output.Column("last_key", "last key", right=True),
    output.Column("bytes", "size", show=format_size, right=True),
    output.Column("object", "object"),
)


def migrate(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Bring the database to this program's schema; do nothing if it is there already."""
    from datas3tfs import catalog

    version = run(lambda: catalog.migrate(settings(ctx).require_db_url()))
    if as_json:
        output.print_json({"schema_version": version})
    else:
        output.say(f"the database has schema version {version}")


@bucket_app.command("add")
def add_bucket(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it.")],
    endpoint: Annotated[str | None, typer.Option(help="URL of the S3 endpoint.")] = None,
    bucket: Annotated[str | None, typer.Option(help="The bucket there; it must exist.")] = None,
    access_key: Annotated[str | None, typer.Option(help="Better as DATAS3TFS_S3_ACCESS_KEY.")] = None,
    secret_key: Annotated[
        str | None,
        typer.Option(help="Others see it in `ps`: better as DATAS3TFS_S3_SECRET_KEY or in a file."),
    ] = None,
    secret_key_file: Annotated[Path | None, typer.Option(help="A file (mode 600) that holds it.")] = None,
    region: Annotated[str | None, typer.Option(help="Region that requests are signed for.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Register a bucket that S3 says can be used. What is not given comes from the settings."""
    if secret_key_file is not None:
        secret_key = read_private(secret_key_file.absolute()).decode("utf-8", "replace").strip()
    chosen = settings(
        ctx,
        s3_endpoint=endpoint,
        s3_bucket=bucket,
        s3_access_key=access_key,
        s3_secret_key=secret_key,
        s3_region=region,
    )
    record = run(lambda: _add_bucket(chosen, name))
    output.print_record(record, as_json=as_json, columns=_BUCKETS)


@bucket_app.command("list")
def list_buckets(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List the registered buckets, without their credentials."""

    found = run(lambda: ask_client(settings(ctx), lambda client: client.buckets()))
    output.print_table([_bucket_record(bucket) for bucket in found], _BUCKETS, as_json=as_json)


bucket_app.command("credentials")(credentials)


@dataset_app.command("add")
def add_dataset(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Letters, digits, '_' and '-'.")],
    bucket: Annotated[str, typer.Option(help="The registered bucket that is to hold it.")],
    as_json: JsonFlag = False,
) -> None:
    """Create an empty dataset."""

    run(lambda: ask_client(settings(ctx), lambda client: client.add_dataset(name, bucket)))
    if as_json:
        output.print_json({"name": name, "bucket": bucket})
    else:
        output.say(f"dataset {name} created in bucket {bucket}")


@dataset_app.command("list")
def list_datasets(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List the datasets and what they hold."""

    datasets = run(lambda: ask_client(settings(ctx), lambda client: client.datasets()))
    output.print_table([_dataset_record(dataset) for dataset in datasets], _DATASETS, as_json=as_json)


@dataset_app.command("import")
def import_bucket(
    ctx: typer.Context,
    bucket: Annotated[str, typer.Argument(help="A registered bucket.")],
    as_json: JsonFlag = False,
) -> None:
    """Commit the dataranges that lie in a bucket and the database does not know."""
    found = run(
        lambda: ask_client(settings(ctx), lambda client: client.import_bucket(bucket), needs_key=True)
    )
    if as_json:
        output.print_json(
            {
                "datasets": found.imported_datas3ts,
                "dataranges": found.imported_dataranges,
                "skipped": [{"object": one.object_key, "reason": one.reason} for one in found.skipped],
                "skipped_count": found.skipped_count,
            }
        )
        return
    for one in found.skipped:
        output.say(f"{one.object_key}: not imported: {one.reason}")
    into = f" into {', '.join(found.imported_datas3ts)}" if found.imported_datas3ts else ""
    output.say(
        f"{found.imported_dataranges} dataranges imported{into}, {found.skipped_count} objects left out"
    )


@dataset_app.command("clear")
def clear_dataset(
    ctx: typer.Context, name: NameArgument, yes: YesFlag = False, as_json: JsonFlag = False
) -> None:
    """Remove all dataranges of a dataset. Their objects are deleted when nobody can be reading them."""
    confirm(f"remove everything in dataset {name}?", yes)
    done = run(lambda: ask_client(settings(ctx), lambda client: client.clear_dataset(name)))
    if as_json:
        output.print_json({"name": name, "dataranges": done.dataranges_deleted})
    else:
        output.say(f"dataset {name}: {done.dataranges_deleted} dataranges removed")


@dataset_app.command("delete")
def delete_dataset(
    ctx: typer.Context, name: NameArgument, yes: YesFlag = False, as_json: JsonFlag = False
) -> None:
    """Remove an empty dataset."""
    confirm(f"remove dataset {name}?", yes)
    run(lambda: ask_client(settings(ctx), lambda client: client.delete_dataset(name)))
    if as_json:
        output.print_json({"name": name})
    else:
        output.say(f"dataset {name} removed")


@datarange_app.command("list")
def list_dataranges(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help="The dataset.")],
    as_json: JsonFlag = False,
) -> None:
    """List the dataranges of a dataset, in key order."""

    found = run(lambda: ask_client(settings(ctx), lambda client: client.dataranges(dataset)))
    output.print_table([datarange_record(one) for one in found], _DATARANGES, as_json=as_json)


@datarange_app.command("delete")
def delete_datarange(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help="The dataset.")],
    first: Annotated[int, typer.Option(help="First key of the datarange.")],
    last: Annotated[int, typer.Option(help="Its last key.")],
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove the datarange of exactly these keys; they are free again then."""
    if not 0 <= first <= last < KEY_LIMIT:
        raise Invalid(f"--first {first} --last {last}: not a range of keys")
    confirm(f"remove keys {first} to {last} of dataset {dataset}?", yes)
    run(lambda: ask_client(settings(ctx), lambda client: client.delete_datarange(dataset, first, last)))
    if as_json:
        output.print_json({"dataset": dataset, "first_key": first, "last_key": last})
    else:
        output.say(f"keys {first} to {last} of dataset {dataset} removed")


def datarange_record(datarange: DatarangeInfo) -> dict[str, Any]:
    """Return what is shown of a datarange; ends are inclusive, as in object names."""
    first, last = datarange.min_datapoint_key, datarange.max_datapoint_key
    return {
        "id": datarange.datarange_id,
        "first_key": first,
        "last_key": last,
        "datapoints": last + 1 - first,
        "bytes": datarange.size_bytes,
        "object": datarange.data_object_key,
        "index": datarange.index_object_key,
    }


async def ask_client(
    chosen: Settings, question: Callable[[datas3tfs.AsyncClient], Awaitable[T]], *, needs_key: bool = False
) -> T:
    """Return what a client answers to *question*. Without a server *needs_key* says whether the encryption
    key must be set."""
    from datas3tfs.app.clients import open_client

    async with open_client(chosen, needs_key=needs_key) as client:
        return await question(client)


async def _add_bucket(chosen: Settings, name: str) -> dict[str, object]:
    missing = [
        option
        for option, value in (
            ("--endpoint", chosen.s3_endpoint),
            ("--bucket", chosen.s3_bucket),
            ("--access-key", chosen.s3_access_key),
            ("--secret-key", chosen.s3_secret_key),
        )
        if value is None
    ]
    if missing or chosen.s3_access_key is None or chosen.s3_secret_key is None:
        raise Invalid(f"bucket {name}: {', '.join(missing)} missing (as flags, DATAS3TFS_S3_… or settings)")
    access_key, secret_key = chosen.s3_access_key.get_secret_value(), chosen.s3_secret_key.get_secret_value()
    endpoint, bucket = chosen.s3_endpoint or "", chosen.s3_bucket or ""

    async def add(client: datas3tfs.AsyncClient) -> None:
        await client.add_bucket(
            name,
            endpoint=endpoint,
            bucket=bucket,
            access_key=access_key,
            secret_key=secret_key,
            region=chosen.s3_region,
        )

    await ask_client(chosen, add, needs_key=True)
    shown = _endpoint_url(endpoint, use_tls=False)
    return {"name": name, "endpoint": shown, "bucket": bucket, "region": chosen.s3_region}


def confirm(question: str, yes: bool) -> None:
    """Ask the person unless told not to; without one there is nobody to ask. Raises Invalid."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Invalid(f"{question} Say so with --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def _bucket_record(bucket: BucketInfo) -> dict[str, object]:
    endpoint = _endpoint_url(bucket.endpoint, use_tls=bucket.use_tls)
    return {"name": bucket.name, "endpoint": endpoint, "bucket": bucket.bucket, "region": bucket.region}


def _endpoint_url(endpoint: str, *, use_tls: bool) -> str:
    return endpoint if "://" in endpoint else ("https://" if use_tls else "http://") + endpoint


def _dataset_record(dataset: DatasetInfo) -> dict[str, object]:
    is_empty = not dataset.total_datapoints
    return {
        "name": dataset.datas3t_name,
        "bucket": dataset.bucket_name,
        "dataranges": dataset.datarange_count,
        "datapoints": dataset.total_datapoints,
        "bytes": dataset.total_bytes,
        "first_key": None if is_empty else dataset.lowest_datapoint,
        "last_key": None if is_empty else dataset.highest_datapoint,
    }

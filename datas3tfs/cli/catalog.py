"""`datas3tfs migrate | bucket … | dataset … | datarange …`: what Postgres knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datas3tfs import catalog
from datas3tfs.app.services import load_snapshot, open_registry
from datas3tfs.cli import output
from datas3tfs.cli.context import JsonFlag, settings
from datas3tfs.cli.running import run
from datas3tfs.config import Settings, read_private
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Bucket, BucketSpec, Datarange, Dataset
from datas3tfs.core.sizes import format_size
from datas3tfs.errors import Invalid
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import check_bucket

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
    added = run(lambda: _add_bucket(chosen, _spec(chosen, name)))
    output.print_record(_bucket_record(added), as_json=as_json, columns=_BUCKETS)


@bucket_app.command("list")
def list_buckets(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List the registered buckets, without their credentials."""

    async def work() -> list[Bucket]:
        async with open_registry(settings(ctx)) as opened:
            return await opened.registry.buckets()

    output.print_table([_bucket_record(bucket) for bucket in run(work)], _BUCKETS, as_json=as_json)


@dataset_app.command("add")
def add_dataset(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Letters, digits, '_' and '-'.")],
    bucket: Annotated[str, typer.Option(help="The registered bucket that is to hold it.")],
    as_json: JsonFlag = False,
) -> None:
    """Create an empty dataset."""

    async def work() -> int:
        async with open_registry(settings(ctx)) as opened:
            return await opened.registry.add_dataset(name, bucket)

    dataset_id = run(work)
    if as_json:
        output.print_json({"id": dataset_id, "name": name, "bucket": bucket})
    else:
        output.say(f"dataset {name} created in bucket {bucket}")


@dataset_app.command("list")
def list_datasets(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List the datasets and what they hold."""

    async def work() -> list[Dataset]:
        async with open_registry(settings(ctx)) as opened:
            return await opened.reader.datasets()

    datasets = sorted(run(work), key=lambda dataset: dataset.name)
    output.print_table([_dataset_record(dataset) for dataset in datasets], _DATASETS, as_json=as_json)


@datarange_app.command("list")
def list_dataranges(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help="The dataset.")],
    as_json: JsonFlag = False,
) -> None:
    """List the dataranges of a dataset, in key order."""

    async def work() -> tuple[Datarange, ...]:
        async with open_registry(settings(ctx)) as opened:
            return (await load_snapshot(opened, dataset)).dataranges

    output.print_table([datarange_record(found) for found in run(work)], _DATARANGES, as_json=as_json)


def datarange_record(datarange: Datarange) -> dict[str, object]:
    """Return what is shown of a datarange; ends are inclusive, as in object names."""
    return {
        "id": datarange.id,
        "first_key": datarange.keys.start,
        "last_key": datarange.keys.last,
        "datapoints": datarange.count,
        "bytes": datarange.size,
        "object": datarange.data_key,
        "index": datarange.index_key,
    }


async def _add_bucket(chosen: Settings, spec: BucketSpec) -> Bucket:
    chosen.require_encryption_key()
    await check_bucket(spec, S3Settings(io_timeout=chosen.io_timeout), Counters())
    async with open_registry(chosen) as opened:
        return await opened.registry.add_bucket(spec)


def _spec(chosen: Settings, name: str) -> BucketSpec:
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
    return BucketSpec(
        name=name,
        endpoint=chosen.s3_endpoint or "",
        bucket=chosen.s3_bucket or "",
        access_key=chosen.s3_access_key.get_secret_value(),
        secret_key=chosen.s3_secret_key.get_secret_value(),
        region=chosen.s3_region,
    )


def _bucket_record(bucket: Bucket) -> dict[str, object]:
    spec = bucket.spec
    return {"name": spec.name, "endpoint": spec.endpoint_url, "bucket": spec.bucket, "region": spec.region}


def _dataset_record(dataset: Dataset) -> dict[str, object]:
    return {
        "name": dataset.name,
        "bucket": dataset.bucket_name,
        "dataranges": dataset.dataranges,
        "datapoints": dataset.datapoints,
        "bytes": dataset.total_bytes,
        "first_key": dataset.lowest_key,
        "last_key": dataset.highest_key,
    }

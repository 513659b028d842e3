"""`datas3tfs ingest | upload-tar | download-tar | verify`: moving and checking datapoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import trio
import typer

from datas3tfs.cli import output
from datas3tfs.cli.catalog import datarange_record
from datas3tfs.cli.context import JsonFlag, settings
from datas3tfs.cli.running import run
from datas3tfs.config import Settings
from datas3tfs.core.names import KEY_LIMIT, datapoint_name
from datas3tfs.core.sizes import format_size, parse_size
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid
from datas3tfs.wire.answers import DatarangeInfo

DatasetName = Annotated[str, typer.Argument(help="The dataset.", metavar="DATASET")]


def ingest(
    ctx: typer.Context,
    dataset: DatasetName,
    paths: Annotated[list[Path], typer.Argument(help="Files, or directories to take all files from.")],
    start: Annotated[
        int | None, typer.Option(help="Key of the first file.", show_default="after the highest key")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Append a JSON line with key, name and path of every file here.")
    ] = None,
    datarange_bytes: Annotated[
        str, typer.Option(help="About how large each TAR object is to be.")
    ] = "256MiB",
    as_json: JsonFlag = False,
) -> None:
    """Number files and pack them into new dataranges. Directories are taken in the order of their paths."""
    limit = parse_size(datarange_bytes)
    done = run(lambda: _ingest(settings(ctx), dataset, paths, start, manifest, limit))
    _report_committed(done, as_json)


def upload_tar(
    ctx: typer.Context,
    dataset: DatasetName,
    file: Annotated[Path, typer.Argument(help="A TAR of datapoints in key order.", metavar="FILE.tar")],
    resume: Annotated[
        Path | None,
        typer.Option(help="A file that remembers the upload until it is done: run the same again to go on."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Upload a TAR as it is, as one datarange. It is read and checked before anything is uploaded."""
    _report_committed([run(lambda: _upload_tar(settings(ctx), dataset, file, resume))], as_json)


def download_tar(
    ctx: typer.Context,
    dataset: DatasetName,
    first: Annotated[int, typer.Option(help="First key.")],
    last: Annotated[int, typer.Option(help="Last key, included.")],
    output_file: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    resume: Annotated[
        Path | None,
        typer.Option(help="A file that remembers how far it is: run the same again to go on."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the datapoints from --first to --last, those that exist, as one TAR; each is checked."""
    if not 0 <= first <= last < KEY_LIMIT:
        raise Invalid(f"--first {first} --last {last}: not a range of keys")
    size, found = run(lambda: _download(settings(ctx), dataset, Span(first, last + 1), output_file, resume))
    if as_json:
        output.print_json({"file": str(output_file), "bytes": size, "datapoints": found})
        return
    missing = last + 1 - first - found
    note = f", {missing} keys in between do not exist" if missing else ""
    output.say(f"{output_file}: {_counted(found, 'datapoint')}, {format_size(size)}{note}")


def verify(ctx: typer.Context, dataset: DatasetName, as_json: JsonFlag = False) -> None:
    """Re-read everything, check headers and CRCs, and say which datapoint is bad. Exit 1 if any is."""
    records, checked, unknown = run(lambda: _verify(settings(ctx), dataset))
    if as_json:
        output.print_json(
            {"dataranges": checked, "without_checksums": unknown, "problems": records, "ok": not records}
        )
    else:
        for record in records:
            output.say(f"{record['object']}: {record['reason']}")
        note = f" ({unknown} without checksums: headers checked only)" if unknown else ""
        output.say(
            f"{dataset}: {_counted(checked, 'datarange')} read{note}, {_counted(len(records), 'problem')}"
        )
    if records:
        raise typer.Exit(1)


async def _ingest(
    chosen: Settings,
    name: str,
    paths: Sequence[Path],
    start: int | None,
    manifest: Path | None,
    limit: int,
) -> list[DatarangeInfo]:
    from datas3tfs.app.clients import open_client
    from datas3tfs.client.sources import Ingestible, find_sources

    sources = find_sources(paths)
    if not sources:
        raise Invalid("there are no files in what was given")
    committed: list[DatarangeInfo] = []
    async with open_client(chosen, writes=True) as client:
        first = await client.first_key(name, start)
        if first < 0 or first + len(sources) > KEY_LIMIT:
            raise Invalid(f"{len(sources)} keys from {first} on do not fit below 2^63")
        total = sum(source.size for source in sources)
        with (
            _open_manifest(manifest) as record,
            output.progress(f"ingest {name}", total, in_bytes=True) as advance,
            _telling_what_was_done(committed, first),
        ):

            def done(datarange: DatarangeInfo, files: Sequence[Ingestible]) -> None:
                committed.append(datarange)
                record(datarange.min_datapoint_key, [(file.extension, file.label) for file in files])

            await client.ingest(
                name, sources, start=first, datarange_bytes=limit, progress=advance, committed=done
            )
    return committed


@contextmanager
def _telling_what_was_done(committed: Sequence[DatarangeInfo], first: int) -> Iterator[None]:
    """If the block fails, say which files are in already, so that nobody puts them in twice."""
    try:
        yield
    except BaseException:
        if committed:
            last = committed[-1].max_datapoint_key
            output.say(f"the first {last + 1 - first} files are committed, keys {first} to {last}")
        raise


async def _upload_tar(chosen: Settings, name: str, path: Path, resume: Path | None) -> DatarangeInfo:
    from datas3tfs.app.clients import open_client
    from datas3tfs.client.scanning import ScannedTar, scan_tar

    async with open_client(chosen, writes=True) as client:
        await client.first_key(name)  # there is such a dataset
        with output.progress(f"check {path.name}", _size_of(path), in_bytes=True) as advance:

            def scan() -> ScannedTar:
                return scan_tar(path, lambda amount: trio.from_thread.run_sync(advance, amount))

            scanned = await trio.to_thread.run_sync(scan, abandon_on_cancel=True)
        with output.progress(f"upload {path.name}", scanned.size, in_bytes=True) as advance:
            return await client.upload(name, scanned, progress=advance, resume=resume)


async def _download(
    chosen: Settings, name: str, keys: Span, path: Path, resume: Path | None
) -> tuple[int, int]:
    """Write the TAR; return (bytes, datapoints)."""
    from datas3tfs.app.clients import open_client

    async with open_client(chosen) as client:
        with output.progress(f"download {name}", None, in_bytes=True) as advance:
            done = await client.download_tar(
                name, keys.start, keys.last, path, progress=advance, resume=resume
            )
    return done.bytes, done.datapoints


async def _verify(chosen: Settings, name: str) -> tuple[list[dict[str, Any]], int, int]:
    """Return (what is bad, dataranges read, those of them without checksums)."""
    if chosen.server_url is not None:
        return await _verify_over_http(chosen, name)
    from datas3tfs.app.services import load_snapshot, open_services
    from datas3tfs.engine.verify import Progress, Verified
    from datas3tfs.engine.verify import verify as verify_dataset

    problems: list[dict[str, Any]] = []
    checked = unknown = 0
    async with open_services(chosen) as services:
        snapshot = await load_snapshot(services.catalog, name)
        reports = verify_dataset(snapshot, services.indices, services.stores)
        with output.progress(f"verify {name}", snapshot.dataset.total_bytes, in_bytes=True) as advance:
            async with aclosing(reports):
                async for report in reports:
                    if isinstance(report, Progress):
                        advance(report.read)
                    elif isinstance(report, Verified):
                        checked += 1
                        unknown += not report.checksummed
                    else:
                        bad = {"object": report.object_key, "key": report.key, "reason": report.reason}
                        problems.append(bad)
    return problems, checked, unknown


async def _verify_over_http(chosen: Settings, name: str) -> tuple[list[dict[str, Any]], int, int]:
    from datas3tfs.app.clients import open_client
    from datas3tfs.client import Read, Verified

    problems: list[dict[str, Any]] = []
    checked = unknown = 0
    async with open_client(chosen) as client:
        total = sum(one.size_bytes for one in await client.dataranges(name))
        with output.progress(f"verify {name}", total, in_bytes=True) as advance:
            async with aclosing(client.verify(name)) as reports:
                async for report in reports:
                    if isinstance(report, Read):
                        advance(report.amount)
                    elif isinstance(report, Verified):
                        checked += 1
                        unknown += not report.is_checksummed
                    else:
                        bad = {"object": report.object_key, "key": report.key, "reason": report.reason}
                        problems.append(bad)
    return problems, checked, unknown


@contextmanager
def _open_manifest(path: Path | None) -> Iterator[Callable[[int, Sequence[tuple[str, str]]], None]]:
    """Yield what appends committed files, (extension, path) from a key on, a line each; they are on disk
    before it returns."""
    if path is None:
        yield lambda first, files: None
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc

    def record(first: int, files: Sequence[tuple[str, str]]) -> None:
        for key, (extension, place) in enumerate(files, first):
            line = {"key": key, "name": datapoint_name(key, extension), "path": place}
            file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())

    with file:
        yield record


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None  # reported by whoever reads it


def _report_committed(dataranges: Sequence[DatarangeInfo], as_json: bool) -> None:
    records: list[dict[str, Any]] = [datarange_record(datarange) for datarange in dataranges]
    if as_json:
        output.print_json({"dataranges": records})
        return
    points, size = (sum(record[what] for record in records) for what in ("datapoints", "bytes"))
    output.say(
        f"{_counted(points, 'datapoint')} committed in {_counted(len(dataranges), 'datarange')} "
        f"({format_size(size)}), "
        f"keys {records[0]['first_key']} to {records[-1]['last_key']}"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

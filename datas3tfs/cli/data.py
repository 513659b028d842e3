"""`datas3tfs ingest | upload-tar | download-tar | verify`: moving and checking datapoints."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import trio
import typer

from datas3tfs.app import ingest as ingesting
from datas3tfs.app.services import Services, load_snapshot, open_services
from datas3tfs.cli import output
from datas3tfs.cli.catalog import datarange_record
from datas3tfs.cli.context import JsonFlag, settings
from datas3tfs.cli.running import run
from datas3tfs.config import Settings
from datas3tfs.core.model import Datarange
from datas3tfs.core.names import KEY_LIMIT, datapoint_name
from datas3tfs.core.sizes import format_size, parse_size
from datas3tfs.core.spans import Span
from datas3tfs.engine.export import export_tar
from datas3tfs.engine.sweeper import sweep
from datas3tfs.engine.verify import Problem, Progress, Verified
from datas3tfs.engine.verify import verify as verify_dataset
from datas3tfs.engine.writer import Writer
from datas3tfs.errors import Invalid

_SWEEP_SECONDS = 20.0  # the rest is left to the next command

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
    sources = ingesting.find_sources(paths)
    if not sources:
        raise Invalid("there are no files in what was given")
    limit = parse_size(datarange_bytes)
    done = run(lambda: _ingest(settings(ctx), dataset, sources, start, manifest, limit))
    _report_committed(done, as_json)


def upload_tar(
    ctx: typer.Context,
    dataset: DatasetName,
    file: Annotated[Path, typer.Argument(help="A TAR of datapoints in key order.", metavar="FILE.tar")],
    as_json: JsonFlag = False,
) -> None:
    """Upload a TAR as it is, as one datarange. It is read and checked before anything is uploaded."""
    _report_committed([run(lambda: _upload_tar(settings(ctx), dataset, file))], as_json)


def download_tar(
    ctx: typer.Context,
    dataset: DatasetName,
    first: Annotated[int, typer.Option(help="First key.")],
    last: Annotated[int, typer.Option(help="Last key, included.")],
    output_file: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    as_json: JsonFlag = False,
) -> None:
    """Write the datapoints from --first to --last, those that exist, as one TAR; each is checked."""
    if not 0 <= first <= last < KEY_LIMIT:
        raise Invalid(f"--first {first} --last {last}: not a range of keys")
    size, found = run(lambda: _download(settings(ctx), dataset, Span(first, last + 1), output_file))
    if as_json:
        output.print_json({"file": str(output_file), "bytes": size, "datapoints": found})
        return
    missing = last + 1 - first - found
    note = f", {missing} keys in between do not exist" if missing else ""
    output.say(f"{output_file}: {_counted(found, 'datapoint')}, {format_size(size)}{note}")


def verify(ctx: typer.Context, dataset: DatasetName, as_json: JsonFlag = False) -> None:
    """Re-read everything, check headers and CRCs, and say which datapoint is bad. Exit 1 if any is."""
    problems, checked, unknown = run(lambda: _verify(settings(ctx), dataset))
    records = [
        {
            "object": problem.object_key,
            "key": problem.key,
            "reason": problem.reason,
        }
        for problem in problems
    ]
    if as_json:
        output.print_json(
            {"dataranges": checked, "without_checksums": unknown, "problems": records, "ok": not records}
        )
    else:
        for problem in problems:
            output.say(f"{problem.object_key}: {problem.reason}")
        note = f" ({unknown} without checksums: headers checked only)" if unknown else ""
        output.say(
            f"{dataset}: {_counted(checked, 'datarange')} read{note}, {_counted(len(problems), 'problem')}"
        )
    if problems:
        raise typer.Exit(1)


async def _ingest(
    chosen: Settings,
    name: str,
    sources: Sequence[ingesting.Source],
    start: int | None,
    manifest: Path | None,
    limit: int,
) -> list[Datarange]:
    committed: list[Datarange] = []
    async with open_services(chosen) as services:
        dataset = await services.catalog.reader.dataset(name)
        await _sweep(services)
        first = ingesting.next_key(dataset) if start is None else start
        total = sum(source.size for source in sources)
        with (
            _open_manifest(manifest) as record,
            output.progress(f"ingest {name}", total, in_bytes=True) as advance,
            _telling_what_was_done(committed, first),
        ):
            steps = ingesting.ingest(
                _writer(services), dataset, sources, first=first, datarange_bytes=limit, advance=advance
            )
            async with aclosing(steps):
                async for datarange, files in steps:
                    committed.append(datarange)
                    record(datarange, files)
    return committed


@contextmanager
def _telling_what_was_done(committed: Sequence[Datarange], first: int) -> Iterator[None]:
    """If the block fails, say which files are in already, so that nobody puts them in twice."""
    try:
        yield
    except BaseException:
        if committed:
            done = committed[-1].keys.stop - first
            output.say(f"the first {done} files are committed, keys {first} to {committed[-1].keys.last}")
        raise


async def _upload_tar(chosen: Settings, name: str, path: Path) -> Datarange:
    async with open_services(chosen) as services:
        dataset = await services.catalog.reader.dataset(name)
        await _sweep(services)
        with output.progress(f"check {path.name}", _size_of(path), in_bytes=True) as advance:
            scanned = await ingesting.scan_tar(path, advance)
        with output.progress(f"upload {path.name}", scanned.size, in_bytes=True) as advance:
            return await ingesting.upload_tar(_writer(services), dataset, path, scanned, advance)


async def _download(chosen: Settings, name: str, keys: Span, path: Path) -> tuple[int, int]:
    """Write the TAR; return (bytes, datapoints)."""
    async with open_services(chosen) as services:
        snapshot = await load_snapshot(services.catalog, name)
        found = sum(r.keys.intersection(keys).length for r in snapshot.from_key(keys.start))
        chunks = export_tar(snapshot, keys, services.indices, services.stores)
        size = 0
        with (
            output.progress(f"download {name}", None, in_bytes=True) as advance,
            _whole_or_not_at_all(path) as file,
        ):
            async with aclosing(chunks):
                async for chunk in chunks:
                    await trio.to_thread.run_sync(file.write, chunk)
                    size += len(chunk)
                    advance(len(chunk))
    return size, found


@contextmanager
def _whole_or_not_at_all(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of *path* once it is whole. Raises Invalid.

    What is there and no regular file (a pipe, /dev/stdout) is written to as it is, never replaced.
    """
    try:
        if path.exists() and (path.is_symlink() or not path.is_file()):
            with path.open("wb") as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".datas3tfs-", delete=False) as partial:
            try:
                yield cast(BinaryIO, partial)
                partial.flush()
                Path(partial.name).chmod(0o666 & ~_umask())
                Path(partial.name).replace(path)
            except BaseException:
                Path(partial.name).unlink(missing_ok=True)
                raise
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


async def _verify(chosen: Settings, name: str) -> tuple[list[Problem], int, int]:
    problems: list[Problem] = []
    checked = unknown = 0
    async with open_services(chosen) as services:
        snapshot = await load_snapshot(services.catalog, name)
        reports = verify_dataset(snapshot, services.indices, services.stores)
        with output.progress(f"verify {name}", snapshot.dataset.total_bytes, in_bytes=True) as advance:
            async with aclosing(reports):
                async for report in reports:
                    if isinstance(report, Progress):
                        advance(report.read)
                    elif isinstance(report, Problem):
                        problems.append(report)
                    elif isinstance(report, Verified):
                        checked += 1
                        unknown += not report.checksummed
    return problems, checked, unknown


def _writer(services: Services) -> Writer:
    return Writer(services.catalog.uploads, services.stores)


async def _sweep(services: Services) -> None:
    """Clear away what writers that died have left, so that the keys they held are free; not for long."""
    with trio.move_on_after(_SWEEP_SECONDS):
        catalog = services.catalog
        await sweep(catalog.uploads, catalog.leases, catalog.graveyard, services.stores)


@contextmanager
def _open_manifest(path: Path | None) -> Iterator[Callable[[Datarange, Sequence[ingesting.Source]], None]]:
    """Yield what appends a committed datarange's files, a line each, on disk before it returns."""
    if path is None:
        yield lambda datarange, files: None
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror}") from exc

    def record(datarange: Datarange, files: Sequence[ingesting.Source]) -> None:
        for key, source in enumerate(files, datarange.keys.start):
            line = {"key": key, "name": datapoint_name(key, source.extension), "path": str(source.path)}
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


def _report_committed(dataranges: Sequence[Datarange], as_json: bool) -> None:
    records: list[dict[str, Any]] = [datarange_record(datarange) for datarange in dataranges]
    if as_json:
        output.print_json({"dataranges": records})
        return
    points, size = sum(d.count for d in dataranges), sum(d.size for d in dataranges)
    output.say(
        f"{_counted(points, 'datapoint')} committed in {_counted(len(dataranges), 'datarange')} "
        f"({format_size(size)}), "
        f"keys {dataranges[0].keys.start} to {dataranges[-1].keys.last}"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

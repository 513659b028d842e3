"""What commands print: results on stdout, progress and remarks on stderr.

For a terminal tables are drawn by rich; for a pipe they are plain columns; for `--json` there is one
document. Text from outside is made harmless here, so commands hand over names as they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from datas3tfs.core.names import printable

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: which value of a record, under which title, shown how."""

    key: str
    title: str
    show: Callable[[Any], str] = str
    right: bool = False  # aligned, for figures


def print_table(records: Sequence[Record], columns: Sequence[Column], *, as_json: bool) -> None:
    """Print *records*: as JSON whole, as a table the *columns* of them."""
    if as_json:
        print_json(list(records))
        return
    rows = [[_cell(column, record) for column in columns] for record in records]
    if sys.stdout.isatty():
        _draw(rows, columns)
    else:
        _align(rows, columns)


def print_record(record: Record, *, as_json: bool, columns: Sequence[Column]) -> None:
    """Print one record: as JSON whole, otherwise the *columns* of it, one a line."""
    if as_json:
        print_json(record)
        return
    width = max(len(column.title) for column in columns)
    for column in columns:
        print(f"{column.title:<{width}}  {_cell(column, record)}".rstrip())


def print_json(document: Any) -> None:
    """Print one JSON document. ASCII only, so no name in it can drive a terminal."""
    print(json.dumps(document, indent=2, ensure_ascii=True))


def say(text: str) -> None:
    """Tell the person something that is not the result (on stderr)."""
    print(printable(text), file=sys.stderr)


@contextmanager
def progress(label: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr if that is a terminal; yield what advances it. *total* may be unknown."""
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    amounts = DownloadColumn(binary_units=True) if in_bytes else MofNCompleteColumn()
    parts = (TextColumn("{task.description}", markup=False), BarColumn(), amounts, TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(label), total=total)
        yield lambda amount: bar.advance(task, amount)


def _cell(column: Column, record: Record) -> str:
    value = record[column.key]
    return "-" if value is None else printable(column.show(value))


def _draw(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: "[red]" in a name is not markup
    Console().print(table)


def _align(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> None:
    lines = [[column.title for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            f"{cell:>{width}}" if column.right else f"{cell:<{width}}"
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())

"""Print rows as a table: a line for each party, and each goal with what came of it. Plain functions."""

from __future__ import annotations

from book import Book, Row

# Of the figures a sample may have: heading and how one is written.
FIGURES = {
    "gets_per_file": ("GET/file", ".3f"),
    "puts": ("PUTs", ".0f"),
    "fetched_per_byte": ("fetched/read", ".3f"),
    "reads_per_file": ("READ/file", ".3f"),
    "pushed_unread": ("pushed unread", ".1%"),
    "cpu_ms_per_file": ("CPU ms/file", ".4f"),
    "cpu": ("CPU s", ".2f"),
    "memory": ("RSS MiB", ".0f"),
    "slab_per_entry": ("slab B/entry", ".0f"),
    "first_line": ("first line s", ".3f"),
    "flush": ("flush s", ".2f"),
    "p50": ("p50 ms", ".3f"),
    "p99": ("p99 ms", ".3f"),
}
SCALE = {"memory": 1 / 2**20, "p50": 1e3, "p99": 1e3}


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(row: Row) -> list[str]:
    """Return the lines of one row."""
    shown = [f"{row.name}: {row.title} [{row.unit}]"]
    for party in row.samples:
        rate = row.spread(party)
        if rate is None:
            continue
        text = f"  {party:24} {number(rate.median):>9} [{number(rate.low)} – {number(rate.high)}]"
        rest = []
        for figure, (heading, form) in FIGURES.items():
            spread = row.spread(party, figure)
            if spread is not None:
                rest.append(f"{heading} {spread.median * SCALE.get(figure, 1):{form}}")
        shown.append(f"{text:56} {', '.join(rest)}".rstrip())
    return shown + goal_lines(row)


def goal_lines(row: Row) -> list[str]:
    shown = []
    for goal, spread in row.verdicts():
        if spread is None:
            verdict, figure = "not measured", "–"
        else:
            verdict = "reached" if goal.reached(spread.median) else "MISSED"
            figure = spread.shown(".3g")
        shown.append(f"    {verdict:12} #{goal.issue} {goal.text}: {figure}")
    return shown


def summary(book: Book) -> list[str]:
    """Return all goals in one place, and who could not take part."""
    shown = ["", "== goals =="]
    for row in book.rows:
        shown += [f"{line.strip():110} ({row.name})" for line in goal_lines(row)]
    if book.absent:
        shown += ["", "== absent =="]
        shown += [f"{party}: {reason}" for party, reason in book.absent.items()]
    return shown

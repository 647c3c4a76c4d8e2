"""Show people how their annotations were understood."""

from __future__ import annotations

from teachclip.console import log, visible
from teachclip.data.annotations.records import Understood
from teachclip.reports.tables import Table, markdown_table

MAX_CELL = 60
"""Characters of a caption in a table of first rows."""


def understood_table(understood: Understood) -> Table:
    """Return how annotations of one's own were understood: their first rows, long captions shortened."""
    rows = [
        [cell if len(cell) <= MAX_CELL else cell[: MAX_CELL - 1] + "…" for cell in row] for row in understood.rows
    ]
    return Table(understood.title, understood.header, rows)


def print_understood(understood: Understood) -> None:
    """Print how annotations of one's own were understood, with their first rows and what should be confirmed."""
    print_table(understood_table(understood))
    for doubt in understood.doubts:
        log(f"please confirm: {doubt}")


def print_table(table: Table) -> None:
    """Print a table with its title and a blank line."""
    print(f"{visible(table.title)}\n{markdown_table(table)}\n", flush=True)

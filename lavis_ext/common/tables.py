"""Tables and aligned facts as text: wrapped on a terminal, never truncated in a file or a pipe."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, TypeVar

from lavis_ext.common.errors import printable, shortened

if TYPE_CHECKING:
    # Imported on first use, because importing rich takes 0.1 s.
    from rich.table import Table as RichTable

LONGEST_CELL = 100
"""Maximum characters of a cell; ids and answers come from data and may be of any length."""
GAP = 2
UNLIMITED = 1_000_000
NO_VALUE = ("", "-")

Row = Sequence[str]
Cell = TypeVar("Cell")


@dataclass(frozen=True)
class Table:
    """Rows of cells. ``str()`` lays them out as plain text without wrapping.

    Attributes:
        rows: rows of equal length, without the header.
        header: column titles; empty for none.
        right: whether each column is right-aligned.
        first_width: minimum width of the first column in characters.
    """

    rows: tuple[tuple[str, ...], ...]
    header: tuple[str, ...]
    right: tuple[bool, ...]
    first_width: int = 0

    def text(self, width: int = UNLIMITED) -> str:
        """The table in lines of at most ``width`` characters; long cells are wrapped."""
        from rich.console import Console

        file = StringIO()
        Console(file=file, width=width, color_system=None, force_jupyter=False).print(self.rich())
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def rich(self) -> "RichTable":
        """The table as a rich renderable."""
        from rich.table import Table as RichTable
        from rich.text import Text

        laid_out = RichTable(
            box=None,
            show_header=bool(self.header),
            header_style="bold",
            padding=(0, GAP, 0, 0),
            pad_edge=False,
        )
        for place, right in enumerate(self.right):
            laid_out.add_column(
                Text(self.header[place]) if self.header else "",
                justify="right" if right else "left",
                no_wrap=right,
                overflow="fold",
                min_width=self.first_width if place == 0 else None,
            )
        for row in self.rows:
            laid_out.add_row(*map(Text, row))  # a plain string would be parsed as markup
        return laid_out

    def __str__(self) -> str:
        return self.text()


def table(rows: Iterable[Row], header: Row = ()) -> Table:
    """A table with numeric columns, except the first, aligned to the right."""
    cells = tuple(tuple(shortened(cell, LONGEST_CELL) for cell in row) for row in rows)
    columns = list(zip(*cells, strict=True)) or [() for _ in header]
    right = (place > 0 and _holds_numbers(column) for place, column in enumerate(columns))
    return Table(cells, tuple(header), tuple(right))


def facts(rows: Iterable[tuple[str, str]], width: int = 0, header: Row = ()) -> Table:
    """A table of labels and values; an empty label continues the previous one.

    ``width`` is the labels' minimum width, for facts that are printed one at a time.
    """
    cells = tuple((printable(label), printable(value)) for label, value in rows)
    return Table(cells, tuple(header), (False, False), width)


def markdown(rows: Iterable[Row], header: Row) -> str:
    """A Markdown table, one line per row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def show(*parts: Table | str) -> None:
    """Print tables and lines to standard output, separated by empty lines."""
    if not sys.stdout.isatty():
        with suppress(BrokenPipeError):  # its reader, such as `head`, has enough
            print("\n\n".join(map(str, parts)))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for place, part in enumerate(parts):
        if place:
            console.print()
        console.print(part.rich() if isinstance(part, Table) else Text(printable(part)))


def _holds_numbers(cells: Sequence[str]) -> bool:
    values = [cell for cell in cells if cell not in NO_VALUE]
    return all(value.lstrip("+-±")[:1].isdecimal() for value in values)

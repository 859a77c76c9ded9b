"""Tables that lose nothing: where the terminal is too narrow for one, every row becomes a paragraph."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

HARD_SPACE = "\u00a0"  # where lines do not break
ANY_WIDTH = 100_000  # more than tables have


class Listing:
    """Rows for people, which Rich can print; the first columns are aligned to the left, all others to the right."""

    def __init__(self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int, ruled: bool) -> None:
        self.headings, self.rows, self.num_left, self.ruled = headings, rows, num_left, ruled

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator[Any]:
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD if self.ruled else None, pad_edge=False)
        for index, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if index < self.num_left else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        if Measurement.get(console, options.update(max_width=ANY_WIDTH), table).maximum <= options.max_width:
            yield table
        else:
            yield "\n".join(self.narrow(options.max_width))

    def narrow(self, width: int) -> list[str]:
        """Return a paragraph for each row: the columns on the left, and below them the values, named by headings."""
        lines = []
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)][: self.num_left - 1]
        for row in self.rows:
            *padded, last = row[: self.num_left]
            lines.append("  ".join([*(cell.ljust(n) for cell, n in zip(padded, widths, strict=True)), last]))
            named = zip(self.headings[self.num_left :], row[self.num_left :], strict=True)
            pairs = [f"{heading} {value}".strip().replace(" ", HARD_SPACE) for heading, value in named if value]
            options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
            wrapped = textwrap.wrap("  ".join(pairs), max(width - 2, 1), **options)
            lines += [f"  {line.replace(HARD_SPACE, ' ')}" for line in wrapped]
        return lines

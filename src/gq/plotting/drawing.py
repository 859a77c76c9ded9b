"""Whatever is drawn, ready for every way out: a picture file, a terminal, a table, JSON and CSV."""

import csv
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gq.plotting.style import brief
from gq.plotting.terminal import Row

HARD_SPACE = "\u00a0"  # where lines do not break


@dataclass(frozen=True)
class Table:
    """A table for people; the first column is text."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""

    @property
    def width(self) -> int:
        """Characters of a row, with two between columns."""
        columns = zip(self.headings, *self.rows, strict=True)
        return sum(max(map(len, column)) + 2 for column in columns)

    def narrow(self, width: int) -> list[str]:
        """Return the table for a terminal that is too narrow for it: below each name its values, named too."""
        lines = []
        for name, *values in self.rows:
            pairs = [f"{heading} {value}" for heading, value in zip(self.headings[1:], values, strict=True) if value]
            lines += textwrap.wrap(name, width)
            unbroken = "  ".join(pair.replace(" ", HARD_SPACE) for pair in pairs)
            wrapped = textwrap.wrap(unbroken, width - 2, break_long_words=False)
            lines += [f"  {line.replace(HARD_SPACE, ' ')}" for line in wrapped]
        return lines


@dataclass(frozen=True)
class Drawing:
    """Something to draw."""

    name: str  # of its file where the user gives none
    document: dict[str, Any]  # for JSON
    fields: Sequence[str]  # of the points, which CSV has
    points: list[Sequence[Any]]
    numbers: list[float]  # the most important ones
    tables: list[Table]
    write: Callable[[Path], None]
    in_terminal: Callable[[int], list[Row]]  # by the width in characters
    caption: str = ""
    notes: list[str] = field(default_factory=list)

    def csv(self) -> str:
        """Return all points, one a row."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.fields)
        writer.writerows(self.points)
        return stream.getvalue().rstrip("\n")


def between(low: float, high: float) -> str:
    """Return an interval for a table."""
    return f"{brief(low)} … {brief(high)}"

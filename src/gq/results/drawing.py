"""Whatever is drawn, ready for every way out: a picture file, a terminal, a table, JSON and CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gq.results.style import brief
from gq.results.terminal import Row


@dataclass(frozen=True)
class Table:
    """A table for people; the first column is text."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""


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

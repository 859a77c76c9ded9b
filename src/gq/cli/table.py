"""`gq table`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.results.tables import ResultTable, Which

EXAMPLES = """\b
Examples:
  gq table seed-0 seed-1 seed-2
  gq table 'hopper-*' 'walker-*' --last     patterns, of ids or paths
  gq table 'runs/*' --iqm --format latex -o results.tex
  gq table 'runs/*' --returns --json
  gq table sizes                            all runs of a sweep
Rows are datasets (or tasks), columns methods: an algorithm with
what its settings tell it apart by. Runs that differ by their
seeds are one cell: mean [95 % interval] (number of runs).
Evaluations on record count, at each run's highest target."""


class Format(StrEnum):
    """How a table is written."""

    markdown = "md"
    latex = "latex"
    csv = "csv"
    json = "json"


@dataclass(frozen=True)
class What:
    """Which number of a run counts."""

    returns: Annotated[bool, typer.Option("--returns", help="Returns, even where all runs have scores.")] = False
    iqm: Annotated[bool, typer.Option("--iqm", help="The interquartile mean over seeds instead of the mean.")] = False
    last: Annotated[bool, typer.Option("--last", help="Last checkpoints instead of best ones.")] = False
    maximum: Annotated[
        bool,
        typer.Option("--maximum", help="The highest evaluation while training, as papers often report."),
    ] = False

    @property
    def which(self) -> "Which":
        """Which of a run's returns count. Raises UsageError."""
        if self.last and self.maximum:
            raise UsageError("--last and --maximum are two tables", hint="omit one of them")
        return "last" if self.last else "maximum" if self.maximum else "best"


@options.grouped
def table(
    *,
    runs: Annotated[
        list[str],
        options.completed(
            "RUN", "Ids, prefixes, paths or patterns of runs, or sweeps.", options.known_runs, kind=typer.Argument
        ),
    ],
    form: Annotated[
        Format | None, typer.Option("--format", help="Write the table in this format; default: for people.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to; default: to stdout.")
    ] = None,
    what: What,
    force: options.Force = False,
    output: Output,
) -> None:
    """Show what many runs came to: datasets x methods, seeds together, with intervals and aggregates."""
    from gq.paths import find_runs

    if file and form is None:
        known = {".md": Format.markdown, ".tex": Format.latex, ".csv": Format.csv, ".json": Format.json}
        if (form := known.get(file.suffix.lower())) is None:
            raise UsageError(
                f"{file} does not say its format", hint="end it in .md, .tex, .csv or .json, or use --format"
            )
    if file:
        options.refuse_existing(file, force=force)
    folders = find_runs(runs)
    from gq import threads

    threads.prepare()
    from gq.results.tables import formatted, result_table

    found = result_table(
        folders,
        unit="return" if what.returns else None,
        statistic="iqm" if what.iqm else "mean",
        which=what.which,
    )
    for note in found.notes:
        output.note(note)
    if file:
        from gq.files import write_text

        write_text(file, formatted(found, form or Format.json) + "\n")
        output.result({"output": str(file), **found.document()}, quiet=file, human=str(file))
        return
    text = formatted(found, form) if form else ""
    output.result(found.document(), quiet=text or formatted(found, "csv"), human=text or _shown(output, found))


def _shown(output: Output, found: "ResultTable") -> Any:
    """Return what people see."""
    from rich.console import Group

    from gq.results.tables import lines_of

    headings, rows = lines_of(found)
    unit = "normalised scores" if found.unit == "score" else "returns"
    statistic = "IQM" if found.statistic == "iqm" else "mean"
    which = "highest evaluation while training" if found.which == "maximum" else f"{found.which} checkpoints"
    caption = f"{statistic} over runs of {unit}, {which} [95 % interval] (runs)"
    better = [
        f"P({one} > {other}) = {value:.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
        for one, other, value, ends in found.improvements
    ]
    return Group(output.table([headings[0] or found.unit, *headings[1:]], rows), *better, caption)

"""Results of many runs as a table: a row for each dataset or task, a column for each method, seeds in the cells.

A method is an algorithm with its settings. Of each run one number counts, a return at the highest of its own targets or
its normalised score:

- last: of its last checkpoint, from evaluations on record;
- best: of the checkpoint that was best on the episodes that choose it, from evaluations on record, which are others;
- maximum: the highest evaluation while training, on the episodes that choose. Papers often report it; it is no estimate
  of what a policy returns.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gq.envs.scores import Reference
from gq.errors import GqError, UsageError
from gq.paths import json_or_empty
from gq.results import aggregates
from gq.results.history import History, method_of, read_settings, repeated_seeds
from gq.rollouts.intervals import interquartile_mean, mean_interval
from gq.runs.bound import check_run
from gq.runs.checkpoint import choose_checkpoint
from gq.runs.evaluations import Evaluations, read_evaluations
from gq.runs.records import number_in

Unit = Literal["return", "score"]
Statistic = Literal["mean", "iqm"]
Which = Literal["last", "best", "maximum"]
WHICH: tuple[Which, ...] = get_args(Which)
THRESHOLDS = np.arange(0.0, 121.0, 10.0)  # of performance profiles, in scores


@dataclass(frozen=True)
class Returns:
    """The returns of a run that count."""

    target: float | None  # that they were acted for
    values: np.ndarray  # float64 [episodes]; the maximum while training is one value, a mean itself
    reference: Reference | None  # of scores


@dataclass(frozen=True)
class RunResult:
    """What one run came to."""

    run: Path
    row: str  # its dataset, or its task
    target: float | None
    returns: np.ndarray  # [episodes]
    scale: Callable[[float], float]  # from a return to the table's unit

    @property
    def value(self) -> float:
        """Its mean return in the table's unit."""
        return self.scale(float(self.returns.mean()))


@dataclass(frozen=True)
class Cell:
    """The runs of a method on a dataset."""

    values: list[float]  # of each run
    value: float
    interval: tuple[float, float] | None  # over runs; of a single run over its episodes
    target: float | None
    runs: list[str]


@dataclass(frozen=True)
class ResultTable:
    """A table of results."""

    unit: Unit
    statistic: Statistic
    which: Which
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]  # by row and column
    overall: dict[str, dict[str, tuple[float, tuple[float, float] | None]]] = field(default_factory=dict)
    improvements: list[tuple[str, str, float, tuple[float, float] | None]] = field(default_factory=list)
    profiles: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        cells = [{"row": row, "column": column, **asdict(cell)} for (row, column), cell in self.cells.items()]
        return {
            "unit": self.unit,
            "statistic": self.statistic,
            "checkpoint": self.which,
            "rows": self.rows,
            "columns": self.columns,
            "cells": cells,
            "overall": self.overall,
            "probability_of_improvement": [
                {"of": a, "over": b, "value": value, "interval": ends} for a, b, value, ends in self.improvements
            ],
            "profiles": {"thresholds": THRESHOLDS.tolist(), **self.profiles} if self.profiles else None,
            "notes": self.notes,
        }


def result_table(
    runs: Sequence[Path],
    *,
    unit: Unit | None = None,
    statistic: Statistic = "mean",
    which: Which = "best",
    methods: Mapping[Path, str] | None = None,
) -> ResultTable:
    """Return the table of some runs, with aggregates over rows where all methods have all of them.

    Args:
        unit: None takes scores where all runs have them.
        statistic: of the runs of a cell.
        methods: names of the runs' methods; None: by what their settings differ in.

    Raises:
        UsageError: no run has an evaluation that counts, or scores are asked for that not all have.
        GqError: a run's configuration cannot be read.
    """
    notes: list[str] = []
    on_record = {run: found for run in runs if (found := measured(run, which, notes))}
    if not on_record:
        hint = f"evaluate them: gq eval {runs[0].name}" if runs else "name runs, or a pattern such as 'hopper-*'"
        raise UsageError("no run has an evaluation on record", hint=hint)
    histories = [History(run, read_settings(run), []) for run in on_record]
    if unit is None:
        unit = "score" if all(found.reference for found in on_record.values()) else "return"
    columns = [methods[history.run] for history in histories] if methods else method_of(histories)
    results: dict[tuple[str, str], list[tuple[History, RunResult]]] = {}
    for history, column in zip(histories, columns, strict=True):
        result = _result(history, on_record[history.run], unit)
        results.setdefault((result.row, column), []).append((history, result))
    cells = {place: _cell(found, statistic, notes) for place, found in results.items()}
    rows = sorted({row for row, _ in cells})
    table = ResultTable(unit, statistic, which, rows, list(dict.fromkeys(columns)), cells, notes=notes)
    _aggregate(table)
    return table


def measured(run: Path, which: Which, notes: list[str]) -> Returns | None:
    """Return the returns that count; None, with a note, without any."""
    try:
        folder = choose_checkpoint(run, "last" if which == "maximum" else which)
        check_run(run, folder)
        found = read_evaluations(run).of(folder)
    except (GqError, UsageError) as error:
        notes.append(f"{run.name} is left out: {error}")
        return None
    target = max(found.targets, default=None)
    if which == "maximum":
        return _maximum(folder, found, notes)
    row = found.fullest
    if row is None:
        wanted = f" at its highest target, {target:g}" if target is not None else ""
        notes.append(f"{run.name} is left out: its {which} checkpoint was not evaluated{wanted} (gq eval {run.name})")
        return None
    return Returns(target, row.returns, found.reference)


def _maximum(checkpoint: Path, found: Evaluations, notes: list[str]) -> Returns | None:
    """Return the highest evaluation while training, which a checkpoint's state has."""
    highest = number_in(json_or_empty(checkpoint / "state.json").get("progress", {}), "best_return")
    if highest is None:
        notes.append(f"{found.run.name} is left out: it did not evaluate while training (eval.every = 0)")
        return None
    return Returns(max(found.targets, default=None), np.array([highest]), found.reference)


def _result(history: History, found: Returns, unit: Unit) -> RunResult:
    if unit == "score" and found.reference is None:
        message = f"there is no reference for scores of {history.settings['task']}, which {history.run.name} is of"
        raise UsageError(message, hint="omit --scores")
    return RunResult(
        run=history.run,
        row=str(history.settings.get("data.dataset") or history.settings["task"]),
        target=found.target,
        returns=found.values,
        scale=found.reference.score if found.reference and unit == "score" else float,
    )


def _cell(found: Sequence[tuple[History, RunResult]], statistic: Statistic, notes: list[str]) -> Cell:
    """Return the cell of runs that differ by their seeds."""
    histories, results = zip(*found, strict=True)
    values = np.array([one.value for one in results])
    repeated = repeated_seeds(histories)
    if repeated:
        notes.append(repeated)
    ends = None if repeated else mean_interval(values, fewest=2)
    if len(values) == 1 and (around := mean_interval(results[0].returns)):
        ends = results[0].scale(around[0]), results[0].scale(around[1])
    return Cell(
        values=values.tolist(),
        value=interquartile_mean(values) if statistic == "iqm" else float(values.mean()),
        interval=ends if statistic == "mean" else None,
        target=results[0].target,
        runs=[one.run.name for one in results],
    )


def _aggregate(table: ResultTable) -> None:
    """Add aggregates over rows, for the methods that have all of them, where values are scores of several rows."""
    whole = [column for column in table.columns if all((row, column) in table.cells for row in table.rows)]
    left_out = [column for column in table.columns if column not in whole]
    if table.unit != "score" or len(table.rows) < 2 or not whole:
        return
    if left_out:
        table.notes.append(f"not all rows are of {', '.join(left_out)}: no aggregates of these")
    scores = {column: [np.array(table.cells[row, column].values) for row in table.rows] for column in whole}
    for column, own in scores.items():
        table.overall[column] = {
            name: (statistic(own), aggregates.interval(statistic, own))
            for name, statistic in aggregates.STATISTICS.items()
        }
        table.profiles[column] = [round(share, 6) for share in aggregates.profile(own, THRESHOLDS).tolist()]
    for index, one in enumerate(whole):
        for other in whole[index + 1 :]:
            pair = scores[one], scores[other]
            ends = aggregates.improvement_interval(*pair)
            table.improvements.append((one, other, aggregates.improvement(*pair), ends))


def text_of(cell: Cell | None) -> str:
    """Return a cell in characters: the value, its interval and the number of runs."""
    if cell is None:
        return ""
    digits = 1 if abs(cell.value) < 100 else 0
    text = f"{cell.value:,.{digits}f} {ends_text(cell.interval, digits)}".strip()
    return text + (f" ({len(cell.values)})" if len(cell.values) > 1 else "")


def ends_text(interval: tuple[float, float] | None, digits: int) -> str:
    """Return the ends of an interval in characters; "" without one."""
    return f"[{interval[0]:,.{digits}f}, {interval[1]:,.{digits}f}]" if interval else ""


def lines_of(table: ResultTable) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows in characters, aggregates at the end."""
    rows = [[row, *(text_of(table.cells.get((row, column))) for column in table.columns)] for row in table.rows]
    for name in aggregates.STATISTICS if table.overall else ():
        found = [table.overall.get(column, {}).get(name) for column in table.columns]
        rows.append([name, *(_overall_text(one) for one in found)])
    return ["", *table.columns], rows


def _overall_text(one: tuple[float, tuple[float, float] | None] | None) -> str:
    if one is None:
        return ""
    value, ends = one
    return f"{value:.1f} {ends_text(ends, 1)}".strip()


def formatted(table: ResultTable, form: str) -> str:
    """Return a table as Markdown, LaTeX (booktabs), CSV or JSON text."""
    if form == "json":
        return json.dumps(table.document(), indent=2, allow_nan=False)
    headings, rows = lines_of(table)
    if form == "csv":
        return "\n".join(",".join(map(_quoted, row)) for row in [headings, *rows])
    if form == "latex":
        body = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
        cut = len(table.rows)
        inner = [*body[:cut], *([r"\midrule"] if body[cut:] else []), *body[cut:]]
        head = " & ".join(map(_latex, headings)) + r" \\"
        columns = "l" + "r" * len(table.columns)
        parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
        return "\n".join([*parts, *inner, r"\bottomrule", r"\end{tabular}"])
    return markdown(headings, rows)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int = 1) -> str:
    """Return a table as Markdown, the first columns aligned to the left."""
    rule = ["---"] * num_left + ["---:"] * (len(headings) - num_left)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in [headings, rule, *rows]
    )


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text


def _latex(text: str) -> str:
    for mark in "\\&%$#_{}":
        text = text.replace(mark, r"\textbackslash{}" if mark == "\\" else f"\\{mark}")
    return text

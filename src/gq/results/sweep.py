"""What modes of a planner return for what they cost, as pictures: the newest sweep of each run."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.errors import GqError, UsageError
from gq.results.behaviour import Point, best, strategy_of
from gq.results.style import GREY, LEGEND_ROW_INCHES, PANEL_INCHES, Drawing, Row, Table, line_style
from gq.results.terminal import draw_lines, numbered
from gq.runs.evaluations import read_evaluations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"planner_calls_per_step": "planner calls per decision", "decision_ms_mean": "milliseconds per decision, mean"}
TOLERATED_LOSS = 0.02  # of the baseline's return; the lower dashed line
MIN_LABEL_DISTANCE = 0.09  # share of the axis between names
MIN_DECADE = 5  # ratio of costs from which the numbers 1, 2 and 5 are enough on an axis
LEGEND_COLUMNS = 4
PANEL_HEIGHT_INCHES = 2.6
FIELDS = (
    *("mode", "return_mean", "return_iqm", "retention", "planner_calls_per_step", "model_evaluations_per_step"),
    *("decision_ms_mean", "decision_ms_p50", "decision_ms_p95", "decision_ms_p99", "accepted_length_mean"),
)


@dataclass(frozen=True)
class Sweep:
    """Several modes of a run, evaluated on the same seeds."""

    run: Path
    file: Path
    task: str
    checkpoint: str
    results: list[dict[str, Any]]

    @property
    def baseline(self) -> float | None:
        """Return what the baseline returned, None without one."""
        found = [row["return_mean"] for row in self.results if row["mode"] in ("baseline", "plan")]
        return found[0] if found else None

    def points(self, cost: str) -> list[Point]:
        """Return the modes that have a cost, by the name of its field."""
        return [
            Point(row["mode"], strategy_of(row["mode"]), row[cost], row["return_mean"])
            for row in self.results
            if row[cost] is not None
        ]


def read_sweep(run: Path) -> Sweep:
    """Read the newest evaluation of a run that compares modes.

    Raises:
        GqError: a file cannot be read.
        UsageError: there is none.
    """
    evaluations = read_evaluations(run)
    if evaluations.problems:
        raise GqError(evaluations.problems[0], hint="remove it, and evaluate again")
    for file, found in groupby(evaluations.rows, key=lambda row: row.file):
        rows = [row for row in found if row.stored.get("planner_calls_per_step") is not None]
        if len(rows) > 1:
            return Sweep(run, file, evaluations.task, rows[0].checkpoint, [dict(row.stored) for row in rows])
    hint = f"make one: gq eval {shlex.quote(str(run))} --mode sweep"
    raise UsageError(f"{run} has no evaluation of several modes", hint=hint)


def _document_of(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    return {
        "sweeps": [
            {
                "run": sweep.run.name,
                "task": sweep.task,
                "checkpoint": sweep.checkpoint,
                "evaluation": str(sweep.file),
                "frontiers": {cost: [point.mode for point in best(sweep.points(cost))] for cost in COSTS},
                "results": sweep.results,
            }
            for sweep in sweeps
        ]
    }


def _draw(figure: "Figure", sweeps: Sequence[Sweep], strategies: Sequence[str]) -> None:
    """Draw return against planner calls and against milliseconds, a row of panels per run, one legend below."""
    grid = figure.subplots(len(sweeps), len(COSTS), squeeze=False, sharey="row")
    for row, sweep in zip(grid, sweeps, strict=True):
        for axes, cost in zip(row, COSTS, strict=True):
            _draw_sweep(axes, sweep, cost, strategies)
        row[0].set_ylabel("return, 95 % interval")
        row[0].set_title(f"{sweep.task}, {sweep.run.name}", loc="left")
    labelled: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(list(labelled.values()), list(labelled), loc="outside lower left", ncols=LEGEND_COLUMNS)


def _draw_sweep(axes: "Axes", sweep: Sweep, cost: str, strategies: Sequence[str]) -> None:
    """Draw a run's modes: a line per strategy, the frontier behind them, with names where it turns."""
    points = sweep.points(cost)
    positive = [point.cost for point in points if point.cost > 0]
    free = min(positive, default=1.0) / 1.7  # where what costs nothing is drawn, on an axis that has no 0
    if sweep.baseline is not None:
        axes.axhline(sweep.baseline, color=GREY, linewidth=0.8, linestyle="--", label="baseline's return")
        share = (1 - TOLERATED_LOSS) * sweep.baseline
        label = f"{100 * TOLERATED_LOSS:.0f} % less"
        axes.axhline(share, color=GREY, linewidth=0.8, linestyle=":", label=label)
    frontier = best(points)
    places = [max(point.cost, free) for point in frontier]
    ends = [*places, max([free, *positive])]
    heights = [point.value for point in frontier]
    axes.step(ends, [*heights, heights[-1]], where="post", color="#d0d0d0", linewidth=5, zorder=0.5, label="frontier")
    nothing = (math.nan, math.nan)
    intervals = {row["mode"]: row["return_ci95"] or nothing for row in sweep.results}
    for strategy in dict.fromkeys(point.strategy for point in points):
        index = strategies.index(strategy)
        mine = sorted((p for p in points if p.strategy == strategy), key=lambda point: point.cost)
        x, y = [max(point.cost, free) for point in mine], [point.value for point in mine]
        band = [[abs(point.value - intervals[point.mode][end]) for point in mine] for end in (0, 1)]
        style: dict[str, Any] = line_style(index) | {"linewidth": 1, "markersize": 4}
        axes.errorbar(x, y, band, elinewidth=0.6, alpha=0.9, label=strategy, **style)
    last = math.inf
    for place, point in reversed(list(zip(places, frontier, strict=True))):  # the best are named, and who has room
        if math.log(last / place) > MIN_LABEL_DISTANCE * math.log(ends[-1] / free):
            side = "right" if place == ends[-1] else "left" if place == places[0] else "center"
            style = {"fontsize": 6.5, "ha": side}
            axes.annotate(point.mode, (place, point.value), (0, 7), textcoords="offset points", **style)
            last = place
    _scale_costs(axes, free, positive, has_free=len(positive) < len(points))
    axes.set_xlabel(COSTS[cost])


def _scale_costs(axes: "Axes", free: float, positive: Sequence[float], *, has_free: bool) -> None:
    """Give an axis of costs a logarithmic scale with plain numbers, and a 0 where something costs nothing."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    highest = max(positive, default=1.0)
    lowest = min(positive, default=1.0)
    steps = (1, 2, 5) if highest / lowest > MIN_DECADE else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    ticks = [m * 10.0**e for e in range(-4, 5) for m in steps if 0.9 * lowest <= m * 10.0**e <= 1.1 * highest]
    axes.set_xscale("log")
    axes.set_xlim((free if has_free else lowest) / 1.2, 1.2 * highest)
    axes.xaxis.set_major_locator(FixedLocator([*([free] if has_free else []), *ticks]))
    axes.xaxis.set_major_formatter(lambda x, _: "0" if has_free and x <= 1.01 * free else f"{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def sweep_drawing(sweeps: Sequence[Sweep]) -> Drawing:
    """Return what modes return for what they cost, and a table of those that no cheaper one equals."""
    rows = []
    for sweep in sweeps:
        by_mode = {row["mode"]: row for row in sweep.results}
        for point in best(sweep.points("planner_calls_per_step")):
            row = by_mode[point.mode]
            kept = "-" if row["retention"] is None else f"{100 * row['retention']:.1f} %"
            spent = "-" if row["decision_ms_mean"] is None else f"{row['decision_ms_mean']:.2f}"
            rows.append((sweep.run.name, point.mode, f"{point.value:.0f}", kept, f"{point.cost:.3f}", spent))
    results = [(sweep, row) for sweep in sweeps for row in sweep.results]
    strategies = list(dict.fromkeys(strategy_of(row["mode"]) for _, row in results))
    legend_rows = math.ceil((len(strategies) + 3) / LEGEND_COLUMNS) + 1
    height = PANEL_HEIGHT_INCHES * len(sweeps) + LEGEND_ROW_INCHES * legend_rows
    return Drawing(
        name="sweep",
        size=(PANEL_INCHES[0] * len(COSTS), height),
        draw=partial(_draw, sweeps=sweeps, strategies=strategies),
        in_terminal=partial(_terminal_rows, sweeps),
        document=_document_of(sweeps),
        fields=("run", "task", *FIELDS),
        points=[[sweep.run.name, sweep.task, *(row[name] for name in FIELDS)] for sweep, row in results],
        numbers=[row["return_mean"] for _, row in results],
        tables=[Table(["no cheaper mode returns more", "mode", "return", "kept", "calls/step", "ms"], rows)],
    )


def _terminal_rows(sweeps: Sequence[Sweep], width: int) -> list[Row]:
    cost = "planner_calls_per_step"
    rows: list[Row] = []
    for sweep in sweeps:
        points = sweep.points(cost)
        lines = []
        for index, strategy in enumerate(dict.fromkeys(strategy_of(point.mode) for point in points)):
            mine = sorted((point.cost, point.value) for point in points if point.strategy == strategy)
            x, y = np.array(mine, float).T
            lines.append(numbered(strategy, x, y, index))
        title = f"{sweep.task}, {sweep.run.name}"
        picture_rows = draw_lines(lines, width=width, x_name=COSTS[cost], y_name="return", from_zero=False)
        rows += [[(title, "")], *picture_rows, []]
    return rows

"""What policies returned for their target returns, beside the returns of the data that they learnt from."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.datasets.loading import load_dataset
from gq.errors import GqError, UsageError
from gq.results.curves import Aggregate, Band, Curve, aggregate, band_of, describe, kind_of_band
from gq.results.history import History, groups_by_task, is_number, read_records, read_settings, repeated_seeds
from gq.results.style import (
    GREY,
    STRONG_GREY,
    Drawing,
    Row,
    Table,
    add_legend,
    between,
    brief,
    draw_panels,
    line_style,
    number_axis,
    panel_grid,
)
from gq.results.terminal import GREY as DIM
from gq.results.terminal import Line, draw_lines, numbered
from gq.rollouts.intervals import mean_interval
from gq.runs.evaluations import read_evaluations
from gq.runs.metrics import keys_by_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPISODES_BAND = "bars: 95 % interval over episodes"
DIAGONAL, RUG = "return = target", "returns of the data"
MORE_INCHES = 0.4  # of height than other panels have, as both axes are returns
MAX_RUG = 400  # strokes; of more episodes their quantiles


@dataclass(frozen=True)
class _Achieved:
    """What one run achieved; targets in increasing order."""

    history: History
    returns: dict[float, np.ndarray]  # [episodes] by target; a mean alone where only that is on record
    checkpoint: str  # "" where it is not on record


@dataclass(frozen=True)
class TargetReturns:
    """Lines of some runs, and the returns of the data that they learnt from."""

    lines: list[Curve]  # x is the target return
    data: dict[str, np.ndarray]  # by task: [episodes], or quantiles of them, in increasing order
    aggregate: Aggregate
    notes: list[str]

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the runs."""
        return list(dict.fromkeys(line.task for line in self.lines))

    def bands(self, task: str | None = None) -> list[str]:
        """Say what lines and intervals are, of a task or of all."""
        chosen = [line for line in self.lines if task in (None, line.task) and (line.band or len(line.runs) > 1)]
        kinds = dict.fromkeys(line.band for line in chosen)
        return [EPISODES_BAND if kind == "episodes" else describe(kind, self.aggregate, "bars") for kind in kinds]

    def caption(self) -> str:
        """Say what all lines and intervals are."""
        return "; ".join(self.bands())


def read_targets(runs: Sequence[Path], *, aggregate: Aggregate = "mean", band: Band = "auto") -> TargetReturns:
    """Read the newest evaluations of runs at their targets, or what they logged last; seeds become one line.

    Args:
        aggregate, band: of several runs, see `gq.results.curves.read_learning`; the intervals of a single run are of
            the mean over its episodes.

    Raises:
        GqError: a run's files cannot be read.
        UsageError: a run takes no target return, or was not evaluated yet.
    """
    found = {run: _read_achieved(run) for run in dict.fromkeys(run.resolve() for run in runs)}
    notes = [
        f"{run.name} has no stored evaluation: its last one while it trained"
        for run, one in found.items()
        if not one.checkpoint
    ]
    lines, data = [], {}
    for _, name, group in groups_by_task([one.history for one in found.values()], final=True):
        lines += _group_lines(name, [found[history.run] for history in group], aggregate, band)
        if len(lines[-1].runs) > 1 and (repeated := repeated_seeds(group)):
            notes.append(repeated)
    for task in dict.fromkeys(line.task for line in lines):
        histories = [one.history for one in found.values() if one.history.settings["task"] == task]
        returns, problem = _returns_of_data(histories)
        if returns is not None:
            data[task] = returns
        notes += [problem] if problem else []
    return TargetReturns(lines, data, aggregate, notes)


def _read_achieved(run: Path) -> _Achieved:
    settings = read_settings(run)
    if settings["algo"] in ("bc", "td3bc", "tdmpc2"):
        hint = f"its returns: gq plot {shlex.quote(str(run))}"
        raise UsageError(f"{run} is a {settings['algo']} run, which takes no target return", hint=hint)
    history = History(run, settings, [])
    evaluations = read_evaluations(run)
    if evaluations.problems:
        raise GqError(evaluations.problems[0], hint="remove it, and evaluate again")
    returns: dict[float, np.ndarray] = {}
    rows = evaluations.rows
    for row in rows:  # like the newest one, and of those the newest of each target
        if row.protocol == rows[0].protocol and row.way.target is not None and row.way.target not in returns:
            returns[row.way.target] = row.returns
    if returns:
        return _Achieved(history, dict(sorted(returns.items())), rows[0].checkpoint)
    for record in read_records(run / "metrics.jsonl"):
        for target, key in keys_by_target(record).items():
            if is_number(record[key]):
                returns[target] = np.array([record[key]], float)
    if not returns:
        raise UsageError(f"{run} has no evaluation yet", hint=f"gq eval {shlex.quote(str(run))}")
    return _Achieved(history, dict(sorted(returns.items())), "")


def _group_lines(name: str, group: Sequence[_Achieved], how: Aggregate, wanted: Band) -> list[Curve]:
    targets = [target for target in group[0].returns if all(target in one.returns for one in group)]
    if not targets:
        apart = [", ".join(filter(None, [name, one.history.run.name])) for one in group]
        return [line for own, one in zip(apart, group, strict=True) for line in _group_lines(own, [one], how, wanted)]
    values = np.array([[one.returns[target].mean() for target in targets] for one in group])  # [runs, targets]
    band = kind_of_band(len(group), "none" if repeated_seeds([one.history for one in group]) else wanted)
    low, high = band_of(values, how, band)
    if len(group) == 1 and group[0].checkpoint and wanted != "none":
        ends = [mean_interval(group[0].returns[target]) for target in targets]
        known = [interval for interval in ends if interval]
        if len(known) == len(ends):
            band, (low, high) = "episodes", np.array(known).T
    line = Curve(
        task=str(group[0].history.settings["task"]),
        algo=str(group[0].history.settings["algo"]),
        group=name,
        runs=tuple(one.history.run.name for one in group),
        checkpoints=tuple(one.checkpoint for one in group),
        x=np.array(targets),
        mean=aggregate(values, how),
        low=low,
        high=high,
        band=band,
    )
    return [line]


def _returns_of_data(histories: Sequence[History]) -> tuple[np.ndarray | None, str]:
    datasets = {str(history.settings.get("data.dataset", "")) for history in histories} - {""}
    if len(datasets) != 1:
        return None, "" if not datasets else "the data's returns are not shown: the runs learnt from different data"
    try:
        return thinned(load_dataset(datasets.pop()).returns), ""
    except GqError as error:
        return None, f"the data's returns are not shown: {error}"


def thinned(returns: np.ndarray) -> np.ndarray:
    """Returns in increasing order; quantiles of them where they are many."""
    return np.quantile(returns, np.linspace(0, 1, MAX_RUG)) if len(returns) > MAX_RUG else np.sort(returns)


def draw_targets(axes: "Axes", targets: TargetReturns, task: str) -> None:
    """Draw the lines of a task, the diagonal where policies return their target, and the data's returns on the axis."""
    lines = [line for line in targets.lines if line.task == task]
    data = targets.data.get(task)
    places = np.concatenate([line.x for line in lines] + ([data] if data is not None else []))
    low, high = min(0.0, float(places.min())), max(0.0, float(places.max()))
    axes.plot((low, high), (low, high), color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1, label=DIAGONAL)
    bars: dict[str, Any] = {"capsize": 2, "capthick": 0.8, "elinewidth": 0.8}
    for index, line in enumerate(lines):
        style: dict[str, Any] = line_style(index) | bars | {"zorder": 3}
        ends = None
        if line.low is not None and line.high is not None:
            ends = np.maximum([line.mean - line.low, line.high - line.mean], 0)
        axes.errorbar(line.x, line.mean, ends, label=line.name, **style)
    for text in targets.bands(task):
        axes.errorbar([], [], [], color=STRONG_GREY, linestyle="none", label=text, **bars)
    if data is not None:
        style = {"color": STRONG_GREY, "alpha": 0.35, "markersize": 6, "markeredgewidth": 0.5, "clip_on": False}
        at_axis = np.full(len(data), 0.02)
        axes.plot(data, at_axis, "|", transform=axes.get_xaxis_transform(), label=RUG, zorder=2, **style)
    margin = 0.03 * (high - low or 1.0)
    axes.set_xlim(low - (margin if low < 0 else 0), high + margin)
    number_axis(axes.xaxis)
    number_axis(axes.yaxis)
    axes.set_xlabel("target return")
    axes.set_ylabel("return")
    axes.set_title(task, loc="left")
    add_legend(axes, _legend(targets, task))


def _legend(targets: TargetReturns, task: str) -> list[str]:
    lines = [line.name for line in targets.lines if line.task == task]
    return [*lines, *targets.bands(task), DIAGONAL, *([RUG] if task in targets.data else [])]


def target_drawing(targets: TargetReturns) -> Drawing:
    """What policies returned for their targets; a panel per task."""
    lines = []
    points: list[Sequence[Any]] = []
    rows = []
    for line in targets.lines:
        ends = [None] * 2 if line.low is None or line.high is None else [line.low, line.high]
        columns = [line.x, line.mean, *(line.mean if values is None else values for values in ends)]
        for target, mean, low, high in zip(*(values.tolist() for values in columns), strict=True):
            band = [low, high] if line.band else ["", ""]
            points.append([line.name, line.task, target, mean, *band, len(line.runs), targets.aggregate, line.band])
            rows.append((line.name, brief(target), brief(mean), between(low, high) if line.band else "-"))
        lines.append(
            {
                "label": line.name,
                "task": line.task,
                "targets": line.x.tolist(),
                "achieved": line.mean.tolist(),
                "low": None if line.low is None else line.low.tolist(),
                "high": None if line.high is None else line.high.tolist(),
                "band": line.band or None,
                "runs": list(line.runs),
                "checkpoints": list(line.checkpoints),
            }
        )
    data = {task: returns.tolist() for task, returns in targets.data.items()}
    panels = [partial(draw_targets, targets=targets, task=task) for task in targets.tasks]
    return Drawing(
        name="asked",
        size=panel_grid(len(panels), [_legend(targets, task) for task in targets.tasks], MORE_INCHES),
        draw=lambda figure: draw_panels(figure, panels),
        in_terminal=partial(_target_rows, targets),
        document={"lines": lines, "data_returns": data, "caption": targets.caption(), "notes": targets.notes},
        fields=("label", "task", "asked", "achieved", "low", "high", "num_runs", "aggregate", "band"),
        points=points,
        numbers=[float(value) for line in targets.lines for value in line.mean],
        tables=[Table(["run", "target", "return", "interval"], rows)],
        caption=targets.caption(),
        notes=targets.notes,
    )


def _target_rows(targets: TargetReturns, width: int) -> list[Row]:
    rows: list[Row] = []
    for task in targets.tasks:
        chosen = [line for line in targets.lines if line.task == task]
        lines = [numbered(line.name, line.x, line.mean, index) for index, line in enumerate(chosen)]
        ends = np.array([min(0.0, *(line.x[0] for line in chosen)), max(line.x[-1] for line in chosen)])
        lines.append(Line(DIAGONAL, ends, ends, DIM, "*"))
        rows += [[(task, "")], *draw_lines(lines, width=width, x_name="target", y_name="return")]
        if task in targets.data:
            low, *_, high = targets.data[task].tolist()
            rows.append([(f"    the data returned {brief(low)} to {brief(high)}", "")])
        rows.append([])
    return rows

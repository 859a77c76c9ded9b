"""Learning curves: what runs that differ by their seed alone logged, together, beside published ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gq.envs.tasks import CONTROL_TASKS
from gq.errors import UsageError
from gq.results.history import MAIN, RETURN, X_NAMES, History, Series, groups_by_task, read_history
from gq.rollouts.intervals import bootstrap, interquartile_weights

Aggregate = Literal["mean", "iqm"]
Band = Literal["auto", "bootstrap", "min-max", "none"]
MIN_FOR_BOOTSTRAP = 5  # runs: from fewer, resampling gives intervals that are far too narrow
BLOCK = 100  # points that are resampled at a time
NAMES = {"mean": "mean", "iqm": "interquartile mean"}


@dataclass(frozen=True)
class OfficialCurve:
    """The published learning curve of a task; all tuples are [points], in the order of frames."""

    name: str
    source: str
    task: str
    frames: tuple[int, ...]  # decisions times action repeat
    mean: tuple[float, ...]  # return, over seeds
    sd: tuple[float, ...]  # sample standard deviation over seeds
    num_seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """What the curve is called in pictures and tables."""
        return f"{self.name}, {max(self.num_seeds)} seeds"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line; all arrays are [points], float64."""

    task: str
    algo: str
    group: str  # what tells its runs from those of other lines; "" where there is one group of a task
    runs: tuple[str, ...]
    x: np.ndarray
    mean: np.ndarray  # over runs, or of their middle half
    low: np.ndarray | None  # the band; None for a single run
    high: np.ndarray | None
    band: str  # bootstrap, min-max, episodes, or "" for none
    what: str = ""
    metric: str = RETURN
    rank: int = MAIN
    target: float | None = None
    checkpoints: tuple[str, ...] = ()  # of the runs

    @property
    def name(self) -> str:
        """What the line is called among those of its task and metric."""
        name = ", ".join(filter(None, [self.group, self.what if self.metric == RETURN else ""]))
        if len(self.runs) == 1:
            return name or self.runs[0]
        return f"{name} ({len(self.runs)} runs)" if name else f"{len(self.runs)} runs"

    def at(self, x: float) -> float | None:
        """Return the mean at a place, between points by a straight line; None outside of them."""
        return float(np.interp(x, self.x, self.mean)) if self.x[0] <= x <= self.x[-1] else None


@dataclass(frozen=True)
class Learning:
    """All curves of some runs."""

    x_name: str
    curves: list[Curve]
    official: dict[str, OfficialCurve]  # by task
    smooth: int  # points in a running mean
    aggregate: Aggregate = "mean"

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the runs."""
        return list(dict.fromkeys(curve.task for curve in self.curves))

    @property
    def panels(self) -> list[tuple[str, str]]:
        """Task and metric of each panel that the curves fill."""
        return list(dict.fromkeys((curve.task, curve.metric) for curve in self.curves))

    def shown(self, task: str, metric: str | None = None) -> list[Curve]:
        """Return the curves of a panel: all of a single group of runs, of several only what each is judged by."""
        chosen = [curve for curve in self.curves if curve.task == task and metric in (None, curve.metric)]
        is_alone = len({curve.group for curve in chosen}) == 1
        return [curve for curve in chosen if is_alone or curve.rank == MAIN]

    def label(self, curve: Curve) -> str:
        """Return a curve's name, with its task and metric where there are several."""
        metrics = {metric for _, metric in self.panels}
        parts = [curve.task if len(self.tasks) > 1 else "", curve.metric if len(metrics) > 1 else "", curve.name]
        return ", ".join(filter(None, parts))

    def frames_per_decision(self, task: str) -> int | None:
        """Return the action repeat where x is frames of TD-MPC2, else None."""
        return action_repeat(task) if self.x_name == "frames" else None

    def bands(self, curves: Sequence[Curve]) -> list[str]:
        """Say what the lines of several runs are, and their bands."""
        kinds = dict.fromkeys(curve.band for curve in curves if len(curve.runs) > 1)
        return [describe(kind, self.aggregate) for kind in kinds]

    def smoothing(self) -> str:
        """Say how the lines were smoothed, "" if they were not."""
        return f"running means over {self.smooth} points" if self.smooth > 1 else ""

    def caption(self) -> str:
        """Say what the bands and lines are."""
        grey = ["grey: mean ± standard deviation of the authors' seeds"] if self.official else []
        return "; ".join([*self.bands(self.curves), *grey, *filter(None, [self.smoothing()])])

    def comparison(self) -> list[dict[str, Any]]:
        """Return ours beside the official curve at its points that ours reach."""
        rows = []
        for task, official in self.official.items():
            chosen = [curve for curve in self.curves if curve.task == task and curve.rank == MAIN]
            for frames, mean, sd in zip(official.frames, official.mean, official.sd, strict=True):
                for curve in chosen:
                    if (ours := curve.at(frames)) is not None:
                        row = {"task": task, "frames": frames, "decisions": frames // action_repeat(task)}
                        band = {"official_mean": mean, "official_sd": sd}
                        rows.append({**row, "label": self.label(curve), "mean": ours, **band})
        return rows

    def document(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; `low`, `high` and `band` are null for a single run."""
        curves = [
            {
                "label": self.label(curve),
                "task": curve.task,
                "metric": curve.metric,
                "series": curve.what,
                "x_name": self.x_name,
                "x": curve.x.tolist(),
                "aggregate": self.aggregate,
                "mean": curve.mean.tolist(),
                "band": curve.band or None,
                "low": None if curve.low is None else curve.low.tolist(),
                "high": None if curve.high is None else curve.high.tolist(),
                "runs": list(curve.runs),
            }
            for curve in self.curves
        ]
        official = [
            {
                "label": one.label,
                "task": task,
                "x_name": self.x_name,
                "x": list(one.frames),
                "mean": list(one.mean),
                "sd": list(one.sd),
                "seeds": list(one.num_seeds),
                "source": one.source,
            }
            for task, one in self.official.items()
        ]
        return {
            "curves": curves,
            "official": official,
            "at_equal_frames": self.comparison(),
            "caption": self.caption(),
        }


def read_learning(
    runs: Sequence[Path],
    *,
    x: str = "auto",
    smooth: int = 1,
    metrics: Sequence[str] = (),
    aggregate: Aggregate = "mean",
    band: Band = "auto",
) -> Learning:
    """Read the learning curves of runs of any kind; seeds of the same experiment become one line with a band.

    Args:
        x: auto, or one of `gq.results.history.X_NAMES`; auto takes what all runs have, frames first.
        smooth: values are means over this many neighbouring points.
        metrics: keys of metrics.jsonl; by default returns.
        aggregate: mean, or iqm for that of the middle half of the runs.
        band: of several runs: bootstrap, for 95 % intervals of the aggregate; min-max; none; auto: min-max of fewer
            than five runs, else bootstrap.

    Raises:
        GqError: a run's files cannot be read.
        UsageError: a run has logged no return yet, or not that metric, or does not count its progress in `x`.
    """
    if smooth < 1:
        raise UsageError(f"--smooth must be at least 1, not {smooth}", hint="1 shows the points as they are")
    metrics = list(dict.fromkeys(metrics))
    histories = [read_history(run, metrics) for run in dict.fromkeys(run.resolve() for run in runs)]
    x_name = _choose_x(histories, x)
    curves: list[Curve] = []
    for _, name, group in groups_by_task(histories):
        curves += _group_curves(name, group, x_name, smooth, aggregate, band)
    pairs = {curve.task: official_curve(curve.algo, curve.task) for curve in curves if curve.algo == "tdmpc2"}
    wants_official = x_name == "frames" and not metrics
    official = {task: one for task, one in pairs.items() if one and wants_official}
    return Learning(x_name, curves, official, smooth, aggregate)


def _choose_x(histories: Sequence[History], wanted: str) -> str:
    common = [name for name in X_NAMES if all(name in history.x_names for history in histories)]
    if wanted == "auto" and common:
        return common[0]
    if wanted in common:
        return wanted
    missing = next((history for history in histories if wanted not in history.x_names), histories[0])
    if wanted == "auto":
        message = "these runs count their progress in different ways"
        raise UsageError(message, hint="plot them apart")
    raise UsageError(f"{missing.run} does not count {wanted}", hint=f"--x {' or '.join(common or missing.x_names)}")


def _group_curves(
    name: str, group: Sequence[History], x_name: str, smooth: int, how: Aggregate, band: Band
) -> list[Curve]:
    curves = []
    for what in dict.fromkeys(series.what for history in group for series in history.series):
        owners = [(history, one) for history in group for one in history.series if one.what == what]
        lines = [(one.positions[x_name], running_mean(one.values, smooth)) for _, one in owners]
        if max(x[0] for x, _ in lines) > min(x[-1] for x, _ in lines):
            for (history, one), line in zip(owners, lines, strict=True):
                apart = ", ".join(filter(None, [name, history.run.name]))
                curves.append(_one_curve(apart, [history], one, [line], how, band))
        else:
            curves.append(_one_curve(name, [history for history, _ in owners], owners[0][1], lines, how, band))
    return curves


def _one_curve(
    name: str,
    group: Sequence[History],
    series: Series,
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
    how: Aggregate,
    wanted_band: Band,
) -> Curve:
    first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    stretches = [x[(first <= x) & (x <= last)] for x, _ in lines]
    grid = max(stretches, key=len)
    values = np.stack([np.interp(grid, x, y) for x, y in lines])  # [runs, points]
    band = kind_of_band(len(lines), wanted_band)
    low, high = band_of(values, how, band)
    settings = group[0].settings
    return Curve(
        task=str(settings["task"]),
        algo=str(settings["algo"]),
        group=name,
        what=series.what,
        metric=series.metric,
        rank=series.rank,
        target=series.target,
        runs=tuple(history.run.name for history in group),
        x=grid,
        mean=aggregate(values, how),
        low=low,
        high=high,
        band=band,
    )


def running_mean(values: np.ndarray, num_points: int) -> np.ndarray:
    """Return the mean over the nearest points, at the ends over those that there are; [points]."""
    if num_points == 1 or len(values) < 2:
        return values
    window = np.ones(min(num_points, 2 * len(values) - 1))
    sums = np.convolve(values, window)[len(window) // 2 :][: len(values)]
    counts = np.convolve(np.ones_like(values), window)[len(window) // 2 :][: len(values)]
    return sums / counts


def action_repeat(task: str) -> int:
    """Return the frames in a decision."""
    return CONTROL_TASKS[task].action_repeat if task in CONTROL_TASKS else 1


def aggregate(values: np.ndarray, how: Aggregate, axis: int = 0) -> np.ndarray:
    """Return the mean over runs, or that of the middle half of them at each point; [R, points] to [points].

    Args:
        axis: the one of runs.
    """
    if how == "mean":
        mean: np.ndarray = values.mean(axis=axis)
        return mean
    return np.tensordot(interquartile_weights(values.shape[axis]), np.sort(values, axis=axis), axes=(0, axis))


def kind_of_band(num_runs: int, wanted: Band) -> str:
    """Return what the band of a number of runs is: bootstrap, min-max, or "" for none."""
    if num_runs < 2 or wanted == "none":
        return ""
    if wanted == "auto":
        return "bootstrap" if num_runs >= MIN_FOR_BOOTSTRAP else "min-max"
    return wanted


def band_of(values: np.ndarray, how: Aggregate, kind: str) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return the lower and the upper end of a kind of band, each [points], of values [R, points]; None for none.

    The bootstrap draws runs with replacement, the same ones for all points; see `gq.rollouts.intervals.bootstrap`.
    """
    if not kind:
        return None, None
    if kind == "min-max":
        return values.min(axis=0), values.max(axis=0)
    ends = []
    for start in range(0, values.shape[1], BLOCK):
        block = values[:, start : start + BLOCK]

        def resampled(drawn: np.ndarray, block: np.ndarray = block) -> np.ndarray:
            return aggregate(block[drawn], how, axis=1)

        ends.append(bootstrap(resampled, len(values)))
    low, high = np.concatenate(ends, axis=1)
    return low, high


def describe(kind: str, how: Aggregate, drawn_as: str = "band") -> str:
    """Say what a line of several runs is, and its band, for legends."""
    bands = {"min-max": "lowest to highest", "bootstrap": "95 % bootstrap interval"}
    return f"{NAMES[how]} over runs" + (f"; {drawn_as}: {bands[kind]}" if kind else "")


def official_curve(algo: str, task: str) -> OfficialCurve | None:
    """Return the published curve of an algorithm on a task, or None where the table has none.

    Args:
        algo: as in config.toml; only tdmpc2 has a table.
        task: the id, such as `dog-run`.
    """
    table = json.loads((resources.files("gq.results") / "official_results.json").read_text(encoding="utf-8"))
    if algo != table["algorithm"] or task not in table["tasks"]:
        return None
    frames, mean, sd, num_seeds = zip(*table["tasks"][task], strict=True)
    return OfficialCurve(table["name"], table["source"], task, frames, mean, sd, num_seeds)

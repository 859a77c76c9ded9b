"""Learning curves: the returns of runs that differ by their seed alone, together."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gq.engine.runs import CHANGEABLE
from gq.envs.tasks import resolve_task
from gq.errors import GqError, UsageError
from gq.evaluation.official import OfficialCurve, official_curve
from gq.plotting.records import MAIN, X_NAMES, History, Series, read_history, read_settings

# Runs that differ in these alone are seeds of the same experiment. A schedule that falls depends on train.steps.
INCIDENTAL = (*(key for key in CHANGEABLE if key != "train.steps"), "train.seed")
NAMES_OF_KINDS = ("algo", "size", "data.dataset")  # these tell groups apart without saying which key they are
MAX_DIFFERENCES = 3  # settings that a label names; where more differ, it names the run


@dataclass(frozen=True)
class Curve:
    """One line; all arrays are [points], float64."""

    task: str
    algo: str
    group: str  # what tells its runs from those of other lines; "" where there is one group of a task
    what: str
    rank: int  # see gq.plotting.records.MAIN
    target: float | None
    runs: tuple[str, ...]
    x: np.ndarray
    mean: np.ndarray  # over runs
    low: np.ndarray | None  # the band; None for a single run
    high: np.ndarray | None

    @property
    def name(self) -> str:
        """What the line is called among those of its task."""
        name = ", ".join(filter(None, [self.group, self.what]))
        return f"{name} ({len(self.runs)} runs)" if len(self.runs) > 1 else name

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

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the runs."""
        return list(dict.fromkeys(curve.task for curve in self.curves))

    def shown(self, task: str) -> list[Curve]:
        """Return a task's curves: all of a single group of runs, of several only what each is judged by."""
        curves = [curve for curve in self.curves if curve.task == task]
        is_alone = len({curve.group for curve in curves}) == 1
        return [curve for curve in curves if is_alone or curve.rank == MAIN]

    def label(self, curve: Curve) -> str:
        """Return a curve's name, with its task where there are several."""
        return curve.name if len(self.tasks) == 1 else f"{curve.task}, {curve.name}"

    def frames_per_decision(self, task: str) -> int | None:
        """Return the action repeat where x is frames of TD-MPC2, else None."""
        return action_repeat(task) if self.x_name == "frames" else None

    def caption(self) -> str:
        """Say what the bands and lines are."""
        sizes = {len(curve.runs) for curve in self.curves}
        parts = ["band of two runs: from the lower to the higher"] if 2 in sizes else []
        if max(sizes) > 2:
            parts.append(f"band{' of more' if parts else ''}: mean ± standard deviation over runs")
        parts += ["grey: mean ± standard deviation of the authors' seeds"] if self.official else []
        parts += [f"running mean over {self.smooth} points"] if self.smooth > 1 else []
        return "; ".join(parts)

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
        """Return everything as plain values for JSON; `low` and `high` are null for a single run."""
        curves = [
            {
                "label": self.label(curve),
                "task": curve.task,
                "series": curve.what,
                "x_name": self.x_name,
                "x": curve.x.tolist(),
                "mean": curve.mean.tolist(),
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


def read_learning(runs: Sequence[Path], *, x: str = "auto", smooth: int = 1) -> Learning:
    """Read the learning curves of runs of any kind; seeds of the same experiment become one line with a band.

    Args:
        x: auto, updates, decisions, frames or environment-steps; auto takes what all runs have, frames first.
        smooth: returns are means over so many neighbouring points.

    Raises:
        GqError: a run's files cannot be read.
        UsageError: a run has logged no return yet, or does not count its progress in `x`.
    """
    if smooth < 1:
        raise UsageError(f"--smooth must be at least 1, not {smooth}", hint="1 shows the points as they are")
    histories = [read_history(run) for run in dict.fromkeys(run.resolve() for run in runs)]
    x_name = choose_x(histories, x)
    groups: dict[str, list[History]] = {}
    for history in histories:
        groups.setdefault(experiment_of(history.settings), []).append(history)
    curves: list[Curve] = []
    for task in dict.fromkeys(str(history.settings["task"]) for history in histories):
        members = [group for group in groups.values() if group[0].settings["task"] == task]
        for name, group in zip(group_names(members), members, strict=True):
            curves += group_curves(name, group, x_name, smooth)
    pairs = {curve.task: official_curve(curve.algo, curve.task) for curve in curves if curve.algo == "tdmpc2"}
    official = {task: one for task, one in pairs.items() if one and x_name == "frames"}
    return Learning(x_name, curves, official, smooth)


def choose_x(histories: Sequence[History], wanted: str) -> str:
    """Return the name of x. Raises UsageError if a run does not count its progress so."""
    common = [name for name in X_NAMES if all(name in history.x_names for history in histories)]
    if wanted == "auto" and common:
        return common[0]
    if wanted in common:
        return wanted
    lacking = next((history for history in histories if wanted not in history.x_names), histories[0])
    if wanted == "auto":
        message = "these runs count their progress in different ways"
        raise UsageError(message, hint="plot them apart")
    raise UsageError(f"{lacking.run} does not count {wanted}", hint=f"--x {' or '.join(common or lacking.x_names)}")


def experiment_of(settings: dict[str, Any]) -> str:
    """Return what seeds of one experiment have in common; of finetuned runs, their parents' settings too."""
    kept = without_incidentals(settings)
    if parent := str(kept.get("online.parent", "")):
        with suppress(GqError):  # it is gone: runs belong together only if they name the same one
            kept["online.parent"] = without_incidentals(read_settings(Path(parent)))
    return json.dumps(kept, sort_keys=True)


def without_incidentals(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that tell experiments apart."""
    sections = tuple(key for key in INCIDENTAL if key.endswith("."))
    return {key: value for key, value in settings.items() if key not in INCIDENTAL and not key.startswith(sections)}


def group_names(groups: Sequence[Sequence[History]]) -> list[str]:
    """Return what tells groups of runs apart, as short as can be; "" for a single group."""
    settings = [json.loads(experiment_of(group[0].settings)) for group in groups]
    names = [name_by(one, differing(settings, NAMES_OF_KINDS)) for one in settings]
    if len(set(names)) < len(names):
        for name in dict.fromkeys(names):
            alike = [index for index, other in enumerate(names) if other == name]
            keys = differing([settings[index] for index in alike])
            for index in alike if keys else []:
                few = len(keys) <= MAX_DIFFERENCES and "online.parent" not in keys
                more = name_by(settings[index], keys) if few else groups[index][0].run.name
                names[index] = ", ".join(filter(None, [name, more]))
    return names


def differing(settings: Sequence[dict[str, Any]], keys: Sequence[str] | None = None) -> list[str]:
    """Return the keys, of all or of the given ones, whose values are not the same everywhere."""
    chosen = keys or sorted({key for one in settings for key in one})
    return [key for key in chosen if len({json.dumps(one.get(key)) for one in settings}) > 1]


def name_by(settings: dict[str, Any], keys: Sequence[str]) -> str:
    """Return the values of the keys as words."""
    words = []
    for key in keys:
        value = settings.get(key, "none")
        if key == "size":
            words.append(f"size {value}")
        elif key in NAMES_OF_KINDS:
            words.append(str(value).rsplit("/", 1)[-1] if str(value).startswith("/") else str(value))
        else:
            words.append(f"{key} {value}")
    return ", ".join(words)


def group_curves(name: str, group: Sequence[History], x_name: str, smooth: int) -> list[Curve]:
    """Return the curves of runs that belong together; runs without a common stretch of x become curves of their own."""
    curves = []
    for what in dict.fromkeys(series.what for history in group for series in history.series):
        owners = [(history, one) for history in group for one in history.series if one.what == what]
        lines = [(one.positions[x_name], running_mean(one.values, smooth)) for _, one in owners]
        if max(x[0] for x, _ in lines) > min(x[-1] for x, _ in lines):
            for (history, one), line in zip(owners, lines, strict=True):
                apart = ", ".join(filter(None, [name, history.run.name]))
                curves.append(one_curve(apart, [history], one, [line]))
        else:
            curves.append(one_curve(name, [history for history, _ in owners], owners[0][1], lines))
    return curves


def one_curve(
    name: str, group: Sequence[History], series: Series, lines: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Curve:
    """Return the mean and band of lines, where all of them are: at the points of the one that has most there."""
    first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    stretches = [x[(first <= x) & (x <= last)] for x, _ in lines]
    grid = max(stretches, key=len)
    values = np.stack([np.interp(grid, x, y) for x, y in lines])  # [runs, points]
    low = high = None
    mean = values.mean(axis=0)
    if len(lines) == 2:
        low, high = values.min(axis=0), values.max(axis=0)
    elif len(lines) > 2:
        sd = values.std(axis=0, ddof=1)
        low, high = mean - sd, mean + sd
    settings = group[0].settings
    runs = tuple(history.run.name for history in group)
    task, algo = str(settings["task"]), str(settings["algo"])
    return Curve(task, algo, name, series.what, series.rank, series.target, runs, grid, mean, low, high)


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
    return resolve_task(task).action_repeat


def compact(number: float) -> str:
    """Return a number of steps as for an axis: 500, 20k, 1.5M."""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"

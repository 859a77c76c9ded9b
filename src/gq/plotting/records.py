"""What a run logged of its returns, from config.toml and metrics.jsonl."""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gq.config import flatten
from gq.errors import GqError, UsageError

# The ways to count progress, and their keys in metrics.jsonl. The first that all runs have is the default.
X_NAMES = {
    "frames": "frames",
    "environment-steps": "environment_steps",
    "updates": "step",
    "decisions": "decisions",
}
MAIN = 0  # the rank of what a run is judged by; higher ranks are left out where several kinds of runs are compared
EVALUATIONS = {"eval/return_mean": ("planning", MAIN), "eval/policy_return_mean": ("policy alone", 1)}
EPISODES = {"episode/return_mean", "rollout/return_mean"}
TARGET = re.compile(r"eval/target_(.+)/return_mean")


@dataclass(frozen=True)
class Series:
    """One kind of return of one run; all arrays are [points], float64."""

    what: str
    rank: int
    target: float | None  # the return that was asked for
    positions: dict[str, np.ndarray]  # by name of x, increasing; those that all points have
    values: np.ndarray


@dataclass(frozen=True)
class History:
    """What a run logged of its returns."""

    run: Path
    settings: dict[str, Any]  # config.toml by dotted key
    series: list[Series]

    @property
    def x_names(self) -> list[str]:
        """The ways in which progress can be counted, the preferred first."""
        return [name for name in X_NAMES if all(name in series.positions for series in self.series)]


def read_history(run: Path) -> History:
    """Read a run's returns.

    Raises:
        GqError: config.toml or metrics.jsonl cannot be read.
        UsageError: no return was logged yet.
    """
    settings = read_settings(run)
    points: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(run / "metrics.jsonl"):
        for key, value in record.items():
            is_return = key in EVALUATIONS or key in EPISODES or TARGET.fullmatch(key)
            if is_return and isinstance(value, int | float):  # a return that is not finite was logged as null
                points.setdefault(key, []).append(record)
    if not points:
        raise UsageError(f"{run} has no evaluation yet", hint=when_to_come_back(run, settings))
    asks = settings["algo"] != "bc"
    targets = {key: float(match[1]) for key in points if (match := TARGET.fullmatch(key))}
    highest = max(targets.values(), default=0.0)
    if not asks:  # it does the same whatever the target
        points = {key: records for key, records in points.items() if targets.get(key, highest) == highest}
    only_episodes = points.keys() <= EPISODES
    series = [
        one_series(key, records, highest=highest, asks=asks, only_episodes=only_episodes)
        for key, records in points.items()
    ]
    return History(run, settings, sorted(series, key=lambda one: (one.rank, -(one.target or 0.0))))


def one_series(key: str, records: list[dict[str, Any]], *, highest: float, asks: bool, only_episodes: bool) -> Series:
    """Return the points of one key; of several at one place, as when an evaluation is repeated, the last counts."""
    if key not in EPISODES:
        records = list({tuple(map(record.get, X_NAMES.values())): record for record in records}.values())
    positions = {
        name: np.array([record[field] for record in records], float)
        for name, field in X_NAMES.items()
        if all(isinstance(record.get(field), int | float) for record in records)
    }
    values = np.array([record[key] for record in records], float)
    if key in EPISODES:
        return Series("training episodes", MAIN if only_episodes else 2, None, positions, values)
    if key in EVALUATIONS:
        what, rank = EVALUATIONS[key]
        return Series(what, rank, None, positions, values)
    match = TARGET.fullmatch(key)
    assert match
    target = float(match[1])
    rank = MAIN if target == highest else 1
    return Series(f"asked for {target:g}" if asks else "evaluation", rank, target if asks else None, positions, values)


def when_to_come_back(run: Path, settings: dict[str, Any]) -> str:
    """Return the next step for someone who wants to plot a run that has nothing to show."""
    every = settings.get("eval.every", 0)
    if not every:
        return f"it does not evaluate while it trains (eval.every = 0): gq eval {run}"
    unit = {"tdmpc2": "decisions", "finetune": "environment steps"}.get(settings["algo"], "updates")
    return f"the first one comes after {every:,} {unit}, and one when the run ends"


def read_settings(run: Path) -> dict[str, Any]:
    """Return config.toml by dotted key. It is not validated, so that runs of other versions of gq can be plotted too.

    Raises:
        GqError: it is not there, not TOML, or names no algorithm or task.
    """
    path = run / "config.toml"
    try:
        settings = flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise GqError(f"cannot use {path}: {error}", hint="name another run") from None
    if not {"algo", "task"} <= settings.keys():
        raise GqError(f"{path} names no algorithm or no task", hint="name another run")
    return settings


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl, none where there is no file; a torn last line is being written.

    Raises:
        GqError: it cannot be read, or another line is damaged.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise GqError(f"cannot read {path}: {error.strerror}", hint="name another run") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines) or line.endswith(b"\n"):
            raise GqError(f"{path} is damaged at line {number}", hint="remove the line, or name another run")
    return records

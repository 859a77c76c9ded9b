"""What runs logged in metrics.jsonl and times.jsonl, and which runs are seeds of one experiment."""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gq.errors import GqError, UsageError, suggest
from gq.files import parse_json, parse_toml
from gq.paths import json_or_empty
from gq.runs.folder import CHANGEABLE
from gq.runs.metrics import TARGET, UNITS, keys_by_target
from gq.settings import flatten

SECONDS = "seconds"  # not in metrics.jsonl, which is the same on any machine, but in times.jsonl
# The ways to count progress, and their keys in metrics.jsonl. The first that all runs have is the default.
X_NAMES = {
    "frames": ("frames",),
    "environment-steps": ("environment_steps",),
    "updates": ("step",),
    "decisions": ("decisions",),
    "transitions": ("environment_steps", "decisions"),  # what was added to the data: one by each step or decision
    "seconds": (SECONDS,),
}
POSITIONS = tuple(dict.fromkeys(key for keys in X_NAMES.values() for key in keys))
RETURN = "return"  # the metric of series that are returns, whatever their keys
MAIN = 0  # the rank of what a run is judged by; higher ranks are left out where several kinds of runs are compared
EVALUATIONS = {"eval/return_mean": ("planning", MAIN), "eval/policy_return_mean": ("policy alone", 1)}
EPISODES = {"episode/return_mean", "rollout/return_mean"}

# Runs that differ in these alone are seeds of the same experiment. A schedule that falls depends on train.steps.
INCIDENTAL = (*(key for key in CHANGEABLE if key != "train.steps"), "train.seed")
# Curves may be of different lengths; what runs came to in the end can be compared only after as long a training.
BUDGETS = ("train.decisions", "online.environment_steps", "online.iterations", "online.minutes")
NAMES_OF_KINDS = ("algo", "size", "data.dataset")  # these tell groups apart without saying which key they are
MAX_DIFFERENCES = 3  # settings that a label names; where more differ, it names the run


@dataclass(frozen=True)
class Series:
    """One kind of return of one run; all arrays are [points], float64."""

    what: str
    metric: str  # RETURN, or a key of metrics.jsonl
    rank: int
    target: float | None  # return
    positions: dict[str, np.ndarray]  # by name of x, increasing; those that all points have
    values: np.ndarray


@dataclass(frozen=True)
class History:
    """What a run logged."""

    run: Path
    settings: dict[str, Any]  # config.toml by dotted key
    series: list[Series]

    @property
    def x_names(self) -> list[str]:
        """The ways in which progress can be counted, the preferred first."""
        return [name for name in X_NAMES if all(name in series.positions for series in self.series)]


def read_history(run: Path, metrics: Sequence[str] = ()) -> History:
    """Read what a run logged: its returns, or the given keys of metrics.jsonl.

    Raises:
        GqError: config.toml or metrics.jsonl cannot be read.
        UsageError: no return was logged yet, or not that metric.
    """
    settings = read_settings(run)
    records = _with_seconds(read_records(run / "metrics.jsonl"), run)
    if not metrics:
        return History(run, settings, _return_series(run, settings, records))
    known = known_metrics(records)
    for metric in metrics:
        if metric not in known:
            close = suggest(metric, known)
            hint = f"{f'{close} ' if close else ''}it has {', '.join(known) or 'nothing yet'}"
            raise UsageError(f"{run} has no metric {metric}", hint=hint)
    series = [
        Series(metric, metric, MAIN, None, *_points_of(metric, [r for r in records if is_number(r.get(metric))]))
        for metric in metrics
    ]
    return History(run, settings, series)


def known_metrics(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys of numbers in records, without those that count progress."""
    keys = {key for record in records for key, value in record.items() if is_number(value)}
    return sorted(keys - set(POSITIONS))


def is_number(value: Any) -> bool:
    """Whether a logged value can be drawn; one that is not finite was logged as null."""
    return isinstance(value, int | float) and abs(value) < 1e300


def _with_seconds(records: list[dict[str, Any]], run: Path) -> list[dict[str, Any]]:
    """Return records with the seconds that training had taken, where its times are on record.

    Times are of updates: what came before the first one has second 0.
    """
    times = [
        (one["step"], one["seconds"])
        for one in read_records(run / "times.jsonl")
        if is_number(one.get("step")) and is_number(one.get("seconds"))
    ]
    steps = [record.get("step") for record in records]
    if not times or not all(is_number(step) for step in steps):
        return records
    places, seconds = np.array([(0, 0.0), *times], float).T
    found = np.interp(np.array(steps, float), places, seconds)
    return [record | {SECONDS: value} for record, value in zip(records, found.tolist(), strict=True)]


def _return_series(run: Path, settings: dict[str, Any], records: Sequence[dict[str, Any]]) -> list[Series]:
    points: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for key, value in record.items():
            if is_number(value) and (key in EVALUATIONS or key in EPISODES or TARGET.fullmatch(key)):
                points.setdefault(key, []).append(record)
    if not points:
        raise UsageError(f"{run} has no evaluation yet", hint=_when_to_come_back(run, settings))
    asks = settings["algo"] not in ("bc", "td3bc")
    targets = {key: target for target, key in keys_by_target(points).items()}
    highest = max(targets.values(), default=0.0)
    if not asks:  # it does the same whatever the target
        points = {key: records for key, records in points.items() if targets.get(key, highest) == highest}
    only_episodes = points.keys() <= EPISODES
    series = [
        _one_series(key, records, highest=highest, asks=asks, only_episodes=only_episodes)
        for key, records in points.items()
    ]
    return sorted(series, key=lambda one: (one.rank, -(one.target or 0.0)))


def _one_series(key: str, records: list[dict[str, Any]], *, highest: float, asks: bool, only_episodes: bool) -> Series:
    if key in EPISODES:
        rank = MAIN if only_episodes else 2
        return Series("training episodes", RETURN, rank, None, *_points_of(key, records, keeps_all=True))
    points = _points_of(key, records)
    if key in EVALUATIONS:
        what, rank = EVALUATIONS[key]
        return Series(what, RETURN, rank, None, *points)
    match = TARGET.fullmatch(key)
    assert match
    target = float(match[1])
    rank = MAIN if target == highest else 1
    what = f"target {target:g}" if asks else "evaluation"
    return Series(what, RETURN, rank, target if asks else None, *points)


def _points_of(
    key: str, records: list[dict[str, Any]], *, keeps_all: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the positions, by name of x, and the values of one key.

    Args:
        keeps_all: else of several at one place, as when an evaluation is repeated, the last counts.
    """
    if not keeps_all:
        places_of = [
            tuple(record[key] if is_number(record.get(key)) else None for key in POSITIONS) for record in records
        ]
        records = list(dict(zip(places_of, records, strict=True)).values())
    positions = {}
    for name, keys in X_NAMES.items():
        places = [next((record[key] for key in keys if is_number(record.get(key))), None) for record in records]
        if None not in places:
            positions[name] = np.array(places, float)
    return positions, np.array([record[key] for record in records], float)


def _when_to_come_back(run: Path, settings: dict[str, Any]) -> str:
    every = settings.get("eval.every", 0)
    if not every:
        return f"it does not evaluate while it trains (eval.every = 0): gq eval {shlex.quote(str(run))}"
    unit = UNITS.get(settings["algo"], "updates")
    return f"the first one comes after {every:,} {unit}, and one when the run ends"


def read_settings(run: Path) -> dict[str, Any]:
    """Return config.toml by dotted key. It is not validated, so that runs of other versions of gq can be plotted too.

    Raises:
        GqError: it is not there, not TOML, or names no algorithm or task.
    """
    path = run / "config.toml"
    try:
        settings = flatten(parse_toml(path.read_text(encoding="utf-8")))
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
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines) or line.endswith(b"\n"):
            raise GqError(f"{path} is damaged at line {number}", hint="remove the line, or name another run")
    return records


def groups_by_task(histories: Sequence[History], *, final: bool = False) -> list[tuple[str, str, list[History]]]:
    """Return task, name and runs of each experiment, in the order of the runs.

    Args:
        final: they are to be compared by what they came to in the end, so that their budgets must agree too.
    """
    experiments: dict[str, list[History]] = {}
    for history in histories:
        experiments.setdefault(_experiment_of(history.settings, final=final), []).append(history)
    found = []
    for task in dict.fromkeys(str(history.settings["task"]) for history in histories):
        members = [group for group in experiments.values() if group[0].settings["task"] == task]
        found += [(task, name, group) for name, group in zip(_group_names(members, final=final), members, strict=True)]
    return found


def method_of(histories: Sequence[History]) -> list[str]:
    """Return a name for the method of each run: its algorithm, and the settings that tell it from others of the kind.

    Settings that differ only between datasets or tasks, such as targets, are not the method's.
    """
    settings = [json.loads(_experiment_of(history.settings, final=True)) for history in histories]
    for one in settings:
        if one["algo"] == "td3bc":  # whose recipes, td3bc and rebrac, differ by a dozen settings
            one["algo"] = one["size"]
    places = [(one["algo"], str(one.get("data.dataset") or one["task"])) for one in settings]
    keys: dict[str, list[str]] = {}
    for algo, _ in dict.fromkeys(places):
        alike = [[one for one, place in zip(settings, places, strict=True) if place == p] for p in set(places)]
        differing = {key for own in alike if own[0]["algo"] == algo for key in _differing(own)}
        keys[algo] = sorted(differing)
    return [", ".join(filter(None, [one["algo"], _name_by(one, keys[one["algo"]])])) for one in settings]


def repeated_seeds(group: Sequence[History]) -> str:
    """Return a note about runs of a group that have the same seed, so that they are not independent; "" without any."""
    owners: dict[str, list[str]] = {}
    for history in group:
        owners.setdefault(_seed_of(history), []).append(history.run.name)
    alike = [names for names in owners.values() if len(names) > 1]
    return "; ".join(f"{' and '.join(names)} have the same seed: no interval over runs" for names in alike)


def _seed_of(history: History) -> str:
    settings = history.settings
    if imported := json_or_empty(history.run / "environment.json").get("imported"):
        return json.dumps(imported)  # config.toml does not know with which seed these weights were trained
    seeds = [settings.get("train.seed", str(history.run))]
    if parent := str(settings.get("online.parent", "")):
        try:
            seeds.append(read_settings(Path(parent)).get("train.seed", parent))
        except GqError:
            seeds.append(parent)
    return json.dumps(seeds)


def _experiment_of(settings: dict[str, Any], *, final: bool = False) -> str:
    kept = _without_incidentals(settings, final=final)
    if parent := str(kept.get("online.parent", "")):
        with suppress(GqError):  # it is gone: runs belong together only if they name the same one
            kept["online.parent"] = _without_incidentals(read_settings(Path(parent)), final=final)
    return json.dumps(kept, sort_keys=True)


def _without_incidentals(settings: dict[str, Any], *, final: bool) -> dict[str, Any]:
    incidental = [key for key in INCIDENTAL if not (final and key in BUDGETS)]
    sections = tuple(key for key in incidental if key.endswith("."))
    return {key: value for key, value in settings.items() if key not in incidental and not key.startswith(sections)}


def _group_names(groups: Sequence[Sequence[History]], *, final: bool) -> list[str]:
    """Return what tells groups of runs apart, as short as can be; "" for a single group."""
    settings = [json.loads(_experiment_of(group[0].settings, final=final)) for group in groups]
    names = [_name_by(one, _differing(settings, NAMES_OF_KINDS)) for one in settings]
    if len(set(names)) < len(names):
        for name in dict.fromkeys(names):
            alike = [index for index, other in enumerate(names) if other == name]
            keys = _differing([settings[index] for index in alike])
            for index in alike if keys else []:
                few = len(keys) <= MAX_DIFFERENCES and "online.parent" not in keys
                more = _name_by(settings[index], keys) if few else groups[index][0].run.name
                names[index] = ", ".join(filter(None, [name, more]))
    return names


def _differing(settings: Sequence[dict[str, Any]], keys: Sequence[str] | None = None) -> list[str]:
    chosen = keys or sorted({key for one in settings for key in one})
    return [key for key in chosen if len({json.dumps(one.get(key)) for one in settings}) > 1]


def _name_by(settings: dict[str, Any], keys: Sequence[str]) -> str:
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

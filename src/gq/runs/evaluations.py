"""What `gq eval` stored under a run: evals/*.json, read once into a row for each way of acting in each file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gq.config import environment_of
from gq.envs.engines import engines_of
from gq.envs.scores import Reference, reference_for
from gq.envs.tasks import Task
from gq.errors import GqError
from gq.files import parse_json
from gq.paths import json_or_empty, read_settings, section
from gq.rollouts.statistics import Episode, Summary, summarise
from gq.runs.checkpoint import pointed
from gq.runs.folder import SELECTION_SEED
from gq.runs.metrics import UNITS

# How all of them are measured, told by cards and reports alike.
PROTOCOL = (
    "Every episode that began counts; each has the seed given, whatever else ran beside it. Intervals are 95 %, "
    "Student's t, wider on the side of a longer tail; those of one run are over its episodes, from five on, so they "
    "say nothing about other training seeds. A score of 0 is a random policy, 100 the named reference's good one."
)
PLANNING = ("plan", "baseline")  # the modes that plan at every agent step, as the planner is set


@dataclass(frozen=True)
class Way:
    """How a policy was to act: for a target return, in a mode of its planner, or neither."""

    target: float | None = None
    mode: str | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.target:g}" if self.target is not None else self.mode or "-"


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """The episodes of one file of `evals` that acted in one way."""

    file: Path
    checkpoint: str
    step: int  # updates
    way: Way
    stochastic: bool
    context: str | None  # how a transformer moved on when its context was full; None: not on record, or no transformer
    versions: dict[str, str]  # of gq and the engines
    warnings: tuple[str, ...]
    episodes: tuple[Episode, ...]
    stored: Mapping[str, Any]  # its entry of `results`; {} where there is none. What planning cost is here alone

    @property
    def protocol(self) -> tuple[str, bool, str]:
        """What evaluations must share to complete each other; a context that is not on record slid."""
        return self.checkpoint, self.stochastic, self.context or "sliding"

    @property
    def returns(self) -> np.ndarray:
        """The returns of its episodes, float64 [episodes]."""
        return np.array([episode.episode_return for episode in self.episodes], np.float64)

    def summary(self, reference: Reference | None) -> Summary:
        """Mean, interval and the other statistics of its episodes."""
        return summarise(self.episodes, reference, mode=self.way.mode)[0]


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The evaluations of a run, or of one of its checkpoints; the newest first."""

    run: Path
    algo: str  # "" where config.toml cannot be read
    task: str
    environment: Task | None  # None where gq does not know the task
    dataset: str
    targets: tuple[float, ...]  # the run's own; none where its policy takes none
    context: str  # the run's own
    rows: list[EvaluationRow]
    problems: list[str]  # a line about each file that cannot be used
    checkpoint: Path | None = None  # None: rows of all checkpoints

    @property
    def takes_target(self) -> bool:
        """Whether the policy acts for a target return."""
        return takes_target(self.algo)

    @cached_property
    def reference(self) -> Reference | None:
        """What scores refer to."""
        return reference_for(self.environment, recorded_origin(self.run, self.dataset))

    def ways(self, target: float | None) -> list[Way]:
        """The ways that stand for acting with a target as the run does by default: planning has two names."""
        if self.algo == "tdmpc2":
            return [Way(mode=mode) for mode in PLANNING]
        return [Way(target if self.takes_target else None)]

    @property
    def fullest(self) -> EvaluationRow | None:
        """The row that a table counts: at the run's highest target, that of the most episodes; None without one."""
        ways = self.ways(max(self.targets, default=None))
        return max((row for row in self.rows if row.way in ways), key=lambda row: len(row.episodes), default=None)

    def of(self, checkpoint: Path) -> "Evaluations":
        """The evaluations of a checkpoint that acted as the run does by default: deterministic, in its own context.

        Raises:
            GqError: the run's configuration names no algorithm or no task.
        """
        if not (self.algo and self.task):
            raise GqError(f"{self.run / 'config.toml'} names no algorithm or no task", hint="name another run")
        rows = [
            row
            for row in self.rows
            if row.checkpoint == checkpoint.name and not row.stochastic and row.context in (None, self.context)
        ]
        return replace(self, checkpoint=checkpoint.resolve(), rows=rows)


def read_evaluations(run: Path) -> Evaluations:
    """Read all stored evaluations of a run, those of other versions of gq too; damaged files become problems."""
    settings = read_settings(run)
    algo = str(settings.get("algo", ""))
    targets = section(settings, "eval").get("targets")
    rows: list[EvaluationRow] = []
    problems: list[str] = []
    for file in sorted((run / "evals").glob("*.json"), reverse=True):
        try:
            rows += read_rows(file, takes_target=takes_target(algo))
        except GqError as error:
            problems.append(str(error))
    return Evaluations(
        run=run,
        algo=algo,
        task=str(settings.get("task", "")),
        environment=environment_of(settings),
        dataset=str(section(settings, "data").get("dataset", "")),
        targets=tuple(targets) if takes_target(algo) and isinstance(targets, list) else (),
        context=str(section(settings, "eval").get("context", "sliding")),
        rows=rows,
        problems=problems,
    )


def read_rows(file: Path, *, takes_target: bool) -> list[EvaluationRow]:
    """Read one evaluation.

    Args:
        takes_target: the policy acts for a target return; else the target on record means nothing.

    Raises:
        GqError: it is damaged.
    """
    try:
        document = parse_json(file.read_text(encoding="utf-8"))
        episodes: dict[Way, list[Episode]] = {}
        for entry in document["episodes"]:
            episodes.setdefault(_way_of(entry, takes_target), []).append(_episode(entry))
        stored = {_way_of(entry, takes_target): dict(entry) for entry in document.get("results") or []}
        checkpoint = str(document["checkpoint"])
        return [
            EvaluationRow(
                file=file,
                checkpoint=checkpoint,
                step=int(checkpoint.removeprefix("step-")),
                way=way,
                stochastic=bool(document.get("stochastic")),
                context=document.get("context"),
                versions={str(name): str(version) for name, version in document["versions"].items()},
                warnings=tuple(map(str, document.get("warnings") or ())),
                episodes=tuple(found),
                stored=stored.get(way, {}),
            )
            for way, found in episodes.items()
        ]
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise GqError(f"cannot use {file}: {error}", hint="remove it, and evaluate again") from None


def chosen_rows(evaluations: Evaluations) -> list[EvaluationRow]:
    """A row per checkpoint, seed, context and way to act: the one of most episodes, the newest of those."""
    chosen: dict[tuple[Any, ...], EvaluationRow] = {}
    for row in sorted(evaluations.rows, key=lambda row: row.file):
        key = (*row.protocol, row.episodes[0].seed, row.way)
        if key not in chosen or len(row.episodes) >= len(chosen[key].episodes):
            chosen[key] = row
    return list(chosen.values())


def takes_target(algo: str) -> bool:
    """Whether policies of an algorithm act for a target return."""
    return algo not in ("bc", "td3bc", "tdmpc2")


def selection_text(run: Path, settings: Mapping[str, Any]) -> str:
    """How the best checkpoint was chosen.

    Args:
        settings: config.toml by dotted key.
    """
    if not pointed(run, "best"):
        return "no checkpoint was marked as the best: the last one stands for it"
    what = "mean return" + " at the highest target" * takes_target(str(settings["algo"]))
    unit, every = UNITS.get(str(settings["algo"]), "updates"), settings.get("eval.every", 0)
    return (
        f"The best checkpoint has the highest {what} of evaluations while training, every {every:,} {unit} on "
        f"{settings.get('eval.num_episodes')} other episodes (seeds from {SELECTION_SEED:,} on)."
    )


def engines_in(versions: Mapping[str, str], task: str) -> dict[str, str]:
    """The versions of a task's engines."""
    return {name: versions[name] for name in engines_of(task) if name in versions}


def recorded_origin(run: Path, dataset: str) -> str:
    """Where a run's data come from, as its training recorded it in environment.json."""
    return str(section(json_or_empty(run / "environment.json"), "dataset").get("origin", dataset))


def _way_of(entry: Mapping[str, Any], takes_target: bool) -> Way:
    if entry.get("mode"):
        return Way(mode=str(entry.get("label") or entry["mode"]))  # older files have the mode alone
    if not takes_target or entry["target_return"] is None:
        return Way()
    return Way(_finite(entry["target_return"]))


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no return")
    return number


def _episode(entry: Mapping[str, Any]) -> Episode:
    return Episode(
        seed=int(entry["seed"]),
        target_return=_finite(entry.get("target_return") or 0.0),
        episode_return=_finite(entry["episode_return"]),
        length=int(entry["length"]),
        terminated=bool(entry["terminated"]),
    )

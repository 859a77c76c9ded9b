"""What a report says, as plain values: runs, their evaluations, their data, and which runs are seeds of one another."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gq.envs.scores import Reference
from gq.results.curves import Learning
from gq.results.history import History, groups_by_task, repeated_seeds
from gq.rollouts.intervals import interquartile_mean, mean_interval
from gq.rollouts.statistics import Episode, Summary

MODES = {"plan": "planning", "baseline": "planning", "policy": "policy alone", "-": "all episodes"}


def _way_of(label: str, target: float | None) -> str:
    return f"target {target:,.10g}" if target is not None else MODES.get(label, label)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Episodes of a checkpoint that acted in one way."""

    label: str  # the target, or the mode; "-" where there is neither
    target: float | None
    is_own: bool  # one of those that were fixed with the run
    summary: Summary
    episodes: list[Episode]
    versions: dict[str, str]  # that gave the returns
    source: str  # file of the run's `evals`

    @property
    def num_terminated(self) -> int:
        """Episodes that ended before their time limit."""
        return sum(episode.terminated for episode in self.episodes)

    @property
    def way(self) -> str:
        """How the policy was to act, in words."""
        return _way_of(self.label, self.target)


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """A checkpoint and its evaluations."""

    name: str
    progress: dict[str, int]  # updates, decisions, frames, environment steps: those that are on record
    measures: list[Measure]
    model_sha256: str

    @property
    def headline(self) -> Measure | None:
        """What the run is judged by: the highest of its own targets."""
        own = [measure for measure in self.measures if measure.is_own]
        return max(own, key=lambda measure: measure.target or 0.0, default=None)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The episodes of a dataset."""

    dataset: str
    num_episodes: int
    num_transitions: int
    return_mean: float
    return_std: float
    quantiles: dict[str, float]  # of the returns
    edges: list[float]  # of the histogram's bins [B + 1]
    counts: list[int]  # [B]
    top_mean: float  # of the best episodes, a tenth of all rows
    top_episodes: int
    fingerprint: str  # SHA-256 of the arrays that training reads
    returns: np.ndarray  # [episodes], or quantiles of them, in increasing order


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What behaviour cloning makes of the same data."""

    name: str
    return_mean: float
    return_ci95: tuple[float, float] | None
    is_policy: bool  # else it is a share of the data


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything about one run."""

    name: str
    path: Path
    state: str
    settings: dict[str, Any]  # config.toml by dotted key
    config_text: str
    environment: dict[str, Any]  # environment.json
    best: CheckpointFacts | None
    last: CheckpointFacts | None  # None where it is the best one too
    selection: str  # how the best was chosen
    reference: Reference | None
    baselines: list[Baseline]
    data: DataFacts | None
    video: Path | None  # to embed
    commands: list[tuple[str, str]]  # what for, command
    notes: list[str]  # what is missing or doubtful

    @property
    def algo(self) -> str:
        """The algorithm."""
        return str(self.settings["algo"])

    @property
    def task(self) -> str:
        """The task's id."""
        return str(self.settings["task"])

    @property
    def dataset(self) -> str:
        """The dataset's id or path, "" without one."""
        return str(self.settings.get("data.dataset", ""))

    @property
    def headline(self) -> Measure | None:
        """What the run is judged by."""
        return self.best.headline if self.best else None

    @property
    def measures(self) -> list[tuple[str, Measure]]:
        """All that both checkpoints were measured at, with which of the two it was."""
        best = "best" if self.last else "best and last"
        pairs = ((best, self.best), ("last", self.last))
        return [(which, measure) for which, found in pairs if found for measure in found.measures]

    def comparisons(self) -> list[tuple[str, float, tuple[float, float] | None, float | None]]:
        """The returns that stand beside the run's own: what, mean, interval, score; empty where nothing does."""
        score = self.reference.score if self.reference else (lambda value: None)
        rows: list[tuple[str, float, tuple[float, float] | None, float | None]] = []
        if measure := self.headline:
            result = measure.summary
            rows.append((f"this run, {measure.way}", result.return_mean, result.return_ci95, result.normalized_mean))
        rows += [(one.name, one.return_mean, one.return_ci95, score(one.return_mean)) for one in self.baselines]
        if self.data:
            rows.append(("all of the data", self.data.return_mean, None, score(self.data.return_mean)))
        if self.reference:
            rows.append(("a uniform random policy", self.reference.minimum, None, 0.0))
            rows.append(("an expert", self.reference.maximum, None, 100.0))
        return rows if len(rows) > 1 else []


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """What the runs of a group returned in one way, by their best checkpoints."""

    label: str
    target: float | None
    means: list[float]  # of each run
    mean: float
    ci95: tuple[float, float] | None  # over runs, None if they share a seed; of a single run over its episodes
    iqm: float  # of all episodes
    score: float | None
    last_mean: float | None  # of the last checkpoints, where all runs have it
    num_episodes: int  # of all runs
    measures: list[Measure]  # of each run


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ by their seeds alone."""

    name: str
    task: str
    runs: list[str]
    rows: list[GroupRow]

    @property
    def headline(self) -> GroupRow | None:
        """The row of the highest target."""
        return max(self.rows, key=lambda row: row.target or 0.0, default=None)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A whole report."""

    created: str  # date, UTC
    version: str  # of gq
    runs: list[RunFacts]
    groups: list[Group]
    learning: dict[str, Learning]  # curves by run, and of all together under ""
    command: str  # that makes it again
    notes: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        joint = self.learning.get("")
        return {
            "created": self.created,
            "gq": self.version,
            "command": self.command,
            "runs": [_run_document(run, self.learning.get(str(run.path))) for run in self.runs],
            "groups": [_group_document(group) for group in self.groups],
            "learning": joint.document() if joint else None,
            "notes": self.notes,
        }


def _run_document(run: RunFacts, learning: Learning | None) -> dict[str, Any]:
    document = asdict(run)
    del document["config_text"]
    if run.data:
        del document["data"]["returns"]
    document |= {"path": str(run.path), "commands": dict(run.commands)}
    document["video"] = str(run.video) if run.video else None
    document["learning"] = learning.document() if learning else None
    return document


def _group_document(group: Group) -> dict[str, Any]:
    document = asdict(group)
    for row in document["rows"]:
        del row["measures"]
    return document


def group_runs(runs: Sequence[RunFacts], notes: list[str]) -> list[Group]:
    """Return the groups, task by task in the order of the runs; note which runs repeat a seed."""
    facts = {run.path: run for run in runs}
    found = []
    for task, name, histories in groups_by_task([History(run.path, run.settings, []) for run in runs], final=True):
        members = [facts[history.run] for history in histories]
        repeated = repeated_seeds(histories)
        notes += [repeated] if repeated else []
        label = name or (members[0].name if len(members) == 1 else f"{len(members)} {'runs' if repeated else 'seeds'}")
        rows = _rows_of(members, independent=not repeated)
        found.append(Group(name=label, task=task, runs=[run.name for run in members], rows=rows))
    return found


def _rows_of(group: Sequence[RunFacts], *, independent: bool) -> list[GroupRow]:
    """Return what a group's runs have in common: the ways that all were evaluated in, by their best checkpoints.

    Args:
        independent: each run has a seed of its own, so that there is an interval over runs.
    """
    if any(run.best is None for run in group):
        group = [run for run in group if run.best]
    labels = [measure.label for run in group[:1] for measure in _own_measures(run.best)]
    rows = []
    for label in labels:
        measures = [_find(run.best, label) for run in group]
        found = [measure for measure in measures if measure]
        if len(found) == len(group):
            last = [_find(run.last or run.best, label) for run in group]
            row = _one_row(label, found, [measure for measure in last if measure], group)
            rows.append(row if independent or len(group) == 1 else replace(row, ci95=None))
    return rows


def _own_measures(checkpoint: CheckpointFacts | None) -> list[Measure]:
    return [measure for measure in checkpoint.measures if measure.is_own] if checkpoint else []


def _find(checkpoint: CheckpointFacts | None, label: str) -> Measure | None:
    names = {"plan", "baseline"} if label in ("plan", "baseline") else {label}
    return next((measure for measure in _own_measures(checkpoint) if measure.label in names), None)


def _one_row(label: str, best: Sequence[Measure], last: Sequence[Measure], group: Sequence[RunFacts]) -> GroupRow:
    means = np.array([measure.summary.return_mean for measure in best])
    episodes = np.array([episode.episode_return for measure in best for episode in measure.episodes])
    reference = group[0].reference
    return GroupRow(
        label=label,
        target=best[0].target,
        means=means.tolist(),
        mean=float(means.mean()),
        ci95=mean_interval(means, fewest=2) if len(means) > 1 else best[0].summary.return_ci95,
        iqm=interquartile_mean(episodes),
        score=reference.score(float(means.mean())) if reference else None,
        last_mean=float(np.mean([one.summary.return_mean for one in last])) if len(last) == len(best) else None,
        num_episodes=len(episodes),
        measures=list(best),
    )

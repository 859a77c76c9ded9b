"""What a report says, as plain values: runs, their evaluations, their data, and which runs are seeds of one another."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gq.envs.scores import Reference
from gq.results.curves import Learning
from gq.rollouts.statistics import Episode, Summary


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


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What behaviour cloning makes of the same data."""

    name: str
    return_mean: float
    return_ci95: tuple[float, float] | None
    is_policy: bool  # else it is a share of the data


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """A video to embed."""

    path: Path
    num_bytes: int


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
    video: VideoFacts | None
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
            "runs": [run_document(run, self.learning.get(str(run.path))) for run in self.runs],
            "groups": [group_document(group) for group in self.groups],
            "learning": joint.document() if joint else None,
            "notes": self.notes,
        }


def run_document(run: RunFacts, learning: Learning | None) -> dict[str, Any]:
    """Return a run as plain values."""
    document = asdict(run)
    del document["config_text"]
    document |= {"path": str(run.path), "commands": dict(run.commands)}
    document["video"] = str(run.video.path) if run.video else None
    document["learning"] = learning.document() if learning else None
    return document


def group_document(group: Group) -> dict[str, Any]:
    """Return a group as plain values, without the episodes, which its runs have."""
    document = asdict(group)
    for row in document["rows"]:
        del row["measures"]
    return document

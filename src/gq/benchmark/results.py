"""What the runs of a suite came to, three ways of the same runs side by side, with what selection is worth.

- last: the last checkpoint, on fresh episodes;
- best: the checkpoint that was best on the selection episodes, on the same fresh episodes;
- maximum: the highest evaluation while training, on the episodes that chose it. Papers often report it; it is no
  estimate of what a policy returns.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gq.benchmark.suites import Cell, Suite
from gq.errors import GqError
from gq.paths import json_or_empty
from gq.results import aggregates
from gq.rollouts.intervals import interquartile_mean, mean_interval
from gq.runs.checkpoint import choose_checkpoint
from gq.runs.evaluations import EvaluationRow, Evaluations, read_evaluations

WAYS = ("last", "best", "maximum")
THRESHOLDS = np.arange(0.0, 121.0, 10.0)


@dataclass(frozen=True)
class Measured:
    """What one run came to: mean returns, and scores where its task has references."""

    place: str
    dataset: str
    method: str
    seed: int
    returns: dict[str, float]  # by way
    scores: dict[str, float]
    seconds: float  # of training
    parameters: int
    dataset_sha256: str


@dataclass(frozen=True)
class Summary:
    """Seeds of a method on a dataset."""

    dataset: str
    method: str
    num_seeds: int
    returns: dict[str, float]  # mean over seeds, by way
    scores: dict[str, float]
    iqm: dict[str, float]  # of returns
    intervals: dict[str, tuple[float, float] | None]  # of mean returns, over seeds
    selection: float  # maximum less last, in returns
    seconds: float
    parameters: int


@dataclass(frozen=True)
class Results:
    """Everything that a suite's page says."""

    suite: str
    command: str
    runs: list[Measured]
    rows: list[Summary]
    overall: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # of scores, by way and method
    improvements: list[dict[str, Any]] = field(default_factory=list)  # of last checkpoints
    profiles: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"thresholds": THRESHOLDS.tolist()}


def measure(folder: Path, cell: Cell) -> Measured | None:
    """Return what a run came to; None where an evaluation is missing."""
    run = folder / cell.place
    try:
        found = {which: read_evaluations(run).of(choose_checkpoint(run, which)) for which in ("last", "best")}
        progress = json_or_empty(choose_checkpoint(run, "last") / "state.json")["progress"]
    except (GqError, KeyError):
        return None
    rows = {which: _fullest(one) for which, one in found.items()}
    if not all(rows.values()) or progress["best_return"] is None:
        return None
    returns = {which: float(row.returns.mean()) for which, row in rows.items() if row}
    returns["maximum"] = float(progress["best_return"])
    reference, facts = found["last"].reference, json_or_empty(run / "environment.json")
    return Measured(
        place=cell.place,
        dataset=cell.dataset,
        method=cell.method.name,
        seed=cell.seed,
        returns=returns,
        scores={way: reference.score(value) for way, value in returns.items()} if reference else {},
        seconds=float(progress["seconds"]),
        parameters=int(facts.get("parameters", 0)),
        dataset_sha256=str(facts.get("dataset_sha256", "")),
    )


def _fullest(found: Evaluations) -> EvaluationRow | None:
    """Return the evaluation at the highest target that has the most episodes."""
    target = max(found.targets, default=None)
    rows = [row for row in found.rows if row.way in found.ways(target)]
    return max(rows, key=lambda row: len(row.episodes), default=None)


def summarise(runs: Sequence[Measured]) -> Summary:
    """Return the summary of runs that differ by their seeds."""
    values = {way: np.array([run.returns[way] for run in runs]) for way in WAYS}
    has_scores = all(run.scores for run in runs)
    return Summary(
        dataset=runs[0].dataset,
        method=runs[0].method,
        num_seeds=len(runs),
        returns={way: float(found.mean()) for way, found in values.items()},
        scores={way: float(np.mean([run.scores[way] for run in runs])) for way in WAYS} if has_scores else {},
        iqm={way: interquartile_mean(found) for way, found in values.items()},
        intervals={way: mean_interval(found, fewest=2) for way, found in values.items()},
        selection=float((values["maximum"] - values["last"]).mean()),
        seconds=float(np.mean([run.seconds for run in runs])),
        parameters=runs[0].parameters,
    )


def gather(folder: Path, suite: Suite, cells: Sequence[Cell], *, command: str, failed: dict[str, str]) -> Results:
    """Return the results of all runs that are there, with aggregates over the datasets that all methods have."""
    runs = [found for cell in cells if (found := measure(folder, cell))]
    groups = {
        (dataset, method.name): [run for run in runs if (run.dataset, run.method) == (dataset, method.name)]
        for dataset in suite.datasets
        for method in suite.methods
    }
    rows = [summarise(found) for found in groups.values() if found]
    results = Results(suite.name, command, runs, rows, failed=failed)
    present = [method.name for method in suite.methods if any(row.method == method.name for row in rows)]
    shared = [dataset for dataset in suite.datasets if all(groups[dataset, name] for name in present)]
    if not shared or not all(run.scores for run in runs):
        return results
    scores = {
        way: {
            name: [np.array([run.scores[way] for run in groups[dataset, name]]) for dataset in shared]
            for name in present
        }
        for way in WAYS
    }
    for way, by_method in scores.items():
        results.overall[way] = {
            name: {
                "datasets": len(shared),
                "mean": aggregates.mean(own),
                "iqm": aggregates.iqm(own),
                "iqm_interval": aggregates.interval(aggregates.iqm, own),
            }
            for name, own in by_method.items()
        }
    last = scores["last"]
    results.profiles.update({name: aggregates.profile(own, THRESHOLDS).tolist() for name, own in last.items()})
    for index, one in enumerate(present):
        for other in present[index + 1 :]:
            value, ends = (
                aggregates.improvement(last[one], last[other]),
                aggregates.improvement_interval(last[one], last[other]),
            )
            results.improvements.append({"of": one, "over": other, "value": value, "interval": ends})
    return results


HEADINGS = ("dataset", "method", "seeds", *WAYS, "maximum - last", "IQM of last", "seconds", "parameters")


def table(results: Results) -> list[list[str]]:
    """Return the rows of the table, in characters, under HEADINGS."""
    return [
        [
            row.dataset,
            row.method,
            str(row.num_seeds),
            *(_number(row.returns[way], row.intervals[way]) for way in WAYS),
            f"{row.selection:,.0f}",
            f"{row.iqm['last']:,.0f}",
            f"{row.seconds:,.0f}",
            f"{row.parameters:,}",
        ]
        for row in results.rows
    ]


def _number(value: float, ends: tuple[float, float] | None) -> str:
    return f"{value:,.0f}" + (f" [{ends[0]:,.0f}, {ends[1]:,.0f}]" if ends else "")


def overall_table(results: Results) -> list[list[str]]:
    """Return a row for each method: mean and IQM of scores over datasets and seeds, by way."""
    methods = list(results.overall.get("last", {}))
    return [
        [
            name,
            *(f"{results.overall[way][name]['mean']:.1f}" for way in WAYS),
            _number(results.overall["last"][name]["iqm"], results.overall["last"][name]["iqm_interval"]),
        ]
        for name in methods
    ]


def markdown(results: Results) -> str:
    """Return the tables as Markdown."""
    parts = [_markdown(HEADINGS, table(results))]
    if results.overall:
        parts.append(
            _markdown(("method", *(f"mean score, {way}" for way in WAYS), "IQM of last"), overall_table(results))
        )
    if results.improvements:
        rows = [[one["of"], one["over"], f"{one['value']:.2f}"] for one in results.improvements]
        parts.append(_markdown(("probability that", "is above", "on a dataset, last"), rows))
    return "\n\n".join(parts) + "\n"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(headings)
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, rule, *rows])

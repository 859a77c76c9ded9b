"""What one setting does, over a sweep: values compared in pairs of runs that agree in all else, the seed included."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gq.errors import UsageError, suggest
from gq.results.tables import measured
from gq.rollouts.intervals import mean_interval
from gq.runs.metrics import last_evaluation
from gq.runs.records import score_of
from gq.sweeps.folder import Sweep, is_trained

Basis = Literal["evaluations", "training"]


@dataclass(frozen=True)
class ValueComparison:
    """A value of the setting against the first one."""

    value: Any
    baseline: Any
    num_pairs: int
    mean: float  # of the runs with this value that have a partner
    baseline_mean: float
    difference: float
    interval: tuple[float, float] | None  # 95 %, of the difference over pairs; None of fewer than two
    pairs: list[tuple[str, str, float]]  # baseline's member, this value's, difference


@dataclass(frozen=True)
class SweepComparison:
    """All values of a setting against its first one."""

    sweep: str
    key: str
    basis: Basis  # evaluations on record, or the last evaluation while training
    comparisons: list[ValueComparison]
    notes: list[str]


def compare_by(sweep: Sweep, key: str) -> SweepComparison:
    """Compare the values of an axis, paired over all other axes.

    Where the best checkpoint of every finished member was evaluated, its mean return at the highest target counts;
    otherwise the last evaluation while training does.

    Raises:
        UsageError: the key is no axis of the sweep, or no two members form a pair.
    """
    axes = list(dict.fromkeys(name for member in sweep.members for name in member.values))
    if key not in axes:
        hint = suggest(key, axes, otherwise=f"its axes are {', '.join(axes)}")
        raise UsageError(f"{key} does not vary in the sweep {sweep.name}", hint=hint)
    notes: list[str] = []
    scores, basis = scores_of(sweep, notes)
    # By value, then by the place on all other axes.
    found: dict[str, dict[str, tuple[str, float]]] = {}
    values: dict[str, Any] = {}
    for member in sweep.members:
        if key in member.values and member.name in scores:
            value = as_text(member.values[key])
            values.setdefault(value, member.values[key])
            rest = as_text({name: each for name, each in member.values.items() if name != key})
            found.setdefault(value, {})[rest] = member.name, scores[member.name]
    first, *others = list(found) or [""]
    comparisons = [compared(values[first], values[one], found[first], found[one]) for one in others]
    comparisons = [one for one in comparisons if one.num_pairs]
    if not comparisons:
        message = f"no two finished members of {sweep.name} differ in {key} alone"
        raise UsageError(message, hint=f"see gq sweep status {sweep.name}")
    if len(comparisons) > 1:
        notes.append("each interval is certain at its own 95 % level, not all of them together")
    return SweepComparison(sweep.name, key, basis, comparisons, notes)


def scores_of(sweep: Sweep, notes: list[str]) -> tuple[dict[str, float], Basis]:
    """Return the return of each finished member, and where it is from."""
    finished = [member.name for member in sweep.members if is_trained(sweep.run(member.name))]
    if num_left := len(sweep.members) - len(finished):
        notes.append(f"{num_left} of {len(sweep.members)} members have not finished")
    problems: list[str] = []
    rows = {name: found for name in finished if (found := measured(sweep.run(name), "best", problems))}
    if finished and len(rows) == len(finished):
        return {name: float(np.mean(row.values)) for name, row in rows.items()}, "evaluations"
    hint = "returns are of the last evaluation while training"
    notes.append(f"{len(rows)} of {len(finished)} members were evaluated by gq eval: {hint}")
    logged = {name: score_of(last_evaluation(sweep.run(name) / "metrics.jsonl")) for name in finished}
    return {name: score for name, score in logged.items() if score is not None}, "training"


def compared(
    baseline: Any, value: Any, a: Mapping[str, tuple[str, float]], b: Mapping[str, tuple[str, float]]
) -> ValueComparison:
    """Compare two values over the places that both have: member and return by place."""
    places = [place for place in a if place in b]
    pairs = [(a[place][0], b[place][0], b[place][1] - a[place][1]) for place in places]
    differences = np.array([difference for _, _, difference in pairs])
    return ValueComparison(
        value=value,
        baseline=baseline,
        num_pairs=len(pairs),
        mean=float(np.mean([b[place][1] for place in places])) if pairs else 0.0,
        baseline_mean=float(np.mean([a[place][1] for place in places])) if pairs else 0.0,
        difference=float(differences.mean()) if pairs else 0.0,
        interval=mean_interval(differences, fewest=2) if pairs else None,
        pairs=pairs,
    )


def as_text(value: Any) -> str:
    """Return a value that can be a key."""
    return json.dumps(value, sort_keys=True)

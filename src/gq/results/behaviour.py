"""What planning costs and how plans are executed, over all decisions of an evaluation; modes side by side."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from gq.planning.interfaces import Events, Source
from gq.rollouts.statistics import Summary

NUM_WARM_UP_STEPS = 10  # of all running episodes; caches fill and kernels are chosen in the first ones
DEADLINES_HZ = (20, 50)  # of robots that would wait for a decision
SWEEP = "sweep"  # as a mode: all of those below
# With the planner's own horizon, which is usually 3, and with plans as long as they are executed.
STANDARD_MODES = (
    *("baseline", "baselineh6", "policy", "naive2", "naive3", "naive6", "naive6h6"),
    *("hybrid2", "hybrid3", "hybrid6", "hybrid12"),
    *(f"naive6h6+raw@{threshold}" for threshold in (0.1, 0.25, 0.5)),
    *(f"naive6h6+response@{threshold}" for threshold in (0.5, 1, 2)),
    *("hybrid12+response@1", "refine3", "refine6", "beam"),
)
CORRECTED_MODES = ("spec3", "spec6", "spec6h6", "spec6h6+response@1")
MAX_PERIOD = 16  # decisions per planner call, where the area under a frontier begins


@dataclass(frozen=True)
class Mismatch:
    """How far off plans were, by their age on arrival; means over all decisions, None where nothing was measured."""

    age: int  # decisions since the plan was made
    decisions: int
    surprise: float | None  # distance of the latent from what the model expected of the last executed action
    drift: float | None  # distance of the latent from the plan's


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Costs per decision; a step is a decision."""

    decisions: int
    planner_calls: int
    planner_calls_per_step: float
    misses_per_step: float  # planner calls because of a trigger, before the execution horizon
    model_evaluations_per_step: float  # networks applied to one latent, to predict, to act, or to value
    decided_at_once: int  # decisions that share the time of a decision
    decision_ms_mean: float | None  # without the simulator, after a warm-up; None: it was over before
    decision_ms_p50: float | None
    decision_ms_p95: float | None
    decision_ms_p99: float | None
    late_shares: dict[str, float]  # of decisions that took longer than there is time for at this many a second
    accepted_length_mean: float | None  # decisions that plans were executed for; those that an episode's end cut short
    # are left out
    source_shares: dict[str, float]  # of decisions, by where their actions came from
    mismatch: list[Mismatch]


@dataclass(frozen=True, kw_only=True)
class ModeSummary(Behaviour, Summary):
    """The results of one way to act."""

    label: str  # of the mode, with what options changed in it and what corrects plans
    settings: dict[str, Any]  # of the mode
    retention: float | None  # the baseline's return is 1; None: it is not among the modes, or not above 0
    retention_ci95: tuple[float, float] | None  # paired by seeds


@dataclass
class DecisionLog:
    """The events of all decisions of an evaluation, step by step."""

    steps: list[Events] = field(default_factory=list)

    def column(self, name: str, *, start: int = 0) -> np.ndarray:
        """Return one of the numbers of all decisions from a step on."""
        return np.concatenate([np.zeros(0), *(getattr(events, name) for events in self.steps[start:])])

    def behaviour(self, *, decided_at_once: int) -> Behaviour:
        """What the decisions cost; `decided_at_once` were computed at a time."""
        planned, evaluations = self.column("planned"), self.column("evaluations")
        milliseconds = self.column("milliseconds", start=NUM_WARM_UP_STEPS)
        p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99]).tolist() if len(milliseconds) else [None] * 3
        lengths, source = self.column("arrival_age")[planned > 0], self.column("source")
        num = len(planned)
        return Behaviour(
            decisions=num,
            planner_calls=int(planned.sum()),
            planner_calls_per_step=float(planned.mean()),
            misses_per_step=float(self.column("missed").mean()),
            model_evaluations_per_step=float(evaluations.mean()),
            decided_at_once=decided_at_once,
            decision_ms_mean=mean_or_none(milliseconds),
            decision_ms_p50=p50,
            decision_ms_p95=p95,
            decision_ms_p99=p99,
            late_shares={
                f"{hertz} Hz": float((milliseconds > 1000 / hertz).mean())
                for hertz in DEADLINES_HZ
                if len(milliseconds)
            },
            accepted_length_mean=mean_or_none(lengths[lengths > 0]),
            source_shares={one.name.lower(): float((source == one).mean()) for one in Source if (source == one).any()},
            mismatch=self.mismatch(),
        )

    def mismatch(self) -> list[Mismatch]:
        """Return how far off plans were, by age."""
        ages, surprise, drift = self.column("arrival_age"), self.column("surprise"), self.column("drift")
        return [
            Mismatch(
                age=int(age),
                decisions=int((ages == age).sum()),
                surprise=mean_or_none(surprise[ages == age]),
                drift=mean_or_none(drift[ages == age]),
            )
            for age in np.unique(ages[ages > 0])
        ]


def mean_or_none(values: np.ndarray) -> float | None:
    """Return the mean of those that are numbers, None where there are none."""
    measured = values[np.isfinite(values)]
    return float(measured.mean()) if len(measured) else None


def plain(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, as they are."""
    return {one.name: getattr(instance, one.name) for one in fields(instance)}


# --- modes side by side -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A mode among others."""

    mode: str
    strategy: str  # what it has in common with others, see `strategy_of`
    cost: float
    value: float  # return


@dataclass(frozen=True)
class Frontier:
    """The modes that no other one beats, the cheapest first."""

    cost: str  # the field of a result that it is about
    modes: list[str]
    area: float | None  # see `area_under`; of planner calls only
    areas: dict[str, float]  # likewise, of each strategy by itself


def standard_modes(*, corrected: bool) -> list[str]:
    """Return the modes of a sweep, those that need a corrector only if there is one."""
    return [*STANDARD_MODES, *(CORRECTED_MODES if corrected else ())]


def strategy_of(mode: str) -> str:
    """Return what a mode is like but for its horizons and thresholds: `naive`, `hybrid+response`, `baseline`.

    Also of modes of earlier versions that stored evaluations name.
    """
    return re.sub(r"h?\d+|@.*", "", mode).replace("_", " ")


def points(results: Sequence[ModeSummary], cost: str) -> list[Point]:
    """Return the results that have a cost, by the name of its field."""
    found = []
    for result in results:
        value = getattr(result, cost)
        if result.mode and value is not None:
            found.append(Point(result.mode, strategy_of(result.mode), float(value), result.return_mean))
    return found


def best(candidates: Sequence[Point]) -> list[Point]:
    """Return those that have a higher return than all that are as cheap or cheaper, the cheapest first."""
    chosen: list[Point] = []
    for point in sorted(candidates, key=lambda point: (point.cost, -point.value)):
        if not chosen or point.value > chosen[-1].value:
            chosen.append(point)
    return chosen


def area_under(candidates: Sequence[Point], reference: float) -> float:
    """Return the best return that is to be had for a cost, over a reference, as a mean over costs.

    Costs are planner calls per decision from 1 in `MAX_PERIOD` to 1, on a logarithmic scale; where nothing is so cheap
    it is 0. So 1 means as good as the reference at a cost of next to nothing.
    """
    ordered = best(candidates)
    edges = np.log([max(point.cost, 1 / MAX_PERIOD) for point in ordered] + [1.0])
    widths = np.clip(np.diff(edges), 0, None)
    values = np.array([point.value for point in ordered]).clip(min=0) / reference
    return float(widths @ values / np.log(MAX_PERIOD))


def frontiers(results: Sequence[ModeSummary], reference: float | None) -> list[Frontier]:
    """Return the frontiers of return against planner calls and against milliseconds.

    Args:
        reference: the baseline's return, above 0; without, there are no areas.
    """
    if reference is not None and reference <= 0:
        reference = None  # of what is less than nothing there is no share
    by_calls = points(results, "planner_calls_per_step")
    strategies = {point.strategy for point in by_calls}
    areas = {
        strategy: area_under([point for point in by_calls if point.strategy == strategy], reference)
        for strategy in sorted(strategies)
        if reference is not None
    }
    calls = Frontier(
        "planner_calls_per_step",
        [point.mode for point in best(by_calls)],
        None if reference is None else area_under(by_calls, reference),
        areas,
    )
    by_time = points(results, "decision_ms_mean")
    return [calls, Frontier("decision_ms_mean", [point.mode for point in best(by_time)], None, {})]

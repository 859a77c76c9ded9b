"""Many modes side by side: which ones, and which of them no other beats."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gq.results.behaviour import ModeSummary

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

"""What planning costs and how plans are executed, over all decisions of an evaluation."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from gq.planning.interfaces import Events, Source
from gq.rollouts.statistics import Summary

NUM_WARM_UP_STEPS = 10  # of all running episodes; caches fill and kernels are chosen in the first ones
DEADLINES_HZ = (20, 50)  # of robots that would wait for a decision


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
    misses_per_step: float  # planner calls that a trigger asked for, before the execution horizon
    model_evaluations_per_step: float  # networks applied to one latent, to predict, to act, or to value
    decided_at_once: int  # decisions that share the time of a decision
    decision_ms_mean: float | None  # without the simulator, after a warm-up; None: it was over before
    decision_ms_p50: float | None
    decision_ms_p95: float | None
    decision_ms_p99: float | None
    late_shares: dict[str, float]  # of decisions that took longer than there is time at so many a second
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
        """Return what the decisions cost, of which so many were computed at a time."""
        planned, evaluations = self.column("planned"), self.column("evaluations")
        milliseconds = self.column("milliseconds", start=NUM_WARM_UP_STEPS)
        p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99]) if len(milliseconds) else [None] * 3
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
            decision_ms_p50=as_float(p50),
            decision_ms_p95=as_float(p95),
            decision_ms_p99=as_float(p99),
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


def as_float(value: float | None) -> float | None:
    """Return a plain number."""
    return None if value is None else float(value)


def plain(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, as they are."""
    return {one.name: getattr(instance, one.name) for one in fields(instance)}

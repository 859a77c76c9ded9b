"""Scores over tasks and seeds [Agarwal et al. 2021, arXiv 2108.13264]: aggregates, improvement, profiles.

A method's scores are a list with an array [seeds] for each task. All intervals are percentiles of stratified
bootstraps: seeds are drawn with replacement within each task. Definitions as in rliable, the paper's library.
"""

from collections.abc import Callable, Sequence

import numpy as np

from gq.rollouts.intervals import interquartile_mean

NUM_RESAMPLES = 2000
Scores = Sequence[np.ndarray]  # of each task, [seeds]


def mean(scores: Scores) -> float:
    """Return the mean over tasks of the mean over seeds."""
    return float(np.mean([one.mean() for one in scores]))


def median(scores: Scores) -> float:
    """Return the median over tasks of the mean over seeds."""
    return float(np.median([one.mean() for one in scores]))


def iqm(scores: Scores) -> float:
    """Return the interquartile mean of all seeds of all tasks."""
    return interquartile_mean(np.concatenate(scores))


def optimality_gap(scores: Scores, wanted: float = 100.0) -> float:
    """Return by how much scores fall short of a wanted one, on average; more than that does not count."""
    return float(wanted - np.minimum(np.concatenate(scores), wanted).mean())


STATISTICS: dict[str, Callable[[Scores], float]] = {
    "mean": mean,
    "median": median,
    "iqm": iqm,
    "optimality gap": optimality_gap,
}


def interval(statistic: Callable[[Scores], float], scores: Scores) -> tuple[float, float] | None:
    """Return the 95 % interval of a statistic over seeds; None where no task has two."""
    if all(len(one) < 2 for one in scores):
        return None
    generator = np.random.default_rng(0)
    found = [statistic(_drawn(generator, scores)) for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _drawn(generator: np.random.Generator, scores: Scores) -> list[np.ndarray]:
    return [one[generator.integers(len(one), size=len(one))] for one in scores]


def improvement(first: Scores, second: Scores) -> float:
    """Return the probability that a run of the first method scores more than one of the second on the same task.

    It is the Mann-Whitney statistic over the number of pairs, averaged over tasks; ties count half.
    """
    shares = []
    for one, other in zip(first, second, strict=True):
        wins = (one[:, None] > other[None, :]).mean()
        ties = (one[:, None] == other[None, :]).mean()
        shares.append(float(wins + ties / 2))
    return float(np.mean(shares))


def improvement_interval(first: Scores, second: Scores) -> tuple[float, float] | None:
    """Return the 95 % interval of the probability of improvement over seeds of both."""
    if all(len(one) < 2 for one in (*first, *second)):
        return None
    generator = np.random.default_rng(0)
    found = [improvement(_drawn(generator, first), _drawn(generator, second)) for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of runs, of all tasks alike, that score more than each threshold, [thresholds]."""
    found: np.ndarray = np.mean([(one[:, None] > thresholds[None, :]).mean(axis=0) for one in scores], axis=0)
    return found

"""Summaries of episode returns that hold up with few episodes; two policies on the same episode seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gq.envs.scores import Reference

NUM_RESAMPLES = 5000
MIN_EPISODES = 5  # fewer say nothing about their own scatter
Z_CERTAIN, Z_POWER = 1.959964, 0.841621  # normal quantiles: 97.5 % of two sides, and four experiments in five
STUDENT_T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # where the expansion below is too coarse
Verdict = Literal["a", "b", "equal", "unclear"]


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    seed: int
    target_return: float
    episode_return: float
    length: int
    terminated: bool  # False: it reached the time limit
    success: bool | None = None  # whether its goal was reached, where the environment says so


@dataclass(frozen=True)
class Summary:
    """The results of one target return."""

    target_return: float
    num_episodes: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    return_iqm: float
    return_ci95: tuple[float, float]
    normalized_mean: float | None
    reference: str | None
    length_mean: float
    mode: str | None = None  # how it acted, where a run can act in more ways than one
    success_rate: float | None = None  # of episodes that reached their goal, where the environment says so


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean of the middle half [Agarwal et al. 2021, arXiv 2108.13264]; the ends count in part.

    Sample i of n stands for the share [i / n, (i + 1) / n]; what lies in [1/4, 3/4] is averaged.
    """
    return float(np.sort(values) @ interquartile_weights(len(values)))


def interquartile_weights(num: int) -> np.ndarray:
    """Return the share of each of `num` sorted values in their interquartile mean, float64 [num]."""
    edges = np.arange(num + 1) / num
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    shares: np.ndarray = weights / weights.sum()
    return shares


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of independent values, such as episodes or runs; of one it has no width.

    Of fewer than MIN_EPISODES it is Student's t: resampling gives nothing outside of their range.
    """
    num, mean = len(values), float(values.mean())
    if 1 < num < MIN_EPISODES:
        half = student_t(num - 1) * float(values.std(ddof=1)) / math.sqrt(num)
        return mean - half, mean + half
    low, high = bootstrap(lambda drawn: values[drawn].mean(axis=1), num)
    return float(low), float(high)


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % bootstrap interval of a statistic of `num` independent values, wider the fewer there are.

    The percentiles of a plain bootstrap are too close together by sqrt((num - 1) / num), and by as much as the normal
    distribution's are against Student's [Hesterberg 2015, arXiv 1411.5279, section 5.3].

    Args:
        statistic: of resamples, indices [R, num], to [R, ...].
    """
    z = math.sqrt(num / (num - 1)) * student_t(num - 1) if num > 1 else math.inf
    tail = 50 * math.erfc(z / math.sqrt(2))  # percent
    low, high = np.percentile(statistic(resamples(num)), [tail, 100 - tail], axis=0)
    return low, high


def resamples(num: int) -> np.ndarray:
    """Return which of `num` values each resample consists of, int [R, num]; the same ones each time."""
    return np.random.default_rng(0).integers(num, size=(NUM_RESAMPLES, num))


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, to three digits [Abramowitz and Stegun 26.7.5]."""
    if degrees in STUDENT_T:
        return STUDENT_T[degrees]
    z, v = Z_CERTAIN, degrees
    terms = [z, (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)]
    return sum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def retention(returns: np.ndarray, baseline: np.ndarray) -> tuple[float, tuple[float, float]] | None:
    """Return what share of a baseline's mean return is kept, with its 95 % paired bootstrap interval.

    Both are [episodes] in the order of the same seeds, which are drawn together. None where a share means nothing: the
    baseline's mean is not above 0, or might not be.
    """
    assert returns.shape == baseline.shape
    lowest = baseline[resamples(len(baseline))].mean(axis=1).min()
    if min(baseline.mean(), lowest) <= 0:
        return None
    low, high = bootstrap(lambda drawn: returns[drawn].mean(axis=1) / baseline[drawn].mean(axis=1), len(baseline))
    return float(returns.mean() / baseline.mean()), (float(low), float(high))


def summarise(episodes: Sequence[Episode], reference: Reference | None, *, mode: str | None = None) -> list[Summary]:
    """Return a summary per target return, in the order in which they first appear; all say the same mode."""
    summaries = []
    for target in dict.fromkeys(episode.target_return for episode in episodes):
        chosen = [episode for episode in episodes if episode.target_return == target]
        returns = np.array([episode.episode_return for episode in chosen])
        summaries.append(
            Summary(
                target_return=target,
                num_episodes=len(chosen),
                return_mean=float(returns.mean()),
                return_std=float(returns.std()),
                return_min=float(returns.min()),
                return_max=float(returns.max()),
                return_iqm=interquartile_mean(returns),
                return_ci95=mean_interval(returns),
                normalized_mean=reference.score(float(returns.mean())) if reference else None,
                reference=reference.name if reference else None,
                length_mean=float(np.mean([episode.length for episode in chosen])),
                mode=mode,
                success_rate=success_rate(chosen),
            )
        )
    return summaries


def success_rate(episodes: Sequence[Episode]) -> float | None:
    """Return the share of episodes that reached their goal; None where the environment does not say it of all."""
    known = [episode.success for episode in episodes if episode.success is not None]
    return float(np.mean(known)) if known and len(known) == len(episodes) else None


# --- comparison -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """What one of two policies returned."""

    target_return: float | None  # None: it takes none
    return_mean: float
    return_ci95: tuple[float, float]
    return_iqm: float
    normalized_mean: float | None


@dataclass(frozen=True)
class PairedComparison:
    """Two policies on the same seeds; differences are those of B from A."""

    a: Side
    b: Side
    num_episodes: int
    difference_mean: float
    difference_std: float
    difference_ci95: tuple[float, float] | None  # None: of a single episode
    a_wins: int  # episodes in which A returned more
    b_wins: int
    verdict: Verdict
    more_episodes: int | None  # that would probably settle it; None: it is settled, or nothing can be promised
    detectable: float | None  # the difference that as many episodes would show four times in five

    @property
    def half_width(self) -> float:
        """Half of the interval of the difference."""
        if self.difference_ci95 is None:
            return math.inf
        low, high = self.difference_ci95
        return (high - low) / 2


@dataclass(frozen=True)
class Change:
    """What training on changed at one target return, on the same seeds."""

    target_return: float
    num_episodes: int
    start_mean: float
    start_ci95: tuple[float, float]
    end_mean: float
    end_ci95: tuple[float, float]
    difference_mean: float
    difference_ci95: tuple[float, float]  # of the differences seed by seed
    start_score: float | None
    end_score: float | None
    reference: str | None


def compare_paired(
    a: np.ndarray,
    b: np.ndarray,
    *,
    targets: tuple[float | None, float | None] = (None, None),
    reference: Reference | None = None,
) -> PairedComparison:
    """Compare the returns of two policies, both [episodes] in the order of the same seeds.

    Args:
        targets: what A and B were asked for.
    """
    assert a.shape == b.shape
    difference, num = b - a, len(a)
    interval = mean_interval(difference) if num > 1 else None
    mean, sd = float(difference.mean()), float(difference.std(ddof=1)) if num > 1 else 0.0
    verdict = judge(difference, interval)
    return PairedComparison(
        a=one_side(a, targets[0], reference),
        b=one_side(b, targets[1], reference),
        num_episodes=num,
        difference_mean=mean,
        difference_std=sd,
        difference_ci95=interval,
        a_wins=int((difference < 0).sum()),
        b_wins=int((difference > 0).sum()),
        verdict=verdict,
        more_episodes=episodes_needed(mean, sd, num) if verdict == "unclear" else None,
        detectable=(Z_CERTAIN + Z_POWER) * sd / math.sqrt(num) if num >= MIN_EPISODES else None,
    )


def measure_change(target: float, start: np.ndarray, end: np.ndarray, reference: Reference | None) -> Change:
    """Compare the returns before and after, both [episodes] in the order of the same seeds."""
    before, after = one_side(start, target, reference), one_side(end, target, reference)
    return Change(
        target_return=target,
        num_episodes=len(start),
        start_mean=before.return_mean,
        start_ci95=before.return_ci95,
        end_mean=after.return_mean,
        end_ci95=after.return_ci95,
        difference_mean=float((end - start).mean()),
        difference_ci95=mean_interval(end - start),
        start_score=before.normalized_mean,
        end_score=after.normalized_mean,
        reference=reference.name if reference else None,
    )


def one_side(returns: np.ndarray, target: float | None, reference: Reference | None) -> Side:
    """Return one policy's part."""
    mean = float(returns.mean())
    return Side(
        target_return=target,
        return_mean=mean,
        return_ci95=mean_interval(returns),
        return_iqm=interquartile_mean(returns),
        normalized_mean=reference.score(mean) if reference else None,
    )


def judge(difference: np.ndarray, interval: tuple[float, float] | None) -> Verdict:
    """Return who is better at the 95 % level."""
    if not difference.any():
        return "equal"
    if interval is None or len(difference) < MIN_EPISODES or interval[0] <= 0 <= interval[1]:
        return "unclear"
    return "b" if interval[0] > 0 else "a"


def episodes_needed(mean: float, sd: float, num: int) -> int | None:
    """Return how many more episodes would show a difference four times in five, if it and its scatter are as measured.

    None where the difference is within its own standard error, so that it may as well be nothing, or where there are
    too few episodes to know.
    """
    if num < MIN_EPISODES or abs(mean) <= sd / math.sqrt(num):
        return None
    return max(1, math.ceil(((Z_CERTAIN + Z_POWER) * sd / mean) ** 2) - num)

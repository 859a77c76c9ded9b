"""Summaries of episode returns that hold up with few episodes; two policies on the same episode seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gq.envs.scores import Reference
from gq.rollouts.intervals import (
    MIN_EPISODES,
    interquartile_mean,
    mean_interval,
    num_for_power,
    shown_effect,
    spread,
    unseen_cost,
    unseen_share,
)

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
    return_std: float  # with n - 1
    return_min: float
    return_max: float
    return_iqm: float
    return_ci95: tuple[float, float] | None  # None: of fewer than five episodes
    normalized_mean: float | None
    reference: str | None
    length_mean: float
    mode: str | None = None  # how it acted, where a run can act in more ways than one
    success_rate: float | None = None  # of episodes that reached their goal, where the environment says so


def retention(returns: np.ndarray, baseline: np.ndarray) -> tuple[float, tuple[float, float] | None] | None:
    """Return what share of a baseline's mean return is kept, with its 95 % interval, paired by seeds.

    The interval is that of the mean of (r_i - share * b_i) / mean(b), to which the ratio of two means is linear. None
    where a share means nothing: the baseline's mean is not above 0, or might not be.

    Args:
        returns, baseline: [episodes] in the order of the same seeds.
    """
    assert returns.shape == baseline.shape
    mean = float(baseline.mean())
    ends = mean_interval(baseline)
    if min(mean, ends[0] if ends else baseline.min()) <= 0:
        return None
    share = float(returns.mean()) / mean
    around = mean_interval((returns - share * baseline) / mean)
    return share, (share + around[0], share + around[1]) if around else None


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
                return_std=spread(returns),
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
    return_ci95: tuple[float, float] | None
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
    difference_ci95: tuple[float, float] | None  # None: of fewer than five episodes
    a_wins: int  # episodes in which A returned more
    b_wins: int
    verdict: Verdict
    more_episodes: int | None  # that would probably settle it; None: it is settled, or nothing can be promised
    detectable: float | None  # the difference that as many episodes would show four times in five
    unseen_share: float  # of the episodes of the one ahead, in which falls could have gone unseen
    unseen_cost: float  # by which they would lower its mean; a difference below that is not certain

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
    start_ci95: tuple[float, float] | None
    end_mean: float
    end_ci95: tuple[float, float] | None
    difference_mean: float
    difference_ci95: tuple[float, float] | None  # of the differences seed by seed
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
    interval = mean_interval(difference)
    mean, sd = float(difference.mean()), spread(difference)
    ahead = b if mean > 0 else a
    cost = unseen_cost(ahead)
    verdict = judge(difference, interval, cost)
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
        more_episodes=episodes_needed(mean, sd, num, cost / unseen_share(num)) if verdict == "unclear" else None,
        detectable=max(shown_effect(num) * sd, cost) if num >= MIN_EPISODES else None,
        unseen_share=unseen_share(num),
        unseen_cost=cost,
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


def judge(difference: np.ndarray, interval: tuple[float, float] | None, cost: float = 0.0) -> Verdict:
    """Return who is better at the 95 % level.

    Args:
        cost: by which falls that went unseen could lower the mean of the one ahead.
    """
    if not difference.any():
        return "equal"
    if interval is None or interval[0] <= 0 <= interval[1] or abs(float(difference.mean())) <= cost:
        return "unclear"
    return "b" if interval[0] > 0 else "a"


def episodes_needed(mean: float, sd: float, num: int, loss: float = 0.0) -> int | None:
    """Return how many more episodes would show a difference four times in five, if it and its scatter are as measured.

    None where the difference is within its own standard error, so that it may as well be nothing, or where there are
    too few episodes to know.

    Args:
        loss: of an episode in which the one ahead falls, see `unseen_cost`.
    """
    if num < MIN_EPISODES or abs(mean) <= sd / math.sqrt(num):
        return None
    if sd == 0:
        sd = 1e-9 * abs(mean)
    needed = num_for_power(abs(mean) / sd, lambda count: unseen_share(count) * loss / sd)
    return max(1, needed - num)

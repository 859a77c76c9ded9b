"""Summaries of episode returns that hold up with few episodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gq.envs.scores import Reference

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    seed: int
    target_return: float
    episode_return: float
    length: int
    terminated: bool  # False: it reached the time limit


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


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, *, tail: float = 0.025, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over episodes, with a share of `tail` beyond each end."""
    generator = np.random.default_rng(seed)
    means = generator.choice(values, (num_resamples, len(values))).mean(axis=1)
    low, high = np.percentile(means, [100 * tail, 100 - 100 * tail])
    return float(low), float(high)


def retention(returns: np.ndarray, baseline: np.ndarray) -> tuple[float, tuple[float, float]] | None:
    """Return what share of a baseline's mean return is kept, with its 95 % paired bootstrap interval.

    Both are [episodes] in the order of the same seeds, which are drawn together. None where a share means nothing: the
    baseline's mean is not above 0, or might not be.
    """
    assert returns.shape == baseline.shape
    drawn = np.random.default_rng(0).integers(len(returns), size=(NUM_RESAMPLES, len(returns)))
    references = baseline[drawn].mean(axis=1)
    if min(baseline.mean(), references.min()) <= 0:
        return None
    low, high = np.percentile(returns[drawn].mean(axis=1) / references, [2.5, 97.5])
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
                return_ci95=bootstrap_interval(returns),
                normalized_mean=reference.score(float(returns.mean())) if reference else None,
                reference=reference.name if reference else None,
                length_mean=float(np.mean([episode.length for episode in chosen])),
                mode=mode,
            )
        )
    return summaries

"""How far returns tell what a policy returns: one interval for every mean, and what few episodes cannot show.

scripts/measure_intervals.py prints how often these cover the truth; docs/evaluation.md has its table.
"""

import math
from collections.abc import Callable

import numpy as np

NUM_RESAMPLES = 5000
MIN_EPISODES = 5  # fewer say nothing about their own scatter
Z_CERTAIN, Z_POWER = 1.959964, 0.841621  # normal quantiles: 97.5 % of two sides, and four experiments in five
STUDENT_T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # where the expansion below is too coarse
SKEW_WEIGHT = 1.2  # samples show less of their distribution's skewness than there is
# c of Z_CERTAIN + Z_POWER + c1 / n + c2 / n^2 + c3 / n^3: the effect, in standard errors, that `mean_interval` shows
# to be above 0 in four of five normal samples of n values; fitted to 60,000 samples of each n from 7 to 100.
POWER_TERMS = (4.2351, 18.5386, 245.394)


def mean_interval(values: np.ndarray, *, fewest: int = MIN_EPISODES) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of independent values, such as episodes or runs; None of too few.

    It is Student's, made wider on the side of the longer tail by Hall's transformation of the t statistic with the
    sample's skewness [Hall 1992, "On the removal of skewness by transformation"]. From 5 values on it covers at least
    as often as it says for normal and for moderately skewed returns, and 90 to 95 % for a log-normal of sigma 1. No
    interval covers what it has not seen: see `unseen_share`.

    Args:
        fewest: values that it takes; below 5 it is Student's alone.
    """
    num = len(values)
    if num < max(fewest, 2):
        return None
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(num)
    half = student_t(num - 1) * error
    low, high = mean - half, mean + half
    if num >= MIN_EPISODES and error > 0:
        centred = values - mean
        skewness = float((centred**3).mean() / (centred**2).mean() ** 1.5) * math.sqrt(num * (num - 1)) / (num - 2)
        weighed = SKEW_WEIGHT * skewness
        if abs(weighed) > 1e-9:
            low = min(low, mean - error * _untransform(half / error, weighed, num))
            high = max(high, mean - error * _untransform(-half / error, weighed, num))
    return low, high


def _untransform(value: float, skewness: float, num: int) -> float:
    """Return the t statistic whose transformation by Hall, monotone and free of skewness, is a value."""
    root = math.sqrt(num)
    inner = 1 + skewness / root * (value - skewness / (6 * root))
    return 3 * root / skewness * (float(np.cbrt(inner)) - 1)


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % bootstrap interval of a statistic that is no mean, of `num` independent values.

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


def spread(values: np.ndarray) -> float:
    """Return the standard deviation of values that are a sample, with n - 1; 0 of a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean without the lowest and the highest quarter [Agarwal et al. 2021, arXiv 2108.13264].

    Of n values n // 4 are left out at either end, as `scipy.stats.trim_mean(values, 0.25)` does.
    """
    return float(np.sort(values) @ interquartile_weights(len(values)))


def interquartile_weights(num: int) -> np.ndarray:
    """Return the share of each of `num` sorted values in their interquartile mean, float64 [num]."""
    cut = num // 4
    weights = np.zeros(num)
    weights[cut : num - cut] = 1 / (num - 2 * cut)
    return weights


def unseen_share(num: int) -> float:
    """Return the share of episodes that may be of a kind of which `num` episodes show none, at 95 %.

    With a share p, none is seen with a probability of (1 - p)^n; it is 5 % for what is returned, about 3 / n.
    """
    return float(1 - 0.05 ** (1 / num))


def unseen_cost(returns: np.ndarray) -> float:
    """Return by how much the mean of returns would be lower with falls in all of `unseen_share`.

    A fall is taken to return 0, or to lose as much as the mean is worth where returns are negative, and no more than
    the lowest return seen.
    """
    mean, lowest = float(returns.mean()), float(returns.min())
    return unseen_share(len(returns)) * max(mean - min(lowest, 0.0), abs(mean), mean - lowest)


def num_for_power(effect: float, cost: Callable[[int], float] = lambda num: 0.0) -> int:
    """Return how many values show a mean of `effect` standard deviations to be above 0 in about four samples of five.

    Of the two numbers around 80 % it is the closer one, as one value more or less changes that by up to five percent.

    Args:
        cost: in standard deviations, that the mean has to exceed as well, by the number of values.
    """
    num = MIN_EPISODES
    while shown_effect(num) > effect:
        num += 1
    if num > MIN_EPISODES and abs(shown_effect(num - 1) - effect) < abs(shown_effect(num) - effect):
        num -= 1
    while effect - cost(num) < Z_POWER / math.sqrt(num):
        num += 1
    return num


def shown_effect(num: int) -> float:
    """Return the mean, in standard deviations, that `num` values show to be above 0 four times in five."""
    extra: float = sum(term / num**power for power, term in enumerate(POWER_TERMS, 1))
    return (Z_CERTAIN + Z_POWER + extra) / float(math.sqrt(num))

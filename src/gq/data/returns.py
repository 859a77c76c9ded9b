"""What the returns of a dataset suggest: targets that were reached, and the scale that returns-to-go are divided by."""

import math

import numpy as np

TARGET_PERCENTILES = (50, 90, 99)
RETURN_SCALE = 1000.0  # what the papers divide returns by
SPARE = 0.1  # of the spread of the data's returns, that an online target may be above their best


def observed_targets(returns: np.ndarray) -> dict[str, float]:
    """Return p50, p90, p99 and max of returns [E]: each was earned by an episode, to six significant digits."""
    percentiles = np.percentile(returns, TARGET_PERCENTILES, method="inverted_cdf")
    named = {f"p{percentile}": value for percentile, value in zip(TARGET_PERCENTILES, percentiles, strict=True)}
    return {name: significant(value) for name, value in (named | {"max": returns.max()}).items()}


def significant(value: float) -> float:
    """Return a number to six significant digits."""
    return float(f"{value:.6g}")


def suggested_scale(returns: np.ndarray) -> float:
    """Return 1000, the usual scale, or the power of ten that brings smaller or larger returns to the same size."""
    largest = float(np.abs(returns).max())
    if 100 <= largest < 100_000:
        return RETURN_SCALE
    return 10.0 ** math.floor(math.log10(largest)) if largest > 0 else 1.0


def online_target(target: float, low: float, returns: np.ndarray) -> float:
    """Return twice the evaluation's target as measured from a random policy's return `low`, within reach of the data.

    The paper asks for twice the target itself; that is less than the target where returns are negative. More than the
    data's best return and a tenth of their spread is asked of nobody: no Reacher earns +31.

    Args:
        returns: of the dataset's episodes [E].
    """
    reachable = float(returns.max() + SPARE * (returns.max() - returns.min()))
    return significant(min(low + 2.0 * (target - low), max(reachable, target)))

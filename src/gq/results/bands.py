"""What stands for several runs: a mean, or that of the middle half, and a band that says how far they are apart."""

from typing import Literal

import numpy as np

from gq.rollouts.statistics import bootstrap, interquartile_weights

Aggregate = Literal["mean", "iqm"]
Band = Literal["auto", "bootstrap", "min-max", "none"]
MIN_FOR_BOOTSTRAP = 5  # runs: from fewer, resampling gives intervals that are far too narrow
BLOCK = 100  # points that are resampled at a time
NAMES = {"mean": "mean", "iqm": "interquartile mean"}


def aggregate(values: np.ndarray, how: Aggregate, axis: int = 0) -> np.ndarray:
    """Return the mean over runs, or that of the middle half of them at each point; [R, points] to [points].

    Args:
        axis: the one of runs.
    """
    if how == "mean":
        mean: np.ndarray = values.mean(axis=axis)
        return mean
    return np.tensordot(interquartile_weights(values.shape[axis]), np.sort(values, axis=axis), axes=(0, axis))


def kind_of_band(num_runs: int, wanted: Band) -> str:
    """Return what the band of so many runs is: bootstrap, min-max, or "" for none."""
    if num_runs < 2 or wanted == "none":
        return ""
    if wanted == "auto":
        return "bootstrap" if num_runs >= MIN_FOR_BOOTSTRAP else "min-max"
    return wanted


def band_of(values: np.ndarray, how: Aggregate, kind: str) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Return the lower and the upper end of a kind of band, each [points], of values [R, points]; None for none.

    The bootstrap draws runs with replacement, the same ones for all points; see `gq.rollouts.statistics.bootstrap`.
    """
    if not kind:
        return None, None
    if kind == "min-max":
        return values.min(axis=0), values.max(axis=0)
    ends = []
    for start in range(0, values.shape[1], BLOCK):
        block = values[:, start : start + BLOCK]

        def resampled(drawn: np.ndarray, block: np.ndarray = block) -> np.ndarray:
            return aggregate(block[drawn], how, axis=1)

        ends.append(bootstrap(resampled, len(values)))
    low, high = np.concatenate(ends, axis=1)
    return low, high


def describe(kind: str, how: Aggregate, drawn_as: str = "band") -> str:
    """Say what a line of several runs is, and its band, for legends."""
    bands = {"min-max": "lowest to highest", "bootstrap": "95 % bootstrap interval"}
    return f"{NAMES[how]} over runs" + (f"; {drawn_as}: {bands[kind]}" if kind else "")

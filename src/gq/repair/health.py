"""What a dataset is like: returns, lengths, suggested targets and scale, and where it comes from."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gq.data.returns import observed_targets, suggested_scale

NUM_BINS = 16
BAR_WIDTH = 40
EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts [B] of values between edges [B + 1]."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def lines(self, bar_width: int = BAR_WIDTH) -> list[str]:
        """Return a bar a bin, as text; the longest of so many characters."""
        edges = [f"{edge:,g}" for edge in self.edges]
        width = max(map(len, edges))
        pairs = zip(edges[:-1], edges[1:], self.counts, strict=True)
        highest = max(self.counts)
        return [f"  {low:>{width}} to {high:>{width}}  {bar(n / highest, bar_width)}{n:,}" for low, high, n in pairs]


@dataclass(frozen=True, kw_only=True)
class Health:
    """Facts about the whole episodes of a dataset."""

    num_episodes: int
    num_transitions: int
    num_terminated: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    length_mean: float
    returns: Histogram
    lengths: Histogram
    targets: dict[str, float]  # p50, p90, p99 and max of the returns
    return_scale: float
    versions: dict[str, str]  # environment and engines on record
    sha256: str

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        targets = ", ".join(f"{name} {value:,.0f}" for name, value in self.targets.items())
        versions = ", ".join(f"{name.removesuffix('_version')} {value}" for name, value in self.versions.items())
        return [
            f"whole episodes: {self.num_episodes:,}, {self.num_terminated:,} of them terminated; "
            f"length {self.length_mean:,.0f}, return {self.return_mean:,.0f} ± {self.return_std:,.0f}",
            "",
            "returns",
            *self.returns.lines(),
            "",
            "lengths",
            *self.lengths.lines(),
            "",
            f"suggested targets: {targets}; return scale: {self.return_scale:,g}",
            f"on record: {versions or 'no versions'}",
            f"sha256 {self.sha256}",
        ]

    def document(self) -> dict[str, Any]:
        """Return what --json prints."""
        document = {name: value for name, value in vars(self).items() if name not in ("returns", "lengths")}
        return document | {
            "return_histogram": {"edges": list(self.returns.edges), "counts": list(self.returns.counts)},
            "length_histogram": {"edges": list(self.lengths.edges), "counts": list(self.lengths.counts)},
        }


def measure(
    returns: np.ndarray, lengths: np.ndarray, terminated: np.ndarray, *, attributes: dict[str, Any], sha256: str
) -> Health:
    """Describe E whole episodes.

    Args:
        returns: float64 [E].
        lengths: int [E].
        terminated: bool [E].
        attributes: of the file; those about versions are kept.
        sha256: of the file.
    """
    return Health(
        num_episodes=len(returns),
        num_transitions=int(lengths.sum()),
        num_terminated=int(terminated.sum()),
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        return_min=float(returns.min()),
        return_max=float(returns.max()),
        length_mean=float(lengths.mean()),
        returns=histogram(returns),
        lengths=histogram(lengths),
        targets=observed_targets(returns),
        return_scale=suggested_scale(returns),
        versions=_recorded_versions(attributes),
        sha256=sha256,
    )


def histogram(values: np.ndarray) -> Histogram:
    """Count values in bins between round numbers."""
    low, high = float(values.min()), float(values.max())
    step = round_up((high - low) / NUM_BINS or max(abs(high), 1.0) / NUM_BINS)
    start = math.floor(low / step) * step
    if start > low:  # low / step is rounded to 0 where low is a tiny negative number
        start -= step
    count = max(1, math.floor((high - start) / step) + 1)
    edges = start + step * np.arange(count + 1)
    counts, _ = np.histogram(values, edges)
    return Histogram(edges=tuple(float(edge) for edge in edges), counts=tuple(int(number) for number in counts))


def round_up(step: float) -> float:
    """Return the next number of the form 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _recorded_versions(attributes: dict[str, Any]) -> dict[str, str]:
    """Return the environment and the versions that a file records."""
    found = {"env_id": str(attributes["env_id"])} if attributes.get("env_id") else {}
    for name, value in sorted(attributes.items()):
        if name.endswith("_version") or name == "requirements":
            found[name] = str(value)
    return found


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """Return a horizontal bar for a share of the width; something is seen of anything above 0."""
    eighths = max(round(share * width * 8), 1) if share > 0 else 0
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "") + " " * bool(eighths)

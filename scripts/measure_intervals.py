"""How often gq's intervals cover the truth, its verdicts are wrong, and its promises about more episodes hold.

    .venv/bin/python scripts/measure_intervals.py            three tables, about two minutes on one core
    .venv/bin/python scripts/measure_intervals.py --draws 500     coarser, in seconds

docs/evaluation.md shows what it printed.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np

from gq.rollouts.intervals import mean_interval, num_for_power
from gq.rollouts.statistics import compare_paired, judge

Draw = Callable[[np.random.Generator, int], np.ndarray]
TOP, FALLEN = 3000.0, (200.0, 1500.0)  # returns of episodes that go well and of those that fall


def falling(share: float) -> Draw:
    """Return what draws episodes of which some fall."""

    def draw(generator: np.random.Generator, num: int) -> np.ndarray:
        well = generator.random(num) >= share
        return np.where(well, generator.normal(TOP, 30, num), generator.uniform(*FALLEN, num))

    return draw


def mean_falling(share: float) -> float:
    return (1 - share) * TOP + share * sum(FALLEN) / 2


RETURNS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda generator, num: generator.normal(size=num), 0.0),
    "log-normal, sigma 0.5": (lambda generator, num: generator.lognormal(0, 0.5, num), math.exp(0.125)),
    "log-normal, sigma 1": (lambda generator, num: generator.lognormal(0, 1, num), math.exp(0.5)),
    "one in ten falls": (falling(0.1), mean_falling(0.1)),
}
SKEWED_MEAN = 2000 + 600 * math.exp(0.5)
# Two policies of equal means.
EQUAL: dict[str, tuple[Draw, Draw]] = {
    "normal": (lambda g, num: g.normal(TOP, 500, num), lambda g, num: g.normal(TOP, 500, num)),
    "both skewed": (
        lambda g, num: 2000 + 600 * g.lognormal(0, 1, num),
        lambda g, num: 2000 + 600 * g.lognormal(0, 1, num),
    ),
    "one skewed": (lambda g, num: 2000 + 600 * g.lognormal(0, 1, num), lambda g, num: g.normal(SKEWED_MEAN, 50, num)),
    "one falls, 1 in 20": (falling(0.05), lambda g, num: g.normal(mean_falling(0.05), 30, num)),
    "one falls, 1 in 10": (falling(0.1), lambda g, num: g.normal(mean_falling(0.1), 30, num)),
    "one falls, 1 in 5": (falling(0.2), lambda g, num: g.normal(mean_falling(0.2), 30, num)),
    "both fall, 1 in 10": (falling(0.1), falling(0.1)),
}
EFFECTS = (1.4, 1.2, 1.0, 0.8, 0.6, 0.4)  # differences in standard deviations


def coverage(draw: Draw, truth: float, num: int, draws: int) -> float:
    """Return in which share of samples the interval holds the truth."""
    generator = np.random.default_rng(num)
    intervals = [mean_interval(draw(generator, num)) for _ in range(draws)]
    return float(np.mean([ends is not None and ends[0] <= truth <= ends[1] for ends in intervals]))


def wrong_verdicts(first: Draw, second: Draw, num: int, draws: int) -> float:
    """Return in which share of comparisons of two equal policies one is called better."""
    generator = np.random.default_rng(num)
    verdicts = [compare_paired(first(generator, num), second(generator, num)).verdict for _ in range(draws)]
    return float(np.mean([verdict in ("a", "b") for verdict in verdicts]))


def kept_promises(effect: float, draws: int) -> tuple[int, float]:
    """Return the number of episodes that is said to settle a difference four times in five, and how often it does."""
    num, generator = num_for_power(effect), np.random.default_rng(0)
    differences = [generator.normal(effect, 1, num) for _ in range(draws)]
    return num, float(np.mean([judge(one, mean_interval(one)) == "b" for one in differences]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5000, help="samples for each number (default: 5000)")
    draws = parser.parse_args().draws
    print("| returns | n = 5 | 10 | 20 | 50 |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (draw, truth) in RETURNS.items():
        print(f"| {name} | " + " | ".join(f"{coverage(draw, truth, n, draws):.1%}" for n in (5, 10, 20, 50)) + " |")
    print("\n| two equal policies | n = 10 | 20 | 50 |\n| --- | ---: | ---: | ---: |")
    for name, (first, second) in EQUAL.items():
        print(
            f"| {name} | " + " | ".join(f"{wrong_verdicts(first, second, n, draws):.1%}" for n in (10, 20, 50)) + " |"
        )
    print("\n| difference / sd | episodes | settled |\n| ---: | ---: | ---: |")
    for effect in EFFECTS:
        num, share = kept_promises(effect, draws)
        print(f"| {effect} | {num} | {share:.1%} |")


if __name__ == "__main__":
    main()

"""Simulating built-in data against stepping the bare environments.

    python benchmarks/simulation.py --env hopper humanoid --seconds 10

Both sides use the same number of processes and the same policy: the baseline only steps Gymnasium environments, with
actions that were recorded beforehand; gq also evaluates the policy, adds its noise, keeps the rows and puts them
together. The two take turns, and the ratio is of the medians.
"""

import argparse
import multiprocessing
import statistics
import time

import numpy as np

from gq.data.builtin import num_cores, simulate
from gq.data.catalog import BUILTIN_ENVIRONMENTS
from gq.data.trajectories import Trajectories

NUM_ROUNDS = 5


def step_recorded(recorded: Trajectories, first: int, stride: int) -> float:
    """Replay every stride-th recorded episode's actions; return the seconds, without building the environment."""
    from gq.envs.make import make

    assert recorded.task is not None
    env = make(recorded.task)
    env.reset(seed=0)
    start = time.perf_counter()
    for episode in range(first, recorded.num_episodes, stride):
        env.reset(seed=episode)
        ended = False
        for row in range(recorded.offsets[episode], recorded.offsets[episode + 1]):
            if ended:
                env.reset(seed=row)
            _, _, terminated, truncated, _ = env.step(recorded.actions[row])
            ended = terminated or truncated
    return time.perf_counter() - start


def baseline(recorded: Trajectories, num_processes: int) -> float:
    """Return the steps per second of bare environments in all processes together."""
    context = multiprocessing.get_context("fork")
    with context.Pool(num_processes) as pool:
        seconds = pool.starmap(step_recorded, [(recorded, i, num_processes) for i in range(num_processes)], 1)
    return recorded.num_transitions / max(seconds)


def measure(environment: str, num_transitions: int) -> None:
    """Print one row."""
    name, num_processes = f"builtin/{environment}/medium", num_cores()
    recorded = simulate(name, num_transitions)
    ours, bare = [], []
    for _ in range(NUM_ROUNDS):
        start = time.perf_counter()
        made = simulate(name, num_transitions, num_workers=num_processes)
        ours.append(made.num_transitions / (time.perf_counter() - start))
        assert np.array_equal(made.rewards, recorded.rewards)
        bare.append(baseline(recorded, num_processes))
    a, b = statistics.median(ours), statistics.median(bare)
    print(f"{name:28} {num_processes:9} {b:14,.0f} {a:12,.0f} {a / b:6.2f}", flush=True)


def main() -> None:
    """Measure each environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(BUILTIN_ENVIRONMENTS), choices=BUILTIN_ENVIRONMENTS)
    parser.add_argument("--transitions", type=int, default=100_000)
    arguments = parser.parse_args()
    print(f"{'dataset':28} {'processes':>9} {'bare, steps/s':>14} {'gq, steps/s':>12} {'ratio':>6}")
    for environment in arguments.env:
        measure(environment, arguments.transitions)


if __name__ == "__main__":
    main()

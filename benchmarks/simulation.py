"""The built-in datasets: their returns, their lengths, and how fast they are simulated.

    python benchmarks/simulation.py
    python benchmarks/simulation.py --env humanoid --level medium --rounds 5

Each dataset is simulated whole by as many processes as there are cores. The baseline only steps Gymnasium environments
in as many processes, with the actions that the dataset holds: gq also evaluates the policy, adds its noise, keeps the
rows, puts them together and starts its processes. The two take turns; the ratio is of the medians.
"""

import argparse
import multiprocessing
import statistics
import time

from gq.data.builtin import num_cores, simulate
from gq.data.catalog import BUILTIN_ENVIRONMENTS, BUILTIN_LEVELS
from gq.data.trajectories import Trajectories


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


def measure(name: str, num_transitions: int, num_rounds: int) -> None:
    """Print one row."""
    num_processes = num_cores()
    ours, bare = [], []
    for _ in range(num_rounds):
        start = time.perf_counter()
        made = simulate(name, num_transitions, num_workers=num_processes)
        ours.append(made.num_transitions / (time.perf_counter() - start))
        bare.append(baseline(made, num_processes))
    a, b = statistics.median(ours), statistics.median(bare)
    returns = f"{made.returns.mean():.0f} ± {made.returns.std():.0f}"
    terminated = made.terminals.sum()
    print(
        f"{name:30} {returns:>13} {made.lengths.mean():7.0f} {made.num_episodes:9} {terminated:11} "
        f"{b:14,.0f} {a:12,.0f} {a / b:6.2f}",
        flush=True,
    )


def main() -> None:
    """Measure each dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(BUILTIN_ENVIRONMENTS), choices=BUILTIN_ENVIRONMENTS)
    parser.add_argument("--level", nargs="+", default=list(BUILTIN_LEVELS), choices=BUILTIN_LEVELS)
    parser.add_argument("--transitions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    print(
        f"{'dataset':30} {'return':>13} {'length':>7} {'episodes':>9} {'terminated':>11} "
        f"{'bare, steps/s':>14} {'gq, steps/s':>12} {'ratio':>6}"
    )
    for environment in arguments.env:
        for level in arguments.level:
            measure(f"builtin/{environment}/{level}", arguments.transitions, arguments.rounds)


if __name__ == "__main__":
    main()

"""The built-in datasets: their returns, their lengths, and how fast they are simulated.

    python benchmarks/simulation.py
    python benchmarks/simulation.py --env humanoid --level medium --rounds 5

Each dataset is simulated by as many processes as there are cores. "Whole" counts everything: start of the processes,
simulation, episodes thrown away at the end, putting the rows together. "Running" counts the transitions that arrive
after the first round of episodes. The baseline only steps Gymnasium environments in as many processes, built and
running before the clock starts, with the actions that the dataset holds; gq also evaluates the policy, adds its noise
and keeps the rows. They take turns; the ratio is running to bare, of the medians.
"""

import argparse
import multiprocessing
import statistics
import time

from gq.data.trajectories import Trajectories
from gq.datasets.builtin import NUM_SLOTS, num_cores, simulate, simulate_in_workers
from gq.policies.packaged import ENVIRONMENTS, LEVELS


def step_recorded(recorded: Trajectories, first: int, stride: int) -> float:
    """Replay every stride-th recorded episode's actions; return the seconds, without building the environment."""
    from gq.envs.make import make
    from gq.envs.tasks import resolve_task

    assert recorded.task is not None
    env = make(resolve_task(recorded.task))
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


def running_rate(name: str, num_transitions: int, num_processes: int) -> float:
    """Return the transitions per second that gq's processes deliver once they run."""
    episodes = simulate_in_workers(name, 0, num_processes)
    for _ in range(num_processes * NUM_SLOTS):
        next(episodes)
    start, num_rows = time.perf_counter(), 0
    while num_rows < num_transitions:
        num_rows += len(next(episodes).rows)
    seconds = time.perf_counter() - start
    episodes.close()
    return num_rows / seconds


def measure(name: str, num_transitions: int, num_rounds: int) -> None:
    """Print one row."""
    num_processes = num_cores()
    whole, running, bare = [], [], []
    for _ in range(num_rounds):
        start = time.perf_counter()
        made = simulate(name, num_transitions, num_workers=num_processes)
        whole.append(made.num_transitions / (time.perf_counter() - start))
        bare.append(baseline(made, num_processes))
        running.append(running_rate(name, num_transitions, num_processes))
    bare_median, running_median = statistics.median(bare), statistics.median(running)
    returns = f"{made.returns.mean():.0f} ± {made.returns.std():.0f}"
    terminated = made.terminals.sum()
    print(
        f"{name:30} {returns:>13} {made.lengths.mean():7.0f} {made.num_episodes:9} {terminated:11} "
        f"{statistics.median(whole):8,.0f} {bare_median:8,.0f} {running_median:8,.0f} "
        f"{running_median / bare_median:6.2f}",
        flush=True,
    )


def main() -> None:
    """Measure each dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(ENVIRONMENTS), choices=ENVIRONMENTS)
    parser.add_argument("--level", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--transitions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    print(
        f"{'dataset':30} {'return':>13} {'length':>7} {'episodes':>9} {'terminated':>11} "
        f"{'whole':>8} {'bare':>8} {'running':>8} {'ratio':>6}   (steps/s)"
    )
    for environment in arguments.env:
        for level in arguments.level:
            measure(f"builtin/{environment}/{level}", arguments.transitions, arguments.rounds)


if __name__ == "__main__":
    main()

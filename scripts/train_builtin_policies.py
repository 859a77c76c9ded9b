"""Train the linear policies behind the built-in datasets, by augmented random search.

The method is ARS V2-t of Mania, Guy and Recht (arXiv 1803.07055, algorithm 2): a linear policy on normalised
observations, antithetic perturbations, the best directions averaged and divided by the spread of their returns.
The survival bonus is subtracted while searching, so that standing still earns nothing. It needs gq installed.

    python scripts/train_builtin_policies.py --env Hopper-v5 --iterations 220 --seed 2 --out ars/hopper

It writes a snapshot every few iterations and resumes from the newest one. `package_builtin_policies.py` makes the
packaged files from them.
"""

import argparse
import json
import multiprocessing
import os
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gq.envs.make import make
from gq.envs.tasks import resolve_task
from gq.files import atomic_path


class Recipe(NamedTuple):
    """Settings of the search."""

    step_size: float
    num_directions: int
    num_best: int  # directions kept
    perturbation: float
    survival_bonus: float  # reward per step alive, subtracted


# Table 9 of the paper where it lists the task.
RECIPES = {
    "Hopper-v5": Recipe(0.01, 8, 4, 0.025, 1.0),
    "HalfCheetah-v5": Recipe(0.02, 32, 4, 0.03, 0.0),
    "Walker2d-v5": Recipe(0.03, 40, 30, 0.025, 1.0),
    "Ant-v5": Recipe(0.015, 60, 20, 0.025, 1.0),
    "Humanoid-v5": Recipe(0.02, 230, 230, 0.0075, 5.0),
}
SNAPSHOT_INTERVAL = 10  # iterations
_environment: Any = None


class Result(NamedTuple):
    """What came of it."""

    episode_return: float
    length: int
    sums: np.ndarray  # of the observations
    squares: np.ndarray  # and of their squares


def start_worker(env_id: str) -> None:
    """Build this process's environment once."""
    global _environment
    _environment = make(resolve_task(env_id))


def roll_out(weight: np.ndarray, mean: np.ndarray, std: np.ndarray, seed: int) -> Result:
    """Run one episode without noise: action = weight @ ((observation - mean) / std), clipped, in half ranges."""
    env = _environment
    low, high = env.action_space.low, env.action_space.high
    center, half, scaled = (low + high) / 2, (high - low) / 2, weight / std
    observation, _ = env.reset(seed=seed)
    observations, total = [], 0.0
    while True:
        observations.append(observation)
        action = (scaled @ (observation - mean)).clip(-1, 1)
        observation, reward, terminated, truncated, _ = env.step(action * half + center)
        total += float(reward)
        if terminated or truncated:
            seen = np.array(observations)
            return Result(total, len(seen), seen.sum(axis=0), (seen**2).sum(axis=0))


class Statistics:
    """Running mean and standard deviation of observations."""

    def __init__(self, size: int) -> None:
        self.count, self.sums, self.squares = 0, np.zeros(size), np.zeros(size)

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Return both, float64 [S]."""
        if self.count < 2:
            return np.zeros_like(self.sums), np.ones_like(self.sums)
        mean = self.sums / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        return mean, np.where(std < 1e-7, np.inf, std)  # a constant observation says nothing: weight 0


def load_snapshot(path: Path) -> tuple[np.ndarray, Statistics, int]:
    """Return weight, statistics and iteration."""
    with np.load(path) as snapshot:
        statistics = Statistics(len(snapshot["sums"]))
        vars(statistics).update((name, snapshot[name]) for name in ("count", "sums", "squares"))
        return snapshot["weight"], statistics, int(snapshot["iteration"])


def search(arguments: argparse.Namespace) -> None:
    """Search, and report each snapshot."""
    recipe = RECIPES[arguments.env]
    arguments.out.mkdir(parents=True, exist_ok=True)
    method = f"linear policy by augmented random search V2-t, seed {arguments.seed}"
    document = {"env_id": arguments.env, "method": method, "seed": arguments.seed, **recipe._asdict()}
    (arguments.out / "search.json").write_text(json.dumps(document, indent=2))
    probe: Any = make(resolve_task(arguments.env))
    (observation_dim,), (action_dim,) = probe.observation_space.shape, probe.action_space.shape
    weight, statistics, start = np.zeros((action_dim, observation_dim)), Statistics(observation_dim), 0
    if existing := sorted(arguments.out.glob("iteration-*.npz")):
        weight, statistics, start = load_snapshot(existing[-1])
        print(f"resuming at iteration {start}", flush=True)
    with multiprocessing.Pool(arguments.workers, start_worker, (arguments.env,)) as pool:
        for iteration in range(start, arguments.iterations):
            generator = np.random.default_rng([arguments.seed, iteration])  # resuming repeats no draw and skips none
            weight = improve(pool, weight, statistics, recipe, generator)
            if (iteration + 1) % SNAPSHOT_INTERVAL == 0:
                jobs = [(weight, *statistics.mean_and_std(), 10_000 + i) for i in range(8)]
                tests = pool.starmap(roll_out, jobs, chunksize=1)
                path = arguments.out / f"iteration-{iteration + 1:06d}.npz"
                with atomic_path(path) as temporary, temporary.open("wb") as file:
                    np.savez(file, weight=weight, iteration=iteration + 1, **vars(statistics))
                average, length = np.mean([(test.episode_return, test.length) for test in tests], axis=0)
                print(f"{iteration + 1:6d}  return {average:8.1f}  length {length:6.1f}", flush=True)


def improve(
    pool: Pool, weight: np.ndarray, statistics: Statistics, recipe: Recipe, generator: np.random.Generator
) -> np.ndarray:
    """Return the weight after one iteration; adds the observations seen to the statistics."""
    deltas = generator.standard_normal((recipe.num_directions, *weight.shape))
    seeds = generator.integers(2**31, size=recipe.num_directions)
    mean, std = statistics.mean_and_std()
    jobs = [
        (weight + sign * recipe.perturbation * delta, mean, std, int(seed))
        for delta, seed in zip(deltas, seeds, strict=True)
        for sign in (1, -1)
    ]
    results = pool.starmap(roll_out, jobs, chunksize=1)
    for result in results:
        statistics.count += result.length
        statistics.sums += result.sums
        statistics.squares += result.squares
    scores = np.array([r.episode_return - recipe.survival_bonus * r.length for r in results]).reshape(-1, 2)
    best = np.argsort(-scores.max(axis=1))[: recipe.num_best]
    gradient = np.einsum("n,nao->ao", scores[best, 0] - scores[best, 1], deltas[best]) / recipe.num_best
    return weight + recipe.step_size / max(scores[best].std(), 1e-6) * gradient


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=sorted(RECIPES), required=True)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, required=True)
    search(parser.parse_args())


if __name__ == "__main__":
    main()

"""Train the linear policies behind the built-in datasets, by augmented random search.

The method is ARS V2-t of Mania, Guy and Recht (arXiv 1803.07055, algorithm 2): a linear policy on normalised
observations, antithetic perturbations, the best directions averaged and divided by the spread of their returns.
The survival bonus is subtracted while searching, so that standing still earns nothing.

    python scripts/train_builtin_policies.py search --env Hopper-v5 --iterations 800 --seed 1 --out ars/hopper
    python scripts/train_builtin_policies.py measure ars/hopper --episodes 50
    python scripts/train_builtin_policies.py export ars/hopper --iteration 700 --noise 0.1 \
        --output src/gq/data/policies/hopper-expert.safetensors

`search` writes a snapshot every few iterations and resumes from the newest one.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

# Step size, directions, directions kept, perturbation size: table 9 of the paper where it lists the task.
RECIPES = {
    "Hopper-v5": dict(step_size=0.01, num_directions=8, num_best=4, perturbation=0.025, survival_bonus=1.0),
    "HalfCheetah-v5": dict(step_size=0.02, num_directions=32, num_best=4, perturbation=0.03, survival_bonus=0.0),
    "Walker2d-v5": dict(step_size=0.03, num_directions=40, num_best=30, perturbation=0.025, survival_bonus=1.0),
    "Ant-v5": dict(step_size=0.015, num_directions=60, num_best=20, perturbation=0.025, survival_bonus=1.0),
    "Humanoid-v5": dict(step_size=0.02, num_directions=230, num_best=230, perturbation=0.0075, survival_bonus=5.0),
}
_environment: gymnasium.Env | None = None


def start_worker(env_id: str) -> None:
    """Build this process's environment once."""
    global _environment
    mujoco.set_mju_user_warning(lambda message: None)  # otherwise HalfCheetah leaves a MUJOCO_LOG.TXT behind
    _environment = gymnasium.make(env_id, disable_env_checker=True)


def roll_out(job: tuple) -> tuple[float, int, np.ndarray, np.ndarray]:
    """Run one episode of a linear policy; return (return, length, sum of observations, sum of their squares)."""
    weight, mean, std, noise, seed = job
    env = _environment
    assert env is not None
    low, high = env.action_space.low, env.action_space.high
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    total, length = 0.0, 0
    sums, squares = np.zeros_like(mean), np.zeros_like(mean)
    while True:
        sums += observation
        squares += observation**2
        action = weight @ ((observation - mean) / std)
        if noise:
            action = action + noise * generator.standard_normal(action.shape)
        observation, reward, terminated, truncated, _ = env.step(np.clip(action, -1, 1) * (high - low) / 2 + (high + low) / 2)
        total += float(reward)
        length += 1
        if terminated or truncated:
            return total, length, sums, squares


class Statistics:
    """Running mean and standard deviation of observations."""

    def __init__(self, size: int) -> None:
        self.count, self.sums, self.squares = 0, np.zeros(size), np.zeros(size)

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        if self.count < 2:
            return np.zeros_like(self.sums), np.ones_like(self.sums)
        mean = self.sums / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        return mean, np.where(std < 1e-7, np.inf, std)  # a constant observation says nothing: weight 0


def save_snapshot(path: Path, weight: np.ndarray, statistics: Statistics, **facts: float) -> None:
    temporary = path.with_suffix(".partial.npz")
    np.savez(temporary, weight=weight, count=statistics.count, sums=statistics.sums, squares=statistics.squares, **facts)
    os.replace(temporary, path)


def snapshots(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("iteration-*.npz") if ".partial" not in p.name)


def search(arguments: argparse.Namespace) -> None:
    recipe = RECIPES[arguments.env]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "search.json").write_text(json.dumps({"env_id": arguments.env, "seed": arguments.seed, **recipe}, indent=2))
    probe = gymnasium.make(arguments.env, disable_env_checker=True)
    observation_dim, action_dim = probe.observation_space.shape[0], probe.action_space.shape[0]
    weight, statistics, start = np.zeros((action_dim, observation_dim)), Statistics(observation_dim), 0
    if existing := snapshots(arguments.out):
        with np.load(existing[-1]) as snapshot:
            weight, start = snapshot["weight"], int(snapshot["iteration"])
            statistics.count, statistics.sums, statistics.squares = int(snapshot["count"]), snapshot["sums"], snapshot["squares"]
        print(f"resuming at iteration {start}", flush=True)
    num_steps, began = 0, time.monotonic()
    with multiprocessing.Pool(arguments.workers, start_worker, (arguments.env,)) as pool:
        for iteration in range(start, arguments.iterations):
            generator = np.random.default_rng([arguments.seed, iteration])  # resuming repeats no draw and skips none
            deltas = generator.standard_normal((recipe["num_directions"], action_dim, observation_dim))
            seeds = generator.integers(2**31, size=recipe["num_directions"])
            mean, std = statistics.mean_and_std()
            jobs = [
                (weight + sign * recipe["perturbation"] * delta, mean, std, 0.0, int(seed))
                for delta, seed in zip(deltas, seeds, strict=True)
                for sign in (1, -1)
            ]
            results = pool.map(roll_out, jobs, chunksize=1)
            for _, length, sums, squares in results:
                statistics.count += length
                statistics.sums += sums
                statistics.squares += squares
                num_steps += length
            scores = np.array([r - recipe["survival_bonus"] * n for r, n, _, _ in results]).reshape(-1, 2)
            best = np.argsort(-scores.max(axis=1))[: recipe["num_best"]]
            gradient = np.einsum("n,nao->ao", scores[best, 0] - scores[best, 1], deltas[best]) / recipe["num_best"]
            weight = weight + recipe["step_size"] / max(scores[best].std(), 1e-6) * gradient
            if (iteration + 1) % arguments.every == 0:
                mean, std = statistics.mean_and_std()
                tests = pool.map(roll_out, [(weight, mean, std, 0.0, 10_000 + i) for i in range(8)], chunksize=1)
                average = float(np.mean([t[0] for t in tests]))
                save_snapshot(arguments.out / f"iteration-{iteration + 1:06d}.npz", weight, statistics, iteration=iteration + 1, average=average)
                rate = num_steps / (time.monotonic() - began)
                print(f"{iteration + 1:6d}  return {average:8.1f}  length {np.mean([t[1] for t in tests]):6.1f}  {rate:7.0f} steps/s", flush=True)


def load(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path) as snapshot:
        statistics = Statistics(len(snapshot["sums"]))
        statistics.count, statistics.sums, statistics.squares = int(snapshot["count"]), snapshot["sums"], snapshot["squares"]
        mean, std = statistics.mean_and_std()
        return snapshot["weight"], mean, std


def measure(arguments: argparse.Namespace) -> None:
    env_id = json.loads((arguments.folder / "search.json").read_text())["env_id"]
    chosen = [p for p in snapshots(arguments.folder) if not arguments.iteration or int(p.stem[-6:]) in arguments.iteration]
    with multiprocessing.Pool(arguments.workers, start_worker, (env_id,)) as pool:
        for path in chosen:
            weight, mean, std = load(path)
            for noise in arguments.noise:
                jobs = [(weight, mean, std, noise, 20_000 + i) for i in range(arguments.episodes)]
                results = pool.map(roll_out, jobs, chunksize=1)
                returns, lengths = np.array([r[0] for r in results]), np.array([r[1] for r in results])
                print(f"{path.stem}  noise {noise:.2f}  return {returns.mean():8.1f} ± {returns.std():7.1f}"
                      f"  ({returns.min():.0f} … {returns.max():.0f})  length {lengths.mean():6.1f}", flush=True)


def export(arguments: argparse.Namespace) -> None:
    from safetensors.numpy import save_file

    env_id = json.loads((arguments.folder / "search.json").read_text())["env_id"]
    weight, mean, std = load(arguments.folder / f"iteration-{arguments.iteration:06d}.npz")
    scaled = weight / std  # the normalisation folded in: action = weight @ (observation - mean)
    tensors = {"weight": scaled.astype(np.float32), "mean": mean.astype(np.float32)}
    save_file(tensors, arguments.output, metadata={"env_id": env_id, "noise": str(arguments.noise), "method": "ARS V2-t", "iteration": str(arguments.iteration)})
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("search")
    command.add_argument("--env", choices=sorted(RECIPES), required=True)
    command.add_argument("--iterations", type=int, default=500)
    command.add_argument("--every", type=int, default=10)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--workers", type=int, default=os.cpu_count())
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(run=search)
    command = commands.add_parser("measure")
    command.add_argument("folder", type=Path)
    command.add_argument("--iteration", type=int, nargs="*")
    command.add_argument("--noise", type=float, nargs="*", default=[0.0])
    command.add_argument("--episodes", type=int, default=20)
    command.add_argument("--workers", type=int, default=os.cpu_count())
    command.set_defaults(run=measure)
    command = commands.add_parser("export")
    command.add_argument("folder", type=Path)
    command.add_argument("--iteration", type=int, required=True)
    command.add_argument("--noise", type=float, required=True, help="standard deviation, in half action ranges")
    command.add_argument("--output", type=Path, required=True)
    command.set_defaults(run=export)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

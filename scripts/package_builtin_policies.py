"""Package snapshots of a search as the policies behind the built-in datasets, with their measured returns.

    python scripts/package_builtin_policies.py measure ars/hopper --iteration 120 220 --noise 0.1 0.2
    python scripts/package_builtin_policies.py export ars/hopper \
        --output src/gq/policies/packaged_weights/hopper.safetensors --medium 120 0.2 --expert 220 0.1 --replay 120 0.2

`--medium` and `--expert` take a snapshot's iteration and a noise in half action ranges; `--replay` takes the last of
its snapshots, which are spread evenly over the search up to there, and a noise. Every figure is of the first
episodes that `gq download builtin/...` simulates with seed 0, by the very networks that are written.
"""

import argparse
import json
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gq.datasets.builtin import simulate_policy
from gq.envs.make import make
from gq.envs.tasks import resolve_task
from gq.files import atomic_path
from gq.policies.packaged import Network, PackagedPolicy

NUM_REPLAY_NETWORKS = 7
NUM_LENGTH_EPISODES = 20  # to learn how long the episodes of one network are


def load_network(folder: Path, iteration: int) -> Network:
    """Return a snapshot as a network."""
    with np.load(folder / f"iteration-{iteration:06d}.npz") as snapshot:
        if "layers.0.weight" in snapshot:
            num_layers = sum(name.endswith(".weight") for name in snapshot)
            weights = [snapshot[f"layers.{layer}.weight"] for layer in range(num_layers)]
            biases = [snapshot[f"layers.{layer}.bias"] for layer in range(num_layers)]
            mean, std = snapshot["mean"], snapshot["std"]
        else:
            mean = snapshot["sums"] / snapshot["count"]
            std = np.sqrt(np.maximum(snapshot["squares"] / snapshot["count"] - mean**2, 0))
            std = np.where(std < 1e-7, np.inf, std)
            weights, biases = [snapshot["weight"]], [np.zeros(len(snapshot["weight"]))]
    weights[0] = weights[0] / std  # the normalisation folded in
    return Network(
        mean=mean.astype(np.float32),
        weights=tuple(weight.astype(np.float32) for weight in weights),
        biases=tuple(bias.astype(np.float32) for bias in biases),
        squash=len(weights) > 1,
    )


def make_policy(env_id: str, networks: list[Network], probabilities: list[float], noise: float) -> PackagedPolicy:
    """Return networks as a policy that can be simulated."""
    space: Any = make(resolve_task(env_id)).action_space
    return PackagedPolicy(
        env_id=env_id,
        networks=tuple(networks),
        probabilities=np.array(probabilities),
        noise=noise,
        action_low=space.low,
        action_high=space.high,
        metadata={},
    )


def measured(policy: PackagedPolicy, num_episodes: int) -> dict[str, float]:
    """Return the figures of the first episodes that a dataset of seed 0 has."""
    episodes = list(islice(simulate_policy(policy, seed=0), num_episodes))
    returns = np.array([episode.rows[:, -1].sum(dtype=np.float64) for episode in episodes])
    lengths = np.array([len(episode.rows) for episode in episodes])
    return {
        "return_mean": round(float(returns.mean()), 1),
        "return_std": round(float(returns.std()), 1),
        "return_min": round(float(returns.min()), 1),
        "return_max": round(float(returns.max()), 1),
        "length_mean": round(float(lengths.mean()), 1),
        "num_episodes": num_episodes,
        "num_terminated": int(sum(episode.terminated for episode in episodes)),
    }


def measure(arguments: argparse.Namespace) -> None:
    """Print the returns of snapshots at several noise levels."""
    env_id = json.loads((arguments.folder / "search.json").read_text())["env_id"]
    for iteration in arguments.iteration:
        for noise in arguments.noise:
            policy = make_policy(env_id, [load_network(arguments.folder, iteration)], [1.0], noise)
            figures = measured(policy, arguments.episodes)
            line = "  ".join(f"{name.removeprefix('return_')} {value:>6}" for name, value in figures.items())
            print(f"iteration {iteration:6d}  noise {noise:.2f}  {line}", flush=True)


def replay_iterations(folder: Path, last: int) -> list[int]:
    """Return the iterations of a few snapshots, spread evenly from the first up to `last`."""
    existing = [int(path.stem.split("-")[1]) for path in sorted(folder.glob("iteration-*.npz"))]
    existing = [iteration for iteration in existing if iteration <= last]
    number = min(len(existing), NUM_REPLAY_NETWORKS)
    return [existing[i] for i in np.linspace(0, len(existing) - 1, number).round().astype(int)]


def describe_level(env_id: str, networks: dict[int, Network], noise: float, num_episodes: int) -> dict[str, Any]:
    """Measure one level and return what the packaged file says of it."""
    single = [make_policy(env_id, [network], [1.0], noise) for network in networks.values()]
    inverse = np.ones(1)
    if len(single) > 1:  # an episode's network is drawn such that each gives about as many rows
        inverse = 1 / np.array([measured(policy, NUM_LENGTH_EPISODES)["length_mean"] for policy in single])
    probabilities = [float(p) for p in inverse / inverse.sum()]
    policy = make_policy(env_id, list(networks.values()), probabilities, noise)
    return {
        "networks": [str(iteration) for iteration in networks],
        "probabilities": probabilities,
        "noise": noise,
        **measured(policy, num_episodes),
    }


def export(arguments: argparse.Namespace) -> None:
    """Write the packaged file of one environment."""
    search = json.loads((arguments.folder / "search.json").read_text())
    (medium, medium_noise), (expert, expert_noise) = arguments.medium, arguments.expert
    replayed = replay_iterations(arguments.folder, int(arguments.replay[0]))
    chosen = {
        "medium": ([int(medium)], medium_noise),
        "medium-replay": (replayed, arguments.replay[1]),
        "expert": ([int(expert)], expert_noise),
    }
    networks = {i: load_network(arguments.folder, i) for i in sorted({int(expert), int(medium), *replayed})}
    levels = {
        level: describe_level(search["env_id"], {i: networks[i] for i in iterations}, noise, arguments.episodes)
        for level, (iterations, noise) in chosen.items()
    }
    first = next(iter(networks.values()))
    document = {
        "env_id": search["env_id"],
        "method": search["method"],
        "search": search,
        "num_layers": len(first.weights),
        "squash": first.squash,
        "levels": levels,
        **{f"{package}_version": version(package) for package in ("gymnasium", "mujoco", "numpy")},
    }
    space: Any = make(resolve_task(search["env_id"])).action_space
    arrays = {"action_low": space.low, "action_high": space.high}
    for iteration, network in networks.items():
        arrays[f"{iteration}.mean"] = network.mean
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            arrays |= {f"{iteration}.{layer}.weight": weight, f"{iteration}.{layer}.bias": bias}
    with atomic_path(arguments.output) as temporary:
        save_file(arrays, temporary, metadata={"gq": json.dumps(document)})
    print(json.dumps(levels, indent=2))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.add_argument("folder", type=Path)
    command.add_argument("--iteration", type=int, nargs="+", required=True)
    command.add_argument("--noise", type=float, nargs="*", default=[0.0])
    command.add_argument("--episodes", type=int, default=50)
    command.set_defaults(run=measure)
    command = commands.add_parser("export")
    command.add_argument("folder", type=Path)
    for level in ("medium", "expert", "replay"):
        command.add_argument(f"--{level}", type=float, nargs=2, metavar=("ITERATION", "NOISE"), required=True)
    command.add_argument("--episodes", type=int, default=50)
    command.add_argument("--output", type=Path, required=True)
    command.set_defaults(run=export)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

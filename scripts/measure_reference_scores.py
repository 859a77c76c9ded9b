"""Measure the returns that normalised scores refer to, and write them into src/gq/envs/reference_scores.json.

    python scripts/measure_reference_scores.py --random                     the random policy, in every task
    python scripts/measure_reference_scores.py --expert --env Hopper-v5     gq's own expert, in one task
    python scripts/measure_reference_scores.py --random --expert --check    compare with the table, write nothing

Random is uniform in the action box. Expert is the network behind the packaged dataset builtin/.../expert, without
exploration noise; a task without one keeps what the table has, and without any it gets no score. Episode i starts from
`reset(seed=SEED + i)` and draws its random actions from (SEED, i), so the figures do not depend on the number of
processes, and equal engine versions give equal figures. Only what is measured is replaced in the table. When a figure
changes, and so the scores, raise the table's version.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gq.envs.make import make
from gq.envs.tasks import TASKS, resolve_task
from gq.files import write_json
from gq.policies.packaged import NAMES, Slots, load_policy
from gq.rollouts.intervals import mean_interval, spread

SOURCE = Path(__file__).parents[1] / "src" / "gq"
TABLE = SOURCE / "envs" / "reference_scores.json"
POLICIES = SOURCE / "policies" / "packaged_weights"
SEED = 0
NUM_EXPERT_EPISODES = 100
NUM_RANDOM_EPISODES = 1000
NUM_LONG_RANDOM_EPISODES = 300  # where a random episode always lasts 1000 steps
LONG = ("HalfCheetah-v5", "HumanoidStandup-v5", "Swimmer-v5")
DESCRIPTION = (
    "Returns of reference policies on Gymnasium's v5 MuJoCo environments, measured by"
    " scripts/measure_reference_scores.py unless an entry names another origin. ci95 is the bootstrap interval of the"
    " mean."
)

Act = Callable[[np.ndarray], np.ndarray]  # observation [S] to action [A]


def random_policy(task: str, episode: int) -> Act:
    """Return a policy that draws from the action box."""
    bound, action_dim = TASKS[task].action_bound, TASKS[task].action_dim
    generator = np.random.default_rng([SEED, episode])
    return lambda observation: generator.uniform(-bound, bound, action_dim).astype(np.float32)


def expert_name(task: str) -> str:
    """Return the built-in dataset whose policy is a task's expert."""
    return f"builtin/{task.split('-')[0].lower()}/expert"


def expert_policy(task: str) -> Act:
    """Return the packaged expert without its exploration noise."""
    policy = load_policy(expert_name(task))
    slots = Slots(policy.networks[:1], 1)
    return lambda observation: policy.to_box(slots.act(observation[None].astype(np.float32)))[0]


def run_episode(index: int, *, task: str, kind: str) -> tuple[float, int]:
    """Run one episode and return its undiscounted return and its length."""
    act = expert_policy(task) if kind == "expert" else random_policy(task, index)
    env = make(resolve_task(task))
    observation, _ = env.reset(seed=SEED + index)
    total, length = 0.0, 0
    while True:
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        total, length = total + float(reward), length + 1
        if terminated or truncated:
            env.close()
            return total, length


def measure(task: str, kind: str, pool: Any) -> dict[str, Any]:
    """Return the table's entry for a policy: `random` or `expert`."""
    num_episodes = NUM_EXPERT_EPISODES
    if kind == "random":
        num_episodes = NUM_LONG_RANDOM_EPISODES if task in LONG else NUM_RANDOM_EPISODES
    run = partial(run_episode, task=task, kind=kind)
    returns, lengths = np.array(pool.map(run, range(num_episodes), chunksize=5)).T
    policy = {"policy": "uniform in the action box"}
    if kind == "expert":
        packaged = load_policy(expert_name(task))
        policy = {"policy": f"{expert_name(task)} without exploration noise", "sha256": packaged.sha256}
    return {
        "mean": round(float(returns.mean()), 2),
        "ci95": [round(bound, 2) for bound in mean_interval(returns)],
        "std": round(spread(returns), 2),
        "num_episodes": num_episodes,
        "length_mean": round(float(lengths.mean()), 1),
        "seed": SEED,
        **policy,
        "gymnasium": version("gymnasium"),
        "mujoco": version("mujoco"),
    }


def has_expert(task: str) -> bool:
    """Tell whether gq comes with an expert for a task."""
    environment = task.split("-")[0].lower()
    return expert_name(task) in NAMES and (POLICIES / f"{environment}.safetensors").is_file()


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", action="store_true", help="measure the random policy")
    parser.add_argument("--expert", action="store_true", help="measure the packaged expert")
    parser.add_argument("--env", nargs="+", metavar="ID", help="tasks; default: all v5 tasks")
    parser.add_argument("--check", action="store_true", help="compare with the table; exit 1 where a figure differs")
    arguments = parser.parse_args()
    if not arguments.random and not arguments.expert:
        parser.error("give --random, --expert or both")
    return arguments


def main() -> None:
    """Measure what is asked for, one task after the other, and update the table after each."""
    arguments = parse_arguments()
    tasks = arguments.env or [task for task in TASKS if task.endswith("-v5")]
    table: dict[str, Any] = {"name": "gq-v5", "version": "1", "tasks": {}}
    if TABLE.is_file():
        table = json.loads(TABLE.read_text())
    table["description"] = DESCRIPTION
    num_different = 0
    with multiprocessing.get_context("spawn").Pool() as pool:
        for task in tasks:
            kinds = ["random"] * arguments.random + ["expert"] * (arguments.expert and has_expert(task))
            for kind in kinds:
                entry = measure(task, kind, pool)
                (low, high), num = entry["ci95"], entry["num_episodes"]
                print(f"{task} {kind}: {entry['mean']} ({low} ... {high}), {num} episodes", flush=True)
                num_different += entry != table["tasks"].get(task, {}).get(kind)
                table["tasks"].setdefault(task, {})[kind] = entry
            if not arguments.check:
                write_json(TABLE, table)
    if arguments.check:
        sys.exit(f"{num_different} entries differ from {TABLE}" if num_different else 0)


if __name__ == "__main__":
    main()

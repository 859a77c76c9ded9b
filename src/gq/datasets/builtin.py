"""Built-in datasets: real MuJoCo episodes, simulated from the small policies that come with gq.

For each of five environments there is medium (a partly trained policy, much exploration noise), expert (the best one
found, little noise) and medium-replay (an episode is of one of a few policies along the first part of the search). The
scripts train_builtin_policies, train_neural_policies and package_builtin_policies made them;
`load_policy(name).metadata` says how, and what they measured.
"""

from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gq.data.trajectories import Trajectories
from gq.datasets.builtin_worker import Episode, simulate_here, simulate_in_workers
from gq.envs.tasks import TASKS
from gq.errors import UsageError
from gq.files import write_error
from gq.policies.packaged import PackagedPolicy, load_policy
from gq.threads import num_cores

DEFAULT_NUM_TRANSITIONS = 100_000
TRANSITIONS_PER_WORKER = 20_000  # below, starting a process costs more than it saves

Progress = Callable[[int, int], None]


def no_progress(_done: int, _total: int) -> None:
    """Report nothing."""


def simulate(
    name: str,
    num_transitions: int = DEFAULT_NUM_TRANSITIONS,
    *,
    seed: int = 0,
    num_workers: int | None = None,
    progress: Progress = no_progress,
) -> Trajectories:
    """Simulate a built-in dataset of whole episodes.

    Episodes are added in order until there are at least `num_transitions` rows, so the last one may go beyond. Equal
    name, number, seed and engine versions give equal bits, whatever the number of workers.

    Args:
        name: one of `packaged_policy.NAMES`.
        seed: 0 or more; episode i draws its start and its noise from (seed, i).
        num_workers: processes; by default as many as there are cores and it pays for. With 1, this process simulates.
        progress: called after each episode with the rows so far, at most `num_transitions`, and `num_transitions`.

    Raises:
        UsageError: there is no such dataset, or a number is out of range.
        GqError: a worker process failed.
    """
    check(name, num_transitions, seed)
    if num_workers is None:
        num_workers = max(1, min(num_cores(), num_transitions // TRANSITIONS_PER_WORKER))
    stream = simulate_here(name, seed) if num_workers == 1 else simulate_in_workers(name, seed, num_workers)
    episodes: list[Episode] = []
    num_rows = 0
    with closing(stream):  # ends the workers, also after Ctrl-C
        while num_rows < num_transitions:
            episodes.append(next(stream))
            num_rows += len(episodes[-1].rows)
            progress(min(num_rows, num_transitions), num_transitions)
    return assemble(name, episodes, {"seed": seed, "num_requested_transitions": num_transitions})


def download_builtin(
    name: str,
    path: Path,
    *,
    num_transitions: int = DEFAULT_NUM_TRANSITIONS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Path:
    """Simulate a built-in dataset, write it to `path` as a canonical file, and return the path.

    Whoever calls it holds the dataset's lock (`gq.datasets.cache.holding`).

    Raises:
        UsageError: there is no such dataset, or a number is out of range.
        GqError: the file cannot be written, or a worker process failed.
    """
    from gq.data.reading import time_limits, write_canonical

    check(name, num_transitions, seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    trajectories = simulate(name, num_transitions, seed=seed, progress=progress)
    write_canonical(path, trajectories, timeouts=time_limits(trajectories), attributes=trajectories.attributes)
    return path


def check(name: str, num_transitions: int, seed: int) -> None:
    """Raise UsageError for an unknown name or a number out of range."""
    load_policy(name)
    if num_transitions < 1:
        raise UsageError(f"cannot simulate {num_transitions} transitions", hint="ask for 1 or more")
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", hint="give 0 or more")


def assemble(name: str, episodes: list[Episode], request: dict[str, int]) -> Trajectories:
    """Put episodes back to back, with their provenance."""
    policy = load_policy(name)
    num_observations = TASKS[policy.env_id].observation_dim
    rows = [episode.rows for episode in episodes]
    offsets = np.cumsum([0] + [len(episode.rows) for episode in episodes], dtype=np.int64)
    terminals = np.zeros(offsets[-1], dtype=bool)
    terminals[offsets[1:] - 1] = [episode.terminated for episode in episodes]
    trajectories = Trajectories(
        observations=np.concatenate([part[:, :num_observations] for part in rows]),
        actions=np.concatenate([part[:, num_observations:-1] for part in rows]),
        rewards=np.concatenate([part[:, -1] for part in rows]),
        terminals=terminals,
        offsets=offsets,
        source=name,
        task=policy.env_id,
    )
    trajectories.attributes.update(provenance(policy, trajectories), **request)
    return trajectories


def provenance(policy: PackagedPolicy, trajectories: Trajectories) -> dict[str, str | int | float]:
    """Return what a file should say about where its numbers come from."""
    return {
        "origin": "simulated by gq",
        "licence": "MIT",
        "num_transitions": trajectories.num_transitions,
        "num_episodes": trajectories.num_episodes,
        "return_mean": float(trajectories.returns.mean()),
        "return_std": float(trajectories.returns.std()),
        "policy": f"{policy.metadata['method']}; Gaussian action noise of {policy.noise:g} half action ranges, clipped",
        "policy_num_networks": len(policy.networks),
        "policy_sha256": policy.sha256,
        "policy_return_mean": policy.metadata["return_mean"],
        "policy_return_std": policy.metadata["return_std"],
        "policy_num_episodes": policy.metadata["num_episodes"],
        **{f"{package}_version": version(package) for package in ("gymnasium", "mujoco", "numpy")},
    }

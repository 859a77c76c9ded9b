"""Steps of many environments in one process tree: one after the other, in threads, in processes.

    python benchmarks/stepping.py [--tasks Hopper-v5 Humanoid-v5] [--cores 1 2 16]

Microseconds of passing time per environment step, and this process's CPU time in brackets, medians of --rounds with
the ways in turns; environments never end for falling. `one by one` is the plain loop, `Stepper` is what gq's
evaluation uses, `SyncVectorEnv` and `AsyncVectorEnv` (a process each, shared memory, whose CPU time is not counted) are
Gymnasium's, `mujoco.rollout` is MuJoCo's own batched stepping in threads: physics alone, without the contact forces,
observations and rewards that Gymnasium's environments compute after it, so it is a bound and not a choice. EnvPool is
measured if it is installed; its physics and rewards are those of other versions.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import mujoco.rollout
import numpy as np

from gq.envs.make import make
from gq.envs.tasks import resolve_task
from gq.rollouts.episodes import Stepper

Step = Callable[[np.ndarray], Any]  # of actions [E, A]


def options_of(task: str) -> dict[str, bool]:
    """Return what keeps an episode from ending before its time limit."""
    return {"terminate_when_unhealthy": False} if task.startswith(("Hopper", "Walker2d", "Ant", "Humanoid-")) else {}


def started(task: str, number: int) -> list[Any]:
    """Return environments that are reset."""
    environments = [make(resolve_task(task), **options_of(task)) for _ in range(number)]
    for seed, environment in enumerate(environments):
        environment.reset(seed=seed)
    return environments


def one_by_one(task: str, number: int, _cores: int) -> Step:
    environments = started(task, number)
    return lambda actions: [env.step(action) for env, action in zip(environments, actions, strict=True)]


def stepper(task: str, number: int, cores: int) -> Step:
    found, rows = Stepper(started(task, number), cores), np.arange(number)
    return lambda actions: found.step(rows, actions)


def vector(kind: Any, task: str, number: int, **settings: Any) -> Step:
    environments = kind([lambda: make(resolve_task(task), **options_of(task))] * number, **settings)
    environments.reset(seed=0)
    return lambda actions: environments.step(actions)


def sync_vector(task: str, number: int, _cores: int) -> Step:
    return vector(gymnasium.vector.SyncVectorEnv, task, number)


def async_vector(task: str, number: int, _cores: int) -> Step:
    return vector(gymnasium.vector.AsyncVectorEnv, task, number, shared_memory=True)


def native(task: str, number: int, cores: int) -> Step:
    environments = [env.unwrapped for env in started(task, number)]
    model, repeat = environments[0].model, environments[0].frame_skip
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    states = np.zeros((number, mujoco.mj_stateSize(model, kind)))
    for state, environment in zip(states, environments, strict=True):
        mujoco.mj_getState(model, environment.data, state, kind)
    datas = [mujoco.MjData(model) for _ in range(cores)]
    pool = mujoco.rollout.Rollout(nthread=cores if cores > 1 else 0)

    def step(actions: np.ndarray) -> None:
        control = np.repeat(actions[:, None].astype(np.float64), repeat, axis=1)
        states[:] = pool.rollout(model, datas, states, control)[0][:, -1]

    return step


def envpool(task: str, number: int, cores: int) -> Step:
    import envpool

    environments = envpool.make(task.replace("-v5", "-v4"), "gymnasium", num_envs=number, num_threads=cores)
    environments.reset()
    return lambda actions: environments.step(actions.astype(np.float64))


WAYS = {
    "one by one": one_by_one,
    "Stepper": stepper,
    "SyncVectorEnv": sync_vector,
    "AsyncVectorEnv": async_vector,
    "mujoco.rollout": native,
    "EnvPool": envpool,
}


def measure(task: str, cores: int, options: argparse.Namespace) -> None:
    """Print one row."""
    space = make(resolve_task(task)).action_space
    actions = 0.1 * np.random.default_rng(0).uniform(
        space.low, space.high, (options.steps, options.environments, *space.shape)
    ).astype(np.float32)
    steps = {}
    for name in options.ways:
        try:
            steps[name] = WAYS[name](task, options.environments, cores)
        except ImportError:
            continue
        steps[name](actions[0])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            began = time.perf_counter(), time.process_time()
            for chosen in actions:
                step(chosen)
            taken = time.perf_counter() - began[0], time.process_time() - began[1]
            times[name].append((taken[0] / actions[..., 0].size, taken[1] / actions[..., 0].size))
    cells = []
    for name in options.ways:
        wall, cpu = (1e6 * statistics.median(column) for column in zip(*times.get(name) or [(0, 0)], strict=True))
        cells.append(f"{wall:.0f} ({cpu:.0f})" if name in times else "-")
    print(f"{task:14}{cores:6}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def main() -> None:
    """Measure each task with each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["Hopper-v5", "Humanoid-v5"])
    parser.add_argument("--cores", nargs="+", type=int, default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--environments", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{options.environments} environments, us per environment step: wall (CPU)")
    print(f"{'':14}{'cores':>6}" + "".join(f"{name:>16}" for name in options.ways))
    for task in options.tasks:
        for cores in options.cores:
            measure(task, cores, options)


if __name__ == "__main__":
    main()

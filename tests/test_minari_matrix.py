"""Data that Minari's own collector made, over wrapper x limit x arguments x format x ends: used rightly or refused.

Whatever is read is replayed in the environment that gq makes for it: each observation and reward has to be the recorded
one. So nothing is silently wrong, whatever Minari and Gymnasium record.
"""

import json
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers

from gq.data.reading import data_file, read_trajectories
from gq.envs.make import make
from gq.envs.specs import EnvironmentRequest
from gq.errors import DataError, UsageError
from gq.repair.doubts import doubts
from gq.repair.robots import robot_of

minari = pytest.importorskip("minari", reason="Minari is not installed")

ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "Hopper-v5": [{}, {"forward_reward_weight": -1.0}, {"terminate_when_unhealthy": False}],
    "HalfCheetah-v5": [{}, {"exclude_current_positions_from_observation": False}, {"ctrl_cost_weight": 2.0}],
    "Pendulum-v1": [{}, {"g": 5.0}],
    "Reacher-v5": [{}, {"reward_control_weight": 3.0}],
}
WRAPPERS: dict[str, Callable[[gymnasium.Env], gymnasium.Env]] = {
    "none": lambda env: env,
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "ClipAction": wrappers.ClipAction,
    "RescaleAction": lambda env: wrappers.RescaleAction(env, -0.5, 0.5),
    "FlattenObservation": wrappers.FlattenObservation,
    "TimeAwareObservation": wrappers.TimeAwareObservation,
    "NormalizeObservation": wrappers.NormalizeObservation,
    "NormalizeReward": wrappers.NormalizeReward,
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda x: 2 * x, env.observation_space),
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 2),
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 6),
}
LIMITS = (None, 9)
MAY_BE_REFUSED = {
    *("NormalizeObservation", "NormalizeReward", "TransformReward", "TransformObservation", "FrameStackObservation")
}


def collect(name: str, env: gymnasium.Env, form: str, num_steps: int) -> None:
    """Let Minari collect two episodes of at most some steps of random actions."""
    collector = minari.DataCollector(env, data_format=form)
    for seed in (3, 8):
        collector.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(num_steps):
            _, _, terminated, truncated, _ = collector.step(env.action_space.sample())
            if terminated or truncated:
                break
    collector.create_dataset(
        name, algorithm_name="random", author="A", author_email="a@b.c", code_permalink="x", description="random"
    )
    collector.close()


def seeds_of(folder: Path) -> list[int]:
    """Return the seeds that Minari recorded, an episode each."""
    import h5py

    file = data_file(folder)
    if file.is_dir():
        return [json.loads((file / str(number) / "metadata.json").read_text())["seed"] for number in range(2)]
    with h5py.File(file) as root:
        return [int(root[f"episode_{number}"].attrs["seed"]) for number in range(2)]


def replay(folder: Path) -> None:
    """Read data, and repeat them in the environment that they are said to be of."""
    data = read_trajectories(folder, environment=EnvironmentRequest())
    task = data.environment
    assert task is not None
    env = make(task)
    for seed, start, stop in zip(seeds_of(folder), data.offsets[:-1], data.offsets[1:], strict=True):
        observation, _ = env.reset(seed=seed)
        for row in range(start, stop):
            np.testing.assert_allclose(np.float32(observation), data.observations[row], rtol=1e-5, atol=1e-5)
            observation, reward, terminated, truncated, _ = env.step(data.actions[row])
            np.testing.assert_allclose(reward, data.rewards[row], rtol=1e-4, atol=1e-4)
            assert terminated == data.terminals[row]
            assert not truncated or row == stop - 1  # no episode of the data outlives its environment's limit
    env.close()


def check_doubts(folder: Path, name: str) -> None:
    """Make sure that training on data of which nothing is recorded says that they do not repeat, where it can see."""
    if not robot_of(name):
        return
    try:
        data = read_trajectories(folder, environment=EnvironmentRequest(name))
    except DataError:  # of another width
        return
    lines = doubts(data)
    assert any("do not repeat" in line for line in lines), lines


@pytest.mark.parametrize("name", ARGUMENTS)
def test_data_of_real_collectors_are_used_rightly_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    formats = ("hdf5", "arrow") if name == "Hopper-v5" else ("hdf5",)
    told: Counter[str] = Counter()
    refused: set[str] = set()
    for number, (wrapper, limit, kwargs, form, num_steps) in enumerate(
        product(WRAPPERS, LIMITS, ARGUMENTS[name], formats, (4, 20))
    ):
        if wrapper == "FrameStackObservation" and form == "arrow":
            continue
        inner = gymnasium.make(name, max_episode_steps=limit, **kwargs)
        label = f"matrix/case{chr(97 + number // 26)}{chr(97 + number % 26)}-v0"
        collect(label, WRAPPERS[wrapper](inner), form, num_steps)
        problem = None
        try:
            replay(tmp_path / label)
        except (UsageError, DataError) as error:
            problem = str(error)
        told["used" if problem is None else "refused"] += 1
        if problem is not None:
            assert wrapper in MAY_BE_REFUSED, (wrapper, limit, kwargs, form, problem)
            if "does not say its task" in problem:  # Minari records nothing of what holds a function
                assert wrapper in ("TransformReward", "TransformObservation")
                if num_steps == 20 and limit is None:
                    check_doubts(tmp_path / label, name)
            else:
                assert wrapper in problem  # the reason is named
            refused.add(wrapper)
    assert refused == MAY_BE_REFUSED
    assert told["used"] > told["refused"] > 0

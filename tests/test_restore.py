"""The simulator's state from an observation, and one step from there."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

from gq.envs.engines import differing_engines, installed_engines, recorded_engines
from gq.envs.tasks import TASKS
from gq.repair.replay import Simulator
from gq.repair.robots import known_robot, robot_of
from simulator import make

RESTORABLE = [task for task in TASKS if task.split("-")[0] in ("Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid")]
# Largest differences between predictions and what followed in float32 files of the same engine version.
STATE_TOLERANCE = {"Hopper": 2e-6, "HalfCheetah": 1e-3, "Walker2d": 1e-4, "Ant": 1e-5, "Humanoid": 2e-2}
REWARD_TOLERANCE = {"Hopper": 1e-6, "HalfCheetah": 1e-5, "Walker2d": 2e-6, "Ant": 0.2, "Humanoid": 0.02}


def random_rows(task: str, num_steps: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return observations, actions, next observations and rewards of random episodes, one after the other."""
    generator = np.random.default_rng(seed)
    rows: list[tuple] = []
    with closing(make(task)) as env:
        observation, _ = env.reset(seed=seed)
        while len(rows) < num_steps:
            action = generator.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, following, reward))
            observation = env.reset()[0] if terminated or truncated else following
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def predict_next(task: str, observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what one step in an environment of its own makes of each state."""
    with Simulator(task) as simulator:
        return simulator.step_each(observations, actions, in_order=False)


@pytest.mark.parametrize("task", RESTORABLE)
def test_one_step_from_an_observation_is_what_followed(task: str) -> None:
    observations, actions, following, rewards = random_rows(task, 60)
    predicted, predicted_rewards = predict_next(task, observations.astype(np.float32), actions)
    possible = known_robot(task).shows_state(observations)
    columns = known_robot(task).num_columns
    family = task.split("-")[0]
    assert possible.sum() >= 15, "random walkers often exceed the limit of 10"
    assert predicted.shape == following.shape
    assert np.abs(predicted - following)[possible, :columns].max() < STATE_TOLERANCE[family]
    assert np.abs(predicted_rewards - rewards)[possible].max() < REWARD_TOLERANCE[family]
    assert np.isnan(predicted[~possible]).all()
    assert np.isnan(predicted_rewards[~possible]).all()


@pytest.mark.parametrize("task", RESTORABLE)
def test_the_columns_of_positions_and_velocities_are_all_of_the_state(task: str) -> None:
    """Other columns may hold anything: they are outputs."""
    observations, actions, _, _ = random_rows(task, 3)
    columns = known_robot(task).num_columns
    spoilt = observations.copy()
    spoilt[:, columns:] = 7
    predicted, _ = predict_next(task, observations, actions)
    assert np.array_equal(predict_next(task, spoilt, actions)[0], predicted, equal_nan=True)
    spoilt[:, columns - 1] += 0.1
    assert not np.array_equal(predict_next(task, spoilt, actions)[0], predicted, equal_nan=True)
    with closing(make(task)) as env:
        num_state = env.unwrapped.model.nq + env.unwrapped.model.nv
    assert columns == num_state - (2 if task.startswith(("Ant", "Humanoid")) else 1)


def test_the_other_walker_moves_differently() -> None:
    """Walker2d-v4 has less friction on one foot."""
    observations, actions, _, _ = random_rows("Walker2d-v5", 200)
    one, _ = predict_next("Walker2d-v5", observations, actions)
    other, _ = predict_next("Walker2d-v4", observations, actions)
    assert np.nanmax(np.abs(one - other)) > 0.01


@pytest.mark.parametrize("task", [task for task in TASKS if task not in RESTORABLE])
def test_other_tasks_cannot_be_restored(task: str) -> None:
    assert robot_of(task) is None
    with pytest.raises(AssertionError, match=task):
        known_robot(task)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda observations, actions: observations.__setitem__((1, 0), np.nan),
        lambda observations, actions: observations.__setitem__((1, 10), np.inf),
        lambda observations, actions: observations.__setitem__((1, 5), 10.0),  # a velocity, clipped
        lambda observations, actions: observations.__setitem__((1, 10), -10.0),
        lambda observations, actions: actions.__setitem__((1, 2), np.nan),
    ],
)
def test_what_cannot_be_predicted_is_nan_and_spoils_no_other_row(spoil: Callable) -> None:
    observations, actions, _, _ = random_rows("Hopper-v5", 3)
    whole = predict_next("Hopper-v5", observations, actions)
    spoil(observations, actions)
    predicted, rewards = predict_next("Hopper-v5", observations, actions)
    assert np.isnan(predicted[1]).all()
    assert np.isnan(rewards[1])
    assert np.array_equal(predicted[[0, 2]], whole[0][[0, 2]])
    assert np.array_equal(rewards[[0, 2]], whole[1][[0, 2]])


def test_a_large_position_is_not_a_clipped_velocity() -> None:
    observations, _, _, _ = random_rows("Hopper-v5", 2)
    observations[1, 4] = 10.0
    assert known_robot("Hopper-v5").shows_state(observations).tolist() == [True, True]
    cheetah, _, _, _ = random_rows("HalfCheetah-v5", 2)
    cheetah[1, 16] = 12.0  # its velocities are shown as they are
    assert known_robot("HalfCheetah-v5").shows_state(cheetah).tolist() == [True, True]


def test_an_unstable_simulation_is_nan() -> None:
    observations, actions, _, _ = random_rows("HalfCheetah-v5", 2)
    observations[0, 8:] = 1e12
    predicted, rewards = predict_next("HalfCheetah-v5", observations, actions)
    assert np.isnan(predicted[0]).all()
    assert np.isnan(rewards[0])
    assert np.isfinite(predicted[1]).all()


def test_no_rows_give_no_predictions() -> None:
    predicted, rewards = predict_next("Hopper-v5", np.zeros((0, 11)), np.zeros((0, 3)))
    assert predicted.shape == (0, 11)
    assert rewards.shape == (0,)


def test_a_restored_environment_shows_the_observation_again() -> None:
    observations, _, _, _ = random_rows("Humanoid-v5", 5)
    with Simulator("Humanoid-v5") as simulator:
        simulator.env.reset(seed=3)
        simulator.restore(observations[4])
        data = simulator.data
        assert np.array_equal(np.concatenate([data.qpos[2:], data.qvel]), observations[4, :45])
        assert data.qpos[:2].tolist() == [0, 0]
        assert data.time == 0


@pytest.mark.parametrize(("task", "old_reward_error"), [("Ant-v5", 1e-3), ("Humanoid-v5", 1e-5)])
def test_correcting_a_running_environment_keeps_what_no_observation_shows(task: str, old_reward_error: float) -> None:
    observations, actions, following, rewards = (column[:15] for column in random_rows(task, 15))
    columns = known_robot(task).num_columns
    with Simulator(task) as simulator:
        simulator.restore(observations[0])
        for row, action in enumerate(actions):
            simulator.correct(observations[row].astype(np.float32))
            observation, reward, _, _, _ = simulator.unwrapped.step(action)
            assert np.abs(observation - following[row])[:columns].max() < 1e-4
            assert abs(reward - rewards[row]) < 5e-6
    _, alone = predict_next(task, observations, actions)
    assert np.abs(alone - rewards).max() > old_reward_error, "without a step before, the reward is only close"


FILES = {
    "hopper-medium.hdf5": "Hopper-v5",
    "halfcheetah-medium.hdf5": "HalfCheetah-v5",
    "walker2d-medium.hdf5": "Walker2d-v5",
    "ant-medium-replay.hdf5": "Ant-v5",
    "humanoid-medium.hdf5": "Humanoid-v5",
}


@pytest.mark.parametrize(("name", "task"), FILES.items())
def test_stored_steps_are_predicted_and_boundaries_are_not(shared_data: Path, name: str, task: str) -> None:
    with h5py.File(shared_data / name) as file:
        if differing_engines(recorded_engines(file.attrs), installed_engines()):
            pytest.skip("recorded with another engine")
        ends = np.flatnonzero(file["terminals"][()] | file["timeouts"][()])[:-1]
        rows = np.unique(np.concatenate([np.arange(0, ends[-1], ends[-1] // 150), ends[:10]]))
        observations, following = file["observations"][rows], file["observations"][rows + 1]
        actions, rewards = file["actions"][rows], file["rewards"][rows]
    predicted, predicted_rewards = predict_next(task, observations, actions)
    columns = known_robot(task).num_columns
    difference = np.abs(predicted - following)[:, :columns].max(axis=1)
    possible, is_end = ~np.isnan(predicted_rewards), np.isin(rows, ends)
    family = task.split("-")[0]
    assert difference[possible & ~is_end].max() < STATE_TOLERANCE[family]
    assert difference[possible & is_end].min() > 0.1, "a reset is no step"
    assert np.abs(predicted_rewards - rewards)[possible].max() < REWARD_TOLERANCE[family], "ends are steps too"

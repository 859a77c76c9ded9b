"""Repeat stored episodes in the installed simulator and measure how far it ends up from what was stored.

Errors of observations are in typical steps: the mean change of a column from one row to the next, but at least
two thousandths of its largest value, so that the rounding of float32 stays below 1e-4. A row's error is that of its
worst column. Errors of rewards are in mean absolute rewards.
"""

from contextlib import closing
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from gq.data.trajectories import Trajectories
from gq.envs.make import make
from gq.repair.restore import correct, position_velocity_columns, restorable_rows, restore

SMALLEST = 2e-3


@dataclass(frozen=True)
class Errors:
    """Errors of T replayed rows; NaN where nothing can be compared."""

    state: np.ndarray  # [T] of one step from the stored state
    outputs: np.ndarray  # [T] of the same step, in the columns that are not state; -inf where there are none
    rewards: np.ndarray  # [T] of the same step
    open_state: np.ndarray  # [T] of the episode's actions from its first state
    open_rewards: np.ndarray  # [T]


def replay(task: str, trajectories: Trajectories, episodes: np.ndarray) -> list[Errors]:
    """Replay the given episodes in a task and return the errors of each."""
    rows = [np.arange(*trajectories.offsets[i : i + 2]) for i in episodes]
    scale = typical_step([trajectories.observations[row] for row in rows])
    typical_reward = max(float(np.abs(trajectories.rewards[np.concatenate(rows)]).mean()), SMALLEST)
    errors = []
    with closing(make(task)) as env:
        for row in rows:
            observations = trajectories.observations[row].astype(np.float64)
            rewards = trajectories.rewards[row]
            compared = []
            for loop in (closed_loop, open_loop):
                predicted, predicted_rewards = loop(env, observations, trajectories.actions[row])
                difference = np.full(observations.shape, np.nan)  # the last row has no next one
                difference[:-1] = np.abs(predicted[:-1] - observations[1:]) / scale
                num_columns = position_velocity_columns(task)
                compared.append(difference[:, :num_columns].max(axis=1))
                compared.append(difference[:, num_columns:].max(axis=1, initial=-np.inf))
                compared.append(np.abs(predicted_rewards - rewards) / typical_reward)
            errors.append(Errors(compared[0], compared[1], compared[2], compared[3], compared[5]))
    return errors


def typical_step(episodes: list[np.ndarray]) -> np.ndarray:
    """Return the unit of errors for each column of the episodes' observations [T, S]: float64 [S]."""
    total = sum(np.abs(np.diff(observations, axis=0)).sum(axis=0, dtype=np.float64) for observations in episodes)
    num_steps = max(sum(len(observations) - 1 for observations in episodes), 1)
    largest = np.max([np.abs(observations).max(axis=0) for observations in episodes], axis=0)
    typical: np.ndarray = np.maximum(total / num_steps, SMALLEST * np.maximum(largest, 1))
    return typical


def closed_loop(env: Any, observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step once from each stored state of an episode.

    Returns:
        Next observations [T, S] and rewards [T]; NaN where an observation shows no state.
    """
    following, rewards = np.full(observations.shape, np.nan), np.full(len(actions), np.nan)
    is_running = False
    for row, is_usable in enumerate(restorable_rows(env.spec.id, observations)):
        if is_usable:
            place = correct if is_running else restore
            place(env, observations[row])
            following[row], rewards[row], _, _, _ = env.unwrapped.step(actions[row])
        is_running = bool(is_usable)
    return following, rewards


def open_loop(env: Any, observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take an episode's actions from its first state.

    Returns:
        Next observations [T, S] and rewards [T]; NaN where the first observation shows no state.
    """
    following, rewards = np.full(observations.shape, np.nan), np.full(len(actions), np.nan)
    if restorable_rows(env.spec.id, observations[:1])[0]:
        restore(env, observations[0])
        for row, action in enumerate(actions):
            following[row], rewards[row], _, _, _ = env.unwrapped.step(action)
    return following, rewards


def pooled(errors: list[Errors]) -> Errors:
    """Return the errors of all episodes as one."""
    return Errors(*(np.concatenate(parts) for parts in zip(*(astuple(error) for error in errors), strict=True)))

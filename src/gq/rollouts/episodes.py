"""Run a policy in many environments at once; every started episode counts, episode i always has seed s + i."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gq.envs.make import make
from gq.rollouts.statistics import Episode
from gq.rollouts.stepping import Stepper

MAX_PARALLEL_EPISODES = 128


class Policy(Protocol):
    """What evaluation, rendering and collection need of a policy."""

    returns_to_go: np.ndarray  # [E], what the policy is still asked to earn; empty where it is not conditioned
    autocast: Callable[[], AbstractContextManager[None]]  # entered around a whole rollout
    is_rowwise: bool  # the bits of an action depend on its own row alone, not on which others are in the batch

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int]) -> None:
        """Start one episode per target return [E]; `seeds` [E], 0 or more, are for what each draws by itself."""

    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Take in the actions [E', A] that were executed, perhaps with noise, and the rewards [E'] that followed."""


@dataclass(frozen=True)
class Step:
    """What happened in one step of all running episodes, for whoever watches."""

    index: int
    rows: np.ndarray  # [E'] the episodes that ran
    rewards: np.ndarray  # [E']
    returns: np.ndarray  # [E] earned so far, of all episodes
    environments: Sequence[Any]  # [E]


def roll_out(
    policy: Policy,
    task: str,
    *,
    seeds: Sequence[int],
    target_returns: Sequence[float],
    watch: Callable[[Step], None] | None = None,
    max_steps: int | None = None,
    **environment_options: Any,
) -> list[Episode]:
    """Run one episode per pair of seed and target return; return them in that order.

    Args:
        watch: called after each step of a group of at most MAX_PARALLEL_EPISODES episodes.
        max_steps: end episodes early, as a time limit would.
        environment_options: given to the environments' constructor.
    """
    episodes: list[Episode] = []
    for start in range(0, len(seeds), MAX_PARALLEL_EPISODES):
        group = slice(start, start + MAX_PARALLEL_EPISODES)
        environments = [make(task, **environment_options) for _ in seeds[group]]
        try:
            episodes += run_group(policy, environments, seeds[group], target_returns[group], watch, max_steps)
        finally:
            for environment in environments:
                environment.close()
    return episodes


def run_group(
    policy: Policy,
    environments: Sequence[Any],
    seeds: Sequence[int],
    target_returns: Sequence[float],
    watch: Callable[[Step], None] | None,
    max_steps: int | None,
) -> list[Episode]:
    """Run one episode in each environment, all in step, dropping those that end from the policy's batch."""
    low, high = environments[0].action_space.low, environments[0].action_space.high
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), int)
    terminated = np.zeros(len(seeds), bool)
    observations = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(environments, seeds, strict=True)])
    policy.reset(np.asarray(target_returns, np.float64), [int(seed) for seed in seeds])
    rows = np.arange(len(seeds))
    with Stepper(environments) as stepper, policy.autocast():
        for index in range(max_steps or 2**62):
            # Clipped because the physics clamps the torque while the control cost is charged on the raw action.
            actions = np.clip(policy.act(rows, observations[rows].astype(np.float32)), low, high)
            observations[rows], rewards, terminated[rows], ended = stepper.step(rows, actions)
            returns[rows] += rewards
            lengths[rows] += 1
            policy.record(rows, actions, rewards)
            if watch:
                watch(Step(index, rows, rewards, returns.copy(), environments))
            rows = rows[~ended]
            if not len(rows):
                break
    return [
        Episode(int(seeds[i]), float(target_returns[i]), float(returns[i]), int(lengths[i]), bool(terminated[i]))
        for i in range(len(seeds))
    ]

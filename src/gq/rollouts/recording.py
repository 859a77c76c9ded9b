"""Run episodes of a policy and keep every step, with the same bits whichever episodes run beside each other.

Rows of a batch come out of a matrix product with other bits when the batch has another size or they lie elsewhere in
it. So a policy acts on batches of BLOCK_SIZE rows: episode i has row i modulo BLOCK_SIZE, beside others of its block of
BLOCK_SIZE episodes or beside rows that nobody uses. One that sees to this itself, `is_rowwise`, is asked for the rows
of running episodes only. Episode i draws its start and its noise from (seed, i). A policy that draws does so from
generators of its own by the start's seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gq.errors import GqError
from gq.rollouts.episodes import Policy

BLOCK_SIZE = 16  # more rows gain nothing on a CPU, and a GPU waits for the simulator then


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How episodes are run."""

    seed: int
    targets: tuple[float, ...] = ()  # target returns of the episodes 0, 1, ..., over and over; none: 0
    noise: float = 0.0  # standard deviation of Gaussian action noise, in half action ranges
    random_share: float = 0.0  # of the steps, which take a uniformly random action
    block_size: int = BLOCK_SIZE  # rows of every batch

    def target(self, number: int) -> float:
        """Return the target return of an episode."""
        return self.targets[number % len(self.targets)] if self.targets else 0.0


@dataclass
class RecordedEpisode:
    """An episode as far as it has run, T steps."""

    number: int
    environment: Any
    generator: np.random.Generator  # of the start, then of the noise
    observations: list[np.ndarray] = field(default_factory=list)  # T of float32 [S]
    actions: list[np.ndarray] = field(default_factory=list)  # T of float32 [A], as executed
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False  # False: stopped by the time limit


def episode_start(seed: int, number: int) -> tuple[int, np.random.Generator]:
    """Return the seed that an episode's environment is reset with, and the generator of its noise."""
    generator = np.random.default_rng([seed, number])
    return int(generator.integers(2**31)), generator


def run_episodes(
    policy: Policy,
    environments: Sequence[Any],
    numbers: Sequence[int],
    recipe: Recipe,
    *,
    finished: Callable[[RecordedEpisode], None],
    stepped: Callable[[int], bool],
) -> None:
    """Run episodes of one block together to their ends.

    Args:
        environments: at least as many as numbers.
        numbers: of the episodes, all in the same block.
        finished: called with each episode when it ends.
        stepped: called after each step with the number of episodes that took it; True stops, and what runs is lost.

    Raises:
        GqError: the policy gave an action that is not finite.
    """
    size = recipe.block_size
    block, width = numbers[0] // size, environments[0].observation_space.shape[0]
    num_actions = environments[0].action_space.shape[0]
    assert {number // size for number in numbers} == {block}
    running: dict[int, RecordedEpisode] = {}
    observations = np.zeros((size, width), np.float32)
    for number, environment in zip(numbers, environments, strict=False):
        start, generator = episode_start(recipe.seed, number)
        observations[number % size] = environment.reset(seed=start)[0]
        running[number % size] = RecordedEpisode(number, environment, generator)
    every_row = np.arange(size)
    with policy.autocast():
        in_block = range(block * size, (block + 1) * size)
        policy.reset(
            np.array([recipe.target(number) for number in in_block]),
            [episode_start(recipe.seed, number)[0] for number in in_block],
        )
        while running:
            acting = np.array(sorted(running)) if policy.is_rowwise else every_row
            proposals = np.zeros((size, num_actions))
            proposals[acting] = policy.act(acting, observations[acting])
            actions, rewards, num_steps = proposals.astype(np.float32), np.zeros(size), len(running)
            for row, episode in list(running.items()):
                observations[row], rewards[row], is_over = advance(episode, observations[row], proposals[row], recipe)
                actions[row] = episode.actions[-1]
                if is_over:
                    finished(running.pop(row))
            policy.record(every_row, actions, rewards)
            if stepped(num_steps):
                return


def advance(
    episode: RecordedEpisode, observation: np.ndarray, proposal: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, float, bool]:
    """Take one step of an episode; return the next observation, the reward, and whether that was the last step."""
    action = explore(proposal, episode.environment.action_space, episode.generator, recipe)
    following, reward, terminated, truncated, _ = episode.environment.step(action)
    episode.observations.append(observation.copy())
    episode.actions.append(action)
    episode.rewards.append(float(reward))
    episode.terminated = bool(terminated)
    return following, float(reward), bool(terminated or truncated)


def explore(proposal: np.ndarray, space: Any, generator: np.random.Generator, recipe: Recipe) -> np.ndarray:
    """Return the action to execute for the policy's proposal [A]: with noise, inside the box `space`, float32 [A].

    Raises:
        GqError: the proposal is not finite.
    """
    if not np.isfinite(proposal).all():
        raise GqError("the policy gave an action that is not a finite number", hint="choose another checkpoint")
    action = proposal.astype(np.float64)
    if recipe.noise:
        half_range = (space.high.astype(np.float64) - space.low) / 2
        action += recipe.noise * half_range * generator.standard_normal(len(action))
    if recipe.random_share and generator.random() < recipe.random_share:
        action = generator.uniform(space.low, space.high)
    return np.clip(action, space.low, space.high).astype(np.float32)

"""Run episodes of a policy and keep every step, with the same bits whichever episodes run beside each other.

A policy acts on batches of BLOCK_SIZE rows: episode i has row i modulo BLOCK_SIZE, beside others of its block of
BLOCK_SIZE episodes or beside rows that nobody uses. Episode i draws its start and its noise from (seed, i). A policy
that draws does so from generators of its own by the start's seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gq.data.replay import EpisodeLog, LoggedEpisode
from gq.envs.make import make
from gq.envs.tasks import Task
from gq.errors import GqError
from gq.rollouts.episodes import Policy, Start, Step, run_episodes

BLOCK_SIZE = 16  # more rows gain nothing on a CPU, and a GPU waits for the simulator then
Finished = Callable[[int, LoggedEpisode], None]  # told the number and the content of an episode that ended
Stepped = Callable[[int], bool]  # told how many episodes took a step; True stops, and what runs is lost


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How episodes are run."""

    seed: int
    targets: tuple[float, ...] = ()  # target returns of the episodes 0, 1, ..., over and over; none: 0
    noise: float = 0.0  # standard deviation of Gaussian action noise, in half action ranges
    random_share: float = 0.0  # of the steps, which take a uniformly random action
    block_size: int = BLOCK_SIZE  # rows of every batch

    def target(self, number: int) -> float:
        """The target return of an episode."""
        return self.targets[number % len(self.targets)] if self.targets else 0.0


def episode_start(seed: int, number: int) -> tuple[int, np.random.Generator]:
    """Return the seed that an episode's environment is reset with, and the generator of its noise."""
    generator = np.random.default_rng([seed, number])
    return int(generator.integers(2**31)), generator


def record_episodes(
    policy: Policy,
    environments: Sequence[Any],
    numbers: Sequence[int],
    recipe: Recipe,
    *,
    finished: Finished,
    stepped: Stepped,
) -> None:
    """Run episodes of one block together to their ends.

    Args:
        environments: at least as many as numbers.
        numbers: of the episodes, all in the same block.

    Raises:
        GqError: the policy gave an action that is not finite.
    """
    block = numbers[0] // recipe.block_size
    assert {number // recipe.block_size for number in numbers} == {block}
    first, space = block * recipe.block_size, environments[0].action_space
    drawn = [episode_start(recipe.seed, first + row) for row in range(recipe.block_size)]
    starts = [Start(seed, recipe.target(first + row)) for row, (seed, _) in enumerate(drawn)]
    steps: dict[int, list[tuple[np.ndarray, np.ndarray, float]]] = {number - first: [] for number in numbers}

    def explore(rows: np.ndarray, proposed: np.ndarray) -> np.ndarray:
        each = zip(rows, proposed, strict=True)
        return np.stack([add_noise(proposal, space, drawn[row][1], recipe) for row, proposal in each])

    def keep(step: Step) -> bool:
        for index, row in enumerate(step.rows.tolist()):
            steps[row].append((step.observations[index], step.actions[index], step.rewards[index]))
            if step.ended[index]:
                observations, actions, rewards = map(np.array, zip(*steps.pop(row), strict=True))
                terminated = bool(step.terminated[index])
                episode = LoggedEpisode(observations, actions, rewards.astype(np.float32), terminated)
                finished(first + row, episode)
        return stepped(len(step.rows))

    rows = [number - first for number in numbers]
    run_episodes(policy, environments, starts, rows=rows, explore=explore, on_step=keep)


def add_noise(proposal: np.ndarray, space: Any, generator: np.random.Generator, recipe: Recipe) -> np.ndarray:
    """Return the action to execute for the policy's proposal [A], float64 [A] and not clipped.

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
    return action


class Plan:
    """Which episodes are still to be run: a number of them, or until there are enough transitions."""

    def __init__(self, log: EpisodeLog, task: Task, *, num_episodes: int | None, num_transitions: int | None) -> None:
        assert (num_episodes is None) != (num_transitions is None)
        self.log, self.task = log, task
        self.num_episodes, self.num_transitions = num_episodes, num_transitions
        self.first, self._num_rows = 0, 0  # all episodes before `first` are there, with this many rows
        self.update()

    def update(self) -> None:
        """Take in what was added to the log."""
        while not self.is_complete and self.first in self.log.lengths:
            self._num_rows += self.log.lengths[self.first]
            self.first += 1

    @property
    def is_complete(self) -> bool:
        """Whether the episodes before `first` are what was asked for."""
        if self.num_episodes is not None:
            return self.first >= self.num_episodes
        assert self.num_transitions is not None
        return self._num_rows >= self.num_transitions

    def next_numbers(self, num_envs: int) -> list[int]:
        """Return at most `num_envs` missing episodes of the first block that misses some; only if not complete."""
        if self.num_episodes is not None:
            num_needed = self.num_episodes - self.first
        else:
            assert self.num_transitions is not None
            num_needed = math.ceil((self.num_transitions - self._num_rows) / self._mean_length())
        end_of_block = (self.first // BLOCK_SIZE + 1) * BLOCK_SIZE
        candidates = range(self.first, min(self.first + num_needed, end_of_block))
        return [number for number in candidates if number not in self.log.lengths][:num_envs]

    def num_expected_rows(self) -> int:
        """Return an estimate of all rows that there will be."""
        return self.num_transitions or round((self.num_episodes or 0) * self._mean_length())

    def _mean_length(self) -> float:
        return self.log.num_rows / len(self.log.lengths) if self.log.lengths else self.task.max_episode_steps


def run_plan(
    plan: Plan,
    policy: Policy,
    recipe: Recipe,
    *,
    num_envs: int,
    is_stopped: Callable[[], bool],
    progress: Callable[[int, int | None], None],
) -> None:
    """Run what is missing and add each episode to the plan's log when it ends.

    Args:
        num_envs: environments at a time.
        is_stopped: asked after each step; the episodes that run then are lost.
        progress: called after each step with the steps so far and an estimate of all.

    Raises:
        GqError: the log cannot be written, or the policy gave an action that is not finite.
    """
    log, environments, num_rows = plan.log, list[Any](), plan.log.num_rows

    def finished(number: int, episode: LoggedEpisode) -> None:
        log.append(number, episode)

    def stepped(num_steps: int) -> bool:
        nonlocal num_rows
        num_rows += num_steps
        total = plan.num_expected_rows()
        progress(min(num_rows, total), total)
        return is_stopped()

    try:
        while not plan.is_complete and not is_stopped():
            numbers = plan.next_numbers(num_envs)
            environments += [make(plan.task) for _ in range(len(numbers) - len(environments))]
            record_episodes(policy, environments, numbers, recipe, finished=finished, stepped=stepped)
            log.sync()
            plan.update()
    finally:
        for environment in environments:
            environment.close()

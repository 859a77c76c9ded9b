"""Run the episodes of a request that a log does not hold yet."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gq.data.replay import EpisodeLog, LoggedEpisode
from gq.envs.make import make
from gq.envs.tasks import Task
from gq.rollouts.episodes import Policy
from gq.rollouts.recording import BLOCK_SIZE, Recipe, RecordedEpisode, run_episodes


class Plan:
    """Tell which episodes are still to be run: a number of them, or until there are so many transitions."""

    def __init__(self, log: EpisodeLog, task: Task, *, num_episodes: int | None, num_transitions: int | None) -> None:
        assert (num_episodes is None) != (num_transitions is None)
        self.log, self.task = log, task
        self.num_episodes, self.num_transitions = num_episodes, num_transitions
        self.first, self._num_rows = 0, 0  # all episodes before `first` are there, with so many rows
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


def logged(episode: RecordedEpisode) -> LoggedEpisode:
    """Return an episode as logs hold it."""
    arrays = (np.stack(episode.observations), np.stack(episode.actions), np.array(episode.rewards, np.float32))
    return LoggedEpisode(*arrays, terminated=episode.terminated)


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

    def finished(episode: RecordedEpisode) -> None:
        log.append(episode.number, logged(episode))

    def stepped(num_steps: int) -> bool:
        nonlocal num_rows
        num_rows += num_steps
        total = plan.num_expected_rows()
        progress(min(num_rows, total), total)
        return is_stopped()

    try:
        while not plan.is_complete and not is_stopped():
            numbers = plan.next_numbers(num_envs)
            environments += [make(plan.task.id) for _ in range(len(numbers) - len(environments))]
            run_episodes(policy, environments, numbers, recipe, finished=finished, stepped=stepped)
            log.sync()
            plan.update()
    finally:
        for environment in environments:
            environment.close()

"""Offline data in memory: flat arrays and episode offsets, the one form that every reader returns."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gq.envs.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Hold whole episodes back to back.

    Episode i occupies rows offsets[i] to offsets[i + 1]. All arrays are float32 but for the flags and offsets.
    """

    observations: np.ndarray  # [N, S]
    actions: np.ndarray  # [N, A]
    rewards: np.ndarray  # [N]
    terminals: np.ndarray  # bool [N]; True on the last row of an episode that ended by itself, not by a time limit
    offsets: np.ndarray  # int64 [E + 1]
    source: str  # dataset id or path
    task: str | None = None  # Gymnasium id, where the source says or implies it
    environment: Task | None = None  # what the episodes are of, where that was settled
    num_dropped_rows: int = 0  # rows of an unfinished episode at the end of the source
    attributes: dict[str, Any] = field(default_factory=dict)  # provenance found in the source

    @property
    def num_transitions(self) -> int:
        """Number of rows."""
        return len(self.rewards)

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, int64 [E]."""
        return np.diff(self.offsets)

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 [E]."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.offsets[:-1])

    def sha256(self) -> str:
        """Return the SHA-256 of the arrays that sequence models read."""
        digest = hashlib.sha256()
        for array in (self.observations, self.actions, self.rewards, self.offsets):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def timesteps(self) -> np.ndarray:
        """Return each row's step within its episode, int64 [N]."""
        steps: np.ndarray = np.arange(self.num_transitions) - np.repeat(self.offsets[:-1], self.lengths)
        return steps

    def returns_to_go(self, *, delayed: bool = False) -> np.ndarray:
        """Return the sum of rewards from each row to its episode's end, float32 [N].

        With `delayed`, all reward counts as given on the last step, so every row sees its episode's return.
        """
        totals = np.repeat(self.returns, self.lengths)
        if delayed:
            return totals.astype(np.float32)
        before = np.cumsum(self.rewards.astype(np.float64)) - self.rewards  # reward earlier in the file
        remaining: np.ndarray = totals - (before - np.repeat(before[self.offsets[:-1]], self.lengths))
        return remaining.astype(np.float32)

    def terminals_sha256(self) -> str:
        """Return the SHA-256 of the rows that end an episode by themselves, which only a critic reads."""
        return hashlib.sha256(np.flatnonzero(self.terminals).astype(np.int64).data).hexdigest()

    def observation_statistics(self, epsilon: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and std + epsilon of the observations, float32 [S] each; a constant column gets std 1.

        A constant column tells the model nothing, and dividing by its rounding noise would turn the first deviation
        at evaluation into a huge input.
        """
        mean = self.observations.mean(axis=0, dtype=np.float64)
        squares = np.zeros_like(mean)
        for block in np.array_split(self.observations, self.num_transitions // 10_000 + 1):  # no copy of all in float64
            squares += ((block - mean) ** 2).sum(axis=0)
        std = np.sqrt(squares / self.num_transitions)
        constant = std < 1e-5 * np.maximum(1, np.abs(mean))
        return mean.astype(np.float32), np.where(constant, 1, std + epsilon).astype(np.float32)

    def best(self, fraction: float) -> "Trajectories":
        """Keep the episodes of highest return while their rows are at most `fraction` of all rows, at least one."""
        order = np.argsort(self.returns, kind="stable")[::-1]
        kept = np.cumsum(self.lengths[order]) <= fraction * self.num_transitions + 1e-6  # 0.29 * 100 is below 29
        kept[0] = True
        return self.select(np.sort(order[kept]))

    def select(self, episodes: np.ndarray) -> "Trajectories":
        """Return the given episodes, in that order."""
        if len(episodes) == self.num_episodes and np.array_equal(episodes, np.arange(self.num_episodes)):
            return self
        rows = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in episodes])
        return replace(
            self,
            observations=self.observations[rows],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            terminals=self.terminals[rows],
            offsets=np.concatenate([[0], np.cumsum(self.lengths[episodes])]).astype(np.int64),
        )

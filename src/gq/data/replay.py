"""A replay buffer of whole trajectories on the device: first in, first out, windows drawn uniformly over its rows."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.data.episode_log import LoggedEpisode
from gq.data.trajectories import Trajectories
from gq.data.windows import Batch, Rows, gather_windows


class Entry(NamedTuple):
    """A trajectory in the buffer."""

    name: str  # "offline/12" for episode 12 of the dataset, "online/3" for the policy's own episode 3
    num_rows: int
    episode_return: float


class ReplayBuffer:
    """Hold the newest `capacity` trajectories in the order of their age.

    The oldest always goes first, so the rows that live are back to back and a uniform draw over them is one integer;
    it equals the draw of a trajectory by its length and of a start within it. Returns-to-go are summed once, from the
    rewards that were earned: the return that a policy was asked for is never stored.
    """

    def __init__(
        self,
        capacity: int,
        context_length: int,
        *,
        observation_dim: int,
        action_dim: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        delayed: bool = False,
    ) -> None:
        self.capacity, self.delayed = capacity, delayed
        self.entries: deque[Entry] = deque()
        self.window = torch.arange(context_length, device=device)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self._start = self._end = 0  # of the rows that live
        self._rows = Rows(
            torch.empty(0, observation_dim, device=device),
            torch.empty(0, action_dim, device=device),
            torch.empty(0, 1, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
        )

    @property
    def num_rows(self) -> int:
        """Transitions in the buffer."""
        return self._end - self._start

    def add(self, name: str, episode: LoggedEpisode) -> None:
        """Append a copy of a trajectory; the oldest one makes room."""
        if len(self.entries) == self.capacity:
            self._start += self.entries.popleft().num_rows
        num_rows, rewards = len(episode.rewards), episode.rewards.astype(np.float64)
        self._make_room(num_rows)
        to_go = np.cumsum(rewards[::-1])[::-1]
        new = slice(self._end, self._end + num_rows)
        for stored, values in zip(
            self._rows[:3],
            (episode.observations, episode.actions, (np.full(num_rows, to_go[0]) if self.delayed else to_go)[:, None]),
            strict=True,
        ):
            stored[new] = torch.as_tensor(values.astype(np.float32)).to(stored.device)
        self._rows.timesteps[new] = torch.arange(num_rows, device=self.window.device)
        self._rows.limits[new] = new.stop - 1
        self._end = new.stop
        self.entries.append(Entry(name, num_rows, float(to_go[0])))

    def _make_room(self, num_rows: int) -> None:
        """Make sure that so many rows fit behind the last one, by moving what lives to the front of larger arrays."""
        if self._end + num_rows <= len(self._rows.timesteps):
            return
        live, room = slice(self._start, self._end), 2 * (self.num_rows + num_rows)

        def moved(array: Tensor) -> Tensor:
            larger = array.new_zeros((room, *array.shape[1:]))
            larger[: self.num_rows] = array[live]
            return larger

        rows = Rows(*map(moved, self._rows))
        rows.limits[: self.num_rows] -= self._start
        self._rows, self._start, self._end = rows, 0, self.num_rows

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch of windows by their first steps; advances `generator` only."""
        draws = torch.randint(self.num_rows, (batch_size,), generator=self.generator, device=self.window.device)
        return gather_windows(self._rows, self._start + draws, self.window)


def starting_episodes(trajectories: Trajectories, which: str, capacity: int) -> list[int]:
    """Return the episodes that a buffer starts with, in the order in which they will leave it.

    `top`: those of highest return, the worst of them first; `all`: the last ones of the dataset; `none`.
    """
    if which == "none":
        return []
    if which == "all":
        return list(range(trajectories.num_episodes))[-capacity:]
    return [int(i) for i in np.argsort(trajectories.returns, kind="stable")[-capacity:]]


def dataset_episodes(trajectories: Trajectories, numbers: list[int]) -> Iterator[tuple[str, LoggedEpisode]]:
    """Yield episodes of a dataset with their names in the buffer."""
    for number in numbers:
        rows = slice(int(trajectories.offsets[number]), int(trajectories.offsets[number + 1]))
        yield (
            f"offline/{number}",
            LoggedEpisode(
                trajectories.observations[rows],
                trajectories.actions[rows],
                trajectories.rewards[rows],
                bool(trajectories.terminals[rows.stop - 1]),
            ),
        )

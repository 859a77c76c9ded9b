"""The newest decisions of several environments on the device, to draw short pieces of episodes from."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.data.step_log import FIRST, TERMINATED, row_width


class SequenceBatch(NamedTuple):
    """Pieces of episodes; row t + 1 of the observations is what action t led to."""

    observations: Tensor  # float32 [H + 1, B, S]
    actions: Tensor  # float32 [H, B, A], scaled to [-1, 1]
    rewards: Tensor  # float32 [H, B]
    terminated: Tensor  # bool [H, B]; where an episode ended by itself, not by its time limit


class StepRing:
    """Hold the newest `num_ticks` ticks of E environments: rows as in `gq.data.step_log`, a tick's side by side.

    Pieces of horizon + 1 rows lie within one episode, so a termination can only be in their last row. All of them are
    drawn with equal probability: their starts are kept as a list, to which each decision adds at most one.
    """

    def __init__(
        self,
        num_ticks: int,
        num_environments: int,
        *,
        observation_dim: int,
        action_dim: int,
        horizon: int,
        device: torch.device | str = "cpu",
        storage: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        """Reserve the memory, on `storage`; batches are on `device`, which is the same without `storage`."""
        assert num_ticks > horizon
        self.num_ticks, self.num_environments, self.horizon = num_ticks, num_environments, horizon
        self.observation_dim, self.device = observation_dim, torch.device(device)
        storage = torch.device(storage or device)
        width = row_width(observation_dim, action_dim)
        self.is_pinned = storage.type == "cpu" and self.device.type == "cuda"
        self._rows = torch.empty(
            num_ticks * num_environments, width, device=storage
        )  # a CPU gives memory as it is used
        self._offsets = torch.arange(horizon + 1)[:, None]
        self.generator = torch.Generator().manual_seed(seed)
        self.next_tick = 0
        self._ages = np.zeros(num_environments, np.int64)  # decisions since the first row of each present episode
        self._starts = np.zeros(1024, np.int64)  # tick * E + environment, ascending
        self._head = self._tail = 0  # of the starts that live

    @property
    def num_pieces(self) -> int:
        """Pieces that can be drawn."""
        return self._tail - self._head

    def add(self, rows: np.ndarray) -> None:
        """Append a tick, float32 [E, W]; the oldest makes room."""
        tick, num = self.next_tick, self.num_environments
        slot = tick % self.num_ticks * num
        self._rows[slot : slot + num] = torch.from_numpy(np.ascontiguousarray(rows))
        self.next_tick += 1
        self._ages = np.where(rows[:, -1] == FIRST, 0, self._ages + 1)
        self._add_starts((tick - self.horizon) * num + np.flatnonzero(self._ages >= self.horizon))
        oldest = (self.next_tick - self.num_ticks) * num
        self._head += int(np.searchsorted(self._starts[self._head : self._tail], oldest))

    def restore(self, rows: np.ndarray, next_tick: int) -> None:
        """Fill the empty ring with the last ticks before `next_tick`, float32 [T, E, W]."""
        self.next_tick = next_tick - len(rows)
        for tick in rows:
            self.add(tick)

    def sample(self, batch_size: int) -> SequenceBatch:
        """Draw pieces; advances `generator` only."""
        draws = torch.randint(self.num_pieces, (batch_size,), generator=self.generator)
        starts = torch.from_numpy(self._starts)[self._head + draws]
        num_rows = self.num_ticks * self.num_environments
        index = (starts + self._offsets * self.num_environments) % num_rows  # [H + 1, B]
        rows = self._gather(index.flatten()).unflatten(0, index.shape)  # [H + 1, B, W]
        observations, actions, rewards, kinds = rows.split(
            [self.observation_dim, rows.shape[-1] - self.observation_dim - 2, 1, 1], dim=-1
        )
        return SequenceBatch(
            observations.contiguous(), actions[1:].contiguous(), rewards[1:, :, 0], kinds[1:, :, 0] == TERMINATED
        )

    def _gather(self, index: Tensor) -> Tensor:
        """Return rows [N, W] on the device."""
        if not self.is_pinned:
            return self._rows.index_select(0, index.to(self._rows.device, non_blocking=True))
        rows = torch.empty(len(index), self._rows.shape[1], pin_memory=True)
        torch.index_select(self._rows, 0, index, out=rows)
        return rows.to(self.device, non_blocking=True)

    def _add_starts(self, starts: np.ndarray) -> None:
        """Append starts, moving those that live to the front of a larger array when it is full."""
        if self._tail + len(starts) > len(self._starts):
            larger = np.zeros(2 * (self.num_pieces + len(starts)) + 1024, np.int64)
            larger[: self.num_pieces] = self._starts[self._head : self._tail]
            self._starts, self._head, self._tail = larger, 0, self.num_pieces
        self._starts[self._tail : self._tail + len(starts)] = starts
        self._tail += len(starts)

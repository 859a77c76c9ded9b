"""Windows of consecutive steps, drawn on the device that holds the data."""

from typing import NamedTuple

import torch
from torch import Tensor

from gq.data.trajectories import Trajectories


class Batch(NamedTuple):
    """B windows of K steps, in the units of the environment."""

    observations: Tensor  # [B, K, S]
    actions: Tensor  # [B, K, A]
    returns_to_go: Tensor  # [B, K, 1]
    timesteps: Tensor  # int64 [B, K]
    valid: Tensor  # bool [B, K]; False beyond the episode's end


class WindowSampler:
    """Draw windows whose first step is uniform over all transitions.

    That equals the original's draw of a trajectory by length and of a start within it. A window that runs past its
    episode's end repeats the last row and is marked invalid there; causality keeps those rows from the valid ones.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        delayed: bool = False,
    ) -> None:
        def resident(array: object) -> Tensor:
            return torch.as_tensor(array).to(device)

        self.observations = resident(trajectories.observations)
        self.actions = resident(trajectories.actions)
        self.returns_to_go = resident(trajectories.returns_to_go(delayed=delayed))[:, None]
        self.timesteps = resident(trajectories.timesteps())
        lengths = torch.as_tensor(trajectories.lengths)
        self.last_rows = resident(torch.as_tensor(trajectories.offsets[1:] - 1).repeat_interleave(lengths))
        self.window = torch.arange(context_length, device=device)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch; advances `generator` only."""
        num_rows = len(self.timesteps)
        starts = torch.randint(num_rows, (batch_size,), generator=self.generator, device=self.window.device)
        return self.gather(starts)

    def gather(self, starts: Tensor) -> Batch:
        """Return the windows that start at the given rows [B]."""
        rows = starts[:, None] + self.window  # [B, K]
        last = self.last_rows[starts][:, None]
        valid = rows <= last
        rows = torch.minimum(rows, last)
        return Batch(self.observations[rows], self.actions[rows], self.returns_to_go[rows], self.timesteps[rows], valid)

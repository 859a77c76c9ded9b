"""Windows of consecutive steps, drawn on the device that holds the data."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.data.trajectories import Trajectories


class Batch(NamedTuple):
    """B windows of K steps, in the units of the environment."""

    observations: Tensor  # [B, K, S]
    actions: Tensor  # [B, K, A]
    returns_to_go: Tensor  # [B, K, 1]
    timesteps: Tensor  # int64 [B, K]
    valid: Tensor  # bool [B, K]; False outside the episode


class WindowSampler:
    """Draw windows around an anchor row that is uniform over all transitions.

    The anchor is the window's first step, which equals the original's draw of a trajectory by length and of a start
    within it; or, with `backward`, its last. Where a window would leave the episode it repeats the episode's last (or
    first) row and is marked invalid. Causality keeps rows after the episode's end from the valid ones.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        delayed: bool = False,
        backward: bool = False,
    ) -> None:
        def resident(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array).to(device)

        offsets, lengths = trajectories.offsets, trajectories.lengths
        self.observations = resident(trajectories.observations)
        self.actions = resident(trajectories.actions)
        self.returns_to_go = resident(trajectories.returns_to_go(delayed=delayed))[:, None]
        self.timesteps = resident(trajectories.timesteps())
        self.backward = backward
        self.limits = resident(np.repeat(offsets[:-1] if backward else offsets[1:] - 1, lengths))
        self.window = torch.arange(context_length, device=device) - (context_length - 1 if backward else 0)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch; advances `generator` only."""
        num_rows = len(self.timesteps)
        anchors = torch.randint(num_rows, (batch_size,), generator=self.generator, device=self.window.device)
        return self.gather(anchors)

    def gather(self, anchors: Tensor) -> Batch:
        """Return the windows at the given rows [B]."""
        rows = anchors[:, None] + self.window  # [B, K]
        limits = self.limits[anchors][:, None]
        if self.backward:
            valid, rows = rows >= limits, torch.maximum(rows, limits)
        else:
            valid, rows = rows <= limits, torch.minimum(rows, limits)
        return Batch(self.observations[rows], self.actions[rows], self.returns_to_go[rows], self.timesteps[rows], valid)

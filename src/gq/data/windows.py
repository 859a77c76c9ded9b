"""Windows of consecutive steps, drawn on the device that holds the data."""

from typing import NamedTuple, Protocol

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


class Sampler(Protocol):
    """What learning needs of data."""

    generator: torch.Generator  # of the draws, all that is random

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch and return this process's share of it; advances `generator` only."""


class Share(NamedTuple):
    """Which part of every batch a process takes, where several draw the same one."""

    rank: int = 0
    num_processes: int = 1

    def of(self, anchors: Tensor) -> Tensor:
        """Return the part of anchors [B] that is this process's; B is a multiple of the number of processes."""
        return anchors if self.num_processes == 1 else anchors.chunk(self.num_processes)[self.rank]


WHOLE = Share()


class Rows(NamedTuple):
    """Episodes back to back on a device, R rows in all."""

    observations: Tensor  # [R, S]
    actions: Tensor  # [R, A]
    returns_to_go: Tensor  # [R, 1]
    timesteps: Tensor  # int64 [R]
    limits: Tensor  # int64 [R], the row at which a window from here stops


def gather_windows(rows: Rows, anchors: Tensor, window: Tensor, *, backward: bool = False) -> Batch:
    """Return the windows [B, K] at the given rows [B] plus the steps `window` [K], stopped at the anchors' limits."""
    chosen, limits = anchors[:, None] + window, rows.limits[anchors][:, None]  # [B, K], [B, 1]
    valid = chosen >= limits if backward else chosen <= limits
    chosen = torch.maximum(chosen, limits) if backward else torch.minimum(chosen, limits)
    return Batch(
        rows.observations[chosen], rows.actions[chosen], rows.returns_to_go[chosen], rows.timesteps[chosen], valid
    )


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
        share: Share = WHOLE,
    ) -> None:
        def resident(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array).to(device)

        offsets, lengths = trajectories.offsets, trajectories.lengths
        limits = np.repeat(offsets[:-1] if backward else offsets[1:] - 1, lengths)
        self.rows = Rows(
            resident(trajectories.observations),
            resident(trajectories.actions),
            resident(trajectories.returns_to_go(delayed=delayed))[:, None],
            resident(trajectories.timesteps()),
            resident(limits),
        )
        self.backward, self.share = backward, share
        self.window = torch.arange(context_length, device=device) - (context_length - 1 if backward else 0)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch and return this process's share of it; advances `generator` only."""
        num_rows = len(self.rows.timesteps)
        anchors = torch.randint(num_rows, (batch_size,), generator=self.generator, device=self.window.device)
        return self.gather(self.share.of(anchors))

    def gather(self, anchors: Tensor) -> Batch:
        """Return the windows at the given rows [B]."""
        return gather_windows(self.rows, anchors, self.window, backward=self.backward)

"""Behaviour cloning of the best trajectories, the %BC baseline of the Decision Transformer paper (section 5)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from gq.data.windows import Batch
from gq.models.mlp import ObservationMLP


def action_loss(model: ObservationMLP, batch: Batch) -> Tensor:
    """Return the mean squared error of the window's last action, in units scaled to [-1, 1].

    Windows are drawn by their last step and reach back K - 1 steps; see `WindowSampler(backward=True)`.
    """
    predicted = model(batch.observations, batch.valid)  # [B, A]
    loss: Tensor = (predicted - model.scaling.scale_actions(batch.actions[:, -1])).square().mean()
    return loss


class BCPolicy:
    """Act from the last K observations; the target return is ignored."""

    is_rowwise = False

    def __init__(self, model: ObservationMLP, *, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        self.model, self.autocast = model.eval(), autocast
        self.device = next(model.parameters()).device
        self.returns_to_go = np.zeros(0)

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int] = ()) -> None:
        """Start one episode per entry; the seeds are not used."""
        num_episodes, context_length = len(target_returns), self.model.config.context_length
        observation_dim = self.model.scaling.observation_mean.shape[0]
        self._observations = np.zeros((num_episodes, context_length, observation_dim), np.float32)
        self._valid = np.zeros((num_episodes, context_length), bool)

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""
        for buffer, newest in ((self._observations, observations), (self._valid, True)):
            buffer[:, :-1] = buffer[:, 1:]
            buffer[rows, -1] = newest
        inputs = [torch.as_tensor(buffer[rows], device=self.device) for buffer in (self._observations, self._valid)]
        return self.model.scaling.unscale_actions(self.model(*inputs)).float().cpu().numpy()

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Ignore what happened."""

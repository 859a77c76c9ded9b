"""Decision Transformer (arXiv 2106.01345): the loss of algorithm 1 and the policy that feeds the model its context."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gq.data.sampler import Batch
from gq.models.decision_transformer import DecisionTransformer, TrajectoryTransformer


def action_loss(model: DecisionTransformer, batch: Batch) -> Tensor:
    """Return the mean squared error over valid steps and action dimensions, in units scaled to [-1, 1]."""
    predicted = model(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)  # [B, K, A]
    target = model.scaling.scale_actions(batch.actions)
    error = (predicted - target).square().mean(dim=-1)  # [B, K]
    return (error * batch.valid).sum() / batch.valid.sum()


class DTPolicy:
    """Act from the last K steps of each episode, built as the training windows are.

    All episodes start together, so every context has the same length and nothing is ever padded. In normal mode
    the return-to-go falls by each reward, in delayed mode it stays at the target.
    """

    is_rowwise = False

    def __init__(
        self,
        model: TrajectoryTransformer,
        *,
        autocast: Callable,
        delayed: bool = False,
        context_length: int | None = None,
    ) -> None:
        self.model, self.autocast, self.delayed = model.eval(), autocast, delayed
        self.context_length = context_length or model.config.context_length
        self.action_dim = len(model.scaling.action_low)
        self.device = next(model.parameters()).device

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int] = ()) -> None:
        """Start one episode per target return [E]; the seeds are not used."""
        num_episodes = len(target_returns)
        observation_dim = self.model.scaling.observation_mean.shape[0]
        self.step = 0
        self.returns_to_go = np.array(target_returns, dtype=np.float64)  # [E], of the current step
        self._observations = np.zeros((num_episodes, self.context_length, observation_dim), np.float32)
        self._actions = np.zeros((num_episodes, self.context_length, self.action_dim), np.float32)
        self._returns = np.zeros((num_episodes, self.context_length, 1), np.float32)

    def context(self, rows: np.ndarray, observations: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take in the observations [E', S] of the episodes in `rows` and return the model's inputs for them."""
        length = min(self.step + 1, self.context_length)
        if self.step >= self.context_length:
            for buffer in (self._observations, self._actions, self._returns):
                buffer[:, :-1] = buffer[:, 1:]
        self._observations[rows, length - 1] = observations
        self._returns[rows, length - 1, 0] = self.returns_to_go[rows]
        first = self.step + 1 - length
        timesteps = torch.arange(first, self.step + 1, device=self.device).expand(len(rows), -1)
        return (
            torch.as_tensor(self._observations[rows, :length], device=self.device),
            torch.as_tensor(self._actions[rows, : length - 1], device=self.device),
            torch.as_tensor(self._returns[rows, :length], device=self.device),
            timesteps,
        )

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""
        context = self.context(rows, observations)
        assert isinstance(self.model, DecisionTransformer)
        return self.model.act(*context).float().cpu().numpy()

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Take in the actions [E', A] that were executed and the rewards [E'] that followed; ends the step."""
        self._actions[rows, min(self.step, self.context_length - 1)] = actions
        if not self.delayed:
            self.returns_to_go[rows] -= rewards
        self.step += 1

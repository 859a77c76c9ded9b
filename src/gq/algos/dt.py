"""Decision Transformer (arXiv 2106.01345): the loss of algorithm 1 and the policy that feeds the model its context."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from gq.data.windows import Batch
from gq.models.config import Context
from gq.models.context_cache import ContextCache
from gq.models.decision_transformer import DecisionTransformer, TrajectoryTransformer
from gq.threads import keep_freed_memory


def action_loss(model: DecisionTransformer, batch: Batch) -> Tensor:
    """Return the mean squared error over valid steps and action dimensions, in units scaled to [-1, 1]."""
    predicted = model(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)  # [B, K, A]
    target = model.scaling.scale_actions(batch.actions)
    error = (predicted - target).square().mean(dim=-1)  # [B, K]
    loss: Tensor = (error * batch.valid).sum() / batch.valid.sum()
    return loss


class DTPolicy:
    """Act from the last steps of each episode, built as the training windows are.

    All episodes start together, so every context has the same length and nothing is ever padded. In normal mode
    the return-to-go falls by each reward, in delayed mode it stays at the target. While contexts grow, what a step adds
    to them is computed alone.

    Args:
        context: of K steps at most. `sliding`: always the last K, all computed again at every step from the K-th on.
            `blocks`: when they are full they begin again with their last K / 2, and grow again.
        context_length: K; default: the model's.
    """

    is_rowwise = False

    def __init__(
        self,
        model: TrajectoryTransformer,
        *,
        autocast: Callable[[], AbstractContextManager[None]],
        delayed: bool = False,
        context: Context = "sliding",
        context_length: int | None = None,
    ) -> None:
        self.model, self.autocast, self.delayed = model.eval(), autocast, delayed
        self.context_length = context_length or model.config.context_length
        self.num_kept = self.context_length if context == "sliding" else math.ceil(self.context_length / 2)
        self.action_dim = len(model.scaling.action_low)
        self.device = next(model.parameters()).device
        keep_freed_memory()

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int] = ()) -> None:
        """Start one episode per target return [E]; the seeds are not used."""
        num_episodes = len(target_returns)
        self.step = 0
        self.returns_to_go = np.array(target_returns, dtype=np.float64)  # [E], of the current step
        self.cache: ContextCache | None = self.model.make_cache(self.context_length)
        self._rows = np.arange(num_episodes)  # in the cache
        self._actions = np.zeros((num_episodes, self.action_dim), np.float32)  # executed last
        # Of each episode's last steps: the action before each, its return-to-go and its observation.
        width = self.action_dim + 1 + len(self.model.scaling.observation_mean)
        self._steps = torch.zeros(num_episodes, 2 * self.context_length, width, device=self.device)
        self._first_kept = 0  # the step in the first column
        self._first = 0  # step of the context

    def context(self, rows: np.ndarray, observations: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take in the observations [E', S] of the episodes in `rows` and return the model's inputs for them."""
        self._choose_cached(rows)
        if self.step == self._first + self.context_length:
            self._first = self.step + 1 - self.num_kept
            if self.cache and self.num_kept < self.context_length:
                self.cache.clear()
            else:
                self.cache = None
        if self.step == self._first_kept + self._steps.shape[1]:
            num_used = self.step - self._first
            self._steps[:, :num_used] = self._steps[:, self._steps.shape[1] - num_used :].clone()
            self._first_kept = self._first
        newest = np.hstack([self._actions[rows], self.returns_to_go[rows, None], observations]).astype(np.float32)
        begin, end = self._first - self._first_kept, self.step + 1 - self._first_kept
        chosen = torch.from_numpy(rows).to(self.device)
        self._steps[chosen, end - 1] = torch.from_numpy(newest).to(self.device)
        steps = self._steps[:, begin:end] if len(rows) == len(self._steps) else self._steps[chosen, begin:end]
        actions, returns, observed = steps.split([self.action_dim, 1, observations.shape[1]], dim=2)
        timesteps = torch.arange(self._first, self.step + 1, device=self.device).expand(len(rows), -1)
        return observed, actions[:, 1:], returns, timesteps

    def _choose_cached(self, rows: np.ndarray) -> None:
        """Let the cache be of the episodes in `rows`, ascending; it starts again if it misses one of them."""
        if self.cache and not np.array_equal(rows, self._rows):
            if np.isin(rows, self._rows).all():
                self.cache.keep(torch.from_numpy(np.searchsorted(self._rows, rows)).to(self.device))
            else:
                self.cache.clear()
            self._rows = rows.copy()

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""
        context = self.context(rows, observations)
        assert isinstance(self.model, DecisionTransformer)
        return self.model.act(*context, cache=self.cache).float().cpu().numpy()

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Take in the actions [E', A] that were executed and the rewards [E'] that followed; ends the step."""
        self._actions[rows] = actions
        if not self.delayed:
            self.returns_to_go[rows] -= rewards
        self.step += 1

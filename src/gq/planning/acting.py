"""TD-MPC2 as a policy for evaluation, rendering and collection."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gq.planning.mppi import Planner

ActingMode = Literal["plan", "policy"]
MAX_BLOCK_SIZE = 16  # episodes at a time on a GPU, or by the policy network


class PlanningPolicy:
    """Act by planning, or by the policy network alone.

    Each episode has random numbers of its own, by its seed, and actions are computed in blocks of the same size from
    beginning to end: what an episode does depends, to the bit, neither on which others run nor on their lengths. On a
    CPU each plan is a block of its own: two or four at once are a tenth faster, but plan on for episodes that ended.

    Args:
        mode: `plan`, or `policy` for the policy network alone.
        stochastic: take the first action of an elite drawn by weight, as the original's evaluation does, or a sample
            of the policy; without, the mean of either.
        action_bound: what actions within [-1, 1] are multiplied by.
    """

    autocast: Callable[[], AbstractContextManager] = nullcontext  # the planner has its own number format
    is_rowwise = True

    def __init__(
        self, planner: Planner, *, action_bound: float, mode: ActingMode = "plan", stochastic: bool = False
    ) -> None:
        self.planner, self.mode, self.stochastic = planner, mode, stochastic
        self.action_bound = action_bound
        self.returns_to_go = np.zeros(0)
        self.device = next(planner.model.parameters()).device

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int]) -> None:
        """Start one episode per seed [E], 0 or more; the targets are not used."""
        is_single = self.mode == "plan" and self.device.type == "cpu"
        self.block_size = 1 if is_single else min(len(seeds), MAX_BLOCK_SIZE)
        num_spare = -len(seeds) % self.block_size  # rows that fill the last block, and that nobody uses
        self.generators = [generator_of(seed, self.device) for seed in [*seeds, *[0] * num_spare]]
        config, action_dim = self.planner.config, self.planner.model.action_dim
        self.warm_start = torch.zeros(len(self.generators), config.horizon, action_dim, device=self.device)
        self.planned_values = np.full(len(self.generators), np.nan)  # discounted, of each episode's last plan

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""
        self.planner.model.eval()
        actions = np.zeros((len(rows), self.planner.model.action_dim), np.float32)
        for block in np.unique(rows // self.block_size):
            chosen = rows // self.block_size == block
            inside = rows[chosen] % self.block_size
            padded = np.zeros((self.block_size, observations.shape[1]), np.float32)
            padded[inside] = observations[chosen]
            actions[chosen] = self._act(int(block), torch.from_numpy(padded).to(self.device)).cpu().numpy()[inside]
        return actions * self.action_bound

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Nothing of what happened matters beside the next observation."""

    def _act(self, block: int, observations: Tensor) -> Tensor:
        """Return actions [B, A] within [-1, 1] for the observations [B, S] of a block."""
        model, members = self.planner.model, slice(block * self.block_size, (block + 1) * self.block_size)
        latents, generators = model.encode(observations), self.generators[members]
        if self.mode == "policy":
            draws = [torch.randn(model.action_dim, generator=generator, device=self.device) for generator in generators]
            sample = model.policy(latents, torch.stack(draws))
            return sample.action if self.stochastic else sample.mean
        plan = self.planner.plan(latents, self.planner.draw_each(generators), self.warm_start[members])
        self.warm_start[members] = plan.mean
        self.planned_values[members] = plan.mean_value.float().cpu().numpy()
        return plan.action("elite" if self.stochastic else "mean")


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    """Return a generator for an episode's own draws, apart from what its environment draws from the same seed."""
    state = np.random.SeedSequence([seed, *b"acting"]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))

"""TD-MPC2 as a policy for evaluation, rendering and collection."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch

from gq.planning.mppi import Planner

ActingMode = Literal["plan", "policy"]
SEED_STRIDE = 1_000_003


class PlanningPolicy:
    """Act by planning, or by the policy network alone.

    Each episode has random numbers of its own, by its number since the policy was made: what it does depends neither on
    how many episodes run beside it nor on their lengths.

    Args:
        mode: `plan`, or `policy` for the policy network alone.
        stochastic: take the first action of an elite drawn by weight, as the original's evaluation does, or a sample
            of the policy; without, the mean of either.
        action_bound: what actions within [-1, 1] are multiplied by.
    """

    autocast: Callable[[], AbstractContextManager] = nullcontext  # the planner has its own number format

    def __init__(
        self,
        planner: Planner,
        *,
        action_bound: float,
        mode: ActingMode = "plan",
        stochastic: bool = False,
        seed: int = 0,
    ) -> None:
        self.planner, self.mode, self.stochastic, self.seed = planner, mode, stochastic, seed
        self.action_bound = action_bound
        self.returns_to_go = np.zeros(0)
        self.num_started = 0
        self.device = next(planner.model.parameters()).device

    def reset(self, target_returns: np.ndarray) -> None:
        """Start one episode per entry; what it says does not matter."""
        numbers = range(self.num_started, self.num_started + len(target_returns))
        self.generators = [
            torch.Generator(self.device).manual_seed(self.seed * SEED_STRIDE + number) for number in numbers
        ]
        self.num_started += len(target_returns)
        config, action_dim = self.planner.config, self.planner.model.action_dim
        self.warm_start = torch.zeros(len(target_returns), config.horizon, action_dim, device=self.device)

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""
        model = self.planner.model
        model.eval()
        latents = model.encode(torch.from_numpy(observations).to(self.device))
        generators = [self.generators[row] for row in rows]
        if self.mode == "policy":
            shape = model.action_dim
            draws = [torch.randn(shape, generator=generator, device=self.device) for generator in generators]
            sample = model.policy(latents, torch.stack(draws))
            actions = sample.action if self.stochastic else sample.mean
        else:
            chosen = torch.from_numpy(rows).to(self.device)
            plan = self.planner.plan(latents, self.planner.draw_each(generators), self.warm_start[chosen])
            self.warm_start[chosen] = plan.mean
            actions = plan.action("elite" if self.stochastic else "mean")
        return actions.cpu().numpy() * self.action_bound

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Nothing of what happened matters beside the next observation."""

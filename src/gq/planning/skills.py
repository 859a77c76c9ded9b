"""What an execution of plans needs, from a planner and the networks of its world model.

Shapes: E environments, N latents, L latent_dim, A action_dim, H horizon; of a beam search, W beams and D decisions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gq.models.corrector import CorrectorInputs
from gq.models.world_model import WorldModel
from gq.planning.interfaces import CorrectionNetwork, Costs, Queue
from gq.planning.mppi import Plan, Planner

NUM_REFINING_SAMPLES = 64
DEPTH = 3  # decisions that a beam search looks ahead
WIDTH = 4  # plans that it keeps at each depth, and actions that it continues each with
BEAM_COST = 1 + 3 * WIDTH + (DEPTH - 1) * (WIDTH + 3 * WIDTH**2)  # networks applied to a latent, by one search


class NetworkSkills:
    """Plan, predict and act with a world model, for E environments.

    Args:
        refiner: plans with one iteration, see `refine`.
        generators: the random numbers of each environment; what one draws depends on its own decisions alone.
        corrector: what corrects actions, if anything does.
        drawn: play an elite of each plan, drawn by weight, instead of the mean.
        sampled: let the policy network sample its actions.
    """

    def __init__(
        self,
        planner: Planner,
        refiner: Planner,
        generators: Sequence[torch.Generator],
        *,
        corrector: CorrectionNetwork | None = None,
        drawn: bool = False,
        sampled: bool = False,
    ) -> None:
        self.planner, self.refiner, self.generators = planner, refiner, generators
        self.corrector, self.drawn, self.sampled, self.model = corrector, drawn, sampled, planner.model
        self.horizon, self.action_dim = planner.config.horizon, planner.model.action_dim
        self.latent_dim = planner.model.config.latent_dim
        self.device = next(planner.model.parameters()).device
        self.can_correct = corrector is not None
        self.history_length = 1 if corrector is None else corrector.history_length
        self.costs = Costs(planner.num_evaluations, refiner.num_evaluations, BEAM_COST)

    def plan(self, rows: np.ndarray, latents: Tensor, warm_start: Tensor) -> Queue:
        """Plan from latents [E, L] with the means [E, H, A] of the plans as of one decision ago."""
        return self._queue(self.planner.plan_each(latents, self._of(rows), warm_start))

    def refine(self, rows: np.ndarray, latents: Tensor, warm_start: Tensor, std: Tensor) -> Queue:
        """Improve plans by one iteration from their means and deviations [E, H, A] as of one decision ago."""
        return self._queue(self.refiner.plan_each(latents, self._of(rows), warm_start, std))

    def next(self, latents: Tensor, actions: Tensor) -> Tensor:
        """The latents [N, L] that are expected after actions [N, A]."""
        return self.model.next(latents, actions)

    def policy(self, latents: Tensor) -> Tensor:
        """The policy network's actions [E, A]: without noise, or samples."""
        if self.sampled:
            return self.model.policy(latents, self._normal(self.action_dim)).action
        return self.intended(latents)

    def intended(self, latents: Tensor) -> Tensor:
        """The policy network's actions [N, A] in latents [N, L], without noise."""
        return self.model.policy(latents, latents.new_zeros(len(latents), self.action_dim)).mean

    def correct(self, inputs: CorrectorInputs) -> Tensor:
        """Corrected actions [N, A] within [-1, 1]."""
        assert self.corrector is not None, "nothing corrects"
        return self.corrector(inputs)

    def draft(self, latents: Tensor) -> Tensor:
        """The first actions [E, A] of the best plans of a beam search."""
        draws = self._normal(DEPTH, WIDTH, WIDTH, self.action_dim)
        return beam_search(self.model, latents, draws, discount=self.planner.discount)[:, 0, 0]

    def _queue(self, plan: Plan) -> Queue:
        actions, latents, value = plan.mean, plan.mean_latents, plan.mean_value
        if self.drawn:
            actions, latents, value = plan.elite, plan.elite_latents, plan.elite_value
        return Queue(actions, plan.mean, plan.std, latents, value)

    def _of(self, rows: np.ndarray) -> list[torch.Generator | None]:
        """The generators of the given environments; the plans of the others are not used."""
        return [generator if row in rows else None for row, generator in enumerate(self.generators)]

    def _normal(self, *shape: int) -> Tensor:
        """Standard normals [E, ...]."""
        return torch.stack([torch.randn(shape, generator=each, device=self.device) for each in self.generators])


def beam_search(model: WorldModel, latents: Tensor, draws: Tensor, *, discount: float) -> Tensor:
    """The plans [E, W, D, A] that are worth most, best first, from latents [E, L].

    Candidates come from the policy network alone, without the planner, and are ranked by their rewards and by the value
    of the latent that they end in. The first continuation of each is the policy's action without noise.

    Args:
        draws: standard normals [E, D, W, W, A]; of the first decision those for one beam are used.
    """
    beams = latents[:, None]  # [E, W', L]
    plans = latents.new_zeros(len(latents), 1, 0, model.action_dim)
    returns = latents.new_zeros(len(latents), 1)
    weight = torch.ones_like(returns)
    for depth in range(draws.shape[1]):
        num_beams = beams.shape[1]
        noise = draws[:, depth, :num_beams].clone()
        noise[:, :, 0] = 0
        width = noise.shape[2]
        actions = model.policy(beams[:, :, None].expand(-1, -1, width, -1), noise).action.flatten(1, 2)
        starts = beams.repeat_interleave(width, dim=1)
        returns = returns.repeat_interleave(width, dim=1)
        weight = weight.repeat_interleave(width, dim=1)
        returns = returns + weight * model.reward(starts, actions)
        ends = model.next(starts, actions)
        weight = weight * discount
        if model.episodic:
            weight = weight * torch.sigmoid(-model.termination_logits(ends))
        values = returns + weight * policy_value(model, ends)
        best = values.nan_to_num(0).topk(width, dim=1).indices
        plans = torch.cat([plans.repeat_interleave(width, dim=1), actions[:, :, None]], dim=2)
        plans = plans.take_along_dim(best[:, :, None, None], dim=1)
        beams = ends.take_along_dim(best[:, :, None], dim=1)
        returns, weight = returns.take_along_dim(best, dim=1), weight.take_along_dim(best, dim=1)
    return plans


def policy_value(model: WorldModel, latents: Tensor) -> Tensor:
    """What latents [..., L] are worth [...] by all heads of Q, acting as the policy network does without noise."""
    zeros = latents.new_zeros(*latents.shape[:-1], model.action_dim)
    return model.q_values(latents, model.policy(latents, zeros).mean).mean(dim=0)

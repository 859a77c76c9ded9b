"""A beam search over the policy's samples in a world model: candidate plans without the planner.

Shapes: E environments, W beams, D depth, L latent_dim, A action_dim.
"""

import torch
from torch import Tensor

from gq.models.world_model import WorldModel

DEPTH = 3  # decisions
WIDTH = 4  # plans that are kept at each depth, and actions that each is continued with
NUM_EVALUATIONS = 1 + 3 * WIDTH + (DEPTH - 1) * (WIDTH + 3 * WIDTH**2)  # networks applied to a latent, by one search


def policy_value(model: WorldModel, latents: Tensor) -> Tensor:
    """Return what latents [..., L] are worth [...] by all heads of Q, acting as the policy does without noise."""
    zeros = latents.new_zeros(*latents.shape[:-1], model.action_dim)
    return model.q_values(latents, model.policy(latents, zeros).mean).mean(dim=0)


def beam_search(model: WorldModel, latents: Tensor, draws: Tensor, *, discount: float) -> Tensor:
    """Return the plans [E, W, D, A] that are worth most, best first, from latents [E, L].

    Plans are ranked by their rewards and by the value of the latent that they end in. The first continuation of each
    is the policy's action without noise.

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

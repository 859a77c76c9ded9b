"""Linear feedback around a plan, from the elites that it was made of: no training, and no call of a network per step.

Elites that would be elsewhere at an age play other actions there. The regression of the one on the other says what to
change of the plan's action where the latent is not the plan's; the idea is that of F-MPPI (arXiv 2506.14855), which
differentiates the plan instead. Shapes: E environments, H horizon, K elites, A action_dim, L latent_dim.
"""

import torch
from torch import Tensor

from gq.models.world_model import WorldModel

RIDGE = 1.0  # times the mean variance in a direction that the elites span


def feedback_gains(model: WorldModel, latents: Tensor, elites: Tensor, weights: Tensor) -> Tensor:
    """Return by how much actions change with the latent's distance from the plan's, [E, H, A, L].

    Args:
        latents: where the plans begin [E, L].
        elites: sequences of actions [E, H, K, A].
        weights: of the elites [E, K], adding up to 1.
    """
    num_elites, weights = elites.shape[2], weights[:, :, None]  # [E, K, 1]
    places = latents[:, None].expand(-1, num_elites, -1)
    gains = [torch.zeros_like(elites[:, 0, 0, :, None] * latents[:, None])]  # a plan's first action is its own
    for step in range(1, elites.shape[1]):
        places = model.next(places, elites[:, step - 1])
        moved, played = (weights.sqrt() * (part - (weights * part).sum(1, True)) for part in (places, elites[:, step]))
        gram = moved @ moved.mT  # [E, K, K]: there are fewer elites than entries of a latent
        ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None].clamp(min=1e-12)
        solved = torch.linalg.solve(gram + ridge * torch.eye(num_elites, device=gram.device), played)  # [E, K, A]
        gains.append(solved.mT @ moved)
    return torch.stack(gains, dim=1)

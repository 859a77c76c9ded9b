"""Decision Transformer training (arXiv 2106.01345, algorithm 1): mean squared error of the actions."""

from torch import Tensor

from gq.data.sampler import Batch
from gq.models.decision_transformer import DecisionTransformer


def action_loss(model: DecisionTransformer, batch: Batch) -> Tensor:
    """Return the mean squared error over valid steps and action dimensions, in units scaled to [-1, 1]."""
    predicted = model(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)  # [B, K, A]
    target = model.scaling.scale_actions(batch.actions)
    error = (predicted - target).square().mean(dim=-1)  # [B, K]
    return (error * batch.valid).sum() / batch.valid.sum()

"""Units of the environment to units of the network and back, stored with the weights."""

import numpy as np
import torch
from torch import Tensor, nn


class Scaling(nn.Module):
    """Hold observation mean and std, the action box and the return scale as buffers of the model that uses them."""

    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor
    return_scale: Tensor

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_std", torch.ones(observation_dim))
        self.register_buffer("action_low", -torch.ones(action_dim))
        self.register_buffer("action_high", torch.ones(action_dim))
        self.register_buffer("return_scale", torch.ones(()))

    def set(
        self,
        *,
        observation_mean: np.ndarray,
        observation_std: np.ndarray,
        action_low: np.ndarray,
        action_high: np.ndarray,
        return_scale: float,
    ) -> None:
        """Fill in the numbers of a dataset and an environment."""
        self.observation_mean.copy_(torch.as_tensor(observation_mean))
        self.observation_std.copy_(torch.as_tensor(observation_std))
        self.action_low.copy_(torch.as_tensor(action_low))
        self.action_high.copy_(torch.as_tensor(action_high))
        self.return_scale.fill_(return_scale)

    def scale_observations(self, observations: Tensor) -> Tensor:
        """Normalise observations [..., S] by mean and std."""
        return (observations - self.observation_mean) / self.observation_std

    def scale_returns(self, returns_to_go: Tensor) -> Tensor:
        """Divide returns by the return scale."""
        return returns_to_go / self.return_scale

    def scale_actions(self, actions: Tensor) -> Tensor:
        """Map the action box to [-1, 1] per dimension."""
        return (actions - self.action_low) * (2 / (self.action_high - self.action_low)) - 1

    def unscale_actions(self, actions: Tensor) -> Tensor:
        """Map [-1, 1] back to the action box, never outside it."""
        unit = (actions.clamp(-1, 1) + 1) / 2
        return torch.lerp(self.action_low, self.action_high, unit)

"""Two action values that learn by temporal differences: targets, a step, the slow copy, all of it in and out.

The form of TD3 (arXiv 1802.09477): the target is the smaller of the slow copies' values, at the slow policy's action
with clipped noise. ReBRAC (arXiv 2305.09836) subtracts there how far that action is from the one in the data.
"""

import torch
from torch import Tensor, nn

from gq.algos.state import skip_if
from gq.models.critic_config import CriticConfig
from gq.models.flat_mlp import FlatMLP, Kept, Layer, differentiate, run


class FlatNetwork:
    """A network that learns, its slow copy and the gradient, as views of three flat tensors on one device."""

    def __init__(self, network: FlatMLP, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        self.parameter = network.flat
        self.target = network.flat.detach().clone()
        self.gradient = torch.zeros_like(self.target)
        self.parameter.grad = self.gradient
        self.heads = network.layers(network.flat.detach())
        self.target_heads: list[list[Layer]] = network.layers(self.target)
        self.gradient_heads = network.layers(self.gradient)

    def step(self, clip: float) -> tuple[Tensor, Tensor]:
        """Take the optimiser's step with the gradient; return its norm, and 1 if it is not finite and was not taken."""
        norm = torch.linalg.vector_norm(self.gradient)
        if clip:
            nn.utils.clip_grads_with_norm_([self.parameter], clip, norm)
        skipped = (~torch.isfinite(norm)).float()
        skip_if(skipped, self.optimizer)
        self.optimizer.step()
        return norm, skipped

    def sync(self, rate: float) -> None:
        """Move the slow copy a share `rate` of the way."""
        self.target.lerp_(self.parameter.detach(), rate)


def noisy(actions: Tensor, noise: Tensor, config: CriticConfig) -> Tensor:
    """Return actions in [-1, 1] with standard normal noise that is scaled and clipped, both [B, A]."""
    bound = config.noise_clip
    return actions + (noise * config.target_noise).clamp_(-bound, bound).clamp_(-1 - actions, 1 - actions)


def td_target(
    rewards: Tensor, bootstrap: Tensor, next_value: Tensor, distance: Tensor | float, config: CriticConfig
) -> Tensor:
    """Return r + discount (1 - end) (min Q' - penalty |a' - a'_data|^2), [B, 1].

    Args:
        bootstrap: 1 - end, [B, 1].
        next_value: min Q' at the next action, [B, 1].
        distance: |a' - a'_data|^2 summed over dimensions, [B, 1]; of no weight without a penalty.
    """
    return torch.addcmul(rewards, bootstrap, next_value - config.target_penalty * distance, value=config.discount)


def smallest(heads: list[list[Layer]], inputs: Tensor) -> Tensor:
    """Return the smallest of the heads' values [B, 1] of inputs [B, S + A]."""
    values = [run(head, inputs) for head in heads]
    return torch.minimum(*values) if len(values) == 2 else torch.stack(values).amin(0)


def fit(critic: FlatNetwork, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Fill in the gradient of the sum over heads of mean (Q - target)^2.

    Returns:
        That sum, and the first head's mean value.
    """
    errors = []
    for head, into in zip(critic.heads, critic.gradient_heads, strict=True):
        kept: list[Kept] = []
        error = run(head, inputs, kept).sub_(targets)
        differentiate(head, kept, error * (2 / len(error)), into)
        errors.append(error)
    loss = torch.stack([error.square().mean() for error in errors]).sum()
    return loss, errors[0].mean() + targets.mean()


def value_gradient(critic: FlatNetwork, inputs: Tensor, action_dim: int, config: CriticConfig) -> tuple[Tensor, Tensor]:
    """Return the gradient [B, A] by the actions of mean Q / mean |Q|, whose divisor is held, and that Q [B, 1].

    Q is the first head's, or the smaller one (`critic.actor_value`).
    """
    heads = critic.heads[:1] if config.actor_value == "first" else critic.heads
    kept: list[list[Kept]] = [[] for _ in heads]
    values = [run(head, inputs, memory) for head, memory in zip(heads, kept, strict=True)]
    value = values[0] if len(values) == 1 else torch.minimum(*values)
    weight = (value.abs().mean() * len(value)).reciprocal().expand_as(value)  # [B, 1]
    if len(heads) == 1:
        gradient = differentiate(heads[0], kept[0], weight, columns=action_dim)
        assert gradient is not None
        return gradient, value
    is_first = values[0] <= values[1]
    parts = [
        differentiate(head, memory, weight * is_smaller, columns=action_dim)
        for head, memory, is_smaller in zip(heads, kept, (is_first, ~is_first), strict=True)
    ]
    return torch.stack([part for part in parts if part is not None]).sum(0), value

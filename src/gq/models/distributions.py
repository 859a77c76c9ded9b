"""Distributions, in float32: over actions scaled to [-1, 1], a diagonal Gaussian or one squashed by tanh.

Source: Zheng et al. 2022 (arXiv 2202.05607); the change of variables is log(1 - tanh(z)^2) = 2 (log 2 - z -
softplus(-2 z)), which stays finite where tanh(z) rounds to 1.

And numbers as weights on two neighbouring bins, evenly spaced in symlog space. Source: Hansen et al. 2024 (arXiv
2310.16828); decoding takes the expectation first and symexp after it.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_TWO = math.log(2)
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def bounded_log_std(raw: Tensor, low: float, high: float) -> Tensor:
    """Map any number smoothly into (low, high); unlike a clamp, its gradient is zero nowhere."""
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1)


class ActionDistribution(NamedTuple):
    """A Gaussian per action dimension, over the action itself or, if `squashed`, over atanh of the action."""

    mean: Tensor  # float32 [..., A]
    log_std: Tensor  # float32 [..., A]
    squashed: bool

    def log_prob(self, actions: Tensor, clip: float) -> Tensor:
        """Return the log-density per dimension [..., A] of given actions, clamped to 1 - clip in size if squashed.

        The clamp decides how much an action on the box's edge counts, so log-densities compare only under equal ones.
        """
        if not self.squashed:
            return self._gaussian(actions)
        before = torch.atanh(actions.clamp(-1 + clip, 1 - clip))
        return self._gaussian(before) - log_slope(before)

    def sample(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions [..., A] for standard normal draws, and their log-density, differentiable in both parameters.

        The density is taken at the value before tanh: inverting the tanh of a large one gives infinity.
        """
        before = self.mean + self.log_std.exp() * draws
        if not self.squashed:
            return before, self._gaussian(before)
        return torch.tanh(before), self._gaussian(before) - log_slope(before)

    def mode(self) -> Tensor:
        """Return the action to take without exploring [..., A]: the mean, through tanh if squashed."""
        return torch.tanh(self.mean) if self.squashed else self.mean

    def _gaussian(self, values: Tensor) -> Tensor:
        return -0.5 * ((values - self.mean) * (-self.log_std).exp()).square() - self.log_std - HALF_LOG_TWO_PI


def log_slope(before: Tensor) -> Tensor:
    """Return log(1 - tanh(z)^2)."""
    return 2 * (LOG_TWO - before - F.softplus(-2 * before))


def symlog(values: Tensor) -> Tensor:
    """Return sign(x) log(1 + |x|)."""
    return values.sign() * values.abs().log1p()


def symexp(values: Tensor) -> Tensor:
    """Return sign(x) (exp |x| - 1), the inverse of symlog."""
    return values.sign() * values.abs().expm1()


class TwoHot(NamedTuple):
    """Weight 1 - `fraction` on bin `low` and `fraction` on the next one."""

    low: Tensor  # int64 [...]
    fraction: Tensor  # float32 [...]


def two_hot(values: Tensor, num_bins: int, limit: float) -> TwoHot:
    """Return where values [...] lie between bins from -limit to limit in symlog space; beyond them, at the end.

    What is not a number gets a fraction that is none either, so that it shows in the loss.
    """
    place = (symlog(values.float()).clamp(-limit, limit) + limit) * ((num_bins - 1) / (2 * limit))
    low = place.nan_to_num(0).floor().clamp(max=num_bins - 2)
    return TwoHot(low.long(), place - low)


def two_hot_loss(logits: Tensor, target: TwoHot) -> Tensor:
    """Return the cross entropy [...] of logits [..., K] against two-hot weights [...], which may lack leading ones."""
    log_probs = logits.float().log_softmax(dim=-1)
    bins = target.low.expand(logits.shape[:-1])[..., None]
    low, high = log_probs.gather(-1, torch.cat([bins, bins + 1], dim=-1)).unbind(dim=-1)
    return -torch.lerp(low, high, target.fraction)


def two_hot_decode(logits: Tensor, bins: Tensor) -> Tensor:
    """Return the number [...] that logits [..., K] over bins [K] stand for."""
    return symexp((logits.float().softmax(dim=-1) * bins).sum(dim=-1))

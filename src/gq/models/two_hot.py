"""Numbers as weights on two neighbouring bins, evenly spaced in symlog space; all of it in float32.

Source: Hansen et al. 2024 (arXiv 2310.16828). Decoding takes the expectation first and symexp after it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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

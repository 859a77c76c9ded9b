"""Mish and SimNorm, several times as fast on a CPU as torch's own.

With s = sigmoid(x) and u = s (2 - s), tanh(softplus(x)) is u / (2 - u), its derivative 4 s (1 - u) / (2 - u)^2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def mish(values: Tensor) -> Tensor:
    """Return x tanh(softplus(x))."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.mish(values)
    if torch.is_grad_enabled() and values.requires_grad:
        return Mish.apply(values)
    sigmoid = values.sigmoid()
    u = torch.rsub(sigmoid, 2).mul_(sigmoid)
    return u.div_(torch.rsub(u, 2)).mul_(values)


class Mish(torch.autograd.Function):
    """Keep the slope for the backward pass instead of computing everything again there."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return mish of the values."""
        sigmoid = values.sigmoid()
        u = torch.rsub(sigmoid, 2).mul_(sigmoid)
        inverse = torch.rsub(u, 2).reciprocal_()
        weight = u * inverse
        slope = u.sub_(1).mul_(inverse).mul_(inverse).mul_(sigmoid).mul_(values)
        ctx.save_for_backward(torch.sub(weight, slope, alpha=4, out=slope))
        return weight.mul_(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient for the values."""
        return gradient * ctx.saved_tensors[0]


def simplicial(values: Tensor, group: int) -> Tensor:
    """Return softmaxes [..., L] over groups of so many neighbours (SimNorm), in float32."""
    grouped = values.float().unflatten(-1, (-1, group))
    weights = (grouped - grouped.detach().amax(dim=-1, keepdim=True)).exp()
    return (weights / weights.sum(dim=-1, keepdim=True)).flatten(-2)

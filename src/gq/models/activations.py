"""LayerNorm with Mish, and SimNorm, several times as fast on a CPU as torch's functions one after the other.

With r = sigmoid(-x) and y = 1 / (1 + r^2), tanh(log(1 + exp x)) is 2 y - 1, and the slope of Mish is
2 y - 1 + 4 x (1 - r) y (1 - y), of which torch computes the last three factors at once: nothing in this overflows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def normed_mish(inputs: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Return Mish of a LayerNorm, computed in float32, in the inputs' type.

    Args:
        inputs: [..., O], or [M, N, O] for M networks.
        gain: the LayerNorm's weight, float32 [O] or [M, O].
        shift: its bias, likewise.
    """
    if inputs.device.type == "cpu" and not torch.compiler.is_compiling():
        outputs: Tensor = NormedMish.apply(inputs, -gain, -shift, eps)  # type: ignore[no-untyped-call]
        return outputs
    normed = F.layer_norm(inputs.float(), inputs.shape[-1:], eps=eps)
    return F.mish(torch.addcmul(shift.unsqueeze(-2), normed, gain.unsqueeze(-2))).to(inputs.dtype)


class NormedMish(torch.autograd.Function):
    """Mish of minus a LayerNorm, one network after the other; its slope is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
        """Return [..., O] for inputs [..., O] and gain and shift [O], or [M, N, O] for [M, N, O] and [M, O]."""
        width = inputs.shape[-1:]
        gains, shifts = gain.view(-1, *width), shift.view(-1, *width)
        rows = inputs.reshape(len(gains), -1, *width)
        outputs, slopes = torch.empty_like(rows), []
        for i in range(len(rows)):
            values, mean, inverse = torch.native_layer_norm(rows[i].float(), width, gains[i], shifts[i], eps)  # -x
            r = values.sigmoid()
            y = r.square().add_(1).reciprocal_()
            weight = torch.rsub(y, 1, alpha=2)
            if any(ctx.needs_input_grad):
                torch.addcmul(values, values, r, value=-1, out=r)
                torch.ops.aten.sigmoid_backward.grad_input(r, y, grad_input=r)
                slopes += [mean, inverse, torch.add(weight, r, alpha=4, out=r).to(rows.dtype)]
            outputs[i] = weight.mul_(values)
        ctx.shape = gain.shape
        ctx.save_for_backward(rows, gains, shifts, *slopes)
        return outputs.view(inputs.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for inputs, gain and shift."""
        rows, gains, shifts, *slopes = ctx.saved_tensors
        gradients = gradient.reshape(rows.shape)
        for_rows, for_gains, for_shifts = torch.empty_like(rows), torch.empty_like(gains), torch.empty_like(shifts)
        for i in range(len(rows)):
            mean, inverse, slope = slopes[3 * i : 3 * i + 3]
            for_rows[i], for_gains[i], for_shifts[i] = torch.ops.aten.native_layer_norm_backward(
                gradients[i] * slope, rows[i], rows.shape[-1:], mean, inverse, gains[i], shifts[i],
                (True, True, True),
            )  # fmt: skip
        return for_rows.view(gradient.shape), for_gains.view(ctx.shape), for_shifts.view(ctx.shape), None


def simplicial(values: Tensor, group: int) -> Tensor:
    """Return softmaxes [..., L] over groups of so many neighbours (SimNorm), in float32."""
    grouped = values.float().unflatten(-1, (-1, group))
    weights = (grouped - grouped.detach().amax(dim=-1, keepdim=True)).exp()
    simplices: Tensor = (weights / weights.sum(dim=-1, keepdim=True)).flatten(-2)
    return simplices

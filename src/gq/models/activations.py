"""LayerNorm with Mish, and SimNorm, several times as fast on a CPU as torch's functions one after the other.

With r = sigmoid(-x), t = tanh(log(1 + exp x)) is 2 / (1 + r^2) - 1, and the slope of Mish is t + x (1 - r) (1 - t^2),
of which torch knows the last factor as the slope of tanh: nothing in this overflows.
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
        one, outputs, kept = gains.new_ones(()), torch.empty_like(rows), []
        for i in range(len(rows)):
            values, mean, inverse = torch.native_layer_norm(rows[i].float(), width, gains[i], shifts[i], eps)  # -x
            r = values.sigmoid()
            divisor = torch.addcmul(one, r, r)
            outputs[i] = torch.addcdiv(values, values, divisor, value=-2)
            if any(ctx.needs_input_grad):
                t = torch.sub(one, divisor.reciprocal_(), alpha=2, out=divisor)  # -t
                torch.addcmul(values, values, r, value=-1, out=r)
                torch.ops.aten.tanh_backward.grad_input(r, t, grad_input=r)
                kept += [mean, inverse, r.add_(t).to(rows.dtype)]
        ctx.shape = gain.shape
        ctx.save_for_backward(rows, gains, shifts, *kept)
        return outputs.view(inputs.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for inputs, gain and shift."""
        rows, gains, shifts, *kept = ctx.saved_tensors
        gradients, wanted = gradient.reshape(rows.shape), list(ctx.needs_input_grad[:3])
        parts = []
        for i in range(len(rows)):
            mean, inverse, slope = kept[3 * i : 3 * i + 3]
            parts.append(
                torch.ops.aten.native_layer_norm_backward(
                    gradients[i] * slope, rows[i], rows.shape[-1:], mean, inverse, gains[i], shifts[i], wanted
                )
            )
        for_rows, for_gains, for_shifts = (
            (torch.stack(each) if len(each) > 1 else each[0]).view(shape) if needed else None
            for each, shape, needed in zip(
                zip(*parts, strict=True), (gradient.shape, ctx.shape, ctx.shape), wanted, strict=True
            )
        )
        return for_rows, for_gains, for_shifts, None


def simplicial(values: Tensor, group: int) -> Tensor:
    """Return softmaxes [..., L] over groups of so many neighbours (SimNorm), in float32."""
    grouped = values.float().unflatten(-1, (-1, group))
    weights = (grouped - grouped.detach().amax(dim=-1, keepdim=True)).exp()
    simplices: Tensor = (weights / weights.sum(dim=-1, keepdim=True)).flatten(-2)
    return simplices

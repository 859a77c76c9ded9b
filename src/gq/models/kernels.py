"""Functions that torch computes on a CPU in many passes over memory, in few: layers, activations, dropout.

Each is what its docstring says, for any precision; under autocast, results have its type and sums are float32. On other
devices and under torch.compile the plain formulas are used. Shapes: B batch, T tokens, H width, N heads, D head width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _onednn_has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices here; False where this private function of torch is missing."""
    if not torch.backends.mkldnn.is_available():
        return False
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


HAS_ONEDNN = _onednn_has_bfloat16()


def is_fused(x: Tensor) -> bool:
    """Tell whether to compute on x with what is here instead of with torch's own functions."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def keeps_casts(x: Tensor, weight: Tensor) -> bool:
    """Tell whether to give `weight` to torch whole when acting on tokens x [B, T, H].

    Under autocast torch then casts it once, and not for every step; for few tokens that is most of the time.
    """
    return not torch.is_grad_enabled() and x.shape[0] * x.shape[1] < weight.shape[0]


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which matrix products with x are computed."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """Return x W^T + b [B, T, O] for x [B, T, I], through ReLU if asked to."""
    if is_fused(x) and autocast_dtype(x) == torch.bfloat16 and HAS_ONEDNN and not keeps_casts(x, weight):
        outputs: Tensor = BiasedLinear.apply(x.to(torch.bfloat16), weight, bias, relu)  # type: ignore[no-untyped-call]
        return outputs
    outputs = F.linear(x, weight, bias)
    return F.relu(outputs) if relu else outputs


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, in the type that a matrix product wants; or, if `keeps_type`, in x's own."""

    def __init__(self, width: int, eps: float, *, keeps_type: bool = False) -> None:
        super().__init__(width, eps=eps)
        self.keeps_type = keeps_type

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., H] for [..., H]."""
        if not is_fused(x):
            return super().forward(x)
        dtype = x.dtype if self.keeps_type else autocast_dtype(x)
        normed: Tensor = NormedRows.apply(x, self.weight, self.eps, dtype)  # type: ignore[no-untyped-call]
        return normed


class NormedRows(torch.autograd.Function):
    """RMSNorm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """Return [..., H] of a type for [..., H]."""
        inverse = inverse_size(x, eps)
        ctx.save_for_backward(x, inverse, gain)
        return (x * inverse).mul_(gain).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for x and gain."""
        return *normed_slopes(gradient.float(), *ctx.saved_tensors), None, None


def normed_slopes(slopes: Tensor, x: Tensor, inverse: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients for x [..., H] and gain [H] from that for x * inverse * gain, all float32."""
    for_x, for_gain, _ = torch.ops.aten.native_layer_norm_backward(
        slopes, x, gain.shape, torch.zeros_like(inverse), inverse, gain, None, (True, True, False)
    )
    shifts = (slopes.flatten(0, -2) @ (gain / gain.numel())).view(inverse.shape)  # of which a LayerNorm rids x
    return for_x.add_(shifts.mul_(inverse)), for_gain


def inverse_size(x: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(mean(x^2) + eps), [..., 1] for float32 [..., H]."""
    sizes: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return sizes.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class RotatedHeads(torch.autograd.Function):
    """RMSNorm of the first R of some heads and rotation of their pairs (j, j + D/2); the others stay as they are."""

    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, num_normed: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return contiguous [B, R, T, D] and [B, N - R, T, D] for heads [B, T, N, D], cos and sin [T, 1, D]."""
        chosen, others = heads.transpose(1, 2).split([num_normed, heads.shape[2] - num_normed], dim=1)
        cos, sin, half = cos[:, 0], sin[:, 0], heads.shape[-1] // 2
        values = torch.empty(chosen.shape).copy_(chosen)
        inverse = inverse_size(values, eps)
        values.mul_(inverse)
        crossed = sin * gain.roll(half)
        rotated = values * (cos * gain)
        rotated[..., :half].addcmul_(values[..., half:], crossed[:, :half], value=-1)
        rotated[..., half:].addcmul_(values[..., :half], crossed[:, half:])
        ctx.save_for_backward(heads, inverse, gain, cos, sin)
        return rotated.to(heads.dtype), others.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, others: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for heads and gain."""
        heads, inverse, gain, cos, sin = ctx.saved_tensors
        num_normed, half = gradient.shape[1], heads.shape[-1] // 2
        gradient = torch.empty(gradient.shape).copy_(gradient)
        slopes = gradient * cos
        slopes[..., :half].addcmul_(gradient[..., half:], sin[:, half:])
        slopes[..., half:].addcmul_(gradient[..., :half], sin[:, :half], value=-1)
        values = torch.empty_like(slopes).copy_(heads[:, :, :num_normed].transpose(1, 2))
        slopes, for_gain = normed_slopes(slopes, values, inverse, gain)
        for_heads = torch.empty_like(heads)
        for_heads[:, :, :num_normed] = slopes.transpose(1, 2)
        for_heads[:, :, num_normed:] = others.transpose(1, 2)
        return for_heads, for_gain, None, None, None, None


class GatedLinear(torch.autograd.Function):
    """SiLU of one half of a linear layer times the other half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return [..., F] for x [..., H] and weight [2F, H], in x's type."""
        rows, weights = x.flatten(0, -2), weight.to(x.dtype).chunk(2)
        gate, up = (rows @ part.T for part in weights)
        activated = F.silu(gate)
        ctx.save_for_backward(rows, gate, activated, up, *weights)
        return (activated * up).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients for x and weight."""
        rows, gate, activated, up, gate_weight, up_weight = ctx.saved_tensors
        slopes = gradient.reshape(gate.shape)
        for_up = activated * slopes
        for_gate = torch.ops.aten.silu_backward(slopes * up, gate)
        for_x = (for_gate @ gate_weight).addmm_(for_up, up_weight)
        for_weight = torch.cat([for_gate.T @ rows, for_up.T @ rows])
        return for_x.view(*gradient.shape[:-1], -1), for_weight.float()


class BiasedLinear(torch.autograd.Function):
    """A linear layer, and ReLU of it if asked to, in bfloat16.

    oneDNN adds the bias and takes the ReLU as it writes the products, where torch writes the bias first, adds the
    products to it, and takes the ReLU in a third pass; the results are the same to the bit.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        """Return [..., O] for x [..., I], weight [O, I] and bias [O]."""
        rows, weight = x.flatten(0, -2), weight.to(x.dtype)
        kind = "relu" if relu else "none"
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias.to(x.dtype), kind, [], "")
        ctx.save_for_backward(rows, weight, *([outputs] if relu else []))
        return outputs.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for x, weight and bias."""
        rows, weight, *outputs = ctx.saved_tensors
        slopes = gradient.reshape(len(rows), -1)
        if outputs:
            slopes = torch.ops.aten.threshold_backward(slopes, outputs[0], 0)
        for_x = (slopes @ weight).view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        ones = slopes.new_ones(1, len(slopes))  # a product adds up rows faster than a sum does
        return for_x, (slopes.T @ rows).float(), (ones @ slopes)[0].float(), None


def normed_mish(inputs: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Return Mish of a LayerNorm, computed in float32, in the inputs' type.

    Args:
        inputs: [..., O], or [M, N, O] for M networks.
        gain: the LayerNorm's weight, float32 [O] or [M, O].
        shift: its bias, likewise.
    """
    if inputs.device.type != "cpu" or torch.compiler.is_compiling():
        normed = F.layer_norm(inputs.float(), inputs.shape[-1:], eps=eps)
        return F.mish(torch.addcmul(shift.unsqueeze(-2), normed, gain.unsqueeze(-2))).to(inputs.dtype)
    if gain.dim() > 1:
        each = zip(inputs, gain, shift, strict=True)
        return torch.stack([normed_mish(*parts, eps) for parts in each])
    outputs: Tensor = NormedMish.apply(inputs, -gain, -shift, eps)  # type: ignore[no-untyped-call]
    return outputs


class NormedMish(torch.autograd.Function):
    """Mish of minus a LayerNorm; its slope is kept for the backward pass.

    With r = sigmoid(-x), t = tanh(log(1 + exp x)) is 2 / (1 + r^2) - 1, and the slope of Mish is
    t + x (1 - r) (1 - t^2), of which torch knows the last factor as the slope of tanh: nothing in this overflows. The
    gain and shift come with the opposite sign, so that `values` is -x and its sigmoid is r at once.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
        """Return [..., O] for inputs [..., O], gain and shift [O]."""
        one = gain.new_ones(())
        values, mean, inverse = torch.native_layer_norm(inputs.float(), gain.shape, gain, shift, eps)  # -x
        r = values.sigmoid()
        divisor = torch.addcmul(one, r, r)
        outputs = torch.addcdiv(values, values, divisor, value=-2).to(inputs.dtype)
        if any(ctx.needs_input_grad):
            t = torch.sub(one, divisor.reciprocal_(), alpha=2, out=divisor)  # -t
            torch.addcmul(values, values, r, value=-1, out=r)
            torch.ops.aten.tanh_backward.grad_input(r, t, grad_input=r)
            ctx.save_for_backward(inputs, gain, shift, mean, inverse, r.add_(t).to(inputs.dtype))
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for inputs, gain and shift."""
        inputs, gain, shift, mean, inverse, slope = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_layer_norm_backward(
            gradient * slope, inputs, gain.shape, mean, inverse, gain, shift, wanted
        )
        return *gradients, None


def simplicial(values: Tensor, group: int) -> Tensor:
    """Return softmaxes [..., L] over groups of so many neighbours (SimNorm), in float32."""
    grouped = values.float().unflatten(-1, (-1, group))
    weights = (grouped - grouped.detach().amax(dim=-1, keepdim=True)).exp()
    simplices: Tensor = (weights / weights.sum(dim=-1, keepdim=True)).flatten(-2)
    return simplices


FEW = 1 / 32  # up to this rate, drawing where something is dropped is cheaper than deciding it for each element
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NUM_LEVELS = 2**16  # a mask element is decided by 16 random bits, so rates are multiples of 1 / NUM_LEVELS


def dropout(x: Tensor, rate: float) -> Tensor:
    """Return x with each element zero with probability `rate`, else divided by 1 - rate, by torch's generator."""
    if rate == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    if rate <= FEW:
        scaled = x.flatten() * (1 / (1 - rate))
        return scaled.index_fill_(0, dropped_places(x.numel(), rate), 0).view(x.shape)
    dropped: Tensor = MaskedDropout.apply(x, rate)  # type: ignore[no-untyped-call]
    return dropped


class MaskedDropout(torch.autograd.Function):
    """Dropout by masks of bits, which a CPU applies several times as fast as it multiplies by booleans."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        """Return x, some of it dropped."""
        threshold = round(rate * NUM_LEVELS)
        # Four elements' bits come from one 64-bit draw: a fifth of the time.
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        least = threshold - NUM_LEVELS // 2  # of what is kept
        mask = words.view(torch.int16).clamp_(least - 1, least).neg_().add_(least - 1)  # -1, all bits, or 0
        mask, ctx.scale = mask[: x.numel()].view(x.shape), NUM_LEVELS / (NUM_LEVELS - threshold)
        ctx.save_for_backward(mask)  # so that activation checkpointing can let go of it
        return masked(x, mask, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient for x."""
        (mask,) = ctx.saved_tensors
        return masked(gradient, mask, ctx.scale), None


def masked(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return x * scale where the int16 mask is -1 and 0 where it is 0."""
    integers = INTEGERS[x.element_size()]
    return (x * scale).contiguous().view(integers).bitwise_and_(mask.to(integers)).view(x.dtype)


def dropped_places(num_elements: int, rate: float) -> Tensor:
    """Return which of so many elements are dropped, int64 in order, by adding up the distances between them."""
    expected = num_elements * rate
    enough = math.ceil(expected + 8 * math.sqrt(expected) + 16)  # but for one time in a billion
    places = torch.empty(enough, dtype=torch.int64).geometric_(rate).cumsum(0).sub_(1)
    return places[places < num_elements]


class Dropout(nn.Module):
    """`dropout` while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x with some of its elements dropped while training."""
        return dropout(x, self.rate) if self.training else x

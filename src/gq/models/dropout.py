"""Dropout whose masks are cheap on a CPU, where torch draws them one Bernoulli at a time."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

"""Dropout whose masks are cheap on a CPU, where torch draws them one Bernoulli at a time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 1 / 32  # up to this rate, drawing where something is dropped is cheaper than deciding it for each element
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
    # Four elements' bits come from one 64-bit draw: a fifth of the time, a tenth of a whole update at 13 M parameters.
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(rate * NUM_LEVELS)
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - NUM_LEVELS // 2
    return x * kept.to(x.dtype).mul_(NUM_LEVELS / (NUM_LEVELS - threshold))


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

"""Activation checkpointing: blocks that keep only their inputs for the backward pass."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module], *, is_random: bool) -> None:
    """Let each block compute its forward pass again in the backward pass, instead of keeping what it computed.

    Args:
        is_random: they draw random numbers, such as dropout's masks, which have to be the same the second time.
    """
    for block in blocks:
        block.forward = partial(forward_again, block.forward, is_random)


def forward_again(forward: Callable[..., Any], is_random: bool, *inputs: Any) -> Any:
    """Return what a block computes; without a backward pass to come, in the plain way."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=is_random)

"""The Qwen3 decoder over embedded tokens: RMSNorm, rotary positions, grouped-query attention with QK-norm, SwiGLU.

Source: Qwen3 technical report (arXiv 2505.09388), numerically equal to the published reference implementation.
Shapes: B batch, T tokens, H embed_dim, N query heads, G key/value heads, D head width.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gq.models.attention import ACTIVATIONS, EVERY_TOKEN, attend, causal_mask, mask_rows
from gq.models.config import ModelConfig
from gq.models.context_cache import ContextCache, LayerCache
from gq.models.kernels import Dropout, GatedLinear, RMSNorm, RotatedHeads, is_fused, keeps_casts

RMS_EPS = 1e-6


def rotary_table(
    num_positions: int, head_dim: int, theta: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position * theta^(-2j / head_dim), float32 [num_positions, head_dim], halves repeated."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    angles = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (j, j + D/2) of x [B, T, N, D] by the angles in cos and sin [T, 1, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention; q and k are normalised per head before the rotation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim, self.dropout, self.rotary = config.attention_head_dim, config.dropout, config.rotary
        self.query_key_value = nn.Linear(
            config.embed_dim, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=False
        )
        self.output = nn.Linear(self.num_heads * self.head_dim, config.embed_dim, bias=False)
        self.query_norm = nn.Parameter(torch.ones(self.head_dim))
        self.key_norm = nn.Parameter(torch.ones(self.head_dim))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, queries: slice, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend from the chosen tokens of x [B, T, H] to all of them, and to those in the cache; return [B, Q, H]."""
        query, key, value = self.heads(x, cos, sin, queries)
        if cache is not None:
            key, value = cache.append(key, value)
        attended = attend(query, key, value, mask, self.dropout if self.training else 0.0)  # [B, N, Q, D]
        outputs: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return outputs

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor, queries: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return query [B, N, Q, D] of the chosen tokens of x [B, T, H], and key and value [B, G, T, D] of all."""
        if keeps_casts(x, self.query_key_value.weight) or (queries == EVERY_TOKEN and not is_fused(x)):
            heads = self.query_key_value(x).unflatten(-1, (-1, self.head_dim))  # [B, T, N + 2G, D]
            chosen, others = heads.split([self.num_heads, 2 * self.num_kv_heads], dim=2)
            chosen = chosen[:, queries]
        else:
            weights = self.query_key_value.weight.split(
                [self.num_heads * self.head_dim, 2 * self.num_kv_heads * self.head_dim]
            )
            chosen, others = (
                F.linear(tokens, weight).unflatten(-1, (-1, self.head_dim))
                for tokens, weight in zip((x[:, queries], x), weights, strict=True)
            )
        query, _ = self.place(chosen, self.query_norm, cos[queries], sin[queries])
        return query, *self.place(others, self.key_norm, cos, sin, self.num_kv_heads)

    def place(
        self, heads: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, num_normed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return heads [B, T, R + R', D] as [B, R, T, D], normalised and rotated, and [B, R', T, D]."""
        num_normed = num_normed or heads.shape[2]
        if is_fused(heads) and self.rotary:
            placed: tuple[Tensor, Tensor] = RotatedHeads.apply(  # type: ignore[no-untyped-call]
                heads, gain, cos, sin, num_normed, RMS_EPS
            )
            return placed
        chosen, others = heads.split([num_normed, heads.shape[2] - num_normed], dim=2)
        normed = F.rms_norm(chosen.float(), (self.head_dim,), eps=RMS_EPS) * gain
        rotated = (rotate(normed, cos, sin) if self.rotary else normed).to(heads.dtype)
        return rotated.transpose(1, 2), others.transpose(1, 2)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.embed_dim, RMS_EPS)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.embed_dim, RMS_EPS)
        self.gate_up = nn.Linear(config.embed_dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.embed_dim, bias=False)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, queries: slice, cache: LayerCache | None = None
    ) -> Tensor:
        """Return the residual stream [B, Q, H] of the chosen tokens of x [B, T, H]."""
        x = x[:, queries] + self.dropout(self.attention(self.attention_norm(x), cos, sin, mask, queries, cache))
        outputs: Tensor = x + self.dropout(self.down(self.gated(self.mlp_norm(x))))
        return outputs

    def gated(self, x: Tensor) -> Tensor:
        """Return the MLP's hidden layer [B, Q, F] for [B, Q, H]."""
        if is_fused(x) and self.activation is F.silu and not keeps_casts(x, self.gate_up.weight):
            gated: Tensor = GatedLinear.apply(x, self.gate_up.weight)  # type: ignore[no-untyped-call]
            return gated
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        hidden: Tensor = self.activation(gate) * up
        return hidden


class Qwen3Backbone(nn.Module):
    """A stack of blocks and a final norm over embedded tokens [B, T, H]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = config.attention_head_dim, config.rope_theta
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.embed_dim, RMS_EPS)
        cos, sin = rotary_table(config.tokens_per_step * config.context_length, self.head_dim, self.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        queries: slice = EVERY_TOKEN,
        cache: ContextCache | None = None,
    ) -> Tensor:
        """Return hidden states [B, Q, H] of the tokens chosen by `queries`; the last block computes no others.

        mask, broadcast to [B, 1, T, T], is True where a token may attend; None means causal. With a cache the tokens
        come after those that are in it, causally, and join them.
        """
        first = cache.num_tokens if cache else 0
        end = first + tokens.shape[1]
        cos, sin = self.cos[first:end, None], self.sin[first:end, None]  # [T, 1, D]
        if first:
            mask = causal_mask(end, slice(first, None), tokens.device)
        layers = cache.layers if cache else [None] * len(self.blocks)
        x = tokens
        for block, layer in zip(self.blocks[:-1], layers[:-1], strict=True):
            x = block(x, cos, sin, mask, EVERY_TOKEN, layer)
        hidden: Tensor = self.norm(self.blocks[-1](x, cos, sin, mask_rows(mask, queries, tokens), queries, layers[-1]))
        return hidden


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

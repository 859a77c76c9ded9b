"""Causal grouped-query attention, by the kernel that is fastest for the device and precision."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gq.models.kernels import dropout as drop

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}
EVERY_TOKEN = slice(None)


def causal_mask(num_tokens: int, queries: slice, device: torch.device) -> Tensor:
    """Return bool [Q, T], True where the token of a chosen query may attend: to itself and what came before."""
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()[queries]


def mask_rows(mask: Tensor | None, queries: slice, tokens: Tensor) -> Tensor | None:
    """Return the mask for a choice of queries over tokens [B, T, H]; None stays None where every token is a query."""
    if queries == EVERY_TOKEN:
        return mask
    if mask is None:
        return causal_mask(tokens.shape[1], queries, tokens.device)
    return mask[..., queries, :]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Return attention of query [B, N, Q, D] over key and value [B, G, T, D], where G divides N.

    Query head i reads key head i // (N / G). `mask`, broadcast to [B, N, Q, T], is True where a query may attend;
    None means causal with Q = T.
    """
    # On a CPU the fused kernel takes 3 times as long in bfloat16 as plain matrix products (benchmarks/cpu_attention.py)
    # at the lengths used here; in float32 it is the other way round.
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return grouped_matmul_attention(query, key, value, mask, dropout)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def grouped_matmul_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend without repeating keys: the query heads of a group are stacked along time. Softmax in float32."""
    batch, num_heads, num_queries, head_dim = query.shape
    num_groups, num_tokens = key.shape[1:3]
    group = num_heads // num_groups
    if mask is None:
        mask = causal_mask(num_queries, EVERY_TOKEN, query.device)
    offsets = query.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    if offsets.dim() == 2:
        offsets = offsets.repeat(group, 1)  # [N/G * Q, T]
    else:
        whole = offsets.expand(batch, group, num_queries, num_tokens).flatten(1, 2)
        offsets = whole.repeat_interleave(num_groups, dim=0)  # [B * G, N/G * Q, T]
    stacked = query.reshape(batch * num_groups, group * num_queries, head_dim)
    keys, values = (part.reshape(batch * num_groups, num_tokens, head_dim) for part in (key, value))
    scores = torch.baddbmm(offsets, stacked, keys.mT, alpha=1 / math.sqrt(head_dim))
    weights = drop(scores.float().softmax(dim=-1).to(value.dtype), dropout)
    return (weights @ values).view(batch, num_heads, num_queries, head_dim)

"""Causal grouped-query attention, by the kernel that is fastest for the device and precision."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gq.models.dropout import dropout as drop

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
    num_queries, head_dim = query.shape[-2:]
    group = query.shape[1] // key.shape[1]
    stacked = query.unflatten(1, (-1, group)).flatten(2, 3)  # [B, G, N/G * Q, D]
    scores = (stacked @ key.transpose(-1, -2)).unflatten(2, (group, num_queries)).flatten(1, 2)  # [B, N, Q, T]
    if mask is None:
        mask = causal_mask(num_queries, EVERY_TOKEN, query.device)
    scores = (scores.float() / math.sqrt(head_dim)).masked_fill(~mask, float("-inf"))
    weights = drop(scores.softmax(dim=-1), dropout).to(value.dtype)
    attended = weights.unflatten(1, (-1, group)).flatten(2, 3) @ value  # [B, G, N/G * Q, D]
    return attended.unflatten(2, (group, num_queries)).flatten(1, 2)

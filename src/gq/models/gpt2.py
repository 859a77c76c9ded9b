"""The GPT-2 decoder of the original Decision Transformer (arXiv 2106.01345): no positions of its own.

Source: Radford et al. 2019, with the original's ReLU; dropout on attention, residuals and embeddings alike.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gq.models.attention import ACTIVATIONS, EVERY_TOKEN, attend, causal_mask, mask_rows
from gq.models.config import ModelConfig
from gq.models.context_cache import ContextCache, LayerCache
from gq.models.kernels import Dropout, autocast_dtype, is_fused, keeps_casts, linear


class Block(nn.Module):
    """Pre-norm attention and two-layer MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout_rate = config.num_heads, config.dropout
        width = config.num_heads * config.attention_head_dim
        self.attention_norm = nn.LayerNorm(config.embed_dim)
        self.query_key_value = nn.Linear(config.embed_dim, 3 * width)
        self.output = nn.Linear(width, config.embed_dim)
        self.mlp_norm = nn.LayerNorm(config.embed_dim)
        self.up = nn.Linear(config.embed_dim, config.mlp_dim)
        self.down = nn.Linear(config.mlp_dim, config.embed_dim)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, queries: slice, cache: LayerCache | None = None) -> Tensor:
        """Return the residual stream [B, Q, H] of the chosen tokens of x [B, T, H]."""
        query, key, value = self.heads(self.attention_norm(x), queries)
        if cache is not None:
            key, value = cache.append(key, value)
        attended = attend(query, key, value, mask, self.dropout_rate if self.training else 0.0)
        mixed = linear(attended.transpose(1, 2).flatten(2), self.output.weight, self.output.bias)
        x = x[:, queries] + self.dropout(mixed)
        has_relu = self.activation is F.relu
        hidden = linear(self.mlp_norm(x), self.up.weight, self.up.bias, relu=has_relu)
        outputs = linear(hidden if has_relu else self.activation(hidden), self.down.weight, self.down.bias)
        found: Tensor = x + self.dropout(outputs)
        return found

    def heads(self, x: Tensor, queries: slice) -> list[Tensor]:
        """Return query [B, N, Q, D] of the chosen tokens of x [B, T, H], and key and value [B, N, T, D] of all."""
        layer = self.query_key_value
        if keeps_casts(x, layer.weight) or (queries == EVERY_TOKEN and not is_fused(x)):
            query, *others = layer(x).chunk(3, dim=-1)
            parts = (query[:, queries], *others)
        else:  # apart, so that each is contiguous, and no queries are computed in vain
            x = x.to(autocast_dtype(x))
            tokens, weights, biases = (x[:, queries], x, x), layer.weight.chunk(3), layer.bias.chunk(3)
            parts = tuple(map(linear, tokens, weights, biases))
        return [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts]


class GPT2Backbone(nn.Module):
    """A stack of blocks and a final norm over embedded tokens [B, T, H]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

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
        if cache and cache.num_tokens:
            mask = causal_mask(cache.num_tokens + tokens.shape[1], slice(cache.num_tokens, None), tokens.device)
        layers = cache.layers if cache else [None] * len(self.blocks)
        x = self.embed_dropout(tokens)
        for block, layer in zip(self.blocks[:-1], layers[:-1], strict=True):
            x = block(x, mask, EVERY_TOKEN, layer)
        hidden: Tensor = self.norm(self.blocks[-1](x, mask_rows(mask, queries, tokens), queries, layers[-1]))
        return hidden

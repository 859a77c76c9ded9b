"""The GPT-2 decoder of the original Decision Transformer (arXiv 2106.01345): no positions of its own.

Source: Radford et al. 2019, with the original's ReLU; dropout on attention, residuals and embeddings alike.
"""

from torch import Tensor, nn

from gq.models.attention import ACTIVATIONS, EVERY_TOKEN, attend, mask_rows
from gq.models.config import ModelConfig
from gq.models.dropout import Dropout


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

    def forward(self, x: Tensor, mask: Tensor | None, queries: slice) -> Tensor:
        """Return the residual stream [B, Q, H] of the chosen tokens of x [B, T, H]."""
        fused = self.query_key_value(self.attention_norm(x))  # [B, T, 3ND]
        query, key, value = fused.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, N, T, D]
        attended = attend(query[:, :, queries], key, value, mask, self.dropout_rate if self.training else 0.0)
        x = x[:, queries] + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(self.activation(self.up(self.mlp_norm(x)))))


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

    def forward(self, tokens: Tensor, mask: Tensor | None = None, queries: slice = EVERY_TOKEN) -> Tensor:
        """Return hidden states [B, Q, H] of the tokens chosen by `queries`; the last block computes no others.

        mask, broadcast to [B, 1, T, T], is True where a token may attend; None means causal.
        """
        x = self.embed_dropout(tokens)
        for block in self.blocks[:-1]:
            x = block(x, mask, EVERY_TOKEN)
        return self.norm(self.blocks[-1](x, mask_rows(mask, queries, tokens), queries))

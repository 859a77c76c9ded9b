"""The shapes of the models, as plain numbers."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Count = Annotated[int, Ge(1)]
Rate = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Describe a Decision Transformer's backbone and its token embeddings.

    `qwen3` is the decoder of Qwen3 (RMSNorm, rotary positions, grouped queries, QK-norm, SwiGLU, no biases);
    `gpt2` is the one of the original Decision Transformer (LayerNorm, biases, learned timestep table only).
    """

    backbone: Literal["qwen3", "gpt2"] = "qwen3"
    embed_dim: Count = 128
    num_layers: Count = 3
    num_heads: Count = 4
    num_kv_heads: Count = 2  # gpt2 has no grouped queries: equal to num_heads there
    head_dim: Annotated[int, Ge(0)] = 0  # 0: embed_dim / num_heads
    mlp_ratio: Annotated[float, Gt(0), Lt(math.inf)] = (
        3.0  # MLP width over embed_dim; qwen3 has three MLP matrices, gpt2 two
    )
    activation: Literal["silu", "gelu", "relu"] = "silu"
    dropout: Rate = 0.0
    context_length: Count = 20  # environment steps; each is three tokens
    timestep_embedding: bool = True  # a learned vector per step of the episode, added to its three tokens
    max_timestep: Count = 1000  # rows of that table; later steps share the last row
    rope_theta: Annotated[float, Gt(1), Lt(math.inf)] = 10_000.0

    @property
    def attention_head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Width of the MLP's hidden layer."""
        return int(self.mlp_ratio * self.embed_dim)

    def problem(self) -> str | None:
        """Return what makes this shape impossible, or None."""
        if not self.head_dim and self.embed_dim % self.num_heads:
            return f"model.embed_dim {self.embed_dim} is not a multiple of model.num_heads {self.num_heads}"
        if not self.mlp_dim:
            return f"model.mlp_ratio {self.mlp_ratio} of model.embed_dim {self.embed_dim} leaves an MLP without width"
        if self.num_heads % self.num_kv_heads:
            return f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}"
        if self.backbone == "gpt2" and self.num_kv_heads != self.num_heads:
            return "model.backbone gpt2 has no grouped queries: set model.num_kv_heads equal to model.num_heads"
        if self.backbone == "gpt2" and not self.timestep_embedding:
            return "model.backbone gpt2 has no positions without model.timestep_embedding"
        if self.backbone == "qwen3" and self.attention_head_dim % 2:
            return f"rotary positions need an even head width, not {self.attention_head_dim}"
        return None


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Describe the behaviour cloning network: an MLP over the last `context_length` observations."""

    embed_dim: Count = 256
    num_layers: Count = 3  # hidden layers
    activation: Literal["silu", "gelu", "relu"] = "relu"
    dropout: Rate = 0.1
    context_length: Count = 1

    def problem(self) -> str | None:
        """Return what makes this shape impossible: nothing does."""
        return None

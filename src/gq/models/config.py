"""The shapes of the models, as plain numbers, and the named sizes."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from gq.errors import UsageError, suggest

Count = Annotated[int, Ge(1), Lt(2**63)]
Layers = Annotated[int, Ge(1), Le(1024)]  # no more are built, only to find that a file has fewer
Rate = Annotated[float, Ge(0), Lt(1)]
Context = Literal["sliding", "blocks"]  # how a policy moves on when its context is full, see gq.algos.dt.DTPolicy


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Describe a Decision Transformer's backbone and its token embeddings.

    `qwen3` is the decoder of Qwen3 (RMSNorm, rotary positions, grouped queries, QK-norm, SwiGLU, no biases);
    `gpt2` is the one of the original Decision Transformer (LayerNorm, biases, learned timestep table only).
    """

    backbone: Literal["qwen3", "gpt2"] = "qwen3"
    embed_dim: Count = 128
    num_layers: Layers = 3
    num_heads: Count = 4
    num_kv_heads: Count = 2  # gpt2 has no grouped queries: equal to num_heads there
    head_dim: Annotated[int, Ge(0)] = 0  # 0: embed_dim / num_heads
    mlp_ratio: Annotated[float, Gt(0), Le(1024)] = (
        3.0  # MLP width over embed_dim; qwen3 has three MLP matrices, gpt2 two
    )
    activation: Literal["silu", "gelu", "relu"] = "silu"
    dropout: Rate = 0.0
    context_length: Count = 20  # environment steps
    # Where the return-to-go enters: token: as a token of its own, three a step; output: by scaling and shifting the
    # hidden state that an action is read from, two tokens a step.
    conditioning: Literal["token", "output"] = "token"
    # A learned vector is added to the tokens of a step: one per step of the episode, one per step of the window.
    positions: Literal["none", "timestep", "window"] = "timestep"
    max_timestep: Count = 1000  # rows of the table of timesteps; later steps share the last row
    rotary: bool = True  # qwen3: rotate queries and keys by the token's place in the window
    rope_theta: Annotated[float, Gt(1), Lt(math.inf)] = 10_000.0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an environment step."""
        return 3 if self.conditioning == "token" else 2

    @property
    def num_positions(self) -> int:
        """Rows of the table of positions."""
        return {"none": 0, "timestep": self.max_timestep, "window": self.context_length}[self.positions]

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
        if self.backbone == "qwen3" and self.rotary and self.attention_head_dim % 2:
            return f"rotary positions need an even head width, not {self.attention_head_dim}"
        return None


@dataclass(frozen=True, kw_only=True)
class StochasticModelConfig(ModelConfig):
    """Describe an Online Decision Transformer: the same backbones, without positions, under a distribution."""

    positions: Literal["none", "timestep", "window"] = "none"
    rotary: bool = False
    distribution: Literal["tanh", "gaussian"] = "tanh"
    log_std_min: Annotated[float, Gt(-20), Lt(20)] = -5.0
    log_std_max: Annotated[float, Gt(-20), Lt(20)] = 2.0
    # tanh: actions of the data are clamped to 1 - this in size; much less than 1e-7 is nothing in float32.
    action_clip: Annotated[float, Ge(1e-7), Lt(0.5)] = 1e-6
    acting_context: Count = 5  # steps seen when acting, of the context_length learnt from

    def problem(self) -> str | None:
        """Return what makes this shape impossible, or None."""
        if self.acting_context > self.context_length:
            return f"model.acting_context {self.acting_context} exceeds model.context_length {self.context_length}"
        if self.log_std_min >= self.log_std_max:
            return f"model.log_std_min {self.log_std_min} is not below model.log_std_max {self.log_std_max}"
        return super().problem()


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Describe the behaviour cloning network: an MLP over the last `context_length` observations."""

    embed_dim: Count = 256
    num_layers: Layers = 3  # hidden layers
    activation: Literal["silu", "gelu", "relu"] = "relu"
    dropout: Rate = 0.1
    context_length: Count = 1

    def problem(self) -> str | None:
        """Return what makes this shape impossible: nothing does."""
        return None


# Each is called what it counts, for Humanoid; see `gq params`.
SIZES = {
    "1m": ModelConfig(embed_dim=128, num_layers=3, num_heads=4, num_kv_heads=2, mlp_ratio=3.0, dropout=0.0),
    "13m": ModelConfig(embed_dim=512, num_layers=4, num_heads=8, num_kv_heads=4, mlp_ratio=3.0, dropout=0.0),
    "0.1b": ModelConfig(embed_dim=768, num_layers=12, num_heads=12, num_kv_heads=4, mlp_ratio=4.0, dropout=0.0),
    "0.6b": ModelConfig(embed_dim=1536, num_layers=24, num_heads=12, num_kv_heads=6, mlp_ratio=8 / 3, dropout=0.0),
    # The widely copied recipe that is advertised as 0.6B.
    "1.9b": ModelConfig(embed_dim=2048, num_layers=24, num_heads=16, num_kv_heads=8, mlp_ratio=5.4, dropout=0.0),
}


def resolve_size(name: str) -> ModelConfig:
    """Return the shape of a named size.

    Raises:
        UsageError: no such size.
    """
    if config := SIZES.get(name):
        return config
    hint = suggest(name, SIZES, otherwise="sizes are " + ", ".join(SIZES))
    raise UsageError(f"there is no size {name}", hint=hint)

"""Networks that adjust a plan's action to the latent that was really reached; untrained, they change nothing.

Shapes: N states, L latent_dim, A action_dim, T history_length. A token of the history is a decision's latent, what was
predicted in its place, their difference and an action, 3 L + A numbers.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from gq.models.config import Layers
from gq.models.kernels import Dropout
from gq.models.world_config import Count

TOKEN_WIDTH = 128
NUM_ATTENTION_HEADS = 4
FEEDFORWARD_WIDTH = 256
NUM_TRANSFORMER_LAYERS = 2
PUBLISHED_DROPOUT = 0.1
AGE_WIDTH = 16
INITIAL_STD = 0.02

Architecture = Literal["two-tower", "temporal"]
ARCHITECTURES: tuple[Architecture, ...] = ("two-tower", "temporal")


class CorrectorInputs(NamedTuple):
    """What a corrector sees of N states, float32 unless it says otherwise."""

    real: Tensor  # [N, L], the latent that was reached
    predicted: Tensor  # [N, L], the plan's for this decision
    plan_action: Tensor  # [N, A], what is to be corrected
    age: Tensor  # int64 [N], decisions since the plan was made; 0 is the plan's own first
    plan_std: Tensor  # [N, A], of the plan
    policy_mean: Tensor  # [N, A], the policy network's action in the real latent
    history: Tensor  # [N, T, 3 L + A] tokens, the newest, which is this state's own, last
    mask: Tensor  # bool [N, T], False for padding before the episode's start


@dataclass(frozen=True, kw_only=True)
class CorrectorConfig:
    """The shape of a corrector.

    `published` gives the layers and inputs of the original prototype (arXiv 2512.17250), to the parameter; what the
    other switches leave out are ablations.
    """

    latent_dim: Count
    action_dim: Count
    arch: Architecture = "two-tower"
    hidden_dim: Count = 256
    num_layers: Layers = 2  # of each tower and of the fusion
    history_length: Count = 4  # tokens that `temporal` sees
    max_age: Count = 6  # older plans count as so old
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0  # of the attention layers; the published one has 0.1
    plan_blind: bool = False  # nothing of the plan, and the policy's action is what is corrected
    use_age: bool = True
    published: bool = False


def mlp(inputs: int, hidden: int, num_layers: int, *, normed: bool) -> nn.Sequential:
    """Return Linear layers with SiLU between them, and LayerNorm before it if `normed`."""
    layers: list[nn.Module] = []
    for first, second in pairwise([inputs, *[hidden] * num_layers]):
        if layers:
            layers += [nn.LayerNorm(hidden), nn.SiLU()] if normed else [nn.SiLU()]
        layers.append(nn.Linear(first, second))
    return nn.Sequential(*layers)


class AttentionLayer(nn.Module):
    """Self-attention and a feedforward network, each with its sum normalised afterwards."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(TOKEN_WIDTH, 3 * TOKEN_WIDTH)
        self.outputs = nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)
        self.feedforward = nn.Sequential(
            nn.Linear(TOKEN_WIDTH, FEEDFORWARD_WIDTH), nn.GELU(), nn.Linear(FEEDFORWARD_WIDTH, TOKEN_WIDTH)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(TOKEN_WIDTH), nn.LayerNorm(TOKEN_WIDTH)])
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return [N, T, 128] for tokens [N, T, 128]; none attends to those whose mask [N, T] is False."""
        parts = self.queries_keys_values(tokens).unflatten(-1, (3, NUM_ATTENTION_HEADS, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None, None])
        tokens = self.norms[0](tokens + self.dropout(self.outputs(attended.transpose(1, 2).flatten(2))))
        mixed: Tensor = self.norms[1](tokens + self.dropout(self.feedforward(tokens)))
        return mixed


class HistoryEncoder(nn.Module):
    """Attention over the last decisions, read at the newest."""

    def __init__(self, config: CorrectorConfig) -> None:
        super().__init__()
        dropout = PUBLISHED_DROPOUT if config.published else config.dropout
        self.embedding = nn.Linear(3 * config.latent_dim + config.action_dim, TOKEN_WIDTH)
        self.positions = nn.Parameter(INITIAL_STD * torch.randn(config.history_length, TOKEN_WIDTH))
        self.layers = nn.ModuleList([AttentionLayer(dropout) for _ in range(NUM_TRANSFORMER_LAYERS)])

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        """Return [N, 128] for tokens [N, T, 3 L + A] and their mask [N, T]."""
        tokens: Tensor = self.embedding(history) + self.positions
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return tokens[:, -1]


class Corrector(nn.Module):
    """Add a bounded residual to the plan's action; the last layer starts at zero, so untrained it is the plan's.

    The published form scales no inputs. The other scales latents and their differences by `scale_inputs`, and bounds
    each action's residual by `bound`; all of that is saved with the weights.
    """

    latent_mean: Tensor
    latent_std: Tensor
    delta_std: Tensor
    bound: Tensor

    def __init__(self, config: CorrectorConfig) -> None:
        super().__init__()
        self.config = config
        hidden, num_layers, normed = config.hidden_dim, config.num_layers, not config.published
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))
        self.register_buffer("delta_std", torch.ones(()))
        self.register_buffer("bound", torch.ones(config.action_dim))
        self.plan_tower = mlp(self._plan_width(), hidden, num_layers, normed=normed)
        self.age_embedding = nn.Embedding(config.max_age + 1, AGE_WIDTH) if self._has_age else None
        if config.arch == "temporal":
            self.history_encoder = HistoryEncoder(config)
            joined = TOKEN_WIDTH + hidden
        else:
            num_towers = 3 if config.published else 1 if config.plan_blind else 2
            self.latent_towers = nn.ModuleList(
                [mlp(config.latent_dim, hidden, num_layers, normed=normed) for _ in range(num_towers)]
            )
            joined = (num_towers + 1) * hidden
        self.update = mlp(joined, hidden, num_layers, normed=normed)
        self.gate = mlp(joined, hidden, num_layers, normed=normed)
        self.head = nn.Linear(hidden, config.action_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def history_length(self) -> int:
        """Return the tokens that it is to be given."""
        return self.config.history_length

    def forward(self, inputs: CorrectorInputs) -> Tensor:
        """Return actions [N, A] within [-1, 1]."""
        return self.unclipped(inputs).clamp(-1, 1)

    def unclipped(self, inputs: CorrectorInputs) -> Tensor:
        """Return actions [N, A] that may lie beyond [-1, 1] by the residual's bound, where gradients do not vanish."""
        assert inputs.mask.shape[1] == self.history_length, "another history length than the corrector's"
        plan = self.plan_tower(self._plan_features(inputs))
        if self.config.arch == "temporal":
            parts = [self.history_encoder(self._tokens(inputs.history), inputs.mask), plan]
        else:
            towers = zip(self.latent_towers, self._latent_features(inputs), strict=True)
            parts = [*(tower(features) for tower, features in towers), plan]
        joined = torch.cat(parts, dim=-1)
        gate = torch.sigmoid(self.gate(joined))
        fused = gate * self.update(joined) + (1 - gate) * plan
        base = inputs.policy_mean if self.config.plan_blind else inputs.plan_action
        return base + self.bound * torch.tanh(self.head(fused))

    @torch.no_grad()
    def scale_inputs(self, real: Tensor, predicted: Tensor) -> None:
        """Scale inputs by the moments of latents [N, L] and of their differences; the published form has none."""
        if self.config.published:
            return
        self.latent_mean.copy_(real.mean(dim=0))
        self.latent_std.copy_(real.std(dim=0, correction=0).clamp(min=0.1 * real.std().item() + 1e-6))
        self.delta_std.copy_((real - predicted).square().mean().sqrt() + 1e-6)

    @torch.no_grad()
    def bound_residual(self, residuals: Tensor) -> None:
        """Bound each action's residual by twice the largest of almost all residuals [N, A] that were wanted."""
        if not self.config.published:
            largest = residuals.abs().double().quantile(0.999, dim=0) if len(residuals) else self.bound
            self.bound.copy_((2 * largest).clamp(0.1, 2))

    @property
    def _has_age(self) -> bool:
        return self.config.use_age and not self.config.plan_blind and not self.config.published

    def _plan_width(self) -> int:
        if self.config.published or self.config.plan_blind:
            return self.config.action_dim
        return 3 * self.config.action_dim + AGE_WIDTH * self._has_age

    def _plan_features(self, inputs: CorrectorInputs) -> Tensor:
        """Return what the plan's tower sees."""
        if self.config.plan_blind:
            return inputs.policy_mean
        if self.config.published:
            return inputs.plan_action
        parts = [inputs.plan_action, inputs.policy_mean - inputs.plan_action, inputs.plan_std]
        if self.age_embedding is not None:
            parts.append(self.age_embedding(inputs.age.clamp(0, self.config.max_age)))
        return torch.cat(parts, dim=-1)

    def _latent_features(self, inputs: CorrectorInputs) -> list[Tensor]:
        """Return what the latents' towers see, [N, L] each."""
        if self.config.published:
            return [inputs.real, inputs.predicted, inputs.real - inputs.predicted]
        real = (inputs.real - self.latent_mean) / self.latent_std
        return [real] if self.config.plan_blind else [real, (inputs.real - inputs.predicted) / self.delta_std]

    def _tokens(self, history: Tensor) -> Tensor:
        """Return the tokens [N, T, 3 L + A] as the attention sees them."""
        width = self.config.latent_dim
        real, predicted, delta, action = history.split([width, width, width, self.config.action_dim], dim=-1)
        parts = [(latents - self.latent_mean) / self.latent_std for latents in (real, predicted)]
        parts += [delta / self.delta_std, action]
        if self.config.plan_blind:
            parts[1:] = [torch.zeros_like(part) for part in parts[1:]]
        return torch.cat(parts, dim=-1)

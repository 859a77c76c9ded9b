"""The world model of TD-MPC2 (arXiv 2310.16828): a latent that predicts itself, reward, values and actions.

Shapes: B batch, S observation_dim, A action_dim, L latent_dim, Q num_q, K num_bins. Latents, decoded numbers and all of
the policy's distribution are float32 under autocast too.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gq.models.distributions import HALF_LOG_TWO_PI, bounded_log_std, two_hot_decode
from gq.models.kernels import dropout, normed_mish, simplicial
from gq.models.world_config import WorldModelConfig

INITIAL_STD = 0.02
NORM_EPSILON = 1e-5


class NormedLinear(nn.Linear):
    """Linear, LayerNorm, Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return [..., O] for [..., I]."""
        return normed_mish(super().forward(inputs), self.norm.weight, self.norm.bias, self.norm.eps)


class SimplicialLinear(NormedLinear):
    """Linear, LayerNorm, softmax over groups."""

    def __init__(self, inputs: int, outputs: int, group: int) -> None:
        super().__init__(inputs, outputs)
        self.group = group

    def forward(self, inputs: Tensor) -> Tensor:
        """Return float32 [..., O] for [..., I]."""
        return simplicial(self.norm(nn.Linear.forward(self, inputs).float()), self.group)


def mlp(widths: list[int], last: nn.Module) -> nn.Sequential:
    """Return a NormedLinear for each pair of neighbouring widths, and the last layer."""
    return nn.Sequential(*(NormedLinear(inputs, outputs) for inputs, outputs in pairwise(widths)), last)


class EnsembleLinear(nn.Module):
    """As many Linear layers as there are members, computed at once; with LayerNorm and Mish if `normed`."""

    def __init__(self, num_members: int, inputs: int, outputs: int, *, normed: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(torch.empty(num_members, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(num_members, outputs))
        self.norm_weight = nn.Parameter(torch.empty(num_members, outputs)) if normed else None
        self.norm_bias = nn.Parameter(torch.empty(num_members, outputs)) if normed else None

    def forward(self, inputs: Tensor, members: Tensor | None) -> Tensor:
        """Return [M, N, O] for inputs [M, N, I], or [N, I] shared by all; M are the given members, or all of them."""

        def chosen(parameter: Tensor) -> Tensor:
            return parameter if members is None else parameter.index_select(0, members)

        weight, bias = chosen(self.weight), chosen(self.bias)
        outputs = torch.baddbmm(bias[:, None], inputs.expand(len(weight), -1, -1), weight.mT)
        if self.norm_weight is None or self.norm_bias is None:
            return outputs
        if self.training and self.dropout:
            outputs = dropout(outputs, self.dropout)
        return normed_mish(outputs, chosen(self.norm_weight), chosen(self.norm_bias), NORM_EPSILON)


class QEnsemble(nn.Module):
    """Q networks with parameters of their own, as one batched network."""

    def __init__(self, config: WorldModelConfig, inputs: int) -> None:
        super().__init__()
        num_q, width = config.num_q, config.mlp_dim
        self.layers = nn.ModuleList(
            [
                EnsembleLinear(num_q, inputs, width, normed=True, dropout=config.dropout),
                EnsembleLinear(num_q, width, width, normed=True),
                EnsembleLinear(num_q, width, config.num_bins, normed=False),
            ]
        )

    def forward(self, inputs: Tensor, heads: Tensor | None) -> Tensor:
        """Return logits [Q', ..., K] of the given heads, or of all, for inputs [..., I]."""
        hidden = inputs.reshape(-1, inputs.shape[-1])
        for layer in self.layers:
            hidden = layer(hidden, heads)
        outputs: Tensor = hidden.unflatten(1, inputs.shape[:-1])
        return outputs


class PolicySample(NamedTuple):
    """An action drawn from the policy: tanh of a Gaussian."""

    action: Tensor  # [..., A] within (-1, 1)
    location: Tensor  # [..., A], the Gaussian's mean
    log_std: Tensor  # [..., A]
    draws: Tensor  # [..., A], the standard normals that the action came from

    @property
    def mean(self) -> Tensor:
        """The policy's action without noise [..., A]: the Gaussian's mean, through tanh."""
        return torch.tanh(self.location)

    @property
    def gaussian_log_prob(self) -> Tensor:
        """The log-density [...] of what the action was before tanh."""
        return (-0.5 * self.draws.square() - self.log_std - HALF_LOG_TWO_PI).sum(dim=-1)

    @property
    def scaled_entropy(self) -> Tensor:
        """What the policy loss rewards [...]: an estimate of the Gaussian's entropy, times the action dimension.

        The original multiplies and divides by the log-density of the action, in which the tanh cancels.
        """
        return -self.draws.shape[-1] * self.gaussian_log_prob


class WorldModel(nn.Module):
    """Encoder, dynamics, reward, termination, policy, Q ensemble and its target.

    The target's parameters do not require gradients, all others do; it has no dropout. Actions are scaled to [-1, 1].
    """

    bins: Tensor

    def __init__(
        self, config: WorldModelConfig, *, observation_dim: int, action_dim: int, episodic: bool = False
    ) -> None:
        super().__init__()
        self.config, self.episodic = config, episodic
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.task = 0  # row of the task embedding that everything is computed for
        self.task_embedding = nn.Embedding(config.num_tasks, config.task_dim) if config.num_tasks else None
        latent, hidden = config.latent_dim + config.task_dim, [config.mlp_dim] * 2
        pair = latent + action_dim
        encoder_widths = [observation_dim + config.task_dim, *[config.encoder_dim] * (config.num_encoder_layers - 1)]
        self.encoder = mlp(encoder_widths, SimplicialLinear(config.encoder_dim, config.latent_dim, config.simplex_dim))
        self.dynamics = mlp([pair, *hidden], SimplicialLinear(config.mlp_dim, config.latent_dim, config.simplex_dim))
        self.reward_head = mlp([pair, *hidden], nn.Linear(config.mlp_dim, config.num_bins))
        self.termination_head = mlp([latent, *hidden], nn.Linear(config.mlp_dim, 1)) if episodic else None
        self.policy_head = mlp([latent, *hidden], nn.Linear(config.mlp_dim, 2 * action_dim))
        self.q_heads = QEnsemble(config, pair)
        self.target_q_heads = QEnsemble(replace(config, dropout=0.0), pair).requires_grad_(False)
        bins = torch.linspace(-config.bin_limit, config.bin_limit, config.num_bins)
        self.register_buffer("bins", bins, persistent=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all parameters; rewards and values start at 0, so that an untrained planner is indifferent."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.uniform_(module.weight, -INITIAL_STD, INITIAL_STD)
            elif isinstance(module, EnsembleLinear):
                self.initialise_ensemble(module)
        for name in ("reward_head.2.weight", "q_heads.layers.2.weight"):
            nn.init.zeros_(self.get_parameter(name))
        self.target_q_heads.load_state_dict(self.q_heads.state_dict())

    def initialise_ensemble(self, layer: EnsembleLinear) -> None:
        """Draw the parameters of one layer of the Q ensemble."""
        if self.config.q_initialisation == "uniform":
            bound = layer.weight.shape[-1] ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)
        else:
            nn.init.trunc_normal_(layer.weight, std=INITIAL_STD)
            nn.init.zeros_(layer.bias)
        if layer.norm_weight is not None and layer.norm_bias is not None:
            nn.init.ones_(layer.norm_weight)
            nn.init.zeros_(layer.norm_bias)

    def encode(self, observations: Tensor) -> Tensor:
        """Return latents [..., L] of observations [..., S]."""
        return self._compute(self.encoder, observations)

    def next(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return the latents [..., L] one decision after latents [..., L] and actions [..., A]."""
        return self._compute(self.dynamics, latents, actions)

    def reward_logits(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return logits [..., K] of the reward for actions [..., A] in latents [..., L]."""
        return self._compute(self.reward_head, latents, actions)

    def reward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return the predicted reward [...]."""
        return self.decode(self.reward_logits(latents, actions))

    def termination_logits(self, latents: Tensor) -> Tensor:
        """Return the logit [...] that the episode ended on arriving in latents [..., L]."""
        assert self.termination_head is not None, "only an episodic model predicts terminations"
        return self._compute(self.termination_head, latents).squeeze(-1).float()

    def policy(self, latents: Tensor, draws: Tensor) -> PolicySample:
        """Return the actions that standard normal draws [..., A] give in latents [..., L]."""
        location, raw = self._compute(self.policy_head, latents).float().chunk(2, dim=-1)
        log_std = bounded_log_std(raw, self.config.log_std_min, self.config.log_std_max)
        return PolicySample(torch.tanh(location + draws * log_std.exp()), location, log_std, draws)

    def q_logits(self, latents: Tensor, actions: Tensor, heads: Tensor | None = None, target: bool = False) -> Tensor:
        """Return logits [Q', ..., K] of the value of actions [..., A] in latents [..., L].

        Args:
            heads: int64 indices [Q'] of the heads to evaluate, all without.
            target: evaluate the target's.
        """
        return self._compute(self.target_q_heads if target else self.q_heads, latents, actions, heads=heads)

    def q_values(self, latents: Tensor, actions: Tensor, heads: Tensor | None = None, target: bool = False) -> Tensor:
        """Return values [Q', ...]; the arguments are those of `q_logits`."""
        return self.decode(self.q_logits(latents, actions, heads, target))

    def decode(self, logits: Tensor) -> Tensor:
        """Return the numbers [...] that two-hot logits [..., K] stand for."""
        return two_hot_decode(logits, self.bins)

    def _compute(self, network: nn.Module, first: Tensor, actions: Tensor | None = None, **options: Any) -> Tensor:
        """Return what a network makes of latents or observations, the task, and actions."""
        parts = [first]
        if self.task_embedding is not None:
            embedding = self.task_embedding.weight[self.task]
            parts.append((embedding / embedding.norm().clamp(min=1)).expand(*first.shape[:-1], -1))
        if actions is not None:
            parts.append(actions)
        outputs: Tensor = network(torch.cat(parts, dim=-1) if len(parts) > 1 else first, **options)
        return outputs

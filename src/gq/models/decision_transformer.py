"""The Decision Transformer (arXiv 2106.01345): tokens (return-to-go, observation, action) per step, causal attention.

With `conditioning` output, the tokens are (observation, action), and the return-to-go scales and shifts the hidden
state of the observation's token (adaptive layer norm, as in the Decoupling Decision Transformer, arXiv 2601.15953).
Past returns-to-go, which differ by past rewards only, are not seen, and two thirds of the tokens are left.

The model takes raw observations, actions and returns and holds its own scaling, so training, evaluation and a
loaded checkpoint cannot disagree about it. Shapes: B batch, T steps, S observation_dim, A action_dim, H embed_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gq.models.config import ModelConfig
from gq.models.context_cache import ContextCache
from gq.models.gpt2 import GPT2Backbone
from gq.models.kernels import RMSNorm
from gq.models.scaling import Scaling
from gq.models.transformer import RMS_EPS, Qwen3Backbone

LAST_TOKEN = slice(-1, None)


class TrajectoryTransformer(nn.Module):
    """Turn windows of a trajectory into hidden states of its observation tokens; subclasses read actions from them."""

    def __init__(self, config: ModelConfig, *, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        if problem := config.problem():
            raise ValueError(problem)
        self.config = config
        self.scaling = Scaling(observation_dim, action_dim)
        self.embed_return = nn.Linear(1, config.embed_dim)
        if config.conditioning == "output":
            self.modulate = nn.Linear(config.embed_dim, 2 * config.embed_dim)
            nn.init.zeros_(self.modulate.weight)  # the return changes nothing at first
            nn.init.zeros_(self.modulate.bias)
        self.embed_observation = nn.Linear(observation_dim, config.embed_dim)
        self.embed_action = nn.Linear(action_dim, config.embed_dim)
        if config.num_positions:
            self.embed_position = nn.Embedding(config.num_positions, config.embed_dim)
            nn.init.normal_(self.embed_position.weight, std=0.02)
        self.embed_norm: nn.Module
        self.backbone: nn.Module
        if config.backbone == "qwen3":
            self.embed_norm, self.backbone = RMSNorm(config.embed_dim, RMS_EPS, keeps_type=True), Qwen3Backbone(config)
        else:
            self.embed_norm, self.backbone = nn.LayerNorm(config.embed_dim), GPT2Backbone(config)

    def embed(
        self, observations: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor, first: int = 0
    ) -> Tensor:
        """Return tokens [B, NT, H], N a step, or [B, NT - 1, H] when the last action is not given (it is to be chosen).

        The steps are those of a context from its step `first` on.
        """
        num_steps = observations.shape[1]
        is_open = actions.shape[1] == num_steps - 1
        scaled_actions = self.scaling.scale_actions(actions)
        if is_open:
            scaled_actions = F.pad(scaled_actions, (0, 0, 0, 1))
        has_token = self.config.conditioning == "token"
        embedded = [
            *([self.embed_return(self.scaling.scale_returns(returns_to_go))] if has_token else []),
            self.embed_observation(self.scaling.scale_observations(observations)),
            self.embed_action(scaled_actions),
        ]
        tokens = torch.stack(embedded, dim=2).float()  # [B, T, N, H]; the residual stream is float32 in autocast too
        if self.config.positions == "timestep":
            rows = timesteps.clamp(max=self.config.max_timestep - 1)
            tokens = tokens + self.embed_position(rows)[:, :, None]
        elif self.config.positions == "window":
            tokens = tokens + self.embed_position.weight[first : first + num_steps, None]
        tokens = tokens.flatten(1, 2)  # [B, NT, H]: R_1, s_1, a_1, R_2, ...
        normed: Tensor = self.embed_norm(tokens[:, :-1] if is_open else tokens)
        return normed

    def encode(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        valid: Tensor | None = None,
        *,
        queries: slice | None = None,
        cache: ContextCache | None = None,
    ) -> Tensor:
        """Return hidden states [B, T, H] of the observation tokens, or [B, 1, H] of the last token.

        observations [B, T, S], actions [B, T, A] or [B, T - 1, A], returns_to_go [B, T, 1] and timesteps [B, T] (int)
        in the units of the environment. `valid` [B, T] marks real steps; it is needed only with padding on the left,
        since causality already hides padding on the right. With a `cache`, which holds tokens of the same context from
        its beginning and takes in the others, only these are computed, and `queries` chooses among them.
        """
        per_step = self.config.tokens_per_step
        num_known = cache.num_tokens if cache else 0
        first = num_known // per_step
        tokens = self.embed(
            observations[:, first:], actions[:, first:], returns_to_go[:, first:], timesteps[:, first:], first
        )[:, num_known - per_step * first :]
        mask = None if valid is None else attention_mask(valid, tokens.shape[1], per_step)
        hidden: Tensor = self.backbone(tokens, mask, queries or slice(per_step - 2, None, per_step), cache)
        if self.config.conditioning == "output":
            return self.condition(hidden, returns_to_go if queries is None else returns_to_go[:, queries])
        return hidden

    def condition(self, hidden: Tensor, returns_to_go: Tensor) -> Tensor:
        """Return hidden states [B, Q, H], scaled and shifted by the returns-to-go [B, Q, 1] of their steps."""
        embedded = F.silu(self.embed_return(self.scaling.scale_returns(returns_to_go)))
        scale, shift = self.modulate(embedded).chunk(2, dim=-1)
        return hidden * (1 + scale) + shift  # type: ignore[no-any-return]

    def make_cache(self, num_steps: int) -> ContextCache:
        """Return an empty cache for contexts of up to so many steps."""
        return ContextCache(self.config.num_layers, self.config.tokens_per_step * num_steps)


class DecisionTransformer(TrajectoryTransformer):
    """Predict actions from returns-to-go, observations and earlier actions.

    The action of step t is read from the token of observation t, so it depends on returns-to-go and observations up
    to t and on actions before t; with `conditioning` output on the return-to-go of t alone.
    """

    def __init__(self, config: ModelConfig, *, observation_dim: int, action_dim: int) -> None:
        super().__init__(config, observation_dim=observation_dim, action_dim=action_dim)
        self.predict_action = nn.Linear(config.embed_dim, action_dim)

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return predicted actions [B, T, A] scaled to (-1, 1); the arguments are those of `encode`."""
        return self.head(self.encode(observations, actions, returns_to_go, timesteps, valid))

    def act(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        *,
        cache: ContextCache | None = None,
    ) -> Tensor:
        """Return the next action [B, A] in the units of the environment.

        observations [B, T, S], returns_to_go [B, T, 1] and timesteps [B, T] include the current step, actions
        [B, T - 1, A] are those taken before it. With a `cache` as of `encode` only what is new is computed.
        """
        hidden = self.encode(observations, actions, returns_to_go, timesteps, queries=LAST_TOKEN, cache=cache)
        return self.scaling.unscale_actions(self.head(hidden)[:, -1])

    def head(self, hidden: Tensor) -> Tensor:
        """Return scaled actions [B, Q, A] in float32 from hidden states of observation tokens."""
        return torch.tanh(self.predict_action(hidden).float())


def attention_mask(valid: Tensor, num_tokens: int, per_step: int = 3) -> Tensor:
    """Return [B, 1, T, T], True where a token may attend: itself, and earlier tokens of real steps."""
    keys = valid.bool().repeat_interleave(per_step, dim=1)[:, None, None, :num_tokens]
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=valid.device).tril()
    # The diagonal stays open so that no row is fully masked, whose softmax is undefined.
    return (causal & keys) | torch.eye(num_tokens, dtype=torch.bool, device=valid.device)

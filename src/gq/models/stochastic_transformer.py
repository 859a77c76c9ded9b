"""The Online Decision Transformer (arXiv 2202.05607): a Decision Transformer with a distribution over actions."""

from torch import Tensor, nn

from gq.models.config import StochasticModelConfig
from gq.models.context_cache import ContextCache
from gq.models.decision_transformer import LAST_TOKEN, TrajectoryTransformer
from gq.models.distributions import ActionDistribution, bounded_log_std


class StochasticTransformer(TrajectoryTransformer):
    """Predict a distribution over actions scaled to [-1, 1], so that any action box can be learnt and acted in."""

    config: StochasticModelConfig

    def __init__(self, config: StochasticModelConfig, *, observation_dim: int, action_dim: int) -> None:
        super().__init__(config, observation_dim=observation_dim, action_dim=action_dim)
        self.predict_mean = nn.Linear(config.embed_dim, action_dim)
        self.predict_log_std = nn.Linear(config.embed_dim, action_dim)
        for head in (self.predict_mean, self.predict_log_std):
            nn.init.orthogonal_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        valid: Tensor | None = None,
    ) -> ActionDistribution:
        """Return the distribution of each step's action [B, T, A]; the arguments are those of `encode`."""
        return self.head(self.encode(observations, actions, returns_to_go, timesteps, valid))

    def act(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        draws: Tensor | None = None,
        *,
        cache: ContextCache | None = None,
    ) -> Tensor:
        """Return the next action [B, A] in the units of the environment, inside its box.

        observations [B, T, S], returns_to_go [B, T, 1] and timesteps [B, T] include the current step, actions
        [B, T - 1, A] are those taken before it. `draws` [B, A] are standard normal; without them the action is the
        distribution's mode. With a `cache` as of `encode` only what is new is computed.
        """
        hidden = self.encode(observations, actions, returns_to_go, timesteps, queries=LAST_TOKEN, cache=cache)
        distribution = self.head(hidden[:, -1])
        chosen = distribution.mode() if draws is None else distribution.sample(draws)[0]
        return self.scaling.unscale_actions(chosen)

    def head(self, hidden: Tensor) -> ActionDistribution:
        """Return the distribution [..., A] for hidden states [..., H], in float32."""
        raw = self.predict_log_std(hidden).float()
        log_std = bounded_log_std(raw, self.config.log_std_min, self.config.log_std_max)
        return ActionDistribution(self.predict_mean(hidden).float(), log_std, self.config.distribution == "tanh")

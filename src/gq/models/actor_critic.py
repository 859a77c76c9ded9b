"""A deterministic policy and two action values: the networks of TD3+BC and ReBRAC."""

from torch import Tensor, nn

from gq.models.critic_config import ActorCriticConfig
from gq.models.flat_mlp import FlatMLP
from gq.models.scaling import Scaling

ACTOR_BOUND, CRITIC_BOUND = 1e-3, 3e-3  # of ReBRAC's last layers


class ActorCritic(nn.Module):
    """`actor` maps scaled observations to actions before the tanh, `critic` scaled (observation, action) to two values.

    Observations and actions are in units of `scaling`, so actions are in [-1, 1] whatever the environment's box.
    """

    def __init__(self, config: ActorCriticConfig, *, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.scaling = Scaling(observation_dim, action_dim)
        hidden = (config.embed_dim,) * config.num_layers
        bounds = (ACTOR_BOUND, CRITIC_BOUND) if config.small_start else (None, None)
        self.actor = FlatMLP((observation_dim, *hidden, action_dim), last_bound=bounds[0])
        self.critic = critic_network(config, observation_dim, action_dim)

    def forward(self, observations: Tensor) -> Tensor:
        """Return actions [..., A] in (-1, 1) for observations [..., S] of the environment."""
        (actions,) = self.actor(self.scaling.scale_observations(observations))
        return actions.tanh()  # type: ignore[no-any-return]


def critic_network(config: ActorCriticConfig, observation_dim: int, action_dim: int) -> FlatMLP:
    """Return two action values of scaled observations and actions, side by side [..., S + A]."""
    hidden = (config.embed_dim,) * config.num_layers
    bound = CRITIC_BOUND if config.small_start else None
    return FlatMLP((observation_dim + action_dim, *hidden, 1), num_heads=2, norm=config.critic_norm, last_bound=bound)

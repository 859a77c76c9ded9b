"""The behaviour cloning network: an MLP over the last observations."""

from torch import Tensor, nn

from gq.models.config import MLPConfig
from gq.models.scaling import Scaling

ACTIVATION_LAYERS = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}


class ObservationMLP(nn.Module):
    """Predict the action from the last K observations; those before the episode's start count as average ones."""

    def __init__(self, config: MLPConfig, *, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.scaling = Scaling(observation_dim, action_dim)
        layers: list[nn.Module] = []
        width = config.context_length * observation_dim
        for _ in range(config.num_layers):
            layers += [
                nn.Linear(width, config.embed_dim),
                ACTIVATION_LAYERS[config.activation](),
                nn.Dropout(config.dropout),
            ]
            width = config.embed_dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, action_dim), nn.Tanh())

    def forward(self, observations: Tensor, valid: Tensor) -> Tensor:
        """Return actions [B, A] scaled to (-1, 1) from observations [B, K, S], oldest first, where valid [B, K]."""
        scaled = self.scaling.scale_observations(observations) * valid[..., None]  # 0 is the average observation
        actions: Tensor = self.layers(scaled.flatten(1))
        return actions.float()

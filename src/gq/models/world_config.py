"""The shape of a TD-MPC2 world model, what its update weighs, and how much a plan tries: plain numbers."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from gq.errors import UsageError

Count = Annotated[int, Ge(1)]
Coefficient = Annotated[float, Ge(0), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Fraction = Annotated[float, Gt(0), Le(1)]
MANY_ACTION_DIMS = 20  # from here on, plans take two iterations more


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Describe the networks of a TD-MPC2 agent: encoder, dynamics, reward, termination, policy and an ensemble of Q."""

    encoder_dim: Count = 256
    num_encoder_layers: Annotated[int, Ge(2), Le(1024)] = 2
    mlp_dim: Count = 512  # both hidden layers of all other networks
    latent_dim: Count = 512
    num_q: Annotated[int, Ge(2), Le(1024)] = 5
    num_bins: Annotated[int, Ge(2)] = 101  # of the two-hot rewards and values
    bin_limit: Positive = 10.0  # the bins go from minus this to this, in symlog space
    simplex_dim: Count = 8  # entries of a latent that add up to 1
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.01  # of the first layer of Q
    log_std_min: Annotated[float, Gt(-20), Lt(20)] = -10.0
    log_std_max: Annotated[float, Gt(-20), Lt(20)] = 2.0
    # `uniform` is what the original had from the end of 2024 to July 2026, by accident; the last layer is 0 in both.
    q_initialisation: Literal["truncated_normal", "uniform"] = "truncated_normal"
    num_tasks: Annotated[int, Ge(0)] = 0  # 0: one task, and no embedding of it
    task_dim: Annotated[int, Ge(0)] = 0

    def problem(self) -> str | None:
        """Return what makes this shape impossible, or None."""
        if self.latent_dim % self.simplex_dim:
            return f"model.latent_dim {self.latent_dim} is not a multiple of model.simplex_dim {self.simplex_dim}"
        if self.log_std_min >= self.log_std_max:
            return f"model.log_std_min {self.log_std_min} is not below model.log_std_max {self.log_std_max}"
        if bool(self.num_tasks) != bool(self.task_dim):
            return f"model.num_tasks {self.num_tasks} and model.task_dim {self.task_dim} go together"
        return None


WORLD_MODEL_SIZES = {
    "1": WorldModelConfig(encoder_dim=256, mlp_dim=384, latent_dim=128, num_encoder_layers=2, num_q=2),
    "5": WorldModelConfig(encoder_dim=256, mlp_dim=512, latent_dim=512, num_encoder_layers=2, num_q=5),
    "19": WorldModelConfig(encoder_dim=1024, mlp_dim=1024, latent_dim=768, num_encoder_layers=3, num_q=5),
    "48": WorldModelConfig(encoder_dim=1792, mlp_dim=1792, latent_dim=768, num_encoder_layers=4, num_q=5),
    "317": WorldModelConfig(encoder_dim=4096, mlp_dim=4096, latent_dim=1376, num_encoder_layers=5, num_q=8),
}


def resolve_world_model_size(name: str) -> WorldModelConfig:
    """Return the shape of a named size.

    Raises:
        UsageError: no such size.
    """
    if config := WORLD_MODEL_SIZES.get(name):
        return config
    raise UsageError(f"there is no size {name}", hint="sizes of world models are " + ", ".join(WORLD_MODEL_SIZES))


@dataclass(frozen=True, kw_only=True)
class WorldUpdateConfig:
    """What one TD-MPC2 update weighs, and how fast it goes. Defaults are those of all single tasks."""

    horizon: Count = 3  # decisions that the model is unrolled for
    consistency_coefficient: Coefficient = 20.0
    reward_coefficient: Coefficient = 0.1
    value_coefficient: Coefficient = 0.1
    termination_coefficient: Coefficient = 1.0
    entropy_coefficient: Coefficient = 1e-4  # times the action dimension
    temporal_decay: Fraction = 0.5  # the original's rho: weight of each step of the horizon over that of the one before
    learning_rate: Positive = 3e-4
    encoder_learning_rate_scale: Positive = 0.3
    gradient_clip: Positive = 20.0
    target_rate: Fraction = 0.01  # how far the target Q and the scale of values move with each update


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How much is tried, and how it is weighed. Defaults are those of all single tasks."""

    horizon: Count = 3
    iterations: Annotated[int, Ge(0)] = 0  # 0: 6, or 8 from 20 action dimensions
    num_samples: Count = 512  # sequences that each iteration compares
    num_policy_samples: Count = 24  # of these, from the policy, the same in all iterations
    num_elites: Count = 64
    std_min: Positive = 0.05
    std_max: Positive = 2.0
    temperature: Positive = 0.5  # multiplies the values, so more of it means fewer elites that count
    # `soft` weighs what follows a step by the predicted probability that the episode goes on; `cut` drops it once that
    # is below one half, as the original does. Only for models that predict terminations.
    termination: Literal["soft", "cut"] = "soft"
    compile: Literal["auto", "off", "capture", "full"] = "auto"  # plans, as train.compile does updates

    def num_iterations(self, action_dim: int) -> int:
        """Return the iterations of a plan."""
        return self.iterations or (8 if action_dim >= MANY_ACTION_DIMS else 6)

    def resized(self, *, horizon: int = 0, iterations: int = 0, num_samples: int = 0) -> "PlannerConfig":
        """Return plans that try more or less, with as large shares of samples from the policy and of elites.

        0 is no change.
        """
        num_samples = num_samples or self.num_samples
        share = num_samples / self.num_samples
        return replace(
            self,
            horizon=horizon or self.horizon,
            iterations=iterations or self.iterations,
            num_samples=num_samples,
            num_policy_samples=max(min(round(share * self.num_policy_samples), num_samples - 1), 1),
            num_elites=max(round(share * self.num_elites), 2) if share != 1 else self.num_elites,
        )

    def problem(self) -> str | None:
        """Return what makes this impossible, or None."""
        if self.num_policy_samples >= self.num_samples:
            return f"planner.num_policy_samples {self.num_policy_samples} leaves none of {self.num_samples} to sample"
        if self.num_elites > self.num_samples:
            return f"planner.num_elites {self.num_elites} is more than planner.num_samples {self.num_samples}"
        if self.std_min > self.std_max:
            return f"planner.std_min {self.std_min} is above planner.std_max {self.std_max}"
        return None


def discount_factor(episode_length: int, *, low: float = 0.95, high: float = 0.995) -> float:
    """Return the discount per decision for episodes of so many decisions: one minus five over it, within limits."""
    return min(max(1 - 5 / episode_length, low), high)


def parameter_counts(
    config: WorldModelConfig, *, observation_dim: int, action_dim: int, episodic: bool = False
) -> dict[str, int]:
    """Return the number of trained parameters of each network, by formula; the target has as many as `q` once more."""

    def normed(inputs: int, outputs: int) -> int:
        return linear(inputs, outputs) + 2 * outputs

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    width, latent = config.mlp_dim, config.latent_dim + config.task_dim
    hidden = normed(latent, width) + normed(width, width)
    hidden_of_pairs = normed(latent + action_dim, width) + normed(width, width)
    return {
        "encoder": normed(observation_dim + config.task_dim, config.encoder_dim)
        + (config.num_encoder_layers - 2) * normed(config.encoder_dim, config.encoder_dim)
        + normed(config.encoder_dim, config.latent_dim),
        "dynamics": hidden_of_pairs + normed(width, config.latent_dim),
        "reward": hidden_of_pairs + linear(width, config.num_bins),
        "termination": (hidden + linear(width, 1)) * episodic,
        "policy": hidden + linear(width, 2 * action_dim),
        "q": config.num_q * (hidden_of_pairs + linear(width, config.num_bins)),
        "task_embedding": config.num_tasks * config.task_dim,
    }

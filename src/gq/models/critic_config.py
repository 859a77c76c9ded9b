"""The shapes and settings of what learns action values, as plain numbers."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from gq.models.config import Count, Layers

NonNegative = Annotated[float, Ge(0), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """Describe a policy and two action values: MLPs of equal hidden layers."""

    embed_dim: Count = 256
    num_layers: Layers = 2  # hidden layers
    critic_norm: bool = False  # LayerNorm behind each ReLU of the critic
    small_start: bool = False  # last layers near zero, hidden biases 0.1
    observations: Literal["normalised", "raw"] = "normalised"  # by mean and deviation + 1e-3 of the data

    def problem(self) -> str | None:
        """Return what makes this shape impossible: nothing does."""
        return None


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """How action values are learnt from data, and how a policy follows them; see `gq.algos.td3bc`."""

    discount: Annotated[float, Ge(0), Lt(1)] = 0.99
    target_rate: Annotated[float, Gt(0), Le(1)] = 0.005  # of the slow copies, at each step of the policy
    target_noise: NonNegative = 0.2  # of the slow policy's actions, in [-1, 1]
    noise_clip: NonNegative = 0.5
    policy_interval: Count = 2  # updates of the critic to one of the policy
    reward_scale: Positive = 1.0  # rewards are multiplied by it
    actor_value: Literal["first", "smaller"] = "first"  # which of the two values the policy follows
    q_weight: NonNegative = 2.5  # of the value in the policy's loss, over its own mean size
    bc_weight: NonNegative = 1.0  # of the squared distance to the data's actions
    bc_reduction: Literal["mean", "sum"] = "mean"  # of that distance, over action dimensions
    target_penalty: NonNegative = 0.0  # of the distance to the data's next action, in the critic's target

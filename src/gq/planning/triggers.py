"""When a plan is given up early: signals that are 0 where everything went as planned, and larger the worse.

Shapes: E environments, L latent_dim, A action_dim.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gq.planning.modes import Trigger

TINY = 1e-8


class Situation(NamedTuple):
    """Where environments are, and where they were expected to be; meaningless where no plan is being executed."""

    real: Tensor  # [E, L], the latents that were reached
    before: Tensor  # [E, L], those one decision ago
    has_before: Tensor  # bool [E], False in an episode's first decision
    planned: Tensor  # [E, L], the plan's in their place; past its end, what was expected of the last action
    reference: Tensor  # [E, L], as `planned`, but what was expected of the last action once that was not the plan's


class Signal:
    """What a trigger compares with its threshold.

    `raw` is the distance of the latent from where it was expected. `response` is how differently the policy network
    would act in the two places, over the mean change of its action in one decision of this episode: a deviation counts
    by how much acting depends on it (the idea of AdaReP, which replans within a tolerance from a local sensitivity).

    Args:
        intended: the policy network's actions [N, A] in latents [N, L], without noise.
    """

    def __init__(
        self, trigger: Trigger, intended: Callable[[Tensor], Tensor], num_environments: int, device: torch.device
    ) -> None:
        self.trigger, self.intended = trigger, intended
        self.total, self.count = (torch.zeros(num_environments, device=device) for _ in range(2))  # of changes

    @property
    def has_scale(self) -> bool:
        """Whether it must see every decision, to know how large changes are in this episode."""
        return self.trigger == "response"

    def reset(self, rows: Tensor) -> None:
        """Begin an episode in some environments, int64 [N]."""
        self.total[rows] = self.count[rows] = 0

    def measure(self, situation: Situation, active: Tensor) -> Tensor:
        """The signal [E]; the environments that are not active (bool [E]) leave no trace."""
        if self.trigger == "raw":
            return distance(situation.real, situation.reference)
        places = torch.cat([situation.real, situation.reference, situation.before])
        real, reference, before = self.intended(places).chunk(3)
        counted = active & situation.has_before
        self.total += torch.where(counted, distance(real, before), 0.0)
        self.count += counted
        scale = self.total / self.count.clamp(min=1)
        return distance(real, reference) / scale.clamp(min=TINY)


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances [E] of vectors [E, N]."""
    norm: Tensor = torch.linalg.vector_norm(first - second, dim=-1)
    return norm

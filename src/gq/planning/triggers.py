"""Signals that ask for a plan before its time: each is 0 where everything went as planned, and larger the worse.

Shapes: E environments, L latent_dim, A action_dim, H horizon.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gq.planning.modes import Trigger

TINY = 1e-8


class Situation(NamedTuple):
    """Where environments are, and where they were thought to be; meaningless where no plan is being executed."""

    real: Tensor  # [E, L], the latents that were reached
    before: Tensor  # [E, L], those one decision ago
    has_before: Tensor  # bool [E], False in an episode's first decision
    planned: Tensor  # [E, L], the plan's in their place; behind its end, what was expected of the last action
    reference: Tensor  # [E, L], as `planned`, but what was expected of the last action once that was not the plan's
    remaining: Tensor  # [E, H, A], the plan's actions from now on, with zeros behind them
    lengths: np.ndarray  # int [E], how many of them there are
    spread: Tensor  # [E], standard deviation of the values of the plan's elites


class Valuation(Protocol):
    """What signals need of a world model."""

    def value(self, latents: Tensor) -> Tensor:
        """Return what latents [N, L] are worth [N] to the policy."""

    def score(self, latents: Tensor, actions: Tensor, lengths: np.ndarray) -> Tensor:
        """Return what the first `lengths` (int [N]) of actions [N, H, A] are worth [N] in latents [N, L]."""

    def intended(self, latents: Tensor) -> Tensor:
        """Return the policy network's actions [N, A] in latents [N, L], without noise."""


class RunningMean:
    """The mean of an episode's numbers so far, of each environment."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.total, self.count = torch.zeros(num_rows, device=device), torch.zeros(num_rows, device=device)

    def reset(self, rows: Tensor) -> None:
        """Forget the numbers of some environments, int64 [N]."""
        self.total[rows] = 0
        self.count[rows] = 0

    def add(self, numbers: Tensor, chosen: Tensor) -> Tensor:
        """Take in the chosen (bool [E]) ones of numbers [E]; return all means [E], 0 where there was none yet."""
        self.total += torch.where(chosen, numbers, 0.0)
        self.count += chosen
        return self.total / self.count.clamp(min=1)


class Signal:
    """Compute a trigger's signal.

    `raw` is the distance from where the plan is thought to be; `relative` is that over the mean distance that latents
    of this episode moved in one decision, so that 1 is as bad as to expect no change; `value` is how far the values of
    the two places are apart, over the mean change of value in one decision; `response` is how differently the policy
    would act in the two places, over the mean change of its action in one decision: the deviation counts by how much
    acting depends on it (the idea of replanning within a tolerance from a local sensitivity); `rescore` is how much
    less the rest of the plan is worth from here than from where it was meant to go on, over that too, or over the
    spread of the elites' values where it is more: elites may agree so much that it is next to nothing.
    """

    def __init__(self, trigger: Trigger, skills: Valuation, num_rows: int, device: torch.device) -> None:
        self.trigger, self.skills = trigger, skills
        self.scale = RunningMean(num_rows, device)

    def reset(self, rows: Tensor) -> None:
        """Begin an episode in some environments, int64 [N]."""
        self.scale.reset(rows)

    @property
    def has_scale(self) -> bool:
        """Whether it must see every decision, to know how large things are in this episode."""
        return self.trigger in ("relative", "value", "response", "rescore")

    def measure(self, situation: Situation, active: Tensor) -> Tensor:
        """Return the signal [E]; the environments that are not active (bool [E]) leave no trace."""
        signals: dict[Trigger, Callable[[Situation, Tensor], Tensor]] = {
            "never": lambda situation, active: torch.zeros_like(situation.spread),
            "raw": lambda situation, active: distance(situation.real, situation.reference),
            "relative": self._relative,
            "value": self._value,
            "response": self._response,
            "rescore": self._rescore,
        }
        return signals[self.trigger](situation, active)

    def _relative(self, situation: Situation, active: Tensor) -> Tensor:
        moved = distance(situation.real, situation.before)
        scale = self.scale.add(moved, active & situation.has_before)
        return distance(situation.real, situation.reference) / scale.clamp(min=TINY)

    def _value(self, situation: Situation, active: Tensor) -> Tensor:
        places = torch.cat([situation.real, situation.reference, situation.before])
        real, reference, before = self.skills.value(places).chunk(3)
        scale = self.scale.add((real - before).abs(), active & situation.has_before)
        return (real - reference).abs() / scale.clamp(min=TINY)

    def _response(self, situation: Situation, active: Tensor) -> Tensor:
        places = torch.cat([situation.real, situation.reference, situation.before])
        real, reference, before = self.skills.intended(places).chunk(3)
        scale = self.scale.add(distance(real, before), active & situation.has_before)
        return distance(real, reference) / scale.clamp(min=TINY)

    def _rescore(self, situation: Situation, active: Tensor) -> Tensor:
        places = torch.cat([situation.real, situation.planned, situation.real, situation.before])
        lengths = np.concatenate([situation.lengths, situation.lengths, 0 * situation.lengths, 0 * situation.lengths])
        scores = self.skills.score(places, situation.remaining.repeat(4, 1, 1), lengths)
        scored, promised, real, before = scores.chunk(4)
        scale = self.scale.add((real - before).abs(), active & situation.has_before)
        return (promised - scored) / torch.maximum(scale, situation.spread).clamp(min=TINY)


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distances [E] of vectors [E, N]."""
    norm: Tensor = torch.linalg.vector_norm(first - second, dim=-1)
    return norm

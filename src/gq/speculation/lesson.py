"""Teaching a corrector what a planner would have done in the state that was really reached.

Shapes: N states, L latent_dim, A action_dim. Actions are within [-1, 1].
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gq.models.corrector import Corrector, CorrectorInputs
from gq.models.world_model import WorldModel

HUBER_DELTA = 0.1  # an action's error from which the loss is linear
MIN_STD = 0.05  # the least that planners have


class Lesson(NamedTuple):
    """States with what the teacher says to them."""

    inputs: CorrectorInputs
    label: Tensor  # [N, A], the planner's mean, averaged over several plans
    label_std: Tensor  # [N, A], the standard deviation of its plans' last distribution


class Terms(NamedTuple):
    """The mean terms of a loss."""

    loss: Tensor
    action: Tensor
    value: Tensor


class ValueGap:
    """What a teacher's Q loses where its action is replaced, in units of how far its values spread.

    Args:
        teacher: whose parameters need no gradients.
        scale: of values; see `value_scale`.
    """

    def __init__(self, teacher: WorldModel, scale: float) -> None:
        self.teacher, self.scale = teacher, scale

    def __call__(self, latents: Tensor, actions: Tensor, labels: Tensor) -> Tensor:
        """Return the gap [N] between labels [N, A] and actions [N, A]; only the actions have gradients."""
        gained = self.teacher.q_values(latents, actions).mean(dim=0)
        with torch.no_grad():
            possible = self.teacher.q_values(latents, labels).mean(dim=0)
        return (possible - gained) / self.scale


@torch.no_grad()
def value_scale(teacher: WorldModel, latents: Tensor, actions: Tensor) -> float:
    """Return how far the teacher's values of N latents and actions spread, 1 at least: between their 5 and 95 %."""
    values = teacher.q_values(latents, actions).mean(dim=0)
    low, high = values.double().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64, device=values.device))
    return max(float(high - low), 1.0)


def action_errors(actions: Tensor, lesson: Lesson) -> Tensor:
    """Return Huber errors [N] of actions [N, A], weighted by how sure the teacher was of each action.

    Weights are one over its standard deviation, and 1 where that is MIN_STD or less.
    """
    assert actions.shape == lesson.label.shape == lesson.label_std.shape, (actions.shape, lesson.label.shape)
    errors = F.huber_loss(actions, lesson.label, reduction="none", delta=HUBER_DELTA) / HUBER_DELTA
    return (errors * MIN_STD / lesson.label_std.clamp(min=MIN_STD)).mean(dim=-1)


def corrector_loss(
    corrector: Corrector, lesson: Lesson, *, value_gap: ValueGap | None = None, value_weight: float = 0.0
) -> Terms:
    """Return the loss of a batch.

    Args:
        value_gap: needed where `value_weight`, what a lost value counts beside an action's error, is not 0.
    """
    actions = corrector.unclipped(lesson.inputs)
    action = action_errors(actions, lesson).mean()
    if not value_weight:
        return Terms(action, action.detach(), torch.zeros_like(action))
    assert value_gap is not None
    value = value_gap(lesson.inputs.real, actions.clamp(-1, 1), lesson.label).mean()
    return Terms(action + value_weight * value, action.detach(), value.detach())


class DistillLearner:
    """A corrector with its optimiser."""

    def __init__(
        self,
        corrector: Corrector,
        *,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-4,
        gradient_clip: float = 10.0,
        value_gap: ValueGap | None = None,
        value_weight: float = 0.0,
    ) -> None:
        self.corrector, self.gradient_clip = corrector, gradient_clip
        self.value_gap, self.value_weight = value_gap, value_weight
        self.optimizer = torch.optim.AdamW(corrector.parameters(), lr=learning_rate, weight_decay=weight_decay)

    def update(self, lesson: Lesson) -> Terms:
        """Take one step; return the loss before it, detached."""
        self.corrector.train()
        terms = corrector_loss(self.corrector, lesson, value_gap=self.value_gap, value_weight=self.value_weight)
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.corrector.parameters(), self.gradient_clip)
        self.optimizer.step()
        return Terms(*(term.detach() for term in terms))

    @torch.no_grad()
    def loss(self, lesson: Lesson) -> Terms:
        """Return the loss of a batch without learning from it."""
        self.corrector.eval()
        return corrector_loss(self.corrector, lesson, value_gap=self.value_gap, value_weight=self.value_weight)

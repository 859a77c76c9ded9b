"""What an execution of plans needs, what a corrector sees of it, and what it reports.

Shapes: E environments, N of them that decide, L latent_dim, A action_dim, H horizon of plans, T the corrector's
history_length.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gq.models.corrector import CorrectorInputs


class Source(IntEnum):
    """What gave an action."""

    PLAN = 0  # a plan that was made for it
    FOLLOW = 1  # the plan of an earlier decision, as it is
    CORRECT = 2  # that, or the policy past its end, corrected by a network
    REFINE = 3  # that, after one iteration more
    POLICY = 4  # the policy network
    BEAM = 5  # a draft of the beam search


class Queue(NamedTuple):
    """What is kept of plans: the actions to play, and what is needed of them later."""

    actions: Tensor  # [E, H, A]
    mean: Tensor  # [E, H, A], for the next plan's warm start
    std: Tensor  # [E, H, A]
    latents: Tensor  # [E, H + 1, L] predicted along the actions, the present one first
    value: Tensor  # [E], that the actions promised


class Costs(NamedTuple):
    """How many times networks are applied to a latent, to predict, to act, or to value, for one environment."""

    plan: int
    refine: int = 0
    draft: int = 0


class CorrectionNetwork(Protocol):
    """What corrects actions: a Corrector, or a stand-in for it."""

    @property
    def history_length(self) -> int:
        """Tokens of the history that it sees."""

    def __call__(self, inputs: CorrectorInputs) -> Tensor:
        """Corrected actions [N, A] within [-1, 1]."""


class Skills(Protocol):
    """What an execution needs; all tensors are for all E environments, on one device.

    Of what `plan` and `refine` return, the given rows are used; they draw random numbers for those alone.
    """

    horizon: int
    latent_dim: int
    action_dim: int
    can_correct: bool
    history_length: int  # of the corrector, 1 without
    costs: Costs
    device: torch.device

    def plan(self, rows: np.ndarray, latents: Tensor, warm_start: Tensor) -> Queue:
        """Plan from latents [E, L] with the means [E, H, A] of the plans as of one decision ago."""

    def refine(self, rows: np.ndarray, latents: Tensor, warm_start: Tensor, std: Tensor) -> Queue:
        """Improve plans by one iteration from their means and deviations [E, H, A] as of one decision ago."""

    def next(self, latents: Tensor, actions: Tensor) -> Tensor:
        """The latents [E, L] that are expected after actions [E, A]."""

    def policy(self, latents: Tensor) -> Tensor:
        """The policy network's actions [E, A] to execute."""

    def intended(self, latents: Tensor) -> Tensor:
        """The policy network's actions [N, A] in latents [N, L], without noise."""

    def correct(self, inputs: CorrectorInputs) -> Tensor:
        """Corrected actions [E, A] within [-1, 1]."""

    def draft(self, latents: Tensor) -> Tensor:
        """The first actions [E, A] of the best candidates of a beam search."""


class Past(NamedTuple):
    """The T - 1 decisions before this one, the newest last; nothing is read where the mask is False."""

    real: Tensor  # [N, T - 1, L], latents that were reached
    expected: Tensor  # [N, T - 1, L], next(latent, executed action) of the decision before; at the start, the latent
    actions: Tensor  # [N, T - 1, A], executed
    mask: Tensor  # bool [N, T - 1], False before the episode's start


def corrector_inputs(
    real: Tensor,
    predicted: Tensor,
    plan_action: Tensor,
    *,
    age: Tensor,
    plan_std: Tensor,
    policy_mean: Tensor,
    past: Past,
) -> CorrectorInputs:
    """What a corrector sees in N decisions: put together here for training and for acting alike.

    A token of the history is a decision: its latent, what was predicted for it, their difference and an action. For
    this decision that is the plan's prediction and action; for those before it, what the model expected of the action
    that was executed before, and the action that was executed. So the past depends on what happened alone, and not on
    which plans there were.

    Args:
        real: the latents [N, L] that were reached.
        predicted: what the plan predicted in their place [N, L] when it was made, which is for ages up to H; at higher
            ages, what the model expected of the action before, next(latent, executed action).
        plan_action: the plan's [N, A], which has one for ages below H; at higher ages the policy's, `policy_mean`.
        age: int64 [N], decisions since the plan was made: 1, 2, ...; 0 where there is no plan.
        plan_std: of the plan [N, A] in this decision; past its end, in its last.
        policy_mean: the policy network's action without noise [N, A] in the latents that were reached.
    """
    num, history_length = len(real), past.mask.shape[1] + 1
    assert real.shape == predicted.shape
    assert plan_action.shape == plan_std.shape == policy_mean.shape == (num, plan_action.shape[-1])
    assert age.shape == (num,)
    before = _token(past.real, past.expected, past.actions)
    history = torch.cat([before, _token(real, predicted, plan_action)[:, None]], dim=1)
    mask = torch.cat([past.mask, past.mask.new_ones(num, 1)], dim=1)
    assert history.shape[:2] == mask.shape == (num, history_length)
    return CorrectorInputs(
        real=real,
        predicted=predicted,
        plan_action=plan_action,
        age=age,
        plan_std=plan_std,
        policy_mean=policy_mean,
        history=torch.where(mask[..., None], history, 0.0),
        mask=mask,
    )


def _token(real: Tensor, predicted: Tensor, action: Tensor) -> Tensor:
    """Tokens [..., 3 L + A] of a history."""
    return torch.cat([real, predicted, real - predicted, action], dim=-1)


@dataclass(frozen=True)
class Events:
    """What happened in one decision of N environments; NaN where there is nothing to measure."""

    rows: np.ndarray  # int [N], the environments
    source: np.ndarray  # int8 [N], of Source
    age: np.ndarray  # int [N], of the plan that is played: 0 where it is new, -1 where there is none
    arrival_age: np.ndarray  # int [N], likewise of the plan on arrival; where a new one was made, its accepted length
    planned: np.ndarray  # bool [N], the planner was called
    missed: np.ndarray  # bool [N], because the trigger called for it
    surprise: np.ndarray  # float32 [N], distance of the latent from what was expected of the last executed action
    drift: np.ndarray  # float32 [N], distance of the latent from that of the plan on arrival, at `arrival_age`
    signal: np.ndarray  # float32 [N], the trigger's
    value: np.ndarray  # float32 [N], of the plan, where there is a new one
    evaluations: np.ndarray  # int [N], how many times networks were applied to a latent
    milliseconds: np.ndarray  # float [N], that the decision took; 0 until somebody has measured it

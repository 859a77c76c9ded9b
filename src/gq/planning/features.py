"""What a corrector sees, put together in one place for training and for acting.

Shapes: N states, L latent_dim, A action_dim, H horizon of plans, T the corrector's history_length. A token of the
history is a decision: its latent, what was predicted for it, their difference and an action. For this decision that is
the plan's prediction and action; for those before it, what the model expected of the action that was executed before,
and the action that was executed. So the past depends on what happened alone, and not on which plans there were.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gq.models.corrector import CorrectorInputs


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
    """Return a corrector's inputs for N decisions.

    Args:
        real: the latents [N, L] that were reached.
        predicted: what the plan predicted in their place [N, L] when it was made, which is for ages up to H; at higher
            ages, what the model expected of the action before, next(latent, executed action).
        plan_action: the plan's [N, A], which has one for ages below H; at higher ages the policy's, `policy_mean`.
        age: int64 [N], decisions since the plan was made: 1, 2, ...; 0 where there is no plan.
        plan_std: of the plan [N, A] in this decision; behind its end, in its last.
        policy_mean: the policy network's action without noise [N, A] in the latents that were reached.
    """
    num, history_length = len(real), past.mask.shape[1] + 1
    assert real.shape == predicted.shape
    assert plan_action.shape == plan_std.shape == policy_mean.shape == (num, plan_action.shape[-1])
    assert age.shape == (num,)
    before = token(past.real, past.expected, past.actions)
    history = torch.cat([before, token(real, predicted, plan_action)[:, None]], dim=1)
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


def token(real: Tensor, predicted: Tensor, action: Tensor) -> Tensor:
    """Return tokens [..., 3 L + A] of a history."""
    return torch.cat([real, predicted, real - predicted, action], dim=-1)

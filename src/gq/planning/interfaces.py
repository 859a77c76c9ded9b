"""What an execution of plans needs, and what it reports.

Shapes: E environments, N of them that decide, L latent_dim, A action_dim, H horizon of plans.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gq.models.corrector import CorrectorInputs
from gq.planning.triggers import Valuation


class Source(IntEnum):
    """What gave an action."""

    PLAN = 0  # a plan that was made for it
    FOLLOW = 1  # the plan of an earlier decision, as it is
    CORRECT = 2  # that, corrected by a network or feedback; or the policy behind its end, corrected by a network
    REFINE = 3  # that, after one iteration more
    POLICY = 4  # the policy network
    BEAM = 5  # a draft of the beam search


class Queue(NamedTuple):
    """What is kept of plans: the actions to play, and all that is to be known about them later."""

    actions: Tensor  # [E, H, A]
    mean: Tensor  # [E, H, A], for the next plan's warm start
    std: Tensor  # [E, H, A]
    latents: Tensor  # [E, H + 1, L] predicted along the actions, the present one first
    value: Tensor  # [E], that the actions promised
    spread: Tensor  # [E], standard deviation of the values of the elites
    gains: Tensor  # [E, H, A, L], feedback around the actions; [E, H, A, 0] where the mode has none


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
        """Return actions [N, A] within [-1, 1]."""


class Skills(Valuation, Protocol):
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
        """Return the latents [E, L] that are expected after actions [E, A]."""

    def policy(self, latents: Tensor) -> Tensor:
        """Return the policy network's actions [E, A]."""

    def correct(self, inputs: CorrectorInputs) -> Tensor:
        """Return corrected actions [E, A] within [-1, 1]."""

    def draft(self, latents: Tensor) -> Tensor:
        """Return the first actions [E, A] of the best candidates of a beam search."""


@dataclass(frozen=True)
class Events:
    """What happened in one decision of N environments; NaN where there is nothing to measure."""

    rows: np.ndarray  # int [N], the environments
    source: np.ndarray  # int8 [N], of Source
    age: np.ndarray  # int [N], of the plan that is played: 0 where it is new, -1 where there is none
    arrival_age: np.ndarray  # int [N], likewise of the plan on arrival; where a new one was made, its accepted length
    planned: np.ndarray  # bool [N], the planner was called
    missed: np.ndarray  # bool [N], because the trigger asked for it
    surprise: np.ndarray  # float32 [N], distance of the latent from what was expected of the last executed action
    drift: np.ndarray  # float32 [N], distance of the latent from that of the plan on arrival, at `arrival_age`
    signal: np.ndarray  # float32 [N], the trigger's, or how far off a draft was
    value: np.ndarray  # float32 [N], of the plan, where there is a new one
    evaluations: np.ndarray  # int [N], how many times networks were applied to a latent
    milliseconds: np.ndarray  # float [N], that the decision took; 0 until somebody has measured it


@dataclass
class Counters:
    """What executions have cost, of each environment, over all episodes."""

    decisions: np.ndarray  # int [E]
    planner_calls: np.ndarray  # int [E]
    evaluations: np.ndarray  # int [E]

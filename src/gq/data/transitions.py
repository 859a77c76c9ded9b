"""Single transitions with the logged action behind them, drawn on the device: what a critic learns from."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.data.trajectories import Trajectories
from gq.errors import DataError
from gq.models.scaling import Scaling


class Transitions(NamedTuple):
    """B transitions in the units of networks. Observation and action lie side by side, as a critic takes them."""

    inputs: Tensor  # [B, S + A]
    rewards: Tensor  # [B, 1]
    bootstrap: Tensor  # [B, 1]; 0 where the episode ended by itself, else 1
    next_inputs: Tensor  # [B, S + A]; meaningless where `bootstrap` is 0


class TransitionSampler:
    """Draw transitions uniformly.

    The last step of an episode that was cut short is not drawn: the observation behind it is not among the data, and a
    critic must neither take another one for it nor take the cut for an end. Every other transition that does not end
    its episode has a next action on record, the next row's.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        scaling: Scaling,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        reward_scale: float = 1.0,
    ) -> None:
        """Take episodes, and what scales them.

        Raises:
            DataError: not one transition can be learnt from.
        """
        ends = trajectories.offsets[1:] - 1
        usable = np.ones(trajectories.num_transitions, bool)
        usable[ends] = trajectories.terminals[ends]
        if not usable.any():
            message = f"{trajectories.source} has no transition with a next observation"
            raise DataError(message, hint="a critic needs episodes of two steps, or ends that are flagged")
        with torch.no_grad():
            rows = torch.cat(
                [
                    scaling.scale_observations(torch.from_numpy(trajectories.observations)),
                    scaling.scale_actions(torch.from_numpy(trajectories.actions)),
                    torch.from_numpy(trajectories.rewards)[:, None] * reward_scale,
                    1 - torch.from_numpy(trajectories.terminals)[:, None].float(),
                ],
                dim=1,
            )
        self.rows = torch.cat([rows, rows[-1:]]).to(device)  # [N + 1, S + A + 2]; the last row may be terminal
        self.usable = torch.from_numpy(np.flatnonzero(usable)).to(device)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def sample(self, batch_size: int) -> Transitions:
        """Draw a batch; advances `generator` only."""
        picks = torch.randint(len(self.usable), (batch_size,), generator=self.generator, device=self.usable.device)
        return self.gather(self.usable.index_select(0, picks))

    def gather(self, chosen: Tensor) -> Transitions:
        """Return the transitions that begin at the given rows [B]."""
        rows, following = self.rows.index_select(0, chosen), self.rows.index_select(0, chosen + 1)
        width = rows.shape[1] - 2
        return Transitions(rows[:, :width], rows[:, width : width + 1], rows[:, width + 1 :], following[:, :width])

"""What an execution of plans needs, from a planner and the networks of its world model.

Shapes: E environments, N latents, L latent_dim, A action_dim, H horizon.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gq.models.corrector import CorrectorInputs
from gq.planning import beam
from gq.planning.feedback import feedback_gains
from gq.planning.interfaces import CorrectionNetwork, Costs, Queue
from gq.planning.modes import Action
from gq.planning.mppi import Draws, Plan, Planner

NUM_REFINING_SAMPLES = 64


class NetworkSkills:
    """Plan, predict, act and value with a world model, for E environments.

    Args:
        generators: the random numbers of each environment; what one draws depends on its own decisions alone.
        action: which sequence of a plan is played.
        corrector: what corrects actions, if anything does.
        sampled: let the policy network sample its actions.
        has_feedback: find gains for each plan.
    """

    def __init__(
        self,
        planner: Planner,
        refiner: Planner,
        generators: Sequence[torch.Generator],
        *,
        action: Action = "mean",
        corrector: CorrectionNetwork | None = None,
        sampled: bool = False,
        has_feedback: bool = False,
    ) -> None:
        self.planner, self.refiner, self.generators, self.action = planner, refiner, generators, action
        self.corrector, self.sampled, self.model = corrector, sampled, planner.model
        self.has_feedback = has_feedback
        self.horizon, self.action_dim = planner.config.horizon, planner.model.action_dim
        self.latent_dim = planner.model.config.latent_dim
        self.device = next(planner.model.parameters()).device
        self.can_correct = corrector is not None
        self.history_length = 1 if corrector is None else corrector.history_length
        followed = has_feedback * planner.config.num_elites * (self.horizon - 1)
        self.costs = Costs(planner.num_evaluations + followed, refiner.num_evaluations, beam.NUM_EVALUATIONS)

    def plan(self, rows: np.ndarray, latents: Tensor, warm_start: Tensor) -> Queue:
        """Plan from latents [E, L] with the means [E, H, A] of the plans as of one decision ago."""
        return self._queue(self.planner.plan(latents, self._draws(self.planner, rows), warm_start))

    def refine(self, rows: np.ndarray, latents: Tensor, warm_start: Tensor, std: Tensor) -> Queue:
        """Improve plans by one iteration from their means and deviations [E, H, A] as of one decision ago."""
        return self._queue(self.refiner.plan(latents, self._draws(self.refiner, rows), warm_start, std))

    def next(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return the latents [N, L] that are expected after actions [N, A]."""
        return self.model.next(latents, actions)

    def policy(self, latents: Tensor) -> Tensor:
        """Return the policy network's actions [E, A]: without noise, or samples."""
        if self.sampled:
            return self.model.policy(latents, self._normal(self.action_dim)).action
        return self.intended(latents)

    def intended(self, latents: Tensor) -> Tensor:
        """Return the policy network's actions [N, A] in latents [N, L], without noise."""
        return self.model.policy(latents, latents.new_zeros(len(latents), self.action_dim)).mean

    def value(self, latents: Tensor) -> Tensor:
        """Return what latents [N, L] are worth [N] to the policy, by all heads of Q."""
        return beam.policy_value(self.model, latents)

    def score(self, latents: Tensor, actions: Tensor, lengths: np.ndarray) -> Tensor:
        """Return what the first `lengths` (int [N]) of actions [N, H, A] are worth [N] in latents [N, L]."""
        model, config = self.model, self.planner.config
        returns, weight = latents.new_zeros(len(latents)), latents.new_ones(len(latents))
        for step in range(int(lengths.max())):
            is_within = torch.tensor(step < lengths, device=latents.device)
            returns = returns + torch.where(is_within, weight * model.reward(latents, actions[:, step]), 0.0)
            after = model.next(latents, actions[:, step])
            following = weight * self.planner.discount
            if model.episodic:
                logits = model.termination_logits(after)
                following = following * (torch.sigmoid(-logits) if config.termination == "soft" else logits <= 0)
            weight = torch.where(is_within, following, weight)
            latents = torch.where(is_within[:, None], after, latents)
        return returns + weight * self.value(latents)

    def correct(self, inputs: CorrectorInputs) -> Tensor:
        """Return corrected actions [N, A] within [-1, 1]."""
        assert self.corrector is not None, "nothing corrects"
        return self.corrector(inputs)

    def draft(self, latents: Tensor) -> Tensor:
        """Return the first actions [E, A] of the best plans of a beam search."""
        draws = self._normal(beam.DEPTH, beam.WIDTH, beam.WIDTH, self.action_dim)
        return beam.beam_search(self.model, latents, draws, discount=self.planner.discount)[:, 0, 0]

    def _queue(self, plan: Plan) -> Queue:
        is_mean, start = self.action == "mean", plan.mean_latents[:, 0]
        gains = plan.mean[..., None].expand(-1, -1, -1, 0)
        if self.has_feedback:
            gains = feedback_gains(self.model, start, plan.elites, plan.elite_weights)
        return Queue(
            actions=plan.mean if is_mean else plan.elite,
            mean=plan.mean,
            std=plan.std,
            latents=plan.mean_latents if is_mean else plan.elite_latents,
            value=plan.mean_value if is_mean else plan.elite_value,
            spread=plan.elite_values.std(dim=1, correction=0),
            gains=gains,
        )

    def _draws(self, planner: Planner, rows: np.ndarray) -> Draws:
        """Return draws for all environments: for the given ones their own, for the others those of the first."""
        draws = planner.draw_each([self.generators[row] for row in rows])
        if len(rows) == len(self.generators):
            return draws
        order = np.zeros(len(self.generators), np.int64)
        order[rows] = np.arange(len(rows))
        index = torch.from_numpy(order).to(self.device)
        return Draws(*(part[index] for part in draws))

    def _normal(self, *shape: int) -> Tensor:
        """Return standard normals [E, ...]."""
        return torch.stack([torch.randn(shape, generator=each, device=self.device) for each in self.generators])

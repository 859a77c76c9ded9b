"""The execution of plans, batched over environments: plan, follow, correct, or leave it to the policy network.

Knows neither networks nor simulators: what it needs of them are its `Skills`. Every environment has a plan of its own,
in a queue, and an age: the decisions since the plan was made. At age 0 a plan's own first action is played and never
corrected; at later ages the mode says what is played, until the execution horizon or a trigger ends the plan. A
decision calls the planner at most once, and copies to the host once, or twice where a trigger let it plan.

Shapes: E environments, N of them that decide, L latent_dim, A action_dim, H horizon of plans, T history_length.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.planning.interfaces import Events, Past, Queue, Skills, Source, corrector_inputs
from gq.planning.modes import ACCEPTED_SHARE, Mode
from gq.planning.triggers import Signal, Situation, distance


class Told(NamedTuple):
    """What the host learns of a decision, in one copy from the device. All float32."""

    actions: np.ndarray  # [E, A]
    surprise: np.ndarray  # [E]
    drift: np.ndarray  # [E]
    value: np.ndarray  # [E], of the plan
    signal: np.ndarray  # [E], the trigger's


class Execution:
    """Execute plans in E environments."""

    def __init__(self, mode: Mode, skills: Skills, num_environments: int) -> None:
        assert mode.problem() is None, mode.problem()
        self.mode, self.skills, self.num_environments = mode, skills, num_environments
        self.signal = Signal(mode.trigger, skills.intended, num_environments, skills.device)
        self.age = np.full(num_environments, -1)  # of each plan in the next decision; -1: there is none
        self.position = np.zeros(num_environments, np.int64)  # of the next decision in the queue
        self.has_before = np.zeros(num_environments, bool)  # a decision was taken in this episode
        self.has_deviated = np.zeros(num_environments, bool)  # an action was executed that was not the plan's
        self.is_pending = np.zeros(num_environments, bool)  # the last action's consequence is not yet predicted

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(num_environments, *shape, device=skills.device)

        horizon, width, action_dim, length = skills.horizon, skills.latent_dim, skills.action_dim, skills.history_length
        plans = [zeros(horizon, action_dim) for _ in range(3)]
        self.queue = Queue(plans[0], plans[1], plans[2], zeros(horizon + 1, width), zeros())
        self.real, self.expected = zeros(width), zeros(width)  # of the last decision, of the next one
        self.actions, self.drafts = zeros(action_dim), zeros(action_dim)  # likewise
        self.past = Past(
            real=zeros(length - 1, width),
            expected=zeros(length - 1, width),
            actions=zeros(length - 1, action_dim),
            mask=zeros(length - 1).bool(),
        )

    def reset(self, rows: np.ndarray) -> None:
        """Begin an episode in the environments `rows`, int [N]: nothing is left of the one before."""
        self.age[rows], self.position[rows] = -1, 0
        self.has_before[rows] = self.has_deviated[rows] = self.is_pending[rows] = False
        chosen = self._tensor(rows)
        self.signal.reset(chosen)
        for part in (*self.queue, *self.past, self.real, self.expected, self.actions, self.drafts):
            part[chosen] = 0

    @torch.no_grad()
    def act(self, rows: np.ndarray, latents: Tensor) -> tuple[np.ndarray, Events]:
        """Actions [N, A] within [-1, 1], and what happened, for latents [N, L] of the environments `rows`."""
        self._predict()
        acting = np.zeros(self.num_environments, bool)
        acting[rows] = True
        spot = self._locate(rows, latents)

        # Where there is no plan, or it was executed for as long as the mode says, a plan is due. The others play what
        # the mode plays between plans.
        due = acting & self.mode.is_planning & ((self.age < 0) | (self.age >= self.mode.execution_horizon))
        kept = acting & ~due
        may_miss = self.mode.trigger != "never" and bool(kept.any())
        signal = torch.zeros_like(self.queue.value)
        if may_miss or self.signal.has_scale:
            signal = self.signal.measure(spot, self._tensor(acting))
        queue, actions = self._between(kept, spot, signal) if kept.any() else (self.queue, self.actions)

        # A trigger may end more plans. Its signal is on the device: to look at it is the first copy to the host.
        missed, told = np.zeros_like(due), None
        if may_miss:
            told = tell(spot, self.expected, queue, actions, signal)
            missed = kept & (told.signal > np.float32(self.mode.threshold))

        # All that plan do so in one call of the planner, and play the first actions of their plans.
        planned = due | missed
        if planned.any():
            fresh = self.skills.plan(np.flatnonzero(planned), spot.real, self._warm_start())
            queue, told = self._merge(planned, fresh, queue), None
            actions = self._choose(planned, fresh.actions[:, 0], actions)

        told = told or tell(spot, self.expected, queue, actions, signal)
        sources = np.where(planned, Source.PLAN, self._sources(told.signal)).astype(np.int8)
        events = self._events(rows, sources, missed, told)
        self.real, self.queue, self.actions = spot.real, queue, self._choose(acting, actions, self.actions)
        self._advance(acting, sources)
        return told.actions[rows], events

    def record(self, rows: np.ndarray, actions: np.ndarray) -> None:
        """Take in actions [N, A] within [-1, 1] that were executed in the environments `rows` instead of those given.

        Only needed where they are others; the next decision then knows what to expect of them.
        """
        if len(rows):
            self.actions = self.actions.index_copy(0, self._tensor(rows), self._tensor(actions.astype(np.float32)))
            self.has_deviated[rows] = True

    def settle(self) -> None:
        """Predict what is to be expected of the last actions now, where decisions of this mode need not wait for it.

        The next decision does it in any case; called before, it is not in the time that the decision takes.
        """
        if self.is_free_to_predict:
            self._predict()

    @property
    def is_free_to_predict(self) -> bool:
        """Whether what is expected of actions is measured only, and decides nothing."""
        return self.mode.between not in ("corrector", "beam") and self.mode.trigger == "never"

    # --- parts of a decision ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _predict(self) -> None:
        """Predict the consequences of the last actions, and add the last decision to the past."""
        if not (pending := self.is_pending).any():
            return
        if self.past.mask.shape[1]:
            newest = (self.real, self.expected, self.actions, torch.ones_like(self.past.mask[:, 0]))
            pairs = zip(self.past, newest, strict=True)
            self.past = Past(*(self._choose(pending, torch.cat([p[:, 1:], n[:, None]], 1), p) for p, n in pairs))
        self.expected = self._choose(pending, self.skills.next(self.real, self.actions), self.expected)
        if self.mode.between == "beam":
            self.drafts = self._choose(pending, self.skills.draft(self.expected), self.drafts)
        self.is_pending = np.zeros_like(pending)

    def _locate(self, rows: np.ndarray, latents: Tensor) -> Situation:
        """Where the environments are, and where they were expected to be."""
        is_whole = np.array_equal(rows, np.arange(self.num_environments))
        real = latents if is_whole else self.real.index_copy(0, self._tensor(rows), latents)
        if (first := ~self.has_before).any():
            self.expected = self._choose(first, real, self.expected)
        has_latent = self._has_latent()
        planned = self._choose(has_latent, self._at(self.queue.latents, self.position), self.expected)
        return Situation(
            real=real,
            before=self.real,
            has_before=self._tensor(self.has_before),
            planned=planned,
            reference=self._choose(has_latent & ~self.has_deviated, planned, self.expected),
        )

    def _between(self, kept: np.ndarray, spot: Situation, signal: Tensor) -> tuple[Queue, Tensor]:
        """The queue and the actions [E, A] of environments that keep their plan, or have none."""
        between, skills = self.mode.between, self.skills
        if between == "refine":
            refined = skills.refine(np.flatnonzero(kept), spot.real, self.queue.mean, self.queue.std)
            return self._merge(kept, refined, self.queue), refined.actions[:, 0]
        has_action = self._num_remaining() > 0
        planned = self._at(self.queue.actions, self.position)
        if between == "plan" and has_action[kept].all():
            return self.queue, planned
        policy = skills.policy(spot.real)
        planned = self._choose(has_action, planned, policy)
        if between == "corrector":
            return self.queue, self._correct(spot, spot.planned, planned, policy, self.age)
        if between == "beam":
            rest = policy
            if skills.can_correct:
                rest = self._correct(spot, self.expected, self.drafts, policy, np.ones_like(self.age))
            accepted = signal <= ACCEPTED_SHARE * self.mode.threshold
            return self.queue, torch.where(accepted[:, None], self.drafts, rest)
        return self.queue, policy if between == "policy" else planned

    def _correct(self, spot: Situation, predicted: Tensor, planned: Tensor, policy: Tensor, age: np.ndarray) -> Tensor:
        """Corrections of planned actions [E, A]."""
        mask = self.past.mask
        if self.mode.history_length:
            newest = torch.arange(mask.shape[1], device=mask.device) > mask.shape[1] - self.mode.history_length
            mask = mask & newest
        inputs = corrector_inputs(
            spot.real,
            predicted,
            planned,
            age=self._tensor(age.clip(min=0)),
            plan_std=self._at(self.queue.std, self.position),
            policy_mean=policy,
            past=self.past._replace(mask=mask),
        )
        corrected = self.skills.correct(inputs)
        assert corrected.shape == planned.shape, f"corrections of shape {tuple(corrected.shape)}"
        return corrected.clamp(-1, 1)

    def _sources(self, signal: np.ndarray) -> np.ndarray:
        """What the actions between plans come from, [E]."""
        between = self.mode.between
        if between == "plan":
            return np.where(self._num_remaining() > 0, Source.FOLLOW, Source.POLICY)
        if between == "beam":
            rest = Source.CORRECT if self.skills.can_correct else Source.POLICY
            return np.where(signal <= np.float32(ACCEPTED_SHARE * self.mode.threshold), Source.BEAM, rest)
        source = {"policy": Source.POLICY, "corrector": Source.CORRECT, "refine": Source.REFINE}[between]
        return np.full(self.num_environments, source)

    def _events(self, rows: np.ndarray, sources: np.ndarray, missed: np.ndarray, told: Told) -> Events:
        """What happened in the environments `rows`."""
        planned = sources == Source.PLAN
        is_watched = (self.age >= 0) & (~planned | missed) & (self.mode.trigger != "never")
        events = Events(
            rows=rows,
            source=sources,
            age=np.where(planned, 0, self.age),
            arrival_age=self.age.copy(),
            planned=planned,
            missed=missed,
            surprise=np.where(self.has_before, told.surprise, np.nan),
            drift=np.where(self._has_latent(), told.drift, np.nan),
            signal=np.where(is_watched, told.signal, np.nan),
            value=np.where(planned, told.value, np.nan),
            evaluations=self._evaluations(sources),
            milliseconds=np.zeros(self.num_environments),
        )
        return replace(events, **{name: part[rows] for name, part in vars(events).items() if name != "rows"})

    def _evaluations(self, sources: np.ndarray) -> np.ndarray:
        """How many times networks are applied to a latent in this decision, int [E]."""
        costs = self.skills.costs
        table = {Source.PLAN: costs.plan, Source.CORRECT: 2, Source.REFINE: costs.refine, Source.POLICY: 1}
        numbers: np.ndarray = np.array([table.get(source, 0) for source in Source])[sources]
        if self.mode.trigger == "response":
            numbers += 3
        if not self.is_free_to_predict:
            numbers += self.has_before * (1 + (costs.draft if self.mode.between == "beam" else 0))
        return numbers

    def _advance(self, acting: np.ndarray, sources: np.ndarray) -> None:
        """Count the decision: where each environment is in its plan in the next one."""
        starts = acting & ((sources == Source.PLAN) | (sources == Source.REFINE))
        self.has_deviated |= acting & (sources != Source.FOLLOW)
        self.has_deviated &= ~starts
        self.age[acting & (sources == Source.PLAN)] = 0
        self.position[starts] = 0
        has_plan = acting & (self.age >= 0)
        self.age[has_plan] += 1
        self.position[has_plan] += 1
        self.has_before |= acting
        self.is_pending |= acting

    # --- plans and rows -----------------------------------------------------------------------------------------------

    def _has_latent(self) -> np.ndarray:
        """Where the plan predicts the latent of this decision, bool [E]."""
        return (self.age >= 0) & (self.position <= self.skills.horizon)

    def _num_remaining(self) -> np.ndarray:
        """How many actions of each plan are left, int [E]."""
        return np.where(self.age < 0, 0, (self.skills.horizon - self.position).clip(min=0))

    def _warm_start(self) -> Tensor:
        """The means of the plans as of one decision ago [E, H, A], with zeros past their ends and where there is none.

        A plan of which k actions were executed is moved on by k - 1; the planner moves it on by one more.
        """
        steps = (self.position - 1).clip(min=0)
        if not steps.any():
            return self.queue.mean
        horizon = self.skills.horizon
        index = steps[:, None] + np.arange(horizon)
        shifted = self.queue.mean.take_along_dim(self._tensor(index.clip(max=horizon - 1))[..., None], dim=1)
        return torch.where(self._tensor(index < horizon)[..., None], shifted, 0.0)

    def _at(self, sequences: Tensor, steps: np.ndarray) -> Tensor:
        """The entries [E, ...] at steps, int [E], of sequences [E, H, ...], or their last ones."""
        index = self._tensor(steps.clip(max=sequences.shape[1] - 1))
        return sequences.take_along_dim(index[:, None, None], dim=1)[:, 0]

    def _choose(self, chosen: np.ndarray, first: Tensor, second: Tensor) -> Tensor:
        """The first's entries [E, ...] where chosen, bool [E], and the second's elsewhere."""
        if chosen.all():
            return first
        if not chosen.any():
            return second
        return torch.where(self._tensor(chosen).view(-1, *[1] * (first.dim() - 1)), first, second)

    def _merge(self, chosen: np.ndarray, first: Queue, second: Queue) -> Queue:
        return Queue(*(self._choose(chosen, *pair) for pair in zip(first, second, strict=True)))

    def _tensor(self, array: np.ndarray) -> Tensor:
        """A copy of an array on the device."""
        return torch.tensor(array, device=self.skills.device)


def tell(spot: Situation, expected: Tensor, queue: Queue, actions: Tensor, signal: Tensor) -> Told:
    """Copy what the host needs of a decision, all at once: a copy from a GPU waits for everything before it."""
    numbers = [distance(spot.real, expected), distance(spot.real, spot.planned), queue.value, signal]
    host = to_host(torch.cat([actions, torch.stack(numbers, dim=1)], dim=1))
    return Told(host[:, :-4], *host[:, -4:].T)


def to_host(tensor: Tensor) -> np.ndarray:
    """Copy to the host: the one place where that is done."""
    return tensor.cpu().numpy()

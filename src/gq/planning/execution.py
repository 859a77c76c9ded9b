"""The execution of plans, batched over environments: plan, follow, correct, or leave it to the policy.

Knows neither networks nor simulators: what it needs of them are its `Skills`. Every environment has a plan of its own,
in a queue, and an age: the decisions since the plan was made. A decision at age 0 is the plan's own first action and is
never corrected; at later ages the mode says what is played, until the execution horizon or a trigger ends the plan. A
decision calls the planner once at most, and copies to the host once, or twice where a trigger had to be asked first.

Shapes: E environments, N of them that decide, L latent_dim, A action_dim, H horizon of plans, T history_length.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gq.planning.features import Past, corrector_inputs
from gq.planning.interfaces import Counters, Events, Queue, Skills, Source
from gq.planning.modes import Mode
from gq.planning.triggers import Signal, Situation, distance

VALUE_COST = 2  # a value is the policy's action and what Q says about it


class Execution:
    """Execute plans in E environments."""

    def __init__(self, mode: Mode, skills: Skills, num_environments: int) -> None:
        assert mode.problem() is None, mode.problem()
        self.mode, self.skills, self.num_environments = mode, skills, num_environments
        self.counters = Counters(*(np.zeros(num_environments, np.int64) for _ in range(3)))
        self.signal = Signal(mode.trigger, skills, num_environments, skills.device)
        self.age = np.full(num_environments, -1)  # of each plan in the next decision; -1: there is none
        self.position = np.zeros(num_environments, np.int64)  # of the next decision in the queue
        self.has_before = np.zeros(num_environments, bool)  # a decision was taken in this episode
        self.has_deviated = np.zeros(num_environments, bool)  # an action was executed that was not the plan's
        self.is_pending = np.zeros(num_environments, bool)  # the last action's consequence is not yet predicted

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(num_environments, *shape, device=skills.device)

        horizon, width, action_dim, length = skills.horizon, skills.latent_dim, skills.action_dim, skills.history_length
        plans = [zeros(horizon, action_dim) for _ in range(3)]
        gains = zeros(horizon, action_dim, width if mode.between == "feedback" else 0)
        self.queue = Queue(plans[0], plans[1], plans[2], zeros(horizon + 1, width), zeros(), zeros(), gains)
        self.real, self.expected = zeros(width), zeros(width)  # of the last decision, of the next one
        self.actions, self.drafts = zeros(action_dim), zeros(action_dim)  # likewise
        self.past = Past(
            real=zeros(length - 1, width),
            expected=zeros(length - 1, width),
            actions=zeros(length - 1, action_dim),
            mask=zeros(length - 1).bool(),
        )

    def reset(self, rows: np.ndarray) -> None:
        """Begin an episode in the environments `rows`, int [N]: nothing of the one before is left but the counters."""
        self.age[rows], self.position[rows] = -1, 0
        self.has_before[rows] = self.has_deviated[rows] = self.is_pending[rows] = False
        chosen = self._tensor(rows)
        self.signal.reset(chosen)
        for part in (*self.queue, *self.past, self.real, self.expected, self.actions, self.drafts):
            part[chosen] = 0

    @torch.no_grad()
    def act(self, rows: np.ndarray, latents: Tensor) -> tuple[np.ndarray, Events]:
        """Return actions [N, A] within [-1, 1], and what happened, for latents [N, L] of the environments `rows`."""
        self._predict()
        active = np.zeros(self.num_environments, bool)
        active[rows] = True
        is_whole = np.array_equal(rows, np.arange(self.num_environments))
        spot = self._locate(latents if is_whole else self.real.index_copy(0, self._tensor(rows), latents))
        due = active & self.mode.is_planning & ((self.age < 0) | (self.age >= self.mode.execution_horizon))
        going_on, missed = active & ~due, np.zeros_like(due)
        is_watched = self.signal.has_scale or (self.mode.trigger != "never" and bool(going_on.any()))
        signal = self.signal.measure(spot, self._tensor(active)) if is_watched else torch.zeros_like(spot.spread)
        queue, actions = self._between(going_on, spot, signal) if going_on.any() else (self.queue, self.actions)
        host: np.ndarray | None = None
        if is_watched and going_on.any():
            host = to_host(report(spot, self.expected, queue, actions, signal))
            missed = going_on & (host[:, -1] > np.float32(self.mode.threshold))
        planned = due | missed
        if planned.any():
            fresh = self.skills.plan(np.flatnonzero(planned), spot.real, self._warm_start())
            queue = Queue(*(self._choose(planned, new, old) for new, old in zip(fresh, queue, strict=True)))
            actions, host = self._choose(planned, fresh.actions[:, 0], actions), None
        if host is None:
            host = to_host(report(spot, self.expected, queue, actions, signal))
        sources = np.where(planned, Source.PLAN, self._sources(host[:, -1]))
        events = self._events(rows, sources, missed, host)
        self._commit(active, sources, spot.real, queue, actions)
        return host[rows, : self.skills.action_dim], events

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

    @torch.no_grad()
    def _predict(self) -> None:
        """Predict the consequences of the last actions, and let the past take them in."""
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

    def _locate(self, real: Tensor) -> Situation:
        """Return where the environments are, by their latents [E, L]."""
        horizon, none_before, rescores = self.skills.horizon, ~self.has_before, self.mode.trigger == "rescore"
        if none_before.any():
            self.expected = self._choose(none_before, real, self.expected)
        has_latent = (self.age >= 0) & (self.position <= horizon)
        planned = self._choose(has_latent, self._at(self.queue.latents, self.position), self.expected)
        return Situation(
            real=real,
            before=self.real,
            has_before=self._tensor(self.has_before),
            planned=planned,
            reference=self._choose(has_latent & ~self.has_deviated, planned, self.expected),
            remaining=self._shift(self.queue.actions, self.position) if rescores else self.queue.actions,
            lengths=self._num_remaining(),
            spread=self.queue.spread,
        )

    def _between(self, going_on: np.ndarray, spot: Situation, signal: Tensor) -> tuple[Queue, Tensor]:
        """Return the queue and actions [E, A] for environments that go on with a plan, or have none."""
        between, skills = self.mode.between, self.skills
        if between == "refine":
            refined = skills.refine(np.flatnonzero(going_on), spot.real, self.queue.mean, self.queue.std)
            parts = zip(refined, self.queue, strict=True)
            return Queue(*(self._choose(going_on, new, old) for new, old in parts)), refined.actions[:, 0]
        has_action = self._num_remaining() > 0
        planned = self._at(self.queue.actions, self.position)
        if between == "feedback":
            gains = self._at(self.queue.gains.flatten(2), self.position).view(*planned.shape, -1)
            planned = (planned + (gains @ (spot.real - spot.planned)[..., None]).squeeze(-1)).clamp(-1, 1)
        if between in ("plan", "feedback") and has_action[going_on].all():
            return self.queue, planned
        policy = skills.policy(spot.real)
        planned = self._choose(has_action, planned, policy)
        if between == "corrector":
            return self.queue, self._correct(spot, spot.planned, planned, policy, self.age)
        if between == "beam":
            rest = policy
            if skills.can_correct:
                rest = self._correct(spot, self.expected, self.drafts, policy, np.ones_like(self.age))
            is_accepted = signal <= self.mode.accept_threshold
            return self.queue, torch.where(is_accepted[:, None], self.drafts, rest)
        return self.queue, policy if between == "policy" else planned

    def _correct(self, spot: Situation, predicted: Tensor, planned: Tensor, policy: Tensor, age: np.ndarray) -> Tensor:
        """Return corrections of planned actions [E, A]."""
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
        """Return what the actions between plans come from, int8 [E]."""
        between = self.mode.between
        if between in ("plan", "feedback"):
            follows = Source.FOLLOW if between == "plan" else Source.CORRECT
            return np.where(self._num_remaining() > 0, follows, Source.POLICY).astype(np.int8)
        if between == "beam":
            rest = Source.CORRECT if self.skills.can_correct else Source.POLICY
            return np.where(signal <= np.float32(self.mode.accept_threshold), Source.BEAM, rest).astype(np.int8)
        source = {"policy": Source.POLICY, "corrector": Source.CORRECT, "refine": Source.REFINE}[between]
        return np.full(self.num_environments, source, np.int8)

    def _events(self, rows: np.ndarray, sources: np.ndarray, missed: np.ndarray, host: np.ndarray) -> Events:
        """Return what happened in the environments `rows`, and count it."""
        planned = sources == Source.PLAN
        surprise, drift, value, signal = host[:, -4:].T
        has_latent = (self.age >= 0) & (self.position <= self.skills.horizon)
        is_watched = (self.age >= 0) & (~planned | missed) & (self.mode.trigger != "never")
        evaluations = self._evaluations(sources)
        self.counters.decisions[rows] += 1
        self.counters.planner_calls[rows] += planned[rows]
        self.counters.evaluations[rows] += evaluations[rows]
        events = Events(
            rows=rows,
            source=sources,
            age=np.where(planned, 0, self.age),
            arrival_age=self.age.copy(),
            planned=planned,
            missed=missed,
            surprise=np.where(self.has_before, surprise, np.nan),
            drift=np.where(has_latent, drift, np.nan),
            signal=np.where(is_watched, signal, np.nan),
            value=np.where(planned, value, np.nan),
            evaluations=evaluations,
            milliseconds=np.zeros(self.num_environments),
        )
        return replace(events, **{name: part[rows] for name, part in vars(events).items() if name != "rows"})

    def _evaluations(self, sources: np.ndarray) -> np.ndarray:
        """Return how many times networks are applied to a latent in the present decision, int [E]."""
        costs, mode = self.skills.costs, self.mode
        correct = 0 if mode.between == "feedback" else 2
        table = {Source.PLAN: costs.plan, Source.CORRECT: correct, Source.REFINE: costs.refine, Source.POLICY: 1}
        numbers: np.ndarray = np.array([table.get(source, 0) for source in Source])[sources]
        if mode.trigger == "value":
            numbers += 3 * VALUE_COST
        if mode.trigger == "response":
            numbers += 3
        if mode.trigger == "rescore":
            numbers += 4 * VALUE_COST + 2 * self._num_remaining()
        if not self.is_free_to_predict:
            numbers += self.has_before * (1 + (costs.draft if mode.between == "beam" else 0))
        return numbers

    def _commit(self, active: np.ndarray, sources: np.ndarray, real: Tensor, queue: Queue, actions: Tensor) -> None:
        """Keep what was decided."""
        self.real, self.queue, self.actions = real, queue, self._choose(active, actions, self.actions)
        starts = active & ((sources == Source.PLAN) | (sources == Source.REFINE))
        self.has_deviated |= active & (sources != Source.FOLLOW)
        self.has_deviated &= ~starts
        self.age[active & (sources == Source.PLAN)] = 0
        self.position[starts] = 0
        going_on = active & (self.age >= 0)
        self.age[going_on] += 1
        self.position[going_on] += 1
        self.has_before |= active
        self.is_pending |= active

    def _num_remaining(self) -> np.ndarray:
        """Return how many actions of each plan are left, int [E]."""
        return np.where(self.age < 0, 0, (self.skills.horizon - self.position).clip(min=0))

    def _warm_start(self) -> Tensor:
        """Return the means of the plans as of one decision ago [E, H, A]; zeros where there is none."""
        return self._shift(self.queue.mean, (self.position - 1).clip(min=0))

    def _shift(self, sequences: Tensor, steps: np.ndarray) -> Tensor:
        """Return sequences [E, H, A] from so many steps on, int [E], with zeros behind their ends."""
        if not steps.any():
            return sequences
        horizon = sequences.shape[1]
        index = steps[:, None] + np.arange(horizon)
        shifted = sequences.take_along_dim(self._tensor(index.clip(max=horizon - 1))[..., None], dim=1)
        return torch.where(self._tensor(index < horizon)[..., None], shifted, 0.0)

    def _at(self, sequences: Tensor, steps: np.ndarray) -> Tensor:
        """Return the entries [E, ...] at so many steps, int [E], of sequences [E, H, ...], or their last ones."""
        index = self._tensor(steps.clip(max=sequences.shape[1] - 1))
        return sequences.take_along_dim(index[:, None, None], dim=1)[:, 0]

    def _choose(self, chosen: np.ndarray, first: Tensor, second: Tensor) -> Tensor:
        """Return the first's entries [E, ...] where chosen, bool [E], and the second's elsewhere."""
        if chosen.all():
            return first
        if not chosen.any():
            return second
        return torch.where(self._tensor(chosen).view(-1, *[1] * (first.dim() - 1)), first, second)

    def _tensor(self, array: np.ndarray) -> Tensor:
        """Return a copy of an array on the device."""
        return torch.tensor(array, device=self.skills.device)


def report(spot: Situation, expected: Tensor, queue: Queue, actions: Tensor, signal: Tensor) -> Tensor:
    """Return all that the host is to know in one tensor [E, A + 4]: actions, surprise, drift, value, signal."""
    numbers = [distance(spot.real, expected), distance(spot.real, spot.planned), queue.value, signal]
    return torch.cat([actions, torch.stack(numbers, dim=1)], dim=1)


def to_host(tensor: Tensor) -> np.ndarray:
    """Copy to the host: the one place where that is done."""
    return tensor.cpu().numpy()

"""The execution of plans on a toy linear model: when it plans, what it plays, what it expects, what it forgets."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gq.models.corrector import CorrectorInputs
from gq.planning import execution as execution_module
from gq.planning.execution import Execution
from gq.planning.interfaces import Costs, Events, Queue, Source
from gq.planning.modes import Mode, resolve_mode
from gq.planning.triggers import Signal, Situation

Array = np.ndarray


def identity(inputs: CorrectorInputs) -> Tensor:
    return inputs.plan_action


@dataclass
class Toy:
    """A linear model: latents decay and are pushed by actions; plans push back, each with noise of its own."""

    seeds: list[int]
    latent_dim: int = 4
    action_dim: int = 2
    horizon: int = 3
    history_length: int = 4
    corrector: Callable[[CorrectorInputs], Tensor] | None = None
    scale: float = 1.0  # of all latents
    warm_starts: list[Tensor] = field(default_factory=list)
    plan_rows: list[list[int]] = field(default_factory=list)
    refined: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    asked: list[CorrectorInputs] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device, self.costs = torch.device("cpu"), Costs(plan=100, refine=10, draft=5)
        self.can_correct = self.corrector is not None
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self.push = torch.linspace(-1, 1, self.action_dim * self.latent_dim).view(self.action_dim, self.latent_dim)

    def plan(self, rows: Array, latents: Tensor, warm_start: Tensor) -> Queue:
        self.warm_starts.append(warm_start.clone())
        self.plan_rows.append(rows.tolist())
        return self._queue(rows, latents, warm_start)

    def refine(self, rows: Array, latents: Tensor, warm_start: Tensor, std: Tensor) -> Queue:
        self.refined.append((warm_start.clone(), std.clone()))
        return self._queue(rows, latents, warm_start)

    def next(self, latents: Tensor, actions: Tensor) -> Tensor:
        return 0.9 * latents + self.scale * (actions @ self.push)

    def policy(self, latents: Tensor) -> Tensor:
        return torch.tanh(-0.3 * latents[:, :1] / self.scale).expand(-1, self.action_dim)

    def intended(self, latents: Tensor) -> Tensor:
        return self.policy(latents)

    def correct(self, inputs: CorrectorInputs) -> Tensor:
        assert self.corrector is not None
        self.asked.append(inputs)
        return self.corrector(inputs)

    def draft(self, latents: Tensor) -> Tensor:
        return 0.5 * self.policy(latents)

    def _queue(self, rows: Array, latents: Tensor, warm_start: Tensor) -> Queue:
        noise = torch.zeros(len(latents), self.horizon, self.action_dim)
        for row in rows:
            noise[row] = torch.randn(self.horizon, self.action_dim, generator=self.generators[row])
        shifted = torch.cat([warm_start[:, 1:], torch.zeros_like(warm_start[:, :1])], dim=1)
        actions = torch.tanh(0.5 * shifted + 0.3 * noise - 0.1 * latents[:, None, :1] / self.scale)
        path = [latents]
        for step in range(self.horizon):
            path.append(self.next(path[-1], actions[:, step]))
        value = -path[-1].square().sum(dim=-1)
        return Queue(actions, actions, actions.abs() + 0.1, torch.stack(path, dim=1), value)


@dataclass
class Walk:
    """What happened in a walk."""

    toy: Toy
    execution: Execution
    actions: Array  # [T, E, A]
    latents: Array  # [T, E, L]
    events: list[Events]

    def stacked(self, name: str) -> Array:
        return np.stack([getattr(events, name) for events in self.events])

    def total(self, name: str) -> list[int]:
        """Return the sum over all decisions, of each environment."""
        return list(self.stacked(name).sum(axis=0))


Disturb = Callable[[int, Tensor], Tensor]


def nothing(_: int, latents: Tensor) -> Tensor:
    return latents


def start_of(toy: Toy, num: int) -> Tensor:
    return toy.scale * torch.linspace(-1, 1, num * toy.latent_dim).view(num, toy.latent_dim)


def walk(
    mode: Mode | str,
    num_steps: int = 20,
    *,
    seeds: tuple[int, ...] = (0, 1),
    disturb: Disturb = nothing,
    execution: Execution | None = None,
    **fields: Any,
) -> Walk:
    """Act in the toy's own dynamics, which a disturbance may change, and record what was done."""
    mode = resolve_mode(mode) if isinstance(mode, str) else mode
    fields = {"corrector": identity if mode.between == "corrector" else None, **fields}
    execution = execution or Execution(mode, Toy(list(seeds), **fields), len(seeds))
    toy = execution.skills
    assert isinstance(toy, Toy)
    rows, latents = np.arange(len(seeds)), start_of(toy, len(seeds))
    actions, places, events = [], [], []
    for step in range(num_steps):
        places.append(latents.numpy())
        chosen, happened = execution.act(rows, latents)
        execution.settle()
        actions.append(chosen)
        events.append(happened)
        latents = disturb(step, toy.next(latents, torch.from_numpy(chosen)))
    return Walk(toy, execution, np.stack(actions), np.stack(places), events)


def jolt(size: float) -> Disturb:
    """Return a disturbance that changes every latent in every step, differently each time."""
    return lambda step, latents: (
        latents + size * torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
    )


def spec(corrector: Callable[[CorrectorInputs], Tensor], num_executed: int = 3, **fields: Any) -> Walk:
    return walk(f"spec{num_executed}+never", corrector=corrector, **fields)


# --- when it plans ----------------------------------------------------------------------------------------------------


def test_a_horizon_of_one_is_planning_at_every_decision_to_the_bit() -> None:
    toy, rows = Toy([3, 4]), np.arange(2)
    latents, warm_start, expected = start_of(toy, 2), torch.zeros(2, 3, 2), []
    for step in range(20):
        queue = toy.plan(rows, latents, warm_start)
        warm_start = queue.mean
        expected.append(queue.actions[:, 0].numpy())
        latents = jolt(0.1)(step, toy.next(latents, queue.actions[:, 0]))
    for mode in ("baseline", "naive1", "hybrid1", "spec1", "refine1", "naive1+response"):
        walked = walk(mode, seeds=(3, 4), disturb=jolt(0.1))
        assert np.array_equal(walked.actions, np.stack(expected)), mode
        assert (walked.stacked("source") == Source.PLAN).all()


@pytest.mark.parametrize("mode", ["naive{}", "hybrid{}", "spec{}+never", "refine{}", "naive{}+raw@999"])
@pytest.mark.parametrize("horizon", [1, 2, 3, 6, 12])
def test_without_surprises_the_planner_is_called_every_so_many_decisions(mode: str, horizon: int) -> None:
    for num_steps in (20, 24):
        walked = walk(mode.format(horizon), num_steps)
        calls = math.ceil(num_steps / horizon)
        assert walked.total("planned") == [calls, calls]
        assert len(walked.toy.plan_rows) == calls, "both environments plan in one call"
        assert not walked.stacked("missed").any()


def test_the_policy_alone_never_plans() -> None:
    walked = walk("policy", disturb=jolt(1.0))
    assert walked.toy.plan_rows == []
    assert (walked.stacked("source") == Source.POLICY).all()
    assert (walked.stacked("age") == -1).all()
    assert walked.total("evaluations") == [20, 20]
    assert np.isfinite(walked.stacked("surprise")[1:]).all()
    assert np.isnan(walked.stacked("drift")).all()


def test_naive_plans_pay_no_attention_to_where_they_are() -> None:
    walked = walk("naive3", 21, disturb=jolt(1e6))
    assert walked.total("planned") == [7, 7]
    assert (walked.stacked("surprise")[1:] > 1e5).all()
    assert walked.stacked("source")[:4, 0].tolist() == [Source.PLAN, Source.FOLLOW, Source.FOLLOW, Source.PLAN]
    assert walked.stacked("age")[:4, 0].tolist() == [0, 1, 2, 0]
    assert walked.stacked("arrival_age")[:4, 0].tolist() == [-1, 1, 2, 3]


@pytest.mark.parametrize("mode", ["naive6+raw@1", "naive6+response@3"])
def test_a_disturbance_makes_triggers_plan_and_its_absence_does_not(mode: str) -> None:
    def once(step: int, latents: Tensor) -> Tensor:
        return latents + 50 if step == 7 else latents

    calm, shaken = walk(mode, 12), walk(mode, 12, disturb=once)
    assert calm.stacked("planned")[:, 0].nonzero()[0].tolist() == [0, 6]
    assert shaken.stacked("planned")[:, 0].nonzero()[0].tolist() == [0, 6, 8]
    assert shaken.stacked("missed")[:, 0].nonzero()[0].tolist() == [8]
    assert shaken.stacked("arrival_age")[8, 0] == 2, "the plan before was accepted twice"
    assert len(shaken.toy.plan_rows) == 3, "a miss costs one plan"
    assert shaken.total("planned") == [3, 3]
    assert shaken.stacked("signal")[8, 0] > resolve_mode(mode).threshold
    assert np.array_equal(calm.actions[:8], shaken.actions[:8])


def test_only_the_environment_that_was_disturbed_plans() -> None:
    def one(step: int, latents: Tensor) -> Tensor:
        return latents + torch.tensor([[0.0], [50.0]]) if step == 1 else latents

    walked = walk("naive6+raw@1", 6, disturb=one)
    assert walked.toy.plan_rows == [[0, 1], [1]]
    assert np.array_equal(walked.actions[:, 0], walk("naive6+raw@1", 6).actions[:, 0])


def test_a_forced_miss_plays_the_first_action_of_the_plan_in_the_queue() -> None:
    walked = walk("naive6+raw@0", 10, disturb=jolt(1.0))
    queue, real = walked.execution.queue, torch.from_numpy(walked.latents[-1])
    assert (walked.stacked("missed")[1:]).all()
    assert len(walked.toy.plan_rows) == 10
    executed = torch.from_numpy(walked.actions[-1])
    assert torch.equal(queue.actions[:, 0], executed)
    assert torch.equal(queue.latents[:, 1], walked.toy.next(real, executed))


def test_a_response_gap_matters_only_if_the_policy_would_act_differently() -> None:
    def elsewhere(_: int, latents: Tensor) -> Tensor:
        return torch.cat([latents[:, :1], latents[:, 1:] + 5], dim=1)  # the toy's policy sees the first entry alone

    def shifted(_: int, latents: Tensor) -> Tensor:
        return latents + 0.1

    assert walk("naive3+response@0.01", 6, disturb=elsewhere).total("planned") == [2, 2]
    assert walk("naive3+raw@0.01", 6, disturb=elsewhere).total("planned") == [6, 6]
    assert walk("naive3+response@0.01", 6, disturb=shifted).total("planned") == [6, 6]


def test_the_raw_trigger_depends_on_the_number_of_latents_and_the_response_not_on_their_size() -> None:
    torch.manual_seed(0)
    real, before, planned = (torch.randn(3, 8) for _ in range(3))
    signal = Signal("raw", Toy([0]).intended, 3, torch.device("cpu"))
    found = []
    for num in (1, 11):
        parts = [torch.cat([part] * num, dim=1) for part in (real, before, planned)]
        situation = Situation(parts[0], parts[1], torch.ones(3).bool(), parts[2], parts[2])
        found.append(signal.measure(situation, torch.ones(3).bool()))
    assert (found[1] > 3 * found[0]).all()
    shaken = [
        walk("naive6+response@0.9", scale=scale, disturb=jolt(0.5 * scale)).stacked("planned") for scale in (1.0, 64.0)
    ]
    assert np.array_equal(*shaken)
    assert 8 < shaken[0].sum() < 40


# --- what it plays ----------------------------------------------------------------------------------------------------


def test_a_plan_that_is_followed_is_played_as_it_is() -> None:
    walked = walk("naive3", 9, disturb=jolt(1.0))
    toy = Toy([0, 1])
    for first in (0, 3, 6):
        queue = toy.plan(np.arange(2), torch.from_numpy(walked.latents[first]), walked.toy.warm_starts[first // 3])
        assert np.array_equal(walked.actions[first : first + 3], queue.actions.numpy().swapaxes(0, 1))


@pytest.mark.parametrize(("mode", "horizon"), [("naive6", 3), ("naive12", 5), ("hybrid6", 3), ("hybrid2", 3)])
def test_behind_a_plan_and_between_plans_the_policy_acts(mode: str, horizon: int) -> None:
    walked = walk(mode, 12, horizon=horizon, disturb=jolt(0.3))
    sources, ages = walked.stacked("source"), walked.stacked("age")
    is_policy = (ages >= horizon) if mode.startswith("naive") else (ages > 0)
    assert np.array_equal(sources == Source.POLICY, is_policy)
    assert is_policy.any()
    for step, row in np.argwhere(is_policy):
        expected = walked.toy.policy(torch.from_numpy(walked.latents[step]))[row]
        assert np.array_equal(walked.actions[step, row], expected.numpy())


def test_the_first_action_of_a_plan_is_never_corrected() -> None:
    walked = spec(lambda inputs: torch.full_like(inputs.plan_action, 0.125), disturb=jolt(1.0))
    naive = walk("naive3", 1)
    assert np.array_equal(walked.actions[0], naive.actions[0])
    planned = walked.stacked("planned")
    assert planned[::3].all()
    assert (walked.actions[~planned] == 0.125).all()
    assert (walked.actions[planned] != 0.125).all()
    assert all((inputs.age > 0).all() for inputs in walked.toy.asked)


@pytest.mark.parametrize("horizon", [1, 2, 3, 6])
def test_a_corrector_that_changes_nothing_leaves_plans_and_the_policy_behind_them_as_they_are(horizon: int) -> None:
    corrected = spec(identity, 6, disturb=jolt(0.5), horizon=horizon)
    followed = walk("naive6", disturb=jolt(0.5), horizon=horizon)
    assert np.array_equal(corrected.actions, followed.actions)
    assert set(np.unique(corrected.stacked("source"))) == {Source.PLAN, Source.CORRECT}


def test_corrections_are_within_limits_and_of_the_right_shape() -> None:
    walked = spec(lambda inputs: inputs.plan_action + 1.9, disturb=jolt(1.0))
    assert np.abs(walked.actions).max() == 1
    with pytest.raises(AssertionError, match="corrections of shape"):
        spec(lambda inputs: inputs.plan_action[:1])


def test_refining_starts_from_the_last_plan_and_its_deviations() -> None:
    walked = walk("refine6", 6, disturb=jolt(0.2))
    assert walked.stacked("source")[:, 0].tolist() == [Source.PLAN] + [Source.REFINE] * 5
    assert walked.stacked("age")[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    queue = Toy([0, 1]).plan(np.arange(2), start_of(walked.toy, 2), torch.zeros(2, 3, 2))
    assert torch.equal(walked.toy.refined[0][0], queue.mean)
    assert torch.equal(walked.toy.refined[0][1], queue.std)
    assert torch.equal(walked.execution.queue.actions[:, 0], torch.from_numpy(walked.actions[-1]))
    assert walked.total("planned") == [1, 1]
    assert walked.total("evaluations") == [150, 150]


def test_drafts_are_accepted_corrected_or_given_up_by_how_far_off_they_are() -> None:
    def pushed(step: int, latents: Tensor) -> Tensor:
        return latents + torch.tensor([0.0, 0.05, 0.2, 5.0][step % 4]) / 2  # a distance of that, in four dimensions

    policy = walk("beam@0.25", 9, disturb=pushed)
    kinds = {Source.BEAM: "b", Source.POLICY: "p", Source.PLAN: "P", Source.CORRECT: "c"}

    def letters(walked: Walk) -> str:
        return "".join(kinds[Source(source)] for source in walked.stacked("source")[:, 0])

    assert letters(policy) == "PbbpPbbpP"
    corrected = walk("beam@0.25", 9, disturb=pushed, corrector=lambda inputs: 0.9 * inputs.plan_action)
    assert letters(corrected) == "PbbcPbbcP"
    before = torch.from_numpy(corrected.latents[2])
    draft = corrected.toy.draft(corrected.toy.next(before, torch.from_numpy(corrected.actions[2])))
    torch.testing.assert_close(torch.from_numpy(corrected.actions[3]), 0.9 * draft)
    assert policy.total("planned") == [3, 3]


# --- what it expects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["naive6", "hybrid3", "spec6+never", "refine3", "beam", "policy", "naive6+raw"])
def test_in_an_exact_model_nothing_is_surprising_whatever_is_played(mode: str) -> None:
    def wild(inputs: CorrectorInputs) -> Tensor:
        return torch.sin(37 * inputs.plan_action + 11 * inputs.real[:, :1])

    walked = walk(mode, corrector=wild if "spec" in mode else None)
    surprise = walked.stacked("surprise")
    assert np.isnan(surprise[0]).all()
    assert np.abs(surprise[1:]).max() == 0


def test_a_correction_is_no_error_of_the_model_but_leaves_the_plan() -> None:
    walked = walk("spec6@0.001", 12, corrector=lambda inputs: -inputs.plan_action)
    assert walked.total("planned") == [2, 2], "the trigger sees the model's errors"
    drift, ages = walked.stacked("drift"), walked.stacked("arrival_age")
    assert np.nanmax(drift[ages == 1]) < 1e-6
    assert (drift[(ages >= 2) & (ages <= 3)] > 0.01).all()
    assert np.isnan(drift[ages > 3]).all(), "the plan of three decisions predicts three latents"


def test_drift_is_from_the_plan_and_surprise_from_the_last_decision() -> None:
    walked = walk("naive3", 3, disturb=lambda step, latents: latents + 0.5)
    assert walked.stacked("surprise")[1:, 0] == pytest.approx([1.0, 1.0])
    assert walked.stacked("drift")[1:, 0] == pytest.approx([1.0, 1.9])


def test_other_actions_than_the_given_ones_are_expected_to_do_something_else() -> None:
    toy = Toy([0])
    execution = Execution(resolve_mode("naive3"), toy, 1)
    rows, latents = np.arange(1), start_of(toy, 1)
    execution.act(rows, latents)
    executed = np.array([[0.7, -0.7]])
    execution.record(rows, executed)
    execution.settle()
    _, events = execution.act(rows, toy.next(latents, torch.tensor(executed, dtype=torch.float32)))
    assert events.surprise[0] == pytest.approx(0)
    assert events.drift[0] > 0.1


def test_a_corrector_sees_the_plan_the_policy_and_the_past() -> None:
    def half(inputs: CorrectorInputs) -> Tensor:
        return 0.5 * inputs.plan_action

    walked = spec(half, 6, num_steps=6, disturb=jolt(0.2), horizon=3)
    toy, real = walked.toy, torch.from_numpy(walked.latents)
    queue = Toy([0, 1]).plan(np.arange(2), real[0], torch.zeros(2, 3, 2))
    actions = torch.from_numpy(walked.actions)
    expected = torch.stack([real[0], *(toy.next(real[t], actions[t]) for t in range(5))])
    for step, inputs in enumerate(toy.asked, start=1):
        assert torch.equal(inputs.real, real[step])
        assert inputs.age.tolist() == [step, step]
        torch.testing.assert_close(inputs.predicted, queue.latents[:, step] if step <= 3 else expected[step])
        policy = toy.policy(real[step])
        assert torch.equal(inputs.policy_mean, policy)
        assert torch.equal(inputs.plan_action, queue.actions[:, step] if step < 3 else policy)
        assert torch.equal(inputs.plan_std, queue.std[:, min(step, 2)])
        assert inputs.history.shape == (2, 4, 14)
        assert inputs.mask[0].tolist() == [step + slot >= 3 for slot in range(4)]
        for slot in range(4):
            seen, at = inputs.history[:, slot], step - 3 + slot
            if at < 0:
                assert not seen.any()
            elif at == step:
                difference = inputs.real - inputs.predicted
                assert torch.equal(
                    seen, torch.cat([inputs.real, inputs.predicted, difference, inputs.plan_action], dim=1)
                )
            else:
                whole = torch.cat([real[at], expected[at], real[at] - expected[at], actions[at]], dim=1)
                torch.testing.assert_close(seen, whole)


def test_a_shorter_history_hides_what_is_older() -> None:
    mode = resolve_mode("spec6+never", history_length=2)
    asked = walk(mode, 6, disturb=jolt(0.2)).toy.asked
    assert [inputs.mask[0].tolist() for inputs in asked[2:]] == [[False, False, True, True]] * 3
    assert not asked[-1].history[:, :2].any()
    assert not walk("spec6+never", 6, history_length=1).toy.asked[-1].mask[:, :-1].numel()


# --- what it keeps and forgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["naive3", "hybrid6", "spec2+never", "naive12", "naive6+raw@0.4"])
def test_a_warm_start_is_the_last_plan_moved_on_by_what_was_executed(mode: str) -> None:
    walked = walk(mode, 20, seeds=(5,), horizon=4, disturb=jolt(0.1))
    planned = walked.stacked("planned")[:, 0].nonzero()[0]
    assert len(planned) > 1
    toy = Toy([5], horizon=4)
    assert not walked.toy.warm_starts[0].any()
    for number, (step, following) in enumerate(pairwise(planned)):
        mean = toy.plan(np.arange(1), torch.from_numpy(walked.latents[step]), walked.toy.warm_starts[number]).mean
        moved = following - step - 1  # one decision more is the planner's own
        expected = torch.cat([mean[:, moved:], torch.zeros(1, min(moved, 4), 2)], dim=1)[:, :4]
        assert torch.equal(walked.toy.warm_starts[number + 1], expected)


@pytest.mark.parametrize("mode", ["naive6", "spec6+response", "refine3", "naive6+response@2", "hybrid3", "beam"])
def test_nothing_crosses_a_reset(mode: str) -> None:
    def damp(inputs: CorrectorInputs) -> Tensor:
        return inputs.plan_action - 0.1 * inputs.history.mean(dim=(1, 2))[:, None]

    fields: dict[str, Any] = {"corrector": damp if "spec" in mode else None, "disturb": jolt(0.3)}
    fresh = walk(mode, 10, **fields)
    used = walk(mode, 7, **fields).execution
    assert isinstance(used.skills, Toy)
    used.skills.generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    used.reset(np.arange(2))
    for part in (*used.queue, *used.past):
        assert not part.any()
    again = walk(mode, 10, execution=used, **fields)
    assert np.array_equal(again.actions, fresh.actions)
    for name in ("source", "age", "arrival_age", "surprise", "drift", "signal"):
        np.testing.assert_array_equal(again.stacked(name), fresh.stacked(name))


def test_a_reset_of_one_environment_leaves_the_others_alone() -> None:
    whole = walk("spec6+response@9", 12, disturb=jolt(0.2))
    toy = Toy([0, 1], corrector=identity)
    execution = Execution(resolve_mode("spec6+response@9"), toy, 2)
    rows = np.arange(2)
    for step in range(12):
        if step == 5:
            execution.reset(np.array([1]))
        actions, events = execution.act(rows, torch.from_numpy(whole.latents[step]))
        assert np.array_equal(actions[0], whole.actions[step, 0])
        if step == 5:
            assert events.planned[1]
            assert np.isnan(events.surprise[1])
            assert events.arrival_age[1] == -1
    assert not toy.warm_starts[toy.plan_rows.index([1])][1].any()


def test_an_environment_acts_the_same_alone_and_while_others_pause() -> None:
    mode = resolve_mode("naive6+raw@0.5")
    alone = walk(mode, 12, seeds=(1,), disturb=jolt(0.2))
    toy = Toy([0, 1, 2])
    execution = Execution(mode, toy, 3)
    for step in range(12):
        rows = np.array([[0, 1, 2], [1], [1, 2]][step % 3])
        latents = torch.from_numpy(alone.latents[step]).expand(len(rows), -1) + torch.from_numpy(rows - 1.0)[:, None]
        actions, events = execution.act(rows, latents.float())
        execution.settle()
        place = rows.tolist().index(1)
        assert np.array_equal(actions[place], alone.actions[step, 0])
        for name in ("source", "age", "missed", "surprise", "drift", "evaluations"):
            np.testing.assert_array_equal(getattr(events, name)[place], getattr(alone.events[step], name)[0])


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_evaluations_are_those_of_what_was_used() -> None:
    assert walk("baseline", 6).total("evaluations") == [600, 600]
    assert walk("naive3", 6).total("evaluations") == [200, 200]
    assert walk("hybrid3", 6).total("evaluations") == [204, 204]
    assert walk("spec3+never", 6).total("evaluations") == [200 + 4 * 2 + 5, 200 + 4 * 2 + 5]


class HostCopies(TorchDispatchMode):
    """Count what looks at the data."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(
            name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
        ):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["naive3", "hybrid6", "spec6", "refine3", "beam", "naive6+response", "policy"])
def test_a_decision_looks_at_the_device_once_or_twice_where_a_trigger_let_it_plan(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []
    original = execution_module.to_host
    monkeypatch.setattr(execution_module, "to_host", lambda tensor: copies.append(1) or original(tensor))
    toy = Toy([0, 1], corrector=identity)
    execution = Execution(resolve_mode(mode), toy, 2)
    latents = start_of(toy, 2)
    for step in range(14):
        copies.clear()
        with HostCopies() as hidden:
            actions, events = execution.act(np.arange(2), latents)
        assert hidden.count == 0
        is_asked = np.isfinite(events.signal).any()
        assert len(copies) == 1 + (is_asked and events.planned.any())
        latents = jolt(0.4)(step, toy.next(latents, torch.from_numpy(actions)))


# --- everything together ----------------------------------------------------------------------------------------------

BASES = [
    "naive{}",
    "hybrid{}",
    "spec{}",
    "refine{}",
    "naive{}+raw@0.3",
    "naive{}+response",
    "spec{}+response@0.2",
    "hybrid{}+raw@0.7",
    "beam",
    "baseline",
    "policy",
]


@settings(max_examples=80, deadline=None)
@given(
    base=st.sampled_from(BASES),
    execution_horizon=st.sampled_from([1, 2, 3, 6, 12]),
    plan_horizon=st.sampled_from([1, 2, 3, 5, 6]),
    action_dim=st.sampled_from([1, 3]),
    size=st.sampled_from([0.0, 0.1, 3.0]),
    history_length=st.sampled_from([1, 4]),
)
def test_every_mode_runs_with_every_horizon(
    base: str, execution_horizon: int, plan_horizon: int, action_dim: int, size: float, history_length: int
) -> None:
    mode = resolve_mode(base.format(execution_horizon))

    def shift(inputs: CorrectorInputs) -> Tensor:
        return inputs.plan_action + 0.3 * torch.tanh(inputs.real[:, :1])

    walked = walk(
        mode,
        20,
        disturb=jolt(size),
        horizon=plan_horizon,
        action_dim=action_dim,
        history_length=history_length,
        corrector=shift if mode.between == "corrector" else None,
    )
    planned, source, age = (walked.stacked(name) for name in ("planned", "source", "age"))
    arrival_age, missed = walked.stacked("arrival_age"), walked.stacked("missed")
    assert walked.actions.shape == (20, 2, action_dim)
    assert np.abs(walked.actions).max() <= 1
    assert np.array_equal(planned, source == Source.PLAN)
    assert np.array_equal(planned, age == 0)
    assert (age < max(mode.execution_horizon, 1)).all()
    due = (arrival_age < 0) | (arrival_age >= mode.execution_horizon)
    assert np.array_equal(planned, (due & mode.is_planning) | missed)
    assert not (due & missed).any()
    assert not missed.any() or mode.trigger != "never"
    assert np.array_equal(arrival_age[1:], np.where(age[:-1] < 0, -1, age[:-1] + 1))
    assert len(walked.toy.plan_rows) <= 20
    assert [len(rows) for rows in walked.toy.plan_rows] == [n for n in planned.sum(axis=1).tolist() if n]
    assert np.isfinite(walked.stacked("surprise")[1:]).all()
    if size == 0 and mode.between != "beam":
        assert walked.stacked("surprise")[1:].max() == 0


def test_events_are_of_the_environments_that_acted_and_can_be_replaced() -> None:
    toy = Toy([0, 1, 2])
    execution = Execution(resolve_mode("naive3"), toy, 3)
    _, events = execution.act(np.array([2, 0]), start_of(toy, 3)[[2, 0]])
    assert events.rows.tolist() == [2, 0]
    assert {len(part) for part in vars(events).values()} == {2}
    assert replace(events, milliseconds=np.ones(2)).milliseconds.sum() == 2

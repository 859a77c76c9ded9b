"""Acting with a real, tiny world model: today's bits, all modes, times, what is executed instead, refining, scores."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gq.envs.tasks import Task, box
from gq.errors import UsageError
from gq.models.corrector import Corrector, CorrectorConfig
from gq.models.world_config import PlannerConfig, WorldModelConfig
from gq.models.world_model import WorldModel
from gq.planning.acting import MAX_BLOCK_SIZE, PlanningPolicy, generator_of
from gq.planning.interfaces import Source
from gq.planning.modes import resolve_mode
from gq.planning.mppi import Planner
from gq.planning.skills import NetworkSkills, beam_search, policy_value

OBSERVATION_DIM, ACTION_DIM, LATENT_DIM = 5, 2, 16
SHAPE = WorldModelConfig(encoder_dim=16, mlp_dim=24, latent_dim=LATENT_DIM, num_q=2)
SMALL = PlannerConfig(iterations=2, num_samples=16, num_policy_samples=4, num_elites=4)
BOUND = 0.4
TASK = Task("made up", OBSERVATION_DIM, **box(ACTION_DIM, BOUND))
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def make_planner(*, episodic: bool = False, action_dim: int = ACTION_DIM, **changes: Any) -> Planner:
    """Return a planner whose model is not indifferent."""
    torch.manual_seed(0)
    model = WorldModel(SHAPE, observation_dim=OBSERVATION_DIM, action_dim=action_dim, episodic=episodic).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Planner(model, replace(SMALL, **changes), discount=0.95)


@pytest.fixture(scope="module")
def planner() -> Planner:
    return make_planner()


def make_corrector(arch: Any = "two-tower", action_dim: int = ACTION_DIM, *, trained: bool = False) -> Corrector:
    torch.manual_seed(1)
    shape = CorrectorConfig(latent_dim=LATENT_DIM, action_dim=action_dim, arch=arch, hidden_dim=8)
    corrector = Corrector(shape).eval()
    if trained:
        torch.nn.init.normal_(corrector.head.weight)
    return corrector


def observations_at(step: int, rows: np.ndarray) -> np.ndarray:
    """Return observations [N, S] made up from the step and the rows."""
    numbers = 0.3 * step + rows[:, None] + np.arange(OBSERVATION_DIM)
    return np.sin(numbers).astype(np.float32)


def walk(policy: PlanningPolicy, num_steps: int = 8, num_episodes: int = 2) -> np.ndarray:
    """Return the actions [T, E, A] for made-up observations."""
    rows, actions = np.arange(num_episodes), []
    policy.reset(np.zeros(num_episodes), [7 + row for row in range(num_episodes)])
    for step in range(num_steps):
        actions.append(policy.act(rows, observations_at(step, rows)))
        policy.record(rows, actions[-1], np.zeros(num_episodes))
    return np.stack(actions)


def stacked(policy: PlanningPolicy, name: str) -> np.ndarray:
    return np.stack([getattr(events, name) for events in policy.events])


# --- as it always was -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plan", "baseline", "naive1", "hybrid1"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_planning_at_every_decision_is_the_planner_in_a_loop_to_the_bit(
    planner: Planner, mode: str, stochastic: bool
) -> None:
    policy = PlanningPolicy(planner, task=TASK, mode=mode, stochastic=stochastic)
    actions = walk(policy, 6)
    assert policy.block_size == 1
    for row in range(2):
        generator, warm_start = generator_of(7 + row, CPU), torch.zeros(1, 3, ACTION_DIM)
        for step in range(6):
            observations = torch.from_numpy(observations_at(step, np.array([row])))
            with torch.no_grad():
                latents = planner.model.encode(observations)
            plan = planner.plan(latents, planner.draw_each([generator]), warm_start)
            warm_start = plan.mean
            expected = (plan.elite if stochastic else plan.mean)[:, 0].numpy() * BOUND
            assert np.array_equal(actions[step, row], expected[0])
    value = plan.elite_value if stochastic else plan.mean_value
    assert policy.planned_values[1] == float(value)


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_policy_alone_is_its_network_in_blocks_to_the_bit(planner: Planner, stochastic: bool) -> None:
    policy = PlanningPolicy(planner, task=TASK, mode="policy", stochastic=stochastic)
    actions = walk(policy, 4, 3)
    assert policy.block_size == 3
    generators = [generator_of(7 + row, CPU) for row in range(3)]
    for step in range(4):
        draws = torch.stack([torch.randn(ACTION_DIM, generator=each) for each in generators])
        with torch.no_grad():
            latents = planner.model.encode(torch.from_numpy(observations_at(step, np.arange(3))))
            sample = planner.model.policy(latents, draws)
        assert np.array_equal(actions[step], (sample.action if stochastic else sample.mean).numpy() * BOUND)
    assert np.isnan(policy.planned_values).all()


# --- all modes --------------------------------------------------------------------------------------------------------

ALL = [
    *("naive3", "naive6h2", "hybrid6", "spec3", "spec6h3", "spec6+response@0.1", "refine3", "refine6h5", "beam"),
    *("naive6+raw@0.1", "naive6+response@0.5", "hybrid6+response@0.1", "baselineh5", "beam@0.5"),
]


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("action_dim", [1, 2])
def test_every_mode_acts_with_a_world_model(mode: str, action_dim: int) -> None:
    planner = make_planner(action_dim=action_dim, episodic=True)
    corrector = make_corrector("temporal", action_dim, trained=True)
    task = Task("made up", OBSERVATION_DIM, **box(action_dim, BOUND))
    policy = PlanningPolicy(planner, task=task, mode=mode, corrector=corrector)
    actions = walk(policy)
    assert actions.shape == (8, 2, action_dim)
    assert np.abs(actions).max() <= np.float32(BOUND)
    assert np.isfinite(actions).all()
    assert np.array_equal(actions, walk(policy)), "the same seeds, the same actions"
    calls = stacked(policy, "planned").sum(axis=0)
    assert (stacked(policy, "evaluations") >= 0).all()
    assert (stacked(policy, "milliseconds") > 0).all()
    assert np.isfinite(stacked(policy, "surprise")[1:]).all()
    settings = resolve_mode(mode)
    if settings.trigger == "never" and settings.is_planning:
        assert calls.tolist() == [-(-8 // settings.execution_horizon)] * 2


def test_a_plan_horizon_of_its_own_leaves_the_planner_as_it_was(planner: Planner) -> None:
    policy = PlanningPolicy(planner, task=TASK, mode="naive6h6")
    walk(policy)
    assert set(stacked(policy, "source")[1:6].flatten()) == {Source.FOLLOW}
    assert policy.planner.config == replace(SMALL, horizon=6)
    assert planner.config == SMALL
    short = PlanningPolicy(planner, task=TASK, mode="naive6")
    walk(short)
    assert stacked(short, "source")[:7, 0].tolist() == [
        *(Source.PLAN, Source.FOLLOW, Source.FOLLOW),
        *(Source.POLICY, Source.POLICY, Source.POLICY, Source.PLAN),
    ]
    assert short.planner is planner


@pytest.mark.parametrize("arch", ["two-tower", "temporal"])
@pytest.mark.parametrize("horizon", ["", "h6"])
def test_an_untrained_corrector_is_the_plan_to_the_bit_and_a_trained_one_is_not(
    planner: Planner, arch: str, horizon: str
) -> None:
    naive = walk(PlanningPolicy(planner, task=TASK, mode="naive6" + horizon))
    mode = f"spec6{horizon}+never"
    untrained = PlanningPolicy(planner, task=TASK, mode=mode, corrector=make_corrector(arch))
    assert np.array_equal(walk(untrained), naive)
    trained = PlanningPolicy(planner, task=TASK, mode=mode, corrector=make_corrector(arch, trained=True))
    corrected = walk(trained)
    assert np.array_equal(corrected[0], naive[0])
    is_corrected = stacked(trained, "source") == Source.CORRECT
    assert is_corrected.sum() == 2 * (8 - 2)
    assert (corrected[is_corrected] != naive[is_corrected]).any(axis=1).all()


def test_modes_that_correct_need_a_corrector(planner: Planner) -> None:
    with pytest.raises(UsageError, match="spec3 needs a corrector") as caught:
        PlanningPolicy(planner, task=TASK, mode="spec3")
    assert "gq distill" in caught.value.hint
    with pytest.raises(UsageError, match="unknown mode 'spek3'"):
        PlanningPolicy(planner, task=TASK, mode="spek3")


@pytest.mark.parametrize("mode", ["naive3", "hybrid6", "spec6+response@0.1", "naive6+response@0.1", "beam", "refine3"])
def test_bits_do_not_depend_on_which_other_episodes_run(planner: Planner, mode: str) -> None:
    """In blocks as on a GPU."""
    policies = [
        PlanningPolicy(planner, task=TASK, mode=mode, corrector=make_corrector(trained=True), block_size=4)
        for _ in range(2)
    ]
    found: list[list[np.ndarray]] = []
    for policy, others in zip(policies, ([0, 1, 2, 4, 5], []), strict=True):
        policy.reset(np.zeros(6), range(6))
        actions = []
        for step in range(10):
            rows = np.array([*[row for row in others if row < 3], 3, *[row for row in others if row > 3]])
            if step > 6:
                rows = np.array([3])
            actions.append(policy.act(rows, observations_at(step, rows))[rows.tolist().index(3)])
            policy.record(rows, np.stack([policy.given[row] for row in rows]), np.zeros(len(rows)))
        found.append(actions)
    assert np.array_equal(*found)


def test_events_are_in_the_order_of_the_rows_over_blocks(planner: Planner) -> None:
    policy = PlanningPolicy(planner, task=TASK, mode="naive3", block_size=2)
    policy.reset(np.zeros(5), range(5))
    rows = np.array([4, 0, 3])
    policy.act(rows, observations_at(0, rows))
    (events,) = policy.events
    assert events.rows.tolist() == [4, 0, 3]
    assert np.array_equal(events.value, policy.planned_values[rows].astype(np.float32))
    assert len(np.unique(events.value)) == 3
    assert np.isnan(policy.planned_values[[1, 2]]).all()
    policy.reset(np.zeros(1), [0])
    assert policy.events == []
    assert MAX_BLOCK_SIZE == 16


def test_looking_on_or_not_changes_no_action(planner: Planner) -> None:
    for mode in ("plan", "naive6", "spec6+response@0.5", "beam"):
        policy = PlanningPolicy(planner, task=TASK, mode=mode, corrector=make_corrector(trained=True))
        recorded = walk(policy)
        policy.reset(np.zeros(2), [7, 8])
        rows = np.arange(2)
        assert np.array_equal([policy.act(rows, observations_at(step, rows)) for step in range(8)], recorded)


def test_what_is_executed_instead_is_what_consequences_are_expected_of(planner: Planner) -> None:
    policy = PlanningPolicy(planner, task=TASK, mode="naive3")
    rows = np.array([0])
    policy.reset(np.zeros(1), [0])
    policy.act(rows, observations_at(0, rows))
    policy.record(rows, np.array([[0.1, -0.4]]), np.zeros(1))
    policy.act(rows, observations_at(1, rows))
    with torch.no_grad():
        before, after = (planner.model.encode(torch.from_numpy(observations_at(step, rows))) for step in (0, 1))
        expected = planner.model.next(before, torch.tensor([[0.25, -1.0]]))
    assert policy.events[1].surprise[0] == pytest.approx(float((after - expected).norm()), rel=1e-5)
    assert policy.events[1].drift[0] != pytest.approx(policy.events[1].surprise[0], rel=1e-3)


# --- what the networks are asked --------------------------------------------------------------------------------------


def latents_of(planner: Planner, num: int = 2) -> Tensor:
    with torch.no_grad():
        return planner.model.encode(torch.randn(num, OBSERVATION_DIM, generator=torch.Generator().manual_seed(1)))


def skills_of(planner: Planner, num: int = 2) -> NetworkSkills:
    refiner = planner.resized(iterations=1, num_samples=8)
    return NetworkSkills(planner, refiner, [generator_of(seed, CPU) for seed in range(num)])


@torch.no_grad()
def test_refining_is_one_iteration_around_the_last_plan() -> None:
    planner = make_planner(std_min=1e-3, num_samples=64, num_elites=2)
    skills, latents = skills_of(planner), latents_of(planner)
    mean = torch.full((2, 3, ACTION_DIM), 0.2)
    assert skills.refiner.num_iterations == 1
    assert skills.refiner.config.num_samples == 8
    narrow = skills.refine(np.arange(2), latents, mean, torch.full_like(mean, 1e-4))
    candidates = planner.resized(iterations=1, num_samples=8)
    again = candidates.plan(
        latents,
        candidates.draw_each([generator_of(seed, CPU) for seed in range(2)]),
        mean,
        torch.full_like(mean, 1e-4),
    )
    assert torch.equal(narrow.mean, again.mean)
    sampled = again.elites[:, :2]  # the last decision's deviation is the largest again
    near = (sampled - 0.2).abs().amax(dim=(1, 3)) < 1e-3
    wide = candidates.plan(latents, candidates.draw_each([generator_of(seed, CPU) for seed in range(2)]), mean)
    assert near.any()
    assert not ((wide.elites[:, :2] - 0.2).abs().amax(dim=(1, 3)) < 1e-3).any()


def test_a_planner_of_another_size_keeps_the_shares_and_itself() -> None:
    planner = make_planner(num_samples=512, num_policy_samples=24, num_elites=64, iterations=6)
    assert planner.resized() is planner
    assert planner.resized(horizon=3) is planner
    small = planner.resized(iterations=3, num_samples=128)
    assert small.config == replace(planner.config, iterations=3, num_samples=128, num_policy_samples=6, num_elites=16)
    assert (small.discount, small.dtype, small.model) == (planner.discount, planner.dtype, planner.model)
    assert planner.resized(num_samples=2).config.num_policy_samples == 1
    assert planner.num_evaluations == 2 * 3 * 24 + 6 * (3 * 488 + 2 * 512) + 2 * 5
    assert planner.num_evaluations / small.num_evaluations == pytest.approx(8, rel=0.02)


@torch.no_grad()
def test_drafts_are_the_best_of_many_plans_and_not_always_the_first() -> None:
    planner = make_planner()
    model, latents = planner.model, latents_of(planner, 8)
    draws = torch.randn(8, 3, 4, 4, ACTION_DIM, generator=torch.Generator().manual_seed(0))
    plans = beam_search(model, latents, draws, discount=planner.discount)
    assert plans.shape == (8, 4, 3, ACTION_DIM)
    scores, ends = torch.zeros(8, 4), latents[:, None].expand(-1, 4, -1)
    for step in range(3):
        scores = scores + planner.discount**step * model.reward(ends, plans[:, :, step])
        ends = model.next(ends, plans[:, :, step])
    scores = scores + planner.discount**3 * policy_value(model, ends)
    assert (scores.diff(dim=1) <= 1e-4).all(), "best first"
    noiseless = [model.policy(latents, torch.zeros(8, ACTION_DIM)).mean]
    is_first = (plans[:, 0, 0] - noiseless[0]).abs().amax(dim=1) < 1e-6
    assert 0 < is_first.sum() < 8, "which first action is the best depends on the latent"
    alone = beam_search(model, latents[3:4], draws[3:4], discount=planner.discount)
    torch.testing.assert_close(alone[0], plans[3])

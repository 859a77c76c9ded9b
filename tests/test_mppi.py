"""The planner: its plans against recorded ones, purity, batches, warm start, limits, terminations, precision."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gq.algos.captured import Program
from gq.models.world_config import WorldModelConfig
from gq.models.world_model import WorldModel
from gq.planning.mppi import Draws, Plan, Planner, PlannerConfig

SHAPE = WorldModelConfig(encoder_dim=16, mlp_dim=24, latent_dim=16, num_q=5)
SMALL = PlannerConfig(iterations=3, num_samples=32, num_policy_samples=4, num_elites=8, termination="cut")
DISCOUNT = 0.99
NETWORKS = {
    "_encoder.state": "encoder",
    "_dynamics": "dynamics",
    "_reward": "reward_head",
    "_termination": "termination_head",
    "_pi": "policy_head",
    "_Qs.params": "q_heads.layers",
    "_target_Qs_params": "target_q_heads.layers",
}


def our_name(name: str) -> str:
    """Return the parameter of our model for an upstream one."""
    network, layer, field = re.fullmatch(r"(.+)\.(\d+)\.((?:ln\.)?\w+)", name).groups()
    ours = NETWORKS[network]
    return f"{ours}.{layer}.{field.replace('ln.', 'norm_' if ours.endswith('layers') else 'norm.')}"


def recorded_model(arrays: dict[str, Tensor], *, episodic: bool) -> WorldModel:
    model = WorldModel(SHAPE, observation_dim=7, action_dim=3, episodic=episodic)
    model.load_state_dict({our_name(name[2:]): value for name, value in arrays.items() if name.startswith("w/")})
    return model.eval()


def recorded_draws(call: dict[str, Tensor]) -> Draws:
    return Draws(
        policy=call["pi_eps"][None],
        samples=call["sample_eps"][None],
        terminal=call["terminal_eps"][None],
        heads=call["qidx"][None],
        choice=call["gumbel_exp"][None],
        exploration=call.get("final_eps", torch.zeros(3))[None],
    )


def read_arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        meta = json.loads(str(arrays["meta/json"]))
        assert (meta["discount"], meta["temperature"], meta["horizon"]) == (DISCOUNT, SMALL.temperature, SMALL.horizon)
        return {name: torch.as_tensor(arrays[name]) for name in arrays.files if name != "meta/json"}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("file", "name"),
    [
        *(("tdmpc2_plan", name) for name in ("eval_t0", "eval_warm", "train_t0", "train_warm")),
        ("tdmpc2_episodic", "eval_t0"),
    ],
)
def test_a_plan_with_recorded_draws_is_the_recorded_one(all_fixtures: Path, file: str, name: str) -> None:
    arrays = read_arrays(all_fixtures / f"{file}.npz")
    call = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
    model = recorded_model(arrays, episodic=file == "tdmpc2_episodic")
    planner = Planner(model, SMALL, discount=DISCOUNT)
    with torch.no_grad():
        latents = model.encode(call["obs"][None])
    warm_start = None if call["t0"] else call["prev_mean_in"][None]
    plan = planner.plan(latents, recorded_draws(call), warm_start)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(latents, call["z"], **close)
    torch.testing.assert_close(plan.elite_values[0], call["elite_value"][-1, :, 0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(plan.elite_weights[0], call["score"][-1, :, 0], **close)
    torch.testing.assert_close(plan.elites[0].transpose(0, 1), call["elite_actions"].transpose(0, 1), **close)
    torch.testing.assert_close(plan.mean[0], call["mean"][-1], **close)
    torch.testing.assert_close(plan.mean[0], call["prev_mean_out"], **close)
    torch.testing.assert_close(plan.std[0], call["std"][-1], **close)
    torch.testing.assert_close(plan.elite[0], call["elite_actions"][:, call["choice"]], **close)
    action = plan.elite[:, 0] if call["eval_mode"] else plan.explored
    torch.testing.assert_close(action[0], call["action"], **close)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    """A model that is not indifferent, with a termination network that sometimes fires."""
    torch.manual_seed(0)
    model = WorldModel(SHAPE, observation_dim=7, action_dim=3, episodic=True).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def latents(model: WorldModel) -> Tensor:
    with torch.no_grad():
        return model.encode(torch.randn(4, 7, generator=seeded(1)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_of(values: Draws | Plan, row: int) -> list[Tensor]:
    return [value[row : row + 1] for value in values]


def test_plans_of_several_environments_are_those_of_each_alone(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    together = planner.plan(latents, planner.draw_each([seeded(seed) for seed in range(4)]))
    for row in range(4):
        alone = planner.plan(latents[row : row + 1], planner.draw(seeded(row)))
        for expected, got in zip(alone, one_of(together, row), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_one_environments_latent_and_draws_do_not_touch_the_others(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    draws = planner.draw(seeded(0), 4)
    before = planner.plan(latents, draws)
    changed = latents.clone()
    changed[2] = torch.nan
    after = planner.plan(changed, draws)
    for row in (0, 1, 3):
        assert all(map(torch.equal, one_of(before, row), one_of(after, row)))


def test_a_plan_is_a_pure_function(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    draws, warm_start = planner.draw(seeded(3), 4), torch.rand(4, 3, 3, generator=seeded(4))
    arguments = [latents, warm_start, *draws]
    copies = [argument.clone() for argument in arguments]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    global_state = torch.get_rng_state()
    first, second = (planner.plan(latents, draws, warm_start) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, arguments, copies))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(map(torch.equal, planner.draw(seeded(3), 4), draws))
    assert not torch.equal(planner.draw(seeded(5), 4).samples, draws.samples)
    assert not any(value.requires_grad for value in first)


def test_the_warm_start_moves_on_by_one_decision_and_ends_in_zero(model: WorldModel, latents: Tensor) -> None:
    config = PlannerConfig(iterations=1, num_samples=9, num_policy_samples=1, num_elites=9, std_min=1e-6, std_max=1e-6)
    planner = Planner(model, config, discount=DISCOUNT)
    draws = planner.draw(seeded(0), 4)
    previous = torch.linspace(-0.9, 0.9, 36).view(4, 3, 3)
    elites = planner.plan(latents, draws, previous).elites
    moved = torch.cat([previous[:, 1:], torch.zeros(4, 1, 3)], dim=1)
    near = ((elites - moved[:, :, None]).abs().amax(dim=(1, 3)) < 1e-4).sum(dim=1)
    assert near.tolist() == [8] * 4  # all but the policy's


def test_zeros_in_the_warm_start_begin_an_episode(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    draws = planner.draw(seeded(0), 4)
    without = planner.plan(latents, draws)
    previous = torch.rand(4, 3, 3, generator=seeded(1))
    previous[1] = 0
    mixed = planner.plan(latents, draws, previous)
    assert torch.equal(mixed.mean[1], without.mean[1])
    assert not torch.equal(mixed.mean[0], without.mean[0])


def test_everything_stays_in_the_box_however_large_the_draws(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    draws = planner.draw(seeded(0), 4)
    large = draws._replace(samples=draws.samples * 50, exploration=draws.exploration * 50)
    plan = planner.plan(latents, large, torch.ones(4, 3, 3))
    for actions in (plan.mean, plan.elite, plan.elites, plan.explored):
        assert actions.abs().max() <= 1
    assert (plan.explored.abs() == 1).any()
    assert plan.std.min() >= SMALL.std_min
    assert plan.std.max() <= SMALL.std_max


def test_actions_are_the_mean_an_elite_or_an_elite_with_noise(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    draws = planner.draw(seeded(0), 4)
    plan = planner.plan(latents, draws)
    noisy = (plan.elite[:, 0] + plan.std[:, 0] * draws.exploration).clamp(-1, 1)
    torch.testing.assert_close(plan.explored, noisy)
    torch.testing.assert_close(plan.mean, (plan.elite_weights[:, None, :, None] * plan.elites).sum(dim=2))
    torch.testing.assert_close(plan.elite_weights, torch.softmax(SMALL.temperature * plan.elite_values, dim=1))
    assert (plan.elite_values.diff(dim=1) <= 0).all()


def test_elites_are_chosen_as_often_as_they_weigh(model: WorldModel, latents: Tensor) -> None:
    config = PlannerConfig(iterations=1, num_samples=8, num_policy_samples=1, num_elites=4)
    planner = Planner(model, config, discount=DISCOUNT)
    same = planner.draw(seeded(0), 1)
    draws = Draws(*(part.expand(1500, *part.shape[1:]) for part in same))
    plan = planner.plan(latents[:1].expand(1500, -1), draws._replace(choice=planner.draw(seeded(1), 1500).choice))
    chosen = (plan.elites == plan.elite[:, :, None]).all(dim=3).all(dim=1).float().mean(dim=0)
    torch.testing.assert_close(chosen, plan.elite_weights[0], rtol=0, atol=0.05)


def test_predicted_latents_and_values_are_those_of_the_model(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    draws = planner.draw(seeded(0), 4)
    plan = planner.plan(latents, draws)
    for actions, predicted, values in (
        (plan.mean, plan.mean_latents, plan.mean_value),
        (plan.elite, plan.elite_latents, plan.elite_value),
    ):
        for row in range(4):
            current, value, weight = latents[row], 0.0, 1.0
            torch.testing.assert_close(predicted[row, 0], current)
            with torch.no_grad():
                for step in range(SMALL.horizon):
                    value += weight * model.reward(current, actions[row, step])
                    current = model.next(current, actions[row, step])
                    torch.testing.assert_close(predicted[row, step + 1], current, rtol=1e-4, atol=1e-5)
                    weight *= DISCOUNT * (torch.sigmoid(model.termination_logits(current)) <= 0.5).item()
                action = model.policy(current, torch.zeros(3)).action
                value += weight * model.q_values(current[None], action[None], draws.heads[row, -1]).mean()
            torch.testing.assert_close(values[row], value, rtol=1e-3, atol=1e-3)


def test_a_soft_termination_weighs_by_probability_and_a_cut_drops_everything(
    model: WorldModel, latents: Tensor
) -> None:
    plans = {}
    for kind in ("soft", "cut"):
        for logit in (-50.0, 0.1, 50.0):
            ends = WorldModel(SHAPE, observation_dim=7, action_dim=3, episodic=True).eval()
            ends.load_state_dict(model.state_dict())
            torch.nn.init.zeros_(ends.termination_head[-1].weight)
            torch.nn.init.constant_(ends.termination_head[-1].bias, logit)
            config = PlannerConfig(iterations=1, num_samples=8, num_policy_samples=1, num_elites=8, termination=kind)
            planner = Planner(ends, config, discount=DISCOUNT)
            plans[kind, logit] = planner.plan(latents, planner.draw(seeded(0), 4)).elite_values
    assert torch.equal(plans["soft", -50.0], plans["cut", -50.0])  # never ends
    assert torch.equal(plans["soft", 50.0], plans["cut", 50.0])  # ends at once: the first reward is all
    assert torch.equal(plans["cut", 0.1], plans["cut", 50.0])
    assert not torch.allclose(plans["soft", 0.1], plans["soft", 50.0], rtol=0.01)


def test_values_that_are_not_numbers_count_as_zero(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    draws = planner.draw(seeded(0), 4)
    terminal = draws.terminal.clone()
    terminal[:, -1, :20] = torch.nan
    plan = planner.plan(latents, draws._replace(terminal=terminal))
    assert all(torch.isfinite(part).all() for part in plan)
    assert not torch.equal(plan.mean, planner.plan(latents, draws).mean)


def test_the_planner_finds_the_action_that_the_reward_asks_for() -> None:
    """With a model whose reward falls with the distance from one action, plans go there: closer with each iteration."""
    goal = torch.tensor([0.6, -0.4, 0.1])
    torch.manual_seed(0)
    shape = WorldModelConfig(encoder_dim=16, mlp_dim=64, latent_dim=16, num_q=2)
    model = WorldModel(shape, observation_dim=7, action_dim=3)
    optimizer = torch.optim.Adam(model.reward_head.parameters(), lr=3e-3)
    for _ in range(200):
        actions = torch.rand(128, 3) * 2 - 1
        starts = torch.softmax(torch.randn(128, 2, 8), dim=-1).flatten(1)
        wanted = 5 - 5 * (actions - goal).square().sum(dim=-1)
        loss = (model.reward(starts, actions) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    distances = []
    for iterations in (1, 6):
        config = PlannerConfig(iterations=iterations, num_samples=256, num_policy_samples=8, num_elites=32)
        planner = Planner(model.eval(), config, discount=DISCOUNT)
        with torch.no_grad():
            plan = planner.plan(model.encode(torch.ones(1, 7)), planner.draw(seeded(0)))
        distances.append((plan.mean[0, 0] - goal).abs().max().item())
    assert distances[1] < 0.15
    assert distances[1] < distances[0]


def test_bfloat16_chooses_actions_that_are_worth_as_much(model: WorldModel, latents: Tensor) -> None:
    exact, rounded = (Planner(model, SMALL, discount=DISCOUNT, bfloat16=flag) for flag in (False, True))
    draws = exact.draw(seeded(0), 4)
    first, second = exact.plan(latents, draws), rounded.plan(latents, draws)
    assert all(part.dtype == torch.float32 for part in second)
    torch.testing.assert_close(second.mean_value, first.mean_value, rtol=0.1, atol=0.1)
    assert not torch.equal(second.elite_values, first.elite_values)


def test_a_plan_is_one_graph_without_a_look_at_the_data(model: WorldModel, latents: Tensor) -> None:
    config = PlannerConfig(iterations=1, horizon=2, num_samples=8, num_policy_samples=2, num_elites=4)
    planner = Planner(model, config, discount=DISCOUNT)
    draws, warm_start = planner.draw(seeded(0), 4), torch.zeros(4, 2, 3)
    with torch.no_grad():
        graph = torch.compile(planner._plan, fullgraph=True, dynamic=False, backend="eager")
        for expected, got in zip(planner.plan(latents, draws), graph(latents, warm_start, draws), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_more_kinds_of_plans_are_compiled_than_torch_allows_of_itself(
    model: WorldModel, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_whole = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_whole(function))
    for horizon in range(1, 11):
        config = PlannerConfig(iterations=1, horizon=horizon, num_samples=8, num_policy_samples=2, num_elites=4)
        planner = Planner(model, config, discount=DISCOUNT, program=Program(True, False, "test"))
        assert planner.plan(latents, planner.draw(seeded(0), 4)).mean.shape == (4, horizon, 3)


def test_the_task_of_a_multi_task_model_counts() -> None:
    shape = WorldModelConfig(encoder_dim=16, mlp_dim=24, latent_dim=16, num_q=2, num_tasks=3, task_dim=5)
    torch.manual_seed(0)
    model = WorldModel(shape, observation_dim=7, action_dim=3).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    planner = Planner(model, SMALL, discount=DISCOUNT)
    draws, plans = planner.draw(seeded(0)), []
    for task in (0, 2):
        model.task = task
        with torch.no_grad():
            start = model.encode(torch.ones(1, 7))
            plans.append(planner.plan(start, draws))
            expected = model.next(start, plans[-1].mean[:, 0])
        torch.testing.assert_close(plans[-1].mean_latents[:, 1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(plans[0].mean, plans[1].mean)


def test_many_action_dimensions_get_two_more_iterations_and_the_configuration_stays() -> None:
    config = PlannerConfig()
    assert [config.num_iterations(dims) for dims in (1, 19, 20, 38)] == [6, 6, 8, 8]
    assert PlannerConfig(iterations=3).num_iterations(38) == 3
    assert config == PlannerConfig()


def test_heads_are_two_different_ones_of_all(model: WorldModel) -> None:
    heads = Planner(model, SMALL, discount=DISCOUNT).draw(seeded(0), 200).heads
    assert heads.shape == (200, 3, 2)
    assert (heads[..., 0] != heads[..., 1]).all()
    counts = heads.flatten().bincount(minlength=5) / heads.numel()
    torch.testing.assert_close(counts, torch.full((5,), 0.2), rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_policy_samples": 512}, "num_policy_samples"),
        ({"num_elites": 513}, "num_elites"),
        ({"std_min": 3.0}, "std_min"),
    ],
)
def test_an_impossible_configuration_is_named(changes: dict, named: str) -> None:
    assert named in (PlannerConfig(**changes).problem() or "")
    assert PlannerConfig().problem() is None


def test_a_warm_start_or_draws_of_another_shape_are_refused(model: WorldModel, latents: Tensor) -> None:
    planner = Planner(model, SMALL, discount=DISCOUNT)
    with pytest.raises(AssertionError, match="warm start of shape"):
        planner.plan(latents, planner.draw(seeded(0), 4), torch.zeros(1, 3, 3))
    with pytest.raises(AssertionError, match="draws for 3 of 4"):
        planner.plan(latents, planner.draw(seeded(0), 3))

"""The update of TD-MPC2: against recorded arrays, what each of its parts may change, and what it survives."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gq.algos import tdmpc2
from gq.algos.tdmpc2 import (
    RunningScale,
    SequenceBatch,
    TDMPC2Learner,
    UpdateDraws,
    draw,
    policy_loss,
    td_target,
    unroll,
    value_spread,
    world_losses,
)
from gq.models.world_config import WorldUpdateConfig
from gq.models.world_model import WorldModel
from test_parity import Recorded, assert_close
from test_world_model import ACTION_DIM, OBSERVATION_DIM, TINY, OriginalWorld, make_model, original_name

HORIZON, BATCH, DISCOUNT = 3, 6, 0.9
BFLOAT16: Callable[[], AbstractContextManager] = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
UPDATE = WorldUpdateConfig()


def make_batch(seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    return SequenceBatch(
        torch.randn(HORIZON + 1, BATCH, OBSERVATION_DIM, generator=generator),
        torch.rand(HORIZON, BATCH, ACTION_DIM, generator=generator) * 2 - 1,
        torch.rand(HORIZON, BATCH, generator=generator),
        (torch.rand(HORIZON, BATCH, generator=generator) < 0.3).float(),
    )


def make_learner(
    model: WorldModel | None = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    average: Callable[[Sequence[Tensor]], None] | None = None,
    **changes: float,
) -> TDMPC2Learner:
    model = model or make_model(replace(TINY, dropout=0.1), episodic=True)
    return TDMPC2Learner(model, replace(UPDATE, **changes), discount=DISCOUNT, autocast=autocast, average=average)


def snapshot(learner: TDMPC2Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def changed_networks(learner: TDMPC2Learner, before: dict[str, Tensor]) -> set[str]:
    after = learner.model.state_dict()
    return {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}


NETWORKS = {
    "encoder",
    "dynamics",
    "reward_head",
    "termination_head",
    "policy_head",
    "q_heads",
    "target_q_heads",
}

# --- recorded arrays --------------------------------------------------------------------------------------------------

FILES = ["tdmpc2_model.npz", "tdmpc2_episodic.npz"]
both = pytest.mark.parametrize("file", FILES)


@pytest.fixture
def original(fixtures: Path, file: str) -> OriginalWorld:
    return OriginalWorld(fixtures, file)


def recorded_batch(recorded: Recorded, prefix: str) -> SequenceBatch:
    observations, actions = recorded[f"{prefix}/obs"], recorded[f"{prefix}/action"]
    return SequenceBatch(
        observations, actions, recorded[f"{prefix}/reward"][..., 0], recorded[f"{prefix}/terminated"][..., 0]
    )


def recorded_draws(recorded: Recorded, prefix: str) -> UpdateDraws:
    return UpdateDraws(*(recorded[f"{prefix}/{name}"] for name in ("eps_td", "qidx_td", "eps_pi", "qidx_pi")))


def recorded_learner(original: OriginalWorld, **changes: float) -> TDMPC2Learner:
    meta = original.recorded.meta
    config = WorldUpdateConfig(
        horizon=meta["horizon"],
        consistency_coefficient=meta["consistency_coef"],
        reward_coefficient=meta["reward_coef"],
        value_coefficient=meta["value_coef"],
        termination_coefficient=meta["termination_coef"],
        entropy_coefficient=meta["entropy_coef"],
        temporal_decay=meta["rho"],
        learning_rate=meta["lr"],
        encoder_learning_rate_scale=meta["enc_lr_scale"],
        gradient_clip=meta["grad_clip_norm"],
        target_rate=meta["tau"],
    )
    changed = replace(config, **changes)
    return TDMPC2Learner(original.model, changed, discount=meta["discount"], autocast=nullcontext)


NAMES_OF_METRICS = {
    "consistency_loss": "consistency_loss",
    "reward_loss": "reward_loss",
    "value_loss": "value_loss",
    "termination_loss": "termination_loss",
    "loss": "total_loss",
    "gradient_norm": "grad_norm",
    "policy_loss": "pi_loss",
    "policy_gradient_norm": "pi_grad_norm",
    "value_scale": "pi_scale",
}


def assert_update_matches(original: OriginalWorld, learner: TDMPC2Learner, prefix: str, batch: str = "") -> None:
    """Take the recorded update `prefix`, on the recorded batch `batch` if it has none of its own, and compare."""
    recorded = original.recorded
    metrics = learner.update(recorded_batch(recorded, batch or prefix), recorded_draws(recorded, prefix))
    for ours, theirs in NAMES_OF_METRICS.items():
        if ours in metrics:
            assert_close(metrics[ours], recorded[f"{prefix}/info/{theirs}"])
    assert_close(metrics["policy_scaled_entropy"], recorded[f"{prefix}/info/pi_scaled_entropy"], atol=1e-4)
    gaps = []
    after = recorded.under(f"{prefix}/after/")
    for name, value in original.model.state_dict().items():
        if recorded.is_cut and original_name(name) not in after:
            continue  # the repository keeps the small ones
        gaps.append((value - after[original_name(name)]).abs().flatten())
        assert gaps[-1].max() < 2e-5, name
    assert (torch.cat(gaps) < 1e-6).float().mean() > 0.999


def assert_updates_match(original: OriginalWorld, learner: TDMPC2Learner) -> int:
    """Take all recorded updates, one after the other; return how many there are."""
    prefixes = [prefix for prefix in ("upd0", "upd1") if original.recorded.has(f"{prefix}/obs")]
    for prefix in prefixes:
        assert_update_matches(original, learner, prefix)
    return len(prefixes)


@pytest.mark.parity
@both
def test_updates_match_the_original(original: OriginalWorld, file: str) -> None:
    assert assert_updates_match(original, recorded_learner(original)) == 1 + (file == "tdmpc2_model.npz")


@pytest.mark.parity
@pytest.mark.parametrize("file", ["tdmpc2_model.npz"])
def test_a_clipped_update_matches_the_original(original: OriginalWorld) -> None:
    clip = original.recorded.meta["clip_case_grad_clip_norm"]
    assert_update_matches(original, recorded_learner(original, gradient_clip=clip), "clip", "upd0")


@pytest.mark.parity
@both
def test_latents_targets_and_gradients_match_the_original(original: OriginalWorld) -> None:
    recorded, learner = original.recorded, recorded_learner(original)
    model, batch, draws = original.model, recorded_batch(recorded, "upd0"), recorded_draws(recorded, "upd0")
    with torch.no_grad():
        next_latents = model.encode(batch.observations[1:])
    assert_close(next_latents, recorded["upd0/next_z"])
    target = td_target(model, batch, next_latents, learner.discount, draws)
    assert_close(target, recorded["upd0/td_target"][..., 0])
    latents = unroll(model, batch.observations[0], batch.actions)
    assert_close(latents, recorded["upd0/zs"])
    world_losses(model, batch, latents, next_latents, target, learner.config)["loss"].backward()
    compared = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            expected = recorded[f"upd0/grad/{original_name(name)}"]
            assert (parameter.grad - expected).abs().max() <= 5e-5 * expected.abs().max(), name
            compared.add(name.split(".")[0])
    assert compared == {name.split(".")[0] for name, _ in model.named_parameters()} - {"policy_head", "target_q_heads"}


@pytest.mark.parity
@pytest.mark.parametrize("file", ["tdmpc2_model.npz"])
def test_the_target_of_a_batch_with_terminations_matches_the_original(original: OriginalWorld) -> None:
    recorded = original.recorded
    reward, terminated = recorded["td/reward"][..., 0], recorded["td/terminated"][..., 0]
    assert 0 < terminated.mean() < 1
    batch = SequenceBatch(reward, reward, reward, terminated)
    draws = UpdateDraws(recorded["td/eps"], recorded["td/qidx"], reward, reward)
    target = td_target(original.model, batch, recorded["td/next_z"], recorded.meta["discount"], draws)
    assert_close(target, recorded["td/target"][..., 0])


@pytest.mark.parity
def test_the_running_scale_matches_the_original(fixtures: Path) -> None:
    recorded, scale = Recorded(fixtures / "tdmpc2_model.npz"), RunningScale(0.01, torch.device("cpu"))
    for i in range(3):
        scale.update(value_spread(recorded[f"scale/x{i}"][:, 0]))
        assert_close(scale.value, recorded["scale/value"][i])


def with_online_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the target's value from the online heads."""
    monkeypatch.setattr(WorldModel, "q_values", lambda model, z, a, heads=None, target=False: model.decode(
        model.q_logits(z, a, heads)
    ))  # fmt: skip


def with_unscaled_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the action dimension out of the entropy."""
    monkeypatch.setattr(
        tdmpc2, "policy_loss", lambda sample, values, scale, config: policy_loss(
            sample, values, scale, replace(config, entropy_coefficient=config.entropy_coefficient / ACTION_DIM)
        )
    )  # fmt: skip


def with_encoded_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict rewards and values from latents that were encoded, not unrolled."""

    def encoded(model: WorldModel, batch: SequenceBatch, latents: Tensor, next_latents: Tensor, *rest: object) -> dict:
        mixed = torch.cat([latents[:1], next_latents])
        return world_losses(model, batch, mixed, next_latents, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tdmpc2, "world_losses", encoded)


def with_even_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weigh all steps of the horizon alike."""
    monkeypatch.setattr(tdmpc2, "temporal_weights", lambda config, latents: torch.ones(len(latents)))


def with_scale_after_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never move the scale of values."""
    monkeypatch.setattr(RunningScale, "update", lambda scale, spread: None)


def with_gradient_into_encoded_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the encoder chase its own prediction."""
    monkeypatch.setattr(torch, "no_grad", torch.enable_grad)


MISTAKES = [
    with_online_target,
    with_unscaled_entropy,
    with_encoded_latents,
    with_even_weights,
    with_scale_after_the_loss,
    with_gradient_into_encoded_latents,
]


@pytest.mark.parity
@pytest.mark.parametrize("file", ["tdmpc2_model.npz"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_update_would_be_noticed(
    original: OriginalWorld, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    learner = recorded_learner(original)
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        assert_updates_match(original, learner)


# --- what an update changes -------------------------------------------------------------------------------------------


def test_an_update_changes_every_network_and_leaves_the_model_ready_to_act() -> None:
    learner = make_learner()
    before = snapshot(learner)
    metrics = learner.update(make_batch())
    assert changed_networks(learner, before) == NETWORKS
    assert not learner.model.training
    assert set(metrics) > {"loss", "policy_loss", "termination_loss", "gradient_norm", "value_scale"}
    assert all(value.shape == () and value.isfinite() and not value.requires_grad for value in metrics.values())


def test_the_first_step_changes_what_it_should_and_the_second_the_policy_alone() -> None:
    learner = make_learner()
    batch, before = make_batch(), snapshot(learner)
    draws = draw(learner.model, batch)
    learner.model.train()
    _, latents, skipped = learner.update_world(batch, draws)
    assert changed_networks(learner, before) == NETWORKS - {"policy_head", "target_q_heads"}
    assert not latents.requires_grad
    before = snapshot(learner)
    for parameter in learner.world_parameters:
        parameter.grad = None
    learner.update_policy(latents, draws, skipped)
    assert changed_networks(learner, before) == {"policy_head"}
    assert all(parameter.grad is None for parameter in learner.world_parameters)


def test_the_target_moves_by_its_rate_towards_q_after_its_step() -> None:
    learner = make_learner(target_rate=0.3)
    before = snapshot(learner)
    learner.update(make_batch())
    after = learner.model.state_dict()
    for name in (name for name in before if name.startswith("target_")):
        torch.testing.assert_close(after[name], before[name].lerp(after[name.removeprefix("target_")], 0.3))


def test_the_encoder_learns_at_its_own_rate() -> None:
    learner = make_learner(learning_rate=1e-3, encoder_learning_rate_scale=0.1)
    before = snapshot(learner)
    learner.update(make_batch())
    after = learner.model.state_dict()
    for name, rate in (("encoder.0.weight", 1e-4), ("dynamics.0.weight", 1e-3), ("policy_head.0.weight", 1e-3)):
        assert (after[name] - before[name]).abs().max().item() == pytest.approx(rate, rel=0.02)  # Adam's first step


def test_losses_fall_on_one_batch() -> None:
    learner = make_learner(learning_rate=3e-3)
    batch = make_batch()
    history = [learner.update(batch) for _ in range(40)]
    for name in ("loss", "consistency_loss", "reward_loss", "value_loss"):
        assert history[-1][name] < 0.8 * history[0][name], name


def test_a_prediction_deep_in_the_horizon_teaches_the_encoder() -> None:
    model, batch = make_model(), make_batch()
    latents = unroll(model, batch.observations[0], batch.actions)
    latents[-1].sum().backward()
    assert model.get_parameter("encoder.0.weight").grad is not None
    reached = []
    for step in range(HORIZON):
        observations = batch.observations[0].clone().requires_grad_()
        unroll(model, observations, batch.actions)[step + 1].square().sum().backward()
        assert observations.grad is not None
        reached.append(bool(observations.grad.abs().sum() > 0))
    assert reached == [True] * HORIZON


# --- the target -------------------------------------------------------------------------------------------------------


def test_a_termination_ends_the_target_and_a_time_limit_does_not() -> None:
    model, batch = make_model().eval(), make_batch()
    next_latents, draws = model.encode(batch.observations[1:]).detach(), draw(model, batch)
    ended, going_on = (
        td_target(model, batch._replace(terminated=torch.full_like(batch.rewards, value)), next_latents, 0.9, draws)
        for value in (1.0, 0.0)
    )
    assert torch.equal(ended, batch.rewards)
    action = model.policy(next_latents, draws.target_noise).action
    value = model.q_values(next_latents, action, target=True)[draws.target_heads].amin(dim=0)
    torch.testing.assert_close(going_on, batch.rewards + 0.9 * value)
    assert value.abs().max() > 0.1
    as_flags = td_target(model, batch._replace(terminated=batch.terminated.bool()), next_latents, 0.9, draws)
    torch.testing.assert_close(as_flags, torch.where(batch.terminated.bool(), ended, going_on))


def test_the_target_knows_no_dropout_even_while_training() -> None:
    model, batch = make_model(replace(TINY, dropout=0.5)).train(), make_batch()
    next_latents, draws = model.encode(batch.observations[1:]), draw(model, batch)
    first, second = (td_target(model, batch, next_latents, 0.9, draws) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_drawn_heads_are_two_different_ones_each_as_often_as_any() -> None:
    torch.manual_seed(0)
    model, batch = make_model(), make_batch()
    counts = torch.zeros(5)
    for _ in range(400):
        draws = draw(model, batch)
        for heads in (draws.target_heads, draws.policy_heads):
            assert len(set(heads.tolist())) == 2
            counts[heads] += 1
    assert draws.target_noise.shape == (HORIZON, BATCH, ACTION_DIM)
    assert draws.policy_noise.shape == (HORIZON + 1, BATCH, ACTION_DIM)
    assert (counts / counts.sum() - 0.2).abs().max() < 0.03


# --- the scale of values ----------------------------------------------------------------------------------------------


def test_the_scale_follows_the_spread_of_the_first_values_and_is_never_below_1() -> None:
    scale = RunningScale(0.5, torch.device("cpu"))
    scale.update(value_spread(torch.linspace(0, 0.1, 11)))
    assert scale.value == 1
    scale.update(value_spread(torch.linspace(-50, 50, 101)))
    assert scale.value.item() == pytest.approx(1 + 0.5 * (90 - 1), rel=1e-5)
    for wrong in (torch.nan, torch.inf):
        scale.update(torch.tensor(wrong))
        assert scale.value.item() == pytest.approx(45.5, rel=1e-5)


# --- what an update survives ------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    learner = make_learner()
    learner.update(make_batch())
    before, state = snapshot(learner), {name: value.clone() for name, value in learner.state_tensors().items()}
    spoilt = make_batch()
    spoilt.rewards[0, 0] = torch.nan
    metrics = learner.update(spoilt)
    assert metrics["gradient_norm"].isnan()
    assert changed_networks(learner, before) == set()
    after = learner.state_tensors()
    different = {name for name in state if not torch.equal(state[name], after[name])}
    assert different - {"value_scale"} == {"rng/torch", "num_skipped"}
    assert learner.num_skipped == 1
    assert learner.update(make_batch())["gradient_norm"].isfinite()
    assert changed_networks(learner, before) == NETWORKS
    assert learner.num_skipped == 1


def test_without_the_guard_a_nan_would_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tdmpc2, "skip_if", lambda skipped, optimizer: None)
    learner = make_learner()
    spoilt = make_batch()
    spoilt.rewards[0, 0] = torch.nan
    learner.update(spoilt)
    assert learner.model.get_parameter("encoder.0.weight").isnan().any()


def test_a_policy_step_that_is_not_finite_leaves_the_rest_of_the_update() -> None:
    learner = make_learner()
    batch, before = make_batch(), snapshot(learner)
    draws = draw(learner.model, batch)
    draws.policy_noise[1, 0, 0] = torch.inf
    learner.update(batch, draws)
    assert changed_networks(learner, before) == NETWORKS - {"policy_head"}
    assert learner.num_skipped == 1


def test_a_run_that_is_saved_and_loaded_goes_on_bit_for_bit() -> None:
    learner = make_learner()
    torch.manual_seed(3)
    for seed in range(3):
        learner.update(make_batch(seed))
    state = {name: value.clone() for name, value in learner.state_tensors().items()}
    weights = snapshot(learner)

    def go_on(without: str = "nothing") -> dict[str, Tensor]:
        torch.manual_seed(99)
        other = make_learner(make_model(replace(TINY, dropout=0.1), episodic=True))
        fresh = other.state_tensors()
        other.model.load_state_dict(weights)
        other.load_state_tensors({
            name: fresh.get(name, torch.zeros_like(value)) if without in name else value
            for name, value in state.items()
        })  # fmt: skip
        for seed in range(3, 6):
            other.update(make_batch(seed))
        return snapshot(other) | other.state_tensors()

    for seed in range(3, 6):
        learner.update(make_batch(seed))
    expected = snapshot(learner) | learner.state_tensors()

    def differences(actual: dict[str, Tensor]) -> set[str]:
        assert actual.keys() == expected.keys()
        return {name for name, value in expected.items() if not torch.equal(value, actual[name])}

    assert differences(go_on()) == set()
    for part in ("rng/torch", "exp_avg/", "exp_avg_sq/", "step/", "exp_avg/policy_head", "value_scale"):
        assert differences(go_on(part)), part


def test_all_processes_together_take_the_step_of_averaged_gradients() -> None:
    averaged: list[int] = []

    def average(tensors: Sequence[Tensor]) -> None:
        averaged.append(len(tensors))
        for tensor in tensors:
            tensor.zero_()  # as if another process had the opposite gradient

    learner = make_learner(average=average)
    before = snapshot(learner)
    metrics = learner.update(make_batch())
    assert averaged == [len(learner.world_parameters), 1, len(learner.policy_parameters)]
    assert changed_networks(learner, before) <= {"target_q_heads"}
    assert metrics["gradient_norm"] == metrics["policy_gradient_norm"] == 0
    assert learner.scale.value == 1


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_in_bfloat16_losses_are_float32_and_close_and_every_network_learns() -> None:
    batch = make_batch()
    metrics = {}
    for name, autocast in (("coarse", BFLOAT16), ("precise", nullcontext)):
        learner = make_learner(make_model(episodic=True), autocast)
        before = snapshot(learner)
        torch.manual_seed(1)
        metrics[name] = learner.update(batch, draw(learner.model, batch))
        assert changed_networks(learner, before) == NETWORKS
        assert all(value.dtype == torch.float32 for value in learner.model.state_dict().values())
    for name, value in metrics["precise"].items():
        assert metrics["coarse"][name].dtype == torch.float32
        assert metrics["coarse"][name].item() == pytest.approx(value.item(), rel=0.1, abs=0.02), name

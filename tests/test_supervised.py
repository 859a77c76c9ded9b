"""The update: parts of a batch, the schedule, clipping, gradients that are not finite, state in and out."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comparing import assert_equal
from gq.algos import bc, dt
from gq.algos.supervised import SupervisedLearner, learning_rate, num_windows
from gq.config import OptimConfig, TrainConfig
from gq.data.trajectories import Trajectories
from gq.data.windows import Batch, WindowSampler
from gq.models.config import MLPConfig, ModelConfig
from gq.models.decision_transformer import DecisionTransformer
from gq.models.mlp import ObservationMLP

K = 4
TINY = ModelConfig(
    embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, context_length=K, max_timestep=20, dropout=0.1
)
PLAIN = OptimConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant", gradient_clip=0.0)


def make_trajectories() -> Trajectories:
    generator, lengths = np.random.default_rng(0), [1, 3, 9, 2]
    return Trajectories(
        observations=generator.normal(size=(15, 3)).astype(np.float32),
        actions=generator.uniform(-1, 1, (15, 2)).astype(np.float32),
        rewards=generator.normal(size=15).astype(np.float32),
        terminals=np.zeros(15, bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        source="test",
    )


def make_learner(
    *,
    optim: OptimConfig = PLAIN,
    loss: Callable[[Any, Batch], Tensor] = dt.action_loss,
    dropout: float = 0.0,
    seed: int = 0,
    **train: Any,
) -> SupervisedLearner:
    torch.manual_seed(seed)
    model = DecisionTransformer(replace(TINY, dropout=dropout), observation_dim=3, action_dim=2)
    sampler = WindowSampler(make_trajectories(), K, seed=seed)
    settings = TrainConfig(**{"batch_size": 10} | train)
    return SupervisedLearner(model, lambda model, batch: {"loss": loss(model, batch)}, sampler, optim, settings)


def make_bc_learner(num_observations: int, **train: Any) -> SupervisedLearner:
    torch.manual_seed(0)
    config = MLPConfig(context_length=num_observations, embed_dim=16, dropout=0.0)
    model = ObservationMLP(config, observation_dim=3, action_dim=2)
    sampler = WindowSampler(make_trajectories(), num_observations, backward=True)
    settings = TrainConfig(batch_size=10, **train)
    return SupervisedLearner(
        model,
        lambda model, batch: {"loss": bc.action_loss(model, batch)},
        sampler,
        PLAIN,
        settings,
        num_terms=num_windows,
    )


def weights(learner: SupervisedLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def moments(learner: SupervisedLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_tensors().items() if not name.startswith("rng/")}


def gradient_norm(model: nn.Module) -> float:
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


# --- learning and parts of a batch ------------------------------------------------------------------------------------


def test_updates_lower_the_loss() -> None:
    learner = make_learner(optim=replace(PLAIN, learning_rate=3e-3))
    losses = [float(learner.update(step)["loss"]) for step in range(150)]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])


def assert_parts_change_nothing(whole: SupervisedLearner, parts: SupervisedLearner) -> None:
    for step in range(3):
        expected, found = whole.update(step), parts.update(step)
        for name in ("loss", "gradient_norm"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
        for (name, ours), theirs in zip(parts.model.named_parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7, msg=f"{name}, step {step}")
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("num_parts", [2, 3, 4, 10, 64])
def test_a_batch_in_parts_gives_the_same_update(num_parts: int) -> None:
    assert_parts_change_nothing(make_learner(), make_learner(num_micro_batches=num_parts))


@pytest.mark.parametrize("num_observations", [1, 3])
def test_a_batch_of_behaviour_cloning_in_parts_gives_the_same_update(num_observations: int) -> None:
    assert_parts_change_nothing(
        make_bc_learner(num_observations), make_bc_learner(num_observations, num_micro_batches=3)
    )


def test_behaviour_cloning_learns_the_last_action_of_its_window() -> None:
    learner = make_bc_learner(3)
    batch = learner.sampler.gather(torch.tensor([3, 6, 12]))
    predicted = learner.model(batch.observations, batch.valid)
    last_actions = learner.sampler.rows.actions[[3, 6, 12]]  # the box is [-1, 1]
    expected = (predicted - last_actions).square().mean()
    torch.testing.assert_close(bc.action_loss(learner.model, batch), expected)  # type: ignore[arg-type]
    losses = [float(learner.update(step)["loss"]) for step in range(200)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


@pytest.mark.parametrize(("batch_size", "num_parts"), [(10, 1), (10, 3), (10, 4), (5, 4), (3, 8), (64, 16)])
def test_parts_cover_every_row_once_and_are_no_more_than_asked(batch_size: int, num_parts: int) -> None:
    learner = make_learner(batch_size=batch_size, num_micro_batches=num_parts)
    parts = learner.micro_batches(batch_size)
    assert [row for start, end in parts for row in range(start, end)] == list(range(batch_size))
    assert len(parts) <= num_parts
    assert max(end - start for start, end in parts) == math.ceil(batch_size / num_parts)


def test_the_reported_loss_is_the_mean_over_the_valid_steps_of_the_whole_batch() -> None:
    learner = make_learner(num_micro_batches=4)
    state = learner.sampler.generator.get_state()
    batch = learner.sampler.sample(10)
    learner.sampler.generator.set_state(state)
    assert 0 < batch.valid.float().mean() < 1
    expected = dt.action_loss(learner.model, batch)  # type: ignore[arg-type]
    torch.testing.assert_close(learner.update(0)["loss"], expected.detach(), rtol=1e-6, atol=0)


def test_an_update_trains_with_dropout_even_after_an_evaluation() -> None:
    learner = make_learner(dropout=0.1)
    learner.model.eval()
    learner.update(0)
    assert learner.model.training


# --- schedule ---------------------------------------------------------------------------------------------------------


def test_the_warm_up_of_the_original() -> None:
    """Ten thousand steps: the first update uses 1e-4 of the rate, the 5000th half of it, the 10,000th all."""
    optim = OptimConfig(learning_rate=1e-4, warmup_steps=10_000, schedule="constant")
    rates = {number: learning_rate(optim, number - 1, 100_000) for number in (1, 5000, 10_000, 10_001, 100_000)}
    assert rates == pytest.approx({1: 1e-8, 5000: 5e-5, 10_000: 1e-4, 10_001: 1e-4, 100_000: 1e-4}, rel=1e-12)


def test_cosine_falls_from_the_whole_rate_to_a_tenth() -> None:
    optim = OptimConfig(learning_rate=2.0, warmup_steps=100, schedule="cosine")
    rates = [learning_rate(optim, step, 1100) for step in range(1101)]
    assert rates[99] == pytest.approx(2.0)
    assert rates[100] == pytest.approx(2.0)
    assert rates[600] == pytest.approx(1.1), "half-way between the whole and a tenth"
    assert rates[1100] == pytest.approx(0.2)
    assert all(a > b for a, b in pairwise(rates[100:]))
    assert learning_rate(optim, 5000, 1100) == pytest.approx(0.2), "and stays there"


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_no_warm_up_starts_at_the_whole_rate(schedule: str) -> None:
    optim = OptimConfig(learning_rate=1.0, warmup_steps=0, schedule=schedule)  # type: ignore[arg-type]
    assert learning_rate(optim, 0, 1000) == pytest.approx(1.0)


def test_a_warm_up_longer_than_the_training_only_rises() -> None:
    optim = OptimConfig(learning_rate=1.0, warmup_steps=1000, schedule="cosine")
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    assert rates == pytest.approx([(step + 1) / 1000 for step in range(100)])


def test_the_optimiser_uses_the_scheduled_rate() -> None:
    """The first step of Adam moves each weight by the learning rate (here without decay)."""
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=100, weight_decay=0.0, schedule="constant")
    learner = make_learner(optim=optim)
    before = weights(learner)
    learner.update(49)
    moved = (weights(learner)["predict_action.weight"] - before["predict_action.weight"]).abs()
    assert moved.max() == pytest.approx(5e-3, rel=1e-3)


def test_weight_decay_pulls_weights_to_zero() -> None:
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.5, schedule="constant")
    decayed, free = make_learner(optim=optim), make_learner(optim=replace(optim, weight_decay=0.0))
    before = weights(decayed)
    decayed.update(0)
    free.update(0)
    expected = {name: tensor - 0.005 * before[name] for name, tensor in free.model.named_parameters()}
    for name, tensor in decayed.model.named_parameters():
        torch.testing.assert_close(tensor.detach(), expected[name].detach(), rtol=0, atol=1e-6)


# --- clipping ---------------------------------------------------------------------------------------------------------


def test_the_gradient_is_clipped_to_its_global_norm() -> None:
    learner = make_learner(optim=replace(PLAIN, gradient_clip=0.01))
    reported = float(learner.update(0)["gradient_norm"])
    assert reported > 0.1, "the norm before clipping is reported"
    assert gradient_norm(learner.model) == pytest.approx(0.01, rel=1e-3)


def test_a_gradient_below_the_limit_is_left_alone() -> None:
    learner, free = make_learner(optim=replace(PLAIN, gradient_clip=1e6)), make_learner()
    for step in range(3):
        reported = float(learner.update(step)["gradient_norm"])
        free.update(step)
        assert gradient_norm(learner.model) == pytest.approx(reported, rel=1e-5)
    assert_equal(weights(learner), weights(free))


def test_a_limit_of_zero_switches_clipping_off() -> None:
    def large(model: DecisionTransformer, batch: Batch) -> Tensor:
        return 1e6 * dt.action_loss(model, batch)

    learner = make_learner(loss=large, optim=replace(PLAIN, gradient_clip=0.0))
    reported = float(learner.update(0)["gradient_norm"])
    assert reported > 1e5
    assert gradient_norm(learner.model) == pytest.approx(reported, rel=1e-5)
    assert learner.num_skipped == 0


# --- gradients that are not finite ------------------------------------------------------------------------------------


class LossThatFails:
    """The usual loss, times a factor at one call."""

    def __init__(self, factor: float, at_call: int) -> None:
        self.factor, self.at_call, self.num_calls = factor, at_call, 0

    def __call__(self, model: DecisionTransformer, batch: Batch) -> Tensor:
        self.num_calls += 1
        return dt.action_loss(model, batch) * (self.factor if self.num_calls - 1 == self.at_call else 1.0)


@pytest.mark.parametrize("gradient_clip", [0.25, 0.0])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(factor: float, gradient_clip: float) -> None:
    learner = make_learner(loss=LossThatFails(factor, at_call=2), optim=replace(PLAIN, gradient_clip=gradient_clip))
    for step in range(2):
        learner.update(step)
    before = weights(learner), moments(learner)
    metrics = learner.update(2)
    assert not math.isfinite(metrics["gradient_norm"])
    assert_equal(weights(learner), before[0])
    assert_equal(moments(learner) | {"num_skipped": torch.tensor(0.0)}, before[1])
    assert learner.num_skipped == 1
    learner.update(3)
    assert learner.num_skipped == 1
    assert all(tensor.isfinite().all() for tensor in weights(learner).values())
    assert not torch.equal(weights(learner)["predict_action.weight"], before[0]["predict_action.weight"])


def test_the_first_step_may_be_the_one_that_is_left_out() -> None:
    learner = make_learner(loss=LossThatFails(math.nan, at_call=0))
    before = weights(learner)
    learner.update(0)
    assert_equal(weights(learner), before)
    learner.update(1)
    assert learner.num_skipped == 1
    assert all(tensor.isfinite().all() for tensor in weights(learner).values())


def test_one_bad_part_of_a_batch_leaves_the_whole_step_out() -> None:
    learner = make_learner(loss=LossThatFails(math.nan, at_call=1), num_micro_batches=3)
    before = weights(learner)
    learner.update(0)
    assert learner.num_skipped == 1
    assert_equal(weights(learner), before)


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps_before", [0, 1, 7])
def test_restored_state_continues_bit_for_bit(num_steps_before: int) -> None:
    """With dropout, so that the global generator counts too, and one step left out."""
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=5)
    failing = LossThatFails(math.nan, at_call=3)
    whole = make_learner(optim=optim, dropout=0.2, loss=failing)
    for step in range(num_steps_before):
        whole.update(step)
    model, state = weights(whole), {name: tensor.clone() for name, tensor in whole.state_tensors().items()}
    expected = [whole.update(step) for step in range(num_steps_before, num_steps_before + 6)]

    resumed = make_learner(
        optim=optim, dropout=0.2, seed=99, loss=LossThatFails(math.nan, at_call=3 - num_steps_before)
    )
    resumed.model.load_state_dict(model)
    resumed.load_state_tensors({name: tensor.clone() for name, tensor in state.items()})
    assert_equal(moments(resumed), {name: tensor for name, tensor in state.items() if not name.startswith("rng/")})
    for step, metrics in enumerate(expected, start=num_steps_before):
        found = resumed.update(step)
        torch.testing.assert_close(found, metrics, rtol=0, atol=0, equal_nan=True)
    assert_equal(weights(resumed), weights(whole))
    assert_equal(resumed.state_tensors(), whole.state_tensors())


@pytest.mark.parametrize("missing", ["exp_avg", "exp_avg_sq", "step", "rng/sampler", "rng/torch"])
def test_every_part_of_the_state_matters(missing: str) -> None:
    """Without any one of them the continuation differs: the check above is not blind to it."""
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant", gradient_clip=0.0)
    whole = make_learner(optim=optim, dropout=0.2)
    for step in range(3):
        whole.update(step)
    model, state = weights(whole), {name: tensor.clone() for name, tensor in whole.state_tensors().items()}
    whole.update(3)

    resumed = make_learner(optim=optim, dropout=0.2, seed=99)
    fresh = {name: tensor.clone() for name, tensor in resumed.state_tensors().items()}
    resumed.model.load_state_dict(model)
    for name in state:
        if name == missing:
            state[name] = fresh[name]
        elif name.startswith(f"{missing}/"):
            state[name] = torch.ones_like(state[name]) if missing == "step" else torch.zeros_like(state[name])
    resumed.load_state_tensors(state)
    resumed.update(3)
    assert not torch.equal(weights(resumed)["predict_action.weight"], weights(whole)["predict_action.weight"])


def test_state_names_every_trained_tensor_once() -> None:
    learner = make_learner()
    learner.update(0)
    names = {name for name, _ in learner.model.named_parameters()}
    moment_names = {f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in names}
    assert set(learner.state_tensors()) == moment_names | {"rng/sampler", "rng/torch", "num_skipped"}
    assert all(tensor.is_contiguous() for tensor in learner.state_tensors().values())


def test_updates_are_deterministic_and_depend_on_the_seed() -> None:
    first, same, other = (make_learner(dropout=0.1, seed=seed) for seed in (1, 1, 2))
    losses = []
    for learner in (first, same, other):
        torch.manual_seed(7)
        losses.append([float(learner.update(step)["loss"]) for step in range(3)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert_equal(weights(first), weights(same))

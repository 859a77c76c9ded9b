"""The Online Decision Transformer: what its loss covers, its temperature, its updates, and how it acts."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from comparing import assert_equal
from gq.algos import odt
from gq.algos.odt import EntropyConstraint, ODTLearner, ODTPolicy, policy_metrics
from gq.config import EntropyConfig, ODTConfig, OptimConfig, TrainConfig, UpdateConfig, validate
from gq.data.trajectories import Trajectories
from gq.data.windows import Batch, WindowSampler
from gq.errors import UsageError
from gq.models.config import StochasticModelConfig
from gq.models.distributions import ActionDistribution
from gq.models.stochastic_transformer import StochasticTransformer

OBSERVATION_DIM, ACTION_DIM, K = 4, 2, 6
TINY = StochasticModelConfig(
    embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, context_length=K, acting_context=3
)
SHAPES = {"qwen3": TINY, "gpt2": replace(TINY, backbone="gpt2", num_kv_heads=2, activation="relu")}
OPTIM = OptimConfig(
    optimizer="lamb", learning_rate=1e-2, weight_decay=5e-4, warmup_steps=0, schedule="constant", gradient_clip=0.25
)
CPU = torch.device("cpu")
both_backbones = pytest.mark.parametrize("backbone", SHAPES)
both_optimisers = pytest.mark.parametrize("optimizer", ["lamb", "adamw"])


def make_trajectories(lengths: Sequence[int] = (13, 7, 2, 1), bound: float = 1.0) -> Trajectories:
    generator, num_rows = np.random.default_rng(0), sum(lengths)
    return Trajectories(
        observations=generator.normal(size=(num_rows, OBSERVATION_DIM)).astype(np.float32),
        actions=(bound * generator.uniform(-1, 1, (num_rows, ACTION_DIM))).astype(np.float32),
        rewards=generator.uniform(0, 3, num_rows).astype(np.float32),
        terminals=np.zeros(num_rows, bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        source="test",
    )


def make_model(
    config: StochasticModelConfig = TINY, low: float | np.ndarray = -1.0, high: float | np.ndarray = 1.0
) -> StochasticTransformer:
    """Return a model whose weights are large enough for every dependence to show."""
    torch.manual_seed(0)
    model = StochasticTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.scaling.set(
        observation_mean=np.full(OBSERVATION_DIM, 0.3),
        observation_std=np.full(OBSERVATION_DIM, 2.0),
        action_low=np.broadcast_to(low, ACTION_DIM).copy(),
        action_high=np.broadcast_to(high, ACTION_DIM).copy(),
        return_scale=10.0,
    )
    return model


def make_learner(
    config: StochasticModelConfig = TINY,
    *,
    trajectories: Trajectories | None = None,
    bound: float = 1.0,
    optim: OptimConfig = OPTIM,
    entropy: EntropyConfig | None = None,
    seed: int = 0,
    **train: Any,
) -> ODTLearner:
    model = make_model(config, -bound, bound)
    trajectories = make_trajectories(bound=bound) if trajectories is None else trajectories
    sampler = WindowSampler(trajectories, config.context_length, seed=seed)
    settings = TrainConfig(**{"batch_size": 10} | train)
    torch.manual_seed(seed)
    return ODTLearner(model, sampler, optim, settings, entropy or EntropyConfig())


def everything(learner: ODTLearner) -> dict[str, Tensor]:
    """Return weights, moments and temperature, but not the random states."""
    state = {name: tensor for name, tensor in learner.state_tensors().items() if not name.startswith("rng/")}
    return {name: tensor.clone() for name, tensor in (state | learner.model.state_dict()).items()}


def measure(
    mean: Tensor,
    log_std: Tensor,
    target: Tensor,
    valid: Tensor,
    draws: Tensor,
    *,
    squashed: bool = True,
    clip: float = 1e-6,
) -> dict[str, Tensor]:
    """Return the metrics of a distribution that is made by hand."""
    distribution = ActionDistribution(mean, log_std, squashed)
    return policy_metrics(distribution, target, valid, temperature=torch.tensor(0.1), clip=clip, draws=draws)


# --- what the loss covers ---------------------------------------------------------------------------------------------


def test_the_loss_is_a_mean_over_valid_steps_of_both_terms() -> None:
    generator = np.random.default_rng(0)
    mean, draws = generator.normal(size=(2, 5, 7, 3))
    log_std, target = generator.uniform(-2, 1, (5, 7, 3)), generator.uniform(-0.9, 0.9, (5, 7, 3))
    valid = np.arange(7) < np.array([7, 1, 3, 6, 2])[:, None]

    def log_density(before: np.ndarray) -> np.ndarray:
        gaussian = -0.5 * ((before - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
        return (gaussian - np.log(1 - np.tanh(before) ** 2)).sum(axis=-1)

    nll = -log_density(np.arctanh(target))[valid].mean()
    entropy = -log_density(mean + np.exp(log_std) * draws)[valid].mean()
    found = measure(*map(torch.as_tensor, (mean, log_std, target, valid, draws)))
    assert found["nll"].item() == pytest.approx(nll, rel=1e-9)
    assert found["entropy"].item() == pytest.approx(entropy, rel=1e-9)
    assert found["loss"].item() == pytest.approx(nll - 0.1 * entropy, rel=1e-6)


def test_the_policy_gets_the_gradient_of_both_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, target, draws = (torch.randn(4, 5, 3, generator=generator) for _ in range(4))
    parameters = [mean.requires_grad_(), log_std.requires_grad_()]
    found = measure(mean, log_std, target.tanh(), torch.ones(4, 5, dtype=torch.bool), draws)
    of_loss, of_nll, of_entropy = (
        torch.stack(torch.autograd.grad(found[name], parameters, retain_graph=True))
        for name in ("loss", "nll", "entropy")
    )
    torch.testing.assert_close(of_loss, of_nll - 0.1 * of_entropy, rtol=1e-5, atol=1e-7)
    assert (of_entropy.abs().amax(dim=(1, 2, 3)) > 1e-2).all()


@both_backbones
def test_the_content_of_padding_changes_nothing(backbone: str) -> None:
    model = make_model(SHAPES[backbone])
    batch = WindowSampler(make_trajectories(), K).gather(torch.tensor([0, 10, 11, 20, 21, 22]))
    draws = torch.randn(6, K, ACTION_DIM)
    generator = torch.Generator().manual_seed(1)
    assert 0.3 < batch.valid.float().mean() < 0.8

    def spoil(array: Tensor, amount: float) -> Tensor:
        noise = amount * torch.rand(array.shape, generator=generator)
        return torch.where(batch.valid[..., None], array, array + noise)

    spoiled = batch._replace(
        observations=spoil(batch.observations, 50.0),
        actions=spoil(batch.actions, 3.0),
        returns_to_go=spoil(batch.returns_to_go, 100.0),
    )
    found = []
    for windows, normals in ((batch, draws), (spoiled, spoil(draws, 4.0))):
        model.zero_grad()
        distribution = model(windows.observations, windows.actions, windows.returns_to_go, windows.timesteps)
        target = model.scaling.scale_actions(windows.actions)
        metrics = policy_metrics(
            distribution, target, windows.valid, temperature=torch.tensor(0.5), clip=1e-6, draws=normals
        )
        metrics["loss"].backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({name: tensor.detach().clone() for name, tensor in (metrics | gradients).items()})
    assert found[0].keys() >= {"nll", "entropy", "saturated", "clamped", "sigma_p50", "predict_log_std.weight"}
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-5, atol=1e-6, msg=name)


@both_backbones
@pytest.mark.parametrize("num_padded", [1, 3, K - 1])
def test_left_padding_changes_nothing(backbone: str, num_padded: int) -> None:
    model = make_model(SHAPES[backbone]).eval()
    batch = WindowSampler(make_trajectories(), K).gather(torch.tensor([0, 3]))
    padded = [torch.cat([5 + torch.zeros_like(array[:, :num_padded]), array], dim=1)[:, :K] for array in batch[:4]]
    valid = torch.arange(K) >= num_padded
    alone = model(*(array[:, : K - num_padded] for array in batch[:4]))
    inside = model(*padded, valid.expand(2, -1))
    unmasked = model(*padded)
    for name in ("mean", "log_std"):
        expected = getattr(alone, name)
        assert (getattr(inside, name)[:, num_padded:] - expected).abs().max() < 1e-5
        assert (getattr(unmasked, name)[:, num_padded:] - expected).abs().max() > 1e-3, "padding must be masked"


def test_shares_are_counted_over_valid_steps_and_dimensions() -> None:
    """Six values are valid; 0.99 is tanh(2.6467), and the draws are zero but for one."""
    mean = torch.tensor([[[2.64, -2.66], [3.0, 0.0], [9.0, 9.0]], [[-0.1, 0.2], [9.0, 9.0], [9.0, 9.0]]])
    draws = torch.zeros_like(mean)
    draws[1, 0, 0] = -5.0
    edge = float(np.float32(1 - 1e-6))
    target = torch.tensor([[[1.0, edge], [-1.0, 0.999], [1.0, 1.0]], [[1.5, 0.0], [1.0, 1.0], [1.0, 1.0]]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    found = measure(mean, torch.zeros_like(mean), target, valid, draws)
    assert found["saturated"].item() == pytest.approx(3 / 6)
    assert found["clamped"].item() == pytest.approx(3 / 6)
    assert measure(mean, torch.zeros_like(mean), target, valid, draws, clip=0.01)["clamped"].item() == (
        pytest.approx(5 / 6)
    )
    plain = measure(mean, torch.zeros_like(mean), target, valid, draws, squashed=False)
    assert plain["clamped"].item() == 0, "a plain Gaussian clamps nothing"


@pytest.mark.parametrize("action_dim", [1, 3, 6, 8, 17])
def test_quantiles_of_the_deviation_see_every_dimension_and_no_padding(action_dim: int) -> None:
    """Dimensions differ in deviation; a sample of the values that favours some would show."""
    log_std = torch.linspace(-3, 1, action_dim).expand(256, 20, -1).clone()
    valid = torch.ones(256, 20, dtype=torch.bool)
    valid[:, 12:] = False
    log_std[:, 12:] = 2.0
    zeros = torch.zeros_like(log_std)
    found = measure(zeros, log_std, zeros, valid, zeros)
    expected = np.exp(np.quantile(log_std[:, :12].numpy(), [0.1, 0.5, 0.9]))
    assert [found[f"sigma_p{q}"].item() for q in (10, 50, 90)] == pytest.approx(expected, rel=1e-3)


def test_quantiles_of_a_large_batch_are_near_the_exact_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    log_std = torch.randn(256, 20, 6, generator=generator)
    zeros = torch.zeros_like(log_std)
    found = measure(zeros, log_std, zeros, torch.ones(256, 20, dtype=torch.bool), zeros)
    expected = log_std.flatten().quantile(torch.tensor([0.1, 0.5, 0.9])).exp()
    assert [found[f"sigma_p{q}"].item() for q in (10, 50, 90)] == pytest.approx(expected.tolist(), rel=0.15)


# --- the temperature --------------------------------------------------------------------------------------------------

NOT_SKIPPED, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


def log_temperatures(config: EntropyConfig, entropies: Sequence[float]) -> list[float]:
    """Return the temperature's logarithm at the start and after each batch of the given entropy, 3 dimensions."""
    constraint = EntropyConstraint(config, 3, CPU)
    values = [constraint.log_temperature.item()]
    for entropy in entropies:
        constraint.update(torch.tensor(entropy), NOT_SKIPPED)
        values.append(constraint.log_temperature.item())
    return values


@pytest.mark.parametrize(("entropy", "direction"), [(-2.9, -1), (5.0, -1), (-3.1, 1), (-40.0, 1)])
def test_the_temperature_falls_above_the_target_and_rises_below(entropy: float, direction: int) -> None:
    """By the learning rate a step: 0.03 in 300 updates, however far the entropy is from -3."""
    values = np.array(log_temperatures(EntropyConfig(), [entropy] * 300))
    assert values[0] == pytest.approx(math.log(0.1))
    assert np.diff(values) == pytest.approx(direction * np.full(300, 1e-4), rel=5e-2)
    assert values[-1] - values[0] == pytest.approx(direction * 0.03, rel=2e-2)


def test_a_growing_excess_moves_the_temperature_by_little_more_than_its_rate() -> None:
    """A quarter more in 300 updates: by a tenth."""
    steps = np.abs(np.diff(log_temperatures(EntropyConfig(), [-2 + i / 1200 for i in range(300)])))
    assert steps.max() <= 1.1e-4
    assert steps.min() >= 0.99e-4


def test_the_temperature_starts_and_aims_where_it_is_told() -> None:
    config = EntropyConfig(temperature=0.5, target=-0.5, learning_rate=1e-2)
    constraint = EntropyConstraint(config, 6, CPU)
    assert constraint.target == -3.0
    assert constraint.temperature.item() == pytest.approx(0.5)
    assert constraint.temperature.dtype == torch.float32
    assert not constraint.temperature.requires_grad
    constraint.update(torch.tensor(-3.5), NOT_SKIPPED)
    assert constraint.temperature.item() == pytest.approx(0.5 * math.exp(1e-2), rel=1e-6)


@pytest.mark.parametrize(("entropy", "start", "bound"), [(9.0, 1.5e-4, 1e-4), (-99.0, 8.0, 10.0)])
def test_the_temperature_stays_within_its_bounds_and_leaves_them_again(
    entropy: float, start: float, bound: float
) -> None:
    values = log_temperatures(
        EntropyConfig(temperature=start, learning_rate=0.1), [entropy] * 40 + [-6 - entropy] * 400
    )
    assert min(values) >= math.log(1e-4)
    assert max(values) <= math.log(10.0)
    assert values[40] == math.log(bound)
    assert abs(values[-1] - values[40]) > 0.5


@pytest.mark.parametrize(("mode", "weight"), [("fixed", 0.3), ("off", 0.0)])
def test_the_temperature_is_fixed_or_off(mode: str, weight: float) -> None:
    learner = make_learner(entropy=EntropyConfig(mode=mode, temperature=0.3))  # type: ignore[arg-type]
    for step in range(3):
        metrics = learner.update(step)
        assert metrics["temperature"].item() == pytest.approx(weight)
        expected = metrics["nll"] - weight * metrics["entropy"]
        torch.testing.assert_close(metrics["loss"], expected, rtol=1e-6, atol=1e-6)
    assert learner.constraint.log_temperature.item() == pytest.approx(math.log(0.3))
    assert set(learner.constraint.state_tensors()) == {"temperature/log"}


@pytest.mark.parametrize("num_steps_before", [0, 3])
def test_a_skipped_update_leaves_the_temperature(num_steps_before: int) -> None:
    constraint, free = EntropyConstraint(EntropyConfig(), 3, CPU), EntropyConstraint(EntropyConfig(), 3, CPU)
    for entropy in (1.0, -7.0, 2.0)[:num_steps_before]:
        constraint.update(torch.tensor(entropy), NOT_SKIPPED)
        free.update(torch.tensor(entropy), NOT_SKIPPED)
    constraint.update(torch.tensor(math.nan), SKIPPED)
    assert constraint.log_temperature.item() == free.log_temperature.item()
    for each in (constraint, free):
        each.update(torch.tensor(4.0), NOT_SKIPPED)
    assert_equal(constraint.state_tensors(), free.state_tensors())


@pytest.mark.parametrize("num_steps_before", [0, 1, 5])
def test_a_restored_temperature_continues_bit_for_bit(num_steps_before: int) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = EntropyConstraint(EntropyConfig(), 3, CPU)
    for _ in range(num_steps_before):
        whole.update(5 * torch.randn((), generator=generator), NOT_SKIPPED)
    saved = whole.state_tensors()
    resumed = EntropyConstraint(EntropyConfig(temperature=0.7), 3, CPU)
    resumed.load_state_tensors({name: tensor.clone() for name, tensor in saved.items()})
    assert_equal(resumed.state_tensors(), saved)
    for _ in range(3):
        entropy = 5 * torch.randn((), generator=generator)
        for each in (whole, resumed):
            each.update(entropy, NOT_SKIPPED)
    assert_equal(resumed.state_tensors(), whole.state_tensors())
    assert saved["temperature/log"] != whole.state_tensors()["temperature/log"], "what was saved is a copy"
    assert saved["temperature/log"].dtype == torch.float64


def test_the_loss_uses_the_temperature_before_the_update() -> None:
    learner = make_learner(entropy=EntropyConfig(learning_rate=0.1))
    expected = 0.1
    for step in range(4):
        metrics = learner.update(step)
        assert metrics["temperature"].item() == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(
            metrics["loss"], metrics["nll"] - metrics["temperature"] * metrics["entropy"], rtol=1e-5, atol=1e-6
        )
        expected = learner.constraint.temperature.item()
    assert expected != pytest.approx(0.1, rel=1e-3)


# --- updates ----------------------------------------------------------------------------------------------------------


def test_updates_learn_the_mean_and_the_deviation_of_the_data() -> None:
    """Actions are tanh of a Gaussian whose mean follows the observation and whose deviation is 0.3."""
    generator, base = np.random.default_rng(0), make_trajectories((20,) * 40)
    before = 0.5 * base.observations[:, :2] + 0.3 * generator.normal(size=base.actions.shape)
    learner = make_learner(
        replace(TINY, num_layers=1),
        trajectories=replace(base, actions=np.tanh(before).astype(np.float32)),
        entropy=EntropyConfig(mode="off"),
        optim=replace(OPTIM, optimizer="adamw", learning_rate=1e-2),
        batch_size=64,
    )
    metrics = [learner.update(step) for step in range(250)]
    assert metrics[-1]["nll"] < metrics[0]["nll"] - 1
    assert metrics[-1]["sigma_p50"].item() == pytest.approx(0.3, abs=0.06)
    batch = learner.sampler.sample(64)
    mean = learner.model.eval()(*batch[:4]).mean.detach()
    assert (mean - 0.5 * batch.observations[..., :2])[batch.valid].abs().mean() < 0.12


@pytest.mark.parametrize("num_parts", [2, 3, 10])
def test_a_batch_in_parts_gives_the_same_update(num_parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.randn(10, K, ACTION_DIM, generator=torch.Generator().manual_seed(5))
    whole, parts = (
        make_learner(optim=replace(OPTIM, learning_rate=1e-3)),
        make_learner(optim=replace(OPTIM, learning_rate=1e-3), num_micro_batches=num_parts),
    )
    served: list[Tensor] = []

    def draw(like: Tensor) -> Tensor:
        start = sum(len(part) for part in served) % len(draws)
        served.append(draws[start : start + len(like)])
        return served[-1]

    monkeypatch.setattr(odt.torch, "randn_like", draw)
    for step in range(3):
        expected, found = whole.update(step), parts.update(step)
        for name in ("loss", "nll", "entropy", "saturated", "clamped", "temperature", "gradient_norm"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)
    weights = whole.model.state_dict()
    for name, tensor in parts.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=2e-5, msg=name)


class SpoiledSampler:
    """A sampler whose batch number `at` holds an observation that is not a number."""

    def __init__(self, sampler: Any, at: int) -> None:
        self.sampler, self.generator, self.at, self.num_batches = sampler, sampler.generator, at, 0

    def sample(self, batch_size: int) -> Batch:
        batch = self.sampler.sample(batch_size)
        if self.num_batches == self.at:
            batch.observations[0, 0, 0] = math.nan
        self.num_batches += 1
        return batch


@both_optimisers
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_a_gradient_that_is_not_finite_changes_nothing(optimizer: str, at: int, num_parts: int) -> None:
    optim = replace(OPTIM, optimizer=optimizer)  # type: ignore[arg-type]
    learner = make_learner(optim=optim, num_micro_batches=num_parts)
    learner.sampler = SpoiledSampler(learner.sampler, at)
    for step in range(at):
        learner.update(step)
    before = everything(learner)
    metrics = learner.update(at)
    assert metrics["loss"].isnan()
    assert learner.num_skipped == 1
    after = everything(learner)
    if at == 0:  # the moments exist now, and are zero
        before |= {name: torch.zeros_like(tensor) for name, tensor in after.items() if name not in before}
    assert_equal(after, before | {"num_skipped": torch.tensor(1.0)})
    learner.update(at + 1)
    assert learner.num_skipped == 1
    assert all(tensor.isfinite().all() for tensor in everything(learner).values())
    assert not torch.equal(everything(learner)["predict_mean.weight"], before["predict_mean.weight"])
    assert learner.constraint.log_temperature.item() != before["temperature/log"].item()


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (1, 3, 2, 1)])
def test_episodes_shorter_than_the_context_are_learnt(lengths: tuple[int, ...]) -> None:
    config = replace(TINY, context_length=20, acting_context=5)
    learner = make_learner(config, trajectories=make_trajectories(lengths))
    first = learner.update(0)
    for step in range(1, 30):
        metrics = learner.update(step)
        assert all(value.isfinite() for value in metrics.values())
    assert metrics["nll"] < first["nll"]
    assert learner.num_skipped == 0


@both_optimisers
@pytest.mark.parametrize("num_steps_before", [0, 1, 4])
def test_restored_state_continues_bit_for_bit(optimizer: str, num_steps_before: int) -> None:
    config = replace(TINY, dropout=0.2)
    optim = replace(OPTIM, optimizer=optimizer, warmup_steps=6)  # type: ignore[arg-type]
    whole = make_learner(config, optim=optim)
    whole.step_offset = 2
    for step in range(num_steps_before):
        whole.update(step)
    model, saved = whole.model.state_dict(), whole.state_tensors()
    model = {name: tensor.clone() for name, tensor in model.items()}
    saved = {name: tensor.clone() for name, tensor in saved.items()}
    expected = [whole.update(step) for step in range(num_steps_before, num_steps_before + 3)]

    resumed = make_learner(config, optim=optim, seed=9, entropy=EntropyConfig(temperature=0.7))
    resumed.model.load_state_dict(model)
    resumed.load_state_tensors(saved)
    found = [resumed.update(step) for step in range(num_steps_before, num_steps_before + 3)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert_equal(everything(resumed), everything(whole))


def test_the_parents_moments_temperature_and_schedule_are_carried_or_not() -> None:
    optim = replace(OPTIM, learning_rate=1e-4, warmup_steps=10_000)
    parent = make_learner(optim=optim, entropy=EntropyConfig(learning_rate=0.1), steps=5000)
    for step in range(3):
        parent.update(step)
    assert parent.learning_rate(4999) == pytest.approx(5e-5), "half-way through the warm-up"
    tensors = {name: tensor.clone() for name, tensor in parent.state_tensors().items()}

    def make_child() -> ODTLearner:
        sampler = WindowSampler(make_trajectories(), K)
        settings = UpdateConfig(batch_size=10)
        return ODTLearner(make_model(), sampler, optim, settings, EntropyConfig())

    carried, reset = make_child(), make_child()
    carried.carry(tensors, num_steps=5000)
    rates = [learner.learning_rate(step) for learner in (carried, reset) for step in (0, 4999, 90_000)]
    assert rates == pytest.approx([5001e-8, 1e-4, 1e-4, 1e-8, 5e-5, 1e-4])
    assert carried.constraint.temperature == parent.constraint.temperature
    assert reset.constraint.temperature.item() == pytest.approx(0.1)
    found = carried.state_tensors()
    for name, tensor in tensors.items():
        if name.startswith(("exp_avg", "step/", "temperature/")):
            assert torch.equal(found[name], tensor), name
    assert found["num_skipped"] == 0
    grandchild = make_child()
    grandchild.carry(found, num_steps=300)
    assert grandchild.learning_rate(0) == pytest.approx(5301e-8), "steps of the parent's parent count too"


# --- boxes ------------------------------------------------------------------------------------------------------------


def walk(policy: ODTPolicy, num_steps: int = 9, num_episodes: int = 3, seed: int = 0) -> np.ndarray:
    """Return the actions [T, E, A] on fixed observations."""
    observations = np.random.default_rng(7).normal(size=(num_steps, num_episodes, OBSERVATION_DIM)).astype(np.float32)
    policy.reset(np.linspace(5, 20, num_episodes), range(seed, seed + num_episodes))
    rows, actions = np.arange(num_episodes), []
    for seen in observations:
        actions.append(policy.act(rows, seen))
        policy.record(rows, actions[-1], np.ones(num_episodes))
    return np.array(actions)


@pytest.mark.parametrize("bound", [0.4, 2.0])
@pytest.mark.parametrize("distribution", ["tanh", "gaussian"])
def test_models_of_boxes_scaled_by_a_number_act_scaled_by_it(bound: float, distribution: str) -> None:
    """Nothing else differs: losses and entropy are those of the box scaled to [-1, 1]."""
    config = replace(TINY, distribution=distribution)  # type: ignore[arg-type]
    unit, scaled = make_learner(config), make_learner(config, bound=bound)
    measured = []
    for learner in (unit, scaled):
        torch.manual_seed(1)
        measured.append([learner.update(step) for step in range(10)])
    torch.testing.assert_close(measured[1], measured[0], rtol=1e-3, atol=1e-3)
    assert all(value.isfinite() for metrics in measured[1] for value in metrics.values())
    for stochastic in (False, True):
        actions = []
        for learner in (unit, scaled):
            assert isinstance(learner.model, StochasticTransformer)
            actions.append(walk(ODTPolicy(learner.model, autocast=nullcontext, stochastic=stochastic)))
        np.testing.assert_allclose(actions[1], bound * actions[0], rtol=0, atol=2e-3 * bound)
        assert np.abs(actions[0]).max() > 0.3


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("distribution", ["tanh", "gaussian"])
def test_actions_stay_inside_a_lopsided_box_and_use_it(stochastic: bool, distribution: str) -> None:
    low, high = np.array([-0.4, -1.0]), np.array([0.4, 2.0])
    model = make_model(replace(TINY, distribution=distribution), low, high)  # type: ignore[arg-type]
    with torch.no_grad():
        model.predict_mean.weight.mul_(4)
        model.predict_log_std.bias.fill_(1.0)
    actions = walk(ODTPolicy(model, autocast=nullcontext, stochastic=stochastic), num_episodes=50)
    assert actions.dtype == np.float32
    assert (actions >= low.astype(np.float32)).all()
    assert (actions <= high.astype(np.float32)).all()
    reached = (actions.max(axis=(0, 1)) - actions.min(axis=(0, 1))) / (high - low)
    assert (reached > 0.9).all()


# --- acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["none", "window", "timestep"])
def test_acting_sees_the_last_five_steps_of_a_context_of_twenty(positions: str) -> None:
    config = replace(TINY, context_length=20, acting_context=5, positions=positions)  # type: ignore[arg-type]
    model = make_model(config).eval()
    policy = ODTPolicy(model, autocast=nullcontext)
    observations = np.random.default_rng(0).normal(size=(12, 1, OBSERVATION_DIM)).astype(np.float32)
    policy.reset(np.array([20.0]))
    taken: list[np.ndarray] = []
    for step, seen in enumerate(observations):
        chosen = policy.act(np.arange(1), seen)
        first = max(0, step - 4)
        window = slice(first, step + 1)
        timesteps = torch.arange(first, step + 1)[None]
        inputs = (
            torch.as_tensor(observations[window, 0])[None],
            torch.as_tensor(np.array([*taken[first:], np.zeros((1, ACTION_DIM), np.float32)]))[:, 0][None],
            20.0 - timesteps[..., None].float(),
            timesteps,
        )
        with torch.no_grad():
            mean = model(*inputs).mean[:, -1]
        np.testing.assert_allclose(chosen, torch.tanh(mean).numpy(), rtol=0, atol=1e-5, err_msg=f"step {step}")
        if positions == "none":  # as the original acts: padded on the left to the whole context
            missing = 20 - timesteps.shape[1]
            padded = [
                torch.cat([torch.zeros_like(array[:, :1]).expand(1, missing, *array.shape[2:]), array], dim=1)
                for array in inputs
            ]
            with torch.no_grad():
                mean = model(*padded, (torch.arange(20) >= missing)[None]).mean[:, -1]
            np.testing.assert_allclose(chosen, torch.tanh(mean).numpy(), rtol=0, atol=1e-5, err_msg=f"step {step}")
        taken.append(chosen)
        policy.record(np.arange(1), chosen, np.ones(1))


@pytest.mark.parametrize("stochastic", [False, True])
def test_sampling_and_evaluation_have_one_context(stochastic: bool) -> None:
    config = replace(TINY, context_length=20, acting_context=5)
    policy = ODTPolicy(make_model(config), autocast=nullcontext, stochastic=stochastic)
    policy.reset(np.zeros(1), [0])
    lengths = []
    for _ in range(8):
        observations, actions, *_ = policy.context(np.arange(1), np.zeros((1, OBSERVATION_DIM), np.float32))
        lengths.append((observations.shape[1], actions.shape[1]))
        policy.record(np.arange(1), np.zeros((1, ACTION_DIM)), np.zeros(1))
    assert lengths == [(1, 0), (2, 1), (3, 2), (4, 3), *[(5, 4)] * 4]


def test_a_longer_context_when_acting_than_when_learning_is_refused() -> None:
    with pytest.raises(UsageError, match=r"acting_context 21 exceeds model\.context_length 20") as raised:
        validate(ODTConfig, {"model": {"acting_context": 21, "context_length": 20}})
    assert raised.value.hint
    with pytest.raises(ValueError, match="acting_context 7 exceeds"):
        make_model(replace(TINY, acting_context=K + 1))
    assert make_model(replace(TINY, acting_context=K)).config.acting_context == K


def test_sampled_actions_have_the_policys_mean_and_deviation() -> None:
    model, num_samples = make_model(low=-0.4, high=0.4).eval(), 20_000
    with torch.no_grad():
        model.predict_log_std.weight.zero_()
        model.predict_log_std.bias.copy_(torch.tensor([-0.2, 0.2]))
    policy = ODTPolicy(model, autocast=nullcontext, stochastic=True)
    policy.reset(np.full(num_samples, 10.0), range(num_samples))
    rows, observations = np.arange(num_samples), np.full((num_samples, OBSERVATION_DIM), 0.5, np.float32)
    with torch.no_grad():
        distribution = model.head(model.encode(*policy.context(rows[:1], observations[:1])))
    before = np.arctanh(policy.act(rows, observations).astype(np.float64) / 0.4)
    std = distribution.log_std[0, 0].exp().numpy()
    np.testing.assert_allclose(before.mean(axis=0), distribution.mean[0, 0], rtol=0, atol=5 * std.max() / 141)
    np.testing.assert_allclose(before.std(axis=0), std, rtol=0.03)
    assert abs(np.corrcoef(before.T)[0, 1]) < 0.04, "one draw per dimension"


def test_the_mode_draws_nothing_while_samples_follow_their_episode_s_seed() -> None:
    model = make_model()
    still, sampling = (ODTPolicy(model, autocast=nullcontext, stochastic=stochastic) for stochastic in (False, True))
    state = torch.get_rng_state()
    first = walk(still)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(walk(still), first)
    sampled, other = walk(sampling), walk(sampling, seed=3)
    assert np.array_equal(walk(sampling), sampled)
    assert np.abs(sampled - other).max() > 0.05
    assert np.abs(sampled - first).max() > 0.05
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sampled_episode_does_not_depend_on_those_beside_it() -> None:
    policy = ODTPolicy(make_model(), autocast=nullcontext, stochastic=True)
    seen = np.random.default_rng(7).normal(size=(6, 3, OBSERVATION_DIM)).astype(np.float32)

    def actions(seeds: list[int], *, last: int) -> np.ndarray:
        """Return those of the episode with seed 5; all others end after two steps."""
        policy.reset(np.full(len(seeds), 10.0), seeds)
        found, row = [], seeds.index(5)
        for step in range(last):
            rows = np.arange(len(seeds)) if step < 2 else np.array([row])
            taken = policy.act(rows, seen[step, [1 if index == row else 0 for index in rows]])
            found.append(taken[list(rows).index(row)])
            policy.record(rows, taken, np.ones(len(rows)))
        return np.array(found)

    alone = actions([5], last=6)
    np.testing.assert_allclose(actions([4, 5, 6], last=6), alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(actions([9, 8, 7, 5], last=6), alone, rtol=0, atol=1e-5)


def test_fresh_heads_are_orthogonal_and_spread() -> None:
    """Rows of length 1 on a normalised hidden state: means of about 1, log deviations over the whole range."""
    torch.manual_seed(0)
    config = replace(TINY, embed_dim=64, num_heads=4)
    model = StochasticTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=3)
    for head in (model.predict_mean, model.predict_log_std):
        torch.testing.assert_close(head.weight @ head.weight.T, torch.eye(3), rtol=0, atol=1e-5)
        assert not head.bias.any()
    generator = torch.Generator().manual_seed(0)
    steps = torch.zeros(500, K, dtype=torch.int64)
    inputs = [torch.randn(500, K, size, generator=generator) for size in (OBSERVATION_DIM, 3, 1)]
    with torch.no_grad():
        distribution = model(*inputs, steps)
    assert 0.5 < distribution.mean.std() < 1.5
    assert distribution.log_std.min() < -4.5
    assert distribution.log_std.max() > 1.5

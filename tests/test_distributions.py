"""Distributions over actions against tables, an independent formula in double precision, and recorded arrays."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gq.algos.odt import policy_metrics
from gq.models.config import StochasticModelConfig
from gq.models.distributions import ActionDistribution, bounded_log_std
from gq.models.stochastic_transformer import StochasticTransformer
from test_parity import Recorded, assert_close

CLIP = 1e-6

# Differential entropy of tanh(N(mean, std^2)) in nats: a row per mean, a column per log std.
ENTROPY_LOG_STDS = [-5, -3, -2, -1, -0.125, 0, 0.5, 1, 2]
ENTROPIES = {
    0.0: [-3.5811, -1.5835, -0.5992, 0.2915, 0.6836, 0.6698, 0.3098, -0.7654, -7.0743],
    0.5: [-3.8213, -1.8232, -0.8356, 0.0750, 0.5232, 0.5202, 0.2037, -0.8349, -7.1011],
    1.0: [-4.4486, -2.4497, -1.4564, -0.5078, 0.0682, 0.0926, -0.1071, -1.0414, -7.1814],
    2.0: [-6.2311, -4.2312, -3.2324, -2.2418, -1.4519, -1.3667, -1.2506, -1.8373, -7.5005],
}
# action, mean, log std, log-density
LOG_DENSITIES = [
    (0.0, 0.0, 0.0, -0.918939),
    (0.5, 0.0, 0.0, -0.782125),
    (0.5, 0.3, -1.0, 0.139115),
    (-0.9, 0.2, -2.0, -73.595103),
    (0.99, 0.0, 0.5, 1.209642),
]
# value before tanh, mean, log std, log-density
SAMPLE_LOG_DENSITIES = [
    (20.0, 20.0, 0.0, 37.694767),
    (-20.0, -20.0, 0.0, 37.694767),
    (20.0, 0.0, 0.0, -162.305233),
    (10.0, 10.0, -1.0, 18.694767),
]


def squashed(mean: float | Tensor, log_std: float | Tensor, dtype: torch.dtype = torch.float64) -> ActionDistribution:
    parameters = torch.as_tensor(mean, dtype=dtype), torch.as_tensor(log_std, dtype=dtype)
    means, log_stds = torch.broadcast_tensors(*parameters)
    return ActionDistribution(means, log_stds, squashed=True)


def gaussian_formula(values: np.ndarray, mean: np.ndarray, log_std: np.ndarray) -> np.ndarray:
    std = np.exp(log_std)
    return np.log(np.exp(-((values - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi)))


def entropy(distribution: ActionDistribution) -> Tensor:
    """Integrate minus the log-density over the draws."""
    draws = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    weights = torch.exp(-0.5 * draws**2)
    mean, log_std, is_squashed = distribution
    _, log_prob = ActionDistribution(mean[..., None], log_std[..., None], is_squashed).sample(draws)
    return -(log_prob * weights).sum(dim=-1) / weights.sum()


# --- entropy ----------------------------------------------------------------------------------------------------------


def test_the_entropy_table() -> None:
    found = entropy(squashed(torch.tensor(list(ENTROPIES))[:, None], torch.tensor(ENTROPY_LOG_STDS)))
    torch.testing.assert_close(found, torch.tensor(list(ENTROPIES.values()), dtype=torch.float64), rtol=0, atol=6e-5)


def test_the_entropy_rises_and_falls_with_the_deviation() -> None:
    """So it does not tell a narrow policy from one that is saturated."""
    log_stds = torch.linspace(-5, 2, 1401, dtype=torch.float64)
    centred, aside = entropy(squashed(0.0, log_stds)), entropy(squashed(2.0, log_stds))
    assert centred.max() == pytest.approx(0.6836, abs=1e-4)
    assert centred.max() < math.log(2)
    assert log_stds[centred.argmax()] == pytest.approx(-0.135, abs=5e-3)
    assert entropy(squashed(0.0, torch.tensor([-2.4109, 1.0714]))).tolist() == pytest.approx([-1, -1], abs=1e-4)
    assert aside.max() == pytest.approx(-1.2330, abs=1e-4)
    assert log_stds[aside.argmax()] == pytest.approx(0.38, abs=1e-2)


def test_the_entropy_of_one_sample_per_step_is_unbiased_and_its_error_is_known() -> None:
    """A batch of 256 windows of 20 steps: the mean is off by 0.017 nats with 3 dimensions, 0.024 with 6."""
    generator = torch.Generator().manual_seed(0)
    for action_dim, error in ((3, 0.017), (6, 0.024)):
        shape = (100, 256 * 20, action_dim)
        distribution = squashed(torch.zeros(shape), torch.full(shape, -2.4109), torch.float32)
        _, log_prob = distribution.sample(torch.randn(shape, generator=generator))
        estimates = -log_prob.sum(dim=-1).mean(dim=1)
        assert estimates.std() == pytest.approx(error, rel=0.4)
        assert estimates.mean() == pytest.approx(-action_dim, abs=0.4 * error)


# --- log-densities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("action", "mean", "log_std", "expected"), LOG_DENSITIES)
def test_the_table_of_log_densities(
    action: float, mean: float, log_std: float, expected: float, dtype: torch.dtype, tolerance: float
) -> None:
    found = squashed(mean, log_std, dtype).log_prob(torch.tensor(action, dtype=dtype), CLIP)
    assert found.item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("before", "mean", "log_std", "expected"), SAMPLE_LOG_DENSITIES)
def test_samples_are_scored_before_tanh(
    before: float, mean: float, log_std: float, expected: float, dtype: torch.dtype, tolerance: float
) -> None:
    """At 20 the tanh is 1 in double precision too, so nothing that inverts it can know the value before."""
    draws = torch.tensor((before - mean) / math.exp(log_std), dtype=dtype)
    action, found = squashed(mean, log_std, dtype).sample(draws)
    assert found.item() == pytest.approx(expected, abs=tolerance)
    assert action.item() == pytest.approx(math.tanh(before), abs=1e-7)


@settings(max_examples=200, deadline=None)
@given(st.floats(-0.9999, 0.9999), st.floats(-3, 3), st.floats(-2, 2))
def test_log_densities_equal_an_independent_formula(action: float, mean: float, log_std: float) -> None:
    before, std = 0.5 * math.log((1 + action) / (1 - action)), math.exp(log_std)
    expected = -((before - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi) * (1 - action**2))
    found = squashed(mean, log_std).log_prob(torch.tensor(action, dtype=torch.float64), CLIP)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-6)
    single = squashed(mean, log_std, torch.float32).log_prob(torch.tensor(action), CLIP)
    assert single.item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@settings(max_examples=200, deadline=None)
@given(st.floats(-20, 20), st.floats(-5, 2), st.floats(-4, 4))
def test_sample_log_densities_equal_an_independent_formula(mean: float, log_std: float, draw: float) -> None:
    before = mean + math.exp(log_std) * draw
    log_cosh = abs(before) + math.log1p(math.exp(-2 * abs(before))) - math.log(2)
    expected = -0.5 * draw**2 - log_std - 0.5 * math.log(2 * math.pi) + 2 * log_cosh
    _, found = squashed(mean, log_std).sample(torch.tensor(draw, dtype=torch.float64))
    assert found.item() == pytest.approx(expected, abs=1e-6)
    _, single = squashed(mean, log_std, torch.float32).sample(torch.tensor(draw))
    # A mean of 20 with a deviation of 0.007 loses four digits of the draw in float32.
    assert single.item() == pytest.approx(expected, abs=1e-4 + 4e-6 * abs(mean * draw) / math.exp(log_std))


@pytest.mark.parametrize("log_std", [-2.0, 0.0, 1.0])
def test_the_density_integrates_to_one(log_std: float) -> None:
    before = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    actions = torch.tanh(before[(before.abs() < 15)])
    log_prob = squashed(0.4, log_std).log_prob(actions, 1e-15)
    assert torch.trapezoid(log_prob.exp(), actions).item() == pytest.approx(1, abs=1e-5)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("log_std", "cost", "clip"), [(-5.0, 578_504, 1e-6), (-1.5, 513.85, 1e-6)])
def test_an_action_on_the_edge_costs_what_the_clamp_allows(log_std: float, cost: float, clip: float) -> None:
    """All of the four are clamped to the same value, also those beyond the box by rounding or more."""
    actions = torch.tensor([1.0, -1.0, 1.0000001, -1.5])
    found = squashed(0.0, log_std, torch.float32).log_prob(actions, clip)
    assert (-found).tolist() == pytest.approx([cost] * 4, rel=3e-5)


@pytest.mark.parametrize("clip", [1e-7, 1e-6, 1e-3])
@pytest.mark.parametrize("mean", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("log_std", [-5.0, 2.0])
def test_densities_and_gradients_are_finite_at_the_edges(mean: float, log_std: float, clip: float) -> None:
    parameters = torch.tensor([mean, log_std], requires_grad=True)
    distribution = ActionDistribution(parameters[0].expand(2), parameters[1].expand(2), squashed=True)
    given_log_prob = distribution.log_prob(torch.tensor([-1.0, 1.0]), clip)
    action, sample_log_prob = distribution.sample(torch.tensor([-5.0, 5.0]))
    (given_log_prob.sum() + sample_log_prob.sum() + action.sum()).backward()
    assert given_log_prob.isfinite().all()
    assert sample_log_prob.isfinite().all()
    assert action.abs().max() <= 1
    assert parameters.grad is not None
    assert parameters.grad.isfinite().all()


def test_a_clamp_that_float32_cannot_tell_from_none_is_refused() -> None:
    """1 - 1e-8 is 1 in float32, and its atanh infinite."""
    import pydantic

    kind = pydantic.TypeAdapter(StochasticModelConfig)
    with pytest.raises(pydantic.ValidationError, match="action_clip"):
        kind.validate_python({"action_clip": 1e-8})
    smallest = kind.validate_python({"action_clip": 1e-7}).action_clip
    assert squashed(0.0, 0.0, torch.float32).log_prob(torch.tensor([-1.0, 1.0]), smallest).isfinite().all()


def test_the_log_deviation_keeps_a_gradient_outside_its_usual_range() -> None:
    raw = torch.tensor([-4.0, 0.0, 4.0], requires_grad=True)
    log_std = bounded_log_std(raw, -5.0, 2.0)
    log_std.sum().backward()
    assert log_std.tolist() == pytest.approx([-4.99765, -1.5, 1.99765], abs=1e-4)
    assert raw.grad is not None
    assert raw.grad.tolist() == pytest.approx([4.6933e-3, 3.5, 4.6933e-3], rel=1e-3)


def test_gradients_flow_through_the_sample() -> None:
    """The derivative of -log(std) + 2 log cosh(mean + std * draw), which a detached sample does not have."""
    mean = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    ActionDistribution(mean, log_std, squashed=True).sample(torch.tensor(1.3, dtype=torch.float64))[1].backward()
    std = math.exp(-0.7)
    slope = 2 * math.tanh(0.3 + std * 1.3)
    assert mean.grad is not None
    assert log_std.grad is not None
    assert mean.grad.item() == pytest.approx(slope, abs=1e-9)
    assert log_std.grad.item() == pytest.approx(-1 + slope * std * 1.3, abs=1e-9)


# --- the plain Gaussian -----------------------------------------------------------------------------------------------


def test_the_plain_gaussian_is_neither_squashed_nor_clamped() -> None:
    generator = np.random.default_rng(0)
    actions, means = generator.uniform(-3, 3, 50), generator.uniform(-1, 1, 50)
    log_stds = generator.uniform(-1, 1, 50)
    distribution = ActionDistribution(torch.as_tensor(means), torch.as_tensor(log_stds), squashed=False)
    expected = gaussian_formula(actions, means, log_stds)
    np.testing.assert_allclose(distribution.log_prob(torch.as_tensor(actions), 0.1), expected, rtol=0, atol=1e-6)
    draws = torch.as_tensor(generator.normal(size=50))
    sampled, log_prob = distribution.sample(draws)
    np.testing.assert_allclose(sampled, means + np.exp(log_stds) * draws.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(log_prob, gaussian_formula(sampled.numpy(), means, log_stds), rtol=0, atol=1e-6)
    assert torch.equal(distribution.mode(), distribution.mean)
    expected_entropy = 0.5 * math.log(2 * math.pi * math.e) + distribution.log_std
    torch.testing.assert_close(entropy(distribution), expected_entropy, rtol=0, atol=1e-6)


# --- recorded arrays --------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(fixtures: Path) -> Recorded:
    return Recorded(fixtures / "odt_tanh_gaussian.npz")


@pytest.mark.parity
def test_the_heads_match_the_original(recorded: Recorded) -> None:
    width = recorded["head/hidden"].shape[-1]
    config = StochasticModelConfig(backbone="gpt2", embed_dim=width, num_layers=1, num_heads=2, num_kv_heads=2)
    model = StochasticTransformer(config, observation_dim=1, action_dim=3)
    weights = recorded.under("head/w/")
    for head, name in ((model.predict_mean, "mu"), (model.predict_log_std, "log_std")):
        head.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
    distribution = model.head(recorded["head/hidden"])
    assert_close(distribution.mean, recorded["head/mu"])
    assert_close(distribution.log_std, recorded["head/log_std"])
    assert_close(distribution.log_std.exp(), recorded["head/std"])
    assert_close(distribution.mode(), recorded["head/mean_action"])


@pytest.mark.parity
def test_the_map_of_log_deviations_matches_the_original(recorded: Recorded) -> None:
    found = bounded_log_std(recorded["map/raw"], *recorded.meta["log_std_bounds"])
    assert_close(found, recorded["map/log_std"])
    assert_close(found.exp(), recorded["map/std"])


@pytest.mark.parity
def test_log_densities_match_the_original(recorded: Recorded) -> None:
    distribution = ActionDistribution(recorded["logp/mu"], recorded["logp/log_std"], squashed=True)
    found = distribution.log_prob(recorded["logp/action"], CLIP)
    assert_close(found, recorded["logp/log_prob"], atol=2e-5)
    assert_close(found.sum(dim=-1), recorded["logp/log_likelihood"], atol=2e-5)


@pytest.mark.parity
def test_log_densities_at_the_edge_match_the_original(recorded: Recorded) -> None:
    means, log_stds = recorded["boundary/mu"][:, None], recorded["boundary/log_std"][:, None]
    found = squashed(means, log_stds, torch.float32).log_prob(recorded["boundary/action"], CLIP)
    torch.testing.assert_close(found, recorded["boundary/log_prob"], rtol=3e-5, atol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize("num_samples", [1, 5])
def test_entropy_estimates_match_the_original(recorded: Recorded, num_samples: int) -> None:
    distribution = ActionDistribution(recorded["ent/mu"], recorded["ent/log_std"], squashed=True)
    _, log_prob = distribution.sample(recorded[f"ent/eps_N{num_samples}"])
    assert_close(-log_prob.sum(dim=-1).mean(dim=0), recorded[f"ent/entropy_N{num_samples}"], atol=2e-5)


@pytest.mark.parity
def test_samples_match_the_original(recorded: Recorded) -> None:
    distribution = ActionDistribution(recorded["ent/mu"], recorded["ent/log_std"], squashed=True)
    actions, log_prob = distribution.sample(recorded["ent/sample_eps"])
    assert_close(actions, recorded["ent/sample_action"])
    assert_close(log_prob, recorded["ent/sample_log_prob"], atol=2e-5)


@pytest.mark.parity
def test_entropies_equal_the_exact_ones(recorded: Recorded) -> None:
    found = entropy(squashed(recorded["entconst/mu"], recorded["entconst/log_std"]))
    torch.testing.assert_close(found, recorded["entconst/entropy"], rtol=0, atol=1e-8)


@pytest.mark.parity
def test_loss_and_gradients_match_the_original(recorded: Recorded) -> None:
    """The original leaves padding out of the likelihood only; here both are without it, so each is measured apart."""
    parameters = [nn.Parameter(recorded["loss/mu"]), nn.Parameter(recorded["loss/log_std"])]
    real = recorded["loss/mask"].bool()
    assert 0 < real.float().mean() < 1
    measured = [
        policy_metrics(
            ActionDistribution(parameters[0], parameters[1], squashed=True),
            recorded["loss/action"],
            valid,
            temperature=torch.tensor(0.0),
            clip=CLIP,
            draws=recorded["loss/eps"][0],
        )
        for valid in (real, torch.ones_like(real))
    ]
    nll, estimate = measured[0]["nll"], measured[1]["entropy"]
    loss = nll - recorded["loss/lambda"] * estimate
    assert_close(nll, recorded["loss/nll"], atol=2e-5)
    assert_close(estimate, recorded["loss/entropy"])
    assert_close(loss, recorded["loss/loss"], atol=2e-5)
    loss.backward()
    for parameter, name in zip(parameters, ("mu", "log_std"), strict=True):
        expected = recorded[f"loss/grad_{name}"]
        assert parameter.grad is not None
        assert (parameter.grad - expected).abs().max() <= 5e-5 * expected.abs().max(), name

"""The world model of TD-MPC2: its size, its start, its formulas, and the arrays recorded from the original."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gq.costs.transformers import weights_without_memory
from gq.errors import UsageError
from gq.models.distributions import symexp, symlog, two_hot, two_hot_decode, two_hot_loss
from gq.models.kernels import normed_mish, simplicial
from gq.models.world_config import (
    WORLD_MODEL_SIZES,
    WorldModelConfig,
    discount_factor,
    parameter_counts,
    resolve_world_model_size,
)
from gq.models.world_model import EnsembleLinear, WorldModel
from test_parity import Recorded, assert_close

OBSERVATION_DIM, ACTION_DIM = 7, 3
TINY = WorldModelConfig(encoder_dim=16, mlp_dim=24, latent_dim=16, num_q=5)
BINS = torch.linspace(-10, 10, 101)
PREFIXES = {
    "encoder": "_encoder.state",
    "dynamics": "_dynamics",
    "reward_head": "_reward",
    "termination_head": "_termination",
    "policy_head": "_pi",
    "q_heads.layers": "_Qs.params",
    "target_q_heads.layers": "_target_Qs_params",
}


def make_model(config: WorldModelConfig = TINY, *, episodic: bool = False) -> WorldModel:
    """Return a model in which everything matters: no parameter is 0, and the target differs from Q."""
    torch.manual_seed(0)
    model = WorldModel(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM, episodic=episodic)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def original_name(name: str) -> str:
    """Return the original's name of one of our parameters."""
    match = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
    assert match
    network, layer, rest = match.groups()
    return f"{PREFIXES[network]}.{layer}.{re.sub('norm[._]', 'ln.', rest)}"


class OriginalWorld:
    """A recorded world model, loaded into ours."""

    def __init__(self, folder: Path, file: str) -> None:
        self.recorded = Recorded(folder / file)
        weights = self.recorded.under("w/")
        config = WorldModelConfig(
            encoder_dim=len(weights["_encoder.state.0.weight"]),
            num_encoder_layers=sum(bool(re.fullmatch(r"_encoder\.state\.\d+\.weight", name)) for name in weights),
            mlp_dim=len(weights["_dynamics.0.weight"]),
            latent_dim=len(weights["_dynamics.2.weight"]),
            num_q=len(weights["_Qs.params.0.weight"]),
            num_bins=len(weights["_reward.2.weight"]),
            dropout=0.0,
        )
        self.model = WorldModel(
            config,
            observation_dim=weights["_encoder.state.0.weight"].shape[1],
            action_dim=len(weights["_pi.2.weight"]) // 2,
            episodic="_termination.0.weight" in weights,
        ).eval()
        names = self.model.state_dict().keys()
        assert {original_name(name) for name in names} == weights.keys()
        self.model.load_state_dict({name: weights[original_name(name)] for name in names})


# --- sizes ------------------------------------------------------------------------------------------------------------

# Observation and action dimension, and the published parameter counts of sizes 1, 5, 19, 48 and 317.
COUNTS = {
    "pendulum": (3, 1, 1_197_745, 4_932_192, 17_994_848, 47_090_016, 312_263_631),
    "cartpole": (5, 1, 1_198_257, 4_932_704, 17_996_896, 47_093_600, 312_271_823),
    "reacher": (6, 2, 1_200_819, 4_937_570, 18_007_138, 47_111_522, 312_325_073),
    "hopper": (15, 4, 1_207_735, 4_949_094, 18_034_790, 47_159_910, 312_460_245),
    "cheetah": (17, 6, 1_212_859, 4_958_826, 18_055_274, 47_195_754, 312_566_745),
    "walker": (24, 6, 1_214_651, 4_960_618, 18_062_442, 47_208_298, 312_595_417),
    "quadruped": (78, 12, 1_242_311, 5_002_102, 18_173_046, 47_401_846, 313_111_525),
    "humanoid": (67, 21, 1_260_249, 5_040_776, 18_244_744, 47_527_304, 313_508_855),
    "dog": (223, 38, 1_339_387, 5_159_082, 18_561_194, 48_081_066, 314_983_449),
    "Hopper-v5": (11, 3, 1_204_405, 4_943_460, 18_021_476, 47_136_612, 312_394_707),
    "Ant-v5": (105, 8, 1_239_999, 4_990_574, 18_163_822, 47_385_710, 313_025_501),
    "Humanoid-v5": (348, 17, 1_322_961, 5_094_272, 18_495_616, 47_966_336, 314_463_215),
    "mt30": (24, 6, 1_426_427, 5_241_066, 16_031_210, 48_242_410, 317_316_889),
    "mt80": (39, 6, 1_435_067, 5_389_930, 18_970_218, 48_791_146, 317_383_129),
}
TERMINATION_HEADS = {"1": 199_297, "5": 527_873, "19": 1_842_177, "48": 4_600_065, "317": 22_441_985}
every_cell = pytest.mark.parametrize(
    ("task", "size", "expected"),
    [(task, size, row[2 + i]) for task, row in COUNTS.items() for i, size in enumerate(WORLD_MODEL_SIZES)],
)


def config_of(task: str, size: str) -> WorldModelConfig:
    """Return the shape behind a cell of the table; several tasks at once need an embedding."""
    config = resolve_world_model_size(size)
    if task == "mt30":
        wide = size in ("1", "317")
        latent_dim = 512 if size == "19" else config.latent_dim
        return replace(config, num_tasks=30, task_dim=96 if wide else 64, latent_dim=latent_dim)
    return replace(config, num_tasks=80, task_dim=96) if task == "mt80" else config


def trained(model: WorldModel) -> int:
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


@every_cell
def test_every_published_parameter_count_is_met_by_formula_and_by_instantiation(
    task: str, size: str, expected: int
) -> None:
    observation_dim, action_dim = COUNTS[task][:2]
    config = config_of(task, size)
    counts = parameter_counts(config, observation_dim=observation_dim, action_dim=action_dim)
    assert sum(counts.values()) == expected
    with weights_without_memory():
        model = WorldModel(config, observation_dim=observation_dim, action_dim=action_dim)
    assert trained(model) == expected
    assert sum(value.numel() for value in model.parameters()) == expected + counts["q"]


def test_the_networks_of_walker_have_the_published_shares() -> None:
    counts = parameter_counts(resolve_world_model_size("5"), observation_dim=24, action_dim=6)
    shares = {"encoder": 139_520, "dynamics": 794_112, "reward": 582_245, "policy": 533_516, "q": 2_911_225}
    assert {name: counts[name] for name in shares} == shares
    assert sum(counts.values()) + counts["q"] == 7_871_843


@pytest.mark.parametrize(("size", "expected"), TERMINATION_HEADS.items())
def test_the_termination_head_adds_its_published_count(size: str, expected: int) -> None:
    config, dims = resolve_world_model_size(size), {"observation_dim": 24, "action_dim": 6}
    assert parameter_counts(config, **dims, episodic=True)["termination"] == expected
    with weights_without_memory():
        assert trained(WorldModel(config, **dims, episodic=True)) - trained(WorldModel(config, **dims)) == expected


def test_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="there is no size 7") as caught:
        resolve_world_model_size("7")
    assert "1, 5, 19, 48, 317" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"latent_dim": 20}, "latent_dim 20"), ({"log_std_min": 3.0}, "log_std_min"), ({"num_tasks": 3}, "num_tasks 3")],
)
def test_impossible_shapes_are_named(change: dict, problem: str) -> None:
    assert TINY.problem() is None
    assert problem in str(replace(TINY, **change).problem())


@pytest.mark.parametrize(("length", "expected"), [(50, 0.95), (100, 0.95), (500, 0.99), (1000, 0.995), (5000, 0.995)])
def test_the_discount_follows_the_episode_length(length: int, expected: float) -> None:
    assert discount_factor(length) == pytest.approx(expected)


def test_a_task_may_limit_the_discount() -> None:
    assert discount_factor(1000, high=0.99) == 0.99


# --- the start --------------------------------------------------------------------------------------------------------


def weights_and_biases(model: WorldModel) -> tuple[list[Tensor], list[Tensor]]:
    """Return those of all linear layers but the ones that start at 0, the target's not included."""
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear | EnsembleLinear) and not name.startswith("target")
    ]
    names = {name for name, _ in layers}
    assert {"reward_head.2", "q_heads.layers.2"} < names
    weights = [layer.weight for name, layer in layers if name not in ("reward_head.2", "q_heads.layers.2")]
    return weights, [layer.bias for _, layer in layers]


def test_parameters_start_as_documented() -> None:
    torch.manual_seed(1)
    model = WorldModel(replace(TINY, mlp_dim=256, num_tasks=4, task_dim=8), observation_dim=50, action_dim=6)
    weights, biases = weights_and_biases(model)
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(weight.mean().item()) < 2e-3
    assert all((bias == 0).all() for bias in biases)
    assert (model.get_parameter("reward_head.2.weight") == 0).all()
    assert (model.get_parameter("q_heads.layers.2.weight") == 0).all()
    assert (model.get_parameter("q_heads.layers.0.norm_weight") == 1).all()
    assert (model.get_parameter("q_heads.layers.0.norm_bias") == 0).all()
    assert model.task_embedding is not None
    assert 0.01 < model.task_embedding.weight.abs().max().item() <= 0.02
    for name, value in model.q_heads.state_dict().items():
        assert torch.equal(value, model.target_q_heads.state_dict()[name])


def test_q_heads_start_apart() -> None:
    weight = WorldModel(TINY, observation_dim=4, action_dim=2).get_parameter("q_heads.layers.0.weight")
    assert all(not torch.equal(weight[0], other) for other in weight[1:])


def test_the_uniform_start_of_q_is_torchs_default_but_for_the_last_layer() -> None:
    torch.manual_seed(0)
    config = replace(TINY, mlp_dim=64, q_initialisation="uniform")
    model = WorldModel(config, observation_dim=4, action_dim=2)
    weight, bias = (model.get_parameter(f"q_heads.layers.1.{name}") for name in ("weight", "bias"))
    for parameter in (weight, bias):
        assert 0.12 < parameter.abs().max().item() <= 0.125  # 1 / sqrt(64)
    assert (model.get_parameter("q_heads.layers.2.weight") == 0).all()
    assert model.get_parameter("dynamics.0.weight").std().item() == pytest.approx(0.02, rel=0.1)


def test_an_untrained_model_is_indifferent() -> None:
    torch.manual_seed(0)
    model = WorldModel(TINY, observation_dim=4, action_dim=2)
    latents, actions = model.encode(torch.randn(6, 4)), torch.rand(6, 2)
    assert model.reward(latents, actions).abs().max() < 1e-6
    assert model.q_values(latents, actions).abs().max() < 1e-6
    torch.nn.init.normal_(model.get_parameter("reward_head.2.weight"), std=0.02)
    assert model.reward(latents, actions).abs().max() > 1e-3


# --- formulas ---------------------------------------------------------------------------------------------------------


@given(st.floats(-22025.0, 22025.0, width=32))
def test_two_hot_and_its_inverse_give_the_number_back(value: float) -> None:
    low, fraction = two_hot(torch.tensor([value]), 101, 10.0)
    weights = torch.zeros(1, 101).index_add_(1, low, (1 - fraction)[None]).index_add_(1, low + 1, fraction[None])
    assert symexp((weights * BINS).sum()).item() == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert 0 <= fraction.item() <= 1


def test_two_hot_clips_beyond_the_bins() -> None:
    low, fraction = two_hot(torch.tensor([-1e9, 1e9, 0.0]), 101, 10.0)
    assert low.tolist() == [0, 99, 50]
    assert fraction.tolist() == pytest.approx([0, 1, 0], abs=1e-4)


def test_two_hot_is_even_in_symlog_space() -> None:
    low, fraction = two_hot(symexp(torch.tensor([0.05, 1.0, -1.95])), 101, 10.0)
    assert (low + fraction).tolist() == pytest.approx([50.25, 55.0, 40.25], abs=1e-4)


def test_decoding_takes_the_expectation_before_symexp() -> None:
    logits = torch.full((101,), -1e4)
    logits[[50, 60]] = 0.0  # half at 0, half at 2 in symlog space
    assert two_hot_decode(logits, BINS).item() == pytest.approx(torch.expm1(torch.tensor(1.0)).item(), rel=1e-5)


def test_two_hot_loss_is_the_cross_entropy_of_dense_weights_with_finite_gradients() -> None:
    torch.manual_seed(0)
    logits = (30 * torch.randn(5, 4, 101)).requires_grad_()
    values = torch.tensor([0.0, -3.7, 22025.0, -1e8])
    target = two_hot(values, 101, 10.0)
    dense = torch.zeros(4, 101)
    dense[torch.arange(4), target.low] = 1 - target.fraction
    dense[torch.arange(4), target.low + 1] = target.fraction
    loss = two_hot_loss(logits, target)
    torch.testing.assert_close(loss, -(dense * logits.log_softmax(-1)).sum(-1))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_number_that_is_none_shows_in_the_loss() -> None:
    loss = two_hot_loss(torch.zeros(2, 101), two_hot(torch.tensor([torch.nan, torch.inf]), 101, 10.0))
    assert loss.isnan().tolist() == [True, False]


def test_symexp_inverts_symlog() -> None:
    values = torch.tensor([-22025.0, -1.0, -1e-6, 0.0, 1e-6, 3.0, 22025.0])
    torch.testing.assert_close(symexp(symlog(values)), values, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 24), (2, 3, 24)])
@pytest.mark.parametrize("num_networks", [0, 2])
def test_normed_mish_and_its_gradients_are_torchs(shape: tuple[int, ...], num_networks: int) -> None:
    torch.manual_seed(0)
    if num_networks and len(shape) < 3:
        shape = (num_networks, *shape)
    inputs = torch.randn(shape).mul_(3).add_(1)
    gain, shift = (torch.randn((num_networks, 24) if num_networks else (24,)) for _ in range(2))
    gain[..., 0] = 60  # far out on both sides
    arguments = [value.requires_grad_() for value in (inputs, gain, shift)]
    precise = [value.detach().double().requires_grad_() for value in arguments]
    gains, shifts = (value[:, None] if num_networks else value for value in precise[1:])
    expected = F.mish(F.layer_norm(precise[0], (24,), eps=1e-3) * gains + shifts)
    actual = normed_mish(*arguments, 1e-3)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(normed_mish(*(value.detach() for value in arguments), 1e-3), actual)
    weights = torch.randn(shape)
    slopes = torch.autograd.grad((actual * weights).sum(), arguments)
    for slope, wanted in zip(slopes, torch.autograd.grad((expected * weights).sum(), precise), strict=True):
        torch.testing.assert_close(slope.double(), wanted, rtol=1e-4, atol=1e-4)


def test_normed_mish_in_bfloat16_is_rounded_once() -> None:
    inputs, gain, shift = torch.randn(5, 24).bfloat16().requires_grad_(), torch.randn(24), torch.randn(24)
    actual = normed_mish(inputs, gain, shift, 1e-5)
    assert torch.equal(actual, normed_mish(inputs.float(), gain, shift, 1e-5).bfloat16())
    actual.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.dtype == torch.bfloat16


def test_simplicial_groups_are_softmaxes() -> None:
    values = torch.randn(4, 24, requires_grad=True)
    grouped = simplicial(values, 8).view(4, 3, 8)
    torch.testing.assert_close(grouped, values.view(4, 3, 8).softmax(-1))
    torch.testing.assert_close(grouped.sum(-1), torch.ones(4, 3))
    weights = torch.randn(4, 24)
    (slope,) = torch.autograd.grad((simplicial(values, 8) * weights).sum(), values)
    (expected,) = torch.autograd.grad((values.view(4, 3, 8).softmax(-1).view(4, 24) * weights).sum(), values)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-7)
    assert simplicial(torch.tensor([[1e30] + [0.0] * 7]), 8)[0, 0] == 1


# --- networks ---------------------------------------------------------------------------------------------------------


def test_policy_log_std_stays_within_its_bounds_and_the_action_is_squashed() -> None:
    model = make_model()
    with torch.no_grad():
        model.get_parameter("policy_head.2.weight").mul_(100)
    latents, draws = model.encode(torch.randn(50, OBSERVATION_DIM)), torch.randn(50, ACTION_DIM)
    location, raw = model.policy_head(latents).chunk(2, dim=-1)
    sample = model.policy(latents, draws)
    torch.testing.assert_close(sample.log_std, -10 + 6 * (raw.tanh() + 1))
    assert sample.log_std.min() >= -10
    assert sample.log_std.max() <= 2
    assert sample.log_std.min() < -9  # both ends were reached
    assert sample.log_std.max() > 1
    torch.testing.assert_close(sample.action, torch.tanh(location + draws * sample.log_std.exp()))
    torch.testing.assert_close(sample.mean, location.tanh())


def test_scaled_entropy_counts_the_action_dimension_once_more() -> None:
    model = make_model()
    sample = model.policy(model.encode(torch.randn(5, OBSERVATION_DIM)), torch.randn(5, ACTION_DIM))
    gaussian = torch.distributions.Normal(torch.zeros(()), sample.log_std.exp())
    log_prob = gaussian.log_prob(sample.draws * sample.log_std.exp()).sum(-1)
    torch.testing.assert_close(sample.scaled_entropy, -ACTION_DIM * log_prob)


def test_chosen_heads_are_those_of_all_heads() -> None:
    model = make_model().eval()
    latents, actions, heads = torch.rand(4, 2, 16), torch.rand(4, 2, ACTION_DIM), torch.tensor([3, 1])
    for target in (False, True):
        every = model.q_logits(latents, actions, target=target)
        assert every.shape == (5, 4, 2, 101)
        torch.testing.assert_close(model.q_logits(latents, actions, heads, target), every[heads])
        values = model.q_values(latents, actions, heads, target)
        torch.testing.assert_close(values, two_hot_decode(every[heads], BINS))
    assert not torch.allclose(model.q_values(latents, actions), model.q_values(latents, actions, target=True))


def test_q_heads_are_what_a_loop_over_networks_gives() -> None:
    model = make_model().eval()
    latents, actions = torch.rand(6, 16), torch.rand(6, ACTION_DIM)
    every = model.q_logits(latents, actions)
    for head in range(5):
        hidden = torch.cat([latents, actions], dim=-1)
        for layer in model.q_heads.layers:
            hidden = F.linear(hidden, layer.weight[head], layer.bias[head])
            if layer.norm_weight is not None:
                hidden = F.mish(F.layer_norm(hidden, (24,), layer.norm_weight[head], layer.norm_bias[head]))
        torch.testing.assert_close(every[head], hidden)


def test_dropout_acts_in_the_first_layer_of_q_while_training_and_nowhere_else() -> None:
    model = make_model(replace(TINY, dropout=0.3))
    latents, actions = torch.rand(40, 16), torch.rand(40, ACTION_DIM)
    calls = {
        "next": lambda: model.next(latents, actions),
        "reward": lambda: model.reward_logits(latents, actions),
        "policy": lambda: model.policy(latents, actions).action,
        "target": lambda: model.q_logits(latents, actions, target=True),
        "q": lambda: model.q_logits(latents, actions),
    }
    model.train()
    assert [name for name, call in calls.items() if not torch.equal(call(), call())] == ["q"]
    model.eval()
    assert all(torch.equal(call(), call()) for call in calls.values())
    assert [layer.dropout for layer in model.q_heads.layers] == [0.3, 0, 0]


def test_heads_drop_different_entries() -> None:
    model = make_model(replace(TINY, dropout=0.5)).train()
    with torch.no_grad():
        for parameter in model.q_heads.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    logits = model.q_logits(torch.rand(8, 16), torch.rand(8, ACTION_DIM))
    assert not torch.allclose(logits[0], logits[1])
    model.eval()
    logits = model.q_logits(torch.rand(8, 16), torch.rand(8, ACTION_DIM))
    torch.testing.assert_close(logits[0], logits[1])


def test_targets_have_no_gradient_and_are_saved() -> None:
    model = make_model(episodic=True)
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert names == {f"target_q_heads.{name}" for name, _ in model.q_heads.named_parameters()}
    assert names < model.state_dict().keys()
    assert "bins" not in model.state_dict()


def test_terminations_are_predicted_only_if_episodic() -> None:
    latents = torch.rand(2, 5, 16)
    assert make_model(episodic=True).termination_logits(latents).shape == (2, 5)
    with pytest.raises(AssertionError):
        make_model().termination_logits(latents)


def test_the_chosen_task_changes_everything_and_its_embedding_is_at_most_1_long() -> None:
    model = make_model(replace(TINY, num_tasks=2, task_dim=4)).eval()
    observations, actions = torch.randn(3, OBSERVATION_DIM), torch.rand(3, ACTION_DIM)
    first = model.encode(observations)
    model.task = 1
    assert not torch.allclose(first, model.encode(observations))
    outputs = [model.encode(observations), model.q_logits(first, actions), model.policy(first, actions).action]
    assert model.task_embedding is not None
    length = model.task_embedding.weight[1].norm()
    with torch.no_grad():
        model.task_embedding.weight[1].mul_(1 / length)
        expected = [model.encode(observations), model.q_logits(first, actions), model.policy(first, actions).action]
        model.task_embedding.weight[1].mul_(7)
    again = [model.encode(observations), model.q_logits(first, actions), model.policy(first, actions).action]
    for value, reference in zip(again, expected, strict=True):
        torch.testing.assert_close(value, reference)
    if length > 1:
        torch.testing.assert_close(outputs[0], expected[0])


def test_under_autocast_latents_and_numbers_are_float32_and_close() -> None:
    model = make_model(episodic=True).eval()
    observations, actions = torch.randn(20, OBSERVATION_DIM), torch.rand(20, ACTION_DIM)

    def outputs() -> list[Tensor]:
        latents = model.encode(observations)
        sample = model.policy(latents, actions)
        values = model.q_values(latents, actions)
        return [latents, model.next(latents, actions), model.reward(latents, actions), values, sample.action,
                sample.gaussian_log_prob, model.termination_logits(latents)]  # fmt: skip

    with torch.no_grad():
        precise = outputs()
        with torch.autocast("cpu", torch.bfloat16):
            assert model.q_logits(precise[0], actions).dtype == torch.bfloat16  # it did run in bfloat16
            coarse = outputs()
    for value, reference in zip(coarse, precise, strict=True):
        assert value.dtype == torch.float32
        assert (value - reference).abs().max() < 0.05 * reference.abs().max()


# --- recorded arrays --------------------------------------------------------------------------------------------------

both = pytest.mark.parametrize("file", ["tdmpc2_model.npz", "tdmpc2_episodic.npz"])


@pytest.fixture
def original(fixtures: Path, file: str) -> OriginalWorld:
    return OriginalWorld(fixtures, file)


@torch.no_grad()
def assert_networks_match(original: OriginalWorld) -> None:
    model, recorded = original.model, original.recorded
    actions = recorded["fwd/action"]
    latents = model.encode(recorded["fwd/obs"])
    assert_close(latents, recorded["fwd/z"])
    assert_close(model.next(latents, actions), recorded["fwd/next_z"])
    assert_close(model.reward_logits(latents, actions), recorded["fwd/reward_logits"])
    assert_close(model.reward(latents, actions), recorded["fwd/reward"][..., 0])
    for name, target in (("q", False), ("target_q", True)):
        assert_close(model.q_logits(latents, actions, target=target), recorded[f"fwd/{name}_logits"])
        assert_close(model.q_values(latents, actions, target=target), recorded[f"fwd/{name}"][..., 0])
        smaller = model.q_values(latents, actions, recorded[f"fwd/{name}_min_idx"], target).amin(dim=0)
        assert_close(smaller, recorded[f"fwd/{name}_min"][..., 0])
        mean = model.q_values(latents, actions, recorded[f"fwd/{name}_avg_idx"], target).mean(dim=0)
        assert_close(mean, recorded[f"fwd/{name}_avg"][..., 0])
    if model.episodic:
        assert_close(model.termination_logits(latents), recorded["fwd/termination_logit"][..., 0])


@pytest.mark.parity
@both
def test_networks_match_the_original(original: OriginalWorld) -> None:
    assert_networks_match(original)


@pytest.mark.parity
@both
@torch.no_grad()
def test_the_policy_matches_the_original(original: OriginalWorld) -> None:
    model, recorded = original.model, original.recorded
    sample = model.policy(model.encode(recorded["fwd/obs"]), recorded["fwd/pi_eps"])
    assert_close(sample.action, recorded["fwd/pi_action"])
    assert_close(sample.mean, recorded["fwd/pi_mean"])
    assert_close(sample.log_std, recorded["fwd/pi_log_std"])
    assert_close(sample.scaled_entropy, recorded["fwd/pi_scaled_entropy"][..., 0], atol=1e-4)
    cut = (1 - sample.action.square() + 1e-6).log().sum(dim=-1)  # ours is exact where tanh saturates
    assert_close(cut - sample.gaussian_log_prob, recorded["fwd/pi_entropy"][..., 0], atol=1e-2)


@pytest.mark.parity
def test_two_hot_matches_the_original(fixtures: Path) -> None:
    recorded = Recorded(fixtures / "tdmpc2_model.npz")
    values, logits = recorded["twohot/x"][:, 0], recorded["twohot/logits"]
    assert_close(symlog(values), recorded["twohot/symlog"][:, 0])
    assert_close(symexp(symlog(values)), recorded["twohot/symexp"][:, 0])
    target = two_hot(values, 101, 10.0)
    dense = torch.zeros(len(values), 101)
    rows = torch.arange(len(values))
    dense[rows, target.low] = 1 - target.fraction
    dense[rows, target.low + 1] = target.fraction
    assert_close(dense, recorded["twohot/target"], atol=2e-5)
    assert_close(two_hot_decode(logits, BINS), recorded["twohot/decoded"][:, 0])
    assert_close(two_hot_loss(logits, target), recorded["twohot/cross_entropy"][:, 0], atol=1e-4)


def change_norm_epsilon(model: WorldModel) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3


def change_groups(model: WorldModel) -> None:
    model.encoder[-1].group = 16  # type: ignore[assignment]


def change_order_of_heads(model: WorldModel) -> None:
    with torch.no_grad():
        for parameter in model.q_heads.parameters():
            parameter.copy_(parameter.flip(0))


@pytest.mark.parity
@pytest.mark.parametrize("file", ["tdmpc2_model.npz"])
@pytest.mark.parametrize("mistake", [change_norm_epsilon, change_groups, change_order_of_heads])
def test_a_mistake_in_the_networks_would_be_noticed(
    original: OriginalWorld, mistake: Callable[[WorldModel], None]
) -> None:
    mistake(original.model)
    with pytest.raises(AssertionError):
        assert_networks_match(original)

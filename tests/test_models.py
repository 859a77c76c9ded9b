"""What a prediction may depend on, padding, attention kernels and scaling, for both backbones."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gq.algos import dt
from gq.data.windows import Batch
from gq.models import attention, decision_transformer, gpt2, transformer
from gq.models.config import MLPConfig, ModelConfig
from gq.models.decision_transformer import DecisionTransformer
from gq.models.kernels import Dropout
from gq.models.mlp import ObservationMLP
from gq.models.scaling import Scaling
from gq.models.transformer import Qwen3Backbone

K, OBSERVATION_DIM, ACTION_DIM = 6, 5, 3
TINY = ModelConfig(embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, context_length=K, max_timestep=50)
SHAPES = {
    "qwen3": TINY,
    "qwen3-rotary-only": replace(TINY, positions="none", head_dim=6),
    "qwen3-window": replace(TINY, positions="window", rotary=False, head_dim=5),
    "gpt2": replace(TINY, backbone="gpt2", num_kv_heads=4, activation="relu"),
    "qwen3-output": replace(TINY, conditioning="output"),
    "gpt2-output": replace(TINY, backbone="gpt2", num_kv_heads=4, activation="relu", conditioning="output"),
}
both_backbones = pytest.mark.parametrize("backbone", ["qwen3", "gpt2"])
TOKENS = ["returns_to_go", "observations", "actions"]


def build(config: ModelConfig) -> DecisionTransformer:
    """Return a model whose weights are large enough for every dependence to show, with a lopsided action box."""
    torch.manual_seed(0)
    model = DecisionTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.scaling.set(
        observation_mean=np.linspace(-1, 1, OBSERVATION_DIM),
        observation_std=np.linspace(0.5, 2, OBSERVATION_DIM),
        action_low=np.full(ACTION_DIM, -0.4),
        action_high=np.array([0.4, 1.0, 2.0]),
        return_scale=10.0,
    )
    return model.eval()


def make_batch(*, num_windows: int = 4, num_steps: int = K, num_valid: int = K, seed: int = 0) -> Batch:
    """Return random windows of which the first `num_valid` steps are real."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(num_windows, num_steps, OBSERVATION_DIM, generator=generator),
        torch.rand(num_windows, num_steps, ACTION_DIM, generator=generator) * 0.8 - 0.4,
        torch.rand(num_windows, num_steps, 1, generator=generator) * 50,
        torch.arange(7, 7 + num_steps).expand(num_windows, -1),
        (torch.arange(num_steps) < num_valid).expand(num_windows, -1),
    )


def predict(model: DecisionTransformer, batch: Batch, valid: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps, valid)


def perturb(batch: Batch, name: str, step: int, amount: float = 3.0) -> Batch:
    changed = getattr(batch, name).clone()
    changed[:, step] += amount
    return batch._replace(**{name: changed})


# --- causality --------------------------------------------------------------------------------------------------------


def assert_causal(model: DecisionTransformer, valid: Tensor | None = None) -> None:
    """Change one token after another: what was predicted before it stays, what comes right after it changes."""
    batch = make_batch()
    before = predict(model, batch, valid)
    for step in range(K):
        for name in TOKENS:
            change = (predict(model, perturb(batch, name, step), valid) - before).abs().amax(dim=(0, 2))  # [K]
            first_affected = step + (name == "actions")
            assert change[:first_affected].eq(0).all(), f"{name} of step {step} is seen by an earlier prediction"
            if name == "returns_to_go" and model.config.conditioning == "output":
                assert change[step] > 0
                assert change[step + 1 :].eq(0).all(), "a return-to-go is seen by its own step alone"
                continue
            assert change[first_affected:].gt(0).all(), f"{name} of step {step} is not seen by a later prediction"


@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_depend_on_what_came_before_and_on_nothing_else(shape: str) -> None:
    assert_causal(build(SHAPES[shape]))


@both_backbones
def test_predictions_are_causal_with_a_padding_mask(backbone: str) -> None:
    assert_causal(build(SHAPES[backbone]), torch.ones(4, K, dtype=torch.bool))


def invert_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each token attend to itself and to what comes later, as a negated keep-mask does."""

    def later(num_tokens: int, queries: slice, device: torch.device) -> Tensor:
        return torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).triu()[queries]

    def attend_later(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        mask = later(key.shape[2], slice(None), key.device) if mask is None else mask
        return attention.attend(query, key, value, mask, dropout)

    monkeypatch.setattr(attention, "causal_mask", later)
    monkeypatch.setattr(transformer, "attend", attend_later)
    monkeypatch.setattr(gpt2, "attend", attend_later)


@both_backbones
def test_the_causality_check_catches_an_inverted_mask(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SHAPES[backbone])
    invert_attention(monkeypatch)
    with pytest.raises(AssertionError, match="seen by"):
        assert_causal(model)


@both_backbones
def test_the_causality_check_catches_an_inverted_padding_mask(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = decision_transformer.attention_mask
    monkeypatch.setattr(decision_transformer, "attention_mask", lambda *args: right(*args).transpose(-1, -2))
    with pytest.raises(AssertionError, match="seen by"):
        assert_causal(build(SHAPES[backbone]), torch.ones(4, K, dtype=torch.bool))


@both_backbones
def test_the_causality_check_catches_full_attention(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SHAPES[backbone])
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **options: plain(*args, **options | {"is_causal": False})
    )
    with pytest.raises(AssertionError, match="seen by"):
        assert_causal(model)


# --- leak probe -------------------------------------------------------------------------------------------------------

NUM_PROBE_UPDATES = 250


def error_on_random_actions(backbone: str) -> float:
    """Train on actions that nothing announces; return the mean error of the last 50 updates over their variance."""
    torch.manual_seed(1)
    config = replace(SHAPES[backbone], context_length=4)
    model = DecisionTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(NUM_PROBE_UPDATES):
        actions = torch.rand(64, 4, ACTION_DIM) * 2 - 1  # variance 1/3
        observations, returns = torch.randn(64, 4, OBSERVATION_DIM), torch.rand(64, 4, 1)
        batch = Batch(
            observations, actions, returns, torch.arange(4).expand(64, -1), torch.ones(64, 4, dtype=torch.bool)
        )
        loss = dt.action_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    return 3 * float(np.mean(errors[-50:]))


@both_backbones
def test_random_actions_cannot_be_predicted(backbone: str) -> None:
    assert 0.95 <= error_on_random_actions(backbone) <= 1.1


@both_backbones
def test_the_leak_probe_catches_an_inverted_mask(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    invert_attention(monkeypatch)
    assert error_on_random_actions(backbone) < 0.5


# --- acting and padding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, K - 1, K])
@pytest.mark.parametrize("shape", SHAPES)
def test_act_equals_the_last_prediction_of_forward(shape: str, num_steps: int) -> None:
    model, batch = build(SHAPES[shape]), make_batch(num_steps=num_steps)
    earlier = batch.actions[:, :-1]
    with torch.no_grad():
        chosen = model.act(batch.observations, earlier, batch.returns_to_go, batch.timesteps)
        not_given = model(batch.observations, earlier, batch.returns_to_go, batch.timesteps)
    for predicted in (predict(model, batch), not_given):
        torch.testing.assert_close(chosen, model.scaling.unscale_actions(predicted)[:, -1], rtol=0, atol=2e-6)
    assert chosen.shape == (4, ACTION_DIM)
    assert not_given.shape == (4, num_steps, ACTION_DIM)


def test_at_first_the_output_does_not_depend_on_the_return() -> None:
    config, batch = SHAPES["qwen3-output"], make_batch()
    model = DecisionTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    assert torch.equal(predict(model, batch), predict(model, perturb(batch, "returns_to_go", 2)))


def test_the_return_at_the_output_switches_between_two_behaviours() -> None:
    torch.manual_seed(0)
    config = replace(TINY, conditioning="output", positions="none", context_length=2)
    model = DecisionTransformer(config, observation_dim=1, action_dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    returns = torch.tensor([[0.0], [1.0]]).repeat(8, 2)[..., None]  # [16, 2, 1]
    actions, steps = returns - 0.5, torch.zeros(16, 2, dtype=torch.int64)
    batch = Batch(torch.ones(16, 2, 1), actions, returns, steps, torch.ones(16, 2, dtype=torch.bool))
    for _ in range(150):
        optimizer.zero_grad()
        dt.action_loss(model, batch).backward()
        optimizer.step()
    first = [torch.ones(2, 1, 1), torch.zeros(2, 0, 1), torch.tensor([[[0.0]], [[1.0]]]), steps[:2, :1]]
    assert model.act(*first).flatten().tolist() == pytest.approx([-0.5, 0.5], abs=0.1)


@both_backbones
def test_a_later_return_to_go_changes_the_action(backbone: str) -> None:
    model, batch = build(SHAPES[backbone]), make_batch()
    with torch.no_grad():
        wanted = [
            model.act(batch.observations, batch.actions[:, :-1], batch.returns_to_go + more, batch.timesteps)
            for more in (0.0, 5.0)
        ]
    assert (wanted[0] - wanted[1]).abs().amax(dim=1).min() > 1e-3


def pad_left(batch: Batch, num_padded: int, content: float) -> Batch:
    """Put steps of the given content before the window and shorten nothing."""
    shape = (len(batch.valid), num_padded)
    return Batch(
        torch.cat([torch.full((*shape, OBSERVATION_DIM), content), batch.observations], dim=1),
        torch.cat([torch.full((*shape, ACTION_DIM), content), batch.actions], dim=1),
        torch.cat([torch.full((*shape, 1), content), batch.returns_to_go], dim=1),
        torch.cat([torch.full(shape, int(abs(content))), batch.timesteps], dim=1),
        torch.cat([torch.zeros(shape, dtype=torch.bool), batch.valid], dim=1),
    )


@pytest.mark.parametrize("num_padded", [1, 3, K - 1])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "qwen3-window"])  # whose steps would move
def test_a_left_padded_window_equals_the_unpadded_one(shape: str, num_padded: int) -> None:
    model, batch = build(SHAPES[shape]), make_batch(num_steps=K - num_padded)
    padded = [pad_left(batch, num_padded, content) for content in (0.0, -10.0, 49.0)]
    predicted = [predict(model, window, window.valid)[:, num_padded:] for window in padded]
    assert (predicted[0] - predict(model, batch)).abs().max() < 1e-5
    assert all(torch.equal(predicted[0], other) for other in predicted[1:]), "the content of padding matters"
    assert (predict(model, padded[2])[:, num_padded:] - predicted[2]).abs().max() > 1e-3, "padding must be masked"


@both_backbones
def test_a_fully_padded_prefix_gives_finite_numbers(backbone: str) -> None:
    model, batch = build(SHAPES[backbone]), make_batch()
    nothing = torch.zeros_like(batch.valid)
    assert predict(model, batch, nothing).isfinite().all()


@both_backbones
def test_right_padding_changes_neither_valid_predictions_nor_the_loss(backbone: str) -> None:
    model, batch = build(SHAPES[backbone]), make_batch(num_valid=2)
    refilled = (torch.cat([array[:, :2], torch.full_like(array[:, 2:], 40)], dim=1) for array in batch[:4])
    other = Batch(*refilled, batch.valid)  # type: ignore[call-arg]
    shorter = Batch(*(array[:, :2] for array in batch))
    assert torch.equal(predict(model, batch)[:, :2], predict(model, other)[:, :2])
    assert torch.equal(dt.action_loss(model, batch), dt.action_loss(model, other))
    torch.testing.assert_close(dt.action_loss(model, batch), dt.action_loss(model, shorter), rtol=1e-6, atol=0)
    everything_counts = dt.action_loss(model, other._replace(valid=torch.ones_like(other.valid)))
    assert everything_counts > 10 * dt.action_loss(model, other)


def test_the_loss_is_the_mean_over_valid_steps_and_action_dimensions() -> None:
    model, batch = build(TINY), make_batch()
    batch = batch._replace(valid=torch.rand(4, K, generator=torch.Generator().manual_seed(3)) < 0.5)
    error = (predict(model, batch) - model.scaling.scale_actions(batch.actions)) ** 2
    by_hand = np.mean([error[b, t, a] for b, t in batch.valid.nonzero().tolist() for a in range(ACTION_DIM)])
    assert dt.action_loss(model, batch).item() == pytest.approx(by_hand, rel=1e-5)


def test_timesteps_beyond_the_table_share_its_last_row() -> None:
    model, batch = build(TINY), make_batch()
    late = [predict(model, batch._replace(timesteps=torch.full_like(batch.timesteps, t))) for t in (48, 49, 50, 5000)]
    assert torch.equal(late[1], late[2])
    assert torch.equal(late[1], late[3])
    assert not torch.equal(late[0], late[1])


# --- attention --------------------------------------------------------------------------------------------------------


def random_heads(num_heads: int, num_kv_heads: int, num_queries: int, num_keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, num_heads, num_queries, 8), (3, num_kv_heads, num_keys, 8), (3, num_kv_heads, num_keys, 8)]
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 2), (4, 1), (1, 1)])
@pytest.mark.parametrize("case", ["causal", "explicit", "per-window", "every third query", "last query"])
def test_matrix_products_equal_the_fused_kernel(num_heads: int, num_kv_heads: int, case: str) -> None:
    queries = {"every third query": slice(1, None, 3), "last query": slice(-1, None)}.get(case, slice(None))
    query, key, value = random_heads(num_heads, num_kv_heads, 11, 11)
    keep = torch.ones(11, 11, dtype=torch.bool).tril()
    if case == "explicit":
        keep = (torch.rand(11, 11, generator=torch.Generator().manual_seed(1)) < 0.4) | torch.eye(11, dtype=torch.bool)
    if case == "per-window":
        valid = torch.arange(11) >= torch.tensor([0, 4, 9])[:, None]
        keep = (keep & valid[:, None, None]) | torch.eye(11, dtype=torch.bool)
    query, keep = query[:, :, queries], keep[..., queries, :]
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=keep, enable_gqa=num_heads != num_kv_heads)
    mask = None if case == "causal" else keep
    torch.testing.assert_close(
        attention.grouped_matmul_attention(query, key, value, mask, 0.0), fused, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(attention.attend(query, key, value, mask, 0.0), fused, rtol=0, atol=1e-6)
    halved = attention.attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask, 0.0)
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.float(), fused, rtol=0, atol=0.03)


def test_query_heads_share_keys_in_consecutive_groups() -> None:
    query, key, value = random_heads(4, 2, 5, 5)
    every = attention.grouped_matmul_attention(query, key, value, None, 0.0)
    for head in range(4):
        group = slice(head // 2, head // 2 + 1)
        alone = attention.attend(query[:, head : head + 1], key[:, group], value[:, group], None, 0.0)
        torch.testing.assert_close(every[:, head : head + 1], alone, rtol=0, atol=1e-6)


def test_attention_dropout_keeps_the_mean_and_drops_something() -> None:
    torch.manual_seed(0)
    query, key, value = (array.double() for array in random_heads(2, 2, 6, 6))
    exact = attention.grouped_matmul_attention(query, key, value, None, 0.0)
    draws = torch.stack([attention.grouped_matmul_attention(query, key, value, None, 0.2) for _ in range(2000)])
    assert (draws.mean(dim=0) - exact).abs().max() < 0.1
    assert draws.std(dim=0).mean() > 0.1


@pytest.mark.parametrize("queries", [slice(1, None, 3), slice(-1, None), slice(None)])
@both_backbones
def test_choosing_queries_equals_choosing_from_all_outputs(backbone: str, queries: slice) -> None:
    trunk = build(SHAPES[backbone]).backbone
    tokens = torch.randn(2, 3 * K - 1, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3 * K - 1, 3 * K - 1, dtype=torch.bool).tril()
    everything = trunk(tokens)
    torch.testing.assert_close(trunk(tokens, None, queries), everything[:, queries], rtol=0, atol=2e-6)
    torch.testing.assert_close(trunk(tokens, mask, queries), everything[:, queries], rtol=0, atol=2e-6)


# --- parameters and settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_every_parameter_gets_a_gradient(shape: str) -> None:
    model = build(SHAPES[shape])
    dt.action_loss(model, make_batch()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is never used"
        assert parameter.grad.abs().max() > 1e-7, name


def test_every_parameter_of_behaviour_cloning_gets_a_gradient() -> None:
    model = ObservationMLP(MLPConfig(context_length=2), observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    batch = make_batch(num_steps=2)
    model(batch.observations, batch.valid).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("backbone", "field", "value"),
    [
        ("qwen3", "backbone", "gpt2"),
        ("qwen3", "embed_dim", 64),
        ("qwen3", "num_layers", 3),
        ("qwen3", "num_heads", 8),
        ("qwen3", "num_kv_heads", 1),
        ("qwen3", "head_dim", 6),
        ("qwen3", "mlp_ratio", 2.0),
        ("qwen3", "activation", "gelu"),
        ("qwen3", "dropout", 0.2),
        ("qwen3", "context_length", 7),
        ("qwen3", "conditioning", "output"),
        ("qwen3", "positions", "none"),
        ("qwen3", "positions", "window"),
        ("qwen3", "rotary", False),
        ("qwen3", "max_timestep", 5),
        ("qwen3", "rope_theta", 100.0),
        ("gpt2", "head_dim", 6),
        ("gpt2", "mlp_ratio", 2.0),
        ("gpt2", "activation", "gelu"),
        ("gpt2", "dropout", 0.2),
        ("gpt2", "positions", "none"),
        ("gpt2", "positions", "window"),
        ("gpt2", "max_timestep", 5),
    ],
)
def test_every_setting_of_a_model_changes_the_model(backbone: str, field: str, value: Any) -> None:
    config = SHAPES[backbone]
    changed = replace(config, **{field: value})
    if field == "backbone":
        changed = replace(changed, num_kv_heads=4)
    models = [build(shape).train() for shape in (config, changed)]
    shapes = [{name: tuple(array.shape) for name, array in model.named_buffers()} for model in models]
    for found, model in zip(shapes, models, strict=True):
        found |= {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if shapes[0] == shapes[1]:
        assert not torch.equal(predict(models[0], make_batch()), predict(models[1], make_batch()))


def test_every_setting_of_a_model_is_in_the_list_above() -> None:
    listed = {case[1] for case in test_every_setting_of_a_model_changes_the_model.pytestmark[0].args[1]}
    assert listed == set(ModelConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("field", "value"),
    [("embed_dim", 8), ("num_layers", 2), ("activation", "gelu"), ("dropout", 0.4), ("context_length", 2)],
)
def test_every_setting_of_behaviour_cloning_changes_the_model(field: str, value: Any) -> None:
    found = []
    for config in (MLPConfig(), replace(MLPConfig(), **{field: value})):
        torch.manual_seed(0)
        model = ObservationMLP(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
        batch = make_batch(num_steps=config.context_length)
        shapes = [tuple(parameter.shape) for parameter in model.parameters()]
        found.append((shapes, model(batch.observations, batch.valid).tolist()))
    assert found[0] != found[1]
    assert len(MLPConfig.__dataclass_fields__) == 5


@both_backbones
def test_dropout_acts_in_training_only(backbone: str) -> None:
    model, batch = build(replace(SHAPES[backbone], dropout=0.3)), make_batch()
    without = build(SHAPES[backbone])
    assert torch.equal(predict(model, batch), predict(without, batch))
    model.train()
    assert not torch.equal(predict(model, batch), predict(model, batch))


@both_backbones
def test_one_rate_governs_every_dropout(backbone: str) -> None:
    model = build(replace(SHAPES[backbone], dropout=0.3)).train()
    used: list[nn.Module] = []
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: used.append(module))
    predict(model, make_batch())
    assert {layer.rate for layer in layers} == {0.3}
    assert set(used) == set(layers), "one of them is never applied"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"embed_dim": 30}, "not a multiple of model.num_heads"),
        ({"num_kv_heads": 3}, "not a multiple of model.num_kv_heads"),
        ({"backbone": "gpt2"}, "no grouped queries"),
        ({"head_dim": 5}, "even head width"),
    ],
)
def test_impossible_shapes_are_refused_with_the_reason(values: dict[str, Any], problem: str) -> None:
    config = replace(TINY, **values)
    assert problem in str(config.problem())
    with pytest.raises(ValueError, match=problem):
        DecisionTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)


def test_possible_shapes_have_no_problem() -> None:
    assert all(config.problem() is None for config in SHAPES.values())
    assert replace(TINY, embed_dim=30, head_dim=8).problem() is None
    assert replace(SHAPES["gpt2"], head_dim=5).problem() is None, "an odd head width matters to rotations only"


def test_bfloat16_predictions_are_close_to_float32() -> None:
    model, batch = build(TINY), make_batch()
    exact = predict(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        halved = predict(model, batch)
    assert halved.dtype == torch.float32, "the head is computed in float32"
    assert 0 < (halved - exact).abs().max() < 0.05


def test_a_saved_model_predicts_the_same() -> None:
    model, batch = build(TINY), make_batch()
    other = DecisionTransformer(TINY, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(predict(model, batch), predict(other, batch))
    assert not any(name.startswith("backbone.cos") for name in model.state_dict()), "tables are computed, not saved"
    assert isinstance(other.backbone, Qwen3Backbone)


def test_behaviour_cloning_counts_missing_observations_as_average_ones() -> None:
    torch.manual_seed(0)
    model = ObservationMLP(MLPConfig(context_length=3), observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM).eval()
    model.scaling.observation_mean.fill_(2.0)
    observations, valid = make_batch(num_steps=3).observations, torch.tensor([False, True, True]).expand(4, -1)
    average = torch.cat([torch.full_like(observations[:, :1], 2.0), observations[:, 1:]], dim=1)
    everything = torch.ones_like(valid)
    assert torch.equal(model(observations, valid), model(average, everything))
    assert not torch.equal(model(observations, valid), model(observations, everything))


# --- scaling ----------------------------------------------------------------------------------------------------------

BOXES = [(-0.4, 0.4), (-1.0, 1.0), (-2.0, 2.0), (-3.0, 1.0), (0.25, 0.75)]


def scaling_of(low: list[float], high: list[float]) -> Scaling:
    scaling = Scaling(2, len(low))
    scaling.set(
        observation_mean=np.array([1.0, -2.0]),
        observation_std=np.array([0.5, 4.0]),
        action_low=np.array(low),
        action_high=np.array(high),
        return_scale=1000.0,
    )
    return scaling


@pytest.mark.parametrize(("low", "high"), BOXES)
def test_the_corners_and_the_centre_of_the_box_become_minus_one_one_and_zero(low: float, high: float) -> None:
    scaling = scaling_of([low], [high])
    in_box = torch.tensor([[low], [high], [(low + high) / 2]])
    torch.testing.assert_close(scaling.scale_actions(in_box), torch.tensor([[-1.0], [1.0], [0.0]]), rtol=0, atol=1e-6)
    assert torch.equal(scaling.unscale_actions(torch.tensor([[-1.0], [1.0]])), in_box[:2])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5, width=32), st.floats(0.125, 8, width=32)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_actions_survive_scaling_in_any_box(boxes: list[tuple[float, float]], seed: int) -> None:
    low, high = [box[0] for box in boxes], [box[0] + box[1] for box in boxes]
    scaling = scaling_of(low, high)
    unit = torch.rand(20, len(boxes), generator=torch.Generator().manual_seed(seed))
    actions = torch.lerp(scaling.action_low, scaling.action_high, unit)
    scaled = scaling.scale_actions(actions)
    assert scaled.abs().max() <= 1 + 1e-4
    torch.testing.assert_close(scaling.unscale_actions(scaled), actions, rtol=0, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-5, 5, width=32),
    st.floats(0.0625, 8, width=32),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
)
def test_unscaled_actions_never_leave_the_box(low: float, width: float, scaled: list[float]) -> None:
    scaling = scaling_of([low], [low + width])
    near_the_edge = [math.nextafter(1.0, 0.0), 1 - 2**-24, -1 + 2**-24, 1.0, -1.0]
    actions = scaling.unscale_actions(torch.tensor([*scaled, *near_the_edge])[:, None])
    assert (actions >= scaling.action_low).all()
    assert (actions <= scaling.action_high).all()


def test_observations_and_returns_are_scaled_by_the_stored_numbers() -> None:
    scaling = scaling_of([-1.0], [1.0])
    assert scaling.scale_observations(torch.tensor([2.0, 2.0])).tolist() == [2.0, 1.0]
    assert scaling.scale_returns(torch.tensor([3600.0])).item() == pytest.approx(3.6)
    assert set(scaling.state_dict()) == {
        "observation_mean",
        "observation_std",
        "action_low",
        "action_high",
        "return_scale",
    }


def test_the_model_scales_what_it_is_given_and_what_it_returns() -> None:
    """The same situation in other units gives the same prediction, and the action in those units."""
    model, batch = build(TINY), make_batch()
    plain = build(TINY)
    plain.scaling.load_state_dict(Scaling(OBSERVATION_DIM, ACTION_DIM).state_dict())
    scaled = batch._replace(
        observations=model.scaling.scale_observations(batch.observations),
        actions=model.scaling.scale_actions(batch.actions),
        returns_to_go=model.scaling.scale_returns(batch.returns_to_go),
    )
    torch.testing.assert_close(predict(model, batch), predict(plain, scaled), rtol=0, atol=1e-6)
    with torch.no_grad():
        action = model.act(*(batch.observations, batch.actions[:, :-1], batch.returns_to_go, batch.timesteps))
        unit = plain.act(*(scaled.observations, scaled.actions[:, :-1], scaled.returns_to_go, scaled.timesteps))
    torch.testing.assert_close(action, model.scaling.unscale_actions(unit), rtol=0, atol=1e-6)

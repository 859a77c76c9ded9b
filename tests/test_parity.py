"""The models and the update against arrays recorded from the original programs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import NOT_KEPT, OWN_RECORDINGS
from gq.algos.dt import action_loss
from gq.algos.supervised import SupervisedLearner
from gq.config import OptimConfig, TrainConfig
from gq.data.windows import Batch
from gq.models.config import ModelConfig
from gq.models.decision_transformer import DecisionTransformer
from gq.models.transformer import Qwen3Backbone, rotary_table

pytestmark = pytest.mark.parity


class Recorded:
    """One file of recorded arrays; a test is skipped that asks for others than those which the repository keeps."""

    def __init__(self, path: Path) -> None:
        self.is_cut = path.parent == OWN_RECORDINGS
        if self.is_cut and not path.is_file():
            self.skip()
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.meta = json.loads(str(self.arrays["meta/json"]))

    def __getitem__(self, name: str) -> Tensor:
        if self.is_cut and name not in self.arrays:
            self.skip()
        return torch.as_tensor(self.arrays[name])

    def under(self, prefix: str) -> dict[str, Tensor]:
        found = {name.removeprefix(prefix): self[name] for name in self.arrays if name.startswith(prefix)}
        if self.is_cut and not found:
            self.skip()
        return found

    @staticmethod
    def skip() -> None:
        pytest.skip(NOT_KEPT)

    def has(self, name: str) -> bool:
        return name in self.arrays


def assert_close(actual: Tensor, expected: Tensor, atol: float = 5e-6) -> None:
    torch.testing.assert_close(actual.detach().float(), expected.float(), rtol=1e-5, atol=atol)


# --- dt_gpt2.npz ------------------------------------------------------------------------------------------------------


def find_number(meta: Any, *names: str) -> int:
    """Return the first number under one of the names, anywhere in the metadata."""
    if isinstance(meta, dict):
        for name in names:
            if isinstance(meta.get(name), int | float):
                return int(meta[name])
        for value in meta.values():
            try:
                return find_number(value, *names)
            except KeyError:
                continue
    raise KeyError(names)


def gpt2_names(num_layers: int) -> dict[str, str]:
    """Return our parameter names by the original's."""
    names = {
        "embed_timestep.weight": "embed_position.weight",
        "embed_ln.weight": "embed_norm.weight",
        "embed_ln.bias": "embed_norm.bias",
        "transformer.ln_f.weight": "backbone.norm.weight",
        "transformer.ln_f.bias": "backbone.norm.bias",
        "predict_action.0.weight": "predict_action.weight",
        "predict_action.0.bias": "predict_action.bias",
    }
    for theirs, ours in (("return", "return"), ("state", "observation"), ("action", "action")):
        names |= {f"embed_{theirs}.{part}": f"embed_{ours}.{part}" for part in ("weight", "bias")}
    pieces = {
        "ln_1": "attention_norm",
        "attn.c_attn": "query_key_value",
        "attn.c_proj": "output",
        "ln_2": "mlp_norm",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    }
    for layer in range(num_layers):
        for theirs, ours in pieces.items():
            for part in ("weight", "bias"):
                names[f"transformer.h.{layer}.{theirs}.{part}"] = f"backbone.blocks.{layer}.{ours}.{part}"
    return names


def to_ours(name: str, value: Tensor) -> Tensor:
    """Turn GPT-2's [in, out] matrices around."""
    return value.T.contiguous() if ".c_" in name and name.endswith("weight") else value


class OriginalDT:
    """The recorded Decision Transformer, loaded into ours."""

    def __init__(self, folder: Path) -> None:
        self.recorded = Recorded(folder / "dt_gpt2.npz")
        weights = self.recorded.under("w/")
        width, observation_dim = weights["embed_state.weight"].shape
        num_layers = len({name.split(".")[2] for name in weights if name.startswith("transformer.h.")})
        num_heads = find_number(self.recorded.meta, "n_head", "num_heads", "heads")
        self.config = ModelConfig(
            backbone="gpt2",
            embed_dim=width,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            mlp_ratio=weights["transformer.h.0.mlp.c_fc.bias"].shape[0] / width,
            activation="relu",
            dropout=0.0,
            context_length=self.recorded["batch0/states"].shape[1],
            max_timestep=weights["embed_timestep.weight"].shape[0],
        )
        action_dim = weights["embed_action.weight"].shape[1]
        self.model = DecisionTransformer(self.config, observation_dim=observation_dim, action_dim=action_dim)
        self.names = gpt2_names(num_layers)
        ours = {self.names[name]: to_ours(name, value) for name, value in weights.items() if name in self.names}
        missing, unexpected = self.model.load_state_dict(ours, strict=False)
        assert not unexpected
        assert all(name.startswith("scaling.") for name in missing)

    def inputs(self, prefix: str) -> tuple[Tensor, ...]:
        states, actions, returns, timesteps = (
            self.recorded[f"{prefix}/{name}"] for name in ("states", "actions", "rtg", "timesteps")
        )
        return states, actions, returns[:, : states.shape[1]], timesteps


@pytest.fixture
def original(fixtures: Path) -> OriginalDT:
    return OriginalDT(fixtures)


def test_gpt2_predictions_with_left_padding_match_the_original(original: OriginalDT) -> None:
    recorded, model = original.recorded, original.model.eval()
    states, actions, returns, timesteps = original.inputs("batch0")
    real = recorded["batch0/mask"].bool()
    tokens = model.embed(states, actions, returns, timesteps)
    assert_close(tokens, recorded["fwd_masked/tokens_embedded"])
    predicted = model(states, actions, returns, timesteps, real)
    assert real.sum() < real.numel(), "the recorded batch has padding"
    assert_close(predicted[real], recorded["fwd_masked/action_preds"][real])
    unmasked = model(states, actions, returns, timesteps)
    assert (unmasked[real] - recorded["fwd_masked/action_preds"][real]).abs().max() > 1e-3, "padding must be masked"


def test_gpt2_trunk_and_the_heads_that_we_left_out_match_the_original(original: OriginalDT) -> None:
    recorded, model = original.recorded, original.model.eval()
    real = recorded["batch0/mask"].bool()
    from gq.models.decision_transformer import attention_mask

    tokens = model.embed(*original.inputs("batch0"))
    trunk = model.backbone(tokens, attention_mask(real, tokens.shape[1]))
    of_real_steps = real.repeat_interleave(3, dim=1)
    assert_close(trunk[of_real_steps], recorded["fwd_masked/trunk_out"][of_real_steps], atol=1e-5)
    weights = recorded.under("w/")
    for name in ("state", "return"):
        predicted = nn.functional.linear(
            trunk[:, 2::3], weights[f"predict_{name}.weight"], weights[f"predict_{name}.bias"]
        )
        assert_close(predicted[real], recorded[f"fwd_masked/{name}_preds"][real], atol=1e-5)


def test_gpt2_predictions_without_a_mask_match_the_original(original: OriginalDT) -> None:
    predicted = original.model.eval()(*original.inputs("fwd_full"))
    assert_close(predicted, original.recorded["fwd_full/action_preds"])


@pytest.mark.parametrize("case", ["act0", "act1", "act2"])
def test_gpt2_action_from_a_history_matches_the_original(original: OriginalDT, case: str) -> None:
    recorded, length = original.recorded, original.config.context_length
    states, actions, returns, timesteps = (
        recorded[f"{case}/{name}"][-length:][None] for name in ("states", "actions", "rtg", "timesteps")
    )
    chosen = original.model.eval().act(states, actions[:, :-1], returns, timesteps)
    assert_close(chosen[0].clamp(-1, 1), recorded[f"{case}/action"].clamp(-1, 1))


class RecordedBatches:
    """A sampler that gives the recorded batches, their padding moved to the right as our windows have it."""

    def __init__(self, original: OriginalDT) -> None:
        self.original, self.index = original, 0
        self.generator = torch.Generator()

    def sample(self, batch_size: int) -> Batch:
        prefix = f"batch{self.index}"
        self.index += 1
        arrays = self.original.inputs(prefix)
        valid = self.original.recorded[f"{prefix}/mask"].bool()
        order = torch.argsort(~valid, dim=1, stable=True)  # real steps first, in order
        moved = [
            array.gather(1, order.reshape(*order.shape, *[1] * (array.dim() - 2)).expand_as(array)) for array in arrays
        ]
        return Batch(moved[0], moved[1], moved[2], moved[3], valid.gather(1, order))


def test_three_training_steps_match_the_original(original: OriginalDT) -> None:
    recorded, model = original.recorded, original.model
    learner = SupervisedLearner(
        model,
        lambda model, batch: {"loss": action_loss(model, batch)},
        RecordedBatches(original),  # type: ignore[arg-type]
        OptimConfig(learning_rate=1e-3, weight_decay=1e-4, warmup_steps=0, schedule="constant", gradient_clip=0.25),
        TrainConfig(batch_size=recorded["batch0/mask"].shape[0]),
    )
    # The recorded gradients are from before clipping: one unclipped backward pass on a copy of the first batch.
    batch = RecordedBatches(original).sample(0)
    action_loss(model, batch).backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    for name, expected in recorded.under("grad1/").items():
        expected = to_ours(name, expected)
        assert (gradients[original.names[name]] - expected).abs().max() <= 5e-5 * expected.abs().max() + 1e-8, name
    for step in range(3):
        metrics = learner.update(step)
        assert_close(metrics["loss"], recorded["train/loss"][step], atol=1e-6)
        assert_close(metrics["gradient_norm"], recorded["train/grad_norm"][step], atol=1e-5)
        if recorded.has(f"after{step + 1}/embed_ln.weight"):
            assert_parameters_close(original, f"after{step + 1}/")


def assert_parameters_close(original: OriginalDT, prefix: str) -> None:
    ours = original.model.state_dict()
    errors = []
    for name, expected in original.recorded.under(prefix).items():
        if name not in original.names:
            continue
        difference = (ours[original.names[name]] - to_ours(name, expected)).abs()
        if name.endswith("c_attn.bias"):  # softmax does not depend on the key bias: its gradient is rounding noise
            third = len(difference) // 3
            difference = torch.cat([difference[:third], difference[2 * third :]])
        errors.append(difference.flatten())
    every = torch.cat(errors)
    assert (every <= 1e-6).float().mean() >= 0.999
    assert every.max() <= 2e-5


# --- qwen3_block.npz --------------------------------------------------------------------------------------------------


class OriginalQwen3:
    """One of the recorded Qwen3 stacks, loaded into ours."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.recorded, self.prefix = Recorded(folder / "qwen3_block.npz"), prefix
        weights = self.recorded.under(f"{prefix}w/")
        head_dim = weights["layers.0.self_attn.q_norm.weight"].shape[0]
        width = weights["norm.weight"].shape[0]
        num_layers = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
        num_tokens = self.recorded[f"{prefix}inputs_embeds"].shape[1]
        self.config = ModelConfig(
            embed_dim=width,
            num_layers=num_layers,
            num_heads=weights["layers.0.self_attn.q_proj.weight"].shape[0] // head_dim,
            num_kv_heads=weights["layers.0.self_attn.k_proj.weight"].shape[0] // head_dim,
            head_dim=head_dim,
            mlp_ratio=weights["layers.0.mlp.gate_proj.weight"].shape[0] / width + 1e-9,
            context_length=-(-num_tokens // 3),
            rope_theta=1e6,
        )
        self.backbone = Qwen3Backbone(self.config).eval()
        ours = {"norm.weight": weights["norm.weight"]}
        for layer in range(num_layers):
            theirs = {
                k.removeprefix(f"layers.{layer}."): v for k, v in weights.items() if k.startswith(f"layers.{layer}.")
            }
            parts = {
                "attention_norm.weight": theirs["input_layernorm.weight"],
                "mlp_norm.weight": theirs["post_attention_layernorm.weight"],
                "attention.query_key_value.weight": torch.cat([theirs[f"self_attn.{p}_proj.weight"] for p in "qkv"]),
                "attention.output.weight": theirs["self_attn.o_proj.weight"],
                "attention.query_norm": theirs["self_attn.q_norm.weight"],
                "attention.key_norm": theirs["self_attn.k_norm.weight"],
                "gate_up.weight": torch.cat([theirs["mlp.gate_proj.weight"], theirs["mlp.up_proj.weight"]]),
                "down.weight": theirs["mlp.down_proj.weight"],
            }
            ours |= {f"blocks.{layer}.{name}": value for name, value in parts.items()}
        self.backbone.load_state_dict(ours)


@pytest.fixture(params=["", "wide/"])
def qwen3(fixtures: Path, request: pytest.FixtureRequest) -> OriginalQwen3:
    return OriginalQwen3(fixtures, request.param)


@pytest.mark.parametrize("case", ["full", "small"])
def test_qwen3_output_matches_the_original(qwen3: OriginalQwen3, case: str) -> None:
    inputs = qwen3.recorded[f"{qwen3.prefix}{'small/' if case == 'small' else ''}inputs_embeds"]
    assert_close(qwen3.backbone(inputs), qwen3.recorded[f"{qwen3.prefix}{case}/out"], atol=1e-5)


@pytest.mark.parametrize("case", ["leftpad", "rightpad"])
def test_qwen3_output_under_padding_matches_the_original(qwen3: OriginalQwen3, case: str) -> None:
    inputs = qwen3.recorded[f"{qwen3.prefix}inputs_embeds"]
    real = qwen3.recorded[f"{qwen3.prefix}{case}/mask"].bool()
    causal = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
    mask = (causal & real[:, None, None, :]) | torch.eye(real.shape[1], dtype=torch.bool)
    expected = qwen3.recorded[f"{qwen3.prefix}{case}/out"]
    assert_close(qwen3.backbone(inputs, mask)[real], expected[real], atol=1e-5)
    if case == "leftpad":
        assert (qwen3.backbone(inputs)[real] - expected[real]).abs().max() > 1e-3, "padding must be masked"


def test_qwen3_residual_stream_matches_the_original_after_each_block(qwen3: OriginalQwen3) -> None:
    seen: list[Tensor] = []
    for block in qwen3.backbone.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    qwen3.backbone(qwen3.recorded[f"{qwen3.prefix}inputs_embeds"])
    assert len(seen) == qwen3.config.num_layers
    for layer, hidden in enumerate(seen):
        assert_close(hidden, qwen3.recorded[f"{qwen3.prefix}full/layer{layer}"], atol=1e-5)


def test_rotation_table_matches_the_original(qwen3: OriginalQwen3) -> None:
    positions = qwen3.recorded[f"{qwen3.prefix}rope/positions"]
    cos, sin = rotary_table(int(positions.max()) + 1, qwen3.config.head_dim, 1e6)
    assert_close(cos[positions], qwen3.recorded[f"{qwen3.prefix}rope/cos"])
    assert_close(sin[positions], qwen3.recorded[f"{qwen3.prefix}rope/sin"])

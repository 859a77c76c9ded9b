"""What a transformer costs in closed form is what torch counts: operations, and bytes kept for the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gq.costs.transformers import report
from gq.models import costs
from gq.models import kernels as dropping
from gq.models.config import SIZES, ModelConfig, StochasticModelConfig
from gq.models.decision_transformer import DecisionTransformer, TrajectoryTransformer
from gq.models.stochastic_transformer import StochasticTransformer
from gq.models.transformer import recompute

BATCH_SIZE, DIMS = 4, {"observation_dim": 11, "action_dim": 3}
QWEN3 = SIZES["1m"]
GPT2 = ModelConfig(backbone="gpt2", num_kv_heads=4, mlp_ratio=4.0, activation="relu")
WIDE = replace(QWEN3, embed_dim=192, num_layers=6, num_heads=12, num_kv_heads=4, mlp_ratio=4.0)
ONLINE = StochasticModelConfig(**vars(QWEN3) | {"positions": "none", "rotary": False})
SHAPES = [
    QWEN3,
    WIDE,
    replace(QWEN3, activation="relu", num_layers=1),
    ONLINE,
    replace(QWEN3, conditioning="output"),
    replace(GPT2, conditioning="output"),
    GPT2,
    replace(GPT2, activation="gelu", context_length=5, embed_dim=64),
]


def build(config: ModelConfig) -> TrajectoryTransformer:
    kind = StochasticTransformer if isinstance(config, StochasticModelConfig) else DecisionTransformer
    return kind(config, **DIMS)  # type: ignore[arg-type]


def loss_of(model: TrajectoryTransformer, *, bfloat16: bool = False) -> Tensor:
    num_steps = model.config.context_length
    inputs = (
        torch.randn(BATCH_SIZE, num_steps, 11),
        torch.randn(BATCH_SIZE, num_steps, 3),
        torch.randn(BATCH_SIZE, num_steps, 1),
        torch.arange(num_steps).expand(BATCH_SIZE, num_steps),
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        found = model(*inputs)
    if isinstance(model, StochasticTransformer):
        return found.mean.square().mean() + found.log_std.mean()
    return found.square().mean()


@contextmanager
def counting(model: nn.Module) -> Iterator[dict[int, int]]:
    """Collect the bytes of each storage that is kept for the backward pass, but for parameters and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # held, so that no address is used twice
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known and address not in kept:
            kept[address], sizes[address] = tensor.detach(), tensor.untyped_storage().nbytes()
        return tensor.detach()  # an output kept as it is would keep its own graph alive

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


def predicted(config: ModelConfig, *, bfloat16: bool, **options: Any) -> int:
    arithmetic = costs.Arithmetic(bfloat16=bfloat16, on_cpu=True)
    return costs.activation_bytes(config, arithmetic, **DIMS, batch_size=BATCH_SIZE, **options)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_what_autograd_keeps(shape: ModelConfig, rate: float, bfloat16: bool) -> None:
    config = replace(shape, dropout=rate)
    model = build(config)
    with counting(model) as sizes:
        loss_of(model, bfloat16=bfloat16)
    weight_copies = costs.BFLOAT16_BYTES * config.num_layers * costs.block_parameters(config) * bfloat16
    assert sum(sizes.values()) == pytest.approx(predicted(config, bfloat16=bfloat16) + weight_copies, rel=0.03)


@pytest.mark.parametrize("shape", [WIDE, replace(GPT2, num_layers=6)])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_with_checkpointing_blocks_keep_their_inputs_and_one_is_computed_again(shape: ModelConfig, rate: float) -> None:
    config = replace(shape, dropout=rate)
    model = build(config)
    recompute(model.backbone.blocks, is_random=rate > 0)  # type: ignore[arg-type]
    with counting(model) as outside:
        loss_of(model)
    kept = []
    for num_layers in (config.num_layers, config.num_layers - 1):
        plain = build(replace(config, num_layers=num_layers))
        with counting(plain) as sizes:
            loss_of(plain)
        kept.append(sum(sizes.values()))
    measured = sum(outside.values()) + kept[0] - kept[1]  # the inputs of all blocks, and what one block keeps
    estimate = predicted(config, bfloat16=False, checkpointing=True)
    assert estimate == pytest.approx(measured, rel=0.15)
    assert estimate < 0.5 * predicted(config, bfloat16=False)


def flops_of_addmm(_: Any, left: torch.Size, right: torch.Size, **_others: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_those_that_torch_counts(shape: ModelConfig) -> None:
    model = build(shape)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: flops_of_addmm})
    with counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model).backward()
    assert costs.training_flops(shape, **DIMS, batch_size=BATCH_SIZE) == counter.get_total_flops()
    forward = FlopCounterMode(display=False)
    with forward, sdpa_kernel(SDPBackend.MATH):
        loss_of(model)
    assert costs.forward_flops(shape, **DIMS, batch_size=BATCH_SIZE) == forward.get_total_flops()


@pytest.mark.parametrize("size", SIZES)
def test_what_gq_params_says_of_a_token_is_what_torch_counts(size: str) -> None:
    reported = report(size, task="Hopper-v5")
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: flops_of_addmm})
    num_tokens = BATCH_SIZE * 3 * SIZES[size].context_length
    with torch.device("meta"), counter, sdpa_kernel(SDPBackend.MATH):  # shapes only: no memory, no arithmetic
        loss = loss_of(build(SIZES[size]))
        assert reported.flops_per_token == counter.get_total_flops() // num_tokens
        loss.backward()
    assert reported.training_flops_per_token == counter.get_total_flops() // num_tokens


def test_the_paper_s_model_takes_what_was_worked_out_by_hand() -> None:
    # Three blocks of width 128, 64 windows of 60 tokens; in the last one, keys and values of all, the rest of a third.
    tokens, third = 64 * 60, 64 * 20
    whole = 2 * tokens * (4 * 128 * 128 + 2 * 128 * 512) + 4 * tokens * 60 * 128
    last = 2 * third * (2 * 128 * 128 + 2 * 128 * 512) + 2 * tokens * 2 * 128 * 128 + 4 * third * 60 * 128
    embedding = 2 * third * 128 * (1 + 11 + 3)
    head = 2 * third * 128 * 3
    expected = 3 * (2 * whole + last + head) + 2 * embedding
    assert costs.training_flops(GPT2, **DIMS, batch_size=64) == expected


def test_gq_s_dropout_keeps_places_up_to_the_rate_that_is_known_here() -> None:
    assert costs.FEW_DROPPED == dropping.FEW


def test_parameters_of_a_block_are_those_of_its_matrices() -> None:
    for shape in [*SHAPES, replace(GPT2, num_heads=1, num_kv_heads=1)]:
        matrices = [p.numel() for p in build(shape).backbone.blocks[0].parameters() if p.dim() == 2]  # type: ignore[index]
        assert costs.block_parameters(shape) == sum(matrices)

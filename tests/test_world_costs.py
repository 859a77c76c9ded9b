"""What plans and updates of a world model cost by formula is what they multiply and keep."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gq.algos.tdmpc2 import TDMPC2Learner, draw, td_target, unroll, world_losses
from gq.costs.world import original_plan_cost, plan_cost, row_costs, update_cost, update_memory_bytes
from gq.data.steps import SequenceBatch
from gq.models.world_config import (
    WORLD_MODEL_SIZES,
    PlannerConfig,
    WorldModelConfig,
    WorldUpdateConfig,
    parameter_counts,
)
from gq.models.world_model import WorldModel
from gq.planning.mppi import Planner
from gq.policies.compute import choose_compute

TINY = WorldModelConfig(encoder_dim=24, num_encoder_layers=3, mlp_dim=20, latent_dim=16, num_q=3)
DIMS = {"observation_dim": 7, "action_dim": 3}
BATCH_SIZE = 5
# Billions of multiply-adds of a plan as published: walker, humanoid and dog with all heads of Q, humanoid with two.
PUBLISHED = {
    "1": (6.6, 9.0, 9.3, 9.0),
    "5": (23.2, 31.3, 31.8, 24.1),
    "19": (77.9, 104.7, 105.6, 80.6),
    "48": (187, 251, 253, 192),
    "317": (1103, 1474, 1478, 911),
}
POLICY_ALONE = {"1": 0.26, "5": 0.69, "19": 3.8, "48": 12.6, "317": 79}  # millions, humanoid, with the encoder


def multiply_adds(work: Any) -> int:
    """Return the multiply-adds of the matrix products that a function computes."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def batch_of(horizon: int, batch_size: int, *, observation_dim: int, action_dim: int) -> SequenceBatch:
    return SequenceBatch(
        torch.randn(horizon + 1, batch_size, observation_dim),
        torch.rand(horizon, batch_size, action_dim),
        torch.rand(horizon, batch_size),
        torch.zeros(horizon, batch_size, dtype=torch.bool),
    )


@pytest.mark.parametrize("size", WORLD_MODEL_SIZES)
def test_a_plan_of_the_original_costs_what_is_published(size: str) -> None:
    config, planner = WORLD_MODEL_SIZES[size], PlannerConfig()
    costs = []
    for observation_dim, action_dim, num_q in (
        (24, 6, config.num_q),
        (67, 21, config.num_q),
        (223, 38, config.num_q),
        (67, 21, 2),
    ):
        rows = row_costs(config, observation_dim=observation_dim, action_dim=action_dim)
        costs.append(original_plan_cost(replace(config, num_q=num_q), planner, rows, action_dim) / 1e9)
    assert costs == pytest.approx(PUBLISHED[size], abs=0.051 if size in ("1", "5", "19") else 0.55)
    rows = row_costs(config, observation_dim=67, action_dim=21)
    alone = (rows.encoder + rows.policy) / 1e6
    assert alone == pytest.approx(POLICY_ALONE[size], rel=0.02)


@pytest.mark.parametrize("episodic", [False, True])
def test_a_plan_multiplies_what_the_formula_says(episodic: bool) -> None:
    config = PlannerConfig(num_samples=32, num_policy_samples=5, num_elites=8, iterations=2)
    model = WorldModel(TINY, **DIMS, episodic=episodic).eval()
    planner = Planner(model, config, discount=0.99)
    latents = model.encode(torch.randn(1, 7)).detach()
    draws = planner.draw(torch.Generator().manual_seed(0))
    rows = row_costs(TINY, **DIMS, episodic=episodic)
    assert multiply_adds(lambda: planner.plan(latents, draws)) == plan_cost(TINY, config, rows, 3)
    assert multiply_adds(lambda: model.encode(torch.randn(1, 7))) == rows.encoder
    assert multiply_adds(lambda: model.policy(latents, torch.zeros(1, 3))) == rows.policy


@pytest.mark.parametrize("episodic", [False, True])
def test_an_update_multiplies_what_the_formula_says(episodic: bool) -> None:
    model = WorldModel(TINY, **DIMS, episodic=episodic)
    config = WorldUpdateConfig(horizon=4)
    learner = TDMPC2Learner(model, config, discount=0.99, autocast=choose_compute("cpu", "float32").autocast)
    batch = batch_of(4, BATCH_SIZE, **DIMS)
    rows = row_costs(TINY, **DIMS, episodic=episodic)
    expected = update_cost(TINY, rows, observation_dim=7, horizon=4, batch_size=BATCH_SIZE)
    assert multiply_adds(lambda: learner.update(batch)) == expected


@pytest.mark.parametrize("episodic", [False, True])
def test_the_memory_estimate_is_near_what_autograd_keeps(episodic: bool) -> None:
    size, batch_size = WORLD_MODEL_SIZES["1"], 32
    dims: dict[str, Any] = {"observation_dim": 24, "action_dim": 6}
    model = WorldModel(size, **dims, episodic=episodic).train()
    config, batch = WorldUpdateConfig(), batch_of(3, batch_size, **dims)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.detach()  # held, so that no address is used twice
        return tensor.detach()  # an output kept as it is would keep its own graph alive

    with torch.no_grad():
        next_latents = model.encode(batch.observations[1:])
        target = td_target(model, batch, next_latents, 0.99, draw(model, batch))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        latents = unroll(model, batch.observations[0], batch.actions)
        world_losses(model, batch, latents, next_latents, target, config)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    options: dict[str, Any] = {"action_dim": 6, "episodic": episodic, "horizon": 3}
    held = update_memory_bytes(size, parameters=0, **options, batch_size=0)
    assert held == 4 * parameter_counts(size, **dims)["q"]
    assert 1.0 < (update_memory_bytes(size, parameters=0, **options, batch_size=batch_size) - held) / measured < 1.25
    assert update_memory_bytes(size, parameters=10, **options, batch_size=0) - held == 160

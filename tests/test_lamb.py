"""LAMB against recorded arrays, an independent formula, and steps whose size is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comparing import assert_equal
from gq.algos.lamb import Lamb
from gq.algos.state import load_moments, moments
from gq.algos.supervised import build_optimizer
from gq.config import OptimConfig
from test_parity import Recorded

SHAPES = {"weight": (4, 3), "bias": (3,), "gain": (5,), "table": (3, 2, 2)}


def build(learning_rate: float = 1e-2, weight_decay: float = 5e-4, **settings: Any) -> tuple[nn.ParameterDict, Lamb]:
    """Return a matrix, a bias of zeros, a gain of ones and a table, and their optimiser."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors |= {"bias": torch.zeros(3), "gain": torch.ones(5)}
    parameters = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})
    return parameters, Lamb(parameters.values(), learning_rate=learning_rate, weight_decay=weight_decay, **settings)


def random_gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def take_step(parameters: nn.ParameterDict, optimizer: torch.optim.Optimizer, gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.clone()
    optimizer.step()


def one_step(values: Tensor, gradient: Tensor, **settings: Any) -> Tensor:
    """Return how far the first step moves a tensor."""
    parameter = nn.Parameter(values.clone())
    parameter.grad = gradient.clone()
    Lamb([parameter], **{"learning_rate": 1e-2, "weight_decay": 5e-4} | settings).step()
    return parameter.detach() - values


def everything(parameters: nn.ParameterDict, optimizer: Lamb) -> dict[str, Tensor]:
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return values | {name: tensor.clone() for name, tensor in moments(parameters, optimizer).items()}


# --- recorded arrays --------------------------------------------------------------------------------------------------


def adam(parameters: nn.ParameterDict) -> torch.optim.Optimizer:
    return build_optimizer(parameters, OptimConfig(optimizer="adamw", learning_rate=1e-2, weight_decay=0))


def lamb(parameters: nn.ParameterDict, weight_decay: float) -> Lamb:
    return Lamb(parameters.values(), learning_rate=1e-2, weight_decay=weight_decay)


def take_recorded_steps(
    recorded: Recorded, case: str, parameters: nn.ParameterDict, optimizer: torch.optim.Optimizer
) -> float:
    """Return the largest difference from the original in five steps; it divides gradients by a norm above 1."""
    largest = 0.0
    for step in range(1, 6):
        for name, gradient in recorded.under(f"lamb_{case}/g{step}/").items():
            parameters[name].grad = gradient.clone()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        if case == "schedule":
            optimizer.param_groups[0]["lr"] = 1e-2 * min(step / 3, 1)
        optimizer.step()
        for name, expected in recorded.under(f"lamb_{case}/p{step}/").items():
            largest = max(largest, float((parameters[name].detach() - expected).abs().max()))
    return largest


def recorded_start(recorded: Recorded, case: str) -> nn.ParameterDict:
    start = recorded.under(f"lamb_{case}/p0/")
    assert start.keys() == SHAPES.keys()
    return nn.ParameterDict({name: nn.Parameter(tensor.clone()) for name, tensor in start.items()})


@pytest.mark.parity
@pytest.mark.parametrize("case", ["wd", "clip", "schedule"])
def test_five_steps_match_the_original(fixtures: Path, case: str) -> None:
    recorded = Recorded(fixtures / "odt_tanh_gaussian.npz")
    parameters = recorded_start(recorded, case)
    assert take_recorded_steps(recorded, case, parameters, lamb(parameters, 5e-4)) <= 1e-6


@pytest.mark.parity
def test_without_decay_the_original_is_adam_and_ours_is_not(fixtures: Path) -> None:
    recorded = Recorded(fixtures / "odt_tanh_gaussian.npz")
    parameters = recorded_start(recorded, "nowd")
    assert take_recorded_steps(recorded, "nowd", parameters, adam(parameters)) <= 1e-6
    parameters = recorded_start(recorded, "nowd")
    assert take_recorded_steps(recorded, "nowd", parameters, lamb(parameters, 0.0)) > 1e-3


# --- independent formula ----------------------------------------------------------------------------------------------


class PlainLamb:
    """The formula in double precision, one tensor at a time."""

    def __init__(self, learning_rate: float, weight_decay: float, betas: tuple[float, float], epsilon: float) -> None:
        self.settings = learning_rate, weight_decay, betas, epsilon
        self.state: dict[str, tuple[np.ndarray, np.ndarray, int]] = {}

    def step(self, name: str, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        learning_rate, weight_decay, (beta1, beta2), epsilon = self.settings
        first, second, count = self.state.get(name, (np.zeros_like(value), np.zeros_like(value), 0))
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        count += 1
        self.state[name] = first, second, count
        update = (first / (1 - beta1**count)) / (np.sqrt(second / (1 - beta2**count)) + epsilon) + weight_decay * value
        sizes = np.linalg.norm(value), np.linalg.norm(update)
        ratio = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
        return value - learning_rate * ratio * update


@pytest.mark.parametrize(
    ("weight_decay", "betas", "epsilon"),
    [(5e-4, (0.9, 0.999), 1e-8), (0.0, (0.9, 0.999), 1e-8), (0.1, (0.5, 0.9), 1e-3)],
)
def test_steps_equal_an_independent_formula(weight_decay: float, betas: tuple[float, float], epsilon: float) -> None:
    parameters, optimizer = build(weight_decay=weight_decay, betas=betas, epsilon=epsilon)
    values = {name: parameter.detach().double().numpy() for name, parameter in parameters.items()}
    plain = PlainLamb(1e-2, weight_decay, betas, epsilon)
    for step in range(10):
        gradients = random_gradients(step)
        take_step(parameters, optimizer, gradients)
        for name, value in values.items():
            values[name] = plain.step(name, value, gradients[name].double().numpy())
            np.testing.assert_allclose(parameters[name].detach(), values[name], rtol=0, atol=1e-6, err_msg=name)


def test_a_tensor_without_a_gradient_stays() -> None:
    parameters, optimizer = build()
    before = parameters["table"].detach().clone()
    gradients = random_gradients(0)
    del gradients["table"]
    take_step(parameters, optimizer, gradients)
    assert torch.equal(parameters["table"], before)
    assert parameters["table"] not in optimizer.state


# --- known sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [5e-4, 0.0])
def test_a_tensor_of_zeros_moves_by_the_learning_rate(weight_decay: float) -> None:
    moved = one_step(torch.zeros(5), torch.tensor([1e-3, -1e-3, 7.0, -7.0, 1.0]), weight_decay=weight_decay)
    assert moved.tolist() == pytest.approx([-1e-2, 1e-2, -1e-2, 1e-2, -1e-2], rel=1e-4)


@pytest.mark.parametrize("weight_decay", [5e-4, 0.0])
@pytest.mark.parametrize("size", [1.0, 2.0, 1000.0])
def test_a_constant_tensor_moves_by_its_size_times_the_learning_rate(size: float, weight_decay: float) -> None:
    """Ones move by the learning rate. There is no limit on the ratio, and it stays without decay."""
    moved = one_step(torch.full((4, 3), size), torch.full((4, 3), 0.3), weight_decay=weight_decay)
    assert moved.flatten().tolist() == pytest.approx([-1e-2 * size] * 12, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values())
def test_a_step_is_the_learning_rate_times_the_tensors_norm(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values, gradient = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    assert one_step(values, gradient).norm().item() == pytest.approx(1e-2 * values.norm().item(), rel=1e-5)


def test_decay_acts_on_biases_and_gains_too() -> None:
    """With a gradient of zero the decay alone is the update, and the ratio makes it the learning rate."""
    assert one_step(torch.full((3,), 2.0), torch.zeros(3)).tolist() == pytest.approx([-0.02] * 3, rel=1e-5)
    assert one_step(torch.full((3,), 2.0), torch.zeros(3), weight_decay=0.0).tolist() == [0.0] * 3


# --- steps left out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps_before", [0, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_left_out_changes_nothing(value: float, num_steps_before: int) -> None:
    parameters, optimizer = build()
    free_parameters, free = build()
    for step in range(num_steps_before):
        take_step(parameters, optimizer, random_gradients(step))
        take_step(free_parameters, free, random_gradients(step))
    before = everything(parameters, optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    take_step(parameters, optimizer, random_gradients(9) | {"weight": torch.full((4, 3), value)})
    after = everything(parameters, optimizer)
    if not num_steps_before:
        expected = {"step": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}
        before |= {f"{key}/{name}": torch.zeros_like(after[f"{key}/{name}"]) for key in expected for name in SHAPES}
    assert_equal(after, before)
    optimizer.found_inf = torch.tensor(0.0)
    take_step(parameters, optimizer, random_gradients(4))
    take_step(free_parameters, free, random_gradients(4))
    assert_equal(everything(parameters, optimizer), everything(free_parameters, free))


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps_before", [0, 1, 5])
def test_restored_state_continues_bit_for_bit(num_steps_before: int) -> None:
    whole_parameters, whole = build()
    for step in range(num_steps_before):
        take_step(whole_parameters, whole, random_gradients(step))
    saved = everything(whole_parameters, whole)
    parameters, resumed = build()
    for name in SHAPES:
        parameters[name].data.copy_(saved[name])
    load_moments(saved, parameters, resumed)
    assert_equal(everything(parameters, resumed), saved)
    for step in range(num_steps_before, num_steps_before + 3):
        take_step(whole_parameters, whole, random_gradients(step))
        take_step(parameters, resumed, random_gradients(step))
    assert_equal(everything(parameters, resumed), everything(whole_parameters, whole))


@pytest.mark.parametrize("forgotten", ["step", "exp_avg", "exp_avg_sq"])
def test_every_part_of_the_state_matters(forgotten: str) -> None:
    """With much decay: the ratio takes out what the count of steps does to the rest of the update."""
    whole_parameters, whole = build(weight_decay=0.5)
    for step in range(3):
        take_step(whole_parameters, whole, random_gradients(step))
    saved = everything(whole_parameters, whole)
    for name in SHAPES:
        saved[f"{forgotten}/{name}"].zero_()
    parameters, resumed = build(weight_decay=0.5)
    for name in SHAPES:
        parameters[name].data.copy_(saved[name])
    load_moments(saved, parameters, resumed)
    take_step(whole_parameters, whole, random_gradients(3))
    take_step(parameters, resumed, random_gradients(3))
    assert (parameters["weight"] - whole_parameters["weight"]).abs().max() > 1e-4

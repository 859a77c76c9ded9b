"""Dropout by 16 random bits an element."""

import pytest
import torch

from gq.models.kernels import Dropout, dropout


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_of_zeros_is_the_rate_and_the_mean_stays(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(200_001, dtype=dtype), rate)
    share = float((dropped == 0).float().mean())
    assert abs(share - rate) < 5 * (rate * (1 - rate) / 200_001) ** 0.5
    kept = dropped[dropped != 0].unique()
    assert len(kept) == 1
    assert float(kept) == pytest.approx(1 / (1 - rate), rel=1e-2 if dtype == torch.bfloat16 else 1e-3)


def test_elements_are_dropped_independently_of_their_place() -> None:
    torch.manual_seed(0)
    zeros = (dropout(torch.ones(50_000, 4), 0.3) == 0).float()
    assert (zeros.mean(dim=0) - 0.3).abs().max() < 0.012, "the four elements of one draw have the same rate"
    correlation = torch.corrcoef(zeros.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02
    assert abs(float(torch.corrcoef(torch.stack([zeros.flatten()[:-4], zeros.flatten()[4:]]))[0, 1])) < 0.02


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4)])
def test_any_shape_is_dropped_and_gradients_are_masked_alike(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x = torch.ones(shape, requires_grad=True)
    dropped = dropout(x, 0.5)
    dropped.sum().backward()
    assert dropped.shape == shape
    assert torch.equal(x.grad, dropped.detach())  # type: ignore[arg-type]


def test_equal_generator_states_drop_the_same_and_nothing_is_dropped_outside_training() -> None:
    layer, x = Dropout(0.5), torch.ones(64)
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(layer(x))
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], layer(x))
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(dropout(x, 0.0), x)

"""What tests compare numbers with."""

import numpy as np
import torch
from torch import Tensor


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare tensors by name, bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Return how far counts are from what is expected of them."""
    return float(((counts - expected) ** 2 / expected).sum())

"""Print FLOPs per token of every size as `gq params` says and as torch's FlopCounterMode counts, forward and training.

    .venv/bin/python scripts/count_flops.py

Networks are built without memory for their weights, so that the largest ones take seconds. Attention counts in full.
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gq.costs.transformers import report
from gq.models.config import SIZES, ModelConfig, resolve_size
from gq.models.decision_transformer import DecisionTransformer

TASK, DIMS, NUM_WINDOWS = "Hopper-v5", (11, 3), 4
TOLERANCE = 0.01


def counted(config: ModelConfig) -> tuple[float, float]:
    """Return FLOPs per token of a forward pass, and of one with its backward pass, as torch counts them."""
    shape = (NUM_WINDOWS, config.context_length)
    with torch.device("meta"):
        model = DecisionTransformer(config, observation_dim=DIMS[0], action_dim=DIMS[1])
        inputs = [torch.empty(*shape, width) for width in (*DIMS, 1)] + [torch.empty(shape, dtype=torch.int64)]
    num_tokens = 3 * NUM_WINDOWS * config.context_length
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = model(*inputs).square().mean()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        loss.backward()
    first, second = forward.get_total_flops(), backward.get_total_flops()
    return first / num_tokens, (first + second) / num_tokens


def main() -> int:
    """Print the table; return 1 where a figure is off by more than a hundredth."""
    print("| size | forward, gq params | torch | training, gq params | torch | largest difference |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    for size in SIZES:
        said = report(size, task=TASK)
        figures = (said.flops_per_token, said.training_flops_per_token)
        torchs = counted(resolve_size(size))
        difference = max(abs(one / other - 1) for one, other in zip(figures, torchs, strict=True))
        worst = max(worst, difference)
        cells = [f"{value:,.0f}" for pair in zip(figures, torchs, strict=True) for value in pair]
        print(f"| {size} | {' | '.join(cells)} | {100 * difference:.3f} % |")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

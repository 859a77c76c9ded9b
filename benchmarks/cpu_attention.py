"""Attention of a training step on the CPU: plain grouped matrix products against torch's fused kernel.

    python benchmarks/cpu_attention.py

Prints milliseconds of forward and backward, and the ratio to scaled_dot_product_attention in the same run. It is why
`gq.models.attention.attend` takes one in bfloat16 and the other in float32.
"""

import statistics
import time
from collections.abc import Callable

from gq import threads

threads.prepare()

import torch  # noqa: E402  after the thread settings
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from gq.models.attention import grouped_matmul_attention  # noqa: E402

BATCH_SIZE, NUM_TOKENS, NUM_REPEATS = 64, 60, 30
SHAPES = {"1m": (4, 2, 32), "13m": (8, 4, 64)}  # query heads, key/value heads, head width


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return grouped_matmul_attention(query, key, value, None, 0.0)


def time_ms(attention: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Return the milliseconds of one forward and backward pass."""
    began = time.perf_counter()
    attention(*inputs).sum().backward()
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    print(f"batch {BATCH_SIZE}, {NUM_TOKENS} tokens, {torch.get_num_threads()} threads, medians of {NUM_REPEATS}")
    print(f"{'size':6}{'precision':>10}{'fused ms':>10}{'plain ms':>10}{'fused/plain':>13}")
    for size, (num_heads, num_kv_heads, head_dim) in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [
                torch.randn(BATCH_SIZE, heads, NUM_TOKENS, head_dim, dtype=dtype, requires_grad=True)
                for heads in (num_heads, num_kv_heads, num_kv_heads)
            ]
            time_ms(fused, inputs), time_ms(plain, inputs)  # warm up
            pairs = [(time_ms(fused, inputs), time_ms(plain, inputs)) for _ in range(NUM_REPEATS)]
            fused_ms, plain_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
            name = str(dtype).removeprefix("torch.")
            print(f"{size:6}{name:>10}{fused_ms:10.2f}{plain_ms:10.2f}{fused_ms / plain_ms:13.2f}")


if __name__ == "__main__":
    main()

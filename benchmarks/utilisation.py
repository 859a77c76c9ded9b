"""How much of a device training uses, and whether the host ever waits for it.

    python benchmarks/utilisation.py --device cuda [--sizes 1m 13m 0.1b 0.6b 1.9b] [--batch-size 64]
    python benchmarks/utilisation.py --sizes 1m --rounds 3                 # a CPU, as small as it gets

An update is that of `gq train dt` on random data in Hopper's shape, Qwen3 without dropout; on a GPU compiled and
captured before the clock starts, which `start s` is. MFU is the arithmetic of its matrix products, forward and backward
(`gq params` counts them), over the peak: of bfloat16 by the data sheet for a GPU, for a CPU what its own products reach
when the program begins. `waits` are the reads of a device's number by the host, and its calls that wait for the
device, in a profile of ten updates; on a CPU only the former exist.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common import Report, Table, add_options, memory_bytes, pin_threads, timed

NUM_PROFILED = 10
WAITS = {  # events of torch's profiler that keep the host waiting
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cudaStreamSynchronize",
}
ON_HOST = "aten::_fused_adamw_"  # which reads its step counts on a CPU, where they are the host's own numbers
UPDATES = "updates"  # the profiler's own waits are outside this range


def count_waits(update: Callable[[], Any], device: str) -> int:
    """Return how often the host waits in NUM_PROFILED updates."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        with record_function(UPDATES):
            for _ in range(NUM_PROFILED):
                update()
        if device == "cuda":
            torch.cuda.synchronize()
    events = profiler.events()
    (span,) = (event.time_range for event in events if event.name == UPDATES and event.device_type.name == "CPU")
    inside = [event for event in events if span.start <= event.time_range.start < span.end]
    return sum(event.name in WAITS and not is_within(event, ON_HOST) for event in inside)


def is_within(event: Any, name: str) -> bool:
    """Tell whether a profiled operation was called by another one."""
    while event := event.cpu_parent:
        if event.name == name:
            return True
    return False


def measure(size: str, peak_flops: float, options: argparse.Namespace, table: Table) -> None:
    """Add the row of a size."""
    import torch
    from scaling import shape_of
    from training import ACTION_DIM, OBSERVATION_DIM, WARM_UPS, make_own

    from gq.models.config import resolve_size
    from gq.models.costs import training_flops

    shape = shape_of(size, options.batch_size, options.context)
    config = replace(resolve_size(size), context_length=options.context)
    dims = {"observation_dim": OBSERVATION_DIM, "action_dim": ACTION_DIM}
    flops = training_flops(config, batch_size=options.batch_size, **dims)
    began = time.perf_counter()
    update = make_own("qwen3", shape, 0.0, options.device)

    def take(num_updates: int) -> None:
        for _ in range(num_updates):
            update()
        if options.device == "cuda":
            torch.cuda.synchronize()

    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    take(WARM_UPS[options.device])
    start_seconds = time.perf_counter() - began
    clock = "cpu" if options.device == "cpu" else "wall"
    seconds = statistics.median(timed(lambda: take(options.turn))[clock] / options.turn for _ in range(options.rounds))
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else memory_bytes("VmHWM")
    rates = (flops / seconds / 1e12, flops / seconds / peak_flops)
    table.add(size, 1e3 * seconds, start_seconds, *rates, peak / 2**30, count_waits(update, options.device))


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1m", "13m", "0.1b", "0.6b", "1.9b"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--context", type=int, default=20)
    parser.add_argument("--turn", type=int, default=1, metavar="N", help="updates in a row; many for small models")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    options = parser.parse_args()
    pin_threads(options.threads)
    import torch

    from gq.devices import device_here, resolve_device
    from gq.policies.compute import choose_compute

    torch.set_num_threads(options.threads)
    compute = choose_compute(options.device)
    device = resolve_device("cpu") if options.device == "cpu" else device_here(torch.cuda.get_device_name())
    assert device, "there are no figures for this GPU, see src/gq/devices.toml"
    peak_flops = device.flops(compute.bfloat16)
    title = (
        f"{device.name}, {'bfloat16' if compute.bfloat16 else 'float32'}, peak {peak_flops / 1e12:.2f} TFLOP/s; "
        f"batch {options.batch_size}, K {options.context}"
    )
    columns = {"size": (8, ""), "ms": (10, ",.2f"), "start s": (10, ".1f"), "TFLOP/s": (10, ".3f"), "MFU": (8, ".1%")}
    report = Report(options)
    table = report.table(title, {**columns, "GiB": (8, ".2f"), "waits": (8, "")})
    for size in options.sizes:
        measure(size, peak_flops, options, table)
    report.save()


if __name__ == "__main__":
    main()

"""What accelerators can do, from their data sheets, and what this CPU does, measured."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from gq.errors import UsageError, suggest

PROBE_WIDTH = 512  # of the matrices that a CPU is measured with
PROBE_BYTES = 16 << 20  # of the arrays
PROBE_REPEATS = 7  # of which the fastest counts: everything else on the machine only takes away
GIGA, TERA = 10**9, 10**12


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device can do. Rates are peaks of dense products; a gigabyte is 10**9 bytes."""

    name: str
    memory_bytes: int
    bfloat16_flops: float  # per second; 0 without bfloat16 arithmetic
    float32_flops: float  # per second, without TF32
    bandwidth: float  # of its memory, bytes per second
    interconnect: float  # to another device of its kind in the same machine, bytes per second in one direction
    torch_names: tuple[str, ...] = ()  # what torch calls it
    measured: bool = False

    def flops(self, bfloat16: bool) -> float:
        """Return the peak of matrix products."""
        return self.bfloat16_flops if bfloat16 else self.float32_flops


def gpu(
    name: str,
    gigabytes: float,
    bfloat16_tflops: float,
    float32_tflops: float,
    bandwidth_gigabytes: float,
    interconnect_gigabytes: float,
    *torch_names: str,
) -> Device:
    """Return a GPU from the figures in its data sheet."""
    return Device(
        name=name,
        memory_bytes=int(gigabytes * GIGA),
        bfloat16_flops=bfloat16_tflops * TERA,
        float32_flops=float32_tflops * TERA,
        bandwidth=bandwidth_gigabytes * GIGA,
        interconnect=interconnect_gigabytes * GIGA,
        torch_names=torch_names,
    )


# Sources: NVIDIA's data sheets "A100 Tensor Core GPU" (SXM4), "H100 Tensor Core GPU" (SXM5), "H200 Tensor Core GPU"
# (SXM5), "HGX platform" (B200, an eighth of eight), "L4 Tensor Core GPU", "T4 Tensor Core GPU", and the white papers
# "NVIDIA Ada GPU architecture" (RTX 4090) and "NVIDIA Ampere GA102" (RTX 3090). Products are dense (data sheets double
# them for sparsity) and summed up in float32, which GeForce cards do at half the rate. Interconnects are NVLink where
# there is one on the board, else PCIe 4.0 x16 (3.0 for the T4), in one direction: half of the advertised figure.
DEVICES = {
    device.name: device
    for device in (
        gpu("a100-40", 40, 312, 19.5, 1555, 300, "NVIDIA A100-SXM4-40GB"),
        gpu("a100-80", 80, 312, 19.5, 2039, 300, "NVIDIA A100-SXM4-80GB"),
        gpu("h100", 80, 989.4, 66.9, 3352, 450, "NVIDIA H100 80GB HBM3"),
        gpu("h200", 141, 989.4, 66.9, 4800, 450, "NVIDIA H200"),
        gpu("b200", 180, 2250, 75, 7700, 900, "NVIDIA B200"),
        gpu("l4", 24, 121, 30.3, 300, 32, "NVIDIA L4"),
        gpu("rtx4090", 24, 165.2, 82.6, 1008, 32, "NVIDIA GeForce RTX 4090"),
        gpu("rtx3090", 24, 71, 35.6, 936, 32, "NVIDIA GeForce RTX 3090"),
        gpu("t4", 16, 0, 8.1, 320, 16, "Tesla T4"),
    )
}
CPU = "cpu"


def known_devices() -> list[str]:
    """Return what `resolve_device` takes."""
    return [*DEVICES, CPU]


def resolve_device(name: str) -> Device:
    """Return a device by name; `cpu` is the one here, measured for a second.

    Raises:
        UsageError: no such device.
    """
    if name == CPU:
        return probe_cpu()
    if device := DEVICES.get(name.lower()):
        return device
    names = [known for known in known_devices() if known.startswith(name.lower())]
    otherwise = "devices are " + ", ".join(known_devices())
    hint = (
        f"did you mean {' or '.join(names)}?" if names and name else suggest(name, known_devices(), otherwise=otherwise)
    )
    raise UsageError(f"there are no figures for a device {name}", hint=hint)


def device_here(torch_name: str) -> Device | None:
    """Return the device that torch calls by this name; None for one without figures."""
    return next((device for device in DEVICES.values() if torch_name in device.torch_names), None)


def probe_cpu() -> Device:
    """Measure this CPU's matrix products and its memory, with as many threads as torch has."""
    import torch

    def flops(dtype: torch.dtype) -> float:
        left, right = (torch.ones(PROBE_WIDTH, PROBE_WIDTH, dtype=dtype) for _ in range(2))
        return 2 * PROBE_WIDTH**3 / fastest(lambda: left @ right)

    def seconds_to_add() -> float:
        left, right = (torch.ones(PROBE_BYTES // 4) for _ in range(2))
        return fastest(lambda: left + right)  # into new memory, as everything in an update

    return Device(
        name=CPU,
        memory_bytes=cpu_memory_bytes(),
        bfloat16_flops=flops(torch.bfloat16),
        float32_flops=flops(torch.float32),
        bandwidth=3 * PROBE_BYTES / seconds_to_add(),
        interconnect=1 * GIGA,
        measured=True,
    )


def fastest(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few repetitions, after one that does not count."""
    seconds = []
    for _ in range(1 + PROBE_REPEATS):
        began = perf_counter()
        work()
        seconds.append(perf_counter() - began)
    return min(seconds[1:])


def cpu_memory_bytes() -> int:
    """Return the memory of this machine; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def available_memory_bytes() -> int:
    """Return the memory that a process here can still take, on Linux; elsewhere half of all."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return cpu_memory_bytes() // 2

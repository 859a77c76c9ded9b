"""What accelerators can do, by their data sheets in devices.toml, and what this CPU does, measured."""

import os
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from time import perf_counter

from gq.errors import UsageError, suggest

CPU = "cpu"
PROBE_WIDTH = 512  # of the matrices that a CPU is measured with
PROBE_REPEATS = 7  # of which the fastest counts: everything else on the machine only takes away


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device can do. Rates are peaks of dense matrix products."""

    name: str
    memory_bytes: int
    bfloat16_flops: float  # per second; 0 without bfloat16 arithmetic
    float32_flops: float  # per second, without TF32
    torch_name: str = ""  # what torch calls it
    measured: bool = False

    def flops(self, bfloat16: bool) -> float:
        """The peak of matrix products, per second."""
        return self.bfloat16_flops if bfloat16 else self.float32_flops


@cache
def known_gpus() -> dict[str, Device]:
    """The GPUs of devices.toml by name."""
    table = tomllib.loads((resources.files("gq") / "devices.toml").read_text(encoding="utf-8"))
    return {
        name: Device(
            name=name,
            memory_bytes=int(row["memory"] * 2**30),
            bfloat16_flops=row["bfloat16"] * 1e12,
            float32_flops=row["float32"] * 1e12,
            torch_name=row["torch"],
        )
        for name, row in table.items()
    }


def known_devices() -> list[str]:
    """What `resolve_device` takes."""
    return [*known_gpus(), CPU]


def resolve_device(name: str) -> Device:
    """A device by name; `cpu` is the one here, measured for a second.

    Raises:
        UsageError: no such device.
    """
    if name == CPU:
        return probe_cpu()
    if device := known_gpus().get(name.lower()):
        return device
    names = [known for known in known_devices() if known.startswith(name.lower())]
    hint = suggest(name, known_devices(), otherwise="devices are " + ", ".join(known_devices()))
    if names and name:
        hint = f"did you mean {' or '.join(names)}?"
    raise UsageError(f"unknown device {name}", hint=hint)


def device_here(torch_name: str) -> Device | None:
    """The device that torch calls by this name; None for one without figures."""
    return next((device for device in known_gpus().values() if device.torch_name == torch_name), None)


def probe_cpu() -> Device:
    """Measure this CPU's matrix products, with as many threads as torch has."""
    import torch

    def flops(dtype: torch.dtype) -> float:
        left, right = (torch.ones(PROBE_WIDTH, PROBE_WIDTH, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(1 + PROBE_REPEATS):
            began = perf_counter()
            left @ right
            seconds.append(perf_counter() - began)
        return 2 * PROBE_WIDTH**3 / min(seconds[1:])  # the first one does not count

    return Device(
        name=CPU,
        memory_bytes=cpu_memory_bytes(),
        bfloat16_flops=flops(torch.bfloat16),
        float32_flops=flops(torch.float32),
        measured=True,
    )


def cpu_memory_bytes() -> int:
    """The memory of this machine; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0

"""Which device and number format to use, and how its programs are run, each with the reason."""

import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from gq.algos.captured import Program
from gq.errors import UsageError


@dataclass(frozen=True)
class Compute:
    """Device and precision of the matrix products; weights and optimiser are float32 always."""

    device: torch.device
    bfloat16: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.device}, {'bfloat16' if self.bfloat16 else 'float32'}: {self.reason}"

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which to run forward passes; bfloat16 copies of weights are kept while it lasts."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """Pick device and precision; a GPU that is named by its number becomes torch's current one.

    GQ_PRECISION=float32 or bfloat16 is what `auto` means, for machines whose own choice is not wanted.

    Raises:
        UsageError: the device does not exist here, or GQ_PRECISION is neither of the two.
    """
    best = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(best) if device == "auto" else parse_device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # streams and graphs are made on the current one
    if precision != "auto":
        return Compute(chosen, precision == "bfloat16", "as asked")
    if wish := os.environ.get("GQ_PRECISION"):
        if wish not in ("float32", "bfloat16"):
            raise UsageError(f"GQ_PRECISION={wish} is no precision", hint="set it to float32 or bfloat16, or unset it")
        return Compute(chosen, wish == "bfloat16", "GQ_PRECISION is set")
    if chosen.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return Compute(chosen, supported, "the GPU has bfloat16" if supported else "the GPU has no bfloat16")
    if chosen.type == "cpu":
        for name, found in (
            ("AMX", torch.cpu._is_amx_tile_supported),
            ("AVX512_BF16", torch.cpu._is_avx512_bf16_supported),
        ):
            if found():
                return Compute(chosen, True, f"the CPU has {name}")
        return Compute(chosen, False, "the CPU has no bfloat16 arithmetic")
    return Compute(chosen, False, f"untested on {chosen.type}")


def parse_device(name: str) -> torch.device:
    """Return the torch device of a name that is available here.

    Raises:
        UsageError: unknown or unavailable.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"there is no device {name}", hint="use --device auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "no such NVIDIA GPU was found"
        raise UsageError(
            f"device {name} is not available: {reason}", hint="use --device cpu, or --device auto to choose by itself"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps is not available here", hint="use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"gq does not run on {device.type}", hint="use --device auto, cpu, cuda or cuda:N")
    return device


def choose_program(
    wish: Literal["auto", "off", "capture", "full"],
    device: torch.device,
    *,
    obstacle: str | None = None,
    unprofitable: str | None = None,
) -> Program:
    """Decide how to run updates or plans on a device.

    Args:
        wish: `auto` captures and compiles on a GPU; `capture` does not compile, which takes a minute or so.
        obstacle: why they cannot be captured, if they cannot.
        unprofitable: why compiling does not pay, if it does not.

    Raises:
        UsageError: what is wished is not possible here.
    """
    if wish == "off":
        return Program(False, False, "as asked")
    missing = find_missing(device) if wish != "capture" else None
    if wish == "auto":
        if device.type != "cuda":
            # Compiling takes minutes there, and gq.models.kernels has made the passes over memory few without it.
            return Program(False, False, f"it does not pay on {device.type}")
        if obstacle:
            return Program(False, False, obstacle)
        without = missing or unprofitable
        return Program(not without, True, without or "the host launches each as a whole")
    if device.type != "cuda" and wish == "capture":
        raise UsageError(f"CUDA graphs are for NVIDIA GPUs, not for {device.type}", hint="use compile=auto")
    if problem := missing or (obstacle if device.type == "cuda" else None):
        raise UsageError(f"compile={wish} is not possible: {problem}", hint="use compile=auto, which does without")
    return Program(wish == "full", device.type == "cuda", "as asked")


def find_missing(device: torch.device) -> str | None:
    """Return what this machine lacks to compile for a device, or None."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "there is no C compiler"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed, or does not know this GPU"
    return None if device.type == "cpu" else f"untested on {device.type}"

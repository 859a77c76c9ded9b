"""Whether updates are compiled, with the reason."""

import shutil
from dataclasses import dataclass

import torch

from gq.config import BCConfig, DTConfig, OfflineConfig
from gq.errors import UsageError

MIN_STEPS = 500  # fewer updates do not make up for the minute or so that compiling takes


@dataclass(frozen=True)
class Compilation:
    """What `train.compile` comes to here."""

    is_on: bool
    reason: str

    def __str__(self) -> str:
        return f"updates are {'compiled' if self.is_on else 'not compiled'}: {self.reason}"


def choose_compilation(
    config: OfflineConfig, device: torch.device, *, num_processes: int = 1, is_streamed: bool = False
) -> Compilation:
    """Decide whether to compile the updates of a run.

    Raises:
        UsageError: it is asked for and not possible.
    """
    wanted = config.train.compile
    if wanted == "off":
        return Compilation(False, "as asked")
    if obstacle := find_obstacle(config, device, num_processes=num_processes, is_streamed=is_streamed):
        if wanted == "on":
            raise UsageError(f"updates cannot be compiled: {obstacle}", hint="leave --set train.compile=on away")
        return Compilation(False, obstacle)
    if wanted == "on":
        return Compilation(True, "as asked")
    if device.type != "cuda":
        # Compiling takes minutes there, and gq.models.kernels has made the passes over memory few without it.
        return Compilation(False, f"it does not pay on {device.type}")
    if config.train.steps < MIN_STEPS:
        return Compilation(False, f"{config.train.steps} updates are too few for it")
    return Compilation(True, "the GPU replays each update as one graph")


def find_obstacle(config: OfflineConfig, device: torch.device, *, num_processes: int, is_streamed: bool) -> str | None:
    """Return why updates cannot be compiled, or None."""
    if not isinstance(config, DTConfig | BCConfig):
        return f"an update of {config.algo} also tunes its temperature, which waits for the update"
    if num_processes > 1:
        return "several processes share each update"
    if device.type == "cuda" and is_streamed:
        return "its windows come from outside the GPU"
    return find_missing(device)


def find_missing(device: torch.device) -> str | None:
    """Return what this machine lacks to compile for a device, or None."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "there is no C compiler"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed, or does not know this GPU"
    return None if device.type == "cpu" else f"untested on {device.type}"

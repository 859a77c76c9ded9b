"""The states of random number generators, as tensors that a checkpoint keeps."""

import hashlib

import torch
from torch import Tensor


def random_states(device: torch.device, prefix: str = "") -> dict[str, Tensor]:
    """Return the states of the CPU's generator and, if that is another device, of its own."""
    states = {f"{prefix}rng/torch": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{prefix}rng/cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Set a generator's state; one that is of another kind of device gives a seed, since it means nothing here."""
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        generator.manual_seed(int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:4], "big"))


def restore_random_states(tensors: dict[str, Tensor], device: torch.device, prefix: str = "") -> None:
    """Set the states that `random_states` returned. Raises KeyError if the CPU's is not there."""
    torch.set_rng_state(tensors[f"{prefix}rng/torch"])
    if device.type == "cuda" and f"{prefix}rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{prefix}rng/cuda"], device)

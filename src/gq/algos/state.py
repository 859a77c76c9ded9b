"""What a checkpoint keeps of an optimiser and of random number generators, as tensors by name."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def on_host(tensor: Any) -> Tensor:
    """Return a tensor on the CPU; of one that lies in shards, the first process gets all and the others nothing."""
    if not hasattr(tensor, "full_tensor"):
        copied: Tensor = tensor.detach().cpu().contiguous()
        return copied
    whole: Tensor = tensor.detach().full_tensor()  # which all processes take part in
    return whole.cpu().contiguous() if tensor.device_mesh.get_rank() == 0 else torch.empty(0)


def laid_out(tensor: Tensor, like: Any) -> Tensor:
    """Return a whole tensor on the device of another one; in shards if that lies in shards, but for a scalar."""
    if not hasattr(like, "full_tensor") or not tensor.dim():
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def skip_if(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser's next step change nothing if `skipped` is 1."""
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]  # fused optimisers ask for both


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state, by the names of the model's parameters, on the CPU."""
    return {
        f"{key}/{name}": on_host(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore what `moments` returned. Raises KeyError if a part of a parameter's is missing."""
    for name, parameter in model.named_parameters():
        state = {
            key: laid_out(tensors[f"{key}/{name}"], parameter)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{key}/{name}" in tensors
        }
        if state and not {"exp_avg", "exp_avg_sq"} <= state.keys():
            raise KeyError(next(key for key in ("exp_avg", "exp_avg_sq") if key not in state))
        if state:
            optimizer.state[parameter] = state


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

"""Models too large for one device, in shards over all processes (FSDP2), and copied whole to act with."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from gq.models.costs import TRAINED_BYTES

if TYPE_CHECKING:
    from gq.config import TrainConfig

MOST_OF_A_DEVICE = 0.25  # its memory that weights, gradients and moments may take before they are divided


def is_to_be_sharded(model: nn.Module, train: "TrainConfig", device: torch.device, num_processes: int) -> bool:
    """Tell whether each process is to hold a share of the model instead of all of it."""
    if num_processes == 1 or train.parallel != "auto":
        return num_processes > 1 and train.parallel == "sharded"
    if device.type != "cuda":  # on a CPU the processes share one memory and wait long for each other
        return False
    num_bytes = TRAINED_BYTES * sum(parameter.numel() for parameter in model.parameters())
    return num_bytes > MOST_OF_A_DEVICE * torch.cuda.get_device_properties(device).total_memory


def shard(model: nn.Module, device: torch.device) -> None:
    """Divide a model's weights over all processes, and with them their gradients and moments.

    Each block's weights are gathered before it computes and let go after it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    backbone = getattr(model, "backbone", None)
    for block in backbone.blocks if backbone else []:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


@torch.no_grad()
def copy_whole(model: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a sharded model into a whole one; all processes take part."""
    values = target.state_dict()
    for name, tensor in model.state_dict().items():
        values[name].copy_(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)

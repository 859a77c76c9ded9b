"""Several processes that train one model, as torchrun starts them: who this is, and what they tell each other."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gq.errors import GqError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gq.config import TrainConfig

LONGEST_WAIT = timedelta(hours=12)  # for a process that evaluates while the others wait
RANK_STRIDE = 1_000_003  # between the seeds of two processes
MOST_OF_A_DEVICE = 0.25  # its memory that weights, gradients and moments may take before they are divided
LOST = ("closed by peer", "reset by peer", "Broken pipe", "Socket", "NCCL")  # what a lost connection's errors say


def rank() -> int:
    """Return the number of this process: 0 if it is alone, and for the one that writes and speaks."""
    return int(os.environ.get("RANK", 0)) if size() > 1 else 0


def size() -> int:
    """Return how many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_device(device: str) -> str:
    """Return the device that this process of a machine takes where `device` leaves the choice."""
    import torch

    is_free = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if size() > 1 and is_free else device


def refuse_uneven(batch_size: int, num_processes: int) -> None:
    """Raise UsageError if a batch cannot be divided among the processes."""
    if batch_size % num_processes:
        message = f"a batch of {batch_size} cannot be divided among {num_processes} processes"
        hint = f"--set train.batch_size={-(-batch_size // num_processes) * num_processes}"
        raise UsageError(message, hint=hint)


@contextmanager
def together() -> Iterator[None]:
    """Let what fails because another process ended say so.

    Raises:
        GqError: the connection was lost. Any other error stays what it is.
    """
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not any(words in str(error) for words in LOST):
            raise
        hint = "its own message says why; --resume goes on from the last checkpoint"
        raise GqError("another process of this run ended", hint=hint) from error


class Processes:
    """The connection to the other processes; alone, every method returns at once."""

    def __init__(self, device_type: str) -> None:
        """Connect, which waits for all processes: for tensors on this type of device, and for plain values."""
        import torch.distributed as dist

        self.rank, self.size = rank(), size()
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        self._values = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if self.size > 1 else None

    def average(self, tensors: Sequence[Any]) -> None:
        """Replace tensors by their means over all processes, in place and in one exchange."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with together():
            dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def total(self, *numbers: int) -> list[int]:
        """Return the sums of whole numbers over all processes."""
        if self.size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        sums = torch.tensor(numbers)
        with together():
            dist.all_reduce(sums, group=self._values)
        return sums.tolist()

    def largest(self, *numbers: int) -> list[int]:
        """Return the largest of each of these whole numbers over all processes."""
        if self.size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        highest = torch.tensor(numbers)
        with together():
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._values)
        return highest.tolist()

    def from_first(self, value: Any) -> Any:
        """Return what the first process gave; what the others give is ignored."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        with together():
            dist.broadcast_object_list(values, group=self._values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value to the first one, in order, and an empty list to the others."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with together():
            dist.gather_object(value, values if self.rank == 0 else None, group=self._values)
        return values if self.rank == 0 else []

    def merge(self, shares: list[Any]) -> list[Any]:
        """Return all items to every process, of which process r of N brings r, r + N, r + 2N, ..."""
        parts = self.gather(shares)
        merged: list[Any] = self.from_first([parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))])
        return merged

    def close(self) -> None:
        """Disconnect."""
        import torch.distributed as dist

        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


# --- models too large for one device, in shards over all processes (FSDP2), and copied whole to act with --------------


def is_to_be_sharded(model: "nn.Module", train: "TrainConfig", device: "torch.device", num_processes: int) -> bool:
    """Tell whether each process is to hold a share of the model instead of all of it."""
    if num_processes == 1 or train.parallel != "auto":
        return num_processes > 1 and train.parallel == "sharded"
    if device.type != "cuda":  # on a CPU the processes share one memory and wait long for each other
        return False
    import torch

    from gq.models.costs import TRAINED_BYTES

    num_bytes = TRAINED_BYTES * sum(parameter.numel() for parameter in model.parameters())
    return num_bytes > MOST_OF_A_DEVICE * torch.cuda.get_device_properties(device).total_memory


def shard(model: "nn.Module", device: "torch.device") -> None:
    """Divide a model's weights over all processes, and with them their gradients and moments.

    Each block's weights are gathered before it computes and let go after it.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    backbone = getattr(model, "backbone", None)
    for block in backbone.blocks if backbone else []:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def copy_whole(model: "nn.Module", target: "nn.Module") -> None:
    """Copy the weights of a sharded model into a whole one; all processes take part."""
    import torch

    values = target.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            values[name].copy_(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)

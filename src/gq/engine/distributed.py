"""Several processes that train one model, as torchrun starts them: who this is, and what they tell each other."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

LONGEST_WAIT = timedelta(hours=12)  # for a process that evaluates while the others wait


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
        dist.all_reduce(sums, group=self._values)
        return sums.tolist()

    def from_first(self, value: Any) -> Any:
        """Return what the first process gave; what the others give is ignored."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, group=self._values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value to the first one, in order, and an empty list to the others."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.rank == 0 else None, group=self._values)
        return values if self.rank == 0 else []

    def close(self) -> None:
        """Disconnect."""
        import torch.distributed as dist

        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

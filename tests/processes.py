"""Several processes of one run, as torchrun starts them, but forked from this one with all that it has loaded."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from commandline import gq


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def work(rank: int, num_processes: int, port: int, do: Callable[..., object], *arguments: object) -> None:
    """Do something as one process of several."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    do(*arguments)


def in_processes(num_processes: int, do: Callable[..., object], *arguments: object, join: bool = True) -> Any:
    """Do something in several processes of one run.

    Raises:
        multiprocessing.ProcessRaisedException: something was raised in one of them; only with `join`.
    """
    given = (num_processes, free_port(), do, *arguments)
    return multiprocessing.start_processes(work, given, nprocs=num_processes, join=join, start_method="fork")


def command_in_processes(num_processes: int, *command: Any) -> None:
    """Run a command that must succeed in several processes."""

    def run() -> None:
        result = gq(*command)
        assert result.exit_code == 0, result.stderr

    in_processes(num_processes, run)

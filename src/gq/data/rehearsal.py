"""Read a file in a child process first, because the HDF5 library can crash or loop for ever on a hostile one."""

import faulthandler
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gq.errors import DataError

CPU_LIMIT_S = 20  # and more for large files
WALL_LIMIT = 10  # times as much: a fork can wait for ever for a lock that some thread held
BYTES_PER_S = 20 << 20  # that even a slow machine reads


def rehearse(path: Path, read: Callable[[], object]) -> None:
    """Read a file in a fork of this process, which takes milliseconds, and refuse it if that does not end by itself.

    What the fork returns or raises does not matter: it will happen again here. Only on Linux; other systems do not
    fork well.

    Raises:
        DataError: the fork crashed, or took far longer than such a file takes.
    """
    if sys.platform != "linux":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, of which the fork needs none
        child = os.fork()
    if not child:
        rehearse_here(path, read)
    try:
        wait(child, WALL_LIMIT * cpu_limit(path))
    finally:
        os.kill(child, signal.SIGKILL)  # it has ended, or has to
        status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        what = "loops" if name in ("SIGXCPU", "SIGKILL") else "crashes"
        message = f"{path} is damaged, or made to do harm: the HDF5 library {what} on it ({name})"
        raise DataError(message, hint="it was read in a process of its own; do not trust this file, fetch it again")


def cpu_limit(path: Path) -> int:
    """Return the seconds of computing that reading a file may take."""
    return CPU_LIMIT_S + path.stat().st_size // BYTES_PER_S


def wait(child: int, seconds: float) -> None:
    """Wait until a child process ends, and no longer than that."""
    descriptor = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(seconds * 1_000)
    finally:
        os.close(descriptor)


def rehearse_here(path: Path, read: Callable[[], object]) -> None:
    """Read a file and end this process, whatever happens, without a word."""
    import resource

    faulthandler.disable()
    try:
        limit = cpu_limit(path)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with suppress(BaseException):
            read()
    finally:
        os._exit(0)

"""Settings of the process: threads, before torch is imported; cores; how malloc treats freed memory."""

import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's numbers
LARGEST_BLOCK = 32 << 20  # bytes; larger ones are mapped and unmapped one by one (and glibc before 2.35 takes no more)
LARGEST_REST = 256 << 20  # bytes that may lie free at the end of the heap


def prepare() -> None:
    """Let idle OpenMP threads sleep, after a spin so short that nobody else misses the core.

    Spinning between parallel regions for as long as it takes doubles the time of a training step as soon as another
    process wants the core; sleeping at once costs 10 to 20 % on an idle machine. GNU's OpenMP takes the number, others
    the policy; variables that the user set are left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed tensors of a few megabytes for the next ones; other C libraries stay as they are.

    Otherwise each intermediate result of an update, a plan or a policy's step costs page faults: a tenth to a third of
    its time on a CPU. The process keeps at most about LARGEST_REST more than it needs.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, LARGEST_REST)

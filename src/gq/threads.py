"""Cores and threads: settings that must be made before torch is imported, and how many cores there are."""

import os


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

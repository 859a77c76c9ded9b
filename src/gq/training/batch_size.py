"""Choosing a batch size by trying: the smallest at which this machine learns about as many windows a second as it can.

A larger one would only learn more slowly from as much data. The smallest candidate is the recipe's own, unless it does
not fit: fewer windows than that are noisier than the recipe was made for.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING

from gq.config import DTConfig, ODTConfig, OfflineConfig
from gq.data.trajectories import Trajectories
from gq.devices import available_memory_bytes
from gq.errors import GqError, UsageError
from gq.models.transformer_costs import Arithmetic, activation_bytes

if TYPE_CHECKING:
    import torch

    from gq.algos.supervised import SupervisedLearner
    from gq.policies.compute import Compute

NEARLY = 0.95  # of the best speed
TRIAL_S = 0.5  # of updates that count, for each size
FEWEST_UPDATES = 2  # that count
UNCOUNTED = {"cpu": 1, "cuda": 5}  # turns before them; on a GPU the first few are taken apart and then captured
BUDGET_S = 8.0  # after which no larger size is tried
LARGEST = 2**16
CPU_MEMORY_SHARE = 0.5  # of what is free
GPU_MEMORY_SHARE = 0.9  # of all: evaluation and the allocator's gaps need some, too


@dataclass(frozen=True)
class Trial:
    """What an update on so many windows took."""

    batch_size: int
    fastest_seconds: float  # which other work on the machine disturbs least
    mean_seconds: float

    @property
    def windows_per_second(self) -> float:
        """Return how many windows are learnt from in a second, undisturbed."""
        return self.batch_size / self.fastest_seconds


@dataclass(frozen=True)
class BatchChoice:
    """A batch size, and what it was chosen from."""

    batch_size: int
    trials: list[Trial]
    limit: str  # what set an end to the trials: speed, memory, data or time
    training_seconds: float  # of all updates, without evaluation

    def __str__(self) -> str:
        tried = ", ".join(f"{trial.windows_per_second:.0f} with {trial.batch_size}" for trial in self.trials)
        ends = {"memory": "; more do not fit", "data": "; the data have no more", "time": "; more take too long to try"}
        return f"batch size {self.batch_size}; windows/s: {tried}{ends.get(self.limit, '')}"


def choose_batch_size(config: OfflineConfig, trajectories: Trajectories) -> BatchChoice:
    """Try batch sizes for a few seconds, with learners of their own; nothing is left of them, nor of random numbers.

    Raises:
        UsageError: the device is not available, or several processes would have to agree.
        GqError: not even one window fits into its memory.
    """
    import torch

    from gq.policies.compute import choose_compute
    from gq.training import processes as distributed

    if distributed.size() > 1:
        hint = "run it with --dry-run in one process, and give the batch size times their number"
        raise UsageError("--batch-size auto measures one process, not several", hint=hint)
    compute = choose_compute(config.train.device, config.train.precision)
    devices = [compute.device] if compute.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        trials, limit = try_sizes(lambda size: try_size(config, trajectories, compute, size), config, trajectories)
    if not trials:
        hint = "choose a smaller --size, or --set train.checkpoint_activations=true"
        raise GqError(f"not even one window fits into the memory of {compute.device}", hint=hint)
    chosen = smallest_fast(trials)
    return BatchChoice(chosen.batch_size, trials, limit, config.train.steps * chosen.mean_seconds)


def try_sizes(
    attempt: Callable[[int], Trial | None], config: OfflineConfig, trajectories: Trajectories
) -> tuple[list[Trial], str]:
    """Return trials from the recipe's batch size upwards, or its first part that fits, and what set an end to them.

    Args:
        attempt: tries a size; returns None where it does not fit.
    """
    began, size = perf_counter(), config.train.batch_size
    first = attempt(size)
    while first is None and size > 1:
        size //= 2
        first = attempt(size)
    if first is None or size < config.train.batch_size:
        return [first] if first else [], "memory"
    trials = [first]
    while not is_saturated(trials):
        size *= 2
        if size > min(LARGEST, trajectories.num_transitions):
            return trials, "data"
        if perf_counter() - began > BUDGET_S:
            return trials, "time"
        if (trial := attempt(size)) is None:
            return trials, "memory"
        trials.append(trial)
    return trials, "speed"


def is_saturated(trials: list[Trial]) -> bool:
    """Tell whether the last two doublings gained nothing worth having."""
    speeds = [trial.windows_per_second for trial in trials]
    return len(speeds) > 2 and max(speeds[-2:]) * NEARLY < speeds[-3]


def smallest_fast(trials: list[Trial]) -> Trial:
    """Return the smallest batch size that is nearly as fast as the best one."""
    best = max(trial.windows_per_second for trial in trials)
    return next(trial for trial in trials if trial.windows_per_second >= NEARLY * best)


def try_size(config: OfflineConfig, trajectories: Trajectories, compute: "Compute", size: int) -> Trial | None:
    """Take updates on batches of a size; return None where they do not fit."""
    import torch

    if compute.device.type == "cpu" and not fits_cpu(config, trajectories, compute, size):
        return None
    config = config.replace({"train.batch_size": size})
    try:
        seconds = timed_updates(config, trajectories, compute)
        if compute.device.type == "cuda":
            total = torch.cuda.get_device_properties(compute.device).total_memory
            if torch.cuda.max_memory_allocated(compute.device) > GPU_MEMORY_SHARE * total:
                return None
    except torch.OutOfMemoryError:
        return None
    finally:
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(compute.device)
    return Trial(size, min(seconds), sum(seconds) / len(seconds))


def timed_updates(config: OfflineConfig, trajectories: Trajectories, compute: "Compute") -> list[float]:
    """Return the seconds of each update of a new learner, but for the first ones.

    On a GPU they are captured if the run's will be, but not compiled, which takes longer than all trials.
    """
    import torch

    from gq.policies.compilation import choose_compilation
    from gq.policies.loading import build_learner

    torch.manual_seed(config.train.seed)
    is_captured = choose_compilation(config, compute.device).is_on
    learner = build_learner(config, trajectories, compute, captured=is_captured)
    num_uncounted = UNCOUNTED.get(compute.device.type, 1)
    seconds: list[float] = []
    for turn in count():
        took = timed_updates_at_once(learner, compute.device)
        if turn >= num_uncounted:
            seconds += took
        if len(seconds) >= FEWEST_UPDATES and sum(seconds) >= TRIAL_S:
            break
    return seconds


def timed_updates_at_once(learner: "SupervisedLearner", device: "torch.device") -> list[float]:
    """Let a learner take as many updates as it takes at once; return the seconds of each until the device is done."""
    import torch

    began = perf_counter()
    _, number = learner.updates(0, sys.maxsize)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return number * [(perf_counter() - began) / number]


def fits_cpu(config: OfflineConfig, trajectories: Trajectories, compute: "Compute", size: int) -> bool:
    """Tell whether an update on so many windows should fit: where it does not, the system would kill the process."""
    if not isinstance(config, DTConfig | ODTConfig):
        return True
    at_once = ceil(size / config.train.num_micro_batches)
    num_bytes = activation_bytes(
        config.model,
        Arithmetic(bfloat16=compute.bfloat16, on_cpu=True),
        observation_dim=trajectories.observations.shape[1],
        action_dim=trajectories.actions.shape[1],
        batch_size=at_once,
        checkpointing=config.train.checkpoint_activations,
    )
    return num_bytes < CPU_MEMORY_SHARE * available_memory_bytes()

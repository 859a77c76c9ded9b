"""What happens beside a training loop: work in a thread, and how fast it is."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any

import torch

from gq.config import RunConfig, TransformerConfig
from gq.devices import device_here
from gq.models.costs import training_flops
from gq.policies.compute import Compute
from gq.training import processes as distributed


class Background:
    """A thread that does one piece of work at a time; what goes wrong in it is raised where its owner next asks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._work: Future[Any] | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # which waits for the end of the work

    def begin(self, work: Callable[[], Any]) -> None:
        """Start a piece of work, after the end of the one before. Raises what that one raised."""
        self.wait()
        self._work = self._thread.submit(work)

    def check(self) -> None:
        """Raise what the work raised, if it has ended; never waits."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is left to do. Raises what the work raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()


@dataclass(frozen=True)
class UpdateCosts:
    """What an update takes, over all processes; nothing is known of one that trains no transformer."""

    num_tokens: int = 0
    flops: int = 0
    peak_flops: float = 0.0  # per second, of all devices; 0 where it is not known

    @classmethod
    def of(cls, config: RunConfig, compute: Compute) -> "UpdateCosts":
        """Return those of a configuration that is trained on a device."""
        if not isinstance(config, TransformerConfig):
            return cls()
        task, model, batch_size = config.environment, config.model, config.train.batch_size
        dims = {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
        peak = 0.0
        if compute.device.type == "cuda" and (known := device_here(torch.cuda.get_device_name(compute.device))):
            peak = known.flops(compute.bfloat16)
        return cls(
            num_tokens=batch_size * model.tokens_per_step * model.context_length,
            flops=training_flops(model, batch_size=batch_size, **dims),
            peak_flops=peak * distributed.size(),
        )


class Throughput:
    """Count updates and environment steps between two log lines, and the time that they took.

    Evaluating and saving is left out of it, and what is said of updates leaves out the time that acting takes.
    """

    def __init__(self, config: RunConfig, compute: Compute) -> None:
        self.costs, self.device = UpdateCosts.of(config, compute), compute.device
        self.begin()

    def begin(self) -> None:
        """Start counting."""
        self._began, self._apart, self._acting = monotonic(), 0.0, 0.0
        self.num_updates = self.num_environment_steps = 0

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave out what is done meanwhile."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # updates that are still under way count before it
        began = monotonic()
        try:
            yield
        finally:
            self._apart += monotonic() - began

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Count the time meanwhile as that of environment steps, not of updates."""
        began = monotonic()
        try:
            yield
        finally:
            self._acting += monotonic() - began

    def rates(self) -> dict[str, float]:
        """Return the speed since the beginning as far as it is known, and begin again; the device must be idle."""
        seconds = max(monotonic() - self._began - self._apart, 1e-9)
        updating = max(seconds - self._acting, 1e-9)
        updates_per_second = self.num_updates / updating
        rates = {"updates_per_second": updates_per_second}
        if self.costs.num_tokens:
            rates["tokens_per_second"] = updates_per_second * self.costs.num_tokens
        if self.costs.peak_flops:
            rates["mfu"] = updates_per_second * self.costs.flops / self.costs.peak_flops
        if self.num_environment_steps:
            rates["environment_steps_per_second"] = self.num_environment_steps / (self._acting or seconds)
        self.begin()
        return rates

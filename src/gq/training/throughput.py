"""How fast a run goes: tokens, environment steps and updates per second, and the used share of the device's peak."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import torch

from gq.config import DTConfig, FinetuneConfig, ODTConfig, RunConfig
from gq.devices import device_here
from gq.models.costs import TOKENS_PER_STEP, training_flops
from gq.policies.compute import choose_compute
from gq.training import processes as distributed


@dataclass(frozen=True)
class UpdateCosts:
    """What an update takes, over all processes; nothing is known of one that trains no transformer."""

    num_tokens: int = 0
    flops: int = 0
    peak_flops: float = 0.0  # per second, of all devices; 0 where it is not known

    @classmethod
    def of(cls, config: RunConfig, device: torch.device) -> "UpdateCosts":
        """Return those of a configuration that is trained on a device."""
        if not isinstance(config, DTConfig | ODTConfig | FinetuneConfig):
            return cls()
        task, model, batch_size = config.environment, config.model, config.train.batch_size
        dims = {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
        peak = 0.0
        if device.type == "cuda" and (known := device_here(torch.cuda.get_device_name(device))):
            peak = known.flops(choose_compute(str(device), config.train.precision).bfloat16)
        return cls(
            num_tokens=batch_size * TOKENS_PER_STEP * model.context_length,
            flops=training_flops(model, batch_size=batch_size, **dims),
            peak_flops=peak * distributed.size(),
        )


class Throughput:
    """Count updates and environment steps between two log lines, and the time that they took.

    Evaluating and saving is left out of it, and what is said of updates leaves out the time that acting takes.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.costs, self.device = UpdateCosts.of(config, device), device
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
        """Return what is known of the speed since the beginning, and begin anew; the device has nothing left to do."""
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

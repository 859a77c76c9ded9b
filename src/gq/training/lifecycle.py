"""What happens beside a training loop: signals that stop it, work in a thread, and how fast it is."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

import torch

from gq.config import RunConfig, TransformerConfig
from gq.devices import device_here
from gq.models.costs import training_flops
from gq.policies.compute import Compute
from gq.training import processes as distributed


class StopRequest:
    """A context in which a signal sets `requested` instead of ending the process; a second Ctrl-C ends it at once.

    These are SIGINT and SIGTERM; SIGUSR1 and SIGUSR2, which clusters send before a time limit; SIGHUP, of a terminal
    that is closed, unless it is ignored as under nohup. A cluster may send several: of others than Ctrl-C only a second
    SIGTERM after a first one ends at once.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Tell `note` that a request came: what the loop is doing may still take a while."""
        self.requested = ""
        self._note = note
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
        numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_IGN and number != signal.SIGINT:
                continue
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            if name == "SIGINT" or name == self.requested == "SIGTERM":
                raise KeyboardInterrupt
            return
        self.requested = name
        # RuntimeError: it came in the middle of other output, which cannot be entered twice; else: nobody listens.
        with suppress(RuntimeError, OSError, ValueError):
            self._note(f"{self.requested}: saving at the end of this step; once more ends at once")


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

"""Whole updates as CUDA graphs: the host launches one update, or several in a row, and goes on at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NUM_WARM_UPS = 3  # updates taken in the usual way first, in which kernels are chosen, compiled and given memory


class Recording(NamedTuple):
    """A graph of N updates, with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    rates: Tensor  # [N], on the device
    results: dict[str, Tensor]  # each [N], what the updates return


class CapturedUpdates:
    """Take updates by replaying graphs of them.

    An update must do all its work on the device, always on the same tensors and without waiting for results. Replaying
    draws the random numbers that the update itself would have drawn.
    """

    def __init__(
        self,
        take_step: Callable[[Tensor], dict[str, Tensor]],
        generators: Sequence[torch.Generator],
        device: torch.device,
        *,
        burst: int = 1,
    ) -> None:
        """Capture what `take_step` does at a learning rate, a scalar on the device.

        Args:
            generators: those that it draws from beside torch's own.
            burst: as many updates are one graph wherever that many are to be taken. A small model's update takes the
                device no longer than the host takes to launch it and to keep its results.
        """
        self.take_step, self.generators, self.device, self.burst = take_step, generators, device, burst
        self.forget()

    def forget(self) -> None:
        """Begin again, because the tensors of an update are no longer the same."""
        self.num_warm_ups = 0
        self.recordings: dict[int, Recording] = {}  # by the number of updates

    def num_at_once(self, most: int) -> int:
        """Return how many updates to take next, if no more than `most` are wanted."""
        return self.burst if self.num_warm_ups == NUM_WARM_UPS and self.burst <= most else 1

    def __call__(self, rates: Sequence[float]) -> dict[str, Tensor]:
        """Take one update at each of N learning rates; return what they return, each [N]."""
        given = torch.tensor(rates)
        if self.num_warm_ups < NUM_WARM_UPS:
            assert len(rates) == 1
            self.num_warm_ups += 1
            results = self.warm_up(given[0].to(self.device))
            return {name: value[None] for name, value in results.items()}
        recording = self.recordings.get(len(rates)) or self.capture(len(rates))
        self.recordings[len(rates)] = recording
        recording.rates.copy_(given, non_blocking=True)
        recording.graph.replay()
        return {name: value.clone() for name, value in recording.results.items()}  # the next replay overwrites them

    def warm_up(self, rate: Tensor) -> dict[str, Tensor]:
        """Take an update in the usual way, on a stream of its own as what is captured later."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results = self.take_step(rate)
        current.wait_stream(stream)
        return results

    def capture(self, num_updates: int) -> Recording:
        """Record updates without taking them."""
        graph, rates = torch.cuda.CUDAGraph(), torch.empty(num_updates, device=self.device)
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Other threads may use the device meanwhile, such as one that writes a checkpoint.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = self.take_steps(rates)
        return Recording(graph, rates, results)

    def take_steps(self, rates: Tensor) -> dict[str, Tensor]:
        """Take one update at each learning rate [N]; return what they return, each [N]."""
        results = [self.take_step(rate) for rate in rates.unbind()]
        return {name: torch.stack([each[name] for each in results]) for name in results[0]}

"""A whole update as one CUDA graph: the host launches it and goes on, whatever it is made of."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NUM_WARM_UPS = 3  # updates taken in the usual way first, in which kernels are chosen, compiled and given memory


class CapturedStep:
    """Take updates by replaying the graph of one.

    An update must do all its work on the device, always on the same tensors and without waiting for results. Replaying
    draws the random numbers that the update itself would have drawn.
    """

    def __init__(self, take_step: Callable[[], dict[str, Tensor]], generators: Sequence[torch.Generator]) -> None:
        """Capture what `take_step` does; `generators` are those that it draws from beside torch's own."""
        self.take_step, self.generators = take_step, generators
        self.forget()

    def forget(self) -> None:
        """Begin anew, because the tensors of an update are no longer the same."""
        self.num_taken = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.results: dict[str, Tensor] = {}

    def __call__(self) -> dict[str, Tensor]:
        """Take one update; return what it returns."""
        if self.num_taken < NUM_WARM_UPS:
            self.num_taken += 1
            return self.warm_up()
        if self.graph is None:
            self.capture()
        assert self.graph
        self.graph.replay()
        return {name: value.clone() for name, value in self.results.items()}  # the next update overwrites them

    def warm_up(self) -> dict[str, Tensor]:
        """Take an update in the usual way, on a stream of its own as what is captured later."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results = self.take_step()
        current.wait_stream(stream)
        return results

    def capture(self) -> None:
        """Record an update without taking it."""
        self.graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            self.graph.register_generator_state(generator)
        # Other threads may go on with the device meanwhile, such as one that writes a checkpoint.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.results = self.take_step()

"""Updates and plans as CUDA graphs: the host launches a whole one, or several in a row, and is free at once."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

NUM_WARM_UPS = 3  # calls that run in the usual way first, in which kernels are chosen, compiled and given memory
Results = TypeVar("Results", bound="dict[str, Tensor] | NamedTuple")


@dataclass(frozen=True)
class Program:
    """How what is computed again and again, updates or plans, is run; decided once."""

    compiled: bool  # by torch's compiler, on first use
    captured: bool  # replayed as one CUDA graph
    reason: str

    @property
    def is_for_one_size(self) -> bool:
        """Whether another number of inputs would be compiled or captured again."""
        return self.compiled or self.captured

    def __str__(self) -> str:
        ways = ["compiled"] * self.compiled + ["replayed as one CUDA graph"] * self.captured
        return f"{' and '.join(ways) or 'neither compiled nor captured'}: {self.reason}"


EAGER = Program(False, False, "as asked")


class Recording(NamedTuple):
    """A graph of what a function does, with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    results: Any


class Captured:
    """Run a function of tensors by replaying a graph of it, one for each set of shapes.

    The function must do all its work on the device, without waiting for results and, but for its inputs, always on the
    same tensors. Replaying draws the random numbers that the function itself would have drawn.

    It comes with each call and is not kept: a learner would otherwise hold itself through this object, and only the
    garbage collector would free it with all that its graphs have reserved.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        """Take the generators that the function draws from beside torch's own."""
        self.device, self.generators = device, generators
        # One stream for the warm-ups and the capture: on another one each would reserve activations of its own.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.forget()

    def forget(self) -> None:
        """Begin again, because the tensors that the function works on are no longer the same."""
        self.num_warm_ups = 0
        self.recordings: dict[tuple[torch.Size, ...], Recording] = {}
        self.pool: Any = None  # what the graphs share: results are copied before another one is replayed

    @property
    def is_warm(self) -> bool:
        """Whether the next call replays a graph."""
        return self.num_warm_ups == NUM_WARM_UPS

    def __call__(self, function: Callable[..., Results], *inputs: Tensor) -> Results:
        """Return the function's results for inputs, which may lie on the host."""
        if not self.is_warm:
            self.num_warm_ups += 1
            return self.warm_up(function, inputs)
        shapes = tuple(value.shape for value in inputs)
        if shapes not in self.recordings:
            self.recordings[shapes] = self.capture(function, inputs)
        recording = self.recordings[shapes]
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        recording.graph.replay()
        results: Results = map_tensors(torch.clone, recording.results)  # the next replay overwrites them
        return results

    def warm_up(self, function: Callable[..., Results], inputs: Sequence[Tensor]) -> Results:
        """Run the function in the usual way, on the stream that it is captured on later."""
        current = torch.cuda.current_stream(self.device)
        assert self.stream
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = function(*(value.to(self.device, non_blocking=True) for value in inputs))
        current.wait_stream(self.stream)
        map_tensors(lambda value: value.record_stream(current), results)
        return results

    def capture(self, function: Callable[..., Results], inputs: Sequence[Tensor]) -> Recording:
        """Record the function without running it."""
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        if torch.__version__ < "2.14":  # from then on, a graph finds the generators by itself
            for generator in self.generators:
                graph.register_generator_state(generator)
        own = tuple(torch.empty_like(value, device=self.device) for value in inputs)
        # Other threads may use the device meanwhile, such as one that writes a checkpoint.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            results = function(*own)
        return Recording(graph, own, results)


def map_tensors(change: Callable[[Tensor], Any], results: Any) -> Any:
    """Apply a function to the tensors of a dict or of a named tuple."""
    if isinstance(results, dict):
        return {name: change(value) for name, value in results.items()}
    return type(results)(*map(change, results))


def report_failure(what: str, error: Exception) -> None:
    """Say on stderr that torch's compiler failed, and that what it was to compile is run without."""
    text = str(error).strip() or type(error).__name__
    logging.getLogger("gq").warning("%s are not compiled: torch's compiler failed: %s", what, text.splitlines()[0])

"""What stands for a CUDA graph on a CPU: a function's operations, undone after recording, taken again on replay."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gq.algos.captured import Captured, Recording


def is_alias(func: Any) -> bool:
    """Whether an operation returns a view, or works in place."""
    return any(each.alias_info is not None for each in func._schema.returns)


class Tape(TorchDispatchMode):
    """Record ATen operations with what they read and write; refuse those that need an answer on the host."""

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        super().__init__()
        self.generators = [torch.default_generator, *generators]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # what was overwritten first, by address, and what it held
        self.made: set[int] = set()  # storages that the recorded operations made
        self.num_replays = 0

    def __enter__(self) -> "Tape":
        self.states = [generator.get_state() for generator in self.generators]
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(given.get(argument.name)):
                    self._keep(tensor)
        out = func(*args, **kwargs)
        for value in tree_leaves(out):
            assert isinstance(value, Tensor) or value is None, f"{func} answers on the host"
            if isinstance(value, Tensor) and not is_alias(func):
                self.made.add(value.untyped_storage().data_ptr())
        self.calls.append((func, args, kwargs, out))
        return out

    def _keep(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.made:
            whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # type: ignore[call-overload]
            self.before.setdefault(whole.data_ptr(), (whole, whole.clone()))

    def undo(self) -> None:
        """Bring tensors and generators to where they were: capturing takes nothing."""
        for tensor, value in self.before.values():
            tensor.copy_(value)
        for generator, state in zip(self.generators, self.states, strict=True):
            generator.set_state(state)

    @torch.no_grad()
    def replay(self) -> None:
        """Take the operations again, on the same storages."""
        self.num_replays += 1
        for func, args, kwargs, out in self.calls:
            found = func(*args, **kwargs)
            if is_alias(func):
                continue
            for old, new in zip(tree_leaves(out), tree_leaves(found), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)


def capture(self: Captured, function: Any, inputs: Sequence[Tensor]) -> Recording:
    """Record a function as `Captured.capture` does."""
    own = tuple(value.clone() for value in inputs)
    with Tape(self.generators) as tape:
        results = function(*own)
    tape.undo()
    return Recording(tape, own, results)  # type: ignore[arg-type]


def warm_up(_: Captured, function: Any, inputs: Sequence[Tensor]) -> Any:
    """Run a function as `Captured.warm_up` does, without streams."""
    return function(*inputs)

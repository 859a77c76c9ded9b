"""The update that the supervised algorithms share: loss, clip, AdamW, all of its state in and out as tensors."""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gq.algos.captured import EAGER as KERNEL_BY_KERNEL
from gq.algos.captured import Captured, Program, report_failure
from gq.algos.lamb import Lamb
from gq.algos.state import load_moments, moments, random_states, restore_generator, restore_random_states, skip_if
from gq.config import OptimConfig, TrainConfig, UpdateConfig
from gq.data.windows import Batch, Sampler
from gq.errors import is_out_of_memory
from gq.models.decision_transformer import TrajectoryTransformer
from gq.threads import keep_freed_memory

PART_NUMBERS = 2**21  # of the residual stream: at width 512 and 60 tokens, 68 windows; no slower, and less memory


def num_valid_steps(batch: Batch) -> Tensor:
    """Return what a loss over all steps of the windows averages over."""
    return batch.valid.sum()


def num_windows(batch: Batch) -> Tensor:
    """Return what a loss over one step per window averages over."""
    return batch.valid.new_full((), len(batch.valid), dtype=torch.float32)


@dataclass(frozen=True)
class Execution:
    """How updates are computed; none of it changes what is learnt but for rounding."""

    autocast: Callable[[], AbstractContextManager[None]] = nullcontext  # the number format of forward passes
    # Replaces tensors by their means over all processes, of which each draws a share of a batch.
    average: Callable[[Sequence[Tensor]], None] | None = None
    program: Program = KERNEL_BY_KERNEL  # compiles the loss alone
    burst: int = 1  # or this many of them in one graph, where `updates` may take as many


EAGER = Execution()


class SupervisedLearner:
    """Train a model on windows of a dataset.

    A step whose gradient is not finite changes nothing and is counted in `num_skipped`, on the device, so that no
    step waits for the host.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., dict[str, Tensor]],
        sampler: Sampler,
        optim: OptimConfig,
        train: UpdateConfig,
        execution: Execution = EAGER,
        num_terms: Callable[[Batch], Tensor] = num_valid_steps,
    ) -> None:
        """Take a function of model and batch that returns `loss`, to be differentiated, and what else is to be logged.

        Each is a mean over `num_terms` of its batch, so that the parts of a batch can be weighted.
        """
        self.model, self.loss, self.sampler = model, loss, sampler
        self.optim, self.train, self.num_terms = optim, train, num_terms
        self.autocast, self.average = execution.autocast, execution.average
        self.is_sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
        keep_freed_memory()
        device = next(model.parameters()).device
        self.largest_part = largest_part(model, device)
        self.compiled_loss = torch.compile(loss, dynamic=False) if execution.program.compiled else None
        self.burst = 1
        self.captured: Captured | None = None
        if execution.program.captured:
            self.burst = execution.burst if sampler.is_static else 1
            self.captured = Captured(device, [sampler.generator] if sampler.is_static else [])
        self.optimizer = build_optimizer(model, optim, captured=execution.program.captured)
        self.num_skipped = torch.zeros((), device=device)

    def update(self, step: int) -> dict[str, Tensor]:
        """Take optimiser step number `step` (from 0); return device scalars, among them `loss` and `gradient_norm`."""
        if not self.captured:
            return self.take_step_at(self.learning_rate(step))
        return {name: value[0] for name, value in self._replay([self.learning_rate(step)]).items()}

    def updates(self, step: int, most: int) -> tuple[dict[str, Tensor], int]:
        """Take optimiser steps from number `step` on, one or several but no more than `most`.

        Returns:
            What `update` returns, of each step where there were several ([N] instead of scalars), and their number.
        """
        num = self.burst if self.captured and self.captured.is_warm and self.burst <= most else 1
        if num == 1:
            return self.update(step), 1
        return self._replay([self.learning_rate(step + index) for index in range(num)]), num

    def _replay(self, rates: list[float]) -> dict[str, Tensor]:
        """Take a captured step at each learning rate [N]; return metrics, each [N]."""
        assert self.captured
        given = () if self.sampler.is_static else self.sampler.sample(self.train.batch_size)
        return self.captured(self.take_steps, torch.tensor(rates), *given)

    def take_steps(self, rates: Tensor, *given: Tensor) -> dict[str, Tensor]:
        """Take a step at each learning rate [N], on a given batch or on drawn ones; return metrics, each [N]."""
        results = [self.take_step_at(rate, *given) for rate in rates.unbind()]
        return {name: torch.stack([each[name] for each in results]) for name in results[0]}

    def take_step_at(self, rate: float | Tensor, *given: Tensor) -> dict[str, Tensor]:
        """Take a step at a learning rate, which is on the device where steps are captured."""
        for group in self.optimizer.param_groups:
            if isinstance(rate, Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        return self.take_step(Batch(*given) if given else self.sampler.sample(self.train.batch_size))

    def take_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take a step at the optimiser's learning rate, without waiting for the device."""
        self.model.train()
        self.optimizer.zero_grad()
        metrics: dict[str, Tensor] = {}
        num_terms = self.num_terms(batch)
        if self.average:
            num_terms = num_terms.float()
            self.average([num_terms])
        for start, end in self.micro_batches(len(batch.valid)):
            part = Batch(*(array[start:end] for array in batch))
            share = self.num_terms(part) / num_terms  # so that the parts add up to the loss of the whole batch
            measured = self.differentiate(part, share)
            for name, value in measured.items():
                metrics[name] = metrics.get(name, torch.zeros_like(share)) + value.detach() * share
        if self.average:
            gradients = [] if self.is_sharded else [p.grad for p in self.model.parameters() if p.grad is not None]
            self.average([*gradients, *metrics.values()])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.gradient_clip or math.inf)
        if self.is_sharded:
            norm = norm.full_tensor()  # type: ignore[attr-defined]
        skipped = (~torch.isfinite(norm)).float()
        skip_if(skipped, self.optimizer)
        self.num_skipped += skipped
        self.optimizer.step()
        return metrics | {"gradient_norm": norm}

    def differentiate(self, part: Batch, share: Tensor) -> dict[str, Tensor]:
        """Add a loss's gradients, times `share`, to the parameters'; do without a compiler that fails."""
        try:
            with self.autocast():
                measured = (self.compiled_loss or self.loss)(self.model, part)
            (measured["loss"] * share).backward()
        except Exception as error:
            if not self.compiled_loss or is_out_of_memory(error):
                raise
            # What is wrong with the loss itself fails again. Whole graphs are compiled, before anything is added.
            self.compiled_loss = None
            report_failure("updates", error)
            return self.differentiate(part, share)
        return measured

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step number `step`."""
        assert isinstance(self.train, TrainConfig)
        return learning_rate(self.optim, step, self.train.steps)

    def micro_batches(self, num_rows: int) -> list[tuple[int, int]]:
        """Return the row ranges that a batch, or a process's share of it, is computed in."""
        size = math.ceil(self.train.batch_size / self.train.num_micro_batches)
        size = math.ceil(size / math.ceil(size / self.largest_part))
        return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]

    def state_tensors(self) -> dict[str, Tensor]:
        """Return moments and random states, on the CPU."""
        tensors = {"rng/sampler": self.sampler.generator.get_state(), **random_states(self.num_skipped.device)}
        return tensors | moments(self.model, self.optimizer) | {"num_skipped": self.num_skipped.cpu()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        restore_generator(self.sampler.generator, tensors["rng/sampler"])
        restore_random_states(tensors, self.num_skipped.device)
        self.num_skipped.copy_(tensors["num_skipped"])
        load_moments(tensors, self.model, self.optimizer)
        if self.captured:
            self.captured.forget()


def largest_part(model: nn.Module, device: torch.device) -> int:
    """Return how many windows to compute at a time at most, so that a CPU finds in its cache what it just computed."""
    if device.type != "cpu" or not isinstance(model, TrajectoryTransformer):
        return sys.maxsize
    return max(1, PART_NUMBERS // (model.config.tokens_per_step * model.config.context_length * model.config.embed_dim))


def build_optimizer(model: nn.Module, optim: OptimConfig, *, captured: bool = False) -> torch.optim.Optimizer:
    """Return the configured optimiser of a model; for steps that are captured, its learning rate is on the device."""
    rate, decay, parameters = optim.learning_rate, optim.weight_decay, list(model.parameters())
    optimizer = (
        Lamb(parameters, learning_rate=rate, weight_decay=decay)
        if optim.optimizer == "lamb"
        else torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True, capturable=captured)
    )
    if captured:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(rate, device=parameters[0].device)
    return optimizer


def learning_rate(optim: OptimConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of step number `step` (from 0): linear warm-up, then constant or cosine to a tenth."""
    rate = warmed_up(optim, step)
    if optim.schedule == "constant":
        return rate
    return rate * cosine_factor((step - optim.warmup_steps) / max(1, num_steps - optim.warmup_steps))


def warmed_up(optim: OptimConfig, step: int) -> float:
    """Return the learning rate of step number `step` (from 0) before it falls."""
    return optim.learning_rate * min(1.0, (step + 1) / max(1, optim.warmup_steps))


def cosine_factor(share_done: float) -> float:
    """Return what a cosine schedule multiplies the learning rate with: 1 at the start, a tenth at the end."""
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, max(0.0, share_done)))

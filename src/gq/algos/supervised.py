"""The update that the supervised algorithms share: loss, clip, AdamW, all of its state in and out as tensors."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from gq.algos.lamb import Lamb
from gq.config import OptimConfig, TrainConfig, UpdateConfig
from gq.data.sampler import Batch, Sampler


def num_valid_steps(batch: Batch) -> Tensor:
    """Return what a loss over all steps of the windows averages over."""
    return batch.valid.sum()


def num_windows(batch: Batch) -> Tensor:
    """Return what a loss over one step per window averages over."""
    return batch.valid.new_tensor(len(batch.valid), dtype=torch.float32)


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
        *,
        autocast: Callable[[], AbstractContextManager],
        num_terms: Callable[[Batch], Tensor] = num_valid_steps,
    ) -> None:
        """Take a function of model and batch that returns `loss`, to be differentiated, and what else is to be logged.

        Each is a mean over `num_terms` of its batch, so that the parts of a batch can be weighted.
        """
        self.model, self.loss, self.sampler = model, loss, sampler
        self.optim, self.train, self.autocast, self.num_terms = optim, train, autocast, num_terms
        self.optimizer = build_optimizer(model, optim)
        device = next(model.parameters()).device
        self.num_skipped = torch.zeros((), device=device)

    def update(self, step: int) -> dict[str, Tensor]:
        """Take optimiser step number `step` (from 0); return device scalars, among them `loss` and `gradient_norm`."""
        self.model.train()
        self.optimizer.zero_grad()
        batch = self.sampler.sample(self.train.batch_size)
        metrics: dict[str, Tensor] = {}
        num_terms = self.num_terms(batch)
        for start, end in self.micro_batches():
            part = Batch(*(array[start:end] for array in batch))
            with self.autocast():
                measured = self.loss(self.model, part)
            share = self.num_terms(part) / num_terms  # so that the parts add up to the loss of the whole batch
            (measured["loss"] * share).backward()
            for name, value in measured.items():
                metrics[name] = metrics.get(name, torch.zeros_like(share)) + value.detach() * share
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.gradient_clip or math.inf)
        skipped = (~torch.isfinite(norm)).float()
        skip_if(skipped, self.optimizer)
        self.num_skipped += skipped
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.step()
        return metrics | {"gradient_norm": norm}

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step number `step`."""
        assert isinstance(self.train, TrainConfig)
        return learning_rate(self.optim, step, self.train.steps)

    def micro_batches(self) -> list[tuple[int, int]]:
        """Return the row ranges that a batch is computed in."""
        num_rows = self.train.batch_size
        size = math.ceil(num_rows / self.train.num_micro_batches)
        return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]

    def state_tensors(self) -> dict[str, Tensor]:
        """Return moments and random states, on the CPU."""
        tensors = {"rng/sampler": self.sampler.generator.get_state(), "rng/torch": torch.get_rng_state()}
        device = self.num_skipped.device
        if device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
        return tensors | moments(self.model, self.optimizer) | {"num_skipped": self.num_skipped.cpu()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        self.sampler.generator.set_state(tensors["rng/sampler"])
        torch.set_rng_state(tensors["rng/torch"])
        device = self.num_skipped.device
        if device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], device)
        self.num_skipped.copy_(tensors["num_skipped"])
        load_moments(tensors, self.model, self.optimizer)


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return the configured optimiser of a model."""
    if optim.optimizer == "lamb":
        return Lamb(model.parameters(), learning_rate=optim.learning_rate, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(model.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)


def skip_if(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser's next step change nothing if `skipped` is 1."""
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]  # fused optimisers ask for both


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state, by the names of the model's parameters, on the CPU."""
    return {
        f"{key}/{name}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore what `moments` returned."""
    for name, parameter in model.named_parameters():
        state = {
            key: tensors[f"{key}/{name}"].to(parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{key}/{name}" in tensors
        }
        if state:
            optimizer.state[parameter] = state


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

"""The update that the supervised algorithms share: loss, clip, AdamW, all of its state in and out as tensors."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from gq.config import OptimConfig, TrainConfig
from gq.data.sampler import Batch, WindowSampler


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
        loss: Callable[..., Tensor],
        sampler: WindowSampler,
        optim: OptimConfig,
        train: TrainConfig,
        *,
        autocast: Callable[[], AbstractContextManager],
        num_terms: Callable[[Batch], Tensor] = num_valid_steps,
    ) -> None:
        """Take the loss as a mean over `num_terms` of its batch, so that the parts of a batch can be weighted."""
        self.model, self.loss, self.sampler = model, loss, sampler
        self.optim, self.train, self.autocast, self.num_terms = optim, train, autocast, num_terms
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True
        )
        device = next(model.parameters()).device
        self.num_skipped = torch.zeros((), device=device)

    def update(self, step: int) -> dict[str, Tensor]:
        """Take optimiser step number `step` (from 0); return device scalars `loss` and `gradient_norm`."""
        self.model.train()
        self.optimizer.zero_grad()
        batch = self.sampler.sample(self.train.batch_size)
        total = torch.zeros((), device=batch.valid.device)
        num_terms = self.num_terms(batch)
        for start, end in self.micro_batches():
            part = Batch(*(array[start:end] for array in batch))
            with self.autocast():
                loss = self.loss(self.model, part)
            share = self.num_terms(part) / num_terms  # so that the parts add up to the loss of the whole batch
            (loss * share).backward()
            total += loss.detach() * share
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.gradient_clip or math.inf)
        skipped = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # the fused kernel leaves everything as it is
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.num_skipped += skipped
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, step, self.train.steps)
        self.optimizer.step()
        return {"loss": total, "gradient_norm": norm}

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
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
        return tensors | {"num_skipped": self.num_skipped.cpu()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        self.sampler.generator.set_state(tensors["rng/sampler"])
        torch.set_rng_state(tensors["rng/torch"])
        device = self.num_skipped.device
        if device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], device)
        self.num_skipped.copy_(tensors["num_skipped"])
        for name, parameter in self.model.named_parameters():
            state = {
                key: tensors[f"{key}/{name}"].to(device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in tensors
            }
            if state:
                self.optimizer.state[parameter] = state


def learning_rate(optim: OptimConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of step number `step` (from 0): linear warm-up, then constant or cosine to a tenth."""
    rate = optim.learning_rate * min(1.0, (step + 1) / max(1, optim.warmup_steps))
    if optim.schedule == "constant":
        return rate
    progress = min(1.0, max(0.0, (step - optim.warmup_steps) / max(1, num_steps - optim.warmup_steps)))
    return rate * (0.55 + 0.45 * math.cos(math.pi * progress))

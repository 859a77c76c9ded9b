"""The one training loop: update, log, evaluate, save, stop; exact across any interruption."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gq.config import RunConfig
from gq.engine.checkpoint import Checkpoint, save_checkpoint
from gq.engine.metrics import Listener, MetricsLog, Mirrors
from gq.engine.signals import StopRequest
from gq.errors import GqError, Interrupted
from gq.evaluation.statistics import Summary


class Learner(Protocol):
    """What the loop needs of an algorithm."""

    model: nn.Module
    num_skipped: Tensor  # updates left out because their gradient was not finite

    def update(self, step: int) -> dict[str, Tensor]:
        """Take one optimiser step; return scalar metrics, still on the device."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all state beside the model's."""

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore it."""


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint."""

    step: int = 0
    best_return: float | None = None
    best_step: int | None = None
    num_skipped: int = 0  # as of the last log line
    seconds: float = 0.0  # spent so far, over all resumptions


class Loop:
    """Train a learner for config.train.steps updates."""

    def __init__(
        self,
        learner: Learner,
        config: RunConfig,
        run: Path,
        *,
        evaluate: Callable[[], list[Summary]],
        facts: dict[str, Any],
        listener: Listener,
        mirrors: Mirrors,
        checkpoint: Checkpoint | None,
    ) -> None:
        """Start at `checkpoint`, or at step 0 without one. `facts` go into state.json beside the progress."""
        self.learner, self.config, self.run = learner, config, run
        self.evaluate, self.facts, self.listener, self.mirrors = evaluate, facts, listener, mirrors
        self.progress = Progress()
        self.sums: dict[str, Tensor] = {}  # metrics since the last log line
        self.last_evaluation: list[Summary] = []
        log_size = 0
        if checkpoint:
            learner.model.load_state_dict(checkpoint.model)
            learner.load_state_tensors(checkpoint.optimizer)
            self.sums = {k.removeprefix("sum/"): v for k, v in checkpoint.optimizer.items() if k.startswith("sum/")}
            self.progress = Progress(**checkpoint.state["progress"])
            log_size = checkpoint.state["metrics_bytes"]
        self.log = MetricsLog(run / "metrics.jsonl", size=log_size)

    def execute(self) -> None:
        """Run to the end.

        Raises:
            Interrupted: SIGINT or SIGTERM came; everything is saved.
            GqError: the loss is not finite any more, or a checkpoint could not be written.
        """
        config, progress = self.config, self.progress
        began = time.monotonic() - progress.seconds
        with StopRequest(self.listener.note) as stop:
            while progress.step < config.train.steps:
                for name, value in self.learner.update(progress.step).items():
                    self.sums[name] = self.sums[name] + value if name in self.sums else value
                progress.step += 1
                progress.seconds = time.monotonic() - began
                if progress.step % config.train.log_every == 0:
                    self.report()
                is_last = progress.step == config.train.steps
                is_best = self.due(config.eval.every, is_last) and config.eval.every > 0 and self.run_evaluation()
                progress.seconds = time.monotonic() - began
                if self.due(config.checkpoint.every, is_last) or is_best or stop.requested:
                    self.save(is_best)
                if stop.requested and not is_last:
                    raise Interrupted(
                        f"stopped by {stop.requested} at step {progress.step}, everything is saved",
                        hint=f"go on with: gq train {config.algo} --out {self.run} --resume",
                    )
        self.log.close()

    def due(self, every: int, is_last: bool) -> bool:
        """Tell whether something that happens every so many steps, and at the end, happens now."""
        return is_last or (every > 0 and self.progress.step % every == 0)

    def report(self) -> None:
        """Write the mean metrics since the last line; this is where the host waits for the device."""
        progress, num_steps = self.progress, self.config.train.log_every
        num_skipped = int(self.learner.num_skipped)
        means = {name: float(value) / num_steps for name, value in sorted(self.sums.items())}
        self.sums = {}
        newly_skipped = num_skipped - progress.num_skipped
        progress.num_skipped = num_skipped
        if newly_skipped >= num_steps:
            raise GqError(
                f"the loss or its gradient is not finite since step {progress.step - num_steps}",
                hint="start again with a smaller --set optim.learning_rate, or --set train.precision=float32",
            )
        record = {"step": progress.step, **means, "steps_per_second": progress.step / progress.seconds}
        if newly_skipped:
            record["skipped"] = newly_skipped
            self.listener.note(f"step {progress.step}: {newly_skipped} updates left out, their gradient was not finite")
        # The file repeats exactly when a run is resumed, so no time goes into it.
        self.log.write({key: value for key, value in record.items() if key != "steps_per_second"})
        self.mirrors.write(progress.step, record)
        self.listener.progress(progress.step, self.config.train.steps, record)

    def run_evaluation(self) -> bool:
        """Evaluate and log; return whether the mean return at the highest target is the best so far."""
        progress = self.progress
        self.last_evaluation = self.evaluate()
        record: dict[str, Any] = {}
        for summary in self.last_evaluation:
            name = f"eval/target_{summary.target_return:g}"
            record |= {f"{name}/return_mean": summary.return_mean, f"{name}/return_std": summary.return_std}
            record[f"{name}/length_mean"] = summary.length_mean
        self.log.write({"step": progress.step, **record})
        self.mirrors.write(progress.step, record)
        highest = max(self.last_evaluation, key=lambda summary: summary.target_return)
        is_best = progress.best_return is None or highest.return_mean > progress.best_return
        if is_best:
            progress.best_return, progress.best_step = highest.return_mean, progress.step
        self.listener.progress(progress.step, self.config.train.steps, record)
        return is_best

    def save(self, is_best: bool) -> None:
        """Write a checkpoint of everything."""
        self.log.sync()
        model = {name: tensor.detach().cpu().contiguous() for name, tensor in self.learner.model.state_dict().items()}
        assert all(torch.isfinite(tensor).all() for tensor in model.values()), "weights are never updated to NaN"
        sums = {f"sum/{name}": value.detach().cpu() for name, value in self.sums.items()}
        save_checkpoint(
            self.run,
            self.progress.step,
            model=model,
            optimizer=self.learner.state_tensors() | sums,
            state={"progress": vars(self.progress), "metrics_bytes": self.log.size, **self.facts},
            is_best=is_best,
            keep=self.config.checkpoint.keep,
        )

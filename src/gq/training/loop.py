"""The one training loop: update, log, evaluate, save, stop; exact across any interruption."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gq.algos.supervised import laid_out, on_host
from gq.config import RunConfig, TrainConfig
from gq.errors import GqError, Interrupted
from gq.rollouts.statistics import Summary
from gq.runs.checkpoint import Checkpoint, point, remove_old, save_checkpoint
from gq.runs.folder import resume_command
from gq.runs.metrics import Listener, MetricsLog, NoLog
from gq.training.background import Background
from gq.training.signals import StopRequest
from gq.training.throughput import Throughput
from gq.training.trackers import Trackers


class Learner(Protocol):
    """What the loop needs of an algorithm."""

    @property
    def model(self) -> nn.Module:
        """The networks."""

    @property
    def num_skipped(self) -> Tensor:
        """Updates that were left out because their gradient was not finite."""

    @property
    def update(self) -> Callable[..., dict[str, Tensor]]:
        """What takes an optimiser step and returns scalar metrics, still on the device."""

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
    """Train a learner for config.train.steps updates.

    What else may happen between updates, and when to stop, is a subclass's to say: `start`, `collect`, `is_finished`.
    """

    progress_type: type[Progress] = Progress

    def __init__(
        self,
        learner: Learner,
        config: RunConfig,
        run: Path,
        *,
        evaluate: Callable[[], list[Summary]],
        facts: dict[str, Any],
        listener: Listener,
        trackers: Trackers,
        checkpoint: Checkpoint | None,
        writes: bool = True,
        in_background: bool = False,
    ) -> None:
        """Start at `checkpoint`, or at step 0 without one.

        Args:
            facts: go into state.json beside the progress.
            writes: keep the log and checkpoints; of several processes, one does.
            in_background: write checkpoints while the loop goes on; they take as much of the host's memory meanwhile.
        """
        self.learner, self.config, self.run = learner, config, run
        self.evaluate, self.facts, self.listener, self.trackers = evaluate, facts, listener, trackers
        self.writes = writes
        self.background = Background() if in_background and writes else None
        self.progress = self.progress_type()
        self.stop = StopRequest(listener.note)
        self.throughput = Throughput(config, learner.num_skipped.device)
        self.metrics: dict[str, list[Tensor]] = {}  # of the updates since the last log line, scalars and vectors
        self.last_evaluation: list[Summary] = []
        self.saved_step: int | None = None
        log_size = times_size = 0
        if checkpoint:
            weights = learner.model.state_dict()
            learner.model.load_state_dict({k: laid_out(v, weights.get(k, v)) for k, v in checkpoint.model.items()})
            learner.load_state_tensors(checkpoint.optimizer)
            self.metrics = restored_metrics(checkpoint.optimizer, learner.num_skipped.device)
            self.progress = self.progress_type(**checkpoint.state["progress"])
            self.saved_step = self.progress.step
            if writes:  # a kill may have come before it was marked as the best, and before older ones were removed
                if self.progress.best_step == self.progress.step:
                    point(run, "best", checkpoint.path)
                remove_old(run, config.checkpoint.keep)
            log_size, times_size = checkpoint.state["metrics_bytes"], checkpoint.state["times_bytes"]
        self.log = MetricsLog(run / "metrics.jsonl", size=log_size) if writes else NoLog()
        # Apart, because the metrics repeat exactly.
        self.times = MetricsLog(run / "times.jsonl", size=times_size) if writes else NoLog()

    def execute(self) -> None:
        """Run to the end.

        Raises:
            Interrupted: SIGINT or SIGTERM came; everything is saved.
            GqError: the loss is not finite any more, or a checkpoint could not be written.
        """
        self.began = time.monotonic() - self.progress.seconds
        self.throughput.begin()
        with self.stop:
            if not self.is_finished():
                with self.trackers.opened(self.progress.step), self.background or nullcontext():
                    self.start()
                    while not self.is_finished():
                        self.advance()
                    self.finish_writing()
        self.log.close()
        self.times.close()

    def advance(self) -> None:
        """Take an update and do what is due after it.

        Raises:
            Interrupted: a signal asked for an end; everything is saved.
        """
        if self.background:
            self.background.check()
        if self.collect():
            self.update()
        is_best = False
        if self.evaluation_is_due():
            with self.throughput.apart():
                is_best = self.run_evaluation()
        is_last = self.is_finished()
        reason = self.stop_reason()
        if self.due(self.config.checkpoint.every) or is_last or is_best or reason:
            with self.throughput.apart():
                self.save(is_best)
            reason = reason or self.stop_reason()
        if reason and not is_last:
            self.finish_writing()
            raise Interrupted(
                f"stopped by {reason} at step {self.progress.step}, everything is saved",
                hint=f"go on with: {resume_command(self.config.algo, self.run)}",
            )

    def finish_writing(self) -> None:
        """Wait for a checkpoint that is being written."""
        if self.background:
            self.background.wait()

    def stop_reason(self) -> str:
        """Return the signal that asked for an end, if there was one."""
        return self.stop.requested

    def start(self) -> None:
        """Do what comes before the first update, or before the first after an interruption."""

    def collect(self) -> bool:
        """Do what comes before an update; return False where a stop request came in the middle of it."""
        return True

    def is_finished(self) -> bool:
        """Tell whether no more updates are to be taken."""
        return self.progress.step >= self.num_steps()

    def num_steps(self) -> int:
        """Return how many updates there will be."""
        assert isinstance(self.config.train, TrainConfig)
        return self.config.train.steps

    def update(self) -> None:
        """Take an update, or several if `learn` does, and report now and then."""
        progress = self.progress
        metrics, num_updates = self.learn()
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value)
        progress.step += num_updates
        self.throughput.num_updates += num_updates
        progress.seconds = time.monotonic() - self.began
        if progress.step % self.config.train.log_every == 0:
            self.report()

    def learn(self) -> tuple[dict[str, Tensor], int]:
        """Let the learner take an update; return its metrics, scalars or [N] of several updates, and how many."""
        return self.learner.update(self.progress.step), 1

    def due(self, every: int) -> bool:
        """Tell whether something that happens every so many updates happens now."""
        return every > 0 and self.progress.step % every == 0

    def evaluation_is_due(self) -> bool:
        """Tell whether to evaluate now."""
        return self.config.eval.every > 0 and (self.due(self.config.eval.every) or self.is_finished())

    def report(self) -> None:
        """Write the mean metrics since the last line; this is where the host waits for the device."""
        progress = self.progress
        num_skipped = int(self.learner.num_skipped)
        measured = {name: flat(values).tolist() for name, values in sorted(self.metrics.items())}
        means = {name: sum(values) / len(values) for name, values in measured.items()}
        num_steps = max(map(len, measured.values()))  # `log_every`, unless that was changed when the run went on
        self.metrics = {}
        newly_skipped = num_skipped - progress.num_skipped
        progress.num_skipped = num_skipped
        if newly_skipped >= num_steps:
            raise GqError(
                f"the loss or its gradient is not finite since step {progress.step - num_steps}",
                hint="start again with a smaller --set optim.learning_rate, or --set train.precision=float32",
            )
        record = {"step": progress.step, **self.position(), **means}
        record["steps_per_second"] = progress.step / progress.seconds
        if newly_skipped:
            record["skipped"] = newly_skipped
            self.listener.note(f"step {progress.step}: {newly_skipped} updates left out, their gradient was not finite")
        rates = {name: float(f"{rate:.4g}") for name, rate in self.throughput.rates().items()}
        # The file repeats exactly when a run is resumed, so no time goes into it.
        self.log.write({key: value for key, value in record.items() if key != "steps_per_second"})
        self.times.write({"step": progress.step, "seconds": round(progress.seconds, 3), **rates})
        self.trackers.write(progress.step, record | rates | {"seconds": progress.seconds})
        self.tell(record | rates)

    def tell(self, record: dict[str, Any]) -> None:
        """Show the listener how far training is."""
        rate = self.progress.step / max(self.progress.seconds, 1e-9)
        self.listener.progress(self.progress.step, self.num_steps(), record | {"progress_per_second": rate})

    def position(self) -> dict[str, Any]:
        """Return where the run stands besides its step, for its records."""
        return {}

    def run_evaluation(self) -> bool:
        """Evaluate and log; return whether the score is the best so far."""
        progress = self.progress
        self.last_evaluation = self.evaluate()
        record = self.position() | self.evaluation_record()
        self.log.write({"step": progress.step, **record})
        self.trackers.write(progress.step, record)
        score = self.score()
        is_best = progress.best_return is None or score > progress.best_return
        if is_best:
            progress.best_return, progress.best_step = score, progress.step
        progress.seconds = time.monotonic() - self.began
        self.tell(record)
        return is_best

    def evaluation_record(self) -> dict[str, float]:
        """Return what is logged of the last evaluation."""
        record: dict[str, float] = {}
        for summary in self.last_evaluation:
            name = f"eval/target_{summary.target_return:g}"
            record |= {f"{name}/return_mean": summary.return_mean, f"{name}/return_std": summary.return_std}
            record[f"{name}/length_mean"] = summary.length_mean
        return record

    def score(self) -> float:
        """Return what makes a checkpoint the best one: the mean return at the highest target."""
        return max(self.last_evaluation, key=lambda summary: summary.target_return).return_mean

    def other_tensors(self) -> dict[str, Tensor]:
        """Return what is to be saved beside model and learner, on the CPU."""
        return {}

    def save(self, is_best: bool) -> None:
        """Write a checkpoint of everything, unless nothing happened since the last one."""
        if self.progress.step == self.saved_step:
            return
        self.log.sync()
        self.times.sync()
        model = {name: on_host(tensor) for name, tensor in self.learner.model.state_dict().items()}
        metrics = {f"metric/{name}": flat(values) for name, values in self.metrics.items()}
        optimizer = self.learner.state_tensors() | self.other_tensors() | metrics
        self.saved_step = step = self.progress.step
        if not self.writes:  # its shards went to the process that does
            return
        state = {
            "progress": dict(vars(self.progress)),
            "metrics_bytes": self.log.size,
            "times_bytes": self.times.size,
            **self.facts,
        }
        if self.background and next(self.learner.model.parameters()).device.type == "cpu":  # where nothing was copied
            model, optimizer = ({name: tensor.clone() for name, tensor in d.items()} for d in (model, optimizer))

        def write() -> None:
            assert all(torch.isfinite(tensor).all() for tensor in model.values()), "weights are never updated to NaN"
            keep = self.config.checkpoint.keep
            save_checkpoint(self.run, step, model=model, optimizer=optimizer, state=state, is_best=is_best, keep=keep)

        if self.background:
            self.background.begin(write)
        else:
            write()


def restored_metrics(tensors: dict[str, Tensor], device: torch.device) -> dict[str, list[Tensor]]:
    """Return the metrics among a checkpoint's tensors, where those of the next updates will be."""
    saved = {name.removeprefix("metric/"): values for name, values in tensors.items() if name.startswith("metric/")}
    return {name: [values.to(device)] for name, values in saved.items()}


def flat(values: list[Tensor]) -> Tensor:
    """Return scalars and vectors in a row, on the CPU."""
    return torch.cat([value.detach().reshape(-1) for value in values]).cpu()

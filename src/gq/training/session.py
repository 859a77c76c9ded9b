"""A run while it is trained: its folder, its processes, what it logs, evaluates and saves, and when it stops.

The loops (`gq.training.offline`, `online`, `world`) read from top to bottom; what all of them do is a method here.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gq.algos.state import laid_out, on_host, random_states, restore_random_states
from gq.config import LogConfig, RunConfig, to_toml
from gq.errors import GqError, Interrupted
from gq.files import write_json, write_text
from gq.paths import new_run_folder
from gq.policies.compute import Compute
from gq.rollouts.statistics import Summary
from gq.runs.bound import check_config, damage_told, progress_in, settings_of
from gq.runs.checkpoint import last_checkpoint, point, remove_old, save_checkpoint
from gq.runs.folder import lock_run, resume_command, was_elsewhere
from gq.runs.metrics import Listener, MetricsLog, NoLog, Silence
from gq.signals import StopRequest
from gq.training.lifecycle import Background, Throughput
from gq.training.memory import memory_advice
from gq.training.processes import RANK_STRIDE, Processes, together
from gq.training.trackers import Trackers

LOOK_EVERY_S = 1.0  # for a stop request that came to another process
FIRST_SAVE_S = 300.0  # after which there is a checkpoint, whatever the interval
Kept = tuple[dict[str, Any], dict[str, Tensor]]  # plain values and tensors that a checkpoint holds


class Learner(Protocol):
    """What a session needs of an algorithm."""

    is_sharded: bool  # each process holds a share of the model

    @property
    def model(self) -> nn.Module:
        """The networks."""

    @property
    def num_skipped(self) -> Tensor:
        """Updates that changed nothing because their gradient was not finite."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all state beside the model's."""

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore it."""


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint."""

    step: int = 0  # updates
    best_return: float | None = None
    best_step: int | None = None
    num_skipped: int = 0  # as of the last log line
    seconds: float = 0.0  # spent so far, over all resumptions


P = TypeVar("P", bound=Progress)


@contextmanager
def open_session(
    config: RunConfig,
    out: Path | None,
    compute: Compute,
    listener: Listener | None,
    progress_type: type[P],
    *,
    origin: str = "",
) -> Iterator["Session[P]"]:
    """Connect the processes of a run, and yield it with its last checkpoint.

    The first process locks the folder, `out` or a new one of the runs folder, and writes the configuration before the
    others continue; they tell nobody.

    Args:
        progress_type: what the loop counts.
        origin: what the first note says after the run's folder.
    """
    with closing(Processes(compute.device.type)) as processes, ExitStack() as held:
        folder = processes.from_first(out or new_run_folder(config.task, config.algo, config.size))
        listener = (listener or Silence()) if processes.rank == 0 else Silence()
        if processes.rank == 0:
            held.enter_context(lock_run(folder))
            listener.note(f"run: {folder}{origin}")
            if was_elsewhere(folder, compute.device.type):
                listener.note(f"it was not on {compute.device.type} before: its random numbers go on differently")
            write_text(folder / "config.toml", to_toml(config))
        processes.from_first(None)  # until the configuration is written
        held.enter_context(memory_advice(config, processes.size))
        yield Session(config, folder, processes, compute, listener, progress_type)


class Session(Generic[P]):
    """A run that this process trains, alone or with others. Only the first process writes."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        processes: Processes,
        compute: Compute,
        listener: Listener,
        progress_type: type[P],
    ) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        self.compute, self.listener = compute, listener
        self.is_first = processes.rank == 0
        self.checkpoint = last_checkpoint(folder)  # None once training begins
        self.progress = progress_type()
        if self.checkpoint:
            check_config(folder, config, self.checkpoint.state)
            self.progress = progress_in(self.checkpoint.path, self.checkpoint.state, progress_type)
        self.stop = StopRequest(listener.note)
        self.throughput = Throughput(config, compute)
        self.trackers = Trackers(config.log if self.is_first else LogConfig(), folder, config.to_dict(), listener.note)
        self.facts: dict[str, Any] = {}
        self.metrics: dict[str, list[Tensor]] = {}  # of the updates since the last report, scalars and vectors
        self.saved_step: int | None = None
        self.background: Background | None = None
        self._began = self._opened = monotonic()
        # Calls of `stop_reason`: so far, when to ask next, and when the last time was; and what was found.
        self._num_looks, self._next_look, self._last_look, self._stopping = 0, 0, (0, monotonic()), ""

    def describe(self, facts: dict[str, Any], **more: Any) -> None:
        """Keep facts about the run for environment.json and every checkpoint; `more` is for the former alone."""
        self.facts = facts
        if self.is_first:
            write_json(self.folder / "environment.json", {**facts, **more})

    def restore(
        self, learner: Learner, *, others: Callable[[], Kept] = lambda: ({}, {}), in_background: bool = False
    ) -> None:
        """Bring the learner to where the last checkpoint was, and open the logs there.

        Args:
            others: returns what is to be saved beside the learner; every process is asked, the first one's is saved.
            in_background: write checkpoints while training continues; they take as much of the host's memory meanwhile.
        """
        self.learner, self.others = learner, others
        if in_background and self.is_first:
            self.background = Background()
        device, sizes = learner.num_skipped.device, {"metrics": 0, "times": 0}
        if checkpoint := self.checkpoint:
            with damage_told(checkpoint.path):
                weights = learner.model.state_dict()
                learner.model.load_state_dict({k: laid_out(v, weights.get(k, v)) for k, v in checkpoint.model.items()})
                learner.load_state_tensors(checkpoint.optimizer)
                self.metrics = restored_metrics(checkpoint.optimizer, device)
            self.saved_step = self.progress.step
            if self.is_first:  # a kill may have come before it was marked as the best, and before older ones went
                if self.progress.best_step == self.progress.step:
                    point(self.folder, "best", checkpoint.path)
                remove_old(self.folder, self.config.checkpoint.keep)
            sizes = {name: checkpoint.state.get(f"{name}_bytes", 0) for name in sizes}
        if not self.is_first:
            self._separate(checkpoint.optimizer if checkpoint else {})
        # Times are apart, because the metrics repeat exactly.
        self.log, self.times = (
            MetricsLog(self.folder / f"{name}.jsonl", size=size) if self.is_first else NoLog()
            for name, size in sizes.items()
        )

    def _separate(self, tensors: dict[str, Tensor]) -> None:
        """Give a process that is not the first the random numbers that it had, or some of its own."""
        prefix = f"rank-{self.processes.rank}/"
        if f"{prefix}rng/torch" in tensors:
            restore_random_states(tensors, self.compute.device, prefix)
        else:
            torch.manual_seed(self.config.train.seed + self.progress.step + RANK_STRIDE * self.processes.rank)

    @contextmanager
    def training(self, *, is_over: bool) -> Iterator[None]:
        """Hold signals back, keep trackers open unless nothing is left to do, and end what is being written.

        Raises:
            Interrupted: SIGINT or SIGTERM came; everything is saved.
            GqError: the loss is not finite any more, or a checkpoint could not be written.
        """
        self.checkpoint = None  # its tensors are not needed any more
        self._began = monotonic() - self.progress.seconds
        self.throughput.begin()
        trackers = nullcontext() if is_over else self.trackers.opened(self.progress.step)
        with self.stop, trackers, self.background or nullcontext():
            yield
            self._finish_writing()
        self.log.close()
        self.times.close()

    def look_at_clock(self) -> None:
        """Bring the seconds spent up to date."""
        self.progress.seconds = monotonic() - self._began

    def count(self, metrics: dict[str, Tensor], num_updates: int = 1) -> None:
        """Count updates and keep their metrics, scalars or [N] of several updates, until the next report."""
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value)
        self.progress.step += num_updates
        self.throughput.num_updates += num_updates
        self.look_at_clock()

    def due(self, every: int) -> bool:
        """Whether what happens every so many updates happens now."""
        return every > 0 and self.progress.step % every == 0

    def report(self, position: dict[str, Any]) -> dict[str, Any]:
        """Log the mean metrics since the last report and return them; here the host waits for the device.

        Args:
            position: where the run stands besides its step.

        Raises:
            GqError: not one of these updates had a finite gradient.
        """
        progress = self.progress
        num_skipped = int(self.learner.num_skipped)
        measured = {name: flat(values).tolist() for name, values in sorted(self.metrics.items())}
        means = {name: sum(values) / len(values) for name, values in measured.items()}
        num_steps = max(map(len, measured.values()))  # `log_every`, unless that was changed when the run was resumed
        self.metrics = {}
        newly_skipped = num_skipped - progress.num_skipped
        progress.num_skipped = num_skipped
        if newly_skipped >= num_steps:
            raise GqError(
                f"the loss or its gradient is not finite since step {progress.step - num_steps}",
                hint="start again with a smaller --set optim.learning_rate, or --set train.precision=float32",
            )
        record = {"step": progress.step, **position, **means}
        if newly_skipped:
            record["skipped"] = newly_skipped
            self.listener.note(f"step {progress.step}: {newly_skipped} updates left out, their gradient was not finite")
        rates = {name: float(f"{rate:.4g}") for name, rate in self.throughput.rates().items()}
        self.log.write(record)  # which repeats exactly when a run is resumed, so no time goes into it
        self.times.write({"step": progress.step, "seconds": round(progress.seconds, 3), **rates})
        shown = record | {"steps_per_second": progress.step / progress.seconds} | rates
        self.trackers.write(progress.step, shown | {"seconds": progress.seconds})
        return shown

    def write(self, record: dict[str, Any]) -> None:
        """Log what happened at this step."""
        self.log.write({"step": self.progress.step, **record})
        self.trackers.write(self.progress.step, record)

    def log_evaluation(self, record: dict[str, Any], score: float) -> bool:
        """Log an evaluation; return whether its score is the best so far."""
        progress = self.progress
        self.write(record)
        is_best = progress.best_return is None or score > progress.best_return
        if is_best:
            progress.best_return, progress.best_step = score, progress.step
        self.look_at_clock()
        return is_best

    def show(self, record: dict[str, Any], done: float, total: float) -> None:
        """Show the listener how far training is, in what it counts."""
        rate = done / max(self.progress.seconds, 1e-9)
        self.listener.progress(int(done), int(total), record | {"progress_per_second": rate})

    def save_if_due(self, *, is_best: bool = False, is_last: bool = False) -> None:
        """Save every so often, the best, the last, and when a signal came; then stop.

        Raises:
            Interrupted: a signal asked for an end; everything is saved.
        """
        if self.background:
            self.background.check()
        reason = self.stop_reason()
        # Each process would ask a clock of its own, and to save takes all of them.
        is_late = self.processes.size == 1 and self.saved_step is None and monotonic() - self._opened > FIRST_SAVE_S
        if self.due(self.config.checkpoint.every) or is_last or is_best or reason or is_late:
            with self.throughput.apart():
                self.save(is_best=is_best)
            reason = reason or self.stop_reason()
        if reason and not is_last:
            self._finish_writing()
            raise Interrupted(
                f"stopped by {reason} at step {self.progress.step}, everything is saved",
                hint=f"resume with: {resume_command(self.config.algo, self.folder)}",
            )

    def stop_reason(self) -> str:
        """Return the signal that asked this process or another one for an end, if there was one.

        All processes ask each other at the same calls, about LOOK_EVERY_S apart: to wait for each other at every step
        would cost more than a small model's update.
        """
        if self.processes.size == 1:
            return self.stop.requested
        self._num_looks += 1
        if self._stopping or self._num_looks < self._next_look:
            return self._stopping
        now = monotonic()
        rate = (self._num_looks - self._last_look[0]) / max(now - self._last_look[1], 1e-9)
        num_asked, stride = self.processes.largest(int(bool(self.stop.requested)), max(1, int(LOOK_EVERY_S * rate)))
        self._next_look, self._last_look = self._num_looks + stride, (self._num_looks, now)
        self._stopping = (self.stop.requested or "another process") if num_asked else ""
        return self._stopping

    def save(self, *, is_best: bool) -> None:
        """Write a checkpoint of everything, unless nothing happened since the last one; all processes take part."""
        progress, learner, rank = self.progress, self.learner, self.processes.rank
        if progress.step == self.saved_step:
            return
        facts, tensors = self.others()
        own = random_states(learner.num_skipped.device, f"rank-{rank}/") if rank else {}
        for states in self.processes.gather(own):
            tensors |= states
        self.saved_step = progress.step
        if not (self.is_first or learner.is_sharded):
            return
        self.log.sync()
        self.times.sync()
        with together():
            model = {name: on_host(tensor) for name, tensor in learner.model.state_dict().items()}
            metrics = {f"metric/{name}": flat(values) for name, values in self.metrics.items()}
            optimizer = learner.state_tensors() | tensors | metrics
        if not self.is_first:  # its shards went to the process that writes
            return
        sizes = {"metrics_bytes": self.log.size, "times_bytes": self.times.size}
        state = {"progress": dict(vars(progress)), "config": settings_of(self.config), **sizes, **self.facts, **facts}
        if self.background and self.compute.device.type == "cpu":  # where nothing was copied
            model, optimizer = ({name: tensor.clone() for name, tensor in d.items()} for d in (model, optimizer))
        step, keep = progress.step, self.config.checkpoint.keep

        def write() -> None:
            assert all(torch.isfinite(tensor).all() for tensor in model.values()), "weights are never updated to NaN"
            save_checkpoint(
                self.folder, step, model=model, optimizer=optimizer, state=state, is_best=is_best, keep=keep
            )

        if self.background:
            self.background.begin(write)
        else:
            write()

    def _finish_writing(self) -> None:
        if self.background:
            self.background.wait()


def by_target(evaluation: list[Summary]) -> dict[str, float]:
    """Return what is logged of an evaluation at target returns."""
    record: dict[str, float] = {}
    for summary in evaluation:
        name = f"eval/target_{summary.target_return:g}"
        record |= {f"{name}/return_mean": summary.return_mean, f"{name}/return_std": summary.return_std}
        record[f"{name}/length_mean"] = summary.length_mean
    return record


def at_highest_target(evaluation: list[Summary]) -> float:
    """Return what makes a checkpoint the best one: the mean return at the highest target."""
    return max(evaluation, key=lambda summary: summary.target_return).return_mean


def restored_metrics(tensors: dict[str, Tensor], device: torch.device) -> dict[str, list[Tensor]]:
    """Return the metrics among a checkpoint's tensors, where those of the next updates will be."""
    saved = {name.removeprefix("metric/"): values for name, values in tensors.items() if name.startswith("metric/")}
    return {name: [values.to(device)] for name, values in saved.items()}


def flat(values: list[Tensor]) -> Tensor:
    """Return scalars and vectors in a row, on the CPU."""
    return torch.cat([value.detach().reshape(-1) for value in values]).cpu()

"""The loop in several processes that train one model: they stop together, and the first one saves for all."""

from time import monotonic

from torch import Tensor

from gq.algos.random_states import random_states
from gq.algos.supervised import SupervisedLearner
from gq.training.loop import Loop
from gq.training.processes import Processes, together

LOOK_EVERY_S = 1.0  # for a stop request that came to another process


class ParallelLoop(Loop):
    """Take the same updates in every process; gradients are averaged by the learner."""

    learner: SupervisedLearner

    def prepare(self, processes: Processes) -> None:
        """Take what connects to the other processes."""
        self.processes = processes
        self.tensors: dict[str, Tensor] = {}
        self.next_look, self.last_look = 0, (self.progress.step, monotonic())

    def stop_reason(self) -> str:
        """Return the signal that asked this process or another one for an end, if there was one.

        All processes ask each other at the same steps, about LOOK_EVERY_S apart: to wait for each other at every step
        would cost more than a small model's update.
        """
        step, now = self.progress.step, monotonic()
        if step < self.next_look:
            return ""
        rate = (step - self.last_look[0]) / max(now - self.last_look[1], 1e-9)
        num_asked, stride = self.processes.largest(int(bool(self.stop.requested)), max(1, int(LOOK_EVERY_S * rate)))
        self.next_look, self.last_look = step + stride, (step, now)
        return (self.stop.requested or "another process") if num_asked else ""

    def learn(self) -> tuple[dict[str, Tensor], int]:
        """Let the learner take one update, with its share of the batch."""
        with together():
            return super().learn()

    def other_tensors(self) -> dict[str, Tensor]:
        """Return the random states of the other processes."""
        return self.tensors

    def save(self, is_best: bool) -> None:
        """Write a checkpoint of everything: the first process does, and gathers what lies with the others."""
        if self.progress.step == self.saved_step:
            return
        states = random_states(self.learner.num_skipped.device, f"rank-{self.processes.rank}/")
        everyone = self.processes.gather(states if self.processes.rank else {})
        self.tensors = {name: tensor for states in everyone for name, tensor in states.items()}
        if self.writes or self.learner.is_sharded:
            with together():
                super().save(is_best)
        self.saved_step = self.progress.step

"""The loop of TD-MPC2: decide, update, by turns; evaluate at fixed numbers of decisions."""

from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
from torch import Tensor

from gq.algos.random_states import random_states
from gq.algos.tdmpc2 import TDMPC2Learner
from gq.config import TDMPC2Config
from gq.training.interaction import FinishedEpisode, Interaction, num_seed_decisions
from gq.training.loop import Loop, Progress
from gq.training.processes import Processes


@dataclass
class WorldProgress(Progress):
    """Where a TD-MPC2 run stands; saved in every checkpoint."""

    decisions: int = 0  # of all environments
    num_episodes: int = 0  # that ended
    evaluated_at: int = 0  # decisions before the last evaluation
    simulation_seconds: float = 0.0
    evaluation_seconds: float = 0.0


class WorldLoop(Loop):
    """Act and learn until a number of decisions is reached. Steps are updates."""

    learner: TDMPC2Learner
    config: TDMPC2Config
    progress: WorldProgress
    progress_type = WorldProgress

    def prepare(self, interaction: Interaction, processes: Processes) -> None:
        """Take what acts, and what connects to other processes that do."""
        self.interaction, self.processes = interaction, processes
        self.batch_size = self.config.train.batch_size // processes.size
        self.tensors: dict[str, Tensor] = {}
        self.num_seed_decisions = num_seed_decisions(self.config, interaction.task)

    def num_owed(self) -> int:
        """Return how many updates the decisions so far call for: none before the uniform ones are over."""
        if self.progress.decisions < self.num_seed_decisions:
            return 0
        return int(self.progress.decisions * self.config.train.updates_per_decision)

    def is_finished(self) -> bool:
        """Tell whether all decisions were taken and learnt from."""
        progress = self.progress
        return progress.decisions >= self.config.train.decisions and progress.step >= self.num_owed()

    def start(self) -> None:
        """Say what comes first."""
        if self.progress.decisions < self.num_seed_decisions:
            self.listener.note(f"{self.num_seed_decisions} uniform decisions, then as many updates at once")

    def collect(self) -> bool:
        """Take decisions until an update is due; return False where there is none, or a stop request came first."""
        progress = self.progress
        while progress.step >= self.num_owed() and not self.is_finished():
            if self.stop_reason():
                return False
            finished = self.interaction.tick(uniform=progress.decisions < self.num_seed_decisions)
            (num_deciding,) = self.processes.total(self.interaction.num_deciding)
            progress.decisions += num_deciding
            self.throughput.num_environment_steps += num_deciding
            if finished:
                self.report_episodes(finished)
        return progress.step < self.num_owed()

    def stop_reason(self) -> str:
        """Return the signal that asked this process or another one for an end, if there was one."""
        (num_asked,) = self.processes.total(int(bool(self.stop.requested)))
        return (self.stop.requested or "another process") if num_asked else ""

    def learn(self) -> tuple[dict[str, Tensor], int]:
        """Take an update on pieces of the episodes so far."""
        return self.learner.update(self.interaction.ring.sample(self.batch_size)), 1

    def report_episodes(self, episodes: list[FinishedEpisode]) -> None:
        """Log the episodes that just ended."""
        progress = self.progress
        progress.num_episodes += len(episodes)
        record = {
            "step": progress.step,
            **self.position(),
            "episode/number": progress.num_episodes,
            "episode/return_mean": float(np.mean([episode.episode_return for episode in episodes])),
            "episode/length_mean": float(np.mean([episode.length for episode in episodes])),
            "episode/terminated": float(np.mean([episode.terminated for episode in episodes])),
        }
        self.log.write(record)
        self.trackers.write(progress.step, record)
        self.tell(record)

    def position(self) -> dict[str, Any]:
        """Return the decisions so far, and the frames that they took."""
        decisions = self.progress.decisions
        return {"decisions": decisions, "frames": decisions * self.interaction.task.action_repeat}

    def evaluation_is_due(self) -> bool:
        """Tell whether this is the end, or a multiple of `eval.every` decisions was passed and learnt from."""
        progress, every = self.progress, self.config.eval.every
        if not every or progress.step < self.num_owed() or progress.evaluated_at == progress.decisions:
            return False
        return self.is_finished() or progress.decisions // every > progress.evaluated_at // every

    def run_evaluation(self) -> bool:
        """Evaluate and log; return whether planning earned more than ever."""
        began = monotonic()
        is_best: bool = self.processes.from_first(self.processes.rank == 0 and super().run_evaluation())
        self.progress.evaluated_at = self.progress.decisions
        self.progress.evaluation_seconds += monotonic() - began
        return is_best

    def evaluation_record(self) -> dict[str, float]:
        """Return what planning and the policy alone earned."""
        planned, policy = self.last_evaluation
        return {
            "eval/return_mean": planned.return_mean,
            "eval/return_std": planned.return_std,
            "eval/length_mean": planned.length_mean,
            "eval/policy_return_mean": policy.return_mean,
        }

    def score(self) -> float:
        """Return what planning earned in the last evaluation."""
        return self.last_evaluation[0].return_mean

    def tell(self, record: dict[str, Any]) -> None:
        """Show the listener how many of the decisions were taken, and how many updates for them are left."""
        progress, total = self.progress, self.config.train.decisions
        progress.seconds = monotonic() - self.began
        shown = {"progress_per_second": progress.decisions / progress.seconds, "updates_left": self.updates_left()}
        self.listener.progress(min(progress.decisions, total), total, record | shown)

    def updates_left(self) -> int:
        """Return how many updates more than those of a tick the decisions so far call for."""
        train = self.config.train
        left = self.num_owed() - self.progress.step
        return left if left > train.num_environments * train.updates_per_decision else 0

    def other_tensors(self) -> dict[str, Tensor]:
        """Return the random states of acting, and those of learning of the other processes."""
        return self.tensors

    def save(self, is_best: bool) -> None:
        """Write a checkpoint of everything; the steps that it refers to are on the disk before it."""
        if self.progress.step == self.saved_step:
            return
        self.progress.simulation_seconds = self.interaction.simulation_seconds
        tensors = self.interaction.tensors()
        if self.processes.rank:
            tensors |= random_states(self.learner.num_skipped.device, f"rank-{self.processes.rank}/")
        everyone = self.processes.gather((self.interaction.state(), tensors))
        if everyone:
            self.facts["processes"] = [state for state, _ in everyone]
            self.tensors = {name: tensor for _, tensors in everyone for name, tensor in tensors.items()}
            super().save(is_best)
        self.saved_step = self.progress.step

"""Finetuning a loop's learner online: episodes of the policy into a buffer, updates, again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from gq.algos.odt import ODTLearner, ODTPolicy
from gq.config import FinetuneConfig
from gq.data.replay import EpisodeLog, LoggedEpisode, ReplayBuffer, dataset_episodes, starting_episodes
from gq.data.trajectories import Trajectories
from gq.envs.make import make
from gq.errors import DataError
from gq.rollouts.collect import Recipe, record_episodes
from gq.training.loop import Loop, Progress

EXPLORATION_SEED = 2_000_000  # added to the run's seed: its episodes start elsewhere than those of any evaluation


@dataclass
class OnlineProgress(Progress):
    """Where a finetuning run stands; saved in every checkpoint."""

    environment_steps: int = 0
    num_episodes: int = 0  # of the policy, all of them in the log
    evaluated_at: int = 0  # environment steps of the last evaluation
    first_return: float | None = None  # of the first evaluation, at the highest target
    collapsed: bool = False
    start_returns: list[list[float]] = field(default_factory=list)  # per target, of the parent, on fresh seeds
    rollout_seconds: float = 0.0
    evaluation_seconds: float = 0.0


class ReplayStore:
    """Keep the policy's episodes in a file and the newest trajectories, the dataset's too, in a buffer."""

    def __init__(self, config: FinetuneConfig, run: Path, trajectories: Trajectories, device: Any) -> None:
        task = config.environment
        dims = {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
        self.config, self.trajectories = config, trajectories
        (run / "trajectories").mkdir(exist_ok=True)
        self.log = EpisodeLog(run / "trajectories" / "episodes.bin", **dims)
        self.buffer = ReplayBuffer(
            config.online.buffer_size,
            config.model.context_length,
            device=device,
            seed=config.train.seed,
            delayed=config.data.mode == "delayed",
            **dims,
        )

    def fill(self) -> None:
        """Put the dataset's trajectories into the empty buffer."""
        online = self.config.online
        numbers = starting_episodes(self.trajectories, online.buffer_start, online.buffer_size)
        for name, episode in dataset_episodes(self.trajectories, numbers):
            self.buffer.add(name, episode)

    def restore(self, names: Sequence[str], num_episodes: int) -> None:
        """Put the named trajectories into the empty buffer; forget episodes after the first `num_episodes`.

        Raises:
            DataError: the file has lost some of those.
        """
        self.log.forget_from(num_episodes)
        if len(self.log.lengths) < num_episodes:
            message = f"{self.log.path} was damaged: {len(self.log.lengths)} of {num_episodes} episodes are left in it"
            raise DataError(message, hint="put the file back from a copy, or start a new run")
        for name in names:
            source, number = name.split("/")
            if source == "online":
                self.buffer.add(name, self.log.read(int(number)))
            else:
                self.buffer.add(*next(dataset_episodes(self.trajectories, [int(number)])))

    def add(self, number: int, episode: LoggedEpisode) -> None:
        """Take in an episode of the policy."""
        self.log.append(number, episode)
        self.buffer.add(f"online/{number}", episode)

    def describe(self) -> dict[str, float]:
        """Return what the buffer consists of."""
        entries = self.buffer.entries
        returns = [entry.episode_return for entry in entries]
        return {
            "buffer/trajectories": len(entries),
            "buffer/transitions": self.buffer.num_rows,
            "buffer/online_share": sum(entry.name.startswith("online/") for entry in entries) / len(entries),
            "buffer/return_min": min(returns),
            "buffer/return_median": float(np.median(returns)),
            "buffer/return_max": max(returns),
        }


class OnlineLoop(Loop):
    """Roll out, update, evaluate at fixed numbers of environment steps, stop by any of three budgets."""

    learner: ODTLearner
    config: FinetuneConfig
    progress: OnlineProgress
    progress_type = OnlineProgress

    def prepare(self, store: ReplayStore, policy: ODTPolicy, low: float) -> None:
        """Take what the episodes need; `low` is the return of a random policy, above which a collapse is measured."""
        self.store, self.policy, self.low = store, policy, low
        self.updates_per_iteration = self.config.online.rollouts * self.config.online.updates_per_rollout
        self.environments: list[Any] = []

    def start(self) -> None:
        """Evaluate and save before the first update."""
        if self.progress.first_return is None:
            is_best = self.run_evaluation()
            self.save(is_best)

    def is_between_iterations(self) -> bool:
        """Tell whether the next thing to do is to run episodes."""
        online, progress = self.config.online, self.progress
        return progress.num_episodes == progress.step // self.updates_per_iteration * online.rollouts and (
            progress.step % self.updates_per_iteration == 0
        )

    def is_finished(self) -> bool:
        """Tell whether a budget is used up or the policy has collapsed, at the end of an iteration."""
        progress = self.progress
        if not self.is_between_iterations():
            return False
        return progress.collapsed or any(limit and done >= limit for done, limit in self.budgets())

    def budgets(self) -> list[tuple[float, float]]:
        """Return what was used and what may be used (0: no limit) of environment steps, iterations and seconds."""
        online, progress = self.config.online, self.progress
        return [
            (progress.environment_steps, online.environment_steps),
            (progress.num_episodes // online.rollouts, online.iterations),
            (progress.seconds, 60 * online.minutes),
        ]

    def update(self) -> None:
        """Take one update; the learning rate may fall with the used share of the budget."""
        self.learner.share_done = self.share_done()
        super().update()

    def share_done(self) -> float:
        """Return the used share of the budget that is nearest to its end; time counts only where it is the only one."""
        counted = [budget for budget in self.budgets()[:2] if budget[1]] or self.budgets()[2:]
        return max(done / limit for done, limit in counted)

    def collect(self) -> bool:
        """Run an iteration's episodes; return False where a stop request came first: they are lost then."""
        if not self.is_between_iterations():
            return True
        began, progress, online = monotonic(), self.progress, self.config.online
        numbers = range(progress.num_episodes, progress.num_episodes + online.rollouts)
        self.environments += [make(self.config.environment) for _ in range(online.rollouts - len(self.environments))]
        finished: dict[int, LoggedEpisode] = {}

        self.learner.model.eval()
        recipe = Recipe(
            seed=EXPLORATION_SEED + self.config.train.seed, targets=online.targets, block_size=online.rollouts
        )
        with self.throughput.acting():
            record_episodes(
                self.policy,
                self.environments,
                numbers,
                recipe,
                finished=finished.__setitem__,
                stepped=lambda num_steps: bool(self.stop.requested),
            )
        if len(finished) < online.rollouts:
            return False
        for number in numbers:
            self.store.add(number, finished[number])
        progress.num_episodes += online.rollouts
        num_steps = sum(len(episode.rewards) for episode in finished.values())
        progress.environment_steps += num_steps
        self.throughput.num_environment_steps += num_steps
        progress.rollout_seconds += monotonic() - began
        self.report_rollouts([finished[number] for number in numbers], [recipe.target(number) for number in numbers])
        return True

    def report_rollouts(self, episodes: list[LoggedEpisode], targets: list[float]) -> None:
        """Log an iteration's episodes and what the buffer is made of."""
        progress = self.progress
        returns = np.array([episode.rewards.sum(dtype=np.float64) for episode in episodes])
        record = {
            "environment_steps": progress.environment_steps,
            "iteration": progress.num_episodes // self.config.online.rollouts,
            "rollout/return_mean": float(returns.mean()),
            "rollout/return_min": float(returns.min()),
            "rollout/return_max": float(returns.max()),
            "rollout/length_mean": float(np.mean([len(episode.rewards) for episode in episodes])),
            "rollout/target_mean": float(np.mean(targets)),
            "rollout/shortfall_mean": float(np.mean(np.array(targets) - returns)),  # asked for and not achieved
            **self.store.describe(),
        }
        self.log.write({"step": progress.step, **record})
        self.trackers.write(progress.step, record)
        self.tell(record)

    def evaluation_is_due(self) -> bool:
        """Tell whether the iteration that just ended is the last, or passed a multiple of `eval.every` steps."""
        progress, every = self.progress, self.config.eval.every
        if not self.is_between_iterations() or progress.evaluated_at == progress.environment_steps:
            return False
        return self.is_finished() or (
            every > 0 and progress.environment_steps // every > progress.evaluated_at // every
        )

    def position(self) -> dict[str, Any]:
        """Return the environment steps so far."""
        return {"environment_steps": self.progress.environment_steps}

    def run_evaluation(self) -> bool:
        """Evaluate and log; note a collapse; return whether this is the best so far, at the highest target."""
        began, progress = monotonic(), self.progress
        is_best = super().run_evaluation()
        progress.evaluated_at = progress.environment_steps
        highest = max(self.last_evaluation, key=lambda summary: summary.target_return).return_mean
        if progress.first_return is None:
            progress.first_return = highest
        share, first_gain = self.config.online.collapse, progress.first_return - self.low
        if share and first_gain > 0 and highest - self.low < share * first_gain:  # else there is nothing to lose
            progress.collapsed = True
            self.listener.note(f"stopping: the mean return fell from {progress.first_return:.0f} to {highest:.0f}")
        progress.evaluation_seconds += monotonic() - began
        return is_best

    def tell(self, record: dict[str, Any]) -> None:
        """Show the listener how much of the tightest budget is used."""
        done, limit = max((b for b in self.budgets() if b[1]), key=lambda budget: budget[0] / budget[1])
        done = min(done, limit)
        rate = done / max(self.progress.seconds, 1e-9)
        self.listener.progress(int(done), int(limit), record | {"progress_per_second": rate})

    def save(self, is_best: bool) -> None:
        """Write a checkpoint of everything; the episodes that it refers to are on the disk before it."""
        self.store.log.sync()
        self.facts["buffer"] = [entry.name for entry in self.store.buffer.entries]
        super().save(is_best)

    def close(self) -> None:
        """Close environments and files."""
        for environment in self.environments:
            environment.close()
        self.store.log.close()

"""What finetuning has of its parent: weights, moments, targets and episodes; and what it is compared with."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from gq.algos.odt import ODTLearner, ODTPolicy
from gq.config import FinetuneConfig
from gq.data.replay import EpisodeLog, LoggedEpisode, ReplayBuffer, dataset_episodes, starting_episodes
from gq.data.trajectories import Trajectories
from gq.envs.make import make
from gq.envs.scores import Reference, origin_of, reference_for
from gq.errors import DataError, GqError, UsageError
from gq.files import sha256
from gq.models.stochastic_transformer import StochasticTransformer
from gq.policies.compute import Compute
from gq.rollouts.collect import Recipe, record_episodes
from gq.rollouts.episodes import EpisodeRequest, roll_out
from gq.rollouts.statistics import Change, Episode, Summary, measure_change, summarise
from gq.runs.checkpoint import Checkpoint, choose_checkpoint, load_checkpoint
from gq.runs.folder import SELECTION_SEED

EXPLORATION_SEED = 2_000_000  # added to the run's seed: its episodes start elsewhere than those of any evaluation
SMALL_EMBED_DIM = 256


def refuse_other_data(config: FinetuneConfig, parent_state: Mapping[str, Any], dataset_sha256: str) -> None:
    """Raise GqError if the dataset is not the one that the parent learnt from."""
    if parent_state.get("dataset_sha256") != dataset_sha256:
        message = f"{config.data.dataset} is not the data that {config.online.parent} learnt from"
        raise GqError(message, hint="restore the file, or pretrain again")


def random_return(config: FinetuneConfig, trajectories: Trajectories) -> float:
    """Return what a random policy earns; the dataset's worst return for a task without a measured one."""
    reference = own_reference(config, trajectories)
    return reference.minimum if reference else float(trajectories.returns.min())


def own_reference(config: FinetuneConfig, trajectories: Trajectories) -> Reference | None:
    """Return the references that results are scored between."""
    return reference_for(config.environment, origin_of(config.data.dataset, trajectories.attributes))


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


def begin_from_parent(
    config: FinetuneConfig, learner: ODTLearner, store: ReplayStore, dataset_sha256: str
) -> dict[str, Any]:
    """Take over the parent's weights and fill the buffer from its dataset; return what is to be on record of it."""
    source = parent_checkpoint(config, dataset_sha256)
    learner.model.load_state_dict(source.model)
    if config.online.optimizer_state == "carry":
        learner.carry(source.optimizer, source.state["step"])
    store.restore([], 0)
    store.fill()
    return {
        "run": config.online.parent,
        "checkpoint": config.online.checkpoint,
        "model_sha256": sha256(source.path / "model.safetensors"),
    }


def parent_checkpoint(config: FinetuneConfig, dataset_sha256: str) -> Checkpoint:
    """Return the checkpoint to start from.

    Raises:
        GqError: it is gone or damaged, or the dataset is not the one that the parent learnt from.
    """
    folder = Path(config.online.parent) / "checkpoints" / config.online.checkpoint
    if not folder.is_dir():
        raise GqError(f"the parent's checkpoint {folder} is gone", hint="start again from another run or checkpoint")
    checkpoint = load_checkpoint(folder)
    if config.online.optimizer_state == "carry" and not checkpoint.optimizer:
        message = f"{config.online.parent} was shared without its optimiser"
        raise UsageError(message, hint="begin with a new one: --set online.optimizer_state=reset")
    refuse_other_data(config, checkpoint.state, dataset_sha256)
    return checkpoint


class Explorer:
    """Environments in which a model's policy samples episodes at high target returns."""

    def __init__(self, config: FinetuneConfig, model: StochasticTransformer, compute: Compute) -> None:
        online = config.online
        # A few rows of a small model take longer in bfloat16 on a CPU, which converts everything to and fro.
        is_small = compute.device.type == "cpu" and config.model.embed_dim <= SMALL_EMBED_DIM
        autocast, delayed = nullcontext if is_small else compute.autocast, config.data.mode == "delayed"
        self.policy = ODTPolicy(model, autocast=autocast, delayed=delayed, stochastic=True)
        seed = EXPLORATION_SEED + config.train.seed
        self.recipe = Recipe(seed=seed, targets=online.targets, block_size=online.rollouts)
        self.task, self.environments = config.environment, list[Any]()

    def run(self, first: int, *, is_stopped: Callable[[], bool]) -> dict[int, LoggedEpisode]:
        """Return an iteration's episodes by their numbers, from `first` on; fewer where it was stopped."""
        numbers = range(first, first + self.recipe.block_size)
        self.environments += [make(self.task) for _ in range(len(numbers) - len(self.environments))]
        finished: dict[int, LoggedEpisode] = {}
        self.policy.model.eval()
        record_episodes(
            self.policy,
            self.environments,
            numbers,
            self.recipe,
            finished=finished.__setitem__,
            stepped=lambda num_steps: is_stopped(),
        )
        return dict(sorted(finished.items()))

    def close(self) -> None:
        """Close the environments."""
        for environment in self.environments:
            environment.close()


class Evaluations:
    """Run a finetuning's evaluations: those that select the best checkpoint, and those that are reported."""

    def __init__(self, config: FinetuneConfig, policy: ODTPolicy, reference: Reference | None) -> None:
        self.config, self.policy, self.reference = config, policy, reference

    def select(self) -> list[Summary]:
        """Evaluate on the selection seeds."""
        return summarise(self._run(SELECTION_SEED, self.config.eval.num_episodes), self.reference)

    def fresh_returns(self) -> list[list[float]]:
        """Return the returns per target on the seeds that `gq eval` uses, which select nothing."""
        num_episodes = self.config.online.final_episodes
        returns = [episode.episode_return for episode in self._run(0, num_episodes)]
        return [returns[i : i + num_episodes] for i in range(0, len(returns), num_episodes)]

    def compare(self, run: Path, starts: list[list[float]]) -> list[Change]:
        """Compare the best checkpoint with the start, episode by episode on the same seeds.

        Args:
            starts: returns per target before any update.
        """
        best = load_checkpoint(choose_checkpoint(run, "best"), device=str(self.policy.device))
        last = {name: tensor.clone() for name, tensor in self.policy.model.state_dict().items()}
        self.policy.model.load_state_dict(best.model)
        ends = self.fresh_returns()
        self.policy.model.load_state_dict(last)
        targets = dict.fromkeys(self.config.eval.targets)
        return [
            measure_change(target, np.array(start), np.array(end), self.reference)
            for target, start, end in zip(targets, starts, ends, strict=True)
        ]

    def _run(self, first_seed: int, num_episodes: int) -> list[Episode]:
        self.policy.model.eval()
        starts = EpisodeRequest(num_episodes, seed=first_seed).starts(list(dict.fromkeys(self.config.eval.targets)))
        return roll_out(self.policy, self.config.environment, starts)

"""Training from a dataset: from a configuration to a finished run."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.config import DataRunConfig, LogConfig, OfflineConfig
from gq.data.trajectories import Trajectories
from gq.datasets.loading import canonical_name, load_dataset
from gq.envs.engines import recorded_engines, versions
from gq.envs.scores import origin_of, reference_for
from gq.errors import GqError, UsageError
from gq.files import write_json
from gq.models.costs import data_warning
from gq.paths import last_dataset
from gq.rollouts.statistics import Summary
from gq.runs.card import write_card
from gq.runs.folder import SELECTION_SEED, opened_run, refuse_filled
from gq.runs.metrics import Listener, Silence
from gq.training.trackers import Trackers

if TYPE_CHECKING:
    from gq.algos.supervised import SupervisedLearner
    from gq.policies.compute import Compute
    from gq.runs.checkpoint import Checkpoint
    from gq.training.building import Placement
    from gq.training.processes import Processes

TARGET_PERCENTILES = (50, 90, 99)
LARGE = 50_000_000  # parameters; the checkpoints of larger models are written while training goes on


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left behind."""

    run: Path
    task: str
    dataset: str
    parameters: int
    steps: int
    seconds: float
    best_step: int | None
    evaluation: list[Summary]  # of the last step, on the selection seeds; empty without evaluation


def prepare(config: DataRunConfig) -> tuple[DataRunConfig, Trajectories]:
    """Load the dataset and complete the configuration with what follows from it: task and targets.

    Raises:
        UsageError, DataError: no such dataset, a file that must not be trained on, or another task's dimensions.
    """
    name = config.data.dataset or last_dataset()
    trajectories = load_dataset(name, task=config.environment.id if config.task else None)
    if trajectories.task is None:
        widths = (
            f"observations of width {trajectories.observations.shape[1]}, actions of {trajectories.actions.shape[1]}"
        )
        raise UsageError(f"{name} does not say its task ({widths})", hint="name it, for example --task Hopper-v5")
    data = replace(config.data, dataset=canonical_name(name))
    targets = config.eval.targets or default_targets(trajectories)[-1 if config.algo == "odt" else 0 :]
    return replace(config, task=trajectories.task, data=data, eval=replace(config.eval, targets=targets)), trajectories


def default_targets(trajectories: Trajectories) -> tuple[float, ...]:
    """Return the 50th, 90th and 99th percentile of the episode returns, rounded, without repetition."""
    percentiles = np.percentile(trajectories.returns, TARGET_PERCENTILES)
    return tuple(dict.fromkeys(round(float(value), 1) for value in percentiles))


def fingerprint(trajectories: Trajectories) -> str:
    """Return the SHA-256 of the arrays that training reads."""
    digest = hashlib.sha256()
    for array in (trajectories.observations, trajectories.actions, trajectories.rewards, trajectories.offsets):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def train(
    config: DataRunConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    prepared: tuple[DataRunConfig, Trajectories] | None = None,
) -> TrainResult:
    """Train a run in the folder `out`, or in a new one of the runs folder.

    Args:
        resume: go on with the run in `out`; the caller has merged its stored configuration into `config`.
        prepared: the result of `prepare(config)` where the caller has it already.

    Raises:
        UsageError: `out` holds something and `resume` is not set.
        Interrupted: stopped by a signal, everything saved.
    """
    listener = listener or Silence()
    config, trajectories = prepared or prepare(config)
    if out and not resume:
        refuse_filled(out, config.algo)
    from gq.policies.compute import choose_compute
    from gq.training import processes as distributed
    from gq.training.building import choose_placement
    from gq.training.memory import memory_advice

    distributed.refuse_uneven(config.train.batch_size, distributed.size())
    # What follows may refuse, so it comes before there is a folder.
    compute = choose_compute(distributed.local_device(config.train.device), config.train.precision)
    assert isinstance(config, OfflineConfig)
    placement = choose_placement(config, trajectories, compute, num_processes=distributed.size())
    opened, advice = opened_run(config, out, compute.device.type, listener), memory_advice(config, distributed.size())
    with opened as (run, processes, listener), advice:
        if trajectories.num_dropped_rows:
            listener.note(f"left out the last {trajectories.num_dropped_rows} rows: an unfinished episode")
        return run_training(config, run, trajectories, placement, listener, processes)


def run_training(
    config: DataRunConfig,
    run: Path,
    trajectories: Trajectories,
    placement: "Placement",
    listener: Listener,
    processes: "Processes",
) -> TrainResult:
    """Build everything from the configuration, restore the last checkpoint if there is one, and run the loop."""
    import torch

    from gq.runs.checkpoint import last_checkpoint
    from gq.training.building import build_learner
    from gq.training.offline_loop import OfflineLoop
    from gq.training.parallel_loop import ParallelLoop
    from gq.training.processes import separate

    assert isinstance(config, OfflineConfig)
    compute, compilation = placement.compute, placement.compilation
    is_first = processes.rank == 0
    digest = processes.from_first(fingerprint(trajectories) if is_first else "")
    checkpoint = last_checkpoint(run)  # this and the next line may refuse, so they come before anything is said
    refuse_changed_data(checkpoint, digest, config.data.dataset)
    torch.manual_seed(config.train.seed)
    learner = build_learner(config, trajectories, placement, processes)
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    share = "a share of the model" if learner.is_sharded else "the whole model"
    where = f"{compute}; {processes.size} processes with {share} each" if processes.size > 1 else str(compute)
    listener.note(f"{parameters:,} parameters on {where}")
    if compute.device.type == "cuda" or config.train.compile != "auto":
        listener.note(str(compilation))
    task = config.environment
    dims = (task.observation_dim, task.action_dim)
    if warning := data_warning(config.size, parameters, trajectories.num_transitions, dims):
        listener.note(f"warning: {warning}")
    facts = facts_of(config.data.dataset, trajectories, digest, parameters)
    if placement.is_streamed:
        listener.note("the data stay where they are: windows are fetched while the model learns")
    if checkpoint:
        listener.note(f"going on from step {checkpoint.state['step']}")
    if is_first:
        write_json(run / "environment.json", {**facts, "compute": where, "compilation": str(compilation)})
    loop = (ParallelLoop if processes.size > 1 else OfflineLoop)(
        learner,
        config,
        run,
        evaluate=build_evaluation(config, learner, compute, processes, facts["dataset"]["origin"]),
        facts=facts,
        listener=listener,
        trackers=Trackers(config.log if is_first else LogConfig(), run, config.to_dict(), listener.note),
        checkpoint=checkpoint,
        writes=is_first,
        in_background=parameters >= LARGE,
    )
    if isinstance(loop, ParallelLoop):
        loop.prepare(processes)
        if not is_first:
            separate(processes.rank, config.train.seed + loop.progress.step, compute.device, checkpoint)
    loop.execute()
    if is_first:
        write_card(run)
    return TrainResult(
        run=run,
        task=config.task,
        dataset=config.data.dataset,
        parameters=parameters,
        steps=loop.progress.step,
        seconds=loop.progress.seconds,
        best_step=loop.progress.best_step,
        evaluation=loop.last_evaluation,
    )


def facts_of(dataset: str, trajectories: Trajectories, dataset_sha256: str, parameters: int) -> dict[str, Any]:
    """Return what environment.json and checkpoints say of a run, for what evaluates it later."""
    return {
        "dataset_sha256": dataset_sha256,
        "parameters": parameters,
        "versions": versions(),
        "dataset": {
            "origin": origin_of(dataset, trajectories.attributes),
            **recorded_engines(trajectories.attributes),
        },
    }


def build_evaluation(
    config: OfflineConfig, learner: "SupervisedLearner", compute: "Compute", processes: "Processes", origin: str
) -> Callable[[], list[Summary]]:
    """Return what evaluates the learner's model on the episodes that choose the best checkpoint.

    Each process runs every N-th episode, with the whole model; all return the results of all.
    """
    from gq.policies.algorithms import ALGORITHMS, build_model, build_policy
    from gq.rollouts.episodes import EpisodeRequest, roll_out
    from gq.rollouts.statistics import summarise
    from gq.training.sharding import copy_whole

    model = learner.model
    if learner.is_sharded:
        model = build_model(config).to(compute.device)
    policy = build_policy(config, model, compute)
    targets = config.eval.targets if ALGORITHMS[config.algo].takes_target else config.eval.targets[-1:]
    starts = EpisodeRequest(config.eval.num_episodes, seed=SELECTION_SEED).starts(targets)
    own = starts[processes.rank :: processes.size]

    def evaluate() -> list[Summary]:
        if learner.is_sharded:
            copy_whole(learner.model, model)
        model.eval()
        return summarise(processes.merge(roll_out(policy, config.environment, own)), reference_for(config.task, origin))

    return evaluate


def refuse_changed_data(checkpoint: "Checkpoint | None", dataset_sha256: str, dataset: str) -> None:
    """Raise GqError if a run that goes on began with other data."""
    if checkpoint and checkpoint.state["dataset_sha256"] != dataset_sha256:
        message = f"{dataset} is not the data that this run began with"
        raise GqError(message, hint="restore the file, or start a new run")

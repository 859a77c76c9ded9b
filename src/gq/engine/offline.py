"""Training from a dataset: from a configuration to a finished run."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.config import DataRunConfig, OfflineConfig, to_toml
from gq.data.datasets import canonical_name, load_dataset
from gq.data.trajectories import Trajectories
from gq.engine.metrics import Listener, Silence, open_mirrors
from gq.engine.runs import lock_run, refuse_filled, run_card
from gq.envs.engines import recorded_engines
from gq.envs.scores import origin_of, reference_for
from gq.envs.tasks import resolve_task
from gq.errors import GqError, UsageError
from gq.evaluation.statistics import Summary
from gq.files import write_json, write_text
from gq.parameters import data_warning
from gq.paths import checkpoint_folders, last_dataset, new_run_folder
from gq.versions import versions

if TYPE_CHECKING:
    from gq.engine.checkpoint import Checkpoint
    from gq.engine.precision import Compute

TARGET_PERCENTILES = (50, 90, 99)
SELECTION_SEED = 1_000_000  # episodes that choose the best checkpoint are never those that `gq eval` reports


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
    trajectories = load_dataset(name, task=resolve_task(config.task).id if config.task else None)
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
    run = out or new_run_folder(config.task, config.algo, config.size)
    if not resume:
        refuse_filled(run, config.algo)
    from gq.engine.precision import choose_compute

    compute = choose_compute(config.train.device, config.train.precision)  # may refuse, so before there is a folder
    with lock_run(run):
        write_text(run / "config.toml", to_toml(config))
        if trajectories.num_dropped_rows:
            listener.note(f"left out the last {trajectories.num_dropped_rows} rows: an unfinished episode")
        return run_training(config, run, trajectories, compute, listener)


def run_training(
    config: DataRunConfig, run: Path, trajectories: Trajectories, compute: "Compute", listener: Listener
) -> TrainResult:
    """Build everything from the configuration, restore the last checkpoint if there is one, and run the loop."""
    import torch

    from gq.engine.building import build_learner, build_policy
    from gq.engine.loop import Loop
    from gq.evaluation.rollout import roll_out
    from gq.evaluation.statistics import summarise

    assert isinstance(config, OfflineConfig)
    digest = fingerprint(trajectories)
    checkpoint = last_checkpoint(run, digest, config.data.dataset)  # may refuse, so before anything is said
    torch.manual_seed(config.train.seed)
    learner = build_learner(config, trajectories, compute)
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    listener.note(f"{parameters:,} parameters on {compute}")
    task = resolve_task(config.task)
    dims = (task.observation_dim, task.action_dim)
    if warning := data_warning(config.size, parameters, trajectories.num_transitions, dims):
        listener.note(f"warning: {warning}")
    policy = build_policy(config, learner.model, compute)
    targets = config.eval.targets[-1:] if config.algo == "bc" else config.eval.targets  # behaviour cloning has none
    seeds = [SELECTION_SEED + index for index in range(config.eval.num_episodes)]
    pairs = [(seed, target) for target in targets for seed in seeds]
    origin = origin_of(config.data.dataset, trajectories.attributes)

    def evaluate() -> list[Summary]:
        learner.model.eval()
        episodes = roll_out(policy, config.task, seeds=[p[0] for p in pairs], target_returns=[p[1] for p in pairs])
        return summarise(episodes, reference_for(config.task, origin))

    facts: dict[str, Any] = {"dataset_sha256": digest, "parameters": parameters, "versions": versions()}
    facts["dataset"] = {"origin": origin, **recorded_engines(trajectories.attributes)}  # for what evaluates it later
    if checkpoint:
        listener.note(f"going on from step {checkpoint.state['step']}")
    write_json(run / "environment.json", {**facts, "compute": str(compute)})
    mirrors = open_mirrors(config.log, run, config.to_dict(), listener.note)
    loop = Loop(
        learner, config, run, evaluate=evaluate, facts=facts, listener=listener, mirrors=mirrors, checkpoint=checkpoint
    )
    loop.execute()
    card = run_card(
        config,
        name=run.name,
        parameters=parameters,
        steps=config.train.steps,
        results=loop.last_evaluation,
        versions=facts["versions"],
    )
    if loop.last_evaluation or not (run / "README.md").exists():  # else a finished run was resumed
        write_text(run / "README.md", card)
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


def last_checkpoint(run: Path, dataset_sha256: str, dataset: str) -> "Checkpoint | None":
    """Return the checkpoint to go on from, or None where there is none yet.

    Raises:
        GqError: it is damaged, or comes from other data.
    """
    from gq.engine.checkpoint import choose_checkpoint, load_checkpoint

    if not checkpoint_folders(run):
        return None
    checkpoint = load_checkpoint(choose_checkpoint(run, "last"))
    if checkpoint.state["dataset_sha256"] != dataset_sha256:
        message = f"{dataset} is not the data that this run began with"
        raise GqError(message, hint="restore the file, or start a new run")
    return checkpoint

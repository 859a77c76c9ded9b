"""Learning from a dataset (dt, bc, odt, td3bc): bursts of updates, in one process or several that train one model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gq.algos.supervised import SupervisedLearner
from gq.algos.td3bc import TD3BCLearner
from gq.config import DataRunConfig, OfflineConfig
from gq.data.trajectories import Trajectories
from gq.envs.engines import recorded_engines, versions
from gq.envs.scores import origin_of, reference_for
from gq.errors import GqError
from gq.models.costs import data_warning
from gq.policies.algorithms import ALGORITHMS, build_model, build_policy
from gq.policies.compute import choose_compute
from gq.rollouts.episodes import EpisodeRequest, roll_out
from gq.rollouts.statistics import Summary, summarise
from gq.runs.card import write_card
from gq.runs.folder import SELECTION_SEED, refuse_filled
from gq.runs.metrics import Listener
from gq.training import processes as distributed
from gq.training.building import Placement, build_learner, choose_placement
from gq.training.session import Progress, Session, at_highest_target, by_target, open_session

DataLearner = SupervisedLearner | TD3BCLearner
LARGE = 50_000_000  # parameters; the checkpoints of larger models are written while training continues


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


def train(
    config: DataRunConfig,
    trajectories: Trajectories,
    out: Path | None = None,
    *,
    resume: bool = False,
    listener: Listener | None = None,
) -> TrainResult:
    """Train a run in the folder `out`, or in a new one of the runs folder.

    Args:
        config: complete, with the task and the targets of evaluations.
        resume: continue the run in `out`; the caller has merged its stored configuration into `config`.

    Raises:
        UsageError: `out` holds something and `resume` is not set.
        GqError: the data are not those that the run began with.
        Interrupted: stopped by a signal, everything saved.
    """
    assert isinstance(config, OfflineConfig)
    if out and not resume:
        refuse_filled(out, config.algo)
    # What follows may refuse, so it comes before there is a folder.
    distributed.refuse_uneven(config.train.batch_size, distributed.size())
    compute = choose_compute(distributed.local_device(config.train.device), config.train.precision)
    placement = choose_placement(config, trajectories, compute, num_processes=distributed.size())
    with open_session(config, out, compute, listener, Progress) as run:
        digest = run.processes.from_first(trajectories.sha256() if run.is_first else "")
        refuse_changed_data(run, "dataset_sha256", digest, config.data.dataset)
        learner, parameters = build(run, config, trajectories, placement, digest)
        evaluate = build_evaluation(run, config, learner)
        run.restore(learner, in_background=parameters >= LARGE)
        evaluation = learn(run, config, learner, evaluate)
        if run.is_first:
            write_card(run.folder)
        return TrainResult(
            run=run.folder,
            task=config.task,
            dataset=config.data.dataset,
            parameters=parameters,
            steps=run.progress.step,
            seconds=run.progress.seconds,
            best_step=run.progress.best_step,
            evaluation=evaluation,
        )


def build(
    run: Session[Progress], config: OfflineConfig, trajectories: Trajectories, placement: Placement, digest: str
) -> tuple[DataLearner, int]:
    """Build the learner with fresh weights, and say what there is; return it with its number of parameters."""
    note, processes = run.listener.note, run.processes
    if trajectories.num_dropped_rows:
        note(f"left out the last {trajectories.num_dropped_rows} rows: an unfinished episode")
    torch.manual_seed(config.train.seed)
    learner = build_learner(config, trajectories, placement, processes)
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    share = "a share of the model" if learner.is_sharded else "the whole model"
    where = str(run.compute) if processes.size == 1 else f"{run.compute}; {processes.size} processes with {share} each"
    note(f"{parameters:,} parameters on {where}")
    if run.compute.device.type == "cuda" or config.train.compile != "auto":
        note(f"updates are {placement.program}")
    task = config.environment
    dims = (task.observation_dim, task.action_dim)
    if warning := data_warning(config.size, parameters, trajectories.num_transitions, dims):
        note(f"warning: {warning}")
    if placement.is_streamed:
        note("the data stay where they are: windows are fetched while the model learns")
    if run.checkpoint:
        note(f"going on from step {run.progress.step}")
    facts = facts_of(config.data.dataset, trajectories, digest, parameters)
    if isinstance(learner, TD3BCLearner):
        facts["terminals_sha256"] = trajectories.terminals_sha256()
        refuse_changed_data(run, "terminals_sha256", facts["terminals_sha256"], config.data.dataset)
    run.describe(facts, compute=where, program=str(placement.program))
    return learner, parameters


def learn(
    run: Session[Progress], config: OfflineConfig, learner: DataLearner, evaluate: Callable[[], list[Summary]]
) -> list[Summary]:
    """Take all updates that are left; return the last evaluation.

    The learner takes as many at once as it likes to, up to the next thing that is due between two of them.
    """
    progress, steps, evaluation = run.progress, config.train.steps, list[Summary]()
    with run.training(is_over=progress.step >= steps):
        while progress.step < steps:
            with distributed.together():
                metrics, num_updates = learner.updates(progress.step, num_undisturbed(progress.step, config))
            run.count(metrics, num_updates)
            if run.due(config.train.log_every):
                run.show(run.report({}), progress.step, steps)
            is_best, is_last = False, progress.step >= steps
            if config.eval.every and (is_last or run.due(config.eval.every)):
                with run.throughput.apart():
                    evaluation = evaluate()
                    record = by_target(evaluation)
                    is_best = run.log_evaluation(record, at_highest_target(evaluation))
                    run.show(record, progress.step, steps)
            run.save_if_due(is_best=is_best, is_last=is_last)
    return evaluation


def num_undisturbed(step: int, config: OfflineConfig) -> int:
    """Return how many updates there are until something is due after one."""
    periods = [config.train.log_every, config.eval.every, config.checkpoint.every]
    return min(config.train.steps - step, *(every - step % every for every in periods if every))


def facts_of(dataset: str, trajectories: Trajectories, dataset_sha256: str, parameters: int) -> dict[str, Any]:
    """Return what environment.json and checkpoints say of a run, for what evaluates it later."""
    origin = origin_of(dataset, trajectories.attributes)
    simulated = trajectories.attributes.get("num_requested_transitions")
    number = {"transitions": int(simulated)} if simulated is not None and origin.startswith("builtin/") else {}
    return {
        "dataset_sha256": dataset_sha256,
        "parameters": parameters,
        "versions": versions(),
        "dataset": {"origin": origin, **number, **recorded_engines(trajectories.attributes)},
    }


def build_evaluation(
    run: Session[Progress], config: OfflineConfig, learner: DataLearner
) -> Callable[[], list[Summary]]:
    """Return what evaluates the learner's model on the episodes that choose the best checkpoint.

    Each process runs every N-th episode, with the whole model; all return the results of all.
    """
    model, processes = learner.model, run.processes
    if learner.is_sharded:
        model = build_model(config).to(run.compute.device)
    policy = build_policy(config, model, run.compute)
    targets = config.eval.targets if ALGORITHMS[config.algo].takes_target else config.eval.targets[-1:]
    starts = EpisodeRequest(config.eval.num_episodes, seed=SELECTION_SEED).starts(targets)
    own = starts[processes.rank :: processes.size]
    reference = reference_for(config.environment, run.facts["dataset"]["origin"])

    def evaluate() -> list[Summary]:
        if learner.is_sharded:
            distributed.copy_whole(learner.model, model)
        model.eval()
        return summarise(processes.merge(roll_out(policy, config.environment, own)), reference)

    return evaluate


def refuse_changed_data(run: Session[Any], key: str, digest: str, dataset: str) -> None:
    """Raise GqError if a run that is resumed began with other data, by one of the digests on record."""
    if run.checkpoint and run.checkpoint.state[key] != digest:
        message = f"{dataset} is not the data that this run began with"
        raise GqError(message, hint="restore the file, or start a new run")

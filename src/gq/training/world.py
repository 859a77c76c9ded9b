"""Training TD-MPC2: from a configuration to a finished run."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gq import presets
from gq.config import LogConfig, TDMPC2Config
from gq.envs.engines import versions
from gq.envs.scores import reference_for
from gq.errors import UsageError
from gq.files import write_json
from gq.rollouts.statistics import Summary
from gq.runs.card import write_card
from gq.runs.folder import SELECTION_SEED, opened_run, refuse_filled, refuse_imported
from gq.runs.metrics import Listener, Silence
from gq.training.trackers import Trackers

if TYPE_CHECKING:
    from gq.planning.mppi import Planner
    from gq.policies.compute import Compute
    from gq.runs.checkpoint import Checkpoint
    from gq.training.processes import Processes


@dataclass(frozen=True)
class WorldTrainResult:
    """What a finished run left behind."""

    run: Path
    task: str
    parameters: int  # trained ones, without those of the target
    decisions: int
    frames: int
    steps: int  # updates
    seconds: float
    best_step: int | None
    evaluation: list[Summary]  # of the last step: by planning, by the policy alone; empty without evaluation


def train_world_model(
    config: TDMPC2Config, out: Path | None = None, *, resume: bool = False, listener: Listener | None = None
) -> WorldTrainResult:
    """Train a run in the folder `out`, or in a new one of the runs folder.

    Started by torchrun, every process calls this: each has environments and a replay buffer of its own and learns from
    its share of a batch, gradients are averaged, and the first process evaluates, logs and saves.

    Args:
        resume: go on with the run in `out`; the caller has merged its stored configuration into `config`.

    Raises:
        UsageError: no task, or `out` holds something and `resume` is not set, or an imported run, which cannot go on.
        Interrupted: stopped by a signal, everything saved.
    """
    listener, config = listener or Silence(), presets.with_task(config)
    if out:
        refuse_imported(out) if resume else refuse_filled(out, config.algo)
    from gq.envs.make import make
    from gq.policies.compute import choose_compute
    from gq.training import processes as distributed
    from gq.training.memory import memory_advice

    distributed.refuse_uneven(config.train.batch_size, distributed.size())
    compute = choose_compute(distributed.local_device(config.train.device), config.train.precision)
    make(config.environment).close()  # this and the line before may refuse, so they come before there is a folder
    opened, advice = opened_run(config, out, compute.device.type, listener), memory_advice(config, distributed.size())
    with opened as (run, processes, listener), advice:
        return run_training(config, run, compute, listener, processes)


def run_training(
    config: TDMPC2Config, run: Path, compute: "Compute", listener: Listener, processes: "Processes"
) -> WorldTrainResult:
    """Build everything from the configuration, restore the last checkpoint if there is one, and run the loop."""
    import torch

    from gq.algos.tdmpc2 import TDMPC2Learner
    from gq.policies.algorithms import build_planner, build_world_model, discount_of
    from gq.policies.compute import find_missing
    from gq.runs.checkpoint import last_checkpoint
    from gq.training import processes as distributed
    from gq.training.interaction import Interaction
    from gq.training.world_loop import WorldLoop

    checkpoint, is_first = last_checkpoint(run), processes.rank == 0
    refuse_other_number(run, checkpoint, processes.size)
    torch.manual_seed(config.train.seed)
    discount = discount_of(config)
    model = build_world_model(config, config.environment).to(compute.device)
    average = processes.average if processes.size > 1 else None
    learner = TDMPC2Learner(model, config.update, discount=discount, autocast=compute.autocast, average=average)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    where = f"{compute} in {processes.size} processes" if average else str(compute)
    listener.note(f"{parameters:,} parameters on {where}; discount {discount:g}")
    planner = build_planner(config, model, compute)
    if compute.device.type == "cuda" and not planner.compiled:
        listener.note(f"plans are not compiled: {find_missing(compute.device)}")
    facts: dict[str, Any] = {"parameters": parameters, "versions": versions()}
    if is_first:
        write_json(run / "environment.json", {**facts, "compute": where, "discount": discount})
    loop = WorldLoop(
        learner,
        config,
        run,
        evaluate=lambda: evaluate(config, planner),
        facts=facts,
        listener=listener,
        trackers=Trackers(config.log if is_first else LogConfig(), run, config.to_dict(), listener.note),
        checkpoint=checkpoint,
        writes=is_first,
    )
    if not is_first:
        distributed.separate(processes.rank, config.train.seed, compute.device, checkpoint)
    interaction = Interaction(config, planner, run, compute.device, processes.rank)
    try:
        if checkpoint:
            interaction.open(checkpoint.state["processes"][processes.rank], checkpoint.optimizer)
            listener.note(f"going on from decision {loop.progress.decisions}")
        else:
            interaction.open()
        loop.prepare(interaction, processes)
        loop.execute()
    finally:
        interaction.close()
    if is_first:
        write_card(run)  # which marks it as finished
    progress = loop.progress
    return WorldTrainResult(
        run=run,
        task=config.task,
        parameters=parameters,
        decisions=progress.decisions,
        frames=progress.decisions * config.environment.action_repeat,
        steps=progress.step,
        seconds=progress.seconds,
        best_step=progress.best_step,
        evaluation=loop.last_evaluation,
    )


def evaluate(config: TDMPC2Config, planner: "Planner") -> list[Summary]:
    """Return what planning earns, and the policy alone, on the episodes that choose the best checkpoint."""
    from gq.planning.acting import PlanningPolicy
    from gq.rollouts.episodes import EpisodeRequest, roll_out
    from gq.rollouts.statistics import summarise

    starts = EpisodeRequest(config.eval.num_episodes, seed=SELECTION_SEED).starts([0.0])
    results = []
    for mode in ("plan", "policy"):
        policy = PlanningPolicy(planner, task=config.environment, mode=mode)
        results += summarise(roll_out(policy, config.environment, starts), reference_for(config.task, ""))
    return results


def refuse_other_number(run: Path, checkpoint: "Checkpoint | None", num_processes: int) -> None:
    """Raise UsageError if a run goes on with another number of processes."""
    if checkpoint and (number := len(checkpoint.state["processes"])) != num_processes:
        hint = (
            f"go on with torchrun --nproc-per-node {number} -m gq train tdmpc2 --out {shlex.quote(str(run))} --resume"
        )
        raise UsageError(f"the run began with {number} processes, not {num_processes}", hint=hint)

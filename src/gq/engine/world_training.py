"""Training TD-MPC2: from a configuration to a finished run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gq.config import TDMPC2Config, to_toml
from gq.engine.metrics import Listener, Silence, open_mirrors
from gq.engine.offline import SELECTION_SEED
from gq.engine.runs import lock_run, refuse_filled, run_card
from gq.envs.scores import reference_for
from gq.envs.tasks import resolve_task
from gq.errors import UsageError
from gq.evaluation.statistics import Summary
from gq.files import write_json, write_text
from gq.paths import checkpoint_folders, new_run_folder
from gq.versions import versions

if TYPE_CHECKING:
    from gq.engine.checkpoint import Checkpoint
    from gq.engine.precision import Compute
    from gq.planning.mppi import Planner


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


def complete(config: TDMPC2Config) -> TDMPC2Config:
    """Return the configuration with its task's proper name.

    Raises:
        UsageError: no task, or none of that name.
        GqError: its environment is not installed.
    """
    if not config.task:
        raise UsageError("TD-MPC2 needs a task", hint="for example --task cartpole-swingup, or --task HalfCheetah-v5")
    return replace(config, task=resolve_task(config.task).id)


def train_world_model(
    config: TDMPC2Config, out: Path | None = None, *, resume: bool = False, listener: Listener | None = None
) -> WorldTrainResult:
    """Train a run in the folder `out`, or in a new one of the runs folder.

    Args:
        resume: go on with the run in `out`; the caller has merged its stored configuration into `config`.

    Raises:
        UsageError: no task, or `out` holds something and `resume` is not set.
        Interrupted: stopped by a signal, everything saved.
    """
    listener, config = listener or Silence(), complete(config)
    run = out or new_run_folder(config.task, config.algo, config.size)
    if not resume:
        refuse_filled(run, config.algo)
    from gq.engine.precision import choose_compute
    from gq.envs.make import make

    compute = choose_compute(config.train.device, config.train.precision)  # may refuse, so before there is a folder
    make(config.task).close()
    with lock_run(run):
        write_text(run / "config.toml", to_toml(config))
        return run_training(config, run, compute, listener)


def run_training(config: TDMPC2Config, run: Path, compute: "Compute", listener: Listener) -> WorldTrainResult:
    """Build everything from the configuration, restore the last checkpoint if there is one, and run the loop."""
    import torch

    from gq.algos.tdmpc2 import TDMPC2Learner
    from gq.engine.building import build_planner, build_world_model, discount_of
    from gq.engine.interaction import Interaction
    from gq.engine.world_loop import WorldLoop

    checkpoint = last_checkpoint(run)
    torch.manual_seed(config.train.seed)
    task, discount = resolve_task(config.task), discount_of(config)
    model = build_world_model(config).to(compute.device)
    learner = TDMPC2Learner(model, config.update, discount=discount, autocast=compute.autocast)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    listener.note(f"{parameters:,} parameters on {compute}; discount {discount:g}")
    planner = build_planner(config, model, compute)
    facts: dict[str, Any] = {"parameters": parameters, "versions": versions()}
    write_json(run / "environment.json", {**facts, "compute": str(compute), "discount": discount})
    loop = WorldLoop(
        learner,
        config,
        run,
        evaluate=lambda: evaluate(config, planner),
        facts=facts,
        listener=listener,
        mirrors=open_mirrors(config.log, run, config.to_dict(), listener.note),
        checkpoint=checkpoint,
    )
    interaction = Interaction(config, planner, run, compute.device)
    try:
        interaction.open(*((checkpoint.state["interaction"], checkpoint.optimizer) if checkpoint else ()))
        if checkpoint:
            listener.note(f"going on from decision {loop.progress.decisions}")
        loop.prepare(interaction)
        loop.execute()
    finally:
        interaction.close()
    progress = loop.progress
    card = run_card(
        config,
        name=run.name,
        parameters=parameters,
        steps=progress.step,
        results=loop.last_evaluation[:1],
        versions=facts["versions"],
    )
    if loop.last_evaluation or not (run / "README.md").exists():  # else a finished run was resumed
        write_text(run / "README.md", card)
    return WorldTrainResult(
        run=run,
        task=config.task,
        parameters=parameters,
        decisions=progress.decisions,
        frames=progress.decisions * task.action_repeat,
        steps=progress.step,
        seconds=progress.seconds,
        best_step=progress.best_step,
        evaluation=loop.last_evaluation,
    )


def evaluate(config: TDMPC2Config, planner: "Planner") -> list[Summary]:
    """Return what planning earns, and the policy alone, on the episodes that choose the best checkpoint."""
    from gq.evaluation.rollout import roll_out
    from gq.evaluation.statistics import summarise
    from gq.planning.acting import PlanningPolicy

    seeds = [SELECTION_SEED + index for index in range(config.eval.num_episodes)]
    results = []
    bound = resolve_task(config.task).action_bound
    for mode in ("plan", "policy"):
        policy = PlanningPolicy(planner, action_bound=bound, mode=mode)
        episodes = roll_out(policy, config.task, seeds=seeds, target_returns=[0.0] * len(seeds))
        results += summarise(episodes, reference_for(config.task, ""))
    return results


def last_checkpoint(run: Path) -> "Checkpoint | None":
    """Return the checkpoint to go on from, or None where there is none yet. Raises GqError if it is damaged."""
    from gq.engine.checkpoint import choose_checkpoint, load_checkpoint

    return load_checkpoint(choose_checkpoint(run, "last")) if checkpoint_folders(run) else None

"""`gq train tdmpc2`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.cli.train import DryRun, Out, Resume, given_settings
from gq.cli.train import train_app as train_app
from gq.cli.training_view import TrainingView, clock

if TYPE_CHECKING:
    from gq.config import TDMPC2Config
    from gq.engine.world_training import WorldTrainResult

EXAMPLES = """\b
Examples:
  gq train tdmpc2 --task cartpole-swingup --size 1 --decisions 50000
  gq train tdmpc2 --task dog-run --environments 8 --device cuda
  gq train tdmpc2 --task HalfCheetah-v5
  gq train tdmpc2 --task walker-run --set planner.num_samples=256
  gq train tdmpc2 --resume               go on with the newest one
  torchrun --nproc-per-node 8 -m gq train tdmpc2 --task dog-run"""

Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="DeepMind Control task, such as dog-run, or Gymnasium id.",
        autocompletion=options.complete_from(options.known_control_tasks, options.known_tasks),
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="1, 5, 19, 48 or 317, in million parameters; default: 5.",
        autocompletion=options.complete_from(options.known_world_model_sizes),
    ),
]
Decisions = Annotated[int | None, typer.Option(metavar="N", help="Stop after so many; default: 500000.")]
Environments = Annotated[int | None, typer.Option(metavar="N", help="That are stepped side by side; default: 1.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of weights, episodes, batches and plans.")]


@train_app.command("tdmpc2", epilog=EXAMPLES, short_help="Train a TD-MPC2 agent in its environment.")
def train_tdmpc2(
    task: Task = None,
    size: Size = None,
    decisions: Decisions = None,
    environments: Environments = None,
    seed: Seed = None,
    device: options.Device = None,
    out: Out = None,
    resume: Resume = False,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    dry_run: DryRun = False,
    json_mode: options.JsonMode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Train a TD-MPC2 agent: it learns a world model from what it does, and plans with it what to do.

    A decision is one choice of an action; DeepMind Control tasks apply each for two frames. The run keeps all that it
    did, so Ctrl-C saves and --resume goes on exactly.
    """
    output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose, no_color=no_color, no_progress=no_progress)
    flags = {
        "task": task,
        "train.decisions": decisions,
        "train.num_environments": environments,
        "train.seed": seed,
        "train.device": device,
    }
    given = given_settings(config, settings) | {key: value for key, value in flags.items() if value is not None}
    if resume:
        resume, out, resolved = stored_run(output, size, given, out)
    else:
        resolved = new_run(size, given)
    from gq.paths import new_run_folder, runs_folder

    if dry_run:
        show_plan(output, resolved, str(out or new_run_folder(resolved.task, resolved.algo, resolved.size)))
        return
    from gq import threads

    threads.prepare()
    from gq.engine.world_training import train_world_model

    with TrainingView(output, resolved) as view:
        result = train_world_model(resolved, out, resume=resume, listener=view)
    output.note(f"{result.decisions} decisions, {result.steps} updates, {clock(result.seconds)}")
    document = {**dataclasses.asdict(result), "run": str(result.run)}
    output.result(document, quiet=result.run, human=table(output, result))
    output.note(f"next: gq eval {'--latest' if result.run.parent == runs_folder() else result.run}")


def new_run(size: str | None, given: dict[str, Any]) -> "TDMPC2Config":
    """Return the configuration of a new run."""
    from gq.presets import tdmpc2, with_task

    stated = size or given.pop("size", None) or "5"
    return with_task(tdmpc2(str(stated)).replace(given))


def stored_run(
    output: Output, size: str | None, given: dict[str, Any], out: Path | None
) -> tuple[bool, Path | None, "TDMPC2Config"]:
    """Return whether there is something to go on with, where, and its configuration."""
    from gq.config import TDMPC2Config
    from gq.engine.runs import resume_config, was_killed_at_birth

    if out and was_killed_at_birth(out):
        output.note(f"{out} has nothing saved yet: starting again")
        return False, out, new_run(size, given)
    out, stored = resume_config("tdmpc2", size, given, out)
    assert isinstance(stored, TDMPC2Config)
    return True, out, stored


def show_plan(output: Output, config: "TDMPC2Config", out: str) -> None:
    """Print what a run would be, and what follows from it without loading torch."""
    from gq.config import to_toml
    from gq.envs.tasks import resolve_task
    from gq.models.world_config import parameter_counts

    task = resolve_task(config.task)
    counts = parameter_counts(
        config.model,
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        episodic=task.can_terminate,
    )
    parameters = sum(counts.values())
    frames = config.train.decisions * task.action_repeat
    output.note(f"{parameters:,} parameters, {config.train.decisions:,} decisions, which are {frames:,} frames")
    output.note(f"run: {out}")
    document: dict[str, Any] = {"run": out, "config": config.to_dict(), "parameters": parameters, "frames": frames}
    output.result(document, quiet=out, human=to_toml(config).rstrip())


def table(output: Output, result: "WorldTrainResult") -> Any:
    """Return what planning and the policy alone earned at the end, with the run's path under it."""
    from rich.console import Group

    rows = [
        (name, f"{s.return_mean:.0f} ± {s.return_std:.0f}", f"{s.length_mean:.0f}", str(s.num_episodes))
        for name, s in zip(("plan", "policy"), result.evaluation, strict=False)
    ]
    if not rows:
        return str(result.run)
    return Group(output.table(["mode", "return", "decisions", "episodes"], rows), str(result.run))

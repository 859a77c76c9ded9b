"""`gq train tdmpc2`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.launching import Launch, result_table, show_plan, show_result
from gq.cli.output import Output
from gq.cli.train import train_app as train_app
from gq.cli.training_view import TrainingView, clock

if TYPE_CHECKING:
    from gq.config import TDMPC2Config

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
@options.grouped
def train_tdmpc2(
    task: Task = None,
    size: Size = None,
    decisions: Decisions = None,
    environments: Environments = None,
    seed: Seed = None,
    *,
    launch: Launch,
    output: Output,
) -> None:
    """Train a TD-MPC2 agent: it learns a world model from what it does, and plans with it what to do.

    A decision is one choice of an action; DeepMind Control tasks apply each for two frames. The run keeps all that it
    did, so Ctrl-C saves and --resume goes on exactly.
    """
    flags = {
        "task": task,
        "train.decisions": decisions,
        "train.num_environments": environments,
        "train.seed": seed,
    }
    given = launch.given(flags)
    stored = launch.stored(output, "tdmpc2", size, given)
    out, resolved = stored or (launch.out, new_run(size, given))
    from gq.config import TDMPC2Config

    assert isinstance(resolved, TDMPC2Config)
    if launch.dry_run:
        facts = world_model_facts(output, resolved)
        show_plan(output, resolved, out, **facts)
        return
    from gq import threads

    threads.prepare()
    from gq.training.world import train_world_model

    with TrainingView(output, resolved) as view:
        result = train_world_model(resolved, out, resume=stored is not None, listener=view)
    output.note(f"{result.decisions} decisions, {result.steps} updates, {clock(result.seconds)}")
    human = result_table(output, result, ["plan", "policy"], headings=("mode", "decisions"))
    show_result(output, result, human)


def new_run(size: str | None, given: dict[str, Any]) -> "TDMPC2Config":
    """Return the configuration of a new run."""
    from gq.presets import tdmpc2, with_task

    stated = size or given.pop("size", None) or "5"
    return with_task(tdmpc2(str(stated)).replace(given))


def world_model_facts(output: Output, config: "TDMPC2Config") -> dict[str, int]:
    """Return what follows from a configuration without loading torch, and say so."""
    from gq.models.world_config import parameter_counts

    task = config.environment
    counts = parameter_counts(
        config.model,
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        episodic=task.can_terminate,
    )
    parameters = sum(counts.values())
    frames = config.train.decisions * task.action_repeat
    output.note(f"{parameters:,} parameters, {config.train.decisions:,} decisions, which are {frames:,} frames")
    return {"parameters": parameters, "frames": frames}

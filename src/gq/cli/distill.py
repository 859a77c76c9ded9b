"""`gq distill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.speculation.distil import Distilled

EXAMPLES = """\b
Examples:
  gq distill cartpole-swingup-tdmpc2
  gq distill --latest --arch both --rounds 1
  gq distill --latest --data runs/a/correctors/decisions.hdf5 --arch temporal
  gq eval --latest --mode baseline,spec6
The planner drives round 0, what was learnt so far drives all further ones.
The same command goes on after an interruption."""

Arch = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="two-tower, temporal or both.",
        autocompletion=options.complete_from(lambda: ["two-tower", "temporal", "both"]),
    ),
]
HistoryLength = Annotated[int, typer.Option("--history-len", metavar="N", help="Decisions that `temporal` sees.")]
ExecutionHorizon = Annotated[
    int, typer.Option("--spec-exec-horizon", metavar="K", help="The most decisions that a plan is executed for.")
]
PlanHorizon = Annotated[
    int | None,
    typer.Option("--spec-plan-horizon", metavar="H", help="Decisions that plans look ahead; default: the run's."),
]
MinDistance = Annotated[float, typer.Option(metavar="D", help="Leave out latents nearer to the plan's than this.")]
ValueWeight = Annotated[
    float, typer.Option(metavar="W", help="What a lost Q counts in the loss beside an action's error.")
]
Target = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="mean of several plans, or one's drawn elite.",
        autocompletion=options.complete_from(lambda: ["mean", "elite"]),
    ),
]
Data = Annotated[Path | None, typer.Option(metavar="FILE", help="Learn from this file's decisions, and collect none.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="For data and correctors; default: RUN/correctors.")]


@options.grouped
def distill(
    run: options.RunName = None,
    latest: options.Latest = False,
    arch: Arch = "two-tower",
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds in which the corrector drives.")] = 3,
    episodes: Annotated[int, typer.Option(metavar="N", help="Episodes of each round.")] = 10,
    epochs: Annotated[int, typer.Option(metavar="N", help="The most epochs of a training.")] = 50,
    history_length: HistoryLength = 4,
    execution_horizon: ExecutionHorizon = 6,
    plan_horizon: PlanHorizon = None,
    min_distance: MinDistance = 0.0,
    max_samples: Annotated[int | None, typer.Option(metavar="N", help="Of all rounds; default: all there are.")] = None,
    value_weight: ValueWeight = 0.0,
    target: Target = "mean",
    plan_blind: Annotated[
        bool, typer.Option("--plan-blind", help="An ablation: correct the policy, not plans.")
    ] = False,
    no_age: Annotated[bool, typer.Option("--no-age", help="An ablation: do not tell how old the plan is.")] = False,
    data: Data = None,
    checkpoint: options.CheckpointName = "best",
    seed: Annotated[int, typer.Option(metavar="N", help="Of episodes, batches and weights.")] = 0,
    device: options.Device = "auto",
    out: Out = None,
    force: Annotated[bool, typer.Option("--force", help="Replace other data and correctors there.")] = False,
    *,
    output: Output,
) -> None:
    """Teach a small network to correct plans, so that each can be executed for longer, and print its folder."""
    from gq.paths import find_run

    folder, checkpoint_folder = find_run(run, latest=latest)
    from gq import threads

    threads.prepare()
    from gq.speculation.distil import distill as distill_run
    from gq.speculation.settings import DistillSettings, choose_archs, choose_target
    from gq.speculation.training import TrainSettings

    settings = DistillSettings(
        archs=choose_archs(arch),
        rounds=rounds,
        num_episodes=episodes,
        history_length=history_length,
        execution_horizon=execution_horizon,
        plan_horizon=plan_horizon or 0,
        min_distance=min_distance,
        max_samples=max_samples,
        target=choose_target(target),
        plan_blind=plan_blind,
        use_age=not no_age,
        train=TrainSettings(num_epochs=epochs, seed=seed, value_weight=value_weight),
    )
    with output.progress("distilling", unit="") as move:
        distilled = distill_run(
            folder,
            settings,
            data=data,
            out=out,
            checkpoint=checkpoint_folder or checkpoint,
            device=device or "auto",
            force=force,
            note=output.note,
            progress=lambda what, done, total: move(done, total),
        )
    draw(distilled, output)
    folders = "\n".join(str(made.folder) for made in distilled.correctors)
    output.result(distilled.to_dict(), quiet=folders, human=table(output, distilled))


def draw(distilled: "Distilled", output: Output) -> None:
    """Draw the losses of each corrector beside it, where matplotlib is installed."""
    from gq.results.losses import write_losses
    from gq.results.style import INSTALL, can_draw

    if not can_draw():
        output.detail(f"no pictures of the losses: {INSTALL}")
        return
    for made in distilled.correctors:
        title = f"{distilled.task}, {made.folder.name}"
        write_losses(made.history, made.best_epoch, made.folder / "losses.png", title=title)


def table(output: Output, distilled: "Distilled") -> Any:
    """Return the errors by age, with what they are compared with and what was learnt of."""
    from rich.console import Group

    rows = []
    for made in distilled.correctors:
        for age, errors in made.errors.items():
            figures = [f"{errors[name]['rmse']:.4f}" for name in ("corrected", "plan", "policy")]
            gaps = [f"{errors[name]['value_gap']:.5f}" for name in ("corrected", "plan", "policy")]
            rows.append((made.folder.name, age, str(errors["samples"]), *figures, *gaps))
    headings = ["corrector", "age", "samples", "error", "plan's", "policy's", "value lost", "plan's", "policy's"]
    caption = (
        f"{distilled.run}, {distilled.checkpoint}, {distilled.task}: {distilled.episodes} episodes, "
        f"{distilled.decisions:,} decisions; a label's deviation over planner seeds is {distilled.label_std:.4f}, "
        f"an elite's {distilled.elite_std:.4f}"
    )
    folders = [f"{made.folder}, {made.parameters:,} parameters" for made in distilled.correctors]
    return Group(caption, output.table(headings, rows), *folders)

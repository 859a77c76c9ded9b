"""`gq distill`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.speculation.distil import Distilled
    from gq.speculation.rounds import DistillSettings

EXAMPLES = """\b
Examples:
  gq distill cartpole-swingup-tdmpc2
  gq distill --latest --arch both --rounds 1
  gq distill --latest --data runs/a/correctors/decisions.hdf5 --arch temporal
  gq distill --latest --set plan_blind=true --set train.num_epochs=20
  gq eval --latest --mode baseline,spec6
The planner drives round 0, what was learnt so far drives all further ones.
The same command continues after an interruption."""

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of corrector.json's settings; may be repeated."),
]


@dataclass(frozen=True)
class Recipe:
    """What is learnt, from how many episodes."""

    arch: Annotated[
        Literal["two-tower", "temporal", "both"], typer.Option(metavar="NAME", help="two-tower, temporal or both.")
    ] = "two-tower"
    rounds: Annotated[int | None, options.number("Rounds in which the corrector drives; default: 3.")] = None
    episodes: Annotated[int | None, options.number("Episodes of each round; default: 10.")] = None
    settings: Settings = None
    seed: Annotated[int | None, options.number("Of episodes, batches and weights; default: 0.")] = None

    def resolve(self) -> "DistillSettings":
        """Return the settings that these give; this loads torch. Raises UsageError."""
        from gq.config import with_settings
        from gq.models.corrector import ARCHITECTURES
        from gq.settings import parse_settings
        from gq.speculation.rounds import DistillSettings

        archs = ARCHITECTURES if self.arch == "both" else (self.arch,)
        flags = {"archs": archs, "rounds": self.rounds, "num_episodes": self.episodes, "train.seed": self.seed}
        stated = {key: value for key, value in flags.items() if value is not None}
        return with_settings(DistillSettings(), parse_settings(self.settings or []) | stated)


@options.grouped_as("run arch rounds episodes data checkpoint recipe device out force output")
def distill(
    *,
    run: options.ChosenRun,
    recipe: Recipe,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Learn from this file's decisions, and collect none.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For data and correctors; default: RUN/correctors.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace other data and correctors there.")] = False,
    output: Output,
) -> None:
    """Train a small network to correct plans, so that each can be executed for longer, and print its folder."""
    from gq import threads

    threads.prepare()
    from gq.speculation.distil import distill as distill_run

    with output.progress("distilling", unit="") as move:
        distilled = distill_run(
            run.folder,
            recipe.resolve(),
            run.acting(),
            data=data,
            out=out,
            force=force,
            note=output.note,
            progress=lambda what, done, total: move(done, total),
        )
    draw(distilled)
    folders = "\n".join(str(made.folder) for made in distilled.correctors)
    output.result(distilled.to_dict(), quiet=folders, human=table(output, distilled))


def draw(distilled: "Distilled") -> None:
    """Draw the losses of each corrector beside it."""
    from gq.results.figures import write_losses

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

"""`gq finetune`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from gq.cli import options
from gq.cli.launching import Launch, resumed, show_plan, show_result
from gq.cli.output import Output
from gq.cli.training_view import TrainingView, clock

if TYPE_CHECKING:
    from gq.training.online import FinetuneResult

EXAMPLES = """\b
Examples:
  gq finetune --latest                   the newest gq train odt run, online
  gq finetune runs/a --steps 50000 --rollouts 4
  gq finetune runs/a --online-target 7200 --set online.collapse=0.9
  gq finetune --out runs/b --resume      resume a run"""


@dataclass(frozen=True)
class Online:
    """What episodes and updates there are, and when they end."""

    steps: Annotated[int | None, options.number("Environment steps after which to stop; 0: no limit.")] = None
    iterations: Annotated[int | None, options.number("Stop after so many iterations.")] = None
    minutes: Annotated[float | None, options.number("Stop after so many minutes.")] = None
    rollouts: Annotated[int | None, options.number("Episodes per iteration, all at once.")] = None
    updates: Annotated[int | None, options.number("Updates per episode.")] = None
    target: Annotated[str | None, options.targets("Target returns of evaluations; default: the run's.")] = None
    online_target: Annotated[
        str | None, options.targets("Returns asked of episodes in turn; default: from --target.")
    ] = None
    dataset: options.Dataset = None
    seed: Annotated[int | None, options.number("Seed of episodes, batches and dropout.")] = None

    def flags(self) -> dict[str, Any]:
        """Return these by configuration key."""
        return {
            "online.environment_steps": self.steps,
            "online.iterations": self.iterations,
            "online.minutes": self.minutes,
            "online.rollouts": self.rollouts,
            "online.updates_per_rollout": self.updates,
            "online.targets": options.parse_numbers(self.online_target, "--online-target") or None,
            "eval.targets": options.parse_numbers(self.target, "--target") or None,
            "data.dataset": self.dataset,
            "train.seed": self.seed,
        }


@options.grouped
def finetune(
    run: options.RunName = None,
    latest: options.Latest = False,
    checkpoint: options.CheckpointName = "best",
    *,
    online: Online,
    launch: Launch,
    output: Output,
) -> None:
    """Finetune an Online Decision Transformer on its own episodes, beside the best of its dataset.

    Each iteration samples episodes at a high target, labels them with what they earned, and updates. Ctrl-C saves;
    --resume goes on exactly.
    """
    given = launch.given(online.flags())
    from gq.paths import find_run

    parent, checkpoint_folder = (
        (None, None) if launch.continues else find_run(run, latest=latest, algos=("odt", "finetune"))
    )
    from gq.config import FinetuneConfig
    from gq.learn import complete, finetune, prepare_finetuning

    out = launch.folder
    if parent:
        resolved, trajectories = prepare_finetuning(parent, checkpoint_folder or checkpoint, given)
    else:
        out, stored = resumed("finetune", None, given, out)
        assert isinstance(stored, FinetuneConfig)
        resolved, trajectories = complete(stored)
    if launch.dry_run:
        show_plan(output, resolved, out)
        return
    from gq import threads

    threads.prepare()
    with TrainingView(output, resolved) as view:
        result = finetune(resolved, out, resume=not parent, listener=view, trajectories=trajectories)
    output.note(
        f"{result.environment_steps} environment steps in {result.iterations} iterations, {result.steps} updates, "
        f"{clock(result.seconds)}"
    )
    show_result(output, result, table(output, result))


def table(output: Output, result: "FinetuneResult") -> Any:
    """Return the comparison of start and end, with the run's path under it."""
    from rich.console import Group

    if not result.comparison:
        return str(result.run)
    rows = []
    for c in result.comparison:
        rows.append(
            (
                f"{c.target_return:g}",
                interval(c.start_mean, c.start_ci95),
                interval(c.end_mean, c.end_ci95),
                interval(c.difference_mean, c.difference_ci95),
                "-" if c.start_score is None else f"{c.start_score:.1f} → {c.end_score:.1f}",
                str(c.num_episodes),
            )
        )
    headings = ["target", "offline", "online", "difference", "score", "episodes"]
    return Group(
        output.table(headings, rows),
        "Means with 95 % intervals of five episodes or more, best checkpoint, same seeds.",
        str(result.run),
    )


def interval(mean: float, ci95: tuple[float, float] | None) -> str:
    """Return a mean with its interval."""
    return f"{mean:.0f} ({ci95[0]:.0f} … {ci95[1]:.0f})" if ci95 else f"{mean:.0f}"

"""`gq eval`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.engine.evaluate import Evaluation

EXAMPLES = """\b
Examples:
  gq eval --latest                       20 episodes at each target
  gq eval hopper-v5-dt-1m --target 3600,1800 --episodes 50
  gq eval runs/a --checkpoint last --json"""


def evaluate(
    run: options.RunName = None,
    latest: options.Latest = False,
    target: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Target returns; default: those of the run.")
    ] = None,
    episodes: Annotated[int, typer.Option(metavar="N", help="Episodes per target.")] = 20,
    checkpoint: options.CheckpointName = "best",
    stochastic: options.Stochastic = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Episode i has seed SEED + i.")] = 0,
    device: options.Device = "auto",
    json_mode: options.JsonMode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Measure a run: all episodes and targets at once, fixed seeds, confidence intervals."""
    output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose, no_color=no_color, no_progress=no_progress)
    from gq.paths import find_run

    folder, checkpoint_folder = find_run(run, latest=latest)
    targets = options.parse_numbers(target, "--target")
    from gq import threads

    threads.prepare()
    from gq.engine.evaluate import evaluate as evaluate_run

    limit = options.max_steps(folder)
    with output.progress("evaluating", unit="steps") as move:
        evaluation = evaluate_run(
            folder,
            targets=targets,
            num_episodes=episodes,
            checkpoint=checkpoint_folder or checkpoint,
            seed=seed,
            stochastic=stochastic,
            device=device or "auto",
            watch=lambda step: move(step.index + 1, limit),
        )
    for warning in evaluation.warnings:
        output.warn(warning)
    means = " ".join(f"{summary.return_mean:.1f}" for summary in evaluation.results)
    output.result(evaluation.to_dict(), quiet=means, human=table(output, evaluation))


def table(output: Output, evaluation: "Evaluation") -> Any:
    """Return the results as a table with its caption."""
    from rich.console import Group

    rows = []
    for s in evaluation.results:
        low, high = s.return_ci95
        score = "-" if s.normalized_mean is None else f"{s.normalized_mean:.1f}"
        rows.append(
            (
                f"{s.target_return:g}",
                f"{s.return_mean:.0f} ± {s.return_std:.0f}",
                f"{low:.0f} … {high:.0f}",
                f"{s.return_iqm:.0f}",
                score,
                f"{s.length_mean:.0f}",
                str(s.num_episodes),
            )
        )
    reference = evaluation.reference
    score = f"score ({reference.name})" if reference else "score"
    headings = ["target", "return", "95 % interval", "IQM", score, "length", "episodes"]
    sampled = ", actions sampled" if evaluation.stochastic else ""
    caption = f"{evaluation.run}, {evaluation.checkpoint}, {evaluation.task}, trained on {evaluation.dataset}{sampled}"
    return Group(caption, output.table(headings, rows), basis(evaluation))


def basis(evaluation: "Evaluation") -> str:
    """Return the line that says what scores refer to, and which engine gave the returns."""
    engine = "mujoco {mujoco}, gymnasium {gymnasium}".format(**evaluation.versions)
    reference = evaluation.reference
    if reference is None:
        return f"No scores: there is no reference for {evaluation.task}. {engine}"
    ends = f"0 is a return of {reference.minimum:g}, 100 of {reference.maximum:g}"
    note = f". {reference.note}" if reference.note else ""
    return f"Scores by {reference.title}: {ends}{note}. {engine}"

"""`gq eval`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.results.evaluate import Evaluation

EXAMPLES = """\b
Examples:
  gq eval --latest                       20 episodes at each target
  gq eval hopper-v5-dt-1m --target 3600,1800 --episodes 50
  gq eval runs/a --checkpoint last --json
  gq eval cartpole-swingup-tdmpc2 --mode baseline,naive3,policy --episodes 10
  gq eval cartpole-swingup-tdmpc2 --mode sweep
  gq eval cartpole-swingup-tdmpc2 --mode baseline,spec6 --spec-plan-horizon 6"""


@options.grouped
def evaluate(
    run: options.RunName = None,
    latest: options.Latest = False,
    target: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Target returns; default: those of the run.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="How TD-MPC2 acts: baseline plans at every decision, naive3 plays 3 actions of each plan, spec3 "
            "corrects them, hybrid3 leaves two to its policy network, policy does not plan, ...; sweep: many of these.",
            autocompletion=options.complete_from(options.known_modes),
        ),
    ] = None,
    spec_plan_horizon: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Decisions that plans look ahead; default: the run's.")
    ] = None,
    spec_exec_horizon: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Decisions that a plan is executed for; default: the mode's.")
    ] = None,
    spec_mismatch_threshold: Annotated[
        float | None, typer.Option(metavar="D", help="Plan anew above it, in units of the mode's trigger.")
    ] = None,
    history_len: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Decisions that a corrector looks back; default: its own.")
    ] = None,
    corrector: options.CorrectorName = None,
    episodes: Annotated[int, typer.Option(metavar="N", help="Episodes per target or mode.")] = 20,
    checkpoint: options.CheckpointName = "best",
    stochastic: options.Stochastic = False,
    seed: options.EpisodeSeed = 0,
    context: Annotated[
        Literal["sliding", "blocks"] | None,
        typer.Option(
            help="What a transformer sees: always its last K steps, or up to K and then anew from K / 2, which is much "
            "faster; default: the run's eval.context."
        ),
    ] = None,
    device: options.Device = "auto",
    *,
    output: Output,
) -> None:
    """Measure a run: all episodes and targets at once, fixed seeds, confidence intervals."""
    from gq.paths import find_run

    folder, checkpoint_folder = find_run(run, latest=latest)
    targets = options.parse_numbers(target, "--target")
    from gq import threads

    threads.prepare()
    from gq.policies.loading import Acting
    from gq.results.evaluate import evaluate as evaluate_run
    from gq.rollouts.episodes import EpisodeRequest

    acting = Acting(
        checkpoint=checkpoint_folder or checkpoint,
        mode_options={
            "plan_horizon": spec_plan_horizon,
            "execution_horizon": spec_exec_horizon,
            "threshold": spec_mismatch_threshold,
            "history_length": history_len,
        },
        corrector=corrector,
        stochastic=stochastic,
        context=context,
        device=device or "auto",
    )
    limit = options.max_steps(folder)
    turn = [0, 1]  # the mode in progress, of how many

    def begin(name: str, index: int, number: int) -> None:
        turn[:] = index, number
        output.detail(f"{name}, {index + 1} of {number}")

    with output.progress("evaluating", unit="steps") as move:
        evaluation = evaluate_run(
            folder,
            acting,
            EpisodeRequest(episodes, targets, seed),
            modes=[] if mode is None else [name.strip() for name in mode.split(",")],
            watch=lambda step: move(turn[0] * limit + step.index + 1, turn[1] * limit),
            begin=begin,
        )
    for warning in evaluation.warnings:
        output.warn(warning)
    means = " ".join(f"{summary.return_mean:.1f}" for summary in evaluation.results)
    output.result(evaluation.to_dict(), quiet=means, human=table(output, evaluation))


def table(output: Output, evaluation: "Evaluation") -> Any:
    """Return the results as a table with its caption."""
    from rich.console import Group

    from gq.cli import mode_tables
    from gq.results.behaviour import ModeSummary

    modes = [result for result in evaluation.results if isinstance(result, ModeSummary)]
    if modes:
        tables = mode_tables.tables(output, modes, evaluation.frontiers)
        return Group(caption(evaluation), *tables, basis(evaluation))
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
    length = "length" if evaluation.action_repeat == 1 else "decisions"
    headings = ["target", "return", "95 % interval", "IQM", score, length, "episodes"]
    return Group(caption(evaluation), output.table(headings, rows), basis(evaluation))


def caption(evaluation: "Evaluation") -> str:
    """Return the line that says what was measured."""
    parts = [evaluation.run, evaluation.checkpoint, evaluation.task]
    if evaluation.dataset:
        parts.append(f"trained on {evaluation.dataset}")
    if evaluation.decisions is not None:
        counts = f"{evaluation.decisions:,} decisions, {evaluation.frames:,} frames"
        parts.append(f"after {counts} (action repeat {evaluation.action_repeat})")
    if evaluation.stochastic:
        parts.append("actions sampled")
    if evaluation.context == "blocks":
        parts.append("contexts in blocks")
    return ", ".join(parts)


def basis(evaluation: "Evaluation") -> str:
    """Return the line that says what scores refer to, and which engine gave the returns."""
    from gq.envs.engines import engines_of

    engine = ", ".join(f"{name} {evaluation.versions[name]}" for name in engines_of(evaluation.task))
    reference = evaluation.reference
    if reference is None:
        return f"No scores: there is no reference for {evaluation.task}. {engine}"
    ends = f"0 is a return of {reference.minimum:g}, 100 of {reference.maximum:g}"
    note = f". {reference.note}" if reference.note else ""
    return f"Scores by {reference.title}: {ends}{note}. {engine}"

"""`gq eval`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.results.behaviour import Frontier, Mismatch, ModeSummary
    from gq.results.evaluate import Evaluation
    from gq.rollouts.statistics import Summary

MAX_AGES = 6  # of plans, in the table of executions
EXAMPLES = """\b
Examples:
  gq eval --latest                       20 episodes at each target
  gq eval hopper-v5-dt-1m --target 3600,1800 --episodes 50
  gq eval runs/a --checkpoint last --json
  gq eval cartpole-swingup-tdmpc2 --mode baseline,naive3,policy --episodes 10
  gq eval cartpole-swingup-tdmpc2 --mode sweep
  gq eval cartpole-swingup-tdmpc2 --mode baseline,spec6 --spec-plan-horizon 6"""


@dataclass(frozen=True)
class ModeChanges:
    """What is changed of all modes that it concerns."""

    spec_plan_horizon: Annotated[
        int | None, options.number("Decisions that plans look ahead; default: the run's.", min=1)
    ] = None
    spec_exec_horizon: Annotated[
        int | None, options.number("Decisions that a plan is executed for; default: the mode's.", min=2)
    ] = None
    spec_mismatch_threshold: Annotated[
        float | None, typer.Option(metavar="D", help="Plan early above it, in units of the mode's trigger.")
    ] = None
    history_len: Annotated[
        int | None, options.number("Decisions that a corrector looks back; default: its own.", min=1)
    ] = None

    def by_field(self) -> dict[str, float | None]:
        """Return these by the modes' fields."""
        return {
            "plan_horizon": self.spec_plan_horizon,
            "execution_horizon": self.spec_exec_horizon,
            "threshold": self.spec_mismatch_threshold,
            "history_length": self.history_len,
        }


@options.grouped_as("run target mode changes episodes context output")
def evaluate(
    run: options.ActingRun,
    mode: Annotated[
        str | None,
        options.completed(
            "A,B",
            "How TD-MPC2 acts: baseline plans at every decision, naive3 plays 3 actions of each plan, spec3 "
            "corrects them, hybrid3 leaves two to its policy network, policy does not plan, ...; sweep: many of these.",
            options.known_modes,
        ),
    ] = None,
    context: Annotated[
        Literal["sliding", "blocks"] | None,
        typer.Option(
            help="What a transformer sees: always its last K steps, or up to K and then again from K / 2, which is "
            "much faster; default: the run's eval.context."
        ),
    ] = None,
    *,
    changes: ModeChanges,
    episodes: options.Episodes,
    output: Output,
) -> None:
    """Measure a run: all episodes and targets at once, fixed seeds, confidence intervals."""
    from gq import threads

    threads.prepare()
    wanted = episodes.request()
    from gq.results.evaluate import evaluate as evaluate_run

    limit = options.max_steps(run.folder)
    turn = [0, 1]  # the mode in progress, of how many

    def begin(name: str, index: int, number: int) -> None:
        turn[:] = index, number
        output.detail(f"{name}, {index + 1} of {number}")

    with output.progress("evaluating", unit="steps") as move:
        evaluation = evaluate_run(
            run.folder,
            run.acting(mode_options=changes.by_field(), context=context),
            wanted,
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

    from gq.results.behaviour import ModeSummary

    modes = [result for result in evaluation.results if isinstance(result, ModeSummary)]
    if modes:
        tables = mode_tables(output, modes, evaluation.frontiers)
        return Group(caption(evaluation), *tables, basis(evaluation))
    rows, reaches = [], any(s.success_rate is not None for s in evaluation.results)
    for s in evaluation.results:
        score = "-" if s.normalized_mean is None else f"{s.normalized_mean:.1f}"
        rows.append(
            (
                f"{s.target_return:g}",
                f"{s.return_mean:.0f} ± {s.return_std:.0f}",
                ends(s.return_ci95),
                f"{s.return_iqm:.0f}",
                *([f"{s.success_rate:.0%}"] if s.success_rate is not None else ["-"] * reaches),
                score,
                f"{s.length_mean:.0f}",
                str(s.num_episodes),
            )
        )
    reference = evaluation.reference
    score = f"score ({reference.name})" if reference else "score"
    length = "length" if evaluation.action_repeat == 1 else "decisions"
    headings = ["target", "return ± sd", "95 % interval", "IQM", *["success"] * reaches, score, length, "episodes"]
    return Group(caption(evaluation), output.table(headings, rows), *unseen(evaluation.results), basis(evaluation))


def unseen(results: Sequence["Summary"]) -> list[str]:
    """Return a line about falls that may have gone unseen, where there were none."""
    from gq.rollouts.intervals import unseen_share

    without = [one.num_episodes for one in results if one.return_min > one.return_mean / 2]
    if not without:
        return []
    num = min(without)
    return [f"With {num} episodes, falls in up to {unseen_share(num):.0%} of them could have gone unseen."]


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


# --- modes of a planner -----------------------------------------------------------------------------------------------


def mode_tables(output: Output, results: Sequence["ModeSummary"], frontiers: Sequence["Frontier"]) -> list[Any]:
    """Return the tables, narrow enough for a terminal, and the line that says what their columns mean."""
    parts = [return_table(output, results, frontiers), "", cost_table(output, results), ""]
    if executes_plans(results):
        parts += [execution_table(output, results), ""]
    return [*parts, legend(results, frontiers)]


def return_table(output: Output, results: Sequence["ModeSummary"], frontiers: Sequence["Frontier"]) -> Any:
    """Return the table of returns; a star marks the modes that no cheaper one equals."""
    best = frontiers[0].modes if frontiers else []
    has_scores = any(result.normalized_mean is not None for result in results)
    has_retention = any(result.retention is not None for result in results)
    has_lengths = len({result.length_mean for result in results}) > 1
    headings = ["mode", "return ± sd", "95 % interval", "IQM", *(["score"] if has_scores else [])]
    headings += [*(["kept", "95 % interval"] if has_retention else []), *(["decisions"] if has_lengths else [])]
    rows = []
    for result in results:
        row = [f"{result.label} *" if result.mode in best else result.label]
        row += [f"{result.return_mean:.0f} ± {result.return_std:.0f}", ends(result.return_ci95)]
        row += [f"{result.return_iqm:.0f}", *([number(result.normalized_mean, ".1f")] if has_scores else [])]
        row += retained(result) if has_retention else []
        rows.append([*row, *([f"{result.length_mean:.0f}"] if has_lengths else [])])
    return output.table(headings, rows)


def ends(interval: tuple[float, float] | None) -> str:
    """Return an interval in a cell."""
    return f"{interval[0]:.0f} … {interval[1]:.0f}" if interval else "-"


def retained(result: "ModeSummary") -> list[str]:
    """Return the cells about what is kept of the baseline's return, in percent."""
    low, high = result.retention_ci95 or (None, None)
    percent = [None if value is None else 100 * value for value in (result.retention, low, high)]
    return [number(percent[0], ".1f"), "-" if low is None else f"{percent[1]:.1f} … {percent[2]:.1f}"]


def cost_table(output: Output, results: Sequence["ModeSummary"]) -> Any:
    """Return the table of costs per decision."""
    headings = ["mode", "calls/step", "plans last", "missed", "nets/step", "ms p50", "p95", "p99"]
    rows = []
    for result in results:
        row = [result.label, f"{result.planner_calls_per_step:.3f}", number(result.accepted_length_mean, ".2f")]
        row += [f"{100 * result.misses_per_step:.1f} %", f"{result.model_evaluations_per_step:,.0f}"]
        times = (result.decision_ms_p50, result.decision_ms_p95, result.decision_ms_p99)
        rows.append([*row, *(number(value, ".2f") for value in times)])
    return output.table(headings, rows)


def executes_plans(results: Sequence["ModeSummary"]) -> bool:
    """Whether any mode keeps a plan for more than the decision that it was made for."""
    return any(result.settings["execution_horizon"] > 1 for result in results)


def execution_table(output: Output, results: Sequence["ModeSummary"]) -> Any:
    """Return the table of how plans were executed: what was played, and how far off they were."""
    rows = []
    for result in results:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in result.source_shares.items())
        drifts = " ".join(f"{row.drift:.2f}" for row in result.mismatch[:MAX_AGES] if row.drift is not None)
        rows.append((result.label, shares, drifts or "-", number(mean_surprise(result.mismatch), ".2f")))
    return output.table(["mode", "actions from", "drift by the plan's age", "surprise"], rows)


def mean_surprise(mismatch: Sequence["Mismatch"]) -> float | None:
    """Return the mean over all decisions of how far a latent was from what the last action was expected to lead to."""
    measured = [(row.surprise, row.decisions) for row in mismatch if row.surprise is not None]
    total = sum(decisions for _, decisions in measured)
    return sum(surprise * decisions for surprise, decisions in measured) / total if total else None


def number(value: float | None, form: str) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def legend(results: Sequence["ModeSummary"], frontiers: Sequence["Frontier"]) -> str:
    """Return the line that says what the columns mean."""
    many = max(result.decided_at_once for result in results)
    parts = [
        f"episodes of each: {results[0].num_episodes}",
        "calls of the planner and latents that networks are applied to, per decision",
        "missed: decisions in which a trigger ended a plan",
        f"ms: of a decision, without the simulator{f', {many} at once' if many > 1 else ''}",
    ]
    if any(result.retention is not None for result in results):
        parts.append("kept: of the baseline's return, in percent, paired by seeds")
    if frontiers:
        parts.append("*: nothing with as few calls or fewer returns more")
    return "; ".join(parts)

"""Tables of what ways to act earned and cost."""

from collections.abc import Sequence
from typing import Any

from gq.cli.output import Output
from gq.results.behaviour import Mismatch, ModeSummary
from gq.results.frontier import Frontier

MAX_AGES = 6  # of plans, in the table of executions


def tables(output: Output, results: Sequence[ModeSummary], frontiers: Sequence[Frontier]) -> list[Any]:
    """Return the tables, narrow enough for a terminal, and the line that says what their columns mean."""
    parts = [return_table(output, results, frontiers), "", cost_table(output, results), ""]
    if executes_plans(results):
        parts += [execution_table(output, results), ""]
    return [*parts, legend(results, frontiers)]


def return_table(output: Output, results: Sequence[ModeSummary], frontiers: Sequence[Frontier]) -> Any:
    """Return the table of returns; a star marks the modes that no cheaper one equals."""
    best = frontiers[0].modes if frontiers else []
    has_scores = any(result.normalized_mean is not None for result in results)
    has_retention = any(result.retention is not None for result in results)
    has_lengths = len({result.length_mean for result in results}) > 1
    headings = ["mode", "return", "95 % interval", "IQM", *(["score"] if has_scores else [])]
    headings += [*(["kept", "95 % interval"] if has_retention else []), *(["decisions"] if has_lengths else [])]
    rows = []
    for result in results:
        low, high = result.return_ci95
        row = [f"{result.label} *" if result.mode in best else result.label]
        row += [f"{result.return_mean:.0f} ± {result.return_std:.0f}", f"{low:.0f} … {high:.0f}"]
        row += [f"{result.return_iqm:.0f}", *([number(result.normalized_mean, ".1f")] if has_scores else [])]
        row += retained(result) if has_retention else []
        rows.append([*row, *([f"{result.length_mean:.0f}"] if has_lengths else [])])
    return output.table(headings, rows)


def retained(result: ModeSummary) -> list[str]:
    """Return the cells about what is kept of the baseline's return, in percent."""
    low, high = result.retention_ci95 or (None, None)
    percent = [None if value is None else 100 * value for value in (result.retention, low, high)]
    return [number(percent[0], ".1f"), "-" if low is None else f"{percent[1]:.1f} … {percent[2]:.1f}"]


def cost_table(output: Output, results: Sequence[ModeSummary]) -> Any:
    """Return the table of costs per decision."""
    headings = ["mode", "calls/step", "plans last", "missed", "nets/step", "ms p50", "p95", "p99"]
    rows = []
    for result in results:
        row = [result.label, f"{result.planner_calls_per_step:.3f}", number(result.accepted_length_mean, ".2f")]
        row += [f"{100 * result.misses_per_step:.1f} %", f"{result.model_evaluations_per_step:,.0f}"]
        times = (result.decision_ms_p50, result.decision_ms_p95, result.decision_ms_p99)
        rows.append([*row, *(number(value, ".2f") for value in times)])
    return output.table(headings, rows)


def executes_plans(results: Sequence[ModeSummary]) -> bool:
    """Tell whether any mode keeps a plan for more than the decision that it was made for."""
    return any(result.settings["execution_horizon"] > 1 for result in results)


def execution_table(output: Output, results: Sequence[ModeSummary]) -> Any:
    """Return the table of how plans were executed: what was played, and how far off they were."""
    rows = []
    for result in results:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in result.source_shares.items())
        drifts = " ".join(f"{row.drift:.2f}" for row in result.mismatch[:MAX_AGES] if row.drift is not None)
        rows.append((result.label, shares, drifts or "-", number(mean_surprise(result.mismatch), ".2f")))
    return output.table(["mode", "actions from", "drift by the plan's age", "surprise"], rows)


def mean_surprise(mismatch: Sequence[Mismatch]) -> float | None:
    """Return the mean over all decisions of how far a latent was from what the last action was expected to lead to."""
    measured = [(row.surprise, row.decisions) for row in mismatch if row.surprise is not None]
    total = sum(decisions for _, decisions in measured)
    return sum(surprise * decisions for surprise, decisions in measured) / total if total else None


def number(value: float | None, form: str) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def legend(results: Sequence[ModeSummary], frontiers: Sequence[Frontier]) -> str:
    """Return the line that says what the columns mean."""
    many = max(result.decided_at_once for result in results)
    parts = [
        f"episodes of each: {results[0].num_episodes}",
        "calls of the planner and latents that networks are applied to, per decision",
        "missed: decisions in which a trigger asked for a plan",
        f"ms: of a decision, without the simulator{f', {many} at once' if many > 1 else ''}",
    ]
    if any(result.retention is not None for result in results):
        parts.append("kept: of the baseline's return, in percent, paired by seeds")
    if frontiers:
        parts.append("*: nothing with as few calls or fewer returns more")
    return "; ".join(parts)

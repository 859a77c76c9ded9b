"""The numbers on a run's card: what `gq eval` wrote, what training logged, what finetuning and distilling measured."""

from pathlib import Path
from typing import Any

from gq.config import RunConfig, TDMPC2Config
from gq.errors import GqError
from gq.paths import read_json
from gq.rollouts.statistics import Summary
from gq.runs.checkpoint import pointed
from gq.runs.evaluations import EvaluationRow, read_evaluations
from gq.runs.folder import SELECTION_SEED
from gq.runs.metrics import last_evaluation

COMPARISON_FILE = "comparison.json"


def stored_rows(run: Path) -> list[tuple[EvaluationRow, Summary]]:
    """Return a result per checkpoint, seed, context and way to act: the one of most episodes, the newest of those."""
    evaluations = read_evaluations(run)
    chosen: dict[tuple[Any, ...], EvaluationRow] = {}
    for row in sorted(evaluations.rows, key=lambda row: row.file):
        key = (*row.protocol, row.episodes[0].seed, row.way)
        if key not in chosen or len(row.episodes) >= len(chosen[key].episodes):
            chosen[key] = row
    return [(row, row.summary(evaluations.reference)) for row in chosen.values()]


def way_text(row: EvaluationRow) -> str:
    """Return how the policy acted: its target return or its mode, and what is not as usual."""
    text = f"mode {row.way.mode}" if row.way.mode else f"target {row.way.label}" if row.way.target is not None else ""
    parts = [text, "sampled" * row.stochastic, "contexts in blocks" * (row.context == "blocks")]
    return ", ".join(filter(None, parts))


def checkpoint_text(run: Path, name: str) -> str:
    """Return a checkpoint's name with what it is: the best, the last."""
    known = [which for which in ("best", "last") if pointed(run, which) == name]
    return f"{name} ({', '.join(known)})" if known else name


def evaluation_lines(run: Path) -> list[str]:
    """Return the table of all evaluations with their protocol; empty where there are none."""
    rows = stored_rows(run)
    if not rows:
        return []
    lines = [
        "| checkpoint | policy | return | 95 % interval | IQM | score | length | episodes | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, result in rows:
        low, high = result.return_ci95
        score = "-" if result.normalized_mean is None else f"{result.normalized_mean:.1f}"
        score += f" ({result.reference})" if result.reference else ""
        cells = [
            checkpoint_text(run, row.checkpoint),
            way_text(row) or "-",
            f"{result.return_mean:.0f} ± {result.return_std:.0f}",
            f"{low:.0f} to {high:.0f}",
            f"{result.return_iqm:.0f}",
            score,
            f"{result.length_mean:.0f}",
            str(result.num_episodes),
            f"{row.episodes[0].seed} to {row.episodes[-1].seed}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *protocol_lines([row for row, _ in rows])]


def protocol_lines(rows: list[EvaluationRow]) -> list[str]:
    """Return how the numbers were measured."""
    engines = sorted({f"{k} {v}" for row in rows for k, v in row.versions.items() if k not in ("gq", "python")})
    warnings = dict.fromkeys(warning for row in rows for warning in row.warnings)
    return [
        "Every episode that began counts; each has the seed given, whatever else ran beside it. ± is the standard "
        "deviation over episodes, intervals are bootstrapped over the episodes of this one training run, so they say "
        "nothing about other training seeds. The best checkpoint was chosen on other episodes (seeds from "
        f"{SELECTION_SEED}). A score of 0 is a random policy, 100 the named reference's good one. "
        f"Measured with {', '.join(engines)}.",
        *(f"Note: {warning}." for warning in warnings),
    ]


def index_entries(run: Path, config: RunConfig) -> list[dict[str, Any]]:
    """Return the evaluations as results of the Hub's model-index."""
    entries = []
    for row, result in stored_rows(run):
        how = ", ".join(filter(None, [way_text(row), row.checkpoint]))
        of = f"{result.num_episodes} episodes from seed {row.episodes[0].seed}"
        value = f"{result.return_mean:.2f} +/- {result.return_std:.2f}"
        metrics = [{"type": "mean_reward", "name": f"mean return over {of}", "value": value, "verified": False}]
        if result.normalized_mean is not None:
            name = f"score by {result.reference}"
            score = round(result.normalized_mean, 2)
            metrics.append({"type": "normalized_score", "name": name, "value": score, "verified": False})
        entries.append(
            {
                "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
                "dataset": {"name": config.task, "type": config.task, "config": f"{how}, {of}"},
                "metrics": metrics,
            }
        )
    return entries


def training_lines(run: Path, config: RunConfig) -> list[str]:
    """Return the last evaluation while training, which chose the best checkpoint and so flatters it."""
    record = last_evaluation(run / "metrics.jsonl")
    if not record:
        return []
    found: dict[str, dict[str, float | None]] = {}
    for key, value in record.items():
        way, _, what = key.removeprefix("eval/").rpartition("/")
        if key.startswith("eval/") and what in ("return_mean", "return_std", "length_mean", "policy_return_mean"):
            found.setdefault(way, {})[what] = value
    rows = []
    for way, numbers in found.items():
        label = way.replace("target_", "target ") or ("planning" if isinstance(config, TDMPC2Config) else "-")
        spread = f" ± {numbers['return_std']:.0f}" if numbers.get("return_std") is not None else ""
        if numbers.get("return_mean") is not None:
            rows.append(f"| {label} | {numbers['return_mean']:.0f}{spread} |")
        if numbers.get("policy_return_mean") is not None:
            rows.append(f"| the policy alone | {numbers['policy_return_mean']:.0f} |")
    return [
        "",
        f"The last evaluation while training (update {record['step']:,}), over {config.eval.num_episodes} episodes of "
        "those that choose the best checkpoint:",
        "",
        "| policy | return |",
        "|---|---|",
        *rows,
    ]


def comparison_lines(run: Path) -> list[str]:
    """Return what finetuning changed, measured on episodes that chose nothing."""
    try:
        rows = read_json(run / COMPARISON_FILE)["targets"]
        lines = [
            f"| {row['target_return']:g} | {row['start_mean']:.0f} | {row['end_mean']:.0f} | "
            f"{row['difference_mean']:.0f} ({row['difference_ci95'][0]:.0f} to {row['difference_ci95'][1]:.0f}) | "
            f"{row['num_episodes']} |"
            for row in rows
        ]
    except (GqError, KeyError, TypeError):
        return []
    return [
        "",
        "What finetuning changed, best checkpoint against the start on the same seeds, from 0:",
        "",
        "| target | before | after | difference (95 %) | episodes |",
        "|---|---|---|---|---|",
        *lines,
    ]


def corrector_lines(run: Path) -> list[str]:
    """Return what the run's correctors were measured to do on episodes that they did not learn from."""
    rows = []
    for file in sorted((run / "correctors").glob("*/corrector.json")):
        try:
            document = read_json(file)
            errors = document["metrics"]["errors"]["all"]
            figures = [f"{errors[name]['rmse']:.4f}" for name in ("corrected", "plan", "policy")]
            cells = [file.parent.name, document["checkpoint"], f"{document['parameters']:,}", *figures]
            rows.append(f"| {' | '.join([*cells, str(errors['samples'])])} |")
        except (GqError, KeyError, TypeError):
            continue
    if not rows:
        return []
    return [
        "",
        "Correctors of its plans (`gq eval --mode spec3`), and the error of their actions on episodes that they did "
        "not learn from, beside that of the uncorrected plan and of the policy network:",
        "",
        "| corrector | teacher | parameters | corrected | plan | policy | samples |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]

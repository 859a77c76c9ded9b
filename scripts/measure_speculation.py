"""Measure every way to execute plans on runs of TD-MPC2, with paired episodes, and write the tables.

    python scripts/measure_speculation.py RUN... --out FOLDER --episodes 30
    python scripts/measure_speculation.py RUN... --out FOLDER --docs docs/speculation.md

Each row, which is a mode and perhaps a corrector, has a file of its own in FOLDER/RUN/, so that an
interrupted one continues with the missing rows; a row measured with other weights, seeds or settings is measured again.
All correctors of a run are rows; gq distill makes them. Episode i of each row has seed SEED + i. Times are taken apart
from returns: modes alternately, in short episodes, several rounds, so that other work on the machine slows all alike.
Written are FOLDER/speculation.json, FOLDER/speculation.md and, between its markers, the file named by --docs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gq import threads

threads.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from gq.envs.engines import versions  # noqa: E402
from gq.files import sha256, write_json, write_text  # noqa: E402
from gq.paths import read_json  # noqa: E402
from gq.planning import acting  # noqa: E402
from gq.planning.modes import resolve_mode  # noqa: E402
from gq.policies.correctors import correctors_folder, known_correctors  # noqa: E402
from gq.policies.loading import Acting, LoadedRun, act_in, load_run  # noqa: E402
from gq.results.behaviour import (  # noqa: E402
    ModeSummary,
    Point,
    best,
)
from gq.results.evaluate import play_and_log, summarise_mode  # noqa: E402
from gq.rollouts.episodes import Start  # noqa: E402
from gq.rollouts.statistics import retention  # noqa: E402

BEGIN, END = "<!-- begin: scripts/measure_speculation.py -->", "<!-- end -->"
WANTED_RETENTION, WANTED_CALLS = 0.98, 0.4  # of the baseline's
NUM_LATENCY_ROUNDS, LATENCY_DECISIONS, LATENCY_WARM_UP = 5, 80, 5
FOREVER = 100_000  # decisions, longer than any episode
MODES = {
    "the planner at every decision": ("baseline", "baselineh6"),
    "the policy alone": ("policy",),
    "open loop": ("naive2", "naive3", "naive6", "naive6h6", "naive12h6"),
    "hybrid": ("hybrid2", "hybrid3", "hybrid6", "hybrid12", "hybrid6h6", "hybrid12h6"),
    "triggers": (
        *(f"naive6h6+raw@{threshold}" for threshold in (0.1, 0.25, 0.5, 1)),
        *(f"naive6h6+response@{threshold}" for threshold in (0.5, 1, 2, 4)),
        *(f"naive12h6+response@{threshold}" for threshold in (0.5, 1, 2)),
        *(f"hybrid12+response@{threshold}" for threshold in (1, 2)),
    ),
    "warm refinement": ("refine3", "refine6", "refine12"),
    "beam search": ("beam", "beam@0.5"),
}


@dataclass(frozen=True)
class Row:
    """A way to act."""

    section: str
    mode: str
    corrector: str | None = None

    @property
    def name(self) -> str:
        """What tells it apart from others, also as a file's name."""
        return self.mode if self.corrector is None else f"{self.mode}.{self.corrector}"


def rows_of(run: Path) -> list[Row]:
    """Return the rows of a run: all modes, and each of its correctors in those that need one."""
    rows = [Row(section, mode) for section, modes in MODES.items() for mode in modes]
    for name in known_correctors(run):
        document = read_json(correctors_folder(run) / name / "corrector.json")
        horizon, is_main = document["plan_horizon"], name in ("two-tower", "temporal")
        modes = ["spec3", "spec6", "spec3+never", "spec6+never"]
        modes += ["spec6@0.25", "spec6@1", "spec6+response@1", "spec12+never"] if is_main else []
        rows += [Row("correctors", with_horizon(mode, horizon), name) for mode in modes]
        if document["model"]["plan_blind"]:  # one plan an episode, and then the network alone
            rows.append(Row("amortised planner", with_horizon(f"spec{FOREVER}+never", horizon), name))
    return rows


def with_horizon(mode: str, horizon: int) -> str:
    """Return a mode whose plans look so far ahead: `spec3@1` with 6 is `spec3h6@1`."""
    base = mode.split("+")[0].split("@")[0]
    return f"{base}h{horizon}{mode.removeprefix(base)}"


class Measurement:
    """One run, row by row."""

    def __init__(self, run: Path, folder: Path, *, checkpoint: str, num_episodes: int, seed: int, device: str) -> None:
        self.run, self.folder = run, folder / run.name
        self.loaded = load_run(run, Acting(checkpoint=checkpoint, device=device))
        assert self.loaded.planner, f"{run} has no planner"
        self.starts = [Start(seed + index) for index in range(num_episodes)]
        self.request = {
            "weights": sha256(self.loaded.checkpoint / "model.safetensors"),
            "episodes": num_episodes,
            "seed": seed,
            "device": str(next(self.loaded.model.parameters()).device.type),
            "versions": versions(),
        }

    def act(self, row: Row, *, block_size: int) -> LoadedRun:
        """Return the run, acting as a row says."""
        acting = replace(self.loaded.acting, corrector=row.corrector)
        return act_in(replace(self.loaded, acting=acting), resolve_mode(row.mode), block_size=block_size)

    def request_of(self, row: Row) -> dict[str, Any]:
        """Return all that a row's figures depend on."""
        file = correctors_folder(self.run) / str(row.corrector) / "model.safetensors"
        settings = asdict(resolve_mode(row.mode))
        return self.request | {"settings": settings, "corrector": sha256(file) if row.corrector else None}

    def measure(self, row: Row) -> dict[str, Any]:
        """Return a row's figures, measured now unless they are there."""
        file, request = self.folder / f"{row.name}.json", self.request_of(row)
        if file.is_file() and (known := json.loads(file.read_text()))["request"] == request:
            return known
        is_on_cpu = self.request["device"] == "cpu"
        way = self.act(row, block_size=1 if is_on_cpu else 0)
        episodes, log = play_and_log(way, self.starts)
        summary: ModeSummary = summarise_mode(way, episodes, log)
        returns = [episode.episode_return for episode in episodes]
        document = {"request": request, "row": asdict(row), "returns": returns, "summary": asdict(summary)}
        write_json(file, document)
        return document

    def latencies(self, rows: list[Row]) -> dict[str, dict[str, list[float]]]:
        """Return milliseconds of each row's decisions with and without a plan, taken alternately, or as stored."""
        file = self.folder / "latency.json"
        clock = acting.perf_counter.__name__
        request = {"rows": [self.request_of(row) for row in rows], "threads": torch.get_num_threads(), "clock": clock}
        if file.is_file() and (known := json.loads(file.read_text()))["request"] == request:
            return known["milliseconds"]
        ways = {row.name: self.act(row, block_size=1) for row in rows}
        times: dict[str, dict[str, list[float]]] = {name: {"planned": [], "other": []} for name in ways}
        for index in range(NUM_LATENCY_ROUNDS):
            for name, way in ways.items():
                start = Start(self.starts[0].seed + index)
                _, log = play_and_log(way, [start], max_steps=LATENCY_DECISIONS)
                milliseconds = log.column("milliseconds", start=LATENCY_WARM_UP)
                planned = log.column("planned", start=LATENCY_WARM_UP) > 0
                times[name]["planned"] += milliseconds[planned].tolist()
                times[name]["other"] += milliseconds[~planned].tolist()
        write_json(file, {"request": request, "milliseconds": times})
        return times


def figures(document: dict[str, Any], baseline: np.ndarray, times: dict[str, list[float]]) -> dict[str, Any]:
    """Return what the tables show of a row.

    Args:
        baseline: its returns [episodes].
        times: milliseconds of decisions with and without a plan; they count by how often each was in the episodes.
    """
    summary, returns = document["summary"], np.array(document["returns"])
    kept = retention(returns, baseline)
    calls = summary["planner_calls_per_step"]
    values = np.array([*times["planned"], *times["other"]])
    shares = [(calls, len(times["planned"])), (1 - calls, len(times["other"]))]
    weights = np.concatenate([np.full(num, share / max(num, 1)) for share, num in shares])
    mean, p50, p95, p99 = weighted(values, weights)
    return {
        **document["row"],
        **{name: summary[name] for name in ("return_mean", "return_std", "return_ci95", "return_iqm")},
        "retention": kept[0] if kept else None,
        "retention_ci95": kept[1] if kept else None,
        **{name: summary[name] for name in ("planner_calls_per_step", "model_evaluations_per_step", "misses_per_step")},
        "ms": {"mean": mean, "p50": p50, "p95": p95, "p99": p99, "typical": typical(calls, times)},
        **{name: summary[name] for name in ("accepted_length_mean", "source_shares", "mismatch", "settings")},
    }


def typical(calls: float, times: dict[str, list[float]]) -> float:
    """Return the mean time of a decision if all with a plan take the median of those, and likewise all others.

    Other work on the machine moves it less than the mean.
    """
    medians = {kind: float(np.median(values)) if values else 0.0 for kind, values in times.items()}
    return calls * medians["planned"] + (1 - calls) * medians["other"]


def weighted(values: np.ndarray, weights: np.ndarray) -> list[float]:
    """Return the mean and the 50th, 95th and 99th percentile of values with weights."""
    order = np.argsort(values)
    heights = np.cumsum(weights[order]) / weights.sum()
    ranks = np.searchsorted(heights, [0.5, 0.95, 0.99]).clip(max=len(values) - 1)
    return [float(values @ weights / weights.sum()), *values[order][ranks].tolist()]


def latency_share(row: dict[str, Any], baseline: dict[str, Any]) -> float | None:
    """Return what share of the saved planner calls is saved time; None where hardly any are saved."""
    saved = 1 - row["planner_calls_per_step"] / baseline["planner_calls_per_step"]
    return None if saved < 0.1 else (1 - row["ms"]["typical"] / baseline["ms"]["typical"]) / saved


def table_of(measured: dict[str, Any]) -> str:
    """Return the tables of a run as Markdown."""
    rows = measured["rows"]
    baseline = next(row for row in rows if row["mode"] == "baseline")
    points = [Point(name_of(row), "", row["planner_calls_per_step"], row["return_mean"]) for row in rows]
    winners = {point.mode for point in best(points)}
    lines = [
        f"### {measured['task']}, {measured['run']} ({measured['checkpoint']}, {measured['episodes']} episodes)",
        "",
    ]
    head = ["mode", "return (95 %)", "IQM", "kept % (95 %)", "calls", "nets", "ms", "p50", "p95", "p99", "time/calls"]
    lines += [" | ".join(["", *head, "plans last", "actions from", "drift 1, 2, 3, …", ""]).strip()]
    lines += ["|" + "---|" * (len(head) + 3)]
    section = ""
    for row in rows:
        if row["section"] != section:
            section = row["section"]
            lines.append(f"| *{section}* |" + " |" * (len(head) + 2))
        lines.append(line_of(row, baseline, is_winner=name_of(row) in winners))
    return "\n".join(lines)


def name_of(row: dict[str, Any]) -> str:
    """Return what a row is called in tables."""
    return f"{row['mode']}, {row['corrector']}" if row["corrector"] else row["mode"]


def line_of(row: dict[str, Any], baseline: dict[str, Any], *, is_winner: bool) -> str:
    """Return a row of a table; what no row with as few calls surpasses is bold."""
    (low, high), kept = row["return_ci95"], "-"
    if row["retention"] is not None:
        ends = " … ".join(f"{100 * end:.1f}" for end in row["retention_ci95"])
        kept = f"{100 * row['retention']:.1f} ({ends})"
    name = f"**{name_of(row)}**" if is_winner else name_of(row)
    share, length = latency_share(row, baseline), row["accepted_length_mean"]
    cells = [name, f"{row['return_mean']:.1f} ({low:.1f} … {high:.1f})", f"{row['return_iqm']:.1f}", kept]
    cells += [f"{row['planner_calls_per_step']:.3f}", f"{row['model_evaluations_per_step']:,.0f}"]
    cells += [f"{row['ms'][name]:.2f}" for name in ("mean", "p50", "p95", "p99")]
    cells += ["-" if share is None else f"{100 * share:.0f} %", "-" if length is None else f"{length:.2f}"]
    cells.append(", ".join(f"{name} {100 * part:.0f} %" for name, part in row["source_shares"].items()))
    drifts = [f"{one['drift']:.3f}" for one in row["mismatch"][:6] if one["drift"] is not None]
    return "| " + " | ".join([*cells, ", ".join(drifts) or "-"]) + " |"


def summary_of(runs: list[dict[str, Any]]) -> str:
    """Return the table of modes that all runs have: what each keeps for which share of calls, the best first."""
    shared = [name_of(row) for row in runs[0]["rows"]]
    by_run = [{name_of(row): row for row in run["rows"]} for run in runs]
    shared = [name for name in shared if all(name in rows and rows[name]["retention"] is not None for rows in by_run)]
    entries = [
        (
            min(rows[name]["retention"] for rows in by_run),
            max(rows[name]["planner_calls_per_step"] for rows in by_run),
            name,
        )
        for name in shared
    ]
    good = sorted((entry for entry in entries if entry[1] <= WANTED_CALLS), reverse=True)
    lines = [
        f"Modes with at most {WANTED_CALLS:g} planner calls per decision on every run, by what they keep of the"
        f" baseline's return on the worst one (wanted: {100 * WANTED_RETENTION:.0f} %):",
        "",
        "| mode | kept on the worst % | "
        + " | ".join(f"{run['task']}, {run['run']}: kept %, calls" for run in runs)
        + " |",
        "|" + "---|" * (2 + len(runs)),
    ]
    for worst, _, name in good:
        cells = [f"{100 * rows[name]['retention']:.1f}, {rows[name]['planner_calls_per_step']:.3f}" for rows in by_run]
        mark = "**" if worst >= WANTED_RETENTION else ""
        lines.append(f"| {mark}{name}{mark} | {100 * worst:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def legend(runs: list[dict[str, Any]]) -> str:
    """Return what the columns mean."""
    engines = ", ".join(f"{name} {version}" for name, version in runs[0]["versions"].items())
    clock = "CPU time" if runs[0]["clock"] == "process_time" else "time"
    return (
        f"Bold in the first table: kept {100 * WANTED_RETENTION:.0f} % everywhere; in the others: no row with as few"
        " planner calls or fewer returned more. kept: share of the baseline's mean return, with"
        " the 95 % interval of a bootstrap paired by seeds. calls: planner calls per decision. nets: latents that a"
        f" network is applied to, per decision. ms: milliseconds of {clock} per decision without the"
        " simulator; its mean and percentiles are of decisions taken alternately with all other rows. time/calls: the"
        " share of time saved (by the median times of decisions with and without a plan), over the share of planner"
        " calls saved. drift: distance of the latent from the plan's, by the plan's age."
        f" {engines}; {runs[0]['threads']} threads, {runs[0]['device']}."
    )


def measure_run(run: Path, arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all rows of a run."""
    one = Measurement(
        run,
        arguments.out,
        checkpoint=arguments.checkpoint,
        num_episodes=arguments.episodes,
        seed=arguments.seed,
        device=arguments.device,
    )
    rows = [
        row
        for row in rows_of(run)
        if (not arguments.only or row.mode in ("baseline", *arguments.only))
        and (not arguments.measured or (one.folder / f"{row.name}.json").is_file())
    ]
    documents = {}
    for index, row in enumerate(rows):
        documents[row.name] = one.measure(row)
        summary = documents[row.name]["summary"]
        what = f"return {summary['return_mean']:.1f}, {summary['planner_calls_per_step']:.3f} calls"
        say(f"{run.name} {index + 1}/{len(rows)} {row.name}: {what}")
    times = one.latencies(rows)
    baseline = np.array(documents["baseline"]["returns"])
    return {
        "run": run.name,
        "task": one.loaded.config.task,
        "checkpoint": one.loaded.checkpoint.name,
        "episodes": arguments.episodes,
        "seed": arguments.seed,
        "device": one.request["device"],
        "threads": torch.get_num_threads(),
        "clock": acting.perf_counter.__name__,
        "versions": one.request["versions"],
        "rows": [figures(documents[row.name], baseline, times[row.name]) for row in rows],
    }


def insert(text: str, tables: str) -> str:
    """Return a document with the tables between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"the document has no markers {BEGIN} and {END}")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where figures are kept")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="a document to put the tables into")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1000, help="episode i has SEED + i")
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", metavar="MODE", help="these modes, and the baseline")
    parser.add_argument("--measured", action="store_true", help="no row that has not been measured yet")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time decisions by the process's own clock, on a shared machine"
    )
    return parser.parse_args()


def main() -> None:
    """Measure all runs, one after the other, and write what there is."""
    arguments = parse_arguments()
    if arguments.cpu_time:
        acting.perf_counter = time.process_time
    runs = [measure_run(run, arguments, lambda text: print(text, flush=True)) for run in arguments.runs]
    write_json(arguments.out / "speculation.json", runs)
    tables = "\n\n".join([summary_of(runs), *(table_of(run) for run in runs), legend(runs)])
    write_text(arguments.out / "speculation.md", tables + "\n")
    if arguments.docs:
        write_text(arguments.docs, insert(arguments.docs.read_text(encoding="utf-8"), tables))


if __name__ == "__main__":
    main()

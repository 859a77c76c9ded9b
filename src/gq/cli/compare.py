"""`gq compare`."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.results.compare import RunComparison
    from gq.rollouts.statistics import PairedComparison, Side
    from gq.runs.evaluations import Evaluations

EXAMPLES = """\b
Examples:
  gq compare runs/a runs/b               on the same episode seeds
  gq compare hopper-v5-dt hopper-v5-bc --target 3000 --episodes 50
  gq compare sizes --by optim.learning_rate   pairs of a sweep's runs
  gq compare runs/a/checkpoints/step-000001000 runs/a --checkpoint last
A and B are ids of runs, unique prefixes of them, or paths to runs or to
checkpoints in them. Evaluations on record are used where seeds pair up."""


@dataclasses.dataclass(frozen=True)
class Episodes(options.Episodes):
    """Which episodes are compared."""

    target: Annotated[str | None, options.targets("Target returns of both; default: those of the runs.")] = None
    episodes: Annotated[int | None, options.number("Episodes per target; default: all on record, at least 20.")] = None


@options.grouped_as("a b by target episodes checkpoint seed device output")
def compare(
    a: Annotated[str, options.completed("A", "A run, or a sweep with --by.", options.known_runs, kind=typer.Argument)],
    b: Annotated[str | None, options.completed("B", "A run.", options.known_runs, kind=typer.Argument)] = None,
    by: Annotated[
        str | None, typer.Option(metavar="KEY", help="A is a sweep: compare the values of this setting.")
    ] = None,
    checkpoint: options.CheckpointName = "best",
    device: options.Device = "auto",
    *,
    episodes: Episodes,
    output: Output,
) -> None:
    """Say which of two runs is better, and how sure that is: paired by episode seed, with an interval."""
    if (by is None) == (b is None):
        raise UsageError("two runs are compared, or a sweep --by a setting", hint="gq compare A B")
    if by is not None:
        compare_sweep(output, a, by)
        return
    from gq.paths import find_run

    assert b is not None
    first, second = find_run(a), find_run(b)
    from gq import threads

    threads.prepare()
    wanted = episodes.request()
    from gq.policies.loading import Acting
    from gq.results.compare import compare_runs

    with output.progress("evaluating", unit="steps") as move:
        comparison = compare_runs(
            first,
            second,
            Acting(checkpoint=checkpoint, device=device or "auto"),
            wanted,
            begin=lambda run, number: output.detail(f"running {number} episodes of {run.name}"),
            watch=lambda step: move(step.index + 1, None),
        )
    for note in comparison.notes:
        output.note(f"note: {note}")
    words = " ".join(result.verdict for result in comparison.results)
    output.result(document(comparison), quiet=words, human=table(output, comparison))


def compare_sweep(output: Output, name: str, key: str) -> None:
    """Print what a setting does over a sweep."""
    from gq.sweeps.compare import compare_by
    from gq.sweeps.folder import read_sweep

    found = compare_by(read_sweep(name), key)
    for note in found.notes:
        output.note(f"note: {note}")
    rows = [
        (
            f"{one.value}",
            f"{one.mean:.1f}",
            f"{one.baseline_mean:.1f}",
            f"{one.difference:+.1f}",
            "-" if one.interval is None else f"{one.interval[0]:+.1f} … {one.interval[1]:+.1f}",
            str(one.num_pairs),
        )
        for one in found.comparisons
    ]
    first = f"{key} = {found.comparisons[0].baseline}"
    headings = [key, "return", f"with {first}", "difference", "95 % interval", "pairs"]
    quiet = "\n".join(f"{row[0]} {row[3]}" for row in rows)
    output.result(dataclasses.asdict(found), quiet=quiet, human=output.table(headings, rows))


def document(comparison: "RunComparison") -> dict[str, Any]:
    """Return everything as plain values."""
    from gq.results.compare import outlook, sentence

    results = [
        dataclasses.asdict(result)
        | {"sentence": sentence(result, superior(comparison, result)), "outlook": outlook(result)}
        for result in comparison.results
    ]
    return {
        "task": comparison.a.task,
        "a": described(comparison.a),
        "b": described(comparison.b),
        "results": results,
        "episodes_run": comparison.num_run,
        "reference": dataclasses.asdict(comparison.reference) if comparison.reference else None,
        "engines": comparison.engines,
        "notes": comparison.notes,
    }


def superior(comparison: "RunComparison", result: "PairedComparison") -> str:
    """Return what to call a higher return: better only where no more was asked for in another line."""
    asked = [max(one.a.target_return or 0.0, one.b.target_return or 0.0) for one in comparison.results]
    mine = max(result.a.target_return or 0.0, result.b.target_return or 0.0)
    return "is better" if mine == max(asked) else "returns more"


def described(side: "Evaluations") -> dict[str, Any]:
    """Return which run and checkpoint one of the two is."""
    return {"run": side.run.name, "path": str(side.run), "checkpoint": checkpoint_of(side), "algo": side.algo}


def table(output: Output, comparison: "RunComparison") -> Any:
    """Return what people see: who A and B are, the numbers, a verdict for each line."""
    from rich.console import Group

    from gq.results.compare import outlook, sentence

    rows = [row_of(result) for result in comparison.results]
    headings = ["target", "A", "B", "B - A", "95 % interval", "A higher", "B higher", "episodes"]
    if not any(row[0] for row in rows):
        headings, rows = headings[1:], [row[1:] for row in rows]
    verdicts = []
    for result, row in zip(comparison.results, rows, strict=True):
        where = f"target {row[0]}: " if len(rows) > 1 else ""
        verdicts += [
            f"{where}{sentence(result, superior(comparison, result))}.",
            *([f"  {more}."] if (more := outlook(result)) else []),
        ]
    task = comparison.a.task
    names = [f"{letter}  {label(side)}, {task}" for letter, side in (("A", comparison.a), ("B", comparison.b))]
    engines = ", ".join(f"{name} {version}" for name, version in comparison.engines.items())
    basis = f"Same seeds, deterministic, mean returns; {comparison.num_run} episodes run for it. {engines}"
    return Group(*names, output.table(headings, rows), *verdicts, basis)


def label(side: "Evaluations") -> str:
    """Return a run and its checkpoint."""
    return f"{side.run.name}, {checkpoint_of(side)}"


def checkpoint_of(side: "Evaluations") -> str:
    """Return a checkpoint's name."""
    assert side.checkpoint
    return side.checkpoint.name


def row_of(result: "PairedComparison") -> tuple[str, ...]:
    """Return a line of the table."""
    from gq.results.compare import rounded

    scale = result.half_width
    interval = "-"
    if result.difference_ci95:
        interval = " … ".join(rounded(end, scale) for end in result.difference_ci95)
    return (
        targets_of(result.a, result.b),
        rounded(result.a.return_mean, scale),
        rounded(result.b.return_mean, scale),
        rounded(result.difference_mean, scale),
        interval,
        str(result.a_wins),
        str(result.b_wins),
        str(result.num_episodes),
    )


def targets_of(a: "Side", b: "Side") -> str:
    """Return what the two were asked for, once where it is the same."""
    asked = [f"{side.target_return:g}" for side in (a, b) if side.target_return is not None]
    return " and ".join(dict.fromkeys(asked))

"""`gq repair`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.repair.drift import DriftReport
    from gq.repair.findings import Finding
    from gq.repair.repair import RepairReport

EXAMPLES = """\b
Examples:
  gq repair hopper                       a dataset in the cache
  gq repair hopper_medium.hdf5           any file, also a damaged one
  gq repair old.hdf5 --apply -o good.hdf5
  gq repair replay.hdf5 --apply -o good.hdf5 --fragments keep
  gq repair hopper --replay 5            is it this simulator's physics?

Findings are problems or notes. Notes are facts of healthy files: actions on
the bound, constant columns, an unfinished episode at the end that readers
leave out. Exit code 0: no problem, or a repaired copy was written; 1:
problems remain, or there was nothing to write.

--fragments says what becomes of pieces of episodes, whose returns-to-go are
too low: drop leaves them out; keep ends them with a timeout and marks their
rows in the dataset `fragments`; bootstrap also writes, in `bootstrap_values`,
an estimate of the return that came after them, from similar states of whole
episodes. Training uses neither by itself."""


@dataclass(frozen=True)
class Copy:
    """The repaired copy that is asked for."""

    apply: Annotated[bool, typer.Option("--apply", help="Write a repaired copy, and a report beside it.")] = False
    out: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the copy goes.")] = None
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and FILE, if they are there.")] = False
    fragments: Annotated[
        Literal["drop", "keep", "bootstrap"], typer.Option(help="What becomes of pieces of episodes; see below.")
    ] = "drop"


@options.grouped
def repair(
    dataset: Annotated[
        str,
        options.completed("ID|FILE", "A dataset in the cache, or a file.", options.known_datasets, kind=typer.Argument),
    ],
    *,
    copy: Copy,
    task: options.TaskName = None,
    simulate: Annotated[
        Literal["auto", "all", "off"],
        typer.Option(help="Replay suspicious steps in the simulator, all steps, or none."),
    ] = "auto",
    replay: Annotated[
        int | None, options.number("Replay N episodes: are they this simulator's physics?", min=1)
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the histograms into a .png, .svg or .pdf.")
    ] = None,
    output: Output,
) -> None:
    """Say what is wrong with a dataset, and write a copy without it. The original is never changed."""
    from gq.errors import UsageError

    if copy.apply != (copy.out is not None):
        hint = f"gq repair {shlex.quote(dataset)} --apply -o OUT.hdf5"
        raise UsageError("--apply and -o belong together" if copy.apply else "-o says where --apply writes", hint=hint)
    if png is not None:
        from gq.results.style import check_name

        check_name(png)
        options.refuse_existing(png, force=copy.force)
    from gq.repair.repair import repair as repair_dataset

    with output.progress("examining", unit="steps") as move:
        report = repair_dataset(
            dataset,
            task=task,
            output=copy.out,
            force=copy.force,
            fragments=copy.fragments,
            simulate=simulate,
            progress=lambda what, done, total: move(done, total),
        )
    document, text = report.document(), _describe(report, verbose=bool(output.verbose))
    if png is not None:
        _draw(report, png)
        output.note(f"wrote {png}")
    if replay is not None:
        drift = _measure_drift(report, dataset, task, replay)
        document["drift"] = drift.document()
        text = "\n".join([text, "", *drift.summary()])
    output.result(document, quiet=report.output or " ".join(f.code for f in report.problems), human=text)
    if report.problems and report.output is None:
        if report.layout:
            output.note(f"hint: write a repaired copy: gq repair {shlex.quote(dataset)} --apply -o OUT.hdf5")
        raise typer.Exit(1)


def _draw(report: "RepairReport", path: Path) -> None:
    """Draw the histograms. Raises GqError."""
    from gq.errors import GqError
    from gq.results.distributions import of_health, write_histograms

    if report.health is None:
        raise GqError("there is no whole episode to draw", hint="see the findings without --png")
    write_histograms([of_health(report.health, f"{report.file.name}, {report.task or 'unknown task'}")], path)


def _measure_drift(report: "RepairReport", dataset: str, task: str | None, num_episodes: int) -> "DriftReport":
    """Replay episodes of the repaired copy, or of the dataset if there is none. Raises GqError."""
    from gq.datasets.loading import load_dataset
    from gq.repair.drift import replay_drift

    trajectories = load_dataset(str(report.output or dataset), task=task)
    return replay_drift(trajectories, num_episodes, task=task)


def _describe(report: "RepairReport", *, verbose: bool) -> str:
    """Return the report as text for people."""
    from gq.repair.findings import several

    lines = [str(report.file)]
    if report.layout:
        pieces = f"{several(report.num_episodes, 'whole episode')}, {several(report.num_fragments, 'fragment')}"
        lines.append(f"{report.task or 'unknown task'}, {report.num_transitions:,} rows, {pieces}")
        lines.append(_evidence(report))
    lines.append("")
    width = max([len(finding.code) for finding in report.findings], default=0)
    for finding in report.findings:
        severity = "problem" if finding.is_problem else "note   "
        lines.append(f"{severity}  {finding.code:<{width}}  {finding.message}{_first_rows(finding, verbose=verbose)}")
    if not report.problems:
        lines.append("nothing is wrong with it")
    if report.health:
        lines += ["", *report.health.lines()]
    if report.output:
        lines += ["", f"written: {report.output}", *(f"  {words}" for words in report.repairs)]
    return "\n".join(lines)


def _evidence(report: "RepairReport") -> str:
    """Say what told where episodes end."""
    if report.evidence == "simulator":
        other = "" if report.physics == report.task else f", whose physics are those of {report.physics}"
        return f"ends of episodes found by replaying {report.num_replayed:,} steps in the simulator{other}"
    if report.evidence == "next_observations":
        return "ends of episodes found by next_observations"
    return "ends of episodes found by statistics of the steps alone, which can miss some"


def _first_rows(finding: "Finding", *, verbose: bool) -> str:
    """Return where a finding is, for -v."""
    if not verbose or not finding.rows:
        return ""
    more = ", ..." if finding.count > len(finding.rows) else ""
    what = "columns" if finding.code == "constant-dimension" else "rows"
    return f" ({what} {', '.join(map(str, finding.rows))}{more})"

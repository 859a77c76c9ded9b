"""`gq report`."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.results.facts import Facts

EXAMPLES = """\b
Examples:
  gq report --latest                     report.html in the run's folder
  gq report seed-0 seed-1 bc -o paper.html
  gq report --latest --episodes 50 --video
  gq report runs/a -o report.json        the facts alone
Evaluations on record are used; missing ones are made first. The
page is one file without scripts, which needs no network."""
VIDEO_PIXELS, VIDEO_FPS = 200, 15


@dataclass(frozen=True)
class Runs:
    """The runs that are named."""

    runs: Annotated[
        list[str] | None,
        options.completed(
            "RUN",
            "Ids of runs, unique prefixes of them, paths, or names of sweeps.",
            options.known_runs,
            kind=typer.Argument,
        ),
    ] = None
    latest: options.Latest = False

    def folders(self) -> list[Path]:
        """Return their folders, each once. Raises UsageError."""
        from gq.paths import find_run, find_runs

        if not self.runs:
            return [find_run(None, latest=self.latest)[0].resolve()]
        return find_runs(self.runs)


@options.grouped
def report(
    *,
    runs: Runs,
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="An .html or .json; default: in the run's folder."),
    ] = None,
    episodes: Annotated[
        int | None, options.number("Per target at least; default: as on record, else 20.", min=1)
    ] = None,
    rollouts: Annotated[bool, typer.Option(help="Evaluate what is not on record.")] = True,
    video: Annotated[bool, typer.Option("--video", help="Record a small video of each run.")] = False,
    force: options.Force = False,
    output: Output,
) -> None:
    """Write a report card of one or more runs, and print its path; with --json print the facts."""
    from gq.errors import UsageError

    if file and file.suffix.lower() not in (".html", ".json"):
        raise UsageError(f"{file} is not a report's name", hint="end it in .html or .json")
    if file:
        options.refuse_existing(file, force=force)
    folders = runs.folders()
    from gq import threads

    threads.prepare()
    from gq.results.gather import ReportOptions
    from gq.results.report import default_path
    from gq.results.report import report as write_report

    path = file or (None if output.json_mode else default_path(folders))
    for folder in folders if video else []:
        record_video(folder, output)
    with output.progress("evaluating", unit="steps") as move:
        choices = ReportOptions(
            num_episodes=episodes,
            rollouts=rollouts,
            begin=lambda run, what: output.note(f"{what} of {run.name}"),
            watch=lambda step: move(step.index + 1, None),
        )
        facts, _ = write_report(folders, path, choices)
    for note in facts.notes:
        output.note(note)
    for run in facts.runs:
        for note in dict.fromkeys(run.notes):
            output.note(f"{run.name}: {note}")
    shown = str(path or "")
    output.result(facts.document(), quiet=shown, human=_overview(output, facts, shown))


def record_video(run: Path, output: Output) -> None:
    """Record an episode of a run's best checkpoint, small enough for a page. Raises GqError if it cannot be."""
    from gq.rendering import VideoOptions, render

    output.note(f"recording a video of {run.name}")
    path = run / "videos" / f"{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}-report.mp4"
    render(run, video=VideoOptions(width=VIDEO_PIXELS, height=VIDEO_PIXELS, fps=VIDEO_FPS), output=path)


def _overview(output: Output, facts: "Facts", path: str) -> Any:
    """Return the comparison's lines and the path."""
    from rich.console import Group
    from rich.text import Text

    from gq.results.report import comparison_table

    table = comparison_table(facts)
    parts = [output.table(table.headings[:5], [row[:5] for row in table.rows])] if table.rows else []
    return Group(*parts, Text(path, no_wrap=True, overflow="ignore"))

"""`gq plot`."""

import csv
import io
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.plotting.curves import Learning
    from gq.plotting.sweep import Sweep

EXAMPLES = """\b
Examples:
  gq plot --latest                       a png in the run's folder
  gq plot seed-0 seed-1 seed-2 --output curve.svg
  gq plot runs/a runs/b --x updates --csv
  gq plot --latest --sweep               after gq eval --mode sweep
Runs that differ only by their seed become one line with a band. Runs of
TD-MPC2 are shown beside its authors' results where they published some."""
NUM_COLUMNS = 4  # of values in the table


def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Ids of runs, unique prefixes of them, or paths.",
            autocompletion=options.complete_from(options.known_runs),
        ),
    ] = None,
    latest: options.Latest = False,
    x: Annotated[
        Literal["auto", "updates", "decisions", "frames", "environment-steps"],
        typer.Option(help="What progress is counted in; auto: frames, else environment-steps, else updates."),
    ] = "auto",
    picture: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .png or .svg file; default: in a run's plots."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Draw what modes of TD-MPC2 return for what they cost.")
    ] = False,
    smooth: Annotated[int, typer.Option(metavar="N", help="Draw running means over N points.")] = 1,
    csv_mode: Annotated[bool, typer.Option("--csv", help="Print the points as CSV.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    json_mode: options.JsonMode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Draw learning curves, or sweeps of modes, and print the picture's path; with --json or --csv print the points."""
    output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose, no_color=no_color, no_progress=no_progress)
    wants_data = json_mode or csv_mode
    check_request(picture, json_mode=json_mode, csv_mode=csv_mode, force=force)
    from gq.paths import find_run

    names: list[str | None] = [*runs] if runs else [None]
    folders = list(dict.fromkeys(find_run(name, latest=latest)[0].resolve() for name in names))
    path = choose_path(output, picture, folders, "sweep" if sweep else "learning", wants_data=wants_data)
    if sweep:
        plot_sweeps(output, folders, path, csv_mode=csv_mode, is_named=bool(picture))
        return
    from gq.plotting.curves import read_learning
    from gq.plotting.picture import write_picture

    learning = read_learning(folders, x=x, smooth=smooth)
    if path:
        write_picture(learning, path)
        output.detail(f"wrote {path}")
    shown = str(path or "")
    if csv_mode:
        table = as_csv(learning)
        output.result({}, quiet=table, human=table)
        return
    document = learning.document() | {"path": str(path) if path else None}
    output.result(document, quiet=shown, human=shown if picture else overview(output, learning, shown))


def plot_sweeps(output: Output, folders: list[Path], path: Path | None, *, csv_mode: bool, is_named: bool) -> None:
    """Draw the newest sweep of each run, or print its points."""
    from gq.plotting.sweep import csv_of, document_of, read_sweep, write_sweeps

    sweeps = [read_sweep(folder) for folder in folders]
    if path:
        write_sweeps(sweeps, path)
        output.detail(f"wrote {path}")
    shown = str(path or "")
    if csv_mode:
        output.result({}, quiet=csv_of(sweeps), human=csv_of(sweeps))
        return
    human = shown if is_named else frontier_table(output, sweeps, shown)
    output.result(document_of(sweeps) | {"path": str(path) if path else None}, quiet=shown, human=human)


def frontier_table(output: Output, sweeps: list["Sweep"], path: str) -> Any:
    """Return the modes that no cheaper one equals, and the path."""
    from rich.console import Group
    from rich.text import Text

    from gq.engine.sweep import best

    rows = []
    for sweep in sweeps:
        by_mode = {row["mode"]: row for row in sweep.results}
        for point in best(sweep.points("planner_calls_per_step")):
            row = by_mode[point.mode]
            kept = "-" if row["retention"] is None else f"{100 * row['retention']:.1f} %"
            spent = "-" if row["decision_ms_mean"] is None else f"{row['decision_ms_mean']:.2f}"
            rows.append((sweep.run.name, point.mode, f"{point.value:.0f}", kept, f"{point.cost:.3f}", spent))
    headings = ["no cheaper mode returns more", "mode", "return", "kept", "calls/step", "ms"]
    parts: list[Any] = [output.table(headings, rows)]
    return Group(*parts, *([Text(path, no_wrap=True, overflow="ignore")] if path else []))


def choose_path(
    output: Output, picture: Path | None, folders: list[Path], name: str, *, wants_data: bool
) -> Path | None:
    """Return where the picture goes, None where there is to be none."""
    from gq.plotting.picture import INSTALL, can_draw

    path = picture or (None if wants_data else default_path(folders, name))
    if path and not picture and not output.quiet and not can_draw():  # there is still something to show
        output.note(f"no picture file, which needs matplotlib: {INSTALL}")
        return None
    return path


def check_request(picture: Path | None, *, json_mode: bool, csv_mode: bool, force: bool) -> None:
    """Raise UsageError for options that do not go together, or a file that is no picture's or is there already."""
    from gq.errors import UsageError

    if json_mode and csv_mode:
        raise UsageError("--json and --csv exclude each other", hint="choose one")
    if picture and picture.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"{picture} is not a picture's name", hint="end it in .png or .svg")
    if picture and picture.exists() and not force:
        raise UsageError(f"{picture} is there already", hint="--force replaces it")


def default_path(folders: list[Path], name: str) -> Path:
    """Return where the picture goes: a run's own is drawn anew each time, one of several runs has a name of its own."""
    plots = folders[0] / "plots"
    if len(folders) == 1:
        return plots / f"{name}.png"
    prefix = "" if name == "learning" else f"{name}-"
    return plots / f"{prefix}{len(folders)}-runs-{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}.png"


def as_csv(learning: "Learning") -> str:
    """Return all points, one a row; the official ones have the standard deviation as their band."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["label", "task", "series", "x_name", "x", "mean", "low", "high", "num_runs"])
    for curve in learning.curves:
        names = [learning.label(curve), curve.task, curve.what, learning.x_name]
        for index, (x, mean) in enumerate(zip(curve.x.tolist(), curve.mean.tolist(), strict=True)):
            band = ["" if ends is None else float(ends[index]) for ends in (curve.low, curve.high)]
            writer.writerow([*names, f"{x:.15g}", mean, *band, len(curve.runs)])
    for task, one in learning.official.items():
        for frames, mean, sd, seeds in zip(one.frames, one.mean, one.sd, one.num_seeds, strict=True):
            writer.writerow([one.label, task, "official", learning.x_name, frames, mean, mean - sd, mean + sd, seeds])
    return stream.getvalue().rstrip("\n")


def overview(output: Output, learning: "Learning", path: str) -> Any:
    """Return what people see: in a terminal the curves, a table of values, the official ones, and the path."""
    from rich.console import Group
    from rich.text import Text

    from gq.plotting.terminal import MAX_WIDTH, draw_lines, lines_of

    parts: list[Any] = []
    if sys.stdout.isatty():
        width = min(shutil.get_terminal_size().columns - 1, MAX_WIDTH)
        for task in learning.tasks:
            parts.append(task)
            picture = draw_lines(lines_of(learning, task), width=width, x_name=learning.x_name.replace("-", " "))
            parts += [Text.assemble(*row) for row in picture]
            parts.append("")
    parts.append(value_table(output, learning))
    if rows := learning.comparison():
        headings = ["run", "frames", "decisions", "ours", "official"]
        cells = [
            (
                row["label"],
                f"{row['frames']:,}",
                f"{row['decisions']:,}",
                f"{row['mean']:.0f}",
                f"{row['official_mean']:.0f} ± {row['official_sd']:.0f}",
            )
            for row in rows
        ]
        parts.append(output.table(headings, cells))
        parts.append(f"official: {', '.join({one.label for one in learning.official.values()})}")
    parts += [Text(text, no_wrap=True, overflow="ignore") for text in (learning.caption(), path) if text]
    return Group(*parts)


def value_table(output: Output, learning: "Learning") -> Any:
    """Return the returns at four places of the longest curve, and the band at the last point of each."""
    from gq.plotting.curves import compact

    curves = [curve for task in learning.tasks for curve in learning.shown(task)]
    longest = max(curves, key=lambda curve: float(curve.x[-1])).x
    first, last = (len(longest) - 1) // NUM_COLUMNS, len(longest) - 1
    indices = sorted({round(first + (last - first) * part / (NUM_COLUMNS - 1)) for part in range(NUM_COLUMNS)})
    places = [float(longest[index]) for index in indices]
    rows = []
    for curve in curves:
        values = ["-" if (value := curve.at(place)) is None else f"{value:.0f}" for place in places]
        end = f"{curve.mean[-1]:.0f} at {compact(float(curve.x[-1]))}"
        band = "" if curve.low is None or curve.high is None else f"{curve.low[-1]:.0f} … {curve.high[-1]:.0f}"
        rows.append((learning.label(curve), *values, end, band))
    unit = learning.x_name.replace("-", " ")
    headings = [f"return by {unit}", *(compact(place) for place in places), "last", "band"]
    if not any(row[-1] for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    return output.table(headings, rows)

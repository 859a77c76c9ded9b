"""`gq plot`."""

import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.results.style import Drawing

EXAMPLES = """\b
Examples:
  gq plot --latest                       a png in the run's folder
  gq plot seed-0 seed-1 seed-2 --output curve.svg
  gq plot runs/a runs/b --metric loss --smooth 5 --x seconds
  gq plot runs/a runs/b --aggregate iqm --output points.csv
  gq plot --latest --asked               returns against target returns
  gq plot --latest --sweep               after gq eval --mode sweep
  gq plot builtin/hopper/medium          what data are like
Runs that differ only by their seed become one line with a band: from the
lowest to the highest of fewer than five runs, else a bootstrap interval.
Runs of TD-MPC2 are shown beside its authors' results where they published
some."""
DATA_SUFFIXES = (".hdf5", ".h5", ".pkl")


def _newest_metrics() -> list[str]:
    from gq.paths import all_runs
    from gq.results.history import known_metrics, read_records

    runs = all_runs()
    return known_metrics(read_records(runs[0] / "metrics.jsonl")) if runs else []


@dataclass(frozen=True)
class Subjects:
    """The runs or datasets that are drawn."""

    names: Annotated[
        list[str] | None,
        options.completed(
            "RUN|DATASET",
            "Ids of runs, unique prefixes of them, or paths; or datasets.",
            options.known_runs,
            options.known_datasets,
            kind=typer.Argument,
        ),
    ] = None
    latest: options.Latest = False

    def find(self) -> tuple[list[Path], list[str]]:
        """Return the run folders, or the datasets, that names stand for. Raises UsageError for both or neither."""
        from gq.errors import UsageError
        from gq.paths import find_run

        if not self.names:
            return [find_run(None, latest=self.latest)[0].resolve()], []
        datasets = [name for name in dict.fromkeys(self.names) if _is_dataset(name)]
        runs = [name for name in self.names if name not in datasets]
        if runs and datasets:
            raise UsageError(f"{runs[0]} is a run and {datasets[0]} a dataset", hint="plot them apart")
        return list(dict.fromkeys(find_run(name)[0].resolve() for name in runs)), datasets


@dataclass(frozen=True)
class Curves:
    """What learning curves are of; other drawings have no use for it."""

    x: Annotated[
        Literal["auto", "updates", "decisions", "frames", "environment-steps", "transitions", "seconds"],
        typer.Option(help="What progress is counted in; auto: frames, else environment-steps, else updates."),
    ] = "auto"
    smooth: Annotated[int, options.number("Draw running means over N points.")] = 1
    metric: Annotated[
        list[str] | None,
        options.completed("KEY", "A key of metrics.jsonl, may be repeated; default: returns.", _newest_metrics),
    ] = None


@dataclass(frozen=True)
class Across:
    """What stands for several runs, and how far they are apart."""

    aggregate: Annotated[
        Literal["mean", "iqm"], typer.Option(help="What stands for several runs; iqm: the mean of their middle half.")
    ] = "mean"
    band: Annotated[
        Literal["auto", "bootstrap", "min-max", "none"],
        typer.Option(help="What says how far runs are apart; auto: min-max of fewer than five, else bootstrap."),
    ] = "auto"


@dataclass(frozen=True)
class Form:
    """What a drawing is delivered as."""

    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .png, .svg, .pdf or .csv; default: in a run's plots."),
    ] = None
    terminal: Annotated[bool, typer.Option("--terminal", help="Draw in the terminal, into no file.")] = False
    csv_mode: Annotated[bool, typer.Option("--csv", help="Print the points as CSV.")] = False
    force: options.Force = False

    def check(self, *, json_mode: bool) -> None:
        """Raise UsageError for options that do not go together, or a file that is of no kind or is there already."""
        from gq.errors import UsageError
        from gq.results.style import FORMATS

        file, printed = self.file, (("--json", json_mode), ("--csv", self.csv_mode), ("--terminal", self.terminal))
        chosen = [name for name, is_on in printed if is_on]
        if len(chosen) > 1:
            raise UsageError(f"{chosen[0]} and {chosen[1]} exclude each other", hint="choose one")
        if file and self.terminal:
            raise UsageError("--terminal and --output exclude each other", hint="choose one")
        if file and file.suffix.lower() not in (*FORMATS, ".csv"):
            hint = f"end it in {', '.join(FORMATS)} or .csv"
            raise UsageError(f"{file} is neither a picture's name nor .csv", hint=hint)
        if file:
            options.refuse_existing(file, force=self.force)


@options.grouped_as("subjects metric asked sweep curves across form output")
def plot(
    *,
    subjects: Subjects,
    curves: Curves,
    asked: Annotated[
        bool, typer.Option("--asked", help="Draw returns against target returns, of stored evaluations.")
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Draw what modes of TD-MPC2 return for what they cost.")
    ] = False,
    across: Across,
    form: Form,
    output: Output,
) -> None:
    """Draw learning curves, returns at targets, sweeps of modes or datasets; print the figure's path, or points."""
    form.check(json_mode=output.json_mode)
    runs, datasets = subjects.find()
    kind = _kind_of(datasets, asked=asked, sweep=sweep)
    if kind != "learning":
        _refuse_ignored(curves)
    drawing: Drawing
    if kind == "dataset":
        from gq.results.distributions import data_drawing, read_summary

        drawing = data_drawing([read_summary(name) for name in datasets])
    elif kind == "sweep":
        from gq.results.sweep import read_sweep, sweep_drawing

        drawing = sweep_drawing([read_sweep(run) for run in runs])
    elif kind == "asked":
        from gq.results.targets import read_targets, target_drawing

        drawing = target_drawing(read_targets(runs, **vars(across)))
    else:
        from gq.results.curves import read_learning
        from gq.results.figures import learning_drawing

        metrics = curves.metric or ()
        learning = read_learning(runs, x=curves.x, smooth=curves.smooth, metrics=metrics, **vars(across))
        drawing = learning_drawing(learning)
    _deliver(output, drawing, runs, form)


def _is_dataset(name: str) -> bool:
    """Whether a name stands for a dataset, not for runs. Raises UsageError where it may be either."""
    from gq.datasets import names as registry
    from gq.datasets.cache import cached
    from gq.errors import UsageError
    from gq.paths import all_runs

    path = Path(name).expanduser()
    if path.exists():
        holds_minari = any((folder / "main_data.hdf5").is_file() for folder in (path, path / "data"))
        return holds_minari or (path.is_file() and path.suffix.lower() in DATA_SUFFIXES)
    fitting = [run.name for run in all_runs() if run.name.startswith(name)]
    try:
        entry = registry.resolve(name)
    except UsageError:
        return path.suffix.lower() in DATA_SUFFIXES
    if fitting and cached(entry) and name not in fitting:
        hint = f"the dataset: gq plot {entry.id}; the run: gq plot {fitting[0]}"
        raise UsageError(f"{name} may be a dataset or a run", hint=hint)
    return not fitting


def _kind_of(datasets: list[str], *, asked: bool, sweep: bool) -> str:
    from gq.errors import UsageError

    wanted = [name for name, is_on in (("dataset", datasets), ("asked", asked), ("sweep", sweep)) if is_on]
    if len(wanted) > 1 and datasets:
        raise UsageError(f"--{wanted[1]} is for runs, and {datasets[0]} is a dataset", hint="name a run")
    if len(wanted) > 1:
        raise UsageError("--asked and --sweep exclude each other", hint="choose one")
    return wanted[0] if wanted else "learning"


def _refuse_ignored(curves: Curves) -> None:
    from gq.errors import UsageError

    for name, default in vars(Curves()).items():
        if getattr(curves, name) != default:
            raise UsageError(f"--{name} is for learning curves", hint="leave it out")


def _deliver(output: Output, drawing: "Drawing", runs: list[Path], form: Form) -> None:
    """Write the file, and print the result."""
    from gq.files import write_text

    for note in drawing.notes:
        output.note(note)
    if form.csv_mode:
        output.result({}, quiet=drawing.csv(), human=drawing.csv())
        return
    wants_file = not (form.terminal or output.json_mode)
    path = form.file or (_choose_path(drawing, runs) if wants_file else None)
    if path and path.suffix.lower() == ".csv":
        write_text(path, drawing.csv() + "\n")
    elif path:
        drawing.write(path)
    if path:
        output.detail(f"wrote {path}")
    shown = str(path or "")
    quiet = shown or " ".join(f"{number:g}" for number in drawing.numbers)
    draws = form.terminal or not path or sys.stdout.isatty()
    human = shown if form.file else _overview(output, drawing, shown, draws=draws)
    output.result(drawing.document | {"path": shown or None}, quiet=quiet, human=human)


def _choose_path(drawing: "Drawing", runs: list[Path]) -> Path | None:
    """Return where a picture goes that the user gave no name: into a run's plots, else nowhere.

    That of one run replaces the one before, those of several have names of their own.
    """
    if not runs:
        return None
    plots = runs[0] / "plots"
    if len(runs) == 1:
        return plots / f"{drawing.name}.png"
    prefix = "" if drawing.name == "learning" else f"{drawing.name}-"
    return plots / f"{prefix}{len(runs)}-runs-{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}.png"


def _overview(output: Output, drawing: "Drawing", path: str, *, draws: bool) -> Any:
    """Return what people see: the picture in characters, tables, what bands are, and the path."""
    from rich.console import Group
    from rich.text import Text

    from gq.results.terminal import MAX_WIDTH

    parts: list[Any] = []
    columns = shutil.get_terminal_size().columns - 1
    if draws:
        rows = drawing.in_terminal(min(columns, MAX_WIDTH))
        parts += [Text.assemble(*row, no_wrap=True, overflow="ignore") for row in rows]
    for table in drawing.tables:
        parts.append(output.table(table.headings, table.rows))
        if table.caption:
            parts.append(Text(table.caption))
    if drawing.caption:
        parts.append(Text(drawing.caption))
    if path:
        parts.append(Text(path, no_wrap=True, overflow="ignore"))
    return Group(*parts)

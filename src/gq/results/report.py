"""Reports of runs: the facts gathered, and written as a page of HTML or as JSON."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.errors import UsageError
from gq.files import write_json, write_text
from gq.paths import check_still_there
from gq.results.curves import Curve, Learning
from gq.results.facts import DataFacts, Facts, Group, GroupRow, RunFacts
from gq.results.figures import Returns, Strip, draw_curves, draw_returns
from gq.results.gather import MIME, ReportOptions, gather
from gq.results.history import RETURN
from gq.results.style import Table, inline_svg
from gq.results.targets import TargetReturns, draw_targets
from gq.runs.evaluations import PROTOCOL

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

KINDS = (".html", ".json")
WIDE, NARROW = 6.4, 3.6  # inches of figures on wide pages and on phones
CURVES_INCHES, LEGEND_INCHES = 2.7, 0.16
MAX_NOTES = 8  # on top of a page about several runs


@dataclass(frozen=True)
class PageFigure:
    """A figure drawn for wide pages and for phones, with what it shows."""

    wide: str  # SVG
    narrow: str
    caption: str


def report(
    runs: Sequence[Path], output: Path | None = None, options: ReportOptions | None = None
) -> tuple[Facts, Path | None]:
    """Gather the facts of runs and write them to a file; return them, with the file.

    Args:
        output: .html or .json, replaced if it is there; None: no file.

    Raises:
        UsageError: the name of the file ends in something else, or no run is given.
        GqError: a run is damaged, an evaluation cannot be made, or the file cannot be written.
    """
    if not runs:
        raise UsageError("no run given", hint="name one, or take the newest with --latest")
    _check_kind(output)
    facts = gather(list(dict.fromkeys(run.resolve() for run in runs)), options or ReportOptions())
    if output:
        for run in runs:
            check_still_there(output, run)
        if output.suffix.lower() == ".json":
            write_json(output, facts.document())
        else:
            write_text(output, render_page(facts))
    return facts, output


def _check_kind(output: Path | None) -> None:
    if output and output.suffix.lower() not in KINDS:
        raise UsageError(f"{output} is not a report's name", hint=f"end it in {' or '.join(KINDS)}")


def default_path(runs: Sequence[Path]) -> Path:
    """Where a report goes: a run's own replaces the one before, one of several runs has a name of its own."""
    if len(runs) == 1:
        return runs[0] / "report.html"
    return runs[0] / f"report-{len(runs)}-runs-{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}.html"


def render_page(facts: Facts) -> str:
    """A report as one file of HTML with everything in it, no script and nothing from elsewhere."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"show": show, "between": between, "short": short, "number": lambda value: f"{value:,.10g}"}
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode("ascii")
    folder = resources.files("gq.results")
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    tasks = list(dict.fromkeys(run.task for run in facts.runs))
    is_single = len(facts.runs) == 1
    missing = [f"{run.name}: {note}" for run in facts.runs for note in run.notes]
    page = template.render(
        facts=facts,
        title=facts.runs[0].name if is_single else f"{len(facts.runs)} runs on {', '.join(tasks)}",
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        svg=Markup,
        notes=[*facts.notes, *facts.runs[0].notes] if is_single else [*facts.notes, *missing][:MAX_NOTES],
        protocol=PROTOCOL,
        mime=MIME,
        runs=[
            {"facts": run, "curves": facts.learning.get(str(run.path))}
            | _run_parts(run, facts.learning.get(str(run.path)), f"run-{index}")
            for index, run in enumerate(facts.runs)
        ],
        comparison=None if is_single else comparison_table(facts),
        tasks=[] if is_single else [_task_parts(facts, task, f"all-{index}") for index, task in enumerate(tasks)],
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # names of files may hold what is not a character


def show(value: float | None) -> str:
    """A number with as many digits as tables need."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def short(dataset: str) -> str:
    """A dataset's id, or its file's name."""
    return PurePath(dataset).name if PurePath(dataset).is_absolute() else dataset


def between(interval: tuple[float, float] | None) -> str:
    """An interval for tables and sentences."""
    return "–" if interval is None else f"{show(interval[0])} to {show(interval[1])}"


def comparison_table(facts: Facts) -> Table:
    """All groups and their targets, by their best checkpoints."""
    rows: list[tuple[str, ...]] = []
    classes = []
    for group in facts.groups:
        for row in group.rows:
            over = f"{len(row.means)} runs" if len(row.means) > 1 else f"{row.num_episodes} episodes"
            target = f"{row.target:,.10g}" if row.target is not None else "–"
            numbers = (show(row.mean), between(row.ci95), over, show(row.iqm), show(row.score), show(row.last_mean))
            rows.append((group.name, target, *numbers))
            classes.append("main" if row == group.headline else "")
        if not group.rows:
            rows.append((group.name, *["–"] * 7))
            classes.append("quiet")
    headings = ["runs", "target", "mean", "95 % interval", "over", "IQM", "score", "last checkpoint"]
    names = list(dict.fromkeys(run.reference.title for run in facts.runs if run.reference))
    caption = "Best checkpoints; runs that differ by their seed alone are one line"
    return Table(headings, rows, f"{caption}. Scores by {', '.join(names) or 'no reference'}", classes)


def _figure(
    draw: Callable[["Canvas"], None],
    height: float,
    name: str,
    words: tuple[str, str, str],  # title, description for those who do not see it, caption
) -> PageFigure:
    title, description, caption = words
    wide, narrow = (
        inline_svg((width, height), draw, name=f"{name}-{form}", title=title, description=description)
        for width, form in ((WIDE, "wide"), (NARROW, "narrow"))
    )
    return PageFigure(wide, narrow, caption)


def _run_parts(run: RunFacts, learning: Learning | None, name: str) -> dict[str, Any]:
    measures = run.best.measures if run.best else []
    parts: dict[str, Any] = dict.fromkeys(("returns", "targets", "learning"))
    if measures:
        strips = [
            Strip(
                label=measure.way,
                returns=[episode.episode_return for episode in measure.episodes],
                mean=measure.summary.return_mean,
                ci95=measure.summary.return_ci95,
                iqm=measure.summary.return_iqm,
                target=measure.target,
            )
            for measure in measures
        ]
        marks = [*_scale_marks([run]), *((_baseline_name(one.is_policy), one.return_mean) for one in run.baselines)]
        words = f"Returns of {run.name}", "Each dot is an episode of the best checkpoint."
        parts["returns"] = _returns_figure(strips, run.data, marks, words, f"{name}-returns")
    if any(measure.target is not None for _, measure in run.measures):
        parts["targets"] = _targets_figure(run, f"{name}-targets")
    if learning:
        place = run.best.progress.get(learning.x_name.replace("-", " ")) if run.best and run.last else None
        marked = [] if place is None else [("best checkpoint", float(place))]
        parts["learning"] = _learning_figure(learning, run.task, marked, f"{name}-learning")
    return parts


def _task_parts(facts: Facts, task: str, name: str) -> dict[str, Any]:
    groups = [group for group in facts.groups if group.task == task]
    runs = [run for run in facts.runs if run.task == task]
    datas = {run.data.fingerprint: run.data for run in runs if run.data}
    data = next(iter(datas.values())) if len(datas) == 1 else None
    strips = [
        _group_strip(group, row, index, alone=len(groups) == 1)
        for index, group in enumerate(groups)
        for row in group.rows
    ]
    parts: dict[str, Any] = {"task": task, "returns": None, "learning": None}
    if strips:
        marks = [*_scale_marks(runs), *([(_baseline_name(is_policy=False), data.top_mean)] if data else [])]
        dots = "Each dot is an episode of a best checkpoint; intervals are over runs where there are several."
        parts["returns"] = _returns_figure(strips, data, marks, (f"Returns on {task}", dots), f"{name}-returns")
    if (learning := facts.learning.get("")) and task in learning.tasks:
        parts["learning"] = _learning_figure(learning, task, [], f"{name}-learning")
    return parts


def _group_strip(group: Group, row: GroupRow, index: int, *, alone: bool) -> Strip:
    way = row.measures[0].way
    returns = [episode.episode_return for measure in row.measures for episode in measure.episodes]
    label = way if alone else f"{group.name}, {way}"
    return Strip(
        label=label, returns=returns, mean=row.mean, ci95=row.ci95, iqm=row.iqm, target=row.target, colour=index
    )


def _baseline_name(is_policy: bool) -> str:
    return "behaviour cloning" if is_policy else "best tenth of the data"


def _scale_marks(runs: Sequence[RunFacts]) -> list[tuple[str, float]]:
    references = {run.reference for run in runs}
    if len(references) > 1 or not (reference := runs[0].reference):
        return []
    return [("random", reference.minimum), ("expert", reference.maximum)]


def _returns_figure(
    strips: Sequence[Strip],
    data: DataFacts | None,
    marks: Sequence[tuple[str, float]],
    words: tuple[str, str],
    name: str,
) -> PageFigure:
    title, caption = words
    caption += " Below them, the mean with its 95 % interval, and as a tick the interquartile mean."
    if any(strip.target is not None for strip in strips):
        caption += " The triangle is the target return."
    if data:
        caption += f" On top, the episodes of {short(data.dataset)}."
    returns = Returns(strips=strips, histogram=(data.edges, data.counts) if data else None, landmarks=marks)
    said = "; ".join(f"{strip.label}: mean {strip.mean:,.0f} of {len(strip.returns)} episodes" for strip in strips)
    height = returns.size(WIDE)[1]
    return _figure(lambda canvas: draw_returns(canvas, returns), height, name, (title, said, caption))


def _targets_figure(run: RunFacts, name: str) -> PageFigure:
    lines, said = [], []
    for which, checkpoint in (("best checkpoint", run.best), ("last checkpoint", run.last)):
        measures = [measure for measure in (checkpoint.measures if checkpoint else []) if measure.target is not None]
        if checkpoint and measures:
            ends = [measure.summary.return_ci95 for measure in measures if measure.summary.return_ci95]
            low, high = np.array(ends).T if len(ends) == len(measures) else (None, None)
            means = np.array([measure.summary.return_mean for measure in measures])
            targets = np.array([measure.target for measure in measures])
            line = Curve(
                task=run.task,
                algo=run.algo,
                group=which,
                runs=(run.name,),
                x=targets,
                mean=means,
                low=low,
                high=high,
                band="" if low is None else "episodes",
            )
            lines.append(line)
            said += [f"{which}, {measure.way}: {show(measure.summary.return_mean)}" for measure in measures]
    data = {run.task: run.data.returns} if run.data else {}
    figure = TargetReturns(lines, data, "mean", [])
    words = (
        f"Return against target return of {run.name}",
        "; ".join(said),
        "On the dashed line a policy returns its target.",
    )
    height = CURVES_INCHES + LEGEND_INCHES * (len(lines) + 4)
    return _figure(lambda canvas: draw_targets(canvas.subplots(), figure, run.task), height, name, words)


def _learning_figure(learning: Learning, task: str, marked: Sequence[tuple[str, float]], name: str) -> PageFigure:
    curves = learning.shown(task)
    caption = "Evaluations while training, on the episodes that choose the best checkpoint."
    said = "; ".join(f"{curve.name}: {curve.mean[-1]:,.0f} at {curve.x[-1]:,.10g}" for curve in curves)
    height = CURVES_INCHES + LEGEND_INCHES * (len(curves) + len(marked) + 2 + (task in learning.official))
    return _figure(
        lambda canvas: draw_curves(canvas.subplots(), learning, (task, RETURN), marked),
        height,
        name,
        (f"Learning on {task}", said, f"{caption} {learning.caption().capitalize()}"),
    )

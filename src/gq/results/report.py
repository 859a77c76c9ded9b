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
from gq.results.curves import Learning
from gq.results.facts import DataFacts, Facts, Group, GroupRow, Measure, RunFacts
from gq.results.figures import Returns, Strip, draw_curves, draw_returns
from gq.results.gather import MIME, ReportOptions, gather
from gq.results.history import RETURN
from gq.results.style import Table, inline_svg
from gq.results.targets import TargetLine, TargetReturns, draw_targets

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

KINDS = (".html", ".json")
ALGORITHMS = {
    "dt": "A Decision Transformer",
    "bc": "A network that clones behaviour",
    "odt": "An Online Decision Transformer",
    "finetune": "An Online Decision Transformer, finetuned on its own episodes",
    "tdmpc2": "A TD-MPC2 agent",
}
WIDE, NARROW = 7.2, 3.6  # inches of figures on wide pages and on phones
CURVES_INCHES, LEGEND_INCHES = 2.7, 0.16
MAX_POINTS = 40  # of each curve in its table
MAX_NOTES = 8  # on top of a page about several runs


@dataclass(frozen=True)
class PageFigure:
    """A figure drawn for wide pages and for phones, with what it shows."""

    wide: str  # SVG
    narrow: str
    caption: str
    numbers: Table | None


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
    check_kind(output)
    facts = gather(list(dict.fromkeys(run.resolve() for run in runs)), options or ReportOptions())
    if output:
        for run in runs:
            check_still_there(output, run)
        if output.suffix.lower() == ".json":
            write_json(output, facts.document())
        else:
            write_text(output, render_page(facts))
    return facts, output


def check_kind(output: Path | None) -> None:
    """Raise UsageError for a file of a kind that reports do not have."""
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
    environment.filters |= {"show": show, "between": between}
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
        runs=[
            {"facts": run, "sentences": f"{_what_it_is(run)} {_what_it_returns(run)}", "video": _video(run)}
            | _run_parts(run, facts.learning.get(str(run.path)), f"run-{index}")
            for index, run in enumerate(facts.runs)
        ],
        groups=[] if is_single else [sentence_of(group) for group in facts.groups],
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


def between(interval: tuple[float, float] | None) -> str:
    """An interval for tables and sentences."""
    return "–" if interval is None else f"{show(interval[0])} to {show(interval[1])}"


def _short(dataset: str) -> str:
    return PurePath(dataset).name if PurePath(dataset).is_absolute() else dataset


# Sentences


def _what_it_is(run: RunFacts) -> str:
    parameters = run.environment.get("parameters")
    size = f"size {run.settings.get('size', 'unknown')}"
    amount = f" ({size}, {parameters:,} parameters)" if isinstance(parameters, int) else f" ({size})"
    source = f", trained on {_short(run.dataset)}" if run.dataset else ", trained on its own experience"
    return f"{ALGORITHMS.get(run.algo, run.algo)}{amount} for {run.task}{source}."


def _what_it_returns(run: RunFacts) -> str:
    parts = ["It has not been evaluated yet."]
    if measure := run.headline:
        result = measure.summary
        start = f"With target {measure.target:,.10g}, it" if measure.target is not None else "It"
        interval = f"95 % interval {between(result.return_ci95)}; {len(measure.episodes)} episodes"
        parts = [f"{start} returns {show(result.return_mean)} on average ({interval})."]
    if data := run.data:
        best, top = show(data.quantiles["p100"]), show(data.top_mean)
        parts.append(f"The data return {show(data.return_mean)} on average, {best} at best, {top} in their best tenth.")
    return " ".join(parts)


def sentence_of(group: Group) -> str:
    """What a group returned at its highest target."""
    row = group.headline
    name = f"{group.name} ({len(group.runs)} runs)" if len(group.runs) > 1 else group.name
    if not row:
        return f"{name}: not evaluated yet."
    over = "runs" if len(row.means) > 1 else "episodes"
    how = f"95 % interval over {over} {between(row.ci95)}" if row.ci95 else "no interval: a seed is repeated"
    target = f" with target {row.target:,.10g}" if row.target is not None else ""
    return f"{name}: {show(row.mean)} on average{target} ({how})."


# Tables


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


def _results_table(run: RunFacts) -> Table:
    rows: list[tuple[str, ...]] = []
    classes = []
    for which, measure in run.measures:
        result = measure.summary
        label = f"{measure.target:,.10g}" if measure.target is not None else measure.label
        numbers = (show(result.return_mean), between(result.return_ci95), show(result.return_iqm))
        ends = (f"{result.length_mean:,.0f}", str(measure.num_terminated), str(len(measure.episodes)))
        rows.append((label, which, *numbers, show(result.normalized_mean), *ends))
        classes.append("main" if measure is run.headline else "" if measure.is_own else "quiet")
    score = f"score ({run.reference.name})" if run.reference else "score"
    way = "mode" if run.algo == "tdmpc2" else "target"
    headings = [way, "checkpoint", "mean", "95 % interval", "IQM", score, "steps", "terminated", "episodes"]
    if run.algo == "bc":
        headings, rows = headings[1:], [row[1:] for row in rows]
    extra = "; quiet rows were evaluated later, not fixed with the run" if "quiet" in classes else ""
    return Table(headings, rows, f"Returns, the intervals over episodes{extra}", classes)


def _comparisons_table(run: RunFacts) -> Table | None:
    rows = [(what, show(mean), between(ci95), show(score)) for what, mean, ci95, score in run.comparisons()]
    caption = "Mean returns"
    if run.reference:
        caption += f"; scores by {run.reference.title}"
    if any(not one.is_policy for one in run.baselines):
        caption += ". Cloning the best tenth of the data aims at its mean; that line is data, no policy was measured"
    note = f". {run.reference.note}" if run.reference and run.reference.note else ""
    return Table(["what", "mean return", "95 % interval", "score"], rows, caption + note) if rows else None


def _data_table(data: DataFacts) -> Table:
    names = {"p0": "lowest", "p50": "median", "p100": "highest"}
    headings = [names.get(name, f"{name[1:]} %") for name in data.quantiles]
    size = f"{data.num_episodes:,} episodes, {data.num_transitions:,} transitions"
    caption = f"{_short(data.dataset)}, {size}: quantiles of the episodes' returns"
    return Table(headings, [tuple(show(value) for value in data.quantiles.values())], caption)


def _episode_table(measures: Sequence[Measure]) -> Table:
    rows = [
        (measure.way, str(e.seed), show(e.episode_return), f"{e.length:,}", "yes" if e.terminated else "no")
        for measure in measures
        for e in measure.episodes
    ]
    return Table(["way", "seed", "return", "steps", "terminated"], rows, "Every episode")


# Figures


def _figure(
    draw: Callable[["Canvas"], None],
    height: float,
    name: str,
    words: tuple[str, str, str],  # title, description for those who do not see it, caption
    numbers: Table | None = None,
) -> PageFigure:
    title, description, caption = words
    wide, narrow = (
        inline_svg((width, height), draw, name=f"{name}-{form}", title=title, description=description)
        for width, form in ((WIDE, "wide"), (NARROW, "narrow"))
    )
    return PageFigure(wide, narrow, caption, numbers)


def _run_parts(run: RunFacts, learning: Learning | None, name: str) -> dict[str, Any]:
    """Tables and figures of one run; None for those that it does not have."""
    measures = run.best.measures if run.best else []
    parts: dict[str, Any] = dict.fromkeys(("returns", "targets", "learning"))
    parts |= {"results": _results_table(run), "compared": _comparisons_table(run)}
    parts["data"] = _data_table(run.data) if run.data else None
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
        parts["returns"] = _returns_figure(strips, run.data, marks, words, f"{name}-returns", _episode_table(measures))
    if any(measure.target is not None for _, measure in run.measures):
        parts["targets"] = _targets_figure(run, f"{name}-targets")
    if learning:
        place = run.best.progress.get(learning.x_name.replace("-", " ")) if run.best and run.last else None
        marked = [] if place is None else [("best checkpoint", float(place))]
        parts["learning"] = _learning_figure(learning, run.task, marked, f"{name}-learning")
    return parts


def _task_parts(facts: Facts, task: str, name: str) -> dict[str, Any]:
    """The figures of all runs of a task together."""
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
    """What scores of 0 and 100 stand for, where it is the same for all runs."""
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
    numbers: Table | None = None,
) -> PageFigure:
    title, caption = words
    caption += " Below them, the mean with its 95 % interval, and as a tick the interquartile mean."
    if any(strip.target is not None for strip in strips):
        caption += " The triangle is the target return."
    if data:
        caption += f" On top, the episodes of {_short(data.dataset)}."
    returns = Returns(strips=strips, histogram=(data.edges, data.counts) if data else None, landmarks=marks)
    said = "; ".join(f"{strip.label}: mean {strip.mean:,.0f} of {len(strip.returns)} episodes" for strip in strips)
    height = returns.size(WIDE)[1]
    return _figure(lambda canvas: draw_returns(canvas, returns), height, name, (title, said, caption), numbers)


def _targets_figure(run: RunFacts, name: str) -> PageFigure:
    """Return against target return, of both checkpoints."""
    lines, said = [], []
    for which, checkpoint in (("best checkpoint", run.best), ("last checkpoint", run.last)):
        measures = [measure for measure in (checkpoint.measures if checkpoint else []) if measure.target is not None]
        if checkpoint and measures:
            low, high = np.array([measure.summary.return_ci95 for measure in measures]).T
            means = np.array([measure.summary.return_mean for measure in measures])
            targets = np.array([measure.target for measure in measures])
            names = (which,), (checkpoint.name,)
            lines.append(TargetLine(run.task, "", *names, targets, means, low, high, "episodes"))
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
    """The learning curves of a task with their last values."""
    curves = learning.shown(task)
    caption = "Evaluations while training, on the episodes that choose the best checkpoint."
    rows = [
        (curve.name, f"{x:,.10g}", show(float(mean)))
        for curve in curves
        for x, mean in list(zip(curve.x.tolist(), curve.mean.tolist(), strict=True))[-MAX_POINTS:]
    ]
    headings = ["curve", learning.x_name.replace("-", " "), "mean return"]
    numbers = Table(headings, rows, "Points of the curves, the last forty of each")
    said = "; ".join(f"{curve.name}: {curve.mean[-1]:,.0f} at {curve.x[-1]:,.10g}" for curve in curves)
    height = CURVES_INCHES + LEGEND_INCHES * (len(curves) + len(marked) + 2 + (task in learning.official))
    return _figure(
        lambda canvas: draw_curves(canvas.subplots(), learning, (task, RETURN), marked),
        height,
        name,
        (f"Learning on {task}", said, f"{caption} {learning.caption().capitalize()}"),
        numbers,
    )


def _video(run: RunFacts) -> dict[str, str] | None:
    """A video with all of its bytes in the page."""
    if not run.video:
        return None
    kind = MIME[run.video.suffix.lower()]
    address = f"data:{kind};base64,{base64.b64encode(run.video.read_bytes()).decode('ascii')}"
    return {"address": address, "kind": kind, "name": f"{run.video.parent.name}/{run.video.name}"}

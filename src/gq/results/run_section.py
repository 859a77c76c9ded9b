"""The part of a page that is about one run."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gq.results import pieces
from gq.results.charts import Answer, Landmark, Strip, draw_answers
from gq.results.curves import Learning
from gq.results.facts import Measure, RunFacts
from gq.results.footage import MIME
from gq.results.markup import Markup, join, tag
from gq.results.protocol import protocol_of
from gq.results.report_figures import learning_figure, returns_figure
from gq.results.words import between, say_episode, short, show, way_of

COMPARED = ["what", "mean return", "95 % interval", "score"]  # what is above the lines of `comparisons`


def run_section(run: RunFacts, learning: Learning | None, name: str, heading: str) -> Markup:
    """Return all that there is to say of a run, under headings of one level."""
    parts: list[Any] = []
    if run.best and run.best.measures:
        parts += [tag(heading, "Returns"), episodes_figure(run, f"{name}-returns"), results_table(run)]
    if answers := answers_of(run):
        parts += [tag(heading, "Asked and achieved"), answers_figure(run, answers, f"{name}-answers")]
    if learning:
        marked = marked_places(run, learning.x_name)
        parts += [tag(heading, "Learning"), learning_figure(learning, run.task, marked, f"{name}-learning")]
    if rows := comparisons(run):
        parts += [tag(heading, "What to compare it with"), comparisons_table(run, rows)]
    if run.data:
        parts += [tag(heading, "The data"), data_table(run)]
    if run.video:
        parts += [tag(heading, "Video"), video_figure(run.path, run.video.path)]
    parts += [tag(heading, "Protocol"), pieces.facts_list(protocol_of(run))]
    parts += [
        tag(heading, "Again"),
        *[(tag("p", what), tag("pre", tag("code", command))) for what, command in run.commands],
    ]
    parts += [tag("details", tag("summary", "config.toml"), tag("pre", tag("code", run.config_text)))]
    return join(parts)


def tiles_of(run: RunFacts) -> Markup | None:
    """Return the numbers on top of a run's page."""
    measure = run.headline
    if not measure:
        return None
    result = measure.summary
    entries = [
        (
            way_of(measure.label, measure.target).capitalize(),
            show(result.return_mean),
            f"mean, {between(result.return_ci95)}",
        ),
        ("Interquartile mean", show(result.return_iqm), f"{len(measure.episodes)} episodes"),
    ]
    if run.reference and result.normalized_mean is not None:
        entries.append(("Normalised score", f"{result.normalized_mean:.1f}".replace("-", "−"), run.reference.title))
    if run.data:
        entries.append(("Its data, on average", show(run.data.return_mean), f"best tenth {show(run.data.top_mean)}"))
    return pieces.tiles(entries)


def episodes_figure(run: RunFacts, name: str) -> Markup:
    """Return the episodes of the best checkpoint over the data's."""
    assert run.best
    strips = [
        Strip(
            label=way_of(measure.label, measure.target),
            dots=[(e.episode_return, say_episode(measure, i)) for i, e in enumerate(measure.episodes)],
            mean=measure.summary.return_mean,
            ci95=measure.summary.return_ci95,
            iqm=measure.summary.return_iqm,
            asked=measure.target,
        )
        for measure in run.best.measures
    ]
    marks = []
    if run.reference:
        marks += [Landmark("random", run.reference.minimum), Landmark("expert", run.reference.maximum)]
    for baseline in run.baselines:
        label = "behaviour cloning" if baseline.is_policy else "best tenth of the data"
        marks.append(Landmark(label, baseline.return_mean))

    rows = [
        (
            way_of(measure.label, measure.target),
            e.seed,
            show(e.episode_return),
            f"{e.length:,}",
            "yes" if e.terminated else "no",
        )
        for measure in run.best.measures
        for e in measure.episodes
    ]
    numbers = pieces.table(["way", "seed", "return", "steps", "terminated"], rows, caption="Every episode")
    dots = "Each dot is an episode of the best checkpoint."
    return returns_figure(strips, run.data, marks, f"Returns of {run.name}", dots, name, numbers=numbers)


def results_table(run: RunFacts) -> Markup:
    """Return the results of the best and the last checkpoint, side by side."""
    pairs = [("best", run.best), ("last", run.last)]
    rows, classes = [], []
    for which, checkpoint in pairs:
        for measure in checkpoint.measures if checkpoint else []:
            rows.append(result_row(measure, which if run.last else "best and last"))
            is_main = checkpoint is run.best and measure is run.headline
            classes.append("main" if is_main else "" if measure.is_own else "quiet")
    score = f"score ({run.reference.name})" if run.reference else "score"
    headings = result_headings("mode" if run.algo == "tdmpc2" else "asked for", score)
    if run.algo == "bc":
        headings, rows = headings[1:], [row[1:] for row in rows]
    extra = "; quiet rows were asked later, not with the run" if "quiet" in classes else ""
    return pieces.table(headings, rows, caption=f"Returns, the intervals over episodes{extra}", classes=classes)


def result_headings(way: str, score: str) -> list[str]:
    """Return what is above the lines of the results."""
    return [way, "checkpoint", "mean", "95 % interval", "IQM", score, "steps", "terminated", "episodes"]


def result_row(measure: Measure, which: str) -> tuple[Any, ...]:
    """Return a line of the results."""
    result = measure.summary
    label = f"{measure.target:,.10g}" if measure.target is not None else measure.label
    return (
        label,
        which,
        show(result.return_mean),
        between(result.return_ci95),
        show(result.return_iqm),
        show(result.normalized_mean),
        f"{result.length_mean:,.0f}",
        measure.num_terminated,
        len(measure.episodes),
    )


def answers_of(run: RunFacts) -> list[Answer]:
    """Return what both checkpoints returned for what they were asked."""
    found = []
    for checkpoint, which in ((run.best, "best checkpoint"), (run.last, "last checkpoint")):
        for measure in checkpoint.measures if checkpoint else []:
            if measure.target is not None:
                result = measure.summary
                returned = f"{show(result.return_mean)} ({between(result.return_ci95)})"
                what = f"{which}, asked for {measure.target:,.10g}: {returned}"
                answer = Answer(measure.target, result.return_mean, result.return_ci95, what, checkpoint is run.best)
                found.append(answer)
    return found


def answers_figure(run: RunFacts, answers: Sequence[Answer], name: str) -> Markup:
    """Return achieved against asked return."""

    def draw(width: float, picture: str) -> Markup:
        return draw_answers(answers, run.data, f"Achieved against asked return of {run.name}", width, picture)

    caption = "On the rising line the policy returns what it is asked for. Filled: the best checkpoint"
    return pieces.figure(draw, name, f"{caption}{', hollow: the last one' if run.last else ''}; bars: 95 % intervals.")


def marked_places(run: RunFacts, x_name: str) -> list[tuple[str, float]]:
    """Return where the best checkpoint is on a learning curve."""
    place = run.best.progress.get(x_name.replace("-", " ")) if run.best and run.last else None
    return [] if place is None else [("best checkpoint", float(place))]


def comparisons(run: RunFacts) -> list[tuple[str, str, str, str]]:
    """Return the returns that stand beside the run's own: what, return, interval, score."""
    reference = run.reference
    rows = []
    if measure := run.headline:
        result = measure.summary
        what = f"this run, {way_of(measure.label, measure.target)}"
        rows.append((what, show(result.return_mean), between(result.return_ci95), show(result.normalized_mean)))
    for one in run.baselines:
        score = show(reference.score(one.return_mean)) if reference else "–"
        rows.append((one.name, show(one.return_mean), between(one.return_ci95), score))
    if run.data:
        score = show(reference.score(run.data.return_mean)) if reference else "–"
        rows.append(("all of the data", show(run.data.return_mean), "–", score))
    if reference:
        rows += [
            ("a uniform random policy", show(reference.minimum), "–", "0"),
            ("an expert", show(reference.maximum), "–", "100"),
        ]
    return rows if len(rows) > 1 else []


def comparisons_table(run: RunFacts, rows: Sequence[tuple[str, str, str, str]]) -> Markup:
    """Return the table of what to compare with."""
    caption = "Mean returns"
    if run.reference:
        caption += f"; scores by {run.reference.title}"
    if any(not one.is_policy for one in run.baselines):
        caption += ". Cloning the best tenth of the data aims at its mean; that line is data, no policy was measured"
    note = f". {run.reference.note}" if run.reference and run.reference.note else ""
    return pieces.table(COMPARED, rows, caption=caption + note, words=[0])


def data_table(run: RunFacts) -> Markup:
    """Return the quantiles of the data's returns."""
    assert run.data
    data = run.data
    names = {"p0": "lowest", "p50": "median", "p100": "highest"}
    headings = [names.get(name, f"{name[1:]} %") for name in data.quantiles]
    size = f"{data.num_episodes:,} episodes, {data.num_transitions:,} transitions"
    caption = f"{short(data.dataset)}, {size}: quantiles of the episodes' returns"
    return pieces.table(headings, [[show(value) for value in data.quantiles.values()]], caption=caption)


def video_figure(run: Path, video: Path) -> Markup:
    """Return a video with all of its bytes in the page."""
    kind = MIME[video.suffix.lower()]
    address = f"data:{kind};base64,{base64.b64encode(video.read_bytes()).decode('ascii')}"
    label = f"Episodes of {run.name}"
    shown = tag("img", src=address, alt=label)
    if kind.startswith("video"):
        shown = tag("video", src=address, controls=True, playsinline=True, muted=True, loop=True, aria_label=label)
    return tag("figure", shown, tag("figcaption", f"{video.parent.name}/{video.name}"))

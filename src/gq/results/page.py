"""The page: one HTML file with everything in it, no script and nothing from elsewhere."""

from collections.abc import Sequence
from importlib import resources
from typing import Any

from gq.results import pieces
from gq.results.charts import Landmark, Strip
from gq.results.facts import Facts, Group, GroupRow, RunFacts
from gq.results.markup import Markup, join, tag
from gq.results.report_figures import learning_figure, returns_figure
from gq.results.run_section import run_section, tiles_of
from gq.results.words import between, describe_result, describe_run, row_name, say_episode, show

# The browser is told, too, that the page needs nothing: no script and no address.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def render_page(facts: Facts) -> str:
    """Return a report as HTML."""
    style = (resources.files("gq.results") / "style.css").read_text(encoding="utf-8")
    title = title_of(facts)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="generator", content=f"gq {facts.version}"),
        tag("title", f"{title} · gq report"),
        tag("style", Markup(style)),
    )
    is_single = len(facts.runs) == 1
    body = single(facts) if is_single else several(facts)
    footer = tag("footer", tag("p", f"Made by gq {facts.version} on {facts.created}: ", tag("code", facts.command)))
    skip = tag("a", "Skip to the results", href="#main", class_="skip")
    return "<!doctype html>\n" + tag("html", head, tag("body", skip, body, footer), lang="en") + "\n"


def title_of(facts: Facts) -> str:
    """Return what the page is called."""
    if len(facts.runs) == 1:
        return facts.runs[0].name
    tasks = dict.fromkeys(run.task for run in facts.runs)
    return f"{len(facts.runs)} runs on {', '.join(tasks)}"


def masthead(facts: Facts, *parts: Any) -> Markup:
    """Return the top of the page."""
    eyebrow = tag("p", f"Report card · gq {facts.version} · {facts.created}", class_="eyebrow")
    return tag("header", eyebrow, tag("h1", title_of(facts)), *parts)


def single(facts: Facts) -> Markup:
    """Return the page of one run."""
    (run,) = facts.runs
    lead = tag("p", f"{describe_run(run)} {describe_result(run)}", class_="lead")
    top = masthead(facts, lead, tiles_of(run), pieces.notes([*facts.notes, *run.notes]))
    return join(top, tag("main", run_section(run, facts.learning.get(str(run.path)), "run", "h2"), id="main"))


def several(facts: Facts) -> Markup:
    """Return the page of several runs: what they returned together, then each by itself."""
    lead = tag("p", [(sentence_of(group), tag("br")) for group in facts.groups], class_="lead")
    sections = [tag("h2", "Comparison"), comparison_table(facts)]
    for index, task in enumerate(dict.fromkeys(run.task for run in facts.runs)):
        sections.append(task_section(facts, task, f"all-{index}"))
    sections.append(tag("h2", "The runs"))
    for index, run in enumerate(facts.runs):
        measure = run.headline
        more = tag("span", f"{show(measure.summary.return_mean)} on average" if measure else "not evaluated")
        content = [
            tag("p", f"{describe_run(run)} {describe_result(run)}"),
            pieces.notes(run.notes),
            run_section(run, facts.learning.get(str(run.path)), f"run-{index}", "h3"),
        ]
        sections.append(tag("details", tag("summary", run.name, " ", more), content, class_="run"))
    missing = [f"{run.name}: {note}" for run in facts.runs for note in run.notes]
    top = masthead(facts, lead, pieces.notes([*facts.notes, *missing][:8]))
    return join(top, tag("main", sections, id="main"))


def sentence_of(group: Group) -> str:
    """Return what a group returned where most was asked."""
    row = headline_of(group)
    name = f"{group.name} ({len(group.runs)} runs)" if len(group.runs) > 1 else group.name
    if not row:
        return f"{name}: not evaluated yet."
    over = "runs" if len(row.means) > 1 else "episodes"
    how = f"95 % interval over {over} {between(row.ci95)}" if row.ci95 else "no interval: a seed is repeated"
    asked = f", asked for {row.target:,.10g}" if row.target is not None else ""
    return f"{name}: {show(row.mean)} on average{asked} ({how})."


def headline_of(group: Group) -> GroupRow | None:
    """Return the row of a group where most was asked."""
    return max(group.rows, key=lambda row: row.target or 0.0, default=None)


def comparison_table(facts: Facts) -> Markup:
    """Return the table that stands on top: groups and what they were asked for."""
    rows: list[tuple[str, ...]] = []
    classes = []
    for group in facts.groups:
        for row in group.rows:
            over = f"{len(row.means)} runs" if len(row.means) > 1 else f"{row.num_episodes} episodes"
            asked = f"{row.target:,.10g}" if row.target is not None else "–"
            numbers = (show(row.mean), between(row.ci95), over, show(row.iqm), show(row.score), show(row.last_mean))
            rows.append((group.name, asked, *numbers))
            classes.append("main" if row == headline_of(group) else "")
        if not group.rows:
            rows.append((group.name, *["–"] * 7))
            classes.append("quiet")
    headings = ["runs", "asked for", "mean", "95 % interval", "over", "IQM", "score", "last checkpoint"]
    names = list(dict.fromkeys(run.reference.title for run in facts.runs if run.reference))
    caption = "Best checkpoints; runs that differ by their seed alone are one line"
    return pieces.table(
        headings, rows, caption=f"{caption}. Scores by {', '.join(names) or 'no reference'}", classes=classes
    )


def task_section(facts: Facts, task: str, name: str) -> Markup:
    """Return the pictures of all runs of a task."""
    groups = [group for group in facts.groups if group.task == task]
    runs = [run for run in facts.runs if run.task == task]
    datas = {run.data.fingerprint: run.data for run in runs if run.data}
    data = next(iter(datas.values())) if len(datas) == 1 else None
    strips = [strip_of(group, row, index, len(groups)) for index, group in enumerate(groups) for row in group.rows]
    parts: list[Any] = [tag("h2", f"Returns on {task}")]
    if strips:
        marks = landmarks_of(runs, with_data=data is not None)
        dots = "Each dot is an episode of a best checkpoint; intervals are over runs where there are several."
        parts.append(returns_figure(strips, data, marks, f"Returns on {task}", dots, f"{name}-returns"))
    if (learning := facts.learning.get("")) and task in learning.tasks:
        parts.append(learning_figure(learning, task, [], f"{name}-learning"))
    return join(parts)


def strip_of(group: Group, row: GroupRow, index: int, num_groups: int) -> Strip:
    """Return the episodes of a group in one way, by all of its runs."""
    dots = [
        (episode.episode_return, f"{run}, {say_episode(measure, i)}")
        for run, measure in zip(group.runs, row.measures, strict=False)
        for i, episode in enumerate(measure.episodes)
    ]
    return Strip(row_name(group, row, num_groups), dots, row.mean, row.ci95, row.iqm, row.target, index)


def landmarks_of(runs: Sequence[RunFacts], *, with_data: bool) -> list[Landmark]:
    """Return the returns to compare with that several runs have in common."""
    references = {run.reference for run in runs}
    marks = []
    if len(references) == 1 and (reference := runs[0].reference):
        marks += [Landmark("random", reference.minimum), Landmark("expert", reference.maximum)]
    data = next((run.data for run in runs if run.data), None)
    if with_data and data:
        marks.append(Landmark("best tenth of the data", data.top_mean))
    return marks

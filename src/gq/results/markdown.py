"""A report as Markdown: the tables and the protocol, without pictures."""

from collections.abc import Sequence
from typing import Any

from gq.results.facts import Facts, RunFacts
from gq.results.protocol import protocol_of
from gq.results.run_section import COMPARED, comparisons, result_headings, result_row
from gq.results.words import between, describe_result, describe_run, show

SPECIAL = "\\`*_{}[]<>|#&~"


def render_markdown(facts: Facts) -> str:
    """Return a report as Markdown."""
    lines = [f"# {plain(run_title(facts))}", ""]
    if len(facts.runs) > 1:
        lines += ["Best checkpoints; runs that differ by their seed alone are one line.", "", *comparison(facts)]
        lines += [*[f"- Note: {plain(note)}" for note in facts.notes], ""] if facts.notes else []
    for run in facts.runs:
        if len(facts.runs) > 1:
            lines += [f"## {plain(run.name)}", ""]
        lines += [*run_lines(run), ""]
    lines += [f"Made by gq {facts.version} on {facts.created}:", "", f"    {one_line(facts.command)}", ""]
    return "\n".join(lines)


def run_title(facts: Facts) -> str:
    """Return the heading."""
    return facts.runs[0].name if len(facts.runs) == 1 else f"{len(facts.runs)} runs"


def comparison(facts: Facts) -> list[str]:
    """Return the table of all groups."""
    rows = [
        (
            group.name,
            show(row.target),
            show(row.mean),
            between(row.ci95),
            len(row.means),
            show(row.iqm),
            show(row.score),
            show(row.last_mean),
        )
        for group in facts.groups
        for row in group.rows
    ]
    return [
        *table(["runs", "asked for", "mean", "95 % interval", "number", "IQM", "score", "last checkpoint"], rows),
        "",
    ]


def run_lines(run: RunFacts) -> list[str]:
    """Return the part about one run."""
    lines = [plain(f"{describe_run(run)} {describe_result(run)}"), ""]
    lines += [*[f"- Note: {plain(note)}" for note in dict.fromkeys(run.notes)], ""] if run.notes else []
    pairs = (("best", run.best), ("last", run.last))
    rows = [result_row(measure, which) for which, found in pairs if found for measure in found.measures]
    lines += [*table(result_headings("asked for", "score"), rows), ""] if rows else []
    if beside := comparisons(run):
        lines += [*table(COMPARED, beside), ""]
    lines += [f"- {plain(name)}: {'; '.join(map(plain, found))}" for name, found in protocol_of(run)]
    for what, command in run.commands:
        lines += ["", f"{what}:", "", f"    {one_line(command)}"]
    return lines


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return a table; columns after the first are aligned to the right."""
    rules = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(line)} |" for line in (headings, rules, *([plain(cell) for cell in row] for row in rows))]


def plain(value: object) -> str:
    """Return text that is nothing but text in Markdown."""
    words = one_line(str(value).encode("utf-8", "replace").decode("utf-8"))
    return "".join(f"\\{letter}" if letter in SPECIAL else letter for letter in words)


def one_line(words: str) -> str:
    """Return text without line breaks."""
    return " ".join(words.split())

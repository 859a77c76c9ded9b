"""Reports of runs: the facts gathered, and written as HTML, Markdown or JSON."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from gq.errors import UsageError
from gq.files import write_json, write_text
from gq.paths import check_still_there
from gq.results.facts import Facts
from gq.results.gather import Wishes, gather

KINDS = (".html", ".md", ".json")


def report(runs: Sequence[Path], output: Path | None = None, wishes: Wishes | None = None) -> tuple[Facts, Path | None]:
    """Gather the facts of runs and write them to a file; return them, with the file.

    Args:
        output: .html, .md or .json, replaced if it is there; None: no file.

    Raises:
        UsageError: the name of the file ends in something else, or no run is given.
        GqError: a run is damaged, an evaluation or a video cannot be made, or the file cannot be written.
    """
    if not runs:
        raise UsageError("no run given", hint="name one, or take the newest with --latest")
    check_kind(output)
    facts = gather(list(dict.fromkeys(run.resolve() for run in runs)), wishes or Wishes())
    if output:
        for run in runs:
            check_still_there(output, run)
        write(facts, output)
    return facts, output


def check_kind(output: Path | None) -> None:
    """Raise UsageError for a file of a kind that reports do not have."""
    if output and output.suffix.lower() not in KINDS:
        raise UsageError(f"{output} is not a report's name", hint=f"end it in {', '.join(KINDS)}")


def write(facts: Facts, path: Path) -> None:
    """Write a report in the form that the file's name asks for.

    Raises:
        GqError: the file cannot be written.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        write_json(path, facts.document())
        return
    if kind == ".md":
        from gq.results.markdown import render_markdown

        write_text(path, render_markdown(facts))
        return
    from gq.results.page import render_page

    write_text(path, render_page(facts))


def default_path(runs: Sequence[Path]) -> Path:
    """Return where a report goes: a run's own is made anew each time, one of several runs has a name of its own."""
    if len(runs) == 1:
        return runs[0] / "report.html"
    return runs[0] / f"report-{len(runs)}-runs-{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}.html"

"""`gq doctor`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.doctor import Examination

EXAMPLES = """\b
Examples:
  gq doctor
  gq doctor --offline --json
  gq doctor --verify                     hash all datasets and checkpoints
Exit code 0: nothing is wrong; 1: there are problems, each with the command
that fixes it. Warnings and notes do not count."""


@options.grouped
def doctor(
    offline: options.Offline = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash datasets and checkpoints, instead of comparing sizes.")
    ] = False,
    *,
    output: Output,
) -> None:
    """Examine versions, hardware, OpenGL, threads, disk, cache, runs and servers; with -q print what fixes problems."""
    from gq import threads
    from gq.errors import GqError

    threads.prepare()
    from gq.doctor import examine

    examination = examine(offline=offline, verify=verify, note=output.detail)
    problems = examination.problems
    fixes = "\n".join(finding.fix for finding in problems)
    output.result(examination.to_dict(), quiet=fixes, human=report(output, examination))
    if problems:
        number = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise GqError(f"{number}: {', '.join(finding.subject for finding in problems)}", hint=problems[0].fix)


def report(output: Output, examination: "Examination") -> Any:
    """The findings as a table, and what fixes them."""
    from rich.console import Group

    rows = [(finding.status, finding.subject, finding.text) for finding in examination.findings]
    fixes = [
        f"{finding.subject}: {finding.fix}"
        for status in ("problem", "warning", "note")
        for finding in examination.findings
        if finding.status == status and finding.fix
    ]
    table = output.table(["", "what", "found"], rows, num_left=3)
    return Group(table, *(["", "to fix it:", *fixes] if fixes else []))

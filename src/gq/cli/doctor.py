"""`gq doctor`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.doctor.examine import Examination

EXAMPLES = """\b
Examples:
  gq doctor
  gq doctor --offline --json
  gq doctor --verify                     hash all datasets and checkpoints
  gq doctor --selftest 5                 kill and resume a small training
Exit code 0: nothing is wrong; 1: there are problems, each with the command
that mends it. Warnings and notes do not count."""


@options.grouped
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Ask no server.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash datasets and checkpoints, instead of comparing sizes.")
    ] = False,
    selftest: Annotated[
        int, typer.Option(metavar="N", min=0, help="Kill a small training N times and resume it; seconds each.")
    ] = 0,
    *,
    output: Output,
) -> None:
    """Examine versions, hardware, OpenGL, threads, disk, cache, runs and servers; with -q print what mends problems."""
    from gq import threads
    from gq.errors import GqError

    threads.prepare()
    from gq.doctor.examine import examine

    examination = examine(
        offline=offline, verify=verify, num_kills=selftest, note=output.note if selftest else output.detail
    )
    problems = examination.problems
    mends = "\n".join(finding.mend for finding in problems)
    output.result(examination.to_dict(), quiet=mends, human=report(output, examination))
    if problems:
        number = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise GqError(f"{number}: {', '.join(finding.subject for finding in problems)}", hint=problems[0].mend)


def report(output: Output, examination: "Examination") -> Any:
    """Return the findings as a table, and what mends them."""
    from rich.console import Group

    rows = [(finding.status, finding.subject, finding.text) for finding in examination.findings]
    mends = [
        f"{finding.subject}: {finding.mend}"
        for status in ("problem", "warning", "note")
        for finding in examination.findings
        if finding.status == status and finding.mend
    ]
    table = output.table(["", "what", "found"], rows, num_left=3)
    return Group(table, *(["", "to mend it:", *mends] if mends else []))

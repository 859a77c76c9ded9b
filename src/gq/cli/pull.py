"""`gq pull`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.errors import UsageError

EXAMPLES = """\b
Examples:
  gq pull me/hopper-dt                   a run, into the runs folder
  gq pull me/hopper-dt@v1 --out runs/a   a tag, branch or commit
  gq eval hopper-dt                      what it is worth
  gq pull datasets/me/data               as gq download hf://me/data
HF_TOKEN opens private repositories. Nothing of what comes is executed."""


@options.grouped
def pull(
    repo: Annotated[
        str | None, typer.Argument(metavar="REPO", help="ORG/NAME, or ORG/NAME@REVISION.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; default: NAME in the runs folder.")
    ] = None,
    offline: options.Offline = False,
    *,
    output: Output,
) -> None:
    """Get a run from the Hugging Face Hub, checked, to evaluate, render and report; or a dataset."""
    from gq.datasets.hub import refuse_offline
    from gq.datasets.names import PREFIX, parse_reference

    if not repo:
        raise UsageError("no repository named", hint="for example gq pull me/hopper-dt")
    reference = parse_reference(repo)
    if repo.removeprefix(PREFIX).startswith("datasets/"):
        from gq.cli.download import Fetching, fetch_all, selected, show_results

        entries = selected([f"{PREFIX}{reference}"], None, False)
        show_results(output, fetch_all(output, entries, Fetching(offline=offline), {}), is_single=True)
        return
    refuse_offline(f"{reference} is on the Hub", offline=offline, hint="the runs that are here: gq runs")
    from gq.hub.pull import pull_run

    with output.progress("pulling", unit="bytes") as move:
        pulled = pull_run(repo, out=out, report=move, note=output.note)
    state = "is here already" if pulled.was_there else f"{pulled.files} files, {pulled.size_bytes / 1e6:,.1f} MB"
    output.note(f"{pulled.repo} at {pulled.commit[:12]}: {state}")
    output.note(f"next: gq eval {shlex.quote(pulled.run.name if out is None else str(pulled.run))}")
    output.result({**vars(pulled), "run": str(pulled.run)}, quiet=pulled.run, human=str(pulled.run))

"""`gq download`."""

import dataclasses
from typing import Annotated

import typer

from gq.cli import options
from gq.cli.output import Output

EXAMPLES = """\b
Examples:
  gq download builtin/hopper/medium      simulated here, needs no network
  gq download builtin/hopper/expert --transitions 200000
  gq download humanoid                   Minari's mujoco/humanoid/medium-v0
  gq download --list"""


def download(
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="ID", help="A dataset's name.", autocompletion=options.complete_from(options.known_datasets)
        ),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the datasets that gq knows.")] = False,
    transitions: Annotated[
        int | None, typer.Option(metavar="N", help="How many to simulate (built-in datasets only).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that is there already.")] = False,
    json_mode: options.JsonMode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Fetch or simulate a dataset, check it, and keep it in the cache.

    `gq train` takes the one downloaded last unless told otherwise.
    """
    output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose, no_color=no_color, no_progress=no_progress)
    from gq.errors import UsageError

    if list_all:
        show_list(output)
        return
    if dataset is None:
        raise UsageError("no dataset given", hint="gq download builtin/hopper/medium, or see gq download --list")
    from gq.data.registry import resolve

    entry = resolve(dataset)
    from gq.data.datasets import download as download_dataset

    verb, unit = ("simulating", "steps") if entry.kind == "builtin" else ("downloading", "bytes")
    with output.progress(f"{verb} {entry.id}", unit=unit) as move:
        done = download_dataset(entry.id, num_transitions=transitions, force=force, progress=move, note=output.note)
    output.note(
        f"{done.id}: {done.num_transitions:,} transitions, {done.num_episodes:,} episodes, "
        f"return {done.return_mean:.0f} ± {done.return_std:.0f}"
    )
    output.result({**dataclasses.asdict(done), "path": str(done.path)}, quiet=done.path, human=str(done.path))


def show_list(output: Output) -> None:
    """Print the registry."""
    from gq.data.registry import ENTRIES, cached

    entries = list(ENTRIES.values())
    documents = [
        {"id": e.id, "task": e.task, "size_bytes": e.size_bytes, "cached": cached(e), "kind": e.kind} for e in entries
    ]
    rows = [(e.id, e.task, f"{e.size_bytes / 1e6:,.0f} MB", e.kind, "cached" if cached(e) else "") for e in entries]
    table = output.table(["dataset", "task", "about", "kind", ""], rows)
    output.result({"datasets": documents}, quiet="\n".join(e.id for e in entries), human=table)

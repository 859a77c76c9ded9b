"""`gq runs`: rename, remove and prune."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.asking import ask
from gq.cli.output import Output
from gq.cli.runs import megabytes
from gq.cli.runs import runs_app as runs_app

if TYPE_CHECKING:
    from gq.runs.changes import Doomed

RENAME_EXAMPLES = """\b
Examples:
  gq runs rename hopper-v5-dt-1m-20261121 hopper-best
Runs that were finetuned from it find it under its new name."""
REMOVE_EXAMPLES = """\b
Examples:
  gq runs remove hopper-v5-dt-1m-20261121
  gq runs remove first second --yes
  gq runs remove first --dry-run"""
PRUNE_EXAMPLES = """\b
Examples:
  gq runs prune --failed --empty --dry-run
  gq runs prune --checkpoints        keep the best and the last of each run
  gq runs prune --older-than 90
  gq runs prune --checkpoints --older-than 30 --yes"""

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go, and stop.")]
Names = typer.Argument(
    metavar="RUN...",
    help="Ids of runs, unique prefixes of them, or paths.",
    autocompletion=options.complete_from(options.known_runs),
)


@runs_app.command("rename", epilog=RENAME_EXAMPLES, short_help="Give a run another name.")
@options.grouped
def rename(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's id, a unique prefix of one, or a path to it.",
            autocompletion=options.complete_from(options.known_runs),
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new id.")],
    *,
    output: Output,
) -> None:
    """Give a run another name in the same folder, and print its path."""
    from gq.paths import find_whole_run

    folder = find_whole_run(run)
    from gq.runs.changes import rename as rename_run

    path = rename_run(folder, name)
    output.result({"run": str(path), "before": folder.name, "name": path.name}, quiet=path, human=str(path))


@runs_app.command("remove", epilog=REMOVE_EXAMPLES, short_help="Remove runs.")
@options.grouped
def remove(
    runs: Annotated[list[str], Names],
    yes: Yes = False,
    dry_run: DryRun = False,
    *,
    output: Output,
) -> None:
    """Remove runs with all that is in their folders, after asking. A run that is running stays."""
    from gq.paths import find_whole_run

    folders = list(dict.fromkeys(find_whole_run(name) for name in runs))
    from gq.runs.changes import doom, refuse_in_use

    for folder in folders:
        refuse_in_use(folder)
    carry_out(output, [doom(folder, "named") for folder in folders], yes=yes, dry_run=dry_run)


@runs_app.command("prune", epilog=PRUNE_EXAMPLES, short_help="Remove what is not needed.")
@options.grouped
def prune(
    runs: Annotated[list[str] | None, Names] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Runs that ended with an error.")] = False,
    empty: Annotated[bool, typer.Option("--empty", help="Runs without a checkpoint.")] = False,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Checkpoints that are neither the best nor the last.")
    ] = False,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, help="Only what has not changed for so long; alone, any such run."),
    ] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    *,
    output: Output,
) -> None:
    """Remove failed, empty or old runs, or checkpoints, after asking; of all runs or of those that are named."""
    from gq.errors import UsageError

    if not (failed or empty or checkpoints or older_than is not None):
        hint = "choose of --failed, --empty, --checkpoints and --older-than DAYS; --dry-run shows what would go"
        raise UsageError("nothing to prune by", hint=hint)
    from gq.paths import find_whole_run

    folders = [find_whole_run(name) for name in runs or []]
    from gq.runs.changes import plan_prune, stillborn
    from gq.runs.records import list_runs, read_run

    records = [read_run(folder) for folder in folders] if runs else list_runs()
    doomed = plan_prune(records, failed=failed, empty=empty, checkpoints=checkpoints, older_than_days=older_than)
    if empty and not runs:
        doomed += stillborn()
    carry_out(output, doomed, yes=yes, dry_run=dry_run)


def carry_out(output: Output, doomed: "list[Doomed]", *, yes: bool, dry_run: bool) -> None:
    """Show what is to go, ask, remove it, and print the paths."""
    from gq.runs import changes
    from gq.runs.lineage import dependants_of

    num_bytes = sum(one.num_bytes for one in doomed)
    document: dict[str, Any] = {
        "removed": [one.to_dict() for one in doomed],
        "freed_bytes": num_bytes,
        "dry_run": dry_run,
    }
    for one in doomed:
        output.note(f"{one.path}  {megabytes(one.num_bytes)}  {one.reason}")
        for child in dependants_of(one.run) if one.path == one.run else ():
            output.warn(f"{child} was to begin from it, and cannot then")
    if doomed and not dry_run:
        things = f"{len(doomed)} folders" if len(doomed) > 1 else str(doomed[0].path)
        ask(f"remove {things} ({megabytes(num_bytes)})?", refusal=f"not removing {things} without being sure", yes=yes)
        changes.remove(doomed)
    paths = "\n".join(str(one.path) for one in doomed)
    if dry_run or not doomed:
        human = f"{megabytes(num_bytes)} would be freed; nothing was removed" if doomed else "nothing to remove"
    else:
        human = f"{megabytes(num_bytes)} freed"
    output.result(document, quiet=paths, human=human)

"""`gq runs`: list, show, rename, remove and prune."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from gq.cli import options
from gq.cli.output import Output, ask
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.runs.changes import Removal
    from gq.runs.details import RunDetails
    from gq.runs.records import RunRecord

GROUP_EXAMPLES = """\b
Examples:
  gq runs                                all of them, as gq runs list
  gq runs show --latest
  gq runs rename hopper-v5-dt-1m-2026 hopper-best
  gq runs remove hopper-v5-bc
  gq runs prune --failed --empty
A run is named by its id, a unique prefix of it, or a path."""
LIST_EXAMPLES = """\b
Examples:
  gq runs list
  gq runs list --task hopper --algo dt --sort score
  gq runs list --state interrupted -q
  gq runs --sweep sizes
Scores are mean returns of evaluations while training, at the highest target:
the last one and the best one."""
SHOW_EXAMPLES = """\b
Examples:
  gq runs show --latest
  gq runs show hopper-v5-dt-1m --json"""
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
ALGORITHMS = ["dt", "bc", "odt", "td3bc", "finetune", "tdmpc2"]
STATES = ["running", "finished", "interrupted", "failed"]


class RunsGroup(typer.core.TyperGroup):
    """The group; alone, or with options only, it lists."""

    default = "list"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` where no subcommand is; completion shows the subcommands."""
        is_list = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        return super().parse_args(ctx, ["list", *args] if is_list and not ctx.resilient_parsing else args)


runs_app = typer.Typer(cls=RunsGroup, help="List, show and remove runs.", epilog=GROUP_EXAMPLES, rich_markup_mode=None)

Algo = Annotated[str, options.completed("NAME", "dt, bc, odt, finetune or tdmpc2.", lambda: ALGORITHMS)]
StateName = Annotated[
    Literal["", "running", "finished", "interrupted", "failed"],
    options.completed("STATE", "running, finished, interrupted or failed.", lambda: STATES),
]
Order = Annotated[Literal["newest", "name", "size", "score"], typer.Option(help="The order; score is the best one.")]
RUN_HELP = "A run's id, a unique prefix of one, or a path to it."
RunToRename = Annotated[str, options.completed("RUN", RUN_HELP, options.known_runs, kind=typer.Argument)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and stop.")]


@runs_app.command("list", epilog=LIST_EXAMPLES, short_help="List runs: state, scores, size.")
@options.grouped
def list_runs(
    task: Annotated[str, typer.Option(metavar="WORD", help="Only tasks with this in their name.")] = "",
    algo: Algo = "",
    state: StateName = "",
    sort: Order = "newest",
    limit: Annotated[int, options.number("How many at most; 0: all.", min=0)] = 100,
    sweep: Annotated[str | None, typer.Option(metavar="SWEEP", help="The runs of a sweep instead.")] = None,
    *,
    output: Output,
) -> None:
    """List the runs of the runs folder, or of a sweep; with -q only their ids."""
    from gq.paths import all_runs, find_sweep, runs_folder, runs_of_sweep
    from gq.runs import records

    place = find_sweep(sweep) if sweep is not None else None
    runs = runs_of_sweep(place) if place else all_runs()
    found = records.list_runs(runs, task=task, algo=algo, state=state, order=sort, limit=limit or None)
    folder = place / "runs" if place else runs_folder()
    document = {"folder": str(folder), "runs": [record.to_dict() for record in found]}
    nothing = f"no run in {folder}" + (" fits" if task or algo or state else "")
    human = list_table(output, found) if found else nothing
    output.result(document, quiet="\n".join(record.name for record in found), human=human)
    if found and not output.json_mode:
        total = sum(record.num_bytes for record in found)
        left = len(runs) - len(found) if len(found) == limit else 0
        more = f", {left:,} more with --limit 0" if left > 0 else ""
        output.note(f"{len(found)} runs, {megabytes(total)}, in {folder}{more}")


def list_table(output: Output, records: "list[RunRecord]") -> Any:
    """The runs as a table."""
    rows = [
        (
            record.name,
            record.state if not record.imported else "imported",
            f"{record.step:,}" if record.decisions is None else f"{record.decisions:,} decisions",
            number(record.last_return),
            number(record.best_return),
            megabytes(record.num_bytes),
            record.changed[:16].replace("T", " "),
        )
        for record in records
    ]
    return output.table(["run", "state", "step", "last", "best", "size", "changed (UTC)"], rows)


@runs_app.command("show", epilog=SHOW_EXAMPLES, short_help="Show everything about a run.")
@options.grouped
def show(run: options.RunName = None, latest: options.Latest = False, *, output: Output) -> None:
    """Show a run: what is special about it, its scores, what it holds, where it came from, how to make it again."""
    from gq.paths import find_run

    folder, _ = find_run(run, latest=latest)
    from gq.runs.details import describe

    details = describe(folder)
    output.result(details.to_dict(), quiet=str(folder), human=details_text(output, details))


def details_text(output: Output, details: "RunDetails") -> Any:
    """Everything about a run, for people."""
    from rich.console import Group

    record = details.record
    lines = [
        f"{record.name}: {record.algo or 'unreadable'} {record.size} on {record.task}, {record.state}",
        f"in {record.run}, {megabytes(record.num_bytes)}: "
        + ", ".join(f"{name} {megabytes(size)}" for name, size in details.disk.items()),
    ]
    if record.failure:
        lines.append(f"it ended with: {record.failure}")
    if record.best_return is not None:
        last = f"last {number(record.last_return)}, " if record.last_return is not None else ""
        lines.append(f"return while training: {last}best {number(record.best_return)} at step {record.best_step}")
    if details.parent:
        gone = "" if details.parent.is_there else ", which is gone"
        lines.append(f"finetuned from {details.parent.run} {details.parent.checkpoint}{gone}")
    lines += [f"finetuned from it: {child}" for child in details.children]
    lines += [f"corrector {one.name} of {one.checkpoint}" for one in details.correctors]
    parts: list[Any] = ["\n".join(lines)]
    if details.differing:
        rows = [(key, text(pair[0]), text(pair[1])) for key, pair in details.differing.items()]
        parts.append(output.table(["not as in the preset", "here", "there"], rows))
    if details.checkpoints:
        rows = [
            (one.name, " ".join(["best"] * one.is_best + ["last"] * one.is_last), megabytes(one.num_bytes))
            for one in details.checkpoints
        ]
        parts.append(output.table(["checkpoint", "", "size"], rows))
    if details.evaluations:
        rows = [
            (one.file.name, one.checkpoint, ", ".join(f"{value:.0f} at {key}" for key, value in one.results.items()))
            for one in details.evaluations
        ]
        parts.append(output.table(["evaluation", "checkpoint", "returns"], rows))
    parts += [f"video {path}" for path in details.videos]
    if details.versions:
        parts.append("made with " + ", ".join(f"{name} {version}" for name, version in details.versions.items()))
    commands = [command for command in (details.data_command, details.command) if command]
    return Group(*parts, *([f"again: {' && '.join(commands)}"] if details.command else []))


def text(value: Any) -> str:
    """A setting for people."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def number(value: float | None) -> str:
    """A return for people."""
    return "" if value is None else f"{value:.0f}"


def megabytes(num_bytes: int) -> str:
    """A size for people."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


@runs_app.command("rename", epilog=RENAME_EXAMPLES, short_help="Give a run another name.")
@options.grouped
def rename(
    run: RunToRename, name: Annotated[str, typer.Argument(metavar="NAME", help="The new id.")], *, output: Output
) -> None:
    """Give a run another name in the same folder, and print its path."""
    from gq.paths import find_whole_run

    folder = find_whole_run(run)
    from gq.runs import changes

    path = changes.rename(folder, name)
    output.result({"run": str(path), "before": folder.name, "name": path.name}, quiet=path, human=str(path))


@runs_app.command("remove", epilog=REMOVE_EXAMPLES, short_help="Remove runs.")
@options.grouped
def remove(
    runs: Annotated[list[str], options.RUNS], yes: options.Yes = False, dry_run: DryRun = False, *, output: Output
) -> None:
    """Remove runs with all that is in their folders, after asking. A run that is running stays."""
    from gq.paths import find_whole_run

    folders = list(dict.fromkeys(find_whole_run(name) for name in runs))
    from gq.runs.changes import refuse_in_use, removal_of

    for folder in folders:
        refuse_in_use(folder)
    carry_out(output, [removal_of(folder, "named") for folder in folders], yes=yes, dry_run=dry_run)


@dataclass(frozen=True)
class Criteria:
    """What makes a run or a checkpoint superfluous."""

    failed: Annotated[bool, typer.Option("--failed", help="Runs that ended with an error.")] = False
    empty: Annotated[bool, typer.Option("--empty", help="Runs without a checkpoint.")] = False
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Checkpoints that are neither the best nor the last.")
    ] = False
    older_than_days: Annotated[
        float | None,
        typer.Option(
            "--older-than", metavar="DAYS", min=0, help="Only what has not changed for this long; alone, any such run."
        ),
    ] = None


@runs_app.command("prune", epilog=PRUNE_EXAMPLES, short_help="Remove what is not needed.")
@options.grouped
def prune(
    runs: Annotated[list[str] | None, options.RUNS] = None,
    *,
    criteria: Criteria,
    yes: options.Yes = False,
    dry_run: DryRun = False,
    output: Output,
) -> None:
    """Remove failed, empty or old runs, or checkpoints, after asking; of all runs or of those that are named."""
    if criteria == Criteria():
        hint = "choose of --failed, --empty, --checkpoints and --older-than DAYS; --dry-run shows what would go"
        raise UsageError("nothing to prune by", hint=hint)
    from gq.paths import find_whole_run

    folders = [find_whole_run(name) for name in runs or []]  # a wrong name is refused before anything heavy is loaded
    from gq.runs import records
    from gq.runs.changes import folders_without_run, plan_prune

    named = [records.read_run(folder) for folder in folders]
    removals = plan_prune(named if runs else records.list_runs(), **vars(criteria))
    if criteria.empty and not runs:
        removals += folders_without_run()
    carry_out(output, removals, yes=yes, dry_run=dry_run)


def carry_out(output: Output, removals: "list[Removal]", *, yes: bool, dry_run: bool) -> None:
    """Show what is to be removed, ask, remove it, and print the paths."""
    from gq.runs import changes
    from gq.runs.records import dependants_of

    num_bytes = sum(one.num_bytes for one in removals)
    document = {"removed": [one.to_dict() for one in removals], "freed_bytes": num_bytes, "dry_run": dry_run}
    for one in removals:
        output.note(f"{one.path}  {megabytes(one.num_bytes)}  {one.reason}")
        for child in dependants_of(one.run) if one.path == one.run else ():
            output.warn(f"{child} was to begin from it, and cannot then")
    human = f"{megabytes(num_bytes)} would be freed; nothing was removed" if removals else "nothing to remove"
    if removals and not dry_run:
        things = f"{len(removals)} folders" if len(removals) > 1 else str(removals[0].path)
        ask(f"remove {things} ({megabytes(num_bytes)})?", refusal=f"not removing {things} without being sure", yes=yes)
        changes.remove(removals)
        human = f"{megabytes(num_bytes)} freed"
    output.result(document, quiet="\n".join(str(one.path) for one in removals), human=human)

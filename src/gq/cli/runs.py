"""`gq runs`: list and show."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
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
Scores are mean returns of evaluations while training, at the highest target:
the last one and the best one."""
SHOW_EXAMPLES = """\b
Examples:
  gq runs show --latest
  gq runs show hopper-v5-dt-1m --json"""
STATES = ("running", "finished", "interrupted", "failed")


class RunsGroup(typer.core.TyperGroup):
    """The group; alone, or with options only, it lists."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` where no subcommand is; completion shows the subcommands."""
        is_list = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        return super().parse_args(ctx, ["list", *args] if is_list and not ctx.resilient_parsing else args)


runs_app = typer.Typer(cls=RunsGroup, help="List, show and remove runs.", epilog=GROUP_EXAMPLES, rich_markup_mode=None)

Algo = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="dt, bc, odt, finetune or tdmpc2.",
        autocompletion=options.complete_from(lambda: ["dt", "bc", "odt", "finetune", "tdmpc2"]),
    ),
]


@runs_app.command("list", epilog=LIST_EXAMPLES, short_help="List runs: state, scores, size.")
@options.grouped
def list_runs(
    task: Annotated[str, typer.Option(metavar="WORD", help="Only tasks with this in their name.")] = "",
    algo: Algo = "",
    state: Annotated[
        Literal["", "running", "finished", "interrupted", "failed"],
        typer.Option(
            metavar="STATE",
            help="running, finished, interrupted or failed.",
            autocompletion=options.complete_from(lambda: list(STATES)),
        ),
    ] = "",
    sort: Annotated[
        Literal["newest", "name", "size", "score"], typer.Option(help="The order; score is the best one.")
    ] = "newest",
    *,
    output: Output,
) -> None:
    """List the runs of the runs folder; with -q only their ids."""
    from gq.paths import runs_folder
    from gq.runs.records import list_runs as read_runs

    records = read_runs(task=task, algo=algo, state=state, order=sort)
    document = {"folder": str(runs_folder()), "runs": [record.to_dict() for record in records]}
    human = (
        list_table(output, records)
        if records
        else f"no run in {runs_folder()}" + (" fits" if task or algo or state else "")
    )
    output.result(document, quiet="\n".join(record.name for record in records), human=human)
    if records and not output.json_mode:
        total = sum(record.num_bytes for record in records)
        output.note(f"{len(records)} runs, {megabytes(total)}, in {runs_folder()}")


def list_table(output: Output, records: "list[RunRecord]") -> Any:
    """Return the runs as a table."""
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
def show(
    run: options.RunName = None,
    latest: options.Latest = False,
    *,
    output: Output,
) -> None:
    """Show a run: what is special about it, its scores, what it holds, where it came from, how to make it again."""
    from gq.paths import find_run

    folder, _ = find_run(run, latest=latest)
    from gq.runs.details import describe

    details = describe(folder)
    output.result(details.to_dict(), quiet=str(folder), human=details_text(output, details))


def details_text(output: Output, details: "RunDetails") -> Any:
    """Return everything about a run, for people."""
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
    return Group(*parts, *([f"again: {details.command}"] if details.command else []))


def text(value: Any) -> str:
    """Return a setting for people."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def number(value: float | None) -> str:
    """Return a return for people."""
    return "" if value is None else f"{value:.0f}"


def megabytes(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"

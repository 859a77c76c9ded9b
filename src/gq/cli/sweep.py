"""`gq sweep`: run, status, stop and retry."""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from gq.cli import options
from gq.cli.output import Output
from gq.errors import GqError, UsageError

if TYPE_CHECKING:
    from gq.sweeps.folder import MemberStatus, Sweep
    from gq.sweeps.launch import SweepResult
    from gq.sweeps.local import LocalOptions
    from gq.sweeps.plan import Member, Plan

GROUP_EXAMPLES = """\b
Examples:
  gq sweep sizes.toml                    as gq sweep run sizes.toml
  gq sweep sizes.toml --jobs 4
  gq sweep status sizes
  gq sweep stop sizes
  gq sweep retry sizes
A sweep is named by its name, a unique prefix of it, or a path."""
RUN_EXAMPLES = """\b
Examples:
  gq sweep sizes.toml --jobs 2
  gq sweep sizes.toml --jobs 4 --gpus 0,1
  gq sweep sizes.toml --print            the commands; nothing is started
  gq sweep sizes.toml --slurm --time 4:00:00 --sbatch=--gres=gpu:1
The file:
  algo = "dt"
  seeds = "0-4"
  [base]
  data.dataset = "builtin/hopper/medium"
  [axes]
  optim.learning_rate = [1e-4, 1e-3]
With episodes = 20, last and best checkpoints are evaluated too.
Repeat the command to continue: what is finished is not run again."""
STATUS_EXAMPLES = """\b
Examples:
  gq sweep status sizes
  gq sweep status sizes --json"""
STOP_EXAMPLES = """\b
Examples:
  gq sweep stop sizes"""
RETRY_EXAMPLES = """\b
Examples:
  gq sweep retry sizes --jobs 2"""
SUBCOMMANDS = ("run", "status", "stop", "retry")


class SweepGroup(typer.core.TyperGroup):
    """The group; before the name of a file it runs."""

    default = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before a file's name."""
        is_run = args and args[0] not in (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, ["run", *args] if is_run and not ctx.resilient_parsing else args)


sweep_app = typer.Typer(
    cls=SweepGroup, help="Run many trainings from one file.", epilog=GROUP_EXAMPLES, rich_markup_mode=None
)


def known_sweeps() -> list[str]:
    """Return the names of the sweeps in the cache."""
    from gq.paths import SWEEP_FILE, sweeps_folder

    return sorted(path.parent.name for path in sweeps_folder().glob(f"*/{SWEEP_FILE}"))


SweepName = Annotated[
    str,
    options.completed("SWEEP", "A sweep's name, a unique prefix of one, or a path.", known_sweeps, kind=typer.Argument),
]


@dataclasses.dataclass(frozen=True)
class Machine:
    """How members share this machine."""

    jobs: Annotated[int, options.number("Members at a time; they share the cores.", min=1)] = 1
    gpus: Annotated[
        str | None, typer.Option(metavar="A,B", help="GPUs by number; jobs take them in turn, several may share one.")
    ] = None

    threads: Annotated[
        int | None, options.number("Of each member of a new sweep; default: its share of the cores.", min=1)
    ] = None

    @property
    def threads_each(self) -> int:
        """Threads of each member."""
        from gq.sweeps.local import default_threads

        return self.threads or default_threads(self.jobs)

    def gpu_names(self) -> tuple[str, ...]:
        """Return the GPUs. Raises UsageError."""
        names = tuple(part.strip() for part in (self.gpus or "").split(",")) if self.gpus is not None else ()
        if not all(names):
            raise UsageError(f"--gpus {self.gpus} is not a list of GPUs", hint="for example --gpus 0,1")
        return names


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How members are queued in Slurm."""

    slurm: Annotated[bool, typer.Option("--slurm", help="Submit the members to Slurm as a job array.")] = False
    time: Annotated[str, typer.Option(metavar="TIME", help="With --slurm: limit of a job, after which it resumes.")] = (
        ""
    )
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="OPTION", help="With --slurm: an option of sbatch; may be repeated.")
    ] = None


@sweep_app.command("run", epilog=RUN_EXAMPLES, short_help="Run or continue the sweep of a file.")
@options.grouped
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep, in TOML.")],
    *,
    machine: Machine,
    cluster: Cluster,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The sweep's name; default: the file's.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Its folder; default: one in the cache.")] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the commands, and start nothing.")] = False,
    output: Output,
) -> None:
    """Run the trainings of a file, or continue them, and write one page about all.

    Each is an ordinary run with its own checkpoints, so that everything may be killed: repeated, the command continues
    what was interrupted and starts what is missing. One that fails does not end the others.
    """
    from gq.sweeps.plan import read_plan

    plan = read_plan(file, name)
    if cluster.slurm:
        queue_plan(output, plan, out, machine, cluster, print_only=print_only)
    else:
        launch_plan(output, plan, out, machine, print_only=print_only)


def launch_plan(output: Output, plan: "Plan", out: Path | None, machine: Machine, *, print_only: bool = False) -> None:
    """Run a plan's members here, or print their commands."""
    from gq.sweeps.launch import open_sweep, run_sweep

    gpus = machine.gpu_names()
    if print_only:
        print_commands(output, plan, out, machine)
        return
    fetch_missing(output, plan.members)
    sweep, members = open_sweep(plan, out, machine.threads_each)
    output.note(f"sweep: {sweep.folder}, {len(members)} members, {sweep.threads} threads each")
    with watching(output, len(members)) as local:
        choice = dataclasses.replace(local, jobs=machine.jobs, gpus=gpus)
        result = run_sweep(sweep, members, choice)
    show(output, sweep, result)


def queue_plan(
    output: Output, plan: "Plan", out: Path | None, machine: Machine, cluster: Cluster, *, print_only: bool
) -> None:
    """Submit a plan's members to Slurm, or print the batch file."""
    from gq.sweeps.launch import open_sweep
    from gq.sweeps.slurm import SlurmOptions, batch_script, submit

    machine = dataclasses.replace(machine, threads=machine.threads or 1)  # this machine's cores say nothing of theirs
    wanted = SlurmOptions(machine.jobs if machine.jobs > 1 else 0, cluster.time, tuple(cluster.sbatch or ()))
    if print_only:
        text = batch_script(planned(plan, out, machine), plan.members, wanted).rstrip()
        output.result({"sbatch": text}, quiet=text, human=text)
        return
    fetch_missing(output, plan.members)  # here, on the login node: compute nodes may have no network
    sweep, members = open_sweep(plan, out, machine.threads_each)
    job = submit(sweep, members, wanted)
    human = f"job {job}: {sweep.folder}" if job else f"nothing is left to run: {sweep.folder}"
    output.result({"sweep": str(sweep.folder), "job": job}, quiet=job or "", human=human)
    output.note(f"next: gq sweep status {shlex.quote(sweep.name)}")


def planned(plan: "Plan", out: Path | None, machine: Machine) -> "Sweep":
    """Return the sweep that a plan would become; nothing is written."""
    from gq.paths import sweeps_folder
    from gq.sweeps.folder import Sweep

    folder = (out or sweeps_folder() / plan.name).resolve()
    return Sweep(folder, plan.name, machine.threads_each, plan.members, plan.num_episodes)


def fetch_missing(output: Output, members: "Sequence[Member]") -> None:
    """Simulate built-in datasets that are not in the cache, once for all members."""
    from gq.cli.download import simulate_missing

    for dataset in dict.fromkeys(str(member.settings.get("data.dataset", "")) for member in members):
        if dataset:
            simulate_missing(output, dataset)


def print_commands(output: Output, plan: "Plan", out: Path | None, machine: Machine) -> None:
    """Print what would be run; with --json, the members and their settings too. Nothing is written."""
    sweep = planned(plan, out, machine)
    lines = [shlex.join(["gq", *sweep.training(member)]) for member in plan.members]
    members = [dataclasses.asdict(member) | {"command": line} for member, line in zip(plan.members, lines, strict=True)]
    output.result({"sweep": str(sweep.folder), "members": members}, quiet="\n".join(lines), human="\n".join(lines))


@contextmanager
def watching(output: Output, num_members: int) -> "Iterator[LocalOptions]":
    """Yield what shows a launch: a live table on a terminal, a line for each event elsewhere."""
    from gq.sweeps.local import LocalOptions

    if not output.show_progress:
        yield LocalOptions(say=output.note)
        return
    from rich.live import Live

    with Live(console=output.console(stderr=True), transient=True, refresh_per_second=2) as live:
        height = max(live.console.height - 4, 4)

        def watch(found: "list[MemberStatus]") -> None:
            done = sum(one.state == "finished" for one in found)
            busy_first = sorted(found, key=lambda one: (one.state != "running", one.state == "finished"))
            live.update(status_table(output, busy_first[:height], f"{done}/{num_members} finished"))

        yield LocalOptions(watch=watch, say=lambda text: live.console.print(text, soft_wrap=True))


def status_table(output: Output, found: "Sequence[MemberStatus]", title: str = "") -> Any:
    """Return the table of members."""
    from rich.console import Group

    rows = [
        (one.name, one.state, f"{one.step:,}/{one.total:,}" if one.total else "", shown(one.score), str(one.starts))
        for one in found
    ]
    table = output.table(["member", "state", "step", "return", "starts"], rows, num_left=2)
    failures = [f"{one.name}: {one.failure}" for one in found if one.failure]
    return Group(table, *failures, *([title] if title else []))


def shown(score: float | None) -> str:
    """Return a return for the table."""
    return "" if score is None else f"{score:.0f}"


def document(sweep: "Sweep", found: "Sequence[MemberStatus]") -> dict[str, Any]:
    """Return the members as plain values."""
    members = [dataclasses.asdict(one) | {"run": str(sweep.run(one.name))} for one in found]
    counts = {state: sum(one.state == state for one in found) for state in dict.fromkeys(one.state for one in found)}
    return {"sweep": str(sweep.folder), "name": sweep.name, "counts": counts, "members": members}


def show(output: Output, sweep: "Sweep", result: "SweepResult") -> None:
    """Print what came of a launch. Raises GqError if members have failed."""
    from rich.console import Group

    page = str(result.page or "")
    human = Group(status_table(output, result.members), page or str(sweep.folder))
    output.result(document(sweep, result.members) | {"page": page or None}, quiet=page or sweep.folder, human=human)
    failed = result.named("failed")
    if failed:
        hint = f"see {sweep.log(failed[0])}; then gq sweep retry {shlex.quote(sweep.name)}"
        raise GqError(f"{len(failed)} of {len(result.members)} members failed: {', '.join(failed[:3])}", hint=hint)


@sweep_app.command("status", epilog=STATUS_EXAMPLES, short_help="Show where all members are.")
@options.grouped
def status(sweep: SweepName, *, output: Output) -> None:
    """Show what each member of a sweep is doing, also while another process runs it."""
    from gq.sweeps.folder import read_sweep, statuses

    known = read_sweep(sweep)
    found = statuses(known)
    lines = "\n".join(f"{one.name} {one.state}" for one in found)
    output.result(document(known, found), quiet=lines, human=status_table(output, found))


@sweep_app.command("stop", epilog=STOP_EXAMPLES, short_help="Let a running sweep save and stop.")
@options.grouped
def stop(sweep: SweepName, *, output: Output) -> None:
    """Stop a sweep that another process runs; its members save everything. Repeat its command to continue."""
    from gq.sweeps.folder import read_sweep, statuses
    from gq.sweeps.local import stop_sweep
    from gq.sweeps.slurm import cancel

    known = read_sweep(sweep)
    for job in cancel(known):
        output.note(f"job {job} is cancelled")
    if still := stop_sweep(known):
        hint = "they may be on another machine, or in a long evaluation: try again"
        raise GqError(f"{len(still)} members still run: {', '.join(still[:3])}", hint=hint)
    found = statuses(known)
    output.result(document(known, found), quiet=known.folder, human=status_table(output, found))


@sweep_app.command("retry", epilog=RETRY_EXAMPLES, short_help="Run failed members again.")
@options.grouped
def retry(
    sweep: SweepName,
    members: Annotated[list[str] | None, typer.Argument(metavar="MEMBER...", help="Default: all that failed.")] = None,
    *,
    machine: Machine,
    output: Output,
) -> None:
    """Run the failed members of a sweep again, each from its last checkpoint, and everything else that is left."""
    from gq.sweeps.folder import read_sweep
    from gq.sweeps.launch import forget_failures, run_sweep

    known = read_sweep(sweep)
    if unknown := set(members or []) - {member.name for member in known.members}:
        hint = f"see gq sweep status {known.name}"
        raise UsageError(f"{known.name} has no member {sorted(unknown)[0]}", hint=hint)
    again = forget_failures(known, members or [])
    output.note(f"trying {len(again)} failed members again")
    with watching(output, len(known.members)) as local:
        choice = dataclasses.replace(local, jobs=machine.jobs, gpus=machine.gpu_names())
        result = run_sweep(known, known.members, choice)
    show(output, known, result)


@sweep_app.command("member", hidden=True, short_help="Run one member here, as a cluster does.")
@options.grouped
def member(
    sweep: SweepName,
    name: Annotated[str, typer.Argument(metavar="MEMBER", help="Its name, or its place in sweep.json.")],
    *,
    output: Output,
) -> None:
    """Run one member of a sweep in this job, unless it has finished or another process has it."""
    from gq.sweeps.folder import read_sweep
    from gq.sweeps.local import LocalOptions
    from gq.sweeps.member import run_member

    run_member(read_sweep(sweep), name, LocalOptions(say=output.note))

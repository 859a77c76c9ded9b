"""Running a sweep: from a plan to a folder of runs and one page about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gq.errors import GqError
from gq.paths import sweeps_folder
from gq.sweeps import folder as on_disk
from gq.sweeps.folder import MemberStatus, Sweep, create_or_continue, is_trained
from gq.sweeps.local import LocalOptions, run_members
from gq.sweeps.plan import Member, Plan

PAGE = "report.html"


@dataclass(frozen=True)
class SweepResult:
    """What came of a sweep."""

    sweep: Path
    members: list[MemberStatus]
    page: Path | None  # None where no member has finished

    def named(self, state: str) -> list[str]:
        """Return the members in a state."""
        return [member.name for member in self.members if member.state == state]


def open_sweep(plan: Plan, out: Path | None, threads: int) -> tuple[Sweep, list[Member]]:
    """Create or continue a plan's sweep; return it with the members of the plan, which may be fewer than on record.

    Raises:
        UsageError: a member on record has other settings.
    """
    sweep = create_or_continue((out or sweeps_folder() / plan.name).resolve(), plan, threads)
    wanted = {member.name for member in plan.members}
    return sweep, [member for member in sweep.members if member.name in wanted]


def run_sweep(sweep: Sweep, members: Sequence[Member], options: LocalOptions) -> SweepResult:
    """Run members as processes of this machine, and write the page.

    Raises:
        Interrupted: stopped; everything is saved.
    """
    before = len(on_disk.read_starts(sweep))
    found = run_members(sweep, members, options)
    path = sweep.folder / PAGE
    page: Path | None = path
    try:
        if not (path.is_file() and len(on_disk.read_starts(sweep)) == before):  # else it says all that there is
            page = write_page(sweep)
    except GqError as error:  # such as a run that somebody removed; the runs are what counts
        page = None
        options.say(f"no page: {error}")
    return SweepResult(sweep.folder, found, page)


def write_page(sweep: Sweep) -> Path | None:
    """Write the page about all members that have been trained; None if none has."""
    from gq.results.gather import ReportOptions
    from gq.results.report import report

    runs = [run for member in sweep.members if is_trained(run := sweep.run(member.name))]
    if not runs:
        return None
    path = sweep.folder / PAGE
    report(runs, path, ReportOptions(rollouts=False))
    return path


def forget_failures(sweep: Sweep, names: Sequence[str] = ()) -> list[Member]:
    """Let failed members be tried again; return them.

    Args:
        names: of members; empty: all that have failed.
    """
    failed = [m for m, s in zip(sweep.members, on_disk.statuses(sweep), strict=True) if s.state == "failed"]
    chosen = [member for member in failed if not names or member.name in names]
    for member in chosen:
        sweep.failure(member.name).unlink(missing_ok=True)
    return chosen

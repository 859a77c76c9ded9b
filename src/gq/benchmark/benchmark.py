"""`gq.benchmark.benchmark.run`: a suite from its datasets to its page. Its runs are the members of a sweep."""

from dataclasses import dataclass
from pathlib import Path

from gq.benchmark.page import write_page
from gq.benchmark.results import Results, gather
from gq.benchmark.suites import METHOD, Suite, plan
from gq.datasets.cache import cached
from gq.datasets.names import resolve
from gq.errors import UsageError
from gq.paths import run_in_sweep
from gq.runs.state import last_step
from gq.sweeps.folder import Sweep, read_sweep
from gq.sweeps.launch import open_sweep
from gq.sweeps.local import LocalOptions, run_members
from gq.sweeps.plan import Plan


@dataclass(frozen=True)
class Request:
    """What of a suite is to be run."""

    suite: Suite
    seeds: tuple[int, ...]
    num_episodes: int = 20  # fresh ones, of each last and best checkpoint

    @property
    def plan(self) -> Plan:
        """All runs."""
        return plan(self.suite, self.seeds, self.num_episodes)


@dataclass(frozen=True)
class Cost:
    """What is left to do, as far as it can be told."""

    runs: int
    finished: int  # trained to their end
    updates: int
    core_hours: float  # of training, on a core that does nothing else; simulation and evaluation come on top
    datasets: list[str]  # that are missing in the cache


def cost(request: Request, folder: Path) -> Cost:
    """Return what a suite will cost from where it stands."""
    methods = {method.name: method for method in request.suite.methods}
    left = []
    for member in request.plan.members:
        method = methods[member.values[METHOD]]
        updates = max(0, method.updates - last_step(run_in_sweep(folder, member.name)))
        left.append((updates, updates * method.update_seconds))
    return Cost(
        runs=len(left),
        finished=sum(updates == 0 for updates, _ in left),
        updates=sum(updates for updates, _ in left),
        core_hours=round(sum(seconds for _, seconds in left) / 3600, 2),
        datasets=missing(request.suite),
    )


def missing(suite: Suite) -> list[str]:
    """Return the datasets that are not in the cache."""
    return [name for name in suite.datasets if not cached(resolve(name))]


def run(request: Request, folder: Path, threads: int, options: LocalOptions, *, command: str) -> Results:
    """Train and evaluate all runs of a suite, and write its page.

    Runs that fail are named on the page; the others are run all the same.

    Args:
        threads: of each run, where the folder is new.

    Raises:
        UsageError: a dataset is missing, or the folder holds runs with other settings.
        GqError: another process runs the suite.
        Interrupted: a signal came; everything is saved, and the page shows what is there.
    """
    if lost := [name for name in missing(request.suite) if not name.startswith("builtin/")]:
        raise UsageError(f"{lost[0]} is not in the cache", hint=f"gq download {' '.join(lost)}")
    sweep, members = open_sweep(request.plan, folder, threads)
    try:
        run_members(sweep, members, options)
    finally:
        results = page(sweep, command=command)
    return results


def page(sweep: Sweep | Path, *, command: str) -> Results:
    """Write the page of all runs in a suite's folder, and return what they came to. Raises UsageError, GqError."""
    sweep = read_sweep(sweep) if isinstance(sweep, Path) else sweep
    results = gather(sweep, command=command)
    write_page(sweep.folder, results)
    return results

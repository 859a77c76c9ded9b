"""`gq.benchmark.benchmark.run`: a suite from its datasets to its page."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from gq.benchmark.page import write_page
from gq.benchmark.results import Results, gather
from gq.benchmark.running import Say, run_cells, step_of
from gq.benchmark.suites import Cell, Suite, cells
from gq.datasets.cache import cached
from gq.datasets.names import resolve
from gq.errors import GqError, UsageError
from gq.files import write_json
from gq.paths import read_json

SUITE_FILE = "suite.json"


@dataclass(frozen=True)
class Request:
    """What is asked of a suite."""

    suite: Suite
    seeds: tuple[int, ...]
    num_episodes: int = 20  # fresh ones, of each last and best checkpoint
    num_jobs: int = 1

    @property
    def cells(self) -> list[Cell]:
        """All runs."""
        return cells(self.suite, self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """What must be the same when the folder's suite is resumed."""
        return {
            "suite": self.suite.name,
            "methods": {
                method.name: {"command": list(method.command), "updates": method.updates}
                for method in self.suite.methods
            },
            "num_episodes": self.num_episodes,
        }


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
    left = {cell: max(0, cell.method.updates - max(0, step_of(folder / cell.place))) for cell in request.cells}
    return Cost(
        runs=len(left),
        finished=sum(num == 0 for num in left.values()),
        updates=sum(left.values()),
        core_hours=round(sum(num * cell.method.update_seconds for cell, num in left.items()) / 3600, 2),
        datasets=missing(request.suite),
    )


def missing(suite: Suite) -> list[str]:
    """Return the datasets that are not in the cache."""
    return [name for name in suite.datasets if not cached(resolve(name))]


def settle(request: Request, folder: Path) -> None:
    """Remember what the folder's suite is.

    Raises:
        UsageError: it is another one, whose runs would be mixed with these.
    """
    file, wanted = folder / SUITE_FILE, request.to_dict()
    if file.exists():
        stored = read_json(file)
        known = stored["methods"] | wanted["methods"]
        same = {
            name: method for name, method in wanted["methods"].items() if stored["methods"].get(name, method) == method
        }
        if stored["suite"] != wanted["suite"] or len(same) < len(wanted["methods"]):
            message = f"{folder} holds a {stored['suite']} suite with other methods or numbers of updates"
            raise UsageError(message, hint="give the same options as at first, or another --out")
        wanted = wanted | {"methods": known}
    write_json(file, wanted)


def run(request: Request, folder: Path, *, command: str, say: Say) -> Results:
    """Bring all runs of a suite to their end, and write its page.

    Runs that fail are named on the page; the others go on.

    Raises:
        UsageError: a dataset is missing, or the folder holds another suite.
        Interrupted: a signal came; everything is saved, and the page shows what is there.
    """
    if lost := [name for name in missing(request.suite) if not name.startswith("builtin/")]:
        raise UsageError(f"{lost[0]} is not in the cache", hint=f"gq download {' '.join(lost)}")
    with held(folder):
        return _run(request, folder, command=command, say=say)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from running the folder's suite. Raises GqError if one does."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise GqError(f"another process runs the suite in {folder}", hint="wait for it, or stop it first") from None


def _run(request: Request, folder: Path, *, command: str, say: Say) -> Results:
    settle(request, folder)
    failed: dict[str, str] = {}
    try:
        outcome = run_cells(
            folder, request.cells, request.suite, num_jobs=request.num_jobs, num_episodes=request.num_episodes, say=say
        )
        failed = outcome.failed
    finally:
        results = page(request, folder, command=command, failed=failed)
    return results


def page(request: Request, folder: Path, *, command: str, failed: dict[str, str] | None = None) -> Results:
    """Write the page of what is there, and return its results."""
    results = gather(folder, request.suite, request.cells, command=command, failed=failed or {})
    write_page(folder, results)
    return results

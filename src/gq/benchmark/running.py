"""The runs of a suite as processes, some at a time. What is there is kept: the same call resumes the whole."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gq.benchmark.suites import Cell, Suite, train_words
from gq.errors import GqError, Interrupted
from gq.runs.checkpoint import choose_checkpoint, pointed
from gq.runs.evaluations import read_evaluations

POLL_S = 0.2
Say = Callable[[str], None]


@dataclass
class Job:
    """A cell in the making: the command that runs."""

    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: Path


@dataclass
class Outcome:
    """What became of a suite's runs."""

    finished: list[Cell] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # the last line of what it said, by place


def next_command(folder: Path, cell: Cell, suite: Suite, num_episodes: int) -> list[str] | None:
    """Return what is to be done next for a cell, behind `gq`; None when all is there.

    A run is trained, or resumed; then its last checkpoint is evaluated, and its best one where that is another, on
    episodes that chose none of them.
    """
    run = folder / cell.place
    if step_of(run) < cell.method.updates:
        resumed = ["--resume"] if step_of(run) >= 0 else []
        return [*train_words(cell, suite), "--out", str(run), *resumed]
    for which in ("last", "best"):
        checkpoint = choose_checkpoint(run, which)
        found = read_evaluations(run).of(checkpoint)
        target = max(found.targets, default=None)
        rows = [row for row in found.rows if row.way in found.ways(target)]
        if max((len(row.episodes) for row in rows), default=0) < num_episodes:
            words = ["eval", str(run), "--checkpoint", which, "--episodes", str(num_episodes)]
            return [*words, *(["--target", f"{target!r}"] if target is not None and cell.method.has_target else [])]
    return None


def step_of(run: Path) -> int:
    """Return the updates of a run's last checkpoint, -1 without one."""
    found = pointed(run, "last")
    return int(found.rpartition("-")[2]) if found else -1


def run_cells(
    folder: Path, cells: Sequence[Cell], suite: Suite, *, num_jobs: int, num_episodes: int, say: Say
) -> Outcome:
    """Bring all cells to their end, `num_jobs` at a time.

    Raises:
        Interrupted: a signal came; every run has saved.
    """
    outcome, waiting, jobs, told = Outcome(), list(cells), list[Job](), 0
    with stoppable() as stopped:
        while waiting or jobs:
            while waiting and len(jobs) < num_jobs and not stopped:
                _begin(folder, waiting.pop(0), suite, num_episodes, jobs, outcome)
            for job in [job for job in jobs if job.process.poll() is not None]:
                jobs.remove(job)
                if job.process.returncode == 0:
                    waiting.insert(0, job.cell)
                elif not stopped:
                    lines = job.log.read_text(errors="replace").strip().splitlines()
                    errors = [line for line in lines if line.startswith("error: ")]
                    outcome.failed[job.cell.place] = (errors or lines or ["it said nothing"])[-1]
                    say(f"{job.cell.place} failed: {outcome.failed[job.cell.place]}")
            if stopped:
                _end(jobs)
                raise Interrupted(f"stopped by {stopped[0]}, everything is saved", hint="resume with the same command")
            if jobs:
                time.sleep(POLL_S)
            if len(outcome.finished) > told:
                told = len(outcome.finished)
                say(f"{told} of {len(cells)} runs are finished")
    return outcome


def _begin(folder: Path, cell: Cell, suite: Suite, num_episodes: int, jobs: list[Job], outcome: Outcome) -> None:
    """Start the next command of a cell, or count it as finished."""
    try:
        words = next_command(folder, cell, suite, num_episodes)
    except GqError as error:
        outcome.failed[cell.place] = str(error)
        return
    if words is None:
        outcome.finished.append(cell)
        return
    log = folder / "logs" / f"{cell.place.removeprefix('runs/').replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gq", *words, "--no-progress"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
        )
    jobs.append(Job(cell, process, log))


def _end(jobs: Sequence[Job]) -> None:
    """Ask all jobs to save and end, and wait for them."""
    for job in jobs:
        if job.process.poll() is None:
            job.process.terminate()
    for job in jobs:
        job.process.wait()


@contextmanager
def stoppable() -> Iterator[list[str]]:
    """Collect the names of signals that ask for an end, instead of being ended by them."""
    names: list[str] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda got, _: names.append(signal.Signals(got).name)) for number in numbers
    }
    try:
        yield names
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

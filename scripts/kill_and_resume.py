"""Kill gq with SIGKILL at random moments, resume it, and compare the end, bit for bit, with an undisturbed run.

    python scripts/kill_and_resume.py --kills 1000
    python scripts/kill_and_resume.py --kills 50 --only "train dt"

Half of the kills come after a random time of the process's life, the other half at a random one of its touches of the
file system. After each kill everything that is there must be readable. The undisturbed run is a process of its own,
`python -m gq ...`; those that are killed are forks of this one, which has everything imported, so that a kill costs
little. What was done is kept in the work folder: the same command goes on where it was stopped. After a change of gq,
take another: its undisturbed runs are those of the old one.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the last bits depend on it; and a process with threads should not fork
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

from kill_jobs import WORLD_TASK, Job, Unreadable, make_jobs, serve  # noqa: E402

MAX_KILLS = 5  # of a trial; then it may end
TIMEOUT_S = 300
POLL_S = 0.002
EVENTS = ("open", "os.", "shutil.")  # audit events that touch the file system


@dataclass(frozen=True)
class Life:
    """How long a process lives that nothing disturbs."""

    seconds: float
    num_events: int


@dataclass
class Trial:
    """One run that was killed again and again until it ended."""

    job: str
    number: int
    num_killed_by_time: int = 0
    num_killed_at_event: int = 0
    outcome: str = ""  # equal, different, unreadable or failed
    detail: str = ""

    @property
    def num_kills(self) -> int:
        """How often it was killed."""
        return self.num_killed_by_time + self.num_killed_at_event


def preload() -> None:
    """Import what the commands need, but compute nothing: that would start threads."""
    import gymnasium
    import h5py  # noqa: F401
    import pydantic  # noqa: F401
    import torch
    import torch._dynamo  # optimisers load it

    import gq.cli
    import gq.collecting
    import gq.datasets.loading
    import gq.speculation.distil
    import gq.training.online
    import gq.training.world

    assert torch.get_num_threads() == 1
    for task in ("Hopper-v5", WORLD_TASK):
        gymnasium.make(task).close()
    for name in gq.__all__:
        getattr(gq, name)


def live(arguments: list[str], home: Path, log: Path, kill_at_event: int, report: int | None) -> None:
    """Be `gq ARGUMENTS` from here on; never return.

    Args:
        kill_at_event: end by SIGKILL at this touch of the file system; 0: never.
        report: a file descriptor to write the number of such touches to at the end.
    """
    os.setsid()
    os.environ["GQ_HOME"] = str(home)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    num_events = 0

    def watch(event: str, _: Any) -> None:
        nonlocal num_events
        if event.startswith(EVENTS):
            num_events += 1
            if num_events == kill_at_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    exit_code = 1
    try:
        from gq.cli import app

        app(arguments, prog_name="gq")
        exit_code = 0
    except SystemExit as end:
        exit_code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if report is not None:
            os.write(report, str(num_events).encode())
        os._exit(exit_code)


def attempt(arguments: list[str], home: Path, log: Path, *, after_s: float = TIMEOUT_S, at_event: int = 0) -> int:
    """Run a command in a fork that is killed after a time or at an event; return its exit code, -9 if it was."""
    process = os.fork()
    if process == 0:
        live(arguments, home, log, at_event, None)
    latest = time.monotonic() + after_s
    was_killed = False
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if not was_killed and time.monotonic() >= latest:
            os.kill(process, signal.SIGKILL)
            was_killed = True
        time.sleep(POLL_S)


def measure(job: Job, work: Path) -> Life:
    """Run a job twice without disturbing it, as a process of its own and as a fork, and compare the two."""
    file = work / job.folder_name / "life.json"
    if file.exists():
        return Life(**json.loads(file.read_text()))
    shutil.rmtree(work / job.folder_name, ignore_errors=True)
    reference, again = work / job.folder_name / "reference", work / job.folder_name / "measured"
    for folder in (reference, again):
        folder.mkdir(parents=True)
    environment = {**os.environ, "GQ_HOME": str(reference / "home"), "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "gq", *job.first(reference)]
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    reading, writing = os.pipe()
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        live(job.first(again), again / "home", again / "log.txt", 0, writing)
    os.close(writing)
    status = os.waitpid(process, 0)[1]
    seconds = time.monotonic() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{job.name} failed without a kill: {(again / 'log.txt').read_text()}")
    life = Life(seconds, int(os.read(reading, 100)))
    os.close(reading)
    if found := job.differences(again, reference):
        raise SystemExit(f"{job.name} is not the same twice, without a kill: {found}")
    shutil.rmtree(again)
    file.write_text(json.dumps(asdict(life)))
    return life


def run_trial(job: Job, number: int, life: Life, work: Path, seed: int) -> Trial:
    """Kill a job up to MAX_KILLS times, let it end, and compare."""
    trial, chance = Trial(job.name, number), random.Random(f"{seed}/{job.name}/{number}")
    folder, reference = work / job.folder_name / f"trial-{number}", work / job.folder_name / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    home, log = folder / "home", folder / "log.txt"
    while True:
        arguments = job.again(folder) if job.has_begun(folder) else job.first(folder)
        settings: dict[str, Any] = {}
        is_timed = chance.random() < 0.5
        share = chance.random()
        if trial.num_kills < MAX_KILLS:
            settings = {"after_s": share * life.seconds} if is_timed else {"at_event": 1 + int(share * life.num_events)}
        exit_code = attempt(arguments, home, log, **settings)
        if exit_code == -signal.SIGKILL:
            if not settings:
                trial.outcome, trial.detail = "failed", f"no end within {TIMEOUT_S} s"
                return trial
            trial.num_killed_by_time += is_timed
            trial.num_killed_at_event += not is_timed
            try:
                job.check_readable(folder)
            except Unreadable as error:
                trial.outcome, trial.detail = "unreadable", str(error)
                return trial
        elif exit_code:
            trial.outcome, trial.detail = "failed", log.read_text().strip().splitlines()[-1]
            return trial
        else:
            break
    found = job.differences(folder, reference)
    trial.outcome, trial.detail = ("different", ", ".join(found)) if found else ("equal", "")
    if not found:
        shutil.rmtree(folder)
    return trial


def read_trials(file: Path) -> list[Trial]:
    """Return the trials of earlier calls; a line that a kill tore is left out."""
    trials = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            trials.append(Trial(**json.loads(line)))
        except ValueError:
            continue
    return trials


def table(jobs: list[Job], trials: list[Trial], seed: int) -> str:
    """Return the results as Markdown."""
    kills = sum(trial.num_kills for trial in trials)
    lines = [
        "# Killed and resumed",
        "",
        f"{kills:,} SIGKILLs. Made by `python scripts/kill_and_resume.py --kills {round_up(kills)} --seed {seed}`.",
        "A process is killed after a random time of its life, or at a random one of its touches of the file system;",
        f"then everything that is there is read. It is resumed, killed again up to {MAX_KILLS} times, and when it has",
        "ended, compared with an undisturbed `python -m gq ...`: weights, moments, random states, metrics, logs and",
        "data, bit for bit, without times.",
        "",
        "| command | kills | after a time | at a file operation | ended and compared | equal | unreadable or failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for job in jobs:
        mine = [trial for trial in trials if trial.job == job.name]
        counts: list[Callable[[Trial], int]] = [
            lambda trial: trial.num_kills,
            lambda trial: trial.num_killed_by_time,
            lambda trial: trial.num_killed_at_event,
            lambda trial: trial.outcome in ("equal", "different"),
            lambda trial: trial.outcome == "equal",
            lambda trial: trial.outcome in ("unreadable", "failed"),
        ]
        if mine:
            cells = " | ".join(f"{sum(map(count, mine)):,}" for count in counts)
            lines.append(f"| `gq {job.name}` | {cells} |")
    bad = [trial for trial in trials if trial.outcome != "equal"]
    lines += ["", *(f"- {trial.job}, trial {trial.number}: {trial.outcome}, {trial.detail}" for trial in bad)]
    return "\n".join(lines).rstrip() + "\n"


def round_up(number: int) -> int:
    """Return a number that asking for gives at least so many."""
    return -(-number // 50) * 50


def main() -> None:
    """Run trials until there were enough kills, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, metavar="N", help="of all commands together")
    parser.add_argument("--only", metavar="COMMAND", help='for example "train dt"')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("kills.work"), help="what is kept between calls lies here")
    parser.add_argument("--table", type=Path, default=ROOT / "docs/results/kills.md", help="the Markdown table")
    options = parser.parse_args()
    work = options.work.resolve() / f"seed-{options.seed}"
    work.mkdir(parents=True, exist_ok=True)
    server, url = serve(work / "served")  # before anything with threads is loaded
    try:
        os.environ |= {"HF_ENDPOINT": url, "GQ_D4RL_URL": url, "no_proxy": "127.0.0.1"}
        preload()
        every = make_jobs(work)
        jobs = [job for job in every if not options.only or job.name.startswith(options.only)]
        if not jobs:
            raise SystemExit(f"no command is called {options.only}")
        run_trials(jobs, every, work, options)
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def run_trials(jobs: list[Job], every: list[Job], work: Path, options: argparse.Namespace) -> None:
    """Run trials of each job by turns until it has its share of the kills; the table has all that were ever run."""
    file = work / "trials.jsonl"
    trials = read_trials(file)
    lives = {job.name: measure(job, work) for job in jobs}
    share = -(-options.kills // len(jobs))
    while True:
        done = {job.name: [trial for trial in trials if trial.job == job.name] for job in jobs}
        left = [job for job in jobs if sum(trial.num_kills for trial in done[job.name]) < share]
        if not left:
            break
        job = min(left, key=lambda one: sum(trial.num_kills for trial in done[one.name]))
        number = max((trial.number for trial in done[job.name]), default=-1) + 1
        trial = run_trial(job, number, lives[job.name], work, options.seed)
        with file.open("a") as log:
            log.write(json.dumps(asdict(trial)) + "\n")
        trials.append(trial)
        kills = sum(one.num_kills for one in trials)
        print(
            f"{kills:5} kills; {job.name} {number}: {trial.num_kills} kills, {trial.outcome} {trial.detail}", flush=True
        )
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(table(every, trials, options.seed))
    bad = [trial for trial in trials if trial.outcome != "equal"]
    print(f"{len(trials)} trials, {len(bad)} of them not equal; {options.table}")
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

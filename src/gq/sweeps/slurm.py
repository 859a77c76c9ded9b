"""Members as a job array of Slurm; one whose time is up saves, is queued again, and resumes."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gq.errors import GqError, UsageError
from gq.files import write_json, write_text
from gq.paths import json_or_empty
from gq.sweeps import folder as on_disk
from gq.sweeps.folder import Sweep
from gq.sweeps.plan import Member

GRACE_S = 60  # before the time limit a member is told to save
ANSWER_S = 60  # to wait for Slurm's commands


@dataclass(frozen=True)
class SlurmOptions:
    """What the array asks for."""

    jobs: int = 0  # members at a time; 0: as many as Slurm starts
    time: str = ""  # limit of one job, as sbatch takes it; empty: the partition's
    more: tuple[str, ...] = ()  # options of sbatch, such as --gres=gpu:1
    grace_s: int = GRACE_S


def batch_script(sweep: Sweep, members: Sequence[Member], options: SlurmOptions) -> str:
    """Return the file for sbatch: each task of the array is a member, by its place in sweep.json."""
    places = {member.name: place for place, member in enumerate(sweep.members)}
    wanted = ",".join(str(places[member.name]) for member in members)
    lines = [
        f"--job-name=gq-{sweep.name}",
        f"--array={wanted}" + (f"%{options.jobs}" if options.jobs else ""),
        f"--cpus-per-task={sweep.threads}",
        f"--output={sweep.folder / 'logs' / 'slurm-%A-%a.log'}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{options.grace_s}",
        f"--chdir={Path.cwd()}",
        *([f"--time={options.time}"] if options.time else []),
        *options.more,
    ]
    command = shlex.join([sys.executable, "-m", "gq", "sweep", "member", str(sweep.folder)])
    head = "".join(f"#SBATCH {line}\n" for line in lines)
    # `exec` lets the signal before the time limit, which comes to the script, come to gq.
    return f'#!/bin/bash\n{head}export OMP_NUM_THREADS={sweep.threads}\nexec {command} "$SLURM_ARRAY_TASK_ID"\n'


def submit(sweep: Sweep, members: Sequence[Member], options: SlurmOptions) -> str | None:
    """Submit the members that are neither finished nor failed; return the job's id, None where nothing is left.

    Raises:
        UsageError: jobs of the sweep are still in the queue.
        GqError: there is no Slurm, or it refuses.
    """
    with on_disk.launching(sweep):
        if queued := [job for job in submitted(sweep) if is_queued(job)]:
            hint = f"wait for it, or gq sweep stop {shlex.quote(sweep.name)}"
            raise UsageError(f"job {queued[0]} of this sweep is still in Slurm's queue", hint=hint)
        sweep.stop_file.unlink(missing_ok=True)
        done = ("finished", "failed", "running")
        states = {one.name: one.state for one in on_disk.statuses(sweep)}
        left = [member for member in members if states[member.name] not in done]
        if not left:
            return None
        (sweep.folder / "logs").mkdir(exist_ok=True)
        file = sweep.folder / "slurm.sbatch"
        write_text(file, batch_script(sweep, left, options))
        job = slurm("sbatch", "--parsable", str(file)).split(";")[0].strip()
        write_json(jobs_file(sweep), {"jobs": [*submitted(sweep), job]})
        return job


def jobs_file(sweep: Sweep) -> Path:
    """Return where the ids of submitted jobs are kept."""
    return sweep.folder / "slurm.json"


def submitted(sweep: Sweep) -> list[str]:
    """Return the ids of all jobs of a sweep so far."""
    return [str(job) for job in json_or_empty(jobs_file(sweep)).get("jobs", [])]


def is_queued(job: str) -> bool:
    """Whether a job waits or runs; one that Slurm has forgotten does not."""
    try:
        return bool(slurm("squeue", "--noheader", "--jobs", job, "--format=%i").strip())
    except GqError:
        return False


def cancel(sweep: Sweep) -> list[str]:
    """Take the jobs of a sweep out of the queue; those that run save and end. Return which there were."""
    queued = [job for job in submitted(sweep) if is_queued(job)]
    for job in queued:
        slurm("scancel", job)
    return queued


def requeue(environment: dict[str, str]) -> None:
    """Put the array task that this process is back into the queue. Raises GqError."""
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID", "")
    task = environment.get("SLURM_ARRAY_TASK_ID")
    slurm("scontrol", "requeue", f"{job}_{task}" if task else job)


def slurm(*command: str) -> str:
    """Run one of Slurm's commands and return what it prints. Raises GqError."""
    if not shutil.which(command[0]):
        raise GqError(f"there is no {command[0]} here", hint="run it where Slurm is, or omit --slurm")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        raise GqError(f"{command[0]} does not answer", hint="look at sinfo, then repeat the command") from None
    if done.returncode:
        message = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise GqError(f"{command[0]}: {message}", hint="see --print for the batch file")
    return done.stdout

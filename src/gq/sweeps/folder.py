"""A sweep on disk: what its members are, where each has its run, what it is doing, and who works on it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from gq import __version__
from gq.errors import GqError, UsageError
from gq.files import parse_json, write_error, write_json, write_text
from gq.paths import SWEEP_FILE, checkpoint_folders, find_sweep, is_run, json_or_empty, read_json, read_settings
from gq.paths import run_in_sweep as run_folder
from gq.runs.checkpoint import choose_checkpoint
from gq.runs.evaluations import read_evaluations
from gq.runs.records import score_of
from gq.runs.state import is_held, is_unfinished, last_step
from gq.settings import flatten, toml_value
from gq.sweeps.plan import Member, Plan

try:
    import fcntl
except ImportError:  # Windows: there only the run's own lock keeps two processes apart
    fcntl = None  # type: ignore[assignment]

MemberState = Literal["waiting", "running", "finished", "interrupted", "failed"]
TAIL_BYTES = 65_536  # of metrics.jsonl, in which the last evaluation is looked for


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and what is in it."""

    folder: Path
    name: str
    threads: int  # of each member: the number decides the bits, so it stays
    members: tuple[Member, ...]
    num_episodes: int = 0  # fresh ones, on which a trained member's last and best checkpoints are evaluated

    def run(self, member: str) -> Path:
        """Return the run's folder of a member."""
        return run_folder(self.folder, member)

    def log(self, member: str) -> Path:
        """Return the file that a member's messages go to."""
        return self.folder / "logs" / f"{member}.log"

    def settings(self, member: str) -> Path:
        """Return the configuration file of a member."""
        return self.folder / "settings" / f"{member}.toml"

    def failure(self, member: str) -> Path:
        """Return the note that a failed member has."""
        return self.folder / "failures" / f"{member}.json"

    def claim_file(self, member: str) -> Path:
        """Return the file that whoever runs a member holds a lock on."""
        return self.folder / "claims" / f"{member}.lock"

    @property
    def starts(self) -> Path:
        """The log of members that were started and have ended, one JSON object a line."""
        return self.folder / "starts.jsonl"

    @property
    def stop_file(self) -> Path:
        """What tells the launcher to stop."""
        return self.folder / "stop.json"

    def training(self, member: Member) -> list[str]:
        """Return a member's training after `gq`: it creates the run, or continues it."""
        places = ["--out", str(self.run(member.name)), "--resume", "--config", str(self.settings(member.name))]
        return ["train", member.algo, *places]

    def next_command(self, member: Member) -> list[str]:
        """Return what a member needs next, after `gq`; empty where it has finished."""
        run = self.run(member.name)
        return next_evaluation(run, self.num_episodes) if is_trained(run) else self.training(member)


@dataclass(frozen=True)
class MemberStatus:
    """What a member is doing."""

    name: str
    state: MemberState
    step: int  # of the last checkpoint or log line; decisions for TD-MPC2
    total: int
    score: float | None  # return of the last evaluation, at the highest target
    failure: str
    starts: int  # how often it was started


def create_or_continue(folder: Path, plan: Plan, threads: int) -> Sweep:
    """Write what the members of a sweep are; what is on record of it stays, and new ones are added.

    Args:
        threads: of each member, where the sweep is new.

    Raises:
        UsageError: the folder holds something else, or a member on record has other settings.
    """
    recorded = read_sweep(folder) if (folder / SWEEP_FILE).is_file() else None
    if not recorded and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no sweep", hint="choose another --out or --name")
    before = {member.name: member for member in recorded.members} if recorded else {}
    for member in plan.members:
        stored = before.get(member.name)
        if stored and (stored.algo, plain(stored.settings)) != (member.algo, plain(member.settings)):
            message = f"{member.name} began with {first_difference(stored, member)}"
            raise UsageError(message, hint="give the changed sweep another --name; the old one stays as it is")
    members = before | {member.name: member for member in plan.members}
    name = recorded.name if recorded else plan.name
    threads = recorded.threads if recorded else threads
    sweep = Sweep(folder, name, threads, tuple(members.values()), plan.num_episodes)
    if sweep != recorded:
        document = {"name": name, "gq_version": __version__, "threads": threads, "episodes": plan.num_episodes}
        for member in sweep.members:
            write_text(sweep.settings(member.name), settings_text(member))
        write_json(folder / SWEEP_FILE, document | {"members": [asdict(member) for member in sweep.members]})
    return sweep


def settings_text(member: Member) -> str:
    """Return a member's settings as TOML for --config."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in flatten(member.settings).items())


def plain(settings: dict[str, Any]) -> Any:
    """Return settings as JSON has them: tuples are lists."""
    return json.loads(json.dumps(settings, sort_keys=True))


def first_difference(stored: Member, wanted: Member) -> str:
    """Say in what two members of one name differ."""
    a, b = (plain(member.settings | {"algo": member.algo}) for member in (stored, wanted))
    key = next(key for key in a | b if a.get(key) != b.get(key))
    return f"{key} = {a.get(key)}, not {b.get(key)}"


def read_sweep(name: str | Path) -> Sweep:
    """Read a sweep by its name or path. Raises UsageError, GqError."""
    folder = find_sweep(str(name)).resolve()
    document = read_json(folder / SWEEP_FILE)
    try:
        members = tuple(Member(**member) for member in document["members"])
        episodes = int(document.get("episodes", 0))
        return Sweep(folder, str(document["name"]), int(document["threads"]), members, episodes)
    except (KeyError, TypeError, ValueError) as error:
        hint = "put the file back from a copy; the runs beside it are whole without it"
        raise GqError(f"cannot use {folder / SWEEP_FILE}: {error}", hint=hint) from None


def is_trained(run: Path) -> bool:
    """Whether a run's training has ended: all steps taken and its card written, which comes last."""
    settings = read_settings(run) if is_run(run) else {}
    steps = settings.get("train", {}).get("steps", 0) if settings else 0
    return bool(settings) and (run / "README.md").exists() and not is_unfinished(run, str(settings.get("algo")), steps)


def next_evaluation(run: Path, num_episodes: int) -> list[str]:
    """Return the evaluation that a trained run needs next, after `gq`, at its highest target; empty without one."""
    for which in ("last", "best") if num_episodes else ():
        found = read_evaluations(run).of(choose_checkpoint(run, which))
        row = found.fullest
        if row is None or len(row.episodes) < num_episodes:
            target = ["--target", repr(max(found.targets))] if found.targets else []
            return ["eval", str(run), "--checkpoint", which, "--episodes", str(num_episodes), *target]
    return []


def status_of(sweep: Sweep, member: Member, starts: dict[str, int]) -> MemberStatus:
    """Return what a member is doing.

    Args:
        starts: by member, from `count_starts`.
    """
    run = sweep.run(member.name)
    failure = json_or_empty(sweep.failure(member.name))
    state: MemberState = "waiting"
    if is_claimed(sweep.claim_file(member.name)) or is_held(run / ".lock"):
        state = "running"
    elif is_trained(run) and not next_evaluation(run, sweep.num_episodes):
        state = "finished"
    elif failure:
        state = "failed"
    elif checkpoint_folders(run):
        state = "interrupted"
    step, total = position(run)
    message = str(failure.get("message", "")) if state == "failed" else ""
    return MemberStatus(member.name, state, step, total, last_score(run), message, starts.get(member.name, 0))


def position(run: Path) -> tuple[int, int]:
    """Return how far a run is and how far it goes, in updates or, for TD-MPC2, decisions."""
    train = read_settings(run).get("train", {}) if is_run(run) else {}
    key = "decisions" if "decisions" in train else "step"
    total = train.get("decisions", train.get("steps", 0))
    logged = next((record[key] for record in reversed(tail(run / "metrics.jsonl")) if key in record), 0)
    return max(int(logged), last_step(run) if key == "step" else 0), int(total)


def last_score(run: Path) -> float | None:
    """Return the last evaluation's return while training, at the highest target."""
    for record in reversed(tail(run / "metrics.jsonl")):
        if (score := score_of(record)) is not None:
            return score
    return None


def tail(file: Path) -> list[dict[str, Any]]:
    """Return the last records of a log; a half-written one is left out."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = opened.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):
            if isinstance(record := parse_json(line), dict):
                found.append(record)
    return found


def statuses(sweep: Sweep) -> list[MemberStatus]:
    """Return what all members are doing."""
    starts = count_starts(sweep)
    return [status_of(sweep, member, starts) for member in sweep.members]


def count_starts(sweep: Sweep) -> dict[str, int]:
    """Return how often each member was started."""
    counts: dict[str, int] = {}
    for record in read_starts(sweep):
        if record.get("event") == "start":
            counts[str(record["member"])] = counts.get(str(record["member"]), 0) + 1
    return counts


def read_starts(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the log of starts and ends."""
    try:
        lines = sweep.starts.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):  # one that a kill has torn
            found.append(parse_json(line))
    return [record for record in found if isinstance(record, dict) and "member" in record]


def record_event(sweep: Sweep, member: str, event: str, **more: Any) -> None:
    """Append a line to the log of starts; one write, so that several launchers may do it."""
    record = {"time": round(time.time(), 3), "member": member, "event": event, "host": socket.gethostname(), **more}
    try:
        sweep.starts.parent.mkdir(parents=True, exist_ok=True)
        with sweep.starts.open("ab", buffering=0) as file:
            file.write(b"\n" * needs_newline(sweep.starts) + json.dumps(record).encode() + b"\n")
    except OSError as error:
        raise write_error(sweep.starts, error) from error


def needs_newline(file: Path) -> bool:
    """Whether a killed process left half a line at the end."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - 1))
        return size > 0 and opened.read(1) != b"\n"


def claim(file: Path) -> int | None:
    """Take a member for this process; None if somebody has it.

    The descriptor that is returned is passed on to the member's process, which holds the lock for as long as it lives,
    whatever becomes of its launcher. Where there is no flock, it locks nothing.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    if fcntl:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
    return descriptor


def is_claimed(file: Path) -> bool:
    """Whether a living process has a member."""
    if not fcntl or not file.exists():
        return False
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # which gives the lock back
    return False


@contextmanager
def launching(sweep: Sweep) -> Iterator[None]:
    """Hold a sweep for this launcher. Raises GqError if another one works on it."""
    lock = filelock.FileLock(sweep.folder / ".lock", timeout=0.3)
    try:
        lock.acquire()
    except filelock.Timeout:
        hint = f"see gq sweep status {sweep.name}, or stop it: gq sweep stop {sweep.name}"
        raise GqError(f"another process runs the sweep {sweep.name}", hint=hint) from None
    except OSError as error:
        raise write_error(sweep.folder, error) from error
    try:
        yield
    finally:
        lock.release()

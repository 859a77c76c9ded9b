"""The runs of a folder at a glance: state, progress, scores, size, parents. Reads small files only, loads no engine."""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from gq.paths import all_runs, checkpoint_folders, is_run, json_or_empty, read_settings, section
from gq.runs.metrics import keys_by_target, last_evaluation
from gq.runs.state import FAILURE_FILE, State, last_state, state_of

Order = Literal["newest", "name", "size", "score"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What is known of a run; `to_dict` is its JSON document."""

    run: Path
    algo: str  # empty where config.toml cannot be read
    task: str
    size: str
    state: State
    imported: bool  # made of another program's weights
    failure: str  # what ended its training, empty if nothing did
    step: int  # updates at the last checkpoint
    decisions: int | None  # of TD-MPC2, at the last checkpoint
    num_checkpoints: int
    last_return: float | None  # of the last evaluation while training, at the highest target
    best_return: float | None
    best_step: int | None
    num_bytes: int  # on the disk
    created: str  # UTC, ISO 8601
    changed: str

    @property
    def name(self) -> str:
        """The run's id."""
        return self.run.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name} | asdict(self) | {"run": str(self.run)}


@dataclass(frozen=True)
class Parent:
    """Where a finetuned run began."""

    run: Path
    checkpoint: str
    is_there: bool


@dataclass(frozen=True)
class CorrectorRecord:
    """A corrector of a run's plans."""

    name: str
    checkpoint: str  # of the teacher
    teacher_sha256: str


def read_run(run: Path) -> RunRecord:
    """Read what is known of a run; what is damaged is left empty."""
    settings = read_settings(run)
    state = last_state(run)
    progress = section(state, "progress")
    num_bytes, changed = measure(run)
    failure = json_or_empty(run / FAILURE_FILE).get("message", "")
    status = state_of(run, settings)
    return RunRecord(
        run=run,
        algo=str(settings.get("algo", "")),
        task=str(settings.get("task", "")),
        size=str(settings.get("size", "")),
        state=status,
        imported=bool(json_or_empty(run / "environment.json").get("imported")),
        failure=str(failure) if status == "failed" else "",
        step=whole_number_in(state, "step") or 0,
        decisions=whole_number_in(progress, "decisions"),
        num_checkpoints=len(checkpoint_folders(run)),
        last_return=score_of(last_evaluation(run / "metrics.jsonl")),
        best_return=number_in(progress, "best_return"),
        best_step=whole_number_in(progress, "best_step"),
        num_bytes=num_bytes,
        created=iso_time((run / "config.toml").stat().st_mtime),
        changed=iso_time(changed),
    )


def number_in(document: dict[str, Any], key: str) -> int | float | None:
    """Return a finite number of a JSON object, None where there is something else."""
    value = document.get(key)
    return value if isinstance(value, int | float) and abs(value) < 1e300 else None


def whole_number_in(document: dict[str, Any], key: str) -> int | None:
    """Return the same without its fraction."""
    return None if (value := number_in(document, key)) is None else int(value)


def list_runs(
    runs: Iterable[Path] | None = None,
    *,
    task: str = "",
    algo: str = "",
    state: str = "",
    order: Order = "newest",
    limit: int | None = None,
) -> list[RunRecord]:
    """Return what is known of runs.

    Args:
        runs: in the order in which they are returned as the newest first; None: those of the runs folder.
        task: part of a task's name, in any case.
        order: the newest, the largest, the best one first, or by name.
        limit: how many; where the newest come first, others are not read.
    """
    runs = all_runs() if runs is None else runs
    if order == "name":
        runs = sorted(runs, key=lambda run: run.name)
    fits = (
        record
        for record in map(read_run, runs)
        if task.lower() in record.task.lower() and algo in ("", record.algo) and state in ("", record.state)
    )
    if order in ("newest", "name"):
        return list(islice(fits, limit))
    keys: dict[str, Callable[[RunRecord], tuple[Any, ...]]] = {
        "size": lambda record: (-record.num_bytes, record.name),
        "score": lambda record: (record.best_return is None, -(record.best_return or 0.0), record.name),  # None last
    }
    return sorted(fits, key=keys[order])[:limit]


def score_of(record: dict[str, Any]) -> float | None:
    """Return the return of an evaluation that a checkpoint is judged by."""
    by_target = keys_by_target(record)
    return number_in(record, by_target[max(by_target)] if by_target else "eval/return_mean")


def measure(folder: Path) -> tuple[int, float]:
    """Return the bytes of all files of a folder, and when one of them was last changed, in seconds since 1970."""
    num_bytes, changed = 0, 0.0
    for status in file_statuses(folder):
        num_bytes += status.st_size
        changed = max(changed, status.st_mtime)
    return num_bytes, changed or folder.stat().st_mtime


def file_statuses(folder: Path | str) -> Iterable[os.stat_result]:
    """Yield the status of each file in a folder; what vanishes meanwhile, as checkpoints do, is left out."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from file_statuses(entry.path)
            elif entry.name != ".lock":  # looking at it changes nothing of the run
                yield entry.stat(follow_symlinks=False)
        except OSError:
            continue


def iso_time(seconds: float) -> str:
    """Return a time in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def parent_of(run: Path) -> Parent | None:
    """Return the run that a run was finetuned from, None for others."""
    try:
        if b"[online]" not in (run / "config.toml").read_bytes():
            return None
    except OSError:
        return None
    online = section(read_settings(run), "online")
    if not online.get("parent"):
        return None
    folder = Path(str(online["parent"]))
    return Parent(folder, str(online.get("checkpoint", "")), is_run(folder))


def children_of(run: Path) -> list[Path]:
    """Return the runs that were finetuned from a run, of those in the runs folder and beside it."""
    beside = [path for path in run.resolve().parent.iterdir() if is_run(path)]
    candidates = {path.resolve() for path in (*all_runs(), *beside)}
    return sorted(path for path in candidates if (parent := parent_of(path)) and parent.run.resolve() == run.resolve())


def dependants_of(run: Path) -> list[Path]:
    """Return the children that cannot be trained without a run: they have no checkpoint of their own yet."""
    return [child for child in children_of(run) if not checkpoint_folders(child)]


def correctors_of(run: Path) -> list[CorrectorRecord]:
    """Return the correctors in a run's folder."""
    found = []
    for file in sorted((run / "correctors").glob("*/corrector.json")):
        document = json_or_empty(file)
        names = (file.parent.name, document.get("checkpoint", ""), document.get("teacher_sha256", ""))
        found.append(CorrectorRecord(*map(str, names)))
    return found

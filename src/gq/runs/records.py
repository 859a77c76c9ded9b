"""The runs of a folder at a glance: state, progress, scores, size. Reads small files only and loads no engine."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gq.paths import all_runs, checkpoint_folders, json_or_empty, read_settings
from gq.runs.metrics import keys_by_target, last_evaluation
from gq.runs.state import FAILURE_FILE, State, state_of

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


def read_run(run: Path) -> RunRecord:
    """Read what is known of a run; what is damaged is left empty."""
    settings = read_settings(run)
    folders = checkpoint_folders(run)
    state = json_or_empty(folders[-1] / "state.json") if folders else {}
    progress = state.get("progress")
    progress = progress if isinstance(progress, dict) else {}
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
        step=int(number_in(state, "step") or 0),
        decisions=int(found) if (found := number_in(progress, "decisions")) is not None else None,
        num_checkpoints=len(folders),
        last_return=score_of(last_evaluation(run / "metrics.jsonl")),
        best_return=number_in(progress, "best_return"),
        best_step=int(found) if (found := number_in(progress, "best_step")) is not None else None,
        num_bytes=num_bytes,
        created=iso_time((run / "config.toml").stat().st_mtime),
        changed=iso_time(changed),
    )


def number_in(document: dict[str, Any], key: str) -> int | float | None:
    """Return a finite number of a JSON object, None where there is something else."""
    value = document.get(key)
    return value if isinstance(value, int | float) and abs(value) < 1e300 else None


def list_runs(*, task: str = "", algo: str = "", state: str = "", order: Order = "newest") -> list[RunRecord]:
    """Return the runs of the runs folder.

    Args:
        task: part of a task's name, in any case.
        order: the newest, the largest, the best one first, or by name.
    """
    records = [read_run(run) for run in all_runs()]
    fitting = [
        record
        for record in records
        if task.lower() in record.task.lower() and algo in ("", record.algo) and state in ("", record.state)
    ]
    if order == "newest":
        return fitting
    return sorted(fitting, key=lambda record: sort_key(record, order))


def sort_key(record: RunRecord, order: Order) -> tuple[Any, ...]:
    """Return what a run is sorted by; runs without a score come last."""
    if order == "size":
        return (-record.num_bytes, record.name)
    if order == "score":
        return (record.best_return is None, -(record.best_return or 0.0), record.name)
    return (record.name,)


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

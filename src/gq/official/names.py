"""Which task an official TD-MPC2 checkpoint is for, from its name. Imports nothing heavy."""

import re
from pathlib import Path

from gq.datasets.catalog import TDMPC2, DatasetEntry
from gq.envs.tasks import CONTROL_TASKS, resolve_task
from gq.errors import UsageError, suggest

MT30: list[str] = TDMPC2["mt30"]  # the first tasks of the multi-task models, in the order of their embeddings


def usable_tasks() -> list[str]:
    """Return the tasks of the multi-task models that gq simulates."""
    return [name for name in MT30 if name in CONTROL_TASKS]


def checkpoint_task(entry: DatasetEntry, asked: str | None) -> str:
    """Return the task that a checkpoint is imported for, or "" where gq has none of its tasks.

    Args:
        asked: what the user named, to choose one of many.

    Raises:
        UsageError: the checkpoint holds many tasks and none was named, or is not for the one that was.
    """
    task = resolve_task(asked).id if asked else ""
    if entry.task not in TDMPC2["multitask"]:
        if task and task != entry.task:
            raise UsageError(f"{entry.id} is for {entry.task}, not {task}", hint="omit --task")
        return entry.task if entry.task in CONTROL_TASKS else ""
    usable = usable_tasks()
    listed = "one of " + ", ".join(usable)
    if not task:
        num_tasks = TDMPC2["multitask"][entry.task]
        raise UsageError(f"{entry.id} holds {num_tasks} tasks: choose with --task", hint=listed)
    if task not in usable:
        raise UsageError(f"{entry.id} does not hold {task}", hint=suggest(task, usable, otherwise=listed))
    return task


def task_in_file_name(path: Path) -> str:
    """Return the task that a file's name says as the official ones do, `dog-run-1.pt`, or ""."""
    name = re.sub(r"-[1-3]$", "", path.stem)
    return name if name in CONTROL_TASKS else ""

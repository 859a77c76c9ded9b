"""Bring observations to the columns of a task that gq knows, where that is exact."""

import numpy as np

from gq.data.old_columns import EXACT_COLUMNS, keep_columns
from gq.data.rows import Rows
from gq.envs.tasks import TASKS
from gq.repair.findings import Finding


def fit_columns(raw: Rows) -> list[Finding]:
    """Give data a task that fits their widths, and its columns; return what did not fit.

    A task whose version gq does not know (Hopper-v2) becomes the newest one of its robot if the widths are the same;
    without any task, the widths name it if only one robot has them.
    """
    widths = (raw.observations.shape[1], raw.actions.shape[1])
    fitting = [task.id for task in TASKS.values() if widths == (task.observation_dim, task.action_dim)]
    if raw.task is None:
        raw.task = only_robot(fitting) or {(111, 8): "Ant-v5"}.get(widths)
    family = (raw.task or "").split("-")[0]
    if raw.task not in TASKS:
        raw.task = next((known for known in TASKS if known.split("-")[0] == family), raw.task)  # v5 comes first
    if raw.task in fitting or raw.task not in TASKS:
        return []
    assert raw.task is not None
    task = TASKS[raw.task]
    found = f"{widths[0]} observation and {widths[1]} action columns, {task.id} has {task.observation_dim} and "
    found += str(task.action_dim)
    kept = EXACT_COLUMNS.get((raw.task, widths[0]))
    if kept is not None and widths[1] == task.action_dim:
        return [mapped(raw, kept, found)]
    same_family = [known for known in fitting if known.split("-")[0] == family]
    if same_family:
        raw.task = same_family[0]
        return [
            Finding("dimension-mismatch", widths[0], f"{found}; these are the widths of {raw.task}, which is taken")
        ]
    hint = f"; these are the widths of {' or '.join(fitting[:3])}: try --task {fitting[0]}" if fitting else ""
    return [Finding("dimension-mismatch", widths[0], f"{found}{hint}")]


def only_robot(fitting: list[str]) -> str | None:
    """Return the first of some tasks if all are of one robot."""
    return fitting[0] if len({task.split("-")[0] for task in fitting}) == 1 else None


def mapped(raw: Rows, kept: np.ndarray, found: str) -> Finding:
    """Reduce observations to some of their columns; return the finding, which says if the others were not zero."""
    count = raw.observations.shape[1]
    raw.observations, are_zero = keep_columns(raw.observations, kept)
    if raw.final_observations.shape[1:] == (count,):
        raw.final_observations = raw.final_observations[:, kept]
    is_exact = raw.task == "Ant-v4" or are_zero
    exactness = "exactly" if is_exact else "but columns that should be zero and are left out are not"
    return Finding("dimension-mismatch", count, f"{found}; the columns of {raw.task} are among them, {exactness}")

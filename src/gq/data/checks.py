"""What makes a file unfit to train on: shapes, types and values, and widths that are not the task's."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gq.envs.tasks import TASKS
from gq.errors import DataError

MATRICES = ("observations", "actions")


def check_columns(where: str, columns: Mapping[str, Any], *, num_final_observations: int = 0) -> int:
    """Check a file's or an episode's arrays by shape and dtype, without reading them, and return the number of steps.

    Args:
        where: file, and episode if there is one, for messages.
        columns: name to anything with `shape` and `dtype`: [N, width] for observations and actions, [N] or [N, 1] else.
        num_final_observations: observations after the last action, 1 in Minari.

    Raises:
        DataError: not numbers, a wrong shape, empty, or lengths that differ.
    """
    for name, column in columns.items():
        if column.dtype.kind not in "biuf":
            raise DataError(f"{where}: {name} holds {column.dtype}, not numbers")
        if len(column.shape) != 2 and name in MATRICES:
            raise DataError(f"{where}: {name} has shape {tuple(column.shape)}, expected (rows, columns)")
        if name not in MATRICES and len(column.shape) != 1 and tuple(column.shape[1:]) != (1,):
            raise DataError(f"{where}: {name} has shape {tuple(column.shape)}, expected (rows,)")
        if 0 in column.shape:
            raise DataError(f"{where}: {name} is empty, shape {tuple(column.shape)}")
    lengths: dict[str, int] = {name: column.shape[0] for name, column in columns.items()}
    lengths["observations"] -= num_final_observations
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {column.shape[0]}" for name, column in columns.items())
        wanted = f"; observations need {num_final_observations} more than the others" if num_final_observations else ""
        raise DataError(f"{where}: the arrays differ in length: {listed}{wanted}")
    return lengths["actions"]


def check_finite(path: str, name: str, values: np.ndarray, place: Callable[[int], str]) -> None:
    """Refuse NaN and infinity.

    Args:
        values: [N] or [N, width].
        place: says where a row is, for people.

    Raises:
        DataError: names the array, the first row and column, and the number of bad values.
    """
    with np.errstate(invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):  # one pass and no temporary; a bad value spoils the sum
            return
    bad = ~np.isfinite(values.reshape(len(values), -1))
    row, column = np.argwhere(bad)[0]
    kind = "NaN" if np.isnan(values.reshape(len(values), -1)[row, column]) else "an infinite value"
    where = f"{place(int(row))}, column {column}" if values.ndim == 2 else place(int(row))
    raise DataError(f"{path}: {name} holds {kind} at {where} ({bad.sum():,} such values in all)")


def check_widths(path: str, num_observation_columns: int, num_action_columns: int, task_id: str | None) -> None:
    """Compare the widths of observations and actions with the task's, if gq knows the task.

    Raises:
        DataError: they differ; the hint names the task that the widths belong to.
    """
    task = TASKS.get(task_id or "")
    found = (num_observation_columns, num_action_columns)
    if task is None or found == (task.observation_dim, task.action_dim):
        return
    message = (
        f"{path} has {found[0]} observation and {found[1]} action columns, "
        f"{task.id} has {task.observation_dim} and {task.action_dim}"
    )
    family = task.id.split("-")[0]
    fitting = [known.id for known in TASKS.values() if found == (known.observation_dim, known.action_dim)]
    fitting.sort(key=lambda name: name.split("-")[0] != family)
    if fitting:
        hint = f"these are the widths of {' or '.join(fitting[:3])}: try --task {fitting[0]}"
    elif found == (111, 8):
        hint = "111 columns are Ant-v2 or v3, or v4 with contact forces; gq trains on Ant-v5 (105) and Ant-v4 (27)"
    else:
        hint = "no task that gq knows has these widths"
    raise DataError(message, hint=hint)


def check_episodes(path: str, offsets: np.ndarray, terminals: np.ndarray, task_id: str | None) -> None:
    """Refuse episodes longer than the task's limit, and episodes that go on after a terminal step.

    Args:
        offsets: int [E + 1].
        terminals: bool [offsets[-1]].

    Raises:
        DataError: their returns-to-go would be wrong.
    """
    lengths = np.diff(offsets)
    longest = int(lengths.argmax())
    task = TASKS.get(task_id or "")
    if task is not None and lengths[longest] > task.max_episode_steps:
        message = (
            f"{path}: episode {longest} has {lengths[longest]:,} steps, {task.id} stops at {task.max_episode_steps:,}"
        )
        raise DataError(message, hint="its time limits are not flagged, or the data are of another --task")
    inner = np.setdiff1d(np.flatnonzero(terminals), offsets[1:] - 1)
    if len(inner):
        episode = int(np.searchsorted(offsets, inner[0], side="right")) - 1
        message = f"{path}: episode {episode} goes on after a terminal at its step {inner[0] - offsets[episode]}"
        raise DataError(message, hint="an episode must end at its first terminal step")

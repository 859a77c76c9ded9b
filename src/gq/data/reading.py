"""Read data files of every layout into `Trajectories` to train on; write gq's own file.

Layouts are told apart by content. gq's canonical file is a D4RL file: flat arrays and end-of-episode flags.
"""

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.rows import Rows, non_finite, read_rows
from gq.data.trajectories import Trajectories
from gq.envs.specs import EnvironmentRequest, Record, settle
from gq.envs.tasks import TASKS, Task, proper_id, resolve_task
from gq.errors import DataError, UsageError
from gq.files import atomic_path


def read_trajectories(
    path: Path,
    *,
    task: str | None = None,
    environment: Task | EnvironmentRequest | None = None,
    source: str | None = None,
) -> Trajectories:
    """Read a D4RL or Minari HDF5 file, a Minari dataset folder or a pickled list of episodes.

    The task is the argument, else what the file records, else what its name implies, else None. An unfinished episode
    at the end of a flat file is left out and counted in `num_dropped_rows`. An episode of a Minari file without a flag
    on its last row was cut by its collector, and is kept: Minari stores whole episodes.

    Args:
        task: id of one of gq's own tasks, in any case.
        environment: which the data must be of, or what is asked for: then what they record is made sure of.
        source: what `Trajectories.source` says; the path if None.

    Raises:
        UsageError: no such file or task, or the file needs a task that nothing names, or it contradicts what is asked.
        DataError: the file is damaged, incomplete, holds NaN, or has other widths than the task.
    """
    path = path.expanduser()
    asked = resolve_task(task).id if task else None
    if environment and environment.id:
        asked = proper_id(environment.id)
    file = data_file(path)
    rows, _ = read_rows(file, asked, refuse=True)
    assert rows is not None, "what cannot be read is refused"
    if isinstance(environment, EnvironmentRequest):
        if rows.task is None:
            shapes = f"observations of width {rows.observations.shape[1]}, actions of {rows.actions.shape[1]}"
            raise UsageError(f"{path} does not say its task ({shapes})", hint="name it, for example --task Hopper-v5")
        environment = settle(environment, Record.of(rows.attributes), rows.task)
    return trajectories_of(file, rows, source or str(path), environment or TASKS.get(rows.task or ""))


def data_file(path: Path) -> Path:
    """Return the path, or for a Minari dataset's folder the HDF5 file in it, or the folder of its tables.

    Raises:
        UsageError: there is no such file, or the folder holds no Minari data.
    """
    if not path.exists():
        raise UsageError(f"there is no file {path}", hint="check the path, or name a dataset: gq download hopper")
    if not path.is_dir():
        return path
    for folder in (path, path / "data"):
        if (folder / "main_data.hdf5").is_file():
            return folder / "main_data.hdf5"
    for folder in (path / "data", path):
        if (folder / "metadata.json").is_file() and any(folder.glob("[0-9]*/part-*")):
            return folder
    hint = "give the folder of one Minari dataset (mujoco/hopper/medium-v0), or a file"
    raise UsageError(f"{path} is a folder without main_data.hdf5 or data/main_data.hdf5", hint=hint)


def trajectories_of(file: Path, rows: Rows, source: str, task: Task | None) -> Trajectories:
    """Split a file's rows into episodes of a task, where that is known, to train on.

    Raises:
        DataError: the values or widths are not what they should be, or no episode is complete.
        UsageError: there are neither timeouts nor a task with a known limit.
    """
    record = Record.of(rows.attributes)
    check_widths(file, rows.observations.shape[1], rows.actions.shape[1], task, record)
    for name in ("observations", "actions", "rewards"):
        if error := non_finite(file, name, getattr(rows, name), rows):
            raise error
    offsets = rows.offsets
    if offsets is None:
        ends = _episode_ends(file, rows.terminals, rows.timeouts, task)
        if not len(ends):
            limit = "" if task else ", or at the limit of its --task"
            hint = f"an episode ends where terminals or timeouts is set{limit}"
            raise DataError(f"{file}: no complete episode in {rows.num_rows:,} rows", hint=hint)
        offsets = np.concatenate([[0], ends + 1]).astype(np.int64)
    num_kept = int(offsets[-1])
    if record and record.clips_actions and task:
        rows.actions = rows.actions.clip(np.array(task.action_low, np.float32), np.array(task.action_high, np.float32))
    _check_episodes(file, offsets, rows.terminals[:num_kept], task)
    return Trajectories(
        observations=rows.observations[:num_kept],
        actions=rows.actions[:num_kept],
        rewards=rows.rewards[:num_kept],
        terminals=rows.terminals[:num_kept],
        offsets=offsets,
        source=source,
        task=task.id if task else rows.task,
        environment=task,
        num_dropped_rows=rows.num_rows - num_kept,
        attributes=rows.attributes,
    )


def _episode_ends(path: Path, terminals: np.ndarray, timeouts: np.ndarray | None, task: Task | None) -> np.ndarray:
    """Return the last row of each complete episode of flat data, int [E].

    Where no time limit was recorded, an episode also ends at its task's limit. Its steps are counted from its own first
    row: the loops of older readers start each later count one too high, and cut 1000 steps to 999.

    Args:
        terminals: bool [N].
        timeouts: bool [N], or None where the file has none.

    Raises:
        UsageError: neither timeouts nor a task with a known limit.
    """
    if timeouts is not None and timeouts.any():
        return np.flatnonzero(terminals | timeouts)
    ends = np.flatnonzero(terminals)
    if task is None:
        if timeouts is not None:
            return ends
        message = f"{path} has no timeouts, and no known task tells where its episodes end"
        raise UsageError(message, hint="name the task, for example --task Hopper-v5")
    limit = task.max_episode_steps
    starts, stops = np.concatenate([[0], ends + 1]), np.concatenate([ends, [len(terminals)]])
    cuts = [np.arange(start + limit - 1, stop, limit) for start, stop in zip(starts, stops, strict=True)]
    return np.sort(np.concatenate([ends, *cuts]))


def check_widths(
    path: Path, num_observation_columns: int, num_action_columns: int, task: Task | None, record: Record | None = None
) -> None:
    """Compare the widths of observations and actions with the task's, if that is known.

    Raises:
        DataError: they differ; the hint names the task that the widths belong to.
    """
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
    if record:  # then they are of no other robot
        fitting = [name for name in fitting if name.split("-")[0] == record.id.split("-")[0]]
    if fitting:
        hint = f"these are the widths of {' or '.join(fitting[:3])}: try --task {fitting[0]}"
    elif found == (111, 8):
        hint = "111 columns are Ant-v2 or v3, or v4 with contact forces; gq trains on Ant-v5 (105) and Ant-v4 (27)"
    else:
        hint = "no task that gq knows has these widths"
    raise DataError(message, hint=hint)


def _check_episodes(path: Path, offsets: np.ndarray, terminals: np.ndarray, task: Task | None) -> None:
    """Refuse episodes longer than the task's limit, and episodes that go on after a terminal step.

    Args:
        offsets: int [E + 1].
        terminals: bool [offsets[-1]].

    Raises:
        DataError: their returns-to-go would be wrong.
    """
    lengths = np.diff(offsets)
    longest = int(lengths.argmax())
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


def time_limits(trajectories: Trajectories) -> np.ndarray:
    """Return the flags of rows where an episode ends without a terminal, bool [N]."""
    timeouts = np.zeros(trajectories.num_transitions, bool)
    timeouts[trajectories.offsets[1:] - 1] = True
    limits: np.ndarray = timeouts & ~trajectories.terminals
    return limits


def write_canonical(
    path: Path, trajectories: Trajectories, *, timeouts: np.ndarray, attributes: dict[str, Any]
) -> None:
    """Write gq's dataset file atomically: flat, contiguous arrays, float32 and bool.

    Args:
        timeouts: bool [N], True where an episode ends by its time limit; `time_limits` gives it.
        attributes: provenance as text and numbers; `env_id` and `source` are taken from the trajectories.

    Raises:
        GqError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    import h5py

    ends = np.flatnonzero(trajectories.terminals | timeouts)
    assert np.array_equal(ends, trajectories.offsets[1:] - 1), "flags must mark the ends of episodes and nothing else"
    recorded = {"env_id": trajectories.task, "source": trajectories.source, **attributes}
    arrays = {
        "observations": trajectories.observations,
        "actions": trajectories.actions,
        "rewards": trajectories.rewards,
        "terminals": trajectories.terminals,
        "timeouts": timeouts,
    }
    with atomic_path(path) as temporary:
        try:
            with h5py.File(temporary, "w") as root:
                root.attrs.update({name: _storable(value) for name, value in recorded.items() if value is not None})
                for name, array in arrays.items():
                    root.create_dataset(name, data=array)
        except (OSError, RuntimeError) as error:  # h5py buries the number in a long text; RuntimeError on closing
            number = re.search(r"errno = (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code)) from error


def _storable(value: Any) -> Any:
    """Return an attribute as HDF5 can hold it: text without NUL and what is no UTF-8; text for what is no number."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", " ")
    is_plain = isinstance(value, bool | int | float | np.ndarray | np.generic)
    if is_plain or (isinstance(value, list) and all(isinstance(item, bool | int | float) for item in value)):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [_storable(item) for item in value]
    return _storable(str(value))

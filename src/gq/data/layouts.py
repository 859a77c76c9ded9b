"""Turn stored columns, flat or one set an episode, into `Trajectories`, with every check on the way.

A column is anything with `shape`, `dtype` and indexing: an array, or an HDF5 dataset that is not read yet. Headers are
checked before any column is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.checks import check_columns, check_episodes, check_finite, check_widths
from gq.data.own_content import check_size, own_item
from gq.data.trajectories import Trajectories
from gq.envs.tasks import TASKS
from gq.errors import DataError, UsageError

MAPPED_BYTES = 1 << 30  # columns of HDF5 files that are at least so large stay there


def pick_columns(where: str, container: Any, names: list[str]) -> dict[str, Any]:
    """Return columns of a dict or an HDF5 group by name, unread.

    Args:
        where: file, and episode if there is one, for messages.

    Raises:
        DataError: one is missing or is not an array.
    """
    if not isinstance(container, Mapping):
        raise DataError(f"{where} is not a group of arrays", hint="an episode needs " + ", ".join(names))
    columns = {}
    for name in names:
        column = own_item(where, container, name)
        if column is None:
            found = ", ".join(str(key) for key in list(container)[:6]) or "nothing"
            raise DataError(f"{where} has no {name}, but {found}", hint="gq needs " + ", ".join(names))
        if not hasattr(column, "dtype") or not hasattr(column, "shape"):
            raise DataError(f"{where}: {name} is a {type(column).__name__.lower()}, not one array")
        columns[name] = column
    return columns


def from_flat(path: str, columns: Mapping[str, Any], *, source: str, task: str | None) -> Trajectories:
    """Split flat columns into episodes, leaving out an unfinished one at the end.

    Args:
        columns: observations [N, S], actions [N, A]; rewards, terminals and, where recorded, timeouts: [N] or [N, 1].
        task: tells the widths to expect and, without timeouts, the longest episode.

    Raises:
        DataError: a column is not what it should be, or no episode is complete.
        UsageError: there are neither timeouts nor a task with a known limit.
    """
    num_rows = check_columns(path, columns)
    check_widths(path, columns["observations"].shape[1], columns["actions"].shape[1], task)
    check_size(Path(path), [column.shape for column in columns.values()])
    arrays = {}
    for name, column in columns.items():
        values = map_float32(column, num_rows)
        values = read_float32(column, num_rows) if values is None else values
        arrays[name] = values if name in ("observations", "actions") else values.reshape(-1)
        check_finite(path, name, arrays[name], lambda row: f"row {row:,}")
    terminals = arrays["terminals"] != 0
    timeouts = arrays["timeouts"] != 0 if "timeouts" in arrays else None
    ends = episode_ends(path, terminals, timeouts, task)
    if not len(ends):
        hint = "an episode ends where terminals or timeouts is set" + (
            "" if task else ", or at the limit of its --task"
        )
        raise DataError(f"{path}: no complete episode in {num_rows:,} rows", hint=hint)
    offsets = np.concatenate([[0], ends + 1]).astype(np.int64)
    num_kept = int(offsets[-1])
    check_episodes(path, offsets, terminals[:num_kept], task)
    return Trajectories(
        observations=arrays["observations"][:num_kept],
        actions=arrays["actions"][:num_kept],
        rewards=arrays["rewards"][:num_kept],
        terminals=terminals[:num_kept],
        offsets=offsets,
        source=source,
        task=task,
        num_dropped_rows=num_rows - num_kept,
    )


def episode_ends(path: str, terminals: np.ndarray, timeouts: np.ndarray | None, task: str | None) -> np.ndarray:
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
    if task not in TASKS:
        if timeouts is not None:
            return ends
        message = f"{path} has no timeouts, and no known task tells where its episodes end"
        raise UsageError(message, hint="name the task, for example --task Hopper-v5")
    limit = TASKS[task].max_episode_steps
    starts, stops = np.concatenate([[0], ends + 1]), np.concatenate([ends, [len(terminals)]])
    cuts = [np.arange(start + limit - 1, stop, limit) for start, stop in zip(starts, stops, strict=True)]
    return np.sort(np.concatenate([ends, *cuts]))


def from_episodes(
    path: str,
    episodes: dict[str, dict[str, Any]],
    *,
    source: str,
    task: str | None,
    num_final_observations: int = 0,
) -> Trajectories:
    """Put whole episodes back to back.

    Args:
        episodes: label to the columns observations [T + F, S], actions [T, A], rewards and an end-of-episode flag, both
            [T] or [T, 1], in this order.
        task: tells the widths and the length to expect.
        num_final_observations: F, the observations after the last action, which are left out.

    Raises:
        DataError: a column is not what it should be.
    """
    lengths, widths = check_headers(path, episodes, num_final_observations)
    check_widths(path, *widths, task)
    check_size(Path(path), [column.shape for columns in episodes.values() for column in columns.values()])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    arrays = [np.empty((offsets[-1], *shape), np.float32) for shape in ((widths[0],), (widths[1],), (), ())]
    for start, length, columns in zip(offsets, lengths, episodes.values(), strict=False):
        for array, column in zip(arrays, columns.values(), strict=True):
            read_float32(column, length, out=array[start : start + length])

    labels = list(episodes)

    def place(row: int) -> str:
        episode = int(np.searchsorted(offsets, row, side="right")) - 1
        return f"{labels[episode]}, step {row - offsets[episode]:,}"

    for array, name in zip(arrays, episodes[labels[0]], strict=True):
        check_finite(path, name, array, place)
    observations, actions, rewards, flags = arrays
    terminals = flags != 0
    check_episodes(path, offsets, terminals, task)
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminals=terminals,
        offsets=offsets,
        source=source,
        task=task,
    )


def check_headers(
    path: str, episodes: dict[str, dict[str, Any]], num_final_observations: int
) -> tuple[list[int], tuple[int, int]]:
    """Check each episode's columns unread; return their numbers of steps, and the widths that they share.

    Raises:
        DataError: a column is not what it should be, or an episode has other widths than the first.
    """
    lengths: list[int] = []
    shared: tuple[int, int] | None = None
    for label, columns in episodes.items():
        where = f"{path}: {label}"
        lengths.append(check_columns(where, columns, num_final_observations=num_final_observations))
        widths = (columns["observations"].shape[1], columns["actions"].shape[1])
        shared = shared or widths
        if widths != shared:
            message = f"{where} has {widths[0]} observation and {widths[1]} action columns"
            raise DataError(f"{message}, those before it {shared[0]} and {shared[1]}")
    assert shared is not None, "no episodes"
    return lengths, shared


def map_float32(column: Any, num_rows: int) -> np.ndarray | None:
    """Return the first rows of a large HDF5 column as they lie in the file, unread; None if it is small or converted.

    Writing to the array changes a copy of the page in memory, never the file.
    """
    is_plain = hasattr(column, "read_direct") and column.chunks is None and column.external is None
    if not is_plain or column.dtype != np.dtype("<f4") or column.nbytes < MAPPED_BYTES:
        return None
    offset = column.id.get_offset()
    if offset is None:
        return None
    return np.memmap(column.file.filename, "<f4", "c", offset, (num_rows, *column.shape[1:]))


def read_float32(column: Any, num_rows: int, *, out: np.ndarray | None = None) -> np.ndarray:
    """Return the first rows of a column as float32; what float32 cannot hold becomes infinite, for `check_finite`.

    HDF5 converts piece by piece, so that a float64 column never lies in memory whole.

    Args:
        out: float32 [num_rows, ...], where the values go; it may lack a column's last dimension if that is 1.
    """
    if out is None:
        out = np.empty((num_rows, *column.shape[1:]), np.float32)
    target = out.reshape(num_rows, *column.shape[1:])  # a view: `out` is contiguous
    if hasattr(column, "read_direct"):
        column.read_direct(target, np.s_[:num_rows])
    else:
        with np.errstate(over="ignore"):
            target[:] = column[:num_rows]
    return out

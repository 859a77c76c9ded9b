"""Read a data file's rows, of whatever layout, with what is wrong with them.

There is one reader for training and for repair: training refuses at the first problem that it minds, repair takes the
same rows and problems and repairs them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.formats import format_of, stored_hdf5, stored_npz, stored_pickle
from gq.data.hdf5 import AGAIN, READ_ERRORS, ForeignError, check_size, damaged, open_hdf5
from gq.data.layouts import (
    D4RL,
    FLAGS,
    MATRICES,
    MINARI,
    REQUIRED,
    Part,
    Problem,
    Problems,
    Stored,
    UnusableError,
    row_shape,
)
from gq.data.tables import stored_parquet, stored_tables
from gq.envs.tasks import task_in_name
from gq.errors import DataError

MAPPED_BYTES = 1 << 30  # columns of HDF5 files that are at least this large stay there
NUM_ROWS_NAMED = 10
ROW_BLOCK = 8_192  # rows read at a time where a column cannot be read in one go
COMPARE_ROWS = 65_536
USELESS_SHARE = 0.5  # of rows whose next observation is not the next row's: then the column is something else


@dataclass(kw_only=True)
class Rows:
    """The N rows of a file as they are stored, back to back."""

    layout: str  # d4rl, minari or pickle
    observations: np.ndarray  # float32 [N, S]
    actions: np.ndarray  # float32 [N, A]
    rewards: np.ndarray  # float32 [N]
    terminals: np.ndarray  # bool [N]
    timeouts: np.ndarray | None  # bool [N]; where episodes are stored apart, each end but terminals is one
    lost: np.ndarray  # bool [N], rows that could not be read; their observations are NaN
    task: str | None
    offsets: np.ndarray | None = None  # int64 [E + 1] where episodes are stored apart; else flags tell where they end
    labels: list[str] = field(default_factory=list)  # of these episodes in the file
    attributes: dict[str, Any] = field(default_factory=dict)
    continues: np.ndarray | None = None  # bool [N - 1], next_observations are the next row's; None: they do not tell
    final_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows with a next one on record
    final_observations: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # [F, S]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.rewards)

    @property
    def flagged(self) -> np.ndarray:
        """Rows that a flag ends, bool [N]."""
        return self.terminals if self.timeouts is None else self.terminals | self.timeouts


def read_rows(path: Path, task: str | None = None, *, refuse: bool = False) -> tuple[Rows | None, list[Problem]]:
    """Read an HDF5 file of D4RL, gq or Minari or a pickled list of episodes, as far as it can be read.

    Args:
        task: Gymnasium id; else what the file records or its name implies.
        refuse: raise the first problem that training minds, before columns are read where headers show it, and leave
            out what only repair needs: next observations, and the flags of time limits in Minari's episodes.

    Returns:
        The rows, None if there are none to be had, and what is wrong.

    Raises:
        DataError: with `refuse`, the problem; always, if the file refers to others, claims more memory than it can
            mean, or asks for anything but data.
    """
    problems = Problems(refuse=refuse)
    try:
        return _read(path, task, problems), problems
    except UnusableError as error:
        fatal = error.problem
    problems.add(fatal)  # not above, where an error that is raised would have itself as its context
    return None, problems


def _read(path: Path, task: str | None, problems: Problems) -> Rows:
    """Read rows; see `read_rows`. Raises UnusableError where there are none."""
    try:
        kind = format_of(path)
    except DataError as error:
        raise UnusableError(Problem("not-hdf5", f"{error}; {AGAIN}", error)) from error
    openers = {"npz": stored_npz, "pickle": stored_pickle, "parquet": stored_parquet, "minari tables": stored_tables}
    if kind != "hdf5":
        return _gather(path, openers[kind](path, problems), task, problems)
    try:
        with open_hdf5(path) as root:
            return _gather(path, stored_hdf5(path, root, problems), task, problems)
    except ForeignError:
        raise
    except DataError as error:
        raise UnusableError(Problem("truncated-file", f"{error}; {AGAIN}", error)) from error


def _gather(path: Path, stored: Stored, task: str | None, problems: Problems) -> Rows:
    """Read the columns of all parts and put them back to back. Raises UnusableError."""
    is_flat = stored.layout is D4RL
    parts = stored.parts
    _check_widths(path, parts)
    check_size(path, [(part.num_rows, *column.shape[1:]) for part in parts for column in part.columns.values()])
    arrays, lost = _read_columns(parts, problems)
    if lost.any() and not is_flat:
        parts, arrays, lost = _undamaged(parts, arrays, lost)
    _report_lost(stored, len(parts), lost, problems)
    if not parts:
        if discrete := _discrete(problems):
            raise UnusableError(replace(discrete, episode="", count=1, loses_episode=False))
        error = DataError(f"{path}: no episode can be read", hint=AGAIN)
        raise UnusableError(Problem("bad-shape", "no episode can be read", error))
    arrays["observations"][lost] = np.nan
    offsets = _offsets(parts)
    flags = {name: np.nan_to_num(arrays[name]) != 0 for name in FLAGS if name in arrays}
    terminals, timeouts = flags.get("terminals", np.zeros(len(lost), bool)), flags.get("timeouts")
    if not is_flat:
        timeouts = np.zeros(len(lost), bool) if timeouts is None else timeouts
        timeouts[offsets[1:] - 1] = True
        timeouts &= ~terminals
    rows = Rows(
        layout=stored.layout.name,
        observations=arrays["observations"],
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        terminals=terminals,
        timeouts=timeouts,
        offsets=None if is_flat else offsets,
        labels=[part.label for part in parts],
        task=_choose_task(path, task, stored.attributes.get("env_id")),
        lost=lost,
        attributes=stored.attributes,
    )
    for name in flags:
        refusal = non_finite(path, stored.layout.stored_names.get(name, name), arrays[name], rows)
        if refusal is not None:
            problems.add(Problem("non-finite", str(refusal).removeprefix(f"{path}: "), refusal))
    if not problems.refuse:
        _look_ahead(rows, parts, offsets, problems)
    return rows


def _offsets(parts: list[Part]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([part.num_rows for part in parts])]).astype(np.int64)


def _check_widths(path: Path, parts: list[Part]) -> None:
    """Raise UnusableError if parts differ in width."""
    widths = [tuple(row_shape(name, part.columns[name].shape)[0] for name in MATRICES) for part in parts]
    for part, found in zip(parts, widths, strict=True):
        if found != widths[0]:
            message = f"{path}: {part.label} has {found[0]} observation and {found[1]} action columns, those before it "
            error = DataError(f"{message}{widths[0][0]} and {widths[0][1]}")
            told = sorted(set(widths))
            raise UnusableError(Problem("bad-shape", f"the episodes differ in width: {told}", error, count=len(told)))


def _discrete(problems: Problems) -> Problem | None:
    """Return the problem of episodes that are lost because their actions are discrete, if there is one."""
    return next((problem for problem in problems if problem.code == "discrete-actions"), None)


def _report_lost(stored: Stored, num_left: int, lost: np.ndarray, problems: Problems) -> None:
    """Report the episodes that cannot be read, and the rows of a flat file."""
    num_episodes = len(stored.parts) + stored.num_lost
    num_lost = num_episodes - num_left
    if num_lost:
        code = "truncated-file" if stored.layout is MINARI else "bad-shape"
        if num_lost == num_episodes and _discrete(problems):
            return  # which is told as the file's
        message = f"{num_lost:,} of {num_episodes:,} episodes cannot be read and are left out"
        problems.append(Problem(code, message, count=num_lost))
    rows = np.flatnonzero(lost)
    if len(rows):
        message = f"{len(rows):,} rows lie in damaged parts of the file"
        first = tuple(int(row) for row in rows[:NUM_ROWS_NAMED])
        problems.append(Problem("truncated-file", message, count=len(rows), rows=first))


def _read_columns(parts: list[Part], problems: Problems) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return all parts' columns, float32 [N, ...], zeros where one is missing; and the damaged rows, bool [N]."""
    offsets = _offsets(parts)
    lost = np.zeros(offsets[-1], bool)
    arrays: dict[str, np.ndarray] = {}
    for name in (*REQUIRED, "timeouts"):
        stored = [part.columns.get(name) for part in parts]
        inner = next((row_shape(name, column.shape) for column in stored if column is not None), None)
        if inner is None:
            continue
        mapped = _map_float32(stored[0], len(lost)) if len(parts) == 1 else None
        if mapped is not None:
            arrays[name] = mapped.reshape(len(lost), *inner)
            continue
        arrays[name] = np.zeros((len(lost), *inner), np.float32)
        for column, start, stop in zip(stored, offsets[:-1], offsets[1:], strict=True):
            if column is not None:
                _read_float32(column, arrays[name][start:stop], lost[start:stop], problems)
    return arrays, lost


def _undamaged(
    parts: list[Part], arrays: dict[str, np.ndarray], lost: np.ndarray
) -> tuple[list[Part], dict[str, np.ndarray], np.ndarray]:
    """Return the parts without damaged rows, and what was read of them."""
    offsets = _offsets(parts)
    is_whole = ~np.logical_or.reduceat(lost, offsets[:-1])
    kept = np.repeat(is_whole, np.diff(offsets))
    whole = [part for part, is_kept in zip(parts, is_whole, strict=True) if is_kept]
    return whole, {name: values[kept] for name, values in arrays.items()}, lost[kept]


def _map_float32(column: Any, num_rows: int) -> np.ndarray | None:
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


def _read_float32(column: Any, out: np.ndarray, lost: np.ndarray, problems: Problems) -> None:
    """Read a column's first rows into `out`, float32 [n, ...]; what float32 cannot hold becomes infinite.

    HDF5 converts piece by piece, so that a float64 column never lies in memory whole. A column with damaged chunks is
    read block by block, and the rows of those that fail are marked in `lost`, bool [n].
    """
    target = out.reshape(len(out), *column.shape[1:])  # a view: `out` is contiguous
    if not hasattr(column, "read_direct"):
        with np.errstate(over="ignore"):
            target[:] = column[: len(out)]
        return
    try:
        column.read_direct(target, np.s_[: len(out)])
        return
    except READ_ERRORS as error:
        if problems.refuse:
            raise damaged(Path(column.file.filename), error) from error
    step = column.chunks[0] if column.chunks else ROW_BLOCK
    for start in range(0, len(out), step):
        rows = np.s_[start : min(start + step, len(out))]
        try:
            column.read_direct(target, rows, rows)
        except READ_ERRORS:
            lost[rows] = True
            target[rows] = 0


def non_finite(path: Path, name: str, values: np.ndarray, rows: Rows) -> DataError | None:
    """Return the error of a column, [N] or [N, width], with NaN or infinity: its first place and how many there are."""
    with np.errstate(invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):  # one pass and no temporary; a bad value spoils the sum
            return None
    table = values.reshape(len(values), -1)
    bad = ~np.isfinite(table)
    row, column = np.argwhere(bad)[0]
    place = f"row {row:,}"
    if rows.offsets is not None:
        episode = int(np.searchsorted(rows.offsets, row, side="right")) - 1
        place = f"{rows.labels[episode]}, step {row - rows.offsets[episode]:,}"
    place += f", column {column}" if values.ndim == 2 else ""
    kind = "NaN" if np.isnan(table[row, column]) else "an infinite value"
    return DataError(f"{path}: {name} holds {kind} at {place} ({bad.sum():,} such values in all)")


def _choose_task(path: Path, asked: str | None, recorded: Any) -> str | None:
    """Return the task asked for, else the recorded environment id, else the one that the file's name implies."""
    if asked or (recorded and isinstance(recorded, str)):
        return asked or recorded
    inside_minari = path.name == "main_data.hdf5"
    folders = path.resolve().parts[-4:-1] if inside_minari else path.resolve().parts[-3:]
    named = task_in_name("/".join(folders) if inside_minari or path.is_dir() else path.name)
    return named.id if named else None


def _look_ahead(rows: Rows, parts: list[Part], offsets: np.ndarray, problems: Problems) -> None:
    """Keep what a file says of the observations that follow its rows, where that tells anything."""
    if rows.layout == MINARI.name:
        has_last = [part.columns["observations"].shape[0] > part.num_rows for part in parts]
        if any(has_last):
            whole = [part for part, is_whole in zip(parts, has_last, strict=True) if is_whole]
            last = [np.asarray(part.columns["observations"][part.num_rows], np.float32).reshape(-1) for part in whole]
            rows.final_rows, rows.final_observations = (offsets[1:] - 1)[has_last], np.stack(last)
        return
    width = rows.observations.shape[1]
    if all(
        getattr(part.following, "shape", ())[1:] == (width,) and len(part.following) >= part.num_rows for part in parts
    ):
        try:
            _compare_following(rows, _blocks(parts, offsets))
        except READ_ERRORS:
            words = "next_observations cannot be read whole; they are not needed"
            problems.add(Problem("truncated-file", words))


def _blocks(parts: list[Part], offsets: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield stored next observations, float32 [n, S], with the row that they begin with."""
    for part, first in zip(parts, offsets.tolist(), strict=False):
        for start in range(0, part.num_rows, COMPARE_ROWS):
            stop = min(start + COMPARE_ROWS, part.num_rows)
            yield first + start, np.asarray(part.following[start:stop], np.float32)


def _compare_following(rows: Rows, blocks: Iterator[tuple[int, np.ndarray]]) -> None:
    """Compare stored next observations with the next rows, and keep those at breaks and at the end.

    They tell nothing if they are the next rows everywhere, so made from them, or nearly nowhere.
    """
    continues = np.zeros(rows.num_rows - 1, bool)
    kept_rows, kept = [], []
    for start, block in blocks:
        after = rows.observations[start + 1 : start + 1 + len(block)]
        same = np.zeros(len(block), bool)  # the last row has no next one
        same[: len(after)] = (np.abs(block[: len(after)] - after) <= 1e-5 + 1e-5 * np.abs(after)).all(axis=1)
        continues[start : start + len(after)] = same[: len(after)]
        kept_rows.append(start + np.flatnonzero(~same))
        kept.append(block[~same])
    if len(continues) and not continues.all() and continues.mean() >= USELESS_SHARE:
        rows.continues = continues
        rows.final_rows, rows.final_observations = np.concatenate(kept_rows), np.concatenate(kept)

"""Columns of data files as they are, also oddly shaped and contradictory ones: what `formats` refuses is put right."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gq.envs.tasks import TASKS
from gq.repair.findings import Finding
from gq.repair.salvage import read_rows

REQUIRED = ("observations", "actions", "rewards", "terminals")
FLAGS = ("terminals", "timeouts")
MATRICES = ("observations", "actions", "next_observations")
COMPARE_ROWS = 65_536
USELESS_SHARE = 0.5  # of rows whose next observation is not the next row's: then the column is something else


@dataclass(kw_only=True)
class RawData:
    """A file's N rows as stored, episodes back to back; what is wrong with the file so far."""

    layout: str  # d4rl, minari or pickle
    observations: np.ndarray  # float32 [N, S]
    actions: np.ndarray  # float32 [N, A]
    rewards: np.ndarray  # float32 [N]
    terminals: np.ndarray  # bool [N]
    timeouts: np.ndarray | None  # bool [N]; with layouts of one part an episode, every part's end but terminals
    task: str | None
    lost: np.ndarray  # bool [N], rows that could not be read
    continues: np.ndarray | None = None  # bool [N - 1], next_observations are the next row's; None: they do not tell
    final_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows with a next one on record
    final_observations: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # [F, S]
    attributes: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.rewards)

    @property
    def known_task(self) -> str | None:
        """The task if gq knows it and the observations have its width, so that it says what the columns are."""
        task = TASKS.get(self.task or "")
        return self.task if task and task.observation_dim == self.observations.shape[1] else None


class UnreadableError(Exception):
    """Nothing can be made of a file; holds the findings that say why."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__(findings[-1].message)
        self.findings = list(findings)


def read_column(
    name: str,
    column: Any,
    num_rows: int,
    lost: np.ndarray,
    findings: list[Finding],
    *,
    accepts_float64: bool = False,
) -> np.ndarray:
    """Return a column's first rows: float32 [num_rows, W] or [num_rows], or bool; mark in `lost` what is damaged.

    Raises:
        UnreadableError: it holds no numbers, or has a shape that nothing can be made of.
    """
    shape = tuple(column.shape)
    found = f"{name} has the shape ({', '.join(['rows', *map(str, shape[1:])])})"
    num_inner = 1 if name in MATRICES else 0
    expected = "(rows, columns)" if num_inner else "(rows,)"
    if column.dtype.kind not in "biuf":
        raise UnreadableError(Finding("wrong-dtype", 1, f"{name} holds {column.dtype}, not numbers"))
    inner = shape[1:] if len(shape) == 1 + num_inner else tuple(length for length in shape[1:] if length != 1)
    if len(inner) != num_inner or 0 in shape:
        raise UnreadableError(Finding("bad-shape", 1, f"{found}, expected {expected}"))
    if shape[1:] != inner:
        findings.append(Finding("bad-shape", 1, f"{found}, expected {expected}"))
    wanted = "bool" if name in FLAGS else "float32"
    if column.dtype.name != wanted and not (accepts_float64 and column.dtype.name == "float64"):
        findings.append(Finding("wrong-dtype", 1, f"{name} is {column.dtype}, expected {wanted}"))
    stored = np.empty((num_rows, *shape[1:]), np.float32)
    if hasattr(column, "read_direct"):
        lost |= read_rows(column, stored)
    else:
        with np.errstate(over="ignore"):
            stored[:] = column[:num_rows]
    values = stored.reshape(num_rows, *inner)
    return np.nan_to_num(values) != 0 if name in FLAGS else values


def compare_next(raw: RawData, following: Any) -> None:
    """Compare stored next observations [N, S] with the next rows, and keep those at breaks and at the end.

    They tell nothing if they are the next rows everywhere, so made from them, or nearly nowhere.
    """
    continues = np.zeros(raw.num_rows - 1, bool)
    kept_rows, kept = [], []
    for start in range(0, raw.num_rows, COMPARE_ROWS):
        block = np.asarray(following[start : min(start + COMPARE_ROWS, raw.num_rows)], np.float32)
        after = raw.observations[start + 1 : start + 1 + len(block)]
        same = np.zeros(len(block), bool)  # the last row has no next one
        same[: len(after)] = (np.abs(block[: len(after)] - after) <= 1e-5 + 1e-5 * np.abs(after)).all(axis=1)
        continues[start : start + len(after)] = same[: len(after)]
        kept_rows.append(start + np.flatnonzero(~same))
        kept.append(block[~same])
    if not len(continues) or continues.all() or continues.mean() < USELESS_SHARE:
        return
    raw.continues = continues
    raw.final_rows, raw.final_observations = np.concatenate(kept_rows), np.concatenate(kept)

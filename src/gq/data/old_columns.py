"""Observations of older environment versions, brought to the columns of a newer one where that is exact.

D4RL's Ant files have the 111 columns of Ant-v2: Ant-v5 leaves out the contact forces on the world's body, which are
always zero. Humanoid-v5 leaves out the world's body too.
"""

from pathlib import Path

import numpy as np

from gq.data.reading import trajectories_of
from gq.data.rows import read_rows
from gq.data.trajectories import Trajectories
from gq.envs.tasks import TASKS
from gq.errors import DataError


def _span(*ranges: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.arange(start, stop) for start, stop in ranges])


# (task, stored width): the stored columns that are the task's; those left out are the world body's, always zero.
EXACT_COLUMNS = {
    ("Ant-v5", 111): _span((0, 27), (33, 111)),
    ("Ant-v4", 111): _span((0, 27)),
    ("Ant-v4", 105): _span((0, 27)),
    ("Humanoid-v5", 376): _span((0, 45), (55, 185), (191, 269), (275, 292), (298, 376)),
}
BLOCK_ROWS = 65_536
ATTRIBUTES = {"observation_columns": "0 to 26 and 33 to 110 of the 111 of Ant-v2"}


def keep_columns(observations: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, bool]:
    """Reduce observations [N, S] to K of their columns; return [N, K] and whether all others were zero.

    Works in place, so that data are never twice in memory; `observations` must not be used afterwards. Row i of the
    result ends at element (i + 1) K of the memory and row i + 1 of the source begins at (i + 1) S, never before it: a
    block of rows overwrites itself and rows before it, which were moved already.
    """
    left_out = np.setdiff1d(np.arange(observations.shape[1]), kept)
    reduced = observations.reshape(-1)[: len(observations) * len(kept)].reshape(-1, len(kept))
    are_zero = True
    for start in range(0, len(observations), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        are_zero &= not observations[rows, left_out].any()
        reduced[rows] = observations[rows, kept]  # indexing copies before it is written
    return reduced, are_zero


def read_old_ant(file: Path, source: str) -> Trajectories | None:
    """Read a D4RL file of Ant as Ant-v5; None if its observations have another width than the old one.

    Raises:
        DataError: the file is damaged, or its observations cannot be mapped.
    """
    rows, _ = read_rows(file, "Ant-v5", refuse=True)
    assert rows is not None, "what cannot be read is refused"
    kept = EXACT_COLUMNS.get(("Ant-v5", rows.observations.shape[1]))
    if kept is None:
        return None
    rows.observations, is_exact = keep_columns(rows.observations, kept)
    if not is_exact:
        message = f"{file}: columns 27 to 32 of the observations are not all zero, so they cannot be mapped to Ant-v5's"
        raise DataError(message, hint="see gq download --list ant")
    rows.attributes = {}
    return trajectories_of(file, rows, source, TASKS["Ant-v5"])

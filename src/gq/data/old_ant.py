"""Ant's old observations: 111 columns in the v2 and v3 environments of D4RL, 105 in Ant-v5.

Ant-v5 leaves out the contact forces on the world's body, which are always zero; the other columns are the same.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gq.data.layouts import from_flat, pick_columns
from gq.data.own_content import own_item
from gq.data.reading import open_hdf5
from gq.data.trajectories import Trajectories
from gq.errors import DataError

OLD_WIDTH = 111
WORLD = slice(27, 33)  # contact forces on the world's body
NUM_BLOCK_ROWS = 50_000
ATTRIBUTES = {"observation_columns": f"0 to 26 and 33 to {OLD_WIDTH - 1} of the {OLD_WIDTH} of Ant-v2"}


class V5Columns:
    """The observations of an old Ant file, seen without the columns that Ant-v5 does not have; read in blocks."""

    dtype = np.dtype(np.float32)

    def __init__(self, where: str, stored: Any) -> None:
        self.where, self.stored = where, stored
        self.shape = (len(stored), OLD_WIDTH - (WORLD.stop - WORLD.start))

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return some rows, float32 [n, 105].

        Raises:
            DataError: a column to leave out is not zero.
        """
        wanted = range(len(self.stored))[rows]
        values = np.empty((len(wanted), self.shape[1]), np.float32)
        for first in range(0, len(wanted), NUM_BLOCK_ROWS):
            block = self.stored[wanted[first] : wanted[first] + min(NUM_BLOCK_ROWS, len(wanted) - first)]
            if np.any(block[:, WORLD]):
                message = (
                    f"{self.where}: columns {WORLD.start} to {WORLD.stop - 1} of the observations are not all zero"
                )
                raise DataError(f"{message}, so they cannot be mapped to Ant-v5's", hint="see gq download --list ant")
            values[first : first + len(block)] = np.delete(block, WORLD, axis=1)
        return values


def read_old_ant(file: Path, source: str) -> Trajectories | None:
    """Read a D4RL file of Ant as Ant-v5; None if its observations have another width than the old one.

    Raises:
        DataError: the file is damaged, or its observations cannot be mapped.
    """
    with open_hdf5(file) as root:
        if getattr(own_item(str(file), root, "observations"), "shape", ())[1:] != (OLD_WIDTH,):
            return None
        names = ["observations", "actions", "rewards", "terminals"] + ["timeouts"] * ("timeouts" in root)
        columns = pick_columns(str(file), root, names)
        columns["observations"] = V5Columns(str(file), columns["observations"])
        return from_flat(str(file), columns, source=source, task="Ant-v5")

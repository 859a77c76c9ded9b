"""Read what is left of damaged files: HDF5 files with unreadable chunks, and broken pickles."""

import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.pickle_reader import Machine
from gq.errors import DataError

ROW_BLOCK = 8_192  # rows read at a time where a column cannot be read in one go
READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises for damaged structures


def read_rows(dataset: Any, out: np.ndarray) -> np.ndarray:
    """Read a dataset's leading rows into `out`, block by block where it is damaged; return which rows are lost."""
    lost = np.zeros(len(out), bool)
    try:
        dataset.read_direct(out, np.s_[: len(out)])
        return lost
    except READ_ERRORS:
        pass
    step = dataset.chunks[0] if dataset.chunks else ROW_BLOCK
    for start in range(0, len(out), step):
        stop = min(start + step, len(out))
        try:
            dataset.read_direct(out, np.s_[start:stop], np.s_[start:stop])
        except READ_ERRORS:
            lost[start:stop] = True
            out[start:stop] = 0
    return lost


def pickled_dicts(path: Path) -> list[dict[Any, Any]]:
    """Return the complete dicts of a pickle that breaks off, in order; empty if there is none."""
    machine = Machine(path)
    found: list[dict[Any, Any]] = []
    try:
        for opcode, argument, offset in pickletools.genops(path.read_bytes()):
            machine.offset = offset or 0
            machine.step(opcode.name, argument)
    except (DataError, ValueError, IndexError, KeyError, TypeError):
        for value in machine.stack:
            found += [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value for value in found if isinstance(value, dict) and value]

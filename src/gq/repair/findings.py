"""What `gq repair` reports: codes, how much is affected, and whether something has to be done."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from gq.data.layouts import Problem

NUM_ROWS_NAMED = 10

CODES = {
    "missing-timeouts": "ends of episodes that no flag marks",
    "missing-terminals": "falls that no terminal marks",
    "shifted-terminals": "terminals that are not on the last row of an episode",
    "iteration-timeouts": "timeouts that are at no time limit",
    "trailing-fragment": "an unfinished episode at the end",
    "leading-fragment": "episodes that begin in the middle",
    "non-finite": "NaN or infinite values",
    "action-out-of-bounds": "actions outside the action space",
    "action-saturated": "actions on the bound of the action space",
    "bad-shape": "columns that are missing or of another shape",
    "wrong-dtype": "columns of another type",
    "length-mismatch": "columns of unequal length",
    "truncated-file": "a file that breaks off or is damaged",
    "not-hdf5": "neither HDF5 nor a pickle",
    "duplicate-episodes": "episodes that are there more than once",
    "constant-dimension": "observation columns that never change",
    "dimension-mismatch": "widths of another environment version",
}


@dataclass(frozen=True)
class Finding:
    """One kind of defect or fact."""

    code: str  # one of CODES
    count: int  # of rows, columns, episodes or values, as the message says
    message: str
    rows: tuple[int, ...] = ()  # the first ones; columns for constant-dimension
    is_problem: bool = True  # else a fact that healthy files have too

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    def document(self) -> dict[str, Any]:
        """Return what --json prints."""
        return {
            "code": self.code,
            "count": self.count,
            "rows": list(self.rows),
            "message": self.message,
            "severity": "problem" if self.is_problem else "note",
        }


def findings_of(problems: list[Problem]) -> list[Finding]:
    """Return what a reader found as findings; what several episodes have in common is one."""
    whole = [Finding(p.code, p.count, p.message, p.rows) for p in problems if not p.episode]
    told = Counter((p.code, p.message) for p in problems if p.episode and not p.loses_episode)
    return whole + [Finding(code, n, f"in {n:,} episodes {message}") for (code, message), n in told.items()]


def several(count: int, noun: str) -> str:
    """Return a number with a noun: `1 episode`, `2,000 episodes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def at_rows(code: str, rows: np.ndarray, message: str, *, is_problem: bool = True) -> Finding:
    """Return a finding about rows, of which it names the first ones."""
    return Finding(code, len(rows), message, tuple(int(row) for row in rows[:NUM_ROWS_NAMED]), is_problem)

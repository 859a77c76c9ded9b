"""What `gq repair` reports: codes, how much is affected, and whether something has to be done; in words."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from gq.data.layouts import Problem
from gq.data.rows import Rows
from gq.repair.boundaries import plain_task
from gq.repair.segments import Segments

NUM_ROWS_NAMED = 10
BLOCK_ROWS = 65_536
SATURATED_SHARE = 0.01  # of the action components, from which on it is worth a note

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
    "dict-observations": "observations in several parts, which are read side by side",
    "discrete-actions": "actions that are whole numbers, which no policy of gq gives",
    "unread-flag-column": "a column that may mark ends of episodes, of a name that gq does not know",
    "env-wrapper": "wrappers that the data were recorded through",
    "env-kwargs": "arguments of the environment that the data record",
    "env-limit": "a time limit that the data record, which is not the environment's own",
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


def _at_rows(code: str, rows: np.ndarray, message: str, *, is_problem: bool = True) -> Finding:
    """Return a finding about rows, of which it names the first ones."""
    return Finding(code, len(rows), message, tuple(int(row) for row in rows[:NUM_ROWS_NAMED]), is_problem)


# --- where episodes begin and end ---


def boundary_findings(raw: Rows, segments: Segments, usable: np.ndarray) -> list[Finding]:
    """Return the findings about flags and fragments; `usable` is bool [K], pieces without damaged rows."""
    return [
        *_missing_findings(raw, segments),
        *_terminal_findings(segments),
        *_timeout_findings(segments),
        *_fragment_findings(raw, segments, usable),
    ]


def _missing_findings(raw: Rows, segments: Segments) -> list[Finding]:
    """Return the finding of ends that no timeout marks."""
    rows = np.sort(np.concatenate([segments.unmarked, segments.limit_terminals]))
    if not len(rows):
        return []
    lengths = np.diff(segments.offsets)[np.searchsorted(segments.ends, segments.unmarked)]
    num_limit = int((lengths == segments.limit).sum())
    kinds = {
        f"at the limit of {segments.limit:,} steps" if segments.limit else "": num_limit,
        "before it, where the observations jump": len(lengths) - num_limit,
        "at the limit, but as terminals": len(segments.limit_terminals),
    }
    listed = ", ".join(f"{count:,} {where}" for where, count in kinds.items() if count)
    there = "no timeouts; " if raw.timeouts is None or not raw.timeouts.any() else ""
    return [_at_rows("missing-timeouts", rows, f"{there}{several(len(rows), 'episode')} without a flag: {listed}")]


def _terminal_findings(segments: Segments) -> list[Finding]:
    """Return the findings of terminals in the wrong place, and of lost ones."""
    findings = []
    wrong = {
        "one row late, on the first row of the next episode": segments.late,
        "one row early": segments.early,
        "inside episodes that go on": segments.stray,
    }
    rows = np.sort(np.concatenate(list(wrong.values())))
    if len(rows):
        listed = ", ".join(f"{len(some):,} {where}" for where, some in wrong.items() if len(some))
        findings.append(_at_rows("shifted-terminals", rows, f"{several(len(rows), 'misplaced terminal')}: {listed}"))
    if len(segments.lost_terminals):
        message = f"{several(len(segments.lost_terminals), 'fall')} without a terminal, by the task's own rule"
        findings.append(_at_rows("missing-terminals", segments.lost_terminals, message))
    return findings


def _timeout_findings(segments: Segments) -> list[Finding]:
    """Return the finding of timeouts that mark no time limit."""
    rows = segments.misplaced_timeouts
    if not len(rows):
        return []
    num_cuts = int(np.isin(rows, segments.ends).sum())
    kinds = {
        "that cut an episode short, so that returns-to-go before them are too low": num_cuts,
        "inside episodes that go on": len(rows) - num_cuts,
    }
    listed = "; ".join(f"{count:,} {where}" for where, count in kinds.items() if count)
    limit = f" of {segments.limit:,} steps" if segments.limit else ""
    message = f"{several(len(rows), 'timeout')} elsewhere than at the limit{limit}: {listed}"
    return [_at_rows("iteration-timeouts", rows, message)]


def _fragment_findings(raw: Rows, segments: Segments, usable: np.ndarray) -> list[Finding]:
    """Return the findings of episodes without an end or without a beginning."""
    findings = []
    lengths = np.diff(segments.offsets)
    if not segments.complete[-1]:
        is_marked = raw.timeouts is not None and bool(raw.timeouts[-1])
        fate = "it is marked as if it were whole" if is_marked else "readers leave it out"
        message = f"the last episode is unfinished after {several(lengths[-1], 'row')}; {fate}"
        findings.append(_at_rows("trailing-fragment", segments.offsets[-2:-1], message, is_problem=is_marked))
    leading = np.flatnonzero(segments.inside & usable)
    if len(leading):
        message = (
            f"{several(len(leading), 'episode')} without a beginning, {several(lengths[leading].sum(), 'row')}: the "
            "first observation is not one that a reset gives"
        )
        findings.append(_at_rows("leading-fragment", segments.offsets[:-1][leading], message))
    return findings


# --- values ---


def finite_rows(raw: Rows) -> np.ndarray:
    """Return which rows hold only finite values, bool [N]."""
    finite: np.ndarray = np.isfinite(raw.rewards)
    for start in range(0, raw.num_rows, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        finite[rows] &= np.isfinite(raw.observations[rows].sum(axis=1, dtype=np.float64))
        finite[rows] &= np.isfinite(raw.actions[rows].sum(axis=1, dtype=np.float64))
    return finite


def non_finite_findings(raw: Rows, finite: np.ndarray, segments: Segments) -> list[Finding]:
    """Return the finding of rows with NaN or infinity."""
    rows = np.flatnonzero(~finite & ~raw.lost)
    if not len(rows):
        return []
    num_pieces = len(np.unique(np.searchsorted(segments.offsets, rows, side="right")))
    message = (
        f"{several(len(rows), 'row')} with NaN or infinite values, in {several(num_pieces, 'episode')}, which a copy "
        "leaves out whole: without the rows alone they would jump"
    )
    return [_at_rows("non-finite", rows, message)]


def action_findings(raw: Rows, finite: np.ndarray) -> list[Finding]:
    """Return the findings of actions [N, A] outside the task's action space and on its bound."""
    task = plain_task(raw)
    if task is None or raw.actions.shape[1] != task.action_dim:
        return []
    findings = []
    size = np.abs(raw.actions)
    outside = finite & (size > task.action_bound * (1 + 1e-6)).any(axis=1)
    if outside.any():
        largest = float(size[finite].max())
        message = (
            f"{several(int(outside.sum()), 'row')} with actions up to {largest:.3g}, {task.id} takes "
            f"±{task.action_bound:g}; a copy clips them, as MuJoCo does with the torque"
        )
        findings.append(_at_rows("action-out-of-bounds", np.flatnonzero(outside), message))
    on_bound = finite[:, None] & (size >= task.action_bound * (1 - 1e-6))
    share = float(on_bound.mean()) if on_bound.size else 0.0
    if share > SATURATED_SHARE:
        message = (
            f"{share:.0%} of the action components are on the bound ±{task.action_bound:g}: a squashed Gaussian gives "
            "them no finite likelihood"
        )
        rows = np.flatnonzero(on_bound.any(axis=1))
        findings.append(_at_rows("action-saturated", rows, message, is_problem=False))
    return findings


def constant_findings(raw: Rows, finite: np.ndarray) -> list[Finding]:
    """Return the finding of observation columns that have one value throughout."""
    if finite.sum() < 2:
        return []
    first = raw.observations[int(np.argmax(finite))]
    varies = np.zeros(raw.observations.shape[1], bool)
    for start in range(0, raw.num_rows, BLOCK_ROWS):
        block = raw.observations[start : start + BLOCK_ROWS]
        varies |= ((block != first) & finite[start : start + BLOCK_ROWS, None]).any(axis=0)
    columns = np.flatnonzero(~varies)
    if not len(columns):
        return []
    message = f"{len(columns):,} of {len(varies):,} observation columns are constant; training scales them by 1"
    return [_at_rows("constant-dimension", columns, message, is_problem=False)]


def repeated_pieces(raw: Rows, segments: Segments, usable: np.ndarray) -> np.ndarray:
    """Return which pieces are copies of earlier ones in observations and actions, bool [K]."""
    repeated = np.zeros(len(usable), bool)
    seen: set[bytes] = set()
    for piece in np.flatnonzero(usable):
        rows = slice(segments.offsets[piece], segments.offsets[piece + 1])
        digest = hashlib.blake2b(np.ascontiguousarray(raw.observations[rows]).data, digest_size=16)
        digest.update(np.ascontiguousarray(raw.actions[rows]).data)
        repeated[piece] = digest.digest() in seen
        seen.add(digest.digest())
    return repeated


def repeated_findings(segments: Segments, repeated: np.ndarray) -> list[Finding]:
    """Return the finding of episodes that are there more than once."""
    if not repeated.any():
        return []
    message = f"{several(int(repeated.sum()), 'episode')} that are there already; a copy leaves them out"
    return [_at_rows("duplicate-episodes", segments.offsets[:-1][repeated], message)]

"""What is wrong with the values of a dataset: not finite, out of bounds, never changing, there twice."""

import hashlib

import numpy as np

from gq.data.rows import Rows
from gq.envs.tasks import TASKS
from gq.repair.findings import Finding, at_rows, several
from gq.repair.segments import Segments

BLOCK_ROWS = 65_536
SATURATED_SHARE = 0.01  # of the action components, from which on it is worth a note


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
    return [at_rows("non-finite", rows, message)]


def action_findings(raw: Rows, finite: np.ndarray) -> list[Finding]:
    """Return the findings of actions [N, A] outside the task's action space and on its bound."""
    task = TASKS.get(raw.task or "")
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
        findings.append(at_rows("action-out-of-bounds", np.flatnonzero(outside), message))
    on_bound = finite[:, None] & (size >= task.action_bound * (1 - 1e-6))
    share = float(on_bound.mean()) if on_bound.size else 0.0
    if share > SATURATED_SHARE:
        message = (
            f"{share:.0%} of the action components are on the bound ±{task.action_bound:g}: a squashed Gaussian gives "
            "them no finite likelihood"
        )
        rows = np.flatnonzero(on_bound.any(axis=1))
        findings.append(at_rows("action-saturated", rows, message, is_problem=False))
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
    return [at_rows("constant-dimension", columns, message, is_problem=False)]


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
    return [at_rows("duplicate-episodes", segments.offsets[:-1][repeated], message)]

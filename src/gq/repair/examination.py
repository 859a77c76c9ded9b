"""Read a file as it is, find its episodes, and collect what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gq.data.rows import Rows, read_rows
from gq.envs.tasks import TASKS
from gq.repair.boundaries import UNKNOWN, Evidence, Simulate, examine
from gq.repair.boundary_findings import boundary_findings
from gq.repair.content import (
    action_findings,
    constant_findings,
    finite_rows,
    non_finite_findings,
    repeated_findings,
    repeated_pieces,
)
from gq.repair.findings import Finding, findings_of
from gq.repair.robots import ROUNDING, looks_initial, robot_of, terminates
from gq.repair.segments import Segments, cut
from gq.repair.task_columns import fit_columns

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Examined:
    """A file's rows with what was found out about them."""

    raw: Rows
    segments: Segments
    evidence: Evidence
    usable: np.ndarray  # bool [K]: pieces without unreadable or non-finite values
    repeated: np.ndarray  # bool [K]: pieces that are copies of earlier ones
    findings: tuple[Finding, ...]


@np.errstate(invalid="ignore", over="ignore")  # infinite values are findings, not warnings
def examine_file(file: Path, task: str | None, simulate: Simulate, progress: Progress) -> Examined | list[Finding]:
    """Find out all there is to say about a file.

    Args:
        file: HDF5 file or pickle.
        task: Gymnasium id; by default what the file records or its name implies.
        progress: called with what is being done, how much of it is and how much there is.

    Returns:
        What was found out; the findings alone where nothing can be read.
    """
    progress("reading", 0, None)
    raw, problems = read_rows(file, task)
    findings = findings_of(problems)
    if raw is None:
        return findings
    findings += fit_columns(raw)
    finite = finite_rows(raw)
    progress("finding episodes", 0, None)
    task_known = TASKS.get(raw.task or "")
    limit = task_known.max_episode_steps if task_known else None
    evidence = examine(
        raw.observations,
        raw.actions,
        task=known_task(raw),
        limit=limit,
        terminals=raw.terminals,
        timeouts=raw.timeouts,
        continues=raw.continues,
        simulate=simulate,
        progress=lambda done, total: progress("replaying steps", done, total),
    )
    segments = find_episodes(raw, evidence, limit)
    usable = np.logical_and.reduceat(finite, segments.offsets[:-1])
    repeated = repeated_pieces(raw, segments, usable)
    findings += boundary_findings(raw, segments, usable)
    findings += non_finite_findings(raw, finite, segments) + action_findings(raw, finite)
    findings += repeated_findings(segments, repeated) + constant_findings(raw, finite)
    return Examined(raw, segments, evidence, usable, repeated, tuple(findings))


def known_task(raw: Rows) -> str | None:
    """Return the task if gq knows it and the observations have its width, so that it says what the columns are."""
    task = TASKS.get(raw.task or "")
    return raw.task if task and task.observation_dim == raw.observations.shape[1] else None


def find_episodes(raw: Rows, evidence: Evidence, limit: int | None) -> Segments:
    """Cut the rows into episodes and fragments."""
    robot = robot_of(known_task(raw))

    def ends_by_itself(rows: np.ndarray) -> np.ndarray:
        if robot is None or not len(rows):
            return np.full(len(rows), UNKNOWN, np.int8)
        states = np.full((len(rows), robot.num_columns), np.nan, np.float32)
        if len(raw.final_rows):
            place = np.searchsorted(raw.final_rows, rows).clip(max=len(raw.final_rows) - 1)
            known = raw.final_rows[place] == rows
            states[known] = raw.final_observations[place[known], : robot.num_columns]
        unknown = np.isnan(states).any(axis=1)
        if evidence.judge is not None and unknown.any():
            states[unknown] = evidence.judge.predicted(rows[unknown])
        return terminates(robot, states)

    return cut(
        evidence.follows,
        raw.terminals,
        raw.timeouts,
        limit=limit,
        initial=looks_initial(robot, raw.observations) if robot else None,
        is_standard=evidence.judge is not None and evidence.judge.is_exact,
        fallen=terminates(robot, raw.observations, rounding=-ROUNDING) == 1 if robot else None,
        ends_by_itself=ends_by_itself,
    )

"""Read a file as it is, find its episodes, and collect what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gq.data.boundaries import BREAK, UNKNOWN, Evidence, Judge, Simulate, examine
from gq.data.boundary_findings import boundary_findings
from gq.data.content import (
    action_findings,
    constant_findings,
    finite_rows,
    non_finite_findings,
    repeated_findings,
    repeated_pieces,
)
from gq.data.findings import Finding
from gq.data.motion import looks_initial, robot_of, terminates
from gq.data.raw_columns import RawData
from gq.data.raw_files import read_raw
from gq.data.segments import Segments, cut
from gq.data.task_columns import fit_columns
from gq.envs.tasks import TASKS

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Examined:
    """A file's rows with what was found out about them."""

    raw: RawData
    segments: Segments
    evidence: Evidence
    usable: np.ndarray  # bool [K]: pieces without unreadable or non-finite values
    repeated: np.ndarray  # bool [K]: pieces that are copies of earlier ones
    findings: tuple[Finding, ...]


def examine_file(file: Path, task: str | None, simulate: Simulate, progress: Progress) -> Examined:
    """Find out all there is to say about a file.

    Args:
        file: HDF5 file or pickle.
        task: Gymnasium id; by default what the file records or its name implies.
        progress: called with what is being done, how much of it is and how much there is.

    Raises:
        UnreadableError: nothing can be read.
    """
    progress("reading", 0, None)
    raw = read_raw(file, task)
    findings = raw.findings + fit_columns(raw)
    finite = finite_rows(raw)
    progress("finding episodes", 0, None)
    evidence, judge = witness(raw, finite, simulate, lambda done, total: progress("replaying steps", done, total))
    segments = find_episodes(raw, evidence, judge)
    if judge is not None:
        evidence = replace(evidence, num_replayed=judge.num_replayed)
    usable = np.logical_and.reduceat(finite, segments.offsets[:-1])
    repeated = repeated_pieces(raw, segments, usable)
    findings += boundary_findings(raw, segments, usable)
    findings += non_finite_findings(raw, finite, segments) + action_findings(raw, finite)
    findings += repeated_findings(segments, repeated) + constant_findings(raw, finite)
    return Examined(raw, segments, evidence, usable, repeated, tuple(findings))


def witness(
    raw: RawData, finite: np.ndarray, simulate: Simulate, progress: Callable[[int, int | None], None]
) -> tuple[Evidence, Judge | None]:
    """Tell which rows follow from each other, and look closer at stretches that are longer than an episode can be."""
    flagged = raw.terminals if raw.timeouts is None else raw.terminals | raw.timeouts
    evidence, judge = examine(
        raw.observations,
        raw.actions,
        task=raw.task,
        flagged=flagged,
        continues=raw.continues,
        simulate=simulate,
        progress=progress,
    )
    task = TASKS.get(raw.task or "")
    if judge is None or task is None or simulate == "all":
        return evidence, judge
    is_end = np.append((evidence.follows == BREAK) | ((evidence.follows == UNKNOWN) & flagged[:-1]), True)
    ends = np.flatnonzero(is_end)
    lengths = np.diff(ends, prepend=-1)
    too_long = np.repeat(lengths > task.max_episode_steps, lengths)
    rows = np.flatnonzero(too_long[:-1] & finite[:-1] & finite[1:])
    if len(rows):
        verdicts = judge.verdicts(rows, progress)
        follows = evidence.follows.copy()
        follows[rows[verdicts != UNKNOWN]] = verdicts[verdicts != UNKNOWN]
        evidence = replace(evidence, follows=follows)
    return evidence, judge


def find_episodes(raw: RawData, evidence: Evidence, judge: Judge | None) -> Segments:
    """Cut the rows into episodes and fragments."""
    robot = robot_of(raw.task)
    if robot is not None and raw.observations.shape[1] < robot.num_columns:
        robot = None

    def ends_by_itself(rows: np.ndarray) -> np.ndarray:
        if robot is None or not len(rows):
            return np.full(len(rows), UNKNOWN, np.int8)
        states = np.full((len(rows), robot.num_columns), np.nan, np.float32)
        if len(raw.final_rows):
            place = np.searchsorted(raw.final_rows, rows).clip(max=len(raw.final_rows) - 1)
            known = raw.final_rows[place] == rows
            states[known] = raw.final_observations[place[known], : robot.num_columns]
        unknown = np.isnan(states).any(axis=1)
        if judge is not None and unknown.any():
            states[unknown] = judge.predicted(rows[unknown])
        return terminates(robot, states)

    task = TASKS.get(raw.task or "")
    return cut(
        evidence.follows,
        raw.terminals,
        raw.timeouts,
        limit=task.max_episode_steps if task else None,
        initial=looks_initial(robot, raw.observations) if robot else None,
        ends_by_itself=ends_by_itself,
    )

"""Read a file as it is, find its episodes, and collect what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gq.data.old_columns import EXACT_COLUMNS, keep_columns
from gq.data.rows import Rows, read_rows
from gq.envs.specs import Record
from gq.envs.tasks import TASKS
from gq.repair.boundaries import UNKNOWN, Evidence, Simulate, examine, known_task, plain_task, time_limit
from gq.repair.findings import (
    Finding,
    action_findings,
    boundary_findings,
    constant_findings,
    findings_of,
    finite_rows,
    non_finite_findings,
    repeated_findings,
    repeated_pieces,
)
from gq.repair.robots import ROUNDING, looks_initial, robot_of, terminates
from gq.repair.segments import Physics, Segments, cut

Progress = Callable[[str, int, int | None], None]
RECORDED = {
    "env-wrapper": "recorded through {}: training makes these wrappers again, or refuses where it cannot",
    "env-kwargs": "recorded with the arguments {}, with which training makes the environment",
    "env-limit": "recorded with a time limit of {}, which training and evaluation take",
}


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
    if record := Record.of(raw.attributes):
        for code, what in record.problems().items():
            findings.append(Finding(code, raw.num_rows, RECORDED[code].format(what), is_problem=False))
    findings += _fit_columns(raw)
    finite = finite_rows(raw)
    progress("finding episodes", 0, None)
    evidence = examine(raw, simulate=simulate, progress=lambda done, total: progress("replaying steps", done, total))
    segments = _find_episodes(raw, evidence)
    usable = np.logical_and.reduceat(finite, segments.offsets[:-1])
    repeated = repeated_pieces(raw, segments, usable)
    findings += boundary_findings(raw, segments, usable)
    findings += non_finite_findings(raw, finite, segments) + action_findings(raw, finite)
    findings += repeated_findings(segments, repeated) + constant_findings(raw, finite)
    return Examined(raw, segments, evidence, usable, repeated, tuple(findings))


def _find_episodes(raw: Rows, evidence: Evidence) -> Segments:
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

    physics = Physics(
        limit=time_limit(raw),
        ends_by_itself=ends_by_itself,
        initial=looks_initial(robot, raw.observations) if robot else None,
        fallen=terminates(robot, raw.observations, rounding=-ROUNDING) == 1 if robot else None,
        is_standard=evidence.judge is not None and evidence.judge.is_exact,
    )
    return cut(evidence.follows, raw.terminals, raw.timeouts, physics)


def _fit_columns(raw: Rows) -> list[Finding]:
    """Give data a task that fits their widths, and its columns; return what did not fit.

    A task whose version gq does not know (Hopper-v2) becomes the newest one of its robot if the widths are the same;
    without any task, the widths name it if only one robot has them.
    """
    if raw.task in TASKS and plain_task(raw) is None:
        return []  # what is recorded says why they are as they are
    widths = (raw.observations.shape[1], raw.actions.shape[1])
    fitting = [task.id for task in TASKS.values() if widths == (task.observation_dim, task.action_dim)]
    if raw.task is None:
        raw.task = _only_robot(fitting) or {(111, 8): "Ant-v5"}.get(widths)
    family = (raw.task or "").split("-")[0]
    if raw.task not in TASKS:
        raw.task = next((known for known in TASKS if known.split("-")[0] == family), raw.task)  # v5 comes first
    if raw.task in fitting or raw.task not in TASKS:
        return []
    assert raw.task is not None
    task = TASKS[raw.task]
    found = f"{widths[0]} observation and {widths[1]} action columns, {task.id} has {task.observation_dim} and "
    found += str(task.action_dim)
    kept = EXACT_COLUMNS.get((raw.task, widths[0]))
    if kept is not None and widths[1] == task.action_dim:
        return [_mapped(raw, kept, found)]
    same_family = [known for known in fitting if known.split("-")[0] == family]
    if same_family:
        raw.task = same_family[0]
        return [
            Finding("dimension-mismatch", widths[0], f"{found}; these are the widths of {raw.task}, which is taken")
        ]
    hint = f"; these are the widths of {' or '.join(fitting[:3])}: try --task {fitting[0]}" if fitting else ""
    return [Finding("dimension-mismatch", widths[0], f"{found}{hint}")]


def _only_robot(fitting: list[str]) -> str | None:
    """Return the first of some tasks if all are of one robot."""
    return fitting[0] if len({task.split("-")[0] for task in fitting}) == 1 else None


def _mapped(raw: Rows, kept: np.ndarray, found: str) -> Finding:
    """Reduce observations to some of their columns; return the finding, which says if the others were not zero."""
    count = raw.observations.shape[1]
    raw.observations, are_zero = keep_columns(raw.observations, kept)
    if raw.final_observations.shape[1:] == (count,):
        raw.final_observations = raw.final_observations[:, kept]
    is_exact = raw.task == "Ant-v4" or are_zero
    exactness = "exactly" if is_exact else "but columns that should be zero and are left out are not"
    return Finding("dimension-mismatch", count, f"{found}; the columns of {raw.task} are among them, {exactness}")

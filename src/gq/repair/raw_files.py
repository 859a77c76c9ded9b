"""Read data files of every layout as far as they can be read, and say what is wrong with them."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.own_content import ForeignError, check_size, own_item
from gq.data.pickle_reader import load_pickle
from gq.data.reading import (
    AGAIN,
    choose_task,
    episode_names,
    minari_metadata,
    open_hdf5,
    plain_attributes,
    starts_as_hdf5,
)
from gq.errors import DataError
from gq.repair.findings import Finding, at_rows
from gq.repair.raw_columns import REQUIRED, RawData, UnreadableError, compare_next, read_column
from gq.repair.salvage import READ_ERRORS, pickled_dicts

Part = dict[str, Any]  # an episode's columns; "findings" and, where it is on record, the "final" observation [S]


def read_raw(path: Path, task: str | None = None) -> RawData:
    """Read an HDF5 file of D4RL, gq or Minari or a pickled list of episodes, as far as it can be read.

    Args:
        task: Gymnasium id; else what the file records or its name implies.

    Raises:
        UnreadableError: there are no rows to be had.
    """
    try:
        is_hdf5 = starts_as_hdf5(path)
    except DataError as error:
        raise UnreadableError(Finding("not-hdf5", 1, f"{error}; {AGAIN}")) from error
    if not is_hdf5:
        return read_pickle(path, task)
    return read_hdf5(path, task)


def read_hdf5(path: Path, task: str | None) -> RawData:
    """Read an HDF5 file; see `read_raw`."""
    try:
        with open_hdf5(path) as root:
            findings: list[Finding] = []
            names = episode_names(root)
            try:
                if names and "observations" not in root:
                    return read_minari(path, root, names, task, findings)
                return read_flat(path, root, task, findings)
            except UnreadableError as error:
                before = [finding for finding in findings if finding not in error.findings]
                raise UnreadableError(*before, *error.findings) from error
    except ForeignError:
        raise
    except DataError as error:
        message = f"{error}; {AGAIN}"
        raise UnreadableError(Finding("truncated-file", 1, message)) from error


def read_flat(path: Path, root: Any, asked: str | None, findings: list[Finding]) -> RawData:
    """Read flat columns; see `read_raw`."""
    columns, lengths = {}, {}
    for name in (*REQUIRED, "timeouts", "next_observations"):
        try:
            column = own_item(str(path), root, name)
            length = num_rows_of(column)
        except READ_ERRORS:
            continue
        if length:
            columns[name], lengths[name] = column, length
    following = columns.pop("next_observations", None)
    num_following = lengths.pop("next_observations", 0)
    findings += absence_findings(lengths)
    num_rows = min(lengths.values())
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        message = f"the columns differ in length ({listed}); the first {num_rows:,} rows are whole"
        findings.append(Finding("length-mismatch", max(lengths.values()) - num_rows, message))
    check_size(path, [(lengths[name], *column.shape[1:]) for name, column in columns.items()])
    arrays, lost = {}, np.zeros(num_rows, bool)
    for name, column in columns.items():
        arrays[name] = read_column(name, column, num_rows, lost, findings)
    try:
        attributes = plain_attributes(root)
    except READ_ERRORS:
        attributes = {}
        findings.append(Finding("truncated-file", 1, "the file's attributes cannot be read"))
    raw = assemble(path, "d4rl", arrays, lost, asked, attributes, findings)
    if num_following >= num_rows and following.shape[1:] == raw.observations.shape[1:]:
        try:
            compare_next(raw, following)
        except READ_ERRORS:
            findings.append(Finding("truncated-file", 1, "next_observations cannot be read whole; they are not needed"))
    return raw


def num_rows_of(column: Any) -> int:
    """Return how many rows a column has, 0 if it is none."""
    return 0 if column is None or not getattr(column, "shape", ()) else int(column.shape[0])


def absence_findings(lengths: dict[str, int]) -> list[Finding]:
    """Return the finding of columns that are not there; where episodes end can be found out without terminals.

    Raises:
        UnreadableError: another column is missing.
    """
    absent = [name for name in REQUIRED if name not in lengths]
    if absent and absent != ["terminals"]:
        there = ", ".join(f"{name} ({length:,} rows)" for name, length in lengths.items()) or "nothing"
        message = f"{', '.join(absent)} cannot be read, only {there}"
        raise UnreadableError(Finding("bad-shape", len(absent), message))
    return (
        [Finding("bad-shape", 1, "there are no terminals; falls are recognised where the physics are known")]
        if absent
        else []
    )


def assemble(
    path: Path,
    layout: str,
    arrays: dict[str, np.ndarray],
    lost: np.ndarray,
    asked: str | None,
    attributes: dict[str, Any],
    findings: list[Finding],
) -> RawData:
    """Put columns together; see `RawData`."""
    if lost.any():
        rows = np.flatnonzero(lost)
        findings.append(at_rows("truncated-file", rows, f"{len(rows):,} rows lie in damaged parts of the file"))
        arrays["observations"][lost] = np.nan
    return RawData(
        layout=layout,
        observations=arrays["observations"],
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        terminals=arrays.get("terminals", np.zeros(len(lost), bool)),
        timeouts=arrays.get("timeouts"),
        task=choose_task(path, asked, attributes.get("env_id")),
        lost=lost,
        attributes=attributes,
        findings=findings,
    )


def read_minari(path: Path, root: Any, names: list[str], asked: str | None, findings: list[Finding]) -> RawData:
    """Read one group an episode, with one more observation than actions; see `read_raw`."""
    try:
        attributes = minari_metadata(path)
    except DataError as error:
        findings.append(Finding("bad-shape", 1, str(error)))
        attributes = {}
    renamed = {"terminations": "terminals", "truncations": "timeouts"}
    parts: list[Part | None] = []
    num_values = 0
    for name in names:
        try:
            group = own_item(str(path), root, name)
            keys = ("observations", "actions", "rewards", *renamed)
            found = {renamed.get(key, key): own_item(f"{path}: {name}", group, key) for key in keys}
            columns = {key: column for key, column in found.items() if column is not None}
            num_values += sum(math.prod((num_rows_of(c), *c.shape[1:])) for c in columns.values())
            check_size(path, [(num_values,)])
            parts.append(read_part(columns, num_final=1))
        except (UnreadableError, *READ_ERRORS, AttributeError):
            parts.append(None)
    num_lost = parts.count(None)
    if num_lost:
        message = f"{num_lost:,} of {len(names):,} episodes cannot be read and are left out"
        findings.append(Finding("truncated-file", num_lost, message))
    return join_parts(path, "minari", parts, asked, attributes, findings)


def read_pickle(path: Path, asked: str | None) -> RawData:
    """Read a pickled list of dicts, one an episode; see `read_raw`."""
    findings = []
    try:
        stored = load_pickle(path)
    except DataError as error:
        if error.__cause__ is None:  # it asks for what no dataset needs, so nothing in it is to be trusted
            raise
        stored = pickled_dicts(path)
        message = f"{error}; the {len(stored):,} episodes before that can be read"
        findings.append(Finding("truncated-file", 1, message))
    if not isinstance(stored, list) or not stored or not all(isinstance(episode, dict) for episode in stored):
        raise UnreadableError(*findings, Finding("bad-shape", 1, "the pickle holds no list of episodes"))
    parts: list[Part | None] = []
    num_values = 0
    for episode in stored:
        columns = {"terminals": episode.get("dones"), **episode}
        wanted = [name for name in (*REQUIRED, "next_observations") if columns.get(name) is not None]
        try:
            arrays = {name: np.asarray(columns[name]) for name in wanted}
            num_values += sum(array.size for array in arrays.values())
            check_size(path, [(num_values,)])
            parts.append(read_part(arrays, num_final=0))
        except (UnreadableError, ValueError, TypeError):
            parts.append(None)
    num_lost = parts.count(None)
    if num_lost:
        message = f"{num_lost:,} of {len(stored):,} episodes are not arrays of the shapes expected and are left out"
        findings.append(Finding("bad-shape", num_lost, message))
    return join_parts(path, "pickle", parts, asked, {}, findings)


def read_part(columns: dict[str, Any], *, num_final: int) -> Part:
    """Return one episode's columns, cut to their common length T.

    Args:
        columns: the required ones; timeouts and next_observations where there are any.
        num_final: observations after the last action that there should be.

    Raises:
        UnreadableError: a column is missing, damaged or of no use.
    """
    lengths = {name: num_rows_of(column) for name, column in columns.items()}
    if any(name not in columns for name in REQUIRED):
        raise UnreadableError(Finding("bad-shape", 1, "a column is missing"))
    lengths["observations"] -= num_final
    num_rows = min(lengths.values())
    findings: list[Finding] = []
    if num_rows < 1:
        raise UnreadableError(Finding("bad-shape", 1, "an episode without rows"))
    if len(set(lengths.values())) > 1:
        findings.append(Finding("length-mismatch", 1, "the columns differ in length; the rows that all have are kept"))
    lost = np.zeros(num_rows, bool)
    part: Part = {"findings": findings}
    for name, column in columns.items():
        part[name] = read_column(name, column, num_rows, lost, findings, accepts_float64=num_final > 0)
    if lost.any():
        raise UnreadableError(Finding("truncated-file", 1, "an episode with damaged columns"))
    if num_final and not findings:
        part["final"] = np.asarray(columns["observations"][num_rows], np.float32)
    elif "next_observations" in part:
        part["final"] = part["next_observations"][-1]
    return part


def join_parts(
    path: Path,
    layout: str,
    read: list[Part | None],
    asked: str | None,
    attributes: dict[str, Any],
    findings: list[Finding],
) -> RawData:
    """Put episodes back to back; a part's last row counts as a timeout unless it is terminal.

    Raises:
        UnreadableError: there are none, or they differ in width.
    """
    parts = [part for part in read if part is not None]
    if not parts:
        raise UnreadableError(*findings, Finding("bad-shape", 1, "no episode can be read"))
    widths = {(part["observations"].shape[1], part["actions"].shape[1]) for part in parts}
    if len(widths) > 1:
        message = f"the episodes differ in width: {sorted(widths)}"
        raise UnreadableError(*findings, Finding("bad-shape", len(widths), message))
    told = Counter((finding.code, finding.message) for part in parts for finding in part["findings"])
    findings += [Finding(code, n, f"in {n:,} episodes {message}") for (code, message), n in told.items()]
    lengths = [len(part["rewards"]) for part in parts]
    ends = np.cumsum(lengths) - 1
    timeouts = np.concatenate([part.get("timeouts", np.zeros_like(part["terminals"])) for part in parts])
    timeouts[ends] = True
    arrays = {name: np.concatenate([part.pop(name) for part in parts]) for name in REQUIRED}  # freed as they are joined
    arrays["timeouts"] = timeouts & ~arrays["terminals"]
    raw = assemble(path, layout, arrays, np.zeros(len(timeouts), bool), asked, attributes, findings)
    if all("next_observations" in part for part in parts):
        compare_next(raw, np.concatenate([part.pop("next_observations") for part in parts]))
    elif all("final" in part for part in parts):
        raw.final_rows, raw.final_observations = ends, np.stack([part["final"] for part in parts])
    return raw

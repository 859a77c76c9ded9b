"""What data look like to gq: flat columns, or episodes of columns, and what is wrong with them.

A column is anything with `shape`, `dtype` and indexing: an array, or an HDF5 dataset that is not read yet. What headers
say is examined here, before `gq.data.rows` reads any column; `gq.data.formats` opens the files.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.flags import find_flags
from gq.data.hdf5 import (
    READ_ERRORS,
    ForeignError,
    Joined,
    own_item,
    pick_column,
)
from gq.errors import DataError

REQUIRED = ("observations", "actions", "rewards", "terminals")
FLAGS = ("terminals", "timeouts")
MATRICES = ("observations", "actions")


@dataclass(frozen=True)
class Problem:
    """Something wrong with how a file stores its rows."""

    code: str  # as `gq repair` names it: bad-shape, wrong-dtype, length-mismatch, truncated-file, non-finite, not-hdf5
    message: str  # names neither the file nor the episode
    error: DataError | None = None  # why gq does not train on such a file; None: it trains on it all the same
    episode: str = ""  # that the problem is of, by its label in the file; "": the file's
    count: int = 1  # of rows, columns or episodes that are affected
    rows: tuple[int, ...] = ()  # the first ones of these
    loses_episode: bool = False  # nothing of the episode can be used


class Problems(list[Problem]):
    """What is wrong with a file. With `refuse`, the first problem that training minds is raised instead of kept."""

    def __init__(self, *, refuse: bool) -> None:
        super().__init__()
        self.refuse = refuse

    def add(self, problem: Problem) -> None:
        """Keep a problem, or raise its error."""
        if self.refuse and problem.error is not None:
            raise problem.error
        self.append(problem)


class UnusableError(Exception):
    """A column, episode or file of which nothing can be made; holds the problem that says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True)
class Layout:
    """How files of one kind name and arrange their columns."""

    name: str  # as reports say it
    timeouts: bool  # training needs the timeouts, where there are any
    stored_names: Mapping[str, str] = field(default_factory=dict)  # where they are not gq's own
    num_final: int = 0  # observations after an episode's last action


D4RL = Layout("d4rl", timeouts=True)
MINARI = Layout("minari", False, {"terminals": "terminations", "timeouts": "truncations"}, num_final=1)
PICKLE = Layout("pickle", timeouts=False)


@dataclass(frozen=True)
class Part:
    """Columns that belong together, unread: those of a flat file, or of one episode."""

    label: str  # of the episode in its file; "" for a flat file
    columns: dict[str, Any]  # by gq's names; [T, ...], observations [T + num_final, S]; they may be longer
    num_rows: int  # T
    following: Any = None  # next observations [T, S], where they are stored


@dataclass
class Stored:
    """A data file with all that its headers say, and no column read."""

    layout: Layout
    parts: list[Part] = field(default_factory=list)
    num_lost: int = 0  # episodes of which nothing can be used
    attributes: dict[str, Any] = field(default_factory=dict)


def row_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a column's row: observations flat, others without axes of length 1, which some files add."""
    if name == "observations" and len(shape) > 1:
        return (math.prod(map(int, shape[1:])),)
    is_plain = len(shape) == (2 if name in MATRICES else 1)
    return tuple(shape[1:]) if is_plain else tuple(length for length in shape[1:] if length != 1)


def find_episodes(stored: Stored, path: Path, holder: Any, labels: list[str], problems: Problems) -> None:
    """Find the columns of each episode in a dict or HDF5 group, and report why an episode is lost."""
    for label in labels:
        try:
            place = Place(path, label, stored.layout, problems)
            stored.parts.append(find_part(place, own_item(str(path), holder, label)))
            continue
        except ForeignError:
            raise
        except UnusableError as error:
            problem = error.problem
        except (DataError, *READ_ERRORS) as error:
            if problems.refuse:
                raise
            problem = Problem("truncated-file", str(error))
        problems.add(replace(problem, episode=label, loses_episode=True))
        stored.num_lost += 1


@dataclass(frozen=True)
class Place:
    """Where columns are examined: in a flat file or in one of its episodes."""

    path: Path
    label: str  # "" for a flat file
    layout: Layout
    problems: Problems

    def __str__(self) -> str:
        return f"{self.path}: {self.label}" if self.label else str(self.path)

    def stored_name(self, name: str) -> str:
        """How the file calls a column."""
        return self.layout.stored_names.get(name, name)

    def report(self, code: str, message: str, error: DataError | None, count: int = 1) -> None:
        """Add a problem."""
        self.problems.add(Problem(code, message, error, self.label, count))


def find_part(place: Place, container: Any) -> Part:
    """Find the columns of a flat file or of an episode, and examine their headers.

    Raises:
        UnusableError: one that has to be there is missing or holds no rows of numbers.
        ForeignError: one lies in another file.
    """
    refuse = place.problems.refuse
    dispensable = ("timeouts",) if place.label else FLAGS  # in a flat file, repair recognises falls without terminals
    found = _pick_columns(place, container, dispensable)
    columns: dict[str, Any] = {}
    for name, column in found.items():
        try:
            _examine_column(place, name, column)
            columns[name] = column
        except UnusableError as error:
            if name not in dispensable:
                raise
            place.problems.add(replace(error.problem, episode=place.label))
    num_rows = _common_length(place, columns)
    following = None if refuse or place.layout is MINARI else own_item(str(place), container, "next_observations")
    return Part(place.label, columns, num_rows, following)


def _pick_columns(place: Place, container: Any, dispensable: tuple[str, ...]) -> dict[str, Any]:
    """Find the columns by gq's names. Raises UnusableError if one that is needed is no array, ForeignError."""
    names = list(REQUIRED)
    if place.layout is D4RL:
        container = _with_flags(place, container)
    has_timeouts = isinstance(container, Mapping) and place.stored_name("timeouts") in container
    if has_timeouts and (place.layout.timeouts or not place.problems.refuse):
        names.append("timeouts")
    needed = [place.stored_name(name) for name in names]
    found: dict[str, Any] = {}
    absent: dict[str, DataError] = {}
    for name, stored_name in zip(names, needed, strict=True):
        try:
            found[name] = pick_column(str(place), container, stored_name, needed)
        except ForeignError:
            raise
        except DataError as error:
            if isinstance(container, dict) and isinstance(container.get(stored_name), list):  # repair takes lists too
                place.report("wrong-dtype", f"{stored_name} is a list, not one array", error)
                with suppress(ValueError):
                    found[name] = np.asarray(container[stored_name])
            if name not in found:
                absent[name] = error
    there = ", ".join(f"{name} ({column.shape[0] if column.shape else 0:,} rows)" for name, column in found.items())
    message = f"{', '.join(absent)} cannot be read, only {there or 'nothing'}"
    for name, refusal in absent.items():
        if name not in dispensable:
            raise UnusableError(Problem("bad-shape", message, refusal, count=len(absent)))
        if name == "terminals":
            message = "there are no terminals; falls are recognised where the physics are known"
        place.report("bad-shape", message, refusal)
    return found


def _with_flags(place: Place, container: Any) -> Any:
    """Return a flat file's columns with its flags under gq's names; see `gq.data.flags`."""
    rewards = own_item(str(place), container, "rewards")
    if not getattr(rewards, "shape", ()):
        return container
    try:
        flags = find_flags(str(place), container, int(rewards.shape[0]))
    except ForeignError:
        raise
    except DataError as error:
        place.report("unread-flag-column", str(error).removeprefix(f"{place}: "), error)
        return container
    others = [name for name in (*REQUIRED, "next_observations") if name not in flags]
    columns = {name: own_item(str(place), container, name) for name in others}
    return {name: column for name, column in columns.items() if column is not None} | flags


def _examine_column(place: Place, name: str, column: Any) -> None:
    """Report the shape or type of a column if it is odd. Raises UnusableError if it holds no rows of numbers."""
    shape, inner = tuple(column.shape), row_shape(name, column.shape)
    num_axes, expected = (2, "(rows, columns)") if name in MATRICES else (1, "(rows,)")
    stored_name = place.stored_name(name)
    code, words = "bad-shape", ""
    if name == "actions" and column.dtype.kind in "iu" and len(shape) == 1:
        code, words = "discrete-actions", f"{stored_name} are discrete, whole numbers, and gq's policies are continuous"
    elif column.dtype.kind not in "biuf":
        code, words = "wrong-dtype", f"{stored_name} holds {column.dtype}, not numbers"
    elif not shape or 1 + len(inner) != num_axes:
        words = f"{stored_name} has shape {shape}, expected {expected}"
    elif name == "observations" and len(shape) == 4 and column.dtype == np.uint8:
        words = f"{stored_name} are pictures, shape {shape}, and gq's policies take vectors"
    elif 0 in shape:
        words = f"{stored_name} is empty, shape {shape}"
    if words:
        hint = "train on data with continuous actions: gq download --list" if code == "discrete-actions" else ""
        raise UnusableError(Problem(code, words, DataError(f"{place}: {words}", hint=hint)))
    if isinstance(column, Joined):
        words = f"{stored_name} are a Dict ({', '.join(column.parts)}), read side by side"
        place.report("dict-observations", words, None)
    if name == "observations" and len(shape) > 2:
        words = f"{stored_name} have the shape ({', '.join(['rows', *map(str, shape[1:])])}), read flat"
        place.report("bad-shape", words, None)
    elif shape[1:] != inner:
        words = f"{stored_name} has the shape ({', '.join(['rows', *map(str, shape[1:])])}), expected {expected}"
        error = DataError(f"{place}: {stored_name} has shape {shape}, expected {expected}")
        place.report("bad-shape", words, None if shape[1:] == (1,) else error)
    expected = "bool" if name in FLAGS else "float32"
    is_float64 = place.layout is MINARI and expected == "float32" and column.dtype.name == "float64"
    if column.dtype.name != expected and not is_float64:
        place.report("wrong-dtype", f"{stored_name} is {column.dtype}, expected {expected}", None)


def _common_length(place: Place, columns: dict[str, Any]) -> int:
    """Return the number of rows that all columns have, and report if some have more. Raises UnusableError for none."""
    lengths = {name: int(column.shape[0]) for name, column in columns.items()}
    listed = ", ".join(f"{place.stored_name(name)} {length}" for name, length in lengths.items())
    num_final = place.layout.num_final
    if num_final and lengths["observations"] and len(set(lengths.values())) == 1:  # as some published sets are
        place.report("length-mismatch", "there is no observation after the last step", None)
        num_final = 0
    lengths["observations"] -= num_final
    num_rows = min(lengths.values())
    if len(set(lengths.values())) == 1 and num_rows:
        return num_rows
    wanted = f"; observations need {num_final} more than the others" if num_final else ""
    error = DataError(f"{place}: the arrays differ in length: {listed}{wanted}")
    if not num_rows:
        raise UnusableError(Problem("bad-shape", "there are no rows", error))
    message, count = "the columns differ in length; the rows that all have are kept", 1
    if not place.label:
        listed = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        message = f"the columns differ in length ({listed}); the first {num_rows:,} rows are whole"
        count = max(lengths.values()) - num_rows
    place.report("length-mismatch", message, error, count)
    return num_rows

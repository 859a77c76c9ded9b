"""Damage data in known ways: each function returns new data whose true episodes are known. And read reports."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from gq.repair.findings import Finding
from gq.repair.repair import RepairReport

TERMINAL, LIMIT, CUT = "terminal", "limit", "cut"


@dataclass(frozen=True)
class Stream:
    """Flat columns as a file has them, and the truth about them."""

    columns: dict[str, np.ndarray]
    ends: tuple[int, ...]  # the last row of every piece, the last of all included
    kinds: tuple[str, ...]  # how each piece really ends
    inside: tuple[bool, ...]  # which pieces really begin in mid-episode

    @property
    def num_rows(self) -> int:
        return len(self.columns["rewards"])

    @property
    def num_whole(self) -> int:
        return sum(kind != CUT and not inside for kind, inside in zip(self.kinds, self.inside, strict=True))

    @property
    def num_fragments(self) -> int:
        return len(self.ends) - self.num_whole

    def write(self, path: Path, **attributes: object) -> Path:
        with h5py.File(path, "w") as root:
            root.attrs.update(attributes)
            for name, values in self.columns.items():
                root[name] = values
        return path


def load(path: Path, *, num_rows: int | None = None, start: int = 0) -> Stream:
    """Return some rows of a D4RL file whose flags are right, without next_observations."""
    with h5py.File(path) as root:
        names = ["observations", "actions", "rewards", "terminals", "timeouts"]
        stop = None if num_rows is None else start + num_rows
        columns = {name: root[name][start:stop] for name in names}
        before = root["terminals"][start - 1] or root["timeouts"][start - 1] if start else True
    return from_columns(columns, begins_inside=not before)


@cache
def simulated(task: str, num_rows: int, **options: object) -> Stream:
    """Return episodes under random actions, the last one cut off: HalfCheetah's end at the limit, Hopper's in falls.

    Args:
        options: of the environment.
    """
    from simulator import make

    env = make(task, **options)
    env.action_space.seed(0)
    rows = []
    observation, _ = env.reset(seed=0)
    while len(rows) < num_rows:
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, terminated, truncated and not terminated))
        observation = env.reset()[0] if terminated or truncated else following
    env.close()
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    dtypes = (np.float32, np.float32, np.float32, bool, bool)
    columns = zip(names, zip(*rows, strict=True), dtypes, strict=True)
    return from_columns({name: np.array(values, dtype) for name, values, dtype in columns})


def from_columns(columns: dict[str, np.ndarray], *, begins_inside: bool = False) -> Stream:
    """Return a stream whose flags are right; its last rows may be an unfinished episode."""
    flagged = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    ends = [int(end) for end in flagged]
    kinds = [TERMINAL if columns["terminals"][end] else LIMIT for end in ends]
    if not ends or ends[-1] != len(columns["rewards"]) - 1:
        ends.append(len(columns["rewards"]) - 1)
        kinds.append(CUT)
    inside = [begins_inside] + [False] * (len(ends) - 1)
    kinds = [CUT if kind == LIMIT and was else kind for kind, was in zip(kinds, inside, strict=True)]  # not whole
    return Stream(columns, tuple(ends), tuple(kinds), tuple(inside))


def without(stream: Stream, *names: str) -> Stream:
    """Leave columns out."""
    return replace(stream, columns={name: values for name, values in stream.columns.items() if name not in names})


def strip_timeouts(stream: Stream, *, keep_column: bool = False) -> Stream:
    """Leave the timeouts out, or set none of them."""
    if not keep_column:
        return without(stream, "timeouts")
    return replace(stream, columns={**stream.columns, "timeouts": np.zeros(stream.num_rows, bool)})


def strip_flags(stream: Stream) -> Stream:
    """Set no flag at all."""
    none = np.zeros(stream.num_rows, bool)
    return replace(stream, columns={**stream.columns, "timeouts": none, "terminals": none})


def shift_terminals(stream: Stream, by: int) -> Stream:
    """Move every terminal by some rows; what leaves the file is lost."""
    moved = np.zeros(stream.num_rows, bool)
    rows = np.flatnonzero(stream.columns["terminals"]) + by
    moved[rows[(rows >= 0) & (rows < stream.num_rows)]] = True
    return replace(stream, columns={**stream.columns, "terminals": moved})


def keep_rows(stream: Stream, kept: np.ndarray) -> Stream:
    """Keep some rows, bool [N]: pieces lose their end, their beginning or their middle, and are two then."""
    columns = {name: values[kept] for name, values in stream.columns.items()}
    place = np.cumsum(kept) - 1
    ends: list[int] = []
    kinds: list[str] = []
    inside: list[bool] = []
    start = 0
    for end, kind, was_inside in zip(stream.ends, stream.kinds, stream.inside, strict=True):
        rows = start + np.flatnonzero(kept[start : end + 1])
        for part in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []:
            ends.append(int(place[part[-1]]))
            begins_inside = was_inside or part[0] != start
            kinds.append(kind if part[-1] == end and not (begins_inside and kind == LIMIT) else CUT)
            inside.append(bool(begins_inside))
        start = end + 1
    return Stream(columns, tuple(ends), tuple(kinds), tuple(inside))


def begin_inside(stream: Stream, num_rows: int) -> Stream:
    """Drop the first rows."""
    return keep_rows(stream, np.arange(stream.num_rows) >= num_rows)


def cut_tail(stream: Stream, num_rows: int) -> Stream:
    """Drop the last rows."""
    return keep_rows(stream, np.arange(stream.num_rows) < stream.num_rows - num_rows)


def cut_out(stream: Stream, start: int, stop: int) -> Stream:
    """Drop rows from the middle."""
    rows = np.arange(stream.num_rows)
    return keep_rows(stream, (rows < start) | (rows >= stop))


def concatenate(*streams: Stream) -> Stream:
    """Put streams back to back; unfinished pieces stay unfinished, without a flag."""
    offsets = np.cumsum([0] + [stream.num_rows for stream in streams])
    names = set.intersection(*(set(stream.columns) for stream in streams))
    return Stream(
        {name: np.concatenate([stream.columns[name] for stream in streams]) for name in names},
        tuple(int(end + offset) for stream, offset in zip(streams, offsets, strict=False) for end in stream.ends),
        sum((stream.kinds for stream in streams), ()),
        sum((stream.inside for stream in streams), ()),
    )


def mark_iterations(stream: Stream, every: int) -> Stream:
    """Mark a timeout every so many rows instead of at the limit, while episodes go on."""
    timeouts = np.zeros(stream.num_rows, bool)
    timeouts[every - 1 :: every] = True
    return replace(stream, columns={**stream.columns, "timeouts": timeouts & ~stream.columns["terminals"]})


def sample_iterations(stream: Stream, every: int) -> Stream:
    """Cut the episode at hand every so many rows, mark that as a timeout, and go on with the next episode."""
    kept = np.ones(stream.num_rows, bool)
    cuts = []
    for row in range(every - 1, stream.num_rows, every):
        end = next(end for end in stream.ends if end >= row)
        if end != row:
            kept[row + 1 : end + 1] = False
            cuts.append(row)
    cuts = [row for row in cuts if kept[row]]
    timeouts = stream.columns["timeouts"].copy()
    timeouts[cuts] = True
    return keep_rows(replace(stream, columns={**stream.columns, "timeouts": timeouts}), kept)


def changed(stream: Stream, **columns: np.ndarray) -> Stream:
    """Replace columns by others."""
    return replace(stream, columns={**stream.columns, **columns})


def whole_rows(stream: Stream) -> np.ndarray:
    """Return the rows of whole episodes, int [n]."""
    starts = [0, *(end + 1 for end in stream.ends[:-1])]
    pieces = zip(starts, stream.ends, stream.kinds, stream.inside, strict=True)
    return np.concatenate([np.arange(a, b + 1) for a, b, kind, inside in pieces if kind != CUT and not inside])


def problems(report: RepairReport) -> set[str]:
    return {finding.code for finding in report.problems}


def notes(report: RepairReport) -> set[str]:
    return {finding.code for finding in report.findings} - problems(report)


def only(report: RepairReport, code: str) -> Finding:
    """Return the one finding with a code."""
    (finding,) = [finding for finding in report.findings if finding.code == code]
    return finding

"""Write the good part of an examined file as gq's canonical file, and check it with the strict reader."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gq.data.reading import check_widths, read_trajectories, time_limits, write_canonical
from gq.data.trajectories import Trajectories
from gq.errors import DataError, UsageError
from gq.files import atomic_path, sha256
from gq.repair.boundaries import plain_task
from gq.repair.examination import Examined
from gq.repair.findings import several
from gq.repair.robots import robot_of

Fragments = Literal["drop", "keep", "bootstrap"]
# Attributes that describe the episodes of the original, which the copy may not have.
STATISTICS = re.compile(r"(n|num|return|length|score|total|sha256)_.*|.*_(mean|std|min|max|episodes|rows)|layout")

NUM_NEIGHBOURS = 16
NUM_REFERENCES = 20_000  # rows of whole episodes that are compared with, spread evenly
NEAR_IN_TIME = 0.05  # the share of them, nearest in time, that is compared by observation
MIN_NEAR_IN_TIME = 64
NUM_PROBES = 200

REPAIRS = {  # by the code of what was found
    "missing-timeouts": "flagged ends of episodes that had no flag",
    "missing-terminals": "flagged falls as terminals",
    "shifted-terminals": "put terminals on the last rows of episodes",
    "action-out-of-bounds": "clipped actions to the action space",
    "dimension-mismatch": "took the observation columns of the task",
    "bad-shape": "gave columns their usual shapes",
    "wrong-dtype": "stored columns as float32 and bool",
    "length-mismatch": "kept the rows that all columns have",
    "truncated-file": "kept what could be read",
}


def check_target(file: Path, output: Path, *, force: bool) -> None:
    """Refuse a target that exists or is the original, also by another name.

    Raises:
        UsageError: it is.
    """
    for target in (output, report_path(output)):
        if target.exists() and target.samefile(file):
            raise UsageError(f"{target} is the original, which is never changed", hint="write to another file with -o")
        if target.is_dir():
            raise UsageError(f"{target} is a folder", hint="name a file with -o")
        if (target.exists() or target.is_symlink()) and not force:
            raise UsageError(f"{target} exists", hint="write to another file with -o, or replace it with --force")


def report_path(output: Path) -> Path:
    """Return where the report of a copy lies."""
    return output.with_name(output.name + ".report.json")


def write_copy(examined: Examined, file: Path, output: Path, *, fragments: Fragments, source: str) -> tuple[str, ...]:
    """Write the copy; return what was done, in words.

    Raises:
        DataError: nothing is left to write, or the widths are not the task's.
        GqError: it cannot be written.
    """
    raw, segments = examined.raw, examined.segments
    check_widths(file, raw.observations.shape[1], raw.actions.shape[1], plain_task(raw))
    kept = examined.usable & ~examined.repeated
    if fragments == "drop":
        kept &= segments.whole
    if not kept.any():
        hint = "keep pieces of episodes with --fragments keep" if examined.usable.any() else "fetch the file again"
        raise DataError(f"{file}: no whole episode is left to write", hint=hint)
    trajectories = select(examined, np.flatnonzero(kept), source)
    repairs = _list_repairs(examined, kept)
    extra: dict[str, np.ndarray] = {}
    is_fragment = ~segments.whole[kept]
    if is_fragment.any():
        extra["fragments"] = np.repeat(is_fragment, trajectories.lengths)
    if fragments == "bootstrap" and is_fragment.any():
        extra["bootstrap_values"], words = _bootstrap(examined, trajectories, np.flatnonzero(kept))
        repairs.append(words)
    attributes = {name: value for name, value in raw.attributes.items() if not STATISTICS.fullmatch(name)}
    attributes = {name: value for name, value in attributes.items() if name not in ("env_id", "source")}
    attributes |= {"repaired_from_sha256": sha256(file), "repairs": json.dumps(repairs), "fragments": fragments}
    _write_checked(output, trajectories, attributes, extra)
    return tuple(repairs)


def select(examined: Examined, pieces: np.ndarray, source: str) -> Trajectories:
    """Return some pieces as trajectories, with actions clipped to the task's action space."""
    raw, segments = examined.raw, examined.segments
    rows: Any = np.concatenate([np.arange(segments.offsets[i], segments.offsets[i + 1]) for i in pieces])
    if len(rows) == rows[-1] + 1 - rows[0]:
        rows = slice(int(rows[0]), int(rows[-1]) + 1)  # a view instead of a copy
    lengths = np.diff(segments.offsets)[pieces]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    terminals = np.zeros(offsets[-1], bool)
    terminals[offsets[1:] - 1] = segments.terminals[pieces]
    task = plain_task(raw)
    bound = task.action_bound if task else np.inf
    return Trajectories(
        observations=raw.observations[rows],
        actions=raw.actions[rows].clip(-bound, bound),
        rewards=raw.rewards[rows],
        terminals=terminals,
        offsets=offsets,
        source=source,
        task=raw.task,
    )


def _list_repairs(examined: Examined, kept: np.ndarray) -> list[str]:
    """Say what the copy has that the original has not; `kept` is bool [K], the pieces in it."""
    segments = examined.segments
    lengths = np.diff(segments.offsets)
    pieces = {
        "left out {} with damaged values": ("episode", ~examined.usable),
        "left out {} already there": ("episode", examined.usable & examined.repeated),
        "left out {}": ("fragment", examined.usable & ~examined.repeated & ~kept),
        "kept {} and marked their rows in the dataset fragments": ("fragment", kept & ~segments.whole),
    }
    done = [
        f"{words.format(several(int(some.sum()), noun))} ({several(int(lengths[some].sum()), 'row')})"
        for words, (noun, some) in pieces.items()
        if some.any()
    ]
    num_inside = int((~np.isin(segments.misplaced_timeouts, segments.ends)).sum())
    done += [f"took away {several(num_inside, 'timeout')} inside episodes"] * bool(num_inside)
    codes = {finding.code for finding in examined.findings}
    return done + [words for code, words in REPAIRS.items() if code in codes]


def _bootstrap(examined: Examined, trajectories: Trajectories, pieces: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the estimated return after each fragment's last row, float32 [N], 0 elsewhere, and what was done.

    Raises:
        DataError: there is no whole episode to estimate from.
    """
    segments = examined.segments
    whole = segments.whole[pieces]
    if not whole.any():
        hint = "take --fragments keep instead"
        raise DataError("no whole episode tells what the fragments would still have earned", hint=hint)
    robot = robot_of(trajectories.task)
    width = robot.num_columns if robot else trajectories.observations.shape[1]
    states = trajectories.observations[:, :width]
    episode = np.repeat(np.arange(trajectories.num_episodes), trajectories.lengths)
    rows = whole[episode]
    after = trajectories.returns_to_go() - trajectories.rewards
    timesteps = trajectories.timesteps()
    estimator = Estimator(states[rows], after[rows], timesteps[rows], episode[rows])
    values = np.zeros(trajectories.num_transitions, np.float32)
    cut_off = np.flatnonzero(~segments.complete[pieces])
    for index in cut_off:
        last = trajectories.offsets[index + 1] - 1
        timestep = None if segments.inside[pieces[index]] else int(timesteps[last])
        values[last] = estimator.estimate(states[last].astype(np.float64), timestep)
    words = (
        f"estimated the return after {several(len(cut_off), 'fragment')}, in the dataset bootstrap_values at their "
        f"last rows; on whole episodes the estimate is off by {estimator.typical_error():.3g} in the median. gq train "
        "does not use it: it has to be added to the returns-to-go of the fragment"
    )
    return values, words


def _write_checked(
    output: Path, trajectories: Trajectories, attributes: dict[str, Any], extra: dict[str, np.ndarray]
) -> None:
    """Write a canonical file with further datasets, read it with the strict reader, and only then put it in place."""
    import h5py

    timeouts = time_limits(trajectories)
    with atomic_path(output) as temporary:
        write_canonical(temporary, trajectories, timeouts=timeouts, attributes=attributes)
        if extra:
            with h5py.File(temporary, "a") as root:
                for name, values in extra.items():
                    root.create_dataset(name, data=values)
        again = read_trajectories(temporary)
        assert np.array_equal(again.offsets, trajectories.offsets), "the strict reader finds other episodes"


class Estimator:
    """The mean over similar rows, by time and observation, of the return that came after them in whole episodes.

    Similar is: of the twentieth of the rows that is nearest in time, or of all where the time is not known, the 16
    nearest by standardised observation. It takes for granted that the policy that was cut off acts like those of the
    whole episodes.
    """

    def __init__(
        self, observations: np.ndarray, returns_after: np.ndarray, timesteps: np.ndarray, episodes: np.ndarray
    ) -> None:
        """Keep references.

        Args:
            observations: [R, C], the state columns of rows of whole episodes.
            returns_after: float [R], the return-to-go less the row's own reward.
            timesteps: int [R].
            episodes: int [R], which episode each row is of.
        """
        picked = np.unique(np.linspace(0, len(timesteps) - 1, min(len(timesteps), NUM_REFERENCES)).astype(np.int64))
        picked = picked[np.argsort(timesteps[picked], kind="stable")]
        self.observations = observations[picked].astype(np.float64)
        self.centre, self.spread = self.observations.mean(axis=0), self.observations.std(axis=0) + 1e-6
        self.observations = (self.observations - self.centre) / self.spread
        self.returns_after, self.timesteps, self.episodes = returns_after[picked], timesteps[picked], episodes[picked]

    def estimate(self, observation: np.ndarray, timestep: int | None, *, not_of: int = -1) -> float:
        """Return the estimate for a row: observation [C], its step or None, without references of episode `not_of`."""
        low, high = 0, len(self.timesteps)
        count = min(high, max(MIN_NEAR_IN_TIME, int(NEAR_IN_TIME * high)))
        if timestep is not None:
            middle = int(np.searchsorted(self.timesteps, timestep))
            low = int(np.clip(middle - count // 2, 0, high - count))
            high = low + count
        distances = ((self.observations[low:high] - (observation - self.centre) / self.spread) ** 2).sum(axis=1)
        distances[self.episodes[low:high] == not_of] = np.inf
        count = min(NUM_NEIGHBOURS, len(distances))
        nearest = np.argpartition(distances, count - 1)[:count]
        return float(self.returns_after[low:high][nearest].mean())

    def typical_error(self) -> float:
        """Return the median absolute error on rows of whole episodes, each without its own episode."""
        probes = np.unique(np.linspace(0, len(self.timesteps) - 1, NUM_PROBES).astype(np.int64))
        errors = [
            abs(
                self.estimate(
                    self.observations[row] * self.spread + self.centre,
                    int(self.timesteps[row]),
                    not_of=int(self.episodes[row]),
                )
                - self.returns_after[row]
            )
            for row in probes
        ]
        return float(np.median(errors))

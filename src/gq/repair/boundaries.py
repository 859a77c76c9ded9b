"""Find where episodes begin and end in a stream of rows, whatever its flags say.

Three witnesses, the best one there is: stored next observations; the simulator, which is put into a row's state and
asked whether the next row follows; statistics of the steps, which any data have. Statistics also choose the rows that
the simulator looks at: all unlikely steps, all that lead to an initial state, all near a flag.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gq.data.rows import Rows
from gq.envs.specs import Record
from gq.envs.tasks import TASKS, Task
from gq.repair.replay import Replayed, replay_transitions, typical_step
from gq.repair.robots import Robot, looks_initial, robot_of

Method = Literal["next_observations", "simulator", "statistics"]
Simulate = Literal["auto", "all", "off"]
Progress = Callable[[int, int | None], None]
LEAST_LOOKS = 4_000  # steps that the simulator looks at at least, or all there are
SUSPICIOUS_SCORE = 6.0  # from which on it looks at all
LOCALLY_UNLIKELY = 0.25  # of as many again, by how far the score is above that of the neighbourhood
NEIGHBOURHOOD = 256  # steps
CALIBRATION_ROWS = 200
SCALE_ROWS = 20_000  # that tell the typical step
# In typical steps. With the data's own engine, nearly all steps are within 0.004, all within 0.1; a reset is 2 off.
LEAST_TOLERANCE, LARGEST_TOLERANCE = 0.02, 2.0
# Shares of the distance from a row to its next that the simulator may be off. Impacts can amplify rounding: measured
# up to 0.03, twice in 640,000 steps; and 0.5 with other gravity, friction, damping and gears. A reset has 0.8 or more.
SAME_PHYSICS_SHARE, OTHER_PHYSICS_SHARE = 0.08, 0.35
SEARCHED_ERROR, SEARCHED_SCORE = 1.0, 3.0  # together, for a break where hidden velocities had to be found
BREAK, FOLLOWS, UNKNOWN = 0, 1, -1
RESET_SCORE = 2.5  # for a step to an initial state, or one at the time limit
CERTAIN_SCORE, CERTAIN_SCORE_UNKNOWN_ROBOT = 8.0, 5.0  # for any step
MARGIN = 2.75  # above the rarest ordinary steps
AGREEMENT = 0.9  # of the time limits, that must be unusual steps to be believed
SHIFT_SCORE = 2.0  # by which the steps beside the flags are more unusual than those at them
CHUNK = 65_536  # rows worked on at a time, so that wide data need little memory
FIT_ROWS = 50_000


class Judge:
    """The simulator as a witness: how closely it reproduces ordinary steps decides what counts as a break."""

    def __init__(
        self, task: str, observations: np.ndarray, actions: np.ndarray, scores: np.ndarray, ordinary: np.ndarray
    ) -> None:
        """Calibrate on `ordinary`, int rows of steps that are likely to be good; `scores` [N - 1] are of all steps."""
        self.observations, self.actions, self.scores = observations, actions, scores
        self.robot = robot_of(task)
        assert self.robot is not None
        sample = np.unique(np.linspace(0, len(observations) - 2, SCALE_ROWS).astype(np.int64))
        self.scales = typical_step(observations[:, : self.robot.num_columns], sample)
        picked = np.linspace(0, len(ordinary) - 1, min(CALIBRATION_ROWS, len(ordinary))).astype(np.int64)
        self.num_replayed = 0
        self.task, self.tolerance = task, np.inf
        family, version = task.split("-")
        for physics in (task, f"{family}-{'v4' if version == 'v5' else 'v5'}"):
            errors = self.replay(ordinary[np.unique(picked)], physics).errors
            errors = errors[np.isfinite(errors)]
            level = 20 * float(np.quantile(errors, 0.95)) if len(errors) else np.inf
            if level < self.tolerance:
                self.task, self.tolerance = physics, level
            if self.tolerance < LEAST_TOLERANCE:
                break
        self.is_usable = self.tolerance <= 20 * LARGEST_TOLERANCE
        self.is_exact = self.tolerance < LEAST_TOLERANCE
        self.tolerance = float(np.clip(self.tolerance, LEAST_TOLERANCE, LARGEST_TOLERANCE))

    def replay(self, rows: np.ndarray, physics: str | None = None, progress: Progress | None = None) -> Replayed:
        """Replay rows in the simulator of the task or of another one."""
        self.num_replayed += len(rows)
        watch = progress or (lambda done, total: None)
        task = physics or self.task
        return replay_transitions(task, self.observations, self.actions, rows, self.scales, progress=watch)

    def verdicts(self, rows: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Return FOLLOWS, BREAK or UNKNOWN for rows, int8 [n]."""
        errors, _, searched = self.replay(rows, progress=progress)
        share = SAME_PHYSICS_SHARE if self.is_exact else OTHER_PHYSICS_SHARE
        fits = (errors < self.tolerance) | (errors < share * self.sizes(rows))
        # A search for hidden velocities that finds nothing is no proof by itself.
        is_clear = fits | ~searched | ((errors >= SEARCHED_ERROR) & (self.scores[rows] >= SEARCHED_SCORE))
        verdicts = np.where(fits, FOLLOWS, np.where(is_clear, BREAK, UNKNOWN))
        return np.where(np.isnan(errors), UNKNOWN, verdicts).astype(np.int8)

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Return how far rows are from their next ones, in typical steps, float64 [n]."""
        assert self.robot is not None
        columns = slice(self.robot.num_columns)
        after = self.observations[np.minimum(rows + 1, len(self.observations) - 1), columns]
        steps = (after - self.observations[rows, columns]) / self.scales
        sizes: np.ndarray = np.sqrt(np.mean(steps * steps, axis=1))
        return sizes

    def predicted(self, rows: np.ndarray) -> np.ndarray:
        """Return the states that follow rows, float32 [n, W]; NaN where the simulator cannot tell."""
        return self.replay(rows).predicted


@dataclass(frozen=True)
class Evidence:
    """Whether each row's next one follows from it, and who says so."""

    follows: np.ndarray  # int8 [N - 1]: FOLLOWS, BREAK or UNKNOWN
    method: Method
    judge: Judge | None = None  # the simulator, where it was heard

    @property
    def num_replayed(self) -> int:
        """Steps that the simulator looked at."""
        return self.judge.num_replayed if self.judge else 0

    @property
    def physics(self) -> str | None:
        """The task whose simulator reproduces the data."""
        return self.judge.task if self.judge else None


def known_task(rows: Rows) -> str | None:
    """Return the task if gq knows it and the observations have its width, so that it says what the columns are."""
    task = plain_task(rows)
    return rows.task if task and task.observation_dim == rows.observations.shape[1] else None


def plain_task(rows: Rows) -> Task | None:
    """Return the rows' task if gq knows it and they record nothing that makes another one of it."""
    record = Record.of(rows.attributes)
    altered = record.problems().keys() & {"env-wrapper", "env-kwargs"} if record else None
    return None if altered else TASKS.get(rows.task or "")


def time_limit(rows: Rows) -> int | None:
    """Return the steps after which an episode of the rows' task ends, if gq knows it."""
    record, task = Record.of(rows.attributes), TASKS.get(rows.task or "")
    if record and record.max_episode_steps:
        return record.max_episode_steps
    return task.max_episode_steps if task else None


def examine(rows: Rows, *, simulate: Simulate = "auto", progress: Progress = lambda done, total: None) -> Evidence:
    """Find out for each row whether the next one follows from it.

    Args:
        simulate: whether the simulator looks at chosen steps, at all of them or at none.
    """
    task, limit, flagged = known_task(rows), time_limit(rows), rows.flagged
    observations, actions = rows.observations, rows.actions
    robot = robot_of(task)
    scores = step_scores(observations, actions, robot)
    finite = np.isfinite(scores)
    initial = looks_initial(robot, observations) if robot else np.zeros(len(observations), bool)
    ordinary = np.flatnonzero(finite & (scores < 2) & ~_near(flagged)[:-1] & ~initial[1:])
    likely = _by_score(scores, initial, flagged) if robot else by_flags(scores, rows.terminals, rows.timeouts, limit)

    def call_judge() -> Judge | None:
        if robot is None or task is None or simulate == "off" or not len(ordinary):
            return None
        judge = Judge(task, observations, actions, scores, ordinary)
        return judge if judge.is_usable else None

    judge, follows = None, likely
    method: Method = "statistics"
    if rows.continues is not None:
        follows, method = np.where(finite, rows.continues, UNKNOWN).astype(np.int8), "next_observations"
    elif judge := call_judge():
        chosen = finite.copy()
        if simulate == "auto" and robot is not None:
            chosen &= _worth_a_look(scores, initial, flagged, robot)
        follows, method = np.where(finite, FOLLOWS, UNKNOWN).astype(np.int8), "simulator"
        follows = _look(judge, follows, np.flatnonzero(chosen), otherwise=likely, progress=progress)
    doubtful = np.flatnonzero(finite & _too_long(follows, flagged, limit))
    if len(doubtful) and simulate != "all" and (judge := judge or call_judge()):
        follows = _look(judge, follows, doubtful, otherwise=follows, progress=progress)
    return Evidence(follows, method, judge)


def _look(
    judge: Judge, follows: np.ndarray, rows: np.ndarray, *, otherwise: np.ndarray, progress: Progress
) -> np.ndarray:
    """Return what is known of all steps, int8 [N - 1], after a look at some; `otherwise` is for those left unclear."""
    verdicts = judge.verdicts(rows, progress)
    follows = follows.copy()
    follows[rows] = np.where(verdicts == UNKNOWN, otherwise[rows], verdicts)
    return follows


def _worth_a_look(scores: np.ndarray, initial: np.ndarray, flagged: np.ndarray, robot: Robot) -> np.ndarray:
    """Return which steps may be breaks, generously: bool [N - 1].

    Args:
        scores: [N - 1].
        initial: bool [N], rows that episodes may begin with.
        flagged: bool [N], rows that a flag ends.
        robot: says how many of the others, by their score.
    """
    known = np.nan_to_num(scores, nan=-np.inf)
    enters = initial[1:] & (~initial[:-1] | (known > 0))
    chosen: np.ndarray = enters | _near(flagged)[:-1] | flagged[1:] | (known >= SUSPICIOUS_SCORE)
    others = np.flatnonzero(~chosen)
    num_looks = min(len(others), max(int(robot.unlikely_share * len(others)), LEAST_LOOKS))
    blocks = np.array_split(known, max(1, len(known) // NEIGHBOURHOOD))
    local = known - np.concatenate([np.full(len(block), np.median(block)) for block in blocks])
    for unlikely, count in ((known, num_looks), (local, int(LOCALLY_UNLIKELY * num_looks))):
        if count:
            chosen[others[np.argpartition(unlikely[others], -count)[-count:]]] = True
    return chosen


# --- statistics of the steps ---


def _by_score(scores: np.ndarray, initial: np.ndarray, flagged: np.ndarray) -> np.ndarray:
    """Return FOLLOWS, BREAK or UNKNOWN for the steps of a known robot, int8 [N - 1].

    A step to an initial state is a break if it is at all unusual, any other step if it is very unusual. What is unclear
    is UNKNOWN, so that flags decide; where episodes begin as they should, other flags are wrong.

    Args:
        scores: [N - 1], from `step_scores`.
        initial: bool [N], rows that episodes may begin with.
        flagged: bool [N], rows that a flag ends.
    """
    finite = np.isfinite(scores)
    known = np.nan_to_num(scores, nan=0.0)
    ordinary = known[finite & ~_near(flagged)[:-1] & ~initial[1:]]
    certain = CERTAIN_SCORE
    if len(ordinary):
        certain = min(certain, float(np.quantile(ordinary, 0.999)) + MARGIN)
    breaks = (known >= certain) | (initial[1:] & (known >= RESET_SCORE))
    unclear = flagged[:-1] & (known >= 2) & (not initial.any())
    verdicts = np.where(breaks, BREAK, np.where(unclear, UNKNOWN, FOLLOWS)).astype(np.int8)
    verdicts[~finite] = UNKNOWN
    return verdicts


def by_flags(scores: np.ndarray, terminals: np.ndarray, timeouts: np.ndarray | None, limit: int | None) -> np.ndarray:
    """Return FOLLOWS, BREAK or UNKNOWN for the steps of a robot of which nothing is known, int8 [N - 1].

    Its resets need not be unusual steps, nor its unusual steps resets. So flags are believed, and scores only say
    whether all terminals are one row off, and where stretches break that are longer than an episode can be; that is at
    the time limit if those steps are unusual.

    Args:
        scores: [N - 1], from `step_scores`.
        terminals: bool [N].
        timeouts: bool [N] or None.
        limit: steps after which an episode ends, if that is known.
    """
    flagged = terminals if timeouts is None else terminals | timeouts
    known = np.nan_to_num(scores, nan=0.0)
    verdicts = np.where(flagged[:-1] | ~np.isfinite(scores), UNKNOWN, FOLLOWS).astype(np.int8)
    rows = np.flatnonzero(terminals[1:-2]) + 1
    for shift in (-1, 1):  # late, early
        beside, at = known[rows + shift], known[rows]
        if len(rows) > 2 and np.median(beside) > 3 and np.median(beside - at) > SHIFT_SCORE:
            verdicts[rows] = FOLLOWS
            verdicts[rows + shift] = BREAK
            break
    if limit is None:
        return verdicts if timeouts is not None and timeouts.any() else _with_breaks(verdicts, known)
    starts, ends = _long_stretches(verdicts, flagged, limit)
    cuts = [np.arange(start + limit - 1, end, limit) for start, end in zip(starts, ends, strict=True)]
    if not cuts or np.mean(known[np.concatenate(cuts)] >= RESET_SCORE) >= AGREEMENT:
        return verdicts  # whoever cuts at the limit will be right
    return _with_breaks(verdicts, np.where(_too_long(verdicts, flagged, limit), known, 0.0))


def _with_breaks(verdicts: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return verdicts with a BREAK at every very unusual step that no flag marks."""
    return np.where((scores >= CERTAIN_SCORE_UNKNOWN_ROBOT) & (verdicts == FOLLOWS), BREAK, verdicts).astype(np.int8)


def _long_stretches(verdicts: np.ndarray, flagged: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last row of stretches that are longer than an episode can be, int [n] each."""
    ends = np.flatnonzero(np.append((verdicts == BREAK) | ((verdicts == UNKNOWN) & flagged[:-1]), True))
    starts = np.concatenate([[0], ends[:-1] + 1])
    is_long = ends - starts + 1 > (limit or np.inf)
    return starts[is_long], ends[is_long]


def _too_long(verdicts: np.ndarray, flagged: np.ndarray, limit: int | None) -> np.ndarray:
    """Return which steps are in such stretches, bool [N - 1]."""
    inside = np.zeros(len(flagged), bool)
    for start, end in zip(*_long_stretches(verdicts, flagged, limit), strict=True):
        inside[start:end] = True
    return inside[:-1]


def _near(flags: np.ndarray) -> np.ndarray:
    """Return flags [N] with the rows before and after each."""
    spread = flags.copy()
    spread[1:] |= flags[:-1]
    spread[:-1] |= flags[1:]
    return spread


def step_scores(observations: np.ndarray, actions: np.ndarray, robot: Robot | None) -> np.ndarray:
    """Score how unlike the others each step to the next row is: float64 [N - 1], NaN where a value is not finite.

    A linear model predicts the change of each column; it is fitted to the bulk of the steps, so that breaks in the
    stream do not matter. The score is the residual in the residual's own median, put on a logarithmic scale of robust
    standard deviations: 0 is typical, 3 is one of the rare steps (an impact, a break), 6 is nearly always a break.

    For a known robot the changes of its joints are predicted from the velocities before and after, which every step
    must obey and a break has no reason to; else the changes of all columns from the row.
    """
    num_steps = len(observations) - 1
    if num_steps < 1:
        return np.zeros(0)
    columns = slice(robot.num_columns) if robot else _lively_columns(observations)
    observations = observations[:, columns]
    sample = np.unique(np.linspace(0, num_steps - 1, min(num_steps, FIT_ROWS)).astype(np.int64))
    inputs, changes, valid = _step_features(observations, actions, sample, robot)
    usable = np.isfinite(inputs).all(axis=1) & np.isfinite(changes).all(axis=1)
    whole = usable & valid.all(axis=1)
    if whole.sum() < 2 * inputs.shape[1]:
        whole = usable
    if not whole.any():
        return np.full(num_steps, np.nan)
    weights, spread = _fit_bulk(inputs[whole], changes[whole])
    scores = np.empty(num_steps)
    for start in range(0, num_steps, CHUNK):
        rows = np.arange(start, min(start + CHUNK, num_steps))
        inputs, changes, valid = _step_features(observations, actions, rows, robot)
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.minimum(((changes - inputs @ weights) / spread) ** 2, 1e12)
        squares[~valid & np.isfinite(squares)] = 0.0
        scores[rows] = squares.sum(axis=1) / np.maximum(valid.sum(axis=1), 1)
    return _standardised(scores)


def _lively_columns(observations: np.ndarray) -> np.ndarray:
    """Return the columns of observations [N, S] that move nearly always, at most 64; contact forces do not."""
    start = np.unique(np.linspace(0, len(observations) - 2, 2000).astype(np.int64))
    changes = np.nan_to_num(np.abs(observations[start + 1].astype(np.float64) - observations[start]))
    lively = np.median(changes, axis=0) > 0.1 * changes.mean(axis=0)
    return np.flatnonzero(lively)[:64] if lively.any() else np.arange(min(observations.shape[1], 64))


def _step_features(
    observations: np.ndarray, actions: np.ndarray, rows: np.ndarray, robot: Robot | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the inputs [n, F], the changes to predict [n, C], and which changes can be predicted, bool [n, C]."""
    before, after = observations[rows], observations[rows + 1]
    ones = np.ones((len(rows), 1))
    if robot is None:
        changes = after.astype(np.float64) - before
        return np.concatenate([before, actions[rows], ones], axis=1), changes, np.ones(changes.shape, bool)
    positions, velocities = robot.pairs
    first, second = before[:, velocities], after[:, velocities]
    inputs = np.concatenate([first, second, actions[rows], before[:, positions], ones], axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        valid = np.maximum(np.abs(first), np.abs(second)) < robot.velocity_limit  # clipped ones say too little
    return inputs, after[:, positions].astype(np.float64) - before[:, positions], valid


def _fit_bulk(inputs: np.ndarray, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit changes [n, C] linearly to inputs [n, F] but the worst twentieth; return weights and typical residuals."""
    kept = np.ones(len(inputs), bool)
    floor = 1e-9 + 1e-6 * np.abs(changes).mean(axis=0)
    for _ in range(3):
        gram = inputs[kept].T @ inputs[kept]
        gram += 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))  # a column may be constant
        weights = np.linalg.solve(gram, inputs[kept].T @ changes[kept])
        residuals = np.abs(changes - inputs @ weights)
        spread = np.median(residuals, axis=0) + floor
        badness = np.minimum((residuals / spread) ** 2, 1e12).mean(axis=1)
        kept = badness <= np.quantile(badness, 0.95)
    return weights, spread


def _standardised(squares: np.ndarray) -> np.ndarray:
    """Return positive numbers on a logarithmic scale with median 0 and robust standard deviation 1; NaN stays."""
    logarithms = np.log(squares + 1e-12)
    finite = logarithms[np.isfinite(logarithms)]
    if not len(finite):
        return logarithms
    median = np.median(finite)
    deviation = 1.4826 * np.median(np.abs(finite - median))
    scores: np.ndarray = (logarithms - median) / max(float(deviation), 1e-6)
    return scores

"""Find where episodes begin and end in a stream of rows, whatever its flags say.

Three witnesses, the best one there is: stored next observations; the simulator, which is put into a row's state and
asked whether the next row follows; statistics of the steps, which any data have. Statistics also choose the rows that
the simulator looks at: all unlikely steps, all that lead to an initial state, all near a flag.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gq.data.motion import Robot, looks_initial, robot_of, step_scores

if TYPE_CHECKING:
    from gq.envs.transitions import Replayed

Simulate = Literal["auto", "all", "off"]
Progress = Callable[[int, int | None], None]
BREAK, FOLLOWS, UNKNOWN = 0, 1, -1
LEAST_LOOKS = 4_000  # steps that the simulator looks at at least, or all there are
SUSPICIOUS_SCORE = 6.0  # from which on it looks at all
LOCALLY_UNLIKELY = 0.25  # of as many again, by how far the score is above that of the neighbourhood
NEIGHBOURHOOD = 256  # steps
CALIBRATION_ROWS = 200
LEAST_TOLERANCE, LARGEST_TOLERANCE = (
    0.02,
    2.0,
)  # typical steps; measured: a step that follows 0.004, a reset 2.3 or more
# Shares of the distance from a row to its next that the simulator may be off. Impacts can amplify rounding: measured
# up to 0.03, twice in 640,000 steps; and 0.5 with other gravity, friction, damping and gears. A break has 0.8 or more,
# if it is not between states that are nearly the same.
SAME_PHYSICS_SHARE, OTHER_PHYSICS_SHARE = 0.08, 0.35
SEARCHED_ERROR, SEARCHED_SCORE = 1.0, 3.0  # together, for a break where hidden velocities had to be found
RESET_SCORE = 2.5  # for a step to an initial state
CERTAIN_SCORE, CERTAIN_SCORE_UNKNOWN_ROBOT = 8.0, 5.0  # for any step, without a simulator
MARGIN = 2.75  # above the rarest ordinary steps


@dataclass(frozen=True)
class Evidence:
    """Whether each row's next one follows from it."""

    follows: np.ndarray  # int8 [N - 1]: FOLLOWS, BREAK or UNKNOWN
    method: Literal["next_observations", "simulator", "statistics"]
    num_replayed: int = 0  # steps that the simulator judged
    physics: str | None = None  # the task whose simulator reproduces the data


class Judge:
    """The simulator as a witness: how closely it reproduces ordinary steps decides what counts as a break."""

    def __init__(
        self, task: str, observations: np.ndarray, actions: np.ndarray, scores: np.ndarray, ordinary: np.ndarray
    ) -> None:
        """Calibrate on `ordinary`, int rows of steps that are likely to be good; `scores` [N - 1] are of all steps."""
        self.observations, self.actions, self.scores = observations, actions, scores
        self.robot = robot_of(task)
        assert self.robot is not None
        self.scales = typical_steps(observations[:, : self.robot.num_columns])
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

    def replay(self, rows: np.ndarray, physics: str | None = None, progress: Progress | None = None) -> "Replayed":
        """Replay rows in the simulator of the task or of another one."""
        from gq.envs.transitions import replay_transitions

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
        return np.sqrt(np.mean(steps * steps, axis=1))

    def predicted(self, rows: np.ndarray) -> np.ndarray:
        """Return the states that follow rows, float32 [n, W]; NaN where the simulator cannot tell."""
        return self.replay(rows).predicted


def typical_steps(states: np.ndarray) -> np.ndarray:
    """Return how far each column of [N, W] moves in a typical step, float64 [W], never 0."""
    rows = np.unique(np.linspace(0, len(states) - 2, 20_000).astype(np.int64))
    steps = np.abs(states[rows + 1].astype(np.float64) - states[rows])
    finite = np.where(np.isfinite(steps), steps, np.nan)
    median, mean = np.nanmedian(finite, axis=0), np.nanmean(finite, axis=0)
    return np.nan_to_num(np.maximum(median, 0.1 * mean)) + 1e-6


def examine(
    observations: np.ndarray,
    actions: np.ndarray,
    *,
    task: str | None,
    flagged: np.ndarray,
    continues: np.ndarray | None = None,
    simulate: Simulate = "auto",
    progress: Progress = lambda done, total: None,
) -> tuple[Evidence, Judge | None]:
    """Tell for each row whether the next one follows from it.

    Args:
        observations: [N, S].
        actions: [N, A] in the environment's units.
        task: its robot's name tells what is known of it; None: nothing is.
        flagged: bool [N], True where any flag says that an episode ends.
        continues: bool [N - 1], whether the stored next observation is the next row's; None where the file has none.
        simulate: whether the simulator looks at chosen steps, at all of them or at none.

    Returns:
        The evidence, and the simulator as a witness where it was heard.
    """
    robot = robot_of(task)
    if robot is not None and observations.shape[1] < robot.num_columns:
        robot = None
    scores = step_scores(observations, actions, robot)
    finite = np.isfinite(scores)
    initial = looks_initial(robot, observations) if robot else np.zeros(len(observations), bool)
    if continues is not None:
        follows = np.where(finite, continues, UNKNOWN).astype(np.int8)
        return Evidence(follows, "next_observations"), None
    by_score = judge_by_score(scores, initial, flagged, robot)
    if robot is None or task is None or simulate == "off" or len(scores) < 2 or not finite.any():
        return Evidence(by_score, "statistics"), None
    ordinary = np.flatnonzero(finite & (scores < 2) & ~near(flagged)[:-1] & ~initial[1:])
    judge = Judge(task, observations, actions, scores, ordinary)
    if not judge.is_usable:
        return Evidence(by_score, "statistics"), None
    rows = np.flatnonzero(finite if simulate == "all" else finite & worth_a_look(scores, initial, flagged, robot.unlikely_share))
    verdicts = judge.verdicts(rows, progress)
    follows = np.where(finite, FOLLOWS, UNKNOWN).astype(np.int8)
    follows[rows] = np.where(verdicts == UNKNOWN, by_score[rows], verdicts)
    return Evidence(follows, "simulator", judge.num_replayed, judge.task), judge


def near(flags: np.ndarray) -> np.ndarray:
    """Return flags [N] with the rows before and after each."""
    spread = flags.copy()
    spread[1:] |= flags[:-1]
    spread[:-1] |= flags[1:]
    return spread


def worth_a_look(scores: np.ndarray, initial: np.ndarray, flagged: np.ndarray, share: float) -> np.ndarray:
    """Return which steps may be breaks, generously: bool [N - 1].

    Args:
        scores: [N - 1].
        initial: bool [N], rows that episodes may begin with.
        flagged: bool [N], rows that a flag ends.
        share: of the steps that neither a flag nor an initial state makes suspicious, how many by their score.
    """
    known = np.nan_to_num(scores, nan=-np.inf)
    enters = initial[1:] & (~initial[:-1] | (known > 0))
    chosen = enters | near(flagged)[:-1] | flagged[1:] | (known >= SUSPICIOUS_SCORE)
    others = np.flatnonzero(~chosen)
    num_looks = min(len(others), max(int(share * len(others)), LEAST_LOOKS))
    blocks = np.array_split(known, max(1, len(known) // NEIGHBOURHOOD))
    local = known - np.concatenate([np.full(len(block), np.median(block)) for block in blocks])
    for unlikely, count in ((known, num_looks), (local, int(LOCALLY_UNLIKELY * num_looks))):
        if count:
            chosen[others[np.argpartition(unlikely[others], -count)[-count:]]] = True
    return chosen


def judge_by_score(scores: np.ndarray, initial: np.ndarray, flagged: np.ndarray, robot: Robot | None) -> np.ndarray:
    """Return FOLLOWS, BREAK or UNKNOWN for steps by their scores alone, int8 [N - 1].

    A step to an initial state is a break if it is at all unusual. What is unclear is UNKNOWN, so that flags decide.
    """
    finite = np.isfinite(scores)
    known = np.nan_to_num(scores, nan=0.0)
    breaks = finite & (
        (known >= certain_score(scores, initial, flagged, robot)) | (initial[1:] & (known >= RESET_SCORE))
    )
    if robot is None:
        unclear = flagged[:-1]  # a reset need not be unusual
    elif initial.any():
        unclear = np.zeros(len(scores), bool)  # episodes begin where they should, so other flags are wrong
    else:
        unclear = flagged[:-1] & (known >= 2)
    verdict = np.where(breaks, BREAK, np.where(unclear, UNKNOWN, FOLLOWS)).astype(np.int8)
    verdict[~finite] = UNKNOWN
    # A flag beside a break that has none of its own is that break's: it was shifted.
    lonely = np.flatnonzero(breaks & ~flagged[:-1])
    for neighbour in (lonely - 1, lonely + 1):
        inside = neighbour[(neighbour >= 0) & (neighbour < len(verdict))]
        verdict[inside[verdict[inside] == UNKNOWN]] = FOLLOWS
    return verdict


def certain_score(scores: np.ndarray, initial: np.ndarray, flagged: np.ndarray, robot: Robot | None) -> float:
    """Return the score from which on a step is a break without further signs: well above the rarest ordinary ones."""
    if robot is None:
        return CERTAIN_SCORE_UNKNOWN_ROBOT
    ordinary = scores[np.isfinite(scores) & ~near(flagged)[:-1] & ~initial[1:]]
    return min(CERTAIN_SCORE, float(np.quantile(ordinary, 0.999)) + MARGIN) if len(ordinary) else CERTAIN_SCORE

"""Find where episodes begin and end in a stream of rows, whatever its flags say.

Three witnesses, the best one there is: stored next observations; the simulator, which is put into a row's state and
asked whether the next row follows; statistics of the steps, which any data have. Statistics also choose the rows that
the simulator looks at: all unlikely steps, all that lead to an initial state, all near a flag.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gq.repair.motion import Robot, looks_initial, robot_of, step_scores
from gq.repair.verdicts import FOLLOWS, UNKNOWN, by_flags, by_score, near, too_long

if TYPE_CHECKING:
    from gq.repair.judge import Judge

Method = Literal["next_observations", "simulator", "statistics"]
Simulate = Literal["auto", "all", "off"]
Progress = Callable[[int, int | None], None]
LEAST_LOOKS = 4_000  # steps that the simulator looks at at least, or all there are
SUSPICIOUS_SCORE = 6.0  # from which on it looks at all
LOCALLY_UNLIKELY = 0.25  # of as many again, by how far the score is above that of the neighbourhood
NEIGHBOURHOOD = 256  # steps


@dataclass(frozen=True)
class Evidence:
    """Whether each row's next one follows from it, and who says so."""

    follows: np.ndarray  # int8 [N - 1]: FOLLOWS, BREAK or UNKNOWN
    method: Method
    judge: "Judge | None" = None  # the simulator, where it was heard

    @property
    def num_replayed(self) -> int:
        """Steps that the simulator looked at."""
        return self.judge.num_replayed if self.judge else 0

    @property
    def physics(self) -> str | None:
        """The task whose simulator reproduces the data."""
        return self.judge.task if self.judge else None


def examine(
    observations: np.ndarray,
    actions: np.ndarray,
    *,
    task: str | None,
    limit: int | None,
    terminals: np.ndarray,
    timeouts: np.ndarray | None,
    continues: np.ndarray | None = None,
    simulate: Simulate = "auto",
    progress: Progress = lambda done, total: None,
) -> Evidence:
    """Tell for each row whether the next one follows from it.

    Args:
        observations: [N, S].
        actions: [N, A] in the environment's units.
        task: its robot's name tells what is known of it; None: nothing is.
        limit: steps after which an episode ends; longer stretches are looked at more closely.
        terminals: bool [N], as stored.
        timeouts: bool [N], as stored, or None.
        continues: bool [N - 1], whether the stored next observation is the next row's; None where the file has none.
        simulate: whether the simulator looks at chosen steps, at all of them or at none.
    """
    robot = robot_of(task)
    flagged = terminals if timeouts is None else terminals | timeouts
    scores = step_scores(observations, actions, robot)
    finite = np.isfinite(scores)
    initial = looks_initial(robot, observations) if robot else np.zeros(len(observations), bool)
    ordinary = np.flatnonzero(finite & (scores < 2) & ~near(flagged)[:-1] & ~initial[1:])
    likely = by_score(scores, initial, flagged) if robot else by_flags(scores, terminals, timeouts, limit)

    def call_judge() -> "Judge | None":
        if robot is None or task is None or simulate == "off" or not len(ordinary):
            return None
        from gq.repair.judge import Judge

        judge = Judge(task, observations, actions, scores, ordinary)
        return judge if judge.is_usable else None

    judge, follows = None, likely
    method: Method = "statistics"
    if continues is not None:
        follows, method = np.where(finite, continues, UNKNOWN).astype(np.int8), "next_observations"
    elif judge := call_judge():
        chosen = finite.copy()
        if simulate == "auto" and robot is not None:
            chosen &= worth_a_look(scores, initial, flagged, robot)
        follows, method = np.where(finite, FOLLOWS, UNKNOWN).astype(np.int8), "simulator"
        follows = look(judge, follows, np.flatnonzero(chosen), otherwise=likely, progress=progress)
    rows = np.flatnonzero(finite & too_long(follows, flagged, limit))
    if len(rows) and simulate != "all" and (judge := judge or call_judge()):
        follows = look(judge, follows, rows, otherwise=follows, progress=progress)
    return Evidence(follows, method, judge)


def look(
    judge: "Judge", follows: np.ndarray, rows: np.ndarray, *, otherwise: np.ndarray, progress: Progress
) -> np.ndarray:
    """Return what is known of all steps, int8 [N - 1], after a look at some; `otherwise` is for those left unclear."""
    verdicts = judge.verdicts(rows, progress)
    follows = follows.copy()
    follows[rows] = np.where(verdicts == UNKNOWN, otherwise[rows], verdicts)
    return follows


def worth_a_look(scores: np.ndarray, initial: np.ndarray, flagged: np.ndarray, robot: Robot) -> np.ndarray:
    """Return which steps may be breaks, generously: bool [N - 1].

    Args:
        scores: [N - 1].
        initial: bool [N], rows that episodes may begin with.
        flagged: bool [N], rows that a flag ends.
        robot: says how many of the others, by their score.
    """
    known = np.nan_to_num(scores, nan=-np.inf)
    enters = initial[1:] & (~initial[:-1] | (known > 0))
    chosen: np.ndarray = enters | near(flagged)[:-1] | flagged[1:] | (known >= SUSPICIOUS_SCORE)
    others = np.flatnonzero(~chosen)
    num_looks = min(len(others), max(int(robot.unlikely_share * len(others)), LEAST_LOOKS))
    blocks = np.array_split(known, max(1, len(known) // NEIGHBOURHOOD))
    local = known - np.concatenate([np.full(len(block), np.median(block)) for block in blocks])
    for unlikely, count in ((known, num_looks), (local, int(LOCALLY_UNLIKELY * num_looks))):
        if count:
            chosen[others[np.argpartition(unlikely[others], -count)[-count:]]] = True
    return chosen

"""Cut a stream of rows into episodes and fragments, and say which flags were right."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gq.repair.boundaries import BREAK, UNKNOWN

CUT, TERMINAL, LIMIT, MARKED = 0, 1, 2, 3  # how a piece ends: not at all, by itself, at the limit, by a flag alone


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The K pieces of a stream of N rows; piece k is rows offsets[k] to offsets[k + 1]."""

    offsets: np.ndarray  # int64 [K + 1]
    kinds: np.ndarray  # int8 [K]: CUT, TERMINAL, LIMIT or MARKED
    inside: np.ndarray  # bool [K]: it begins in mid-episode
    limit: int | None  # steps after which an episode is cut; the data's own longest where the task is not known
    # Rows, int [n], that findings name:
    late: np.ndarray  # terminals on the first row of the episode after theirs
    early: np.ndarray  # terminals on the last row but one
    stray: np.ndarray  # terminals after which the episode continues
    lost_terminals: np.ndarray  # ends that the physics say were terminal, without a terminal
    limit_terminals: np.ndarray  # terminals that mark the time limit
    unmarked: np.ndarray  # other ends, without any flag
    misplaced_timeouts: np.ndarray  # timeouts that are at no time limit

    @property
    def terminals(self) -> np.ndarray:
        """Which pieces ended by themselves, bool [K]."""
        terminals: np.ndarray = self.kinds == TERMINAL
        return terminals

    @property
    def complete(self) -> np.ndarray:
        """Which pieces have their end, bool [K]."""
        complete: np.ndarray = self.kinds != CUT
        return complete

    @property
    def whole(self) -> np.ndarray:
        """Which pieces are whole episodes, bool [K]; the others are fragments."""
        whole: np.ndarray = self.complete & ~self.inside
        return whole

    @property
    def ends(self) -> np.ndarray:
        """The last row of each piece, int64 [K]."""
        return self.offsets[1:] - 1


@dataclass(frozen=True)
class Physics:
    """What is known of the environment."""

    limit: int | None  # steps after which an episode ends, or None where the task is not known
    ends_by_itself: Callable[[np.ndarray], np.ndarray]  # for rows: whether the step from there ends an episode, int8
    initial: np.ndarray | None = None  # bool [N], whether episodes begin with such an observation; None: not known
    fallen: np.ndarray | None = None  # bool [N], whether an episode ends on reaching an observation; None: not known
    is_standard: bool = False  # the data are known to come from the task's own environment, so that `initial` holds


def cut(follows: np.ndarray, terminals: np.ndarray, timeouts: np.ndarray | None, physics: Physics) -> Segments:
    """Cut N rows where the stream breaks and, in pieces that are too long, at the time limit.

    The limit's steps are counted from each episode's own first row: the loops of older readers start every count but
    the first one too high, and cut 1000 steps to 999. What has exactly the limit's length and no terminal counts as cut
    by it, as in D4RL.

    Args:
        follows: int8 [N - 1], whether each row's next one follows from it; where that is UNKNOWN, flags decide.
        terminals: bool [N], as stored.
        timeouts: bool [N], as stored, or None.
    """
    # Where the stream ends, and which ends have a terminal, once shifted ones are put back.
    marked = np.zeros(len(terminals), bool) if timeouts is None else timeouts
    is_end = np.append((follows == BREAK) | ((follows == UNKNOWN) & (terminals | marked)[:-1]), True)
    late, early, stray = _misplaced_terminals(is_end, terminals)
    has_terminal = terminals & is_end
    has_terminal[late] = False
    has_terminal[np.concatenate([late - 1, early + 1])] = True

    # Pieces, none longer than the limit.
    breaks = np.flatnonzero(is_end)
    limit = physics.limit or _common_longest(np.diff(breaks, prepend=-1), has_terminal[breaks])
    ends = _cut_at_limit(breaks, limit)
    offsets = np.concatenate([[0], ends + 1]).astype(np.int64)
    at_limit = np.diff(offsets) == (limit or -1)

    # How each piece ends by its terminal and length, and which pieces lack their beginning.
    kinds = np.where(has_terminal[ends], TERMINAL, np.where(at_limit, LIMIT, CUT)).astype(np.int8)
    was_reset = (kinds == TERMINAL) | (at_limit & is_end[ends])
    inside = begins_inside(physics, offsets, after_reset=np.append(False, was_reset[:-1])) & ~at_limit

    # The physics decide the two unclear cases: a terminal at the limit, and an end with neither.
    doubtful = np.flatnonzero((kinds == TERMINAL) == at_limit)
    answers = np.full(len(ends), UNKNOWN, np.int8)
    answers[doubtful] = physics.ends_by_itself(ends[doubtful])
    fell = (kinds == CUT) & (answers == 1) & ~_went_on(physics.fallen, offsets)
    only_limit = (kinds == TERMINAL) & at_limit & (answers == 0)
    kinds[fell], kinds[only_limit] = TERMINAL, LIMIT

    # What timeouts say: they are believed where no limit is known, and else compared with what was found.
    has_timeout = marked[ends]
    if limit is None:
        kinds[(kinds == CUT) & has_timeout] = MARKED
    is_last = ends == len(terminals) - 1
    is_open_end = (kinds == CUT) & is_last
    unmarked = (kinds != TERMINAL) & ~only_limit & ~has_timeout & ~is_open_end
    may_be_marked = np.zeros(len(terminals), bool)
    may_be_marked[ends[(kinds != CUT) | inside | is_last]] = True
    return Segments(
        offsets=offsets,
        kinds=kinds,
        inside=inside,
        limit=limit,
        late=late,
        early=early,
        stray=stray,
        lost_terminals=ends[fell],
        limit_terminals=ends[only_limit],
        unmarked=ends[unmarked],
        misplaced_timeouts=np.flatnonzero(marked & ~may_be_marked),
    )


def _misplaced_terminals(is_end: np.ndarray, terminals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return terminals that are not on an end: one row late, one row early and others, int [n] each.

    Where most are late, one on an end is too if the row before is an end without one: an episode of a single row.
    """
    rows = np.flatnonzero(terminals)
    free = is_end & ~terminals  # ends that a shifted terminal may belong to
    after_end = (rows > 0) & free[rows - 1]
    is_late = after_end & ~is_end[rows]
    if 2 * is_late.sum() > len(rows):
        is_late = after_end
    rest = rows[~is_late & ~is_end[rows]]
    before_end = rest[rest + 1 < len(is_end)]
    early = before_end[free[before_end + 1]]
    return rows[is_late], early, np.setdiff1d(rest, early)


def _common_longest(lengths: np.ndarray, is_terminal: np.ndarray) -> int | None:
    """Return the length of the longest pieces if it is a limit: of two at least, and of most that are not terminal.

    Else they are as long by chance, and what a file marks as timeouts may vary in length.
    """
    longest = int(lengths.max())
    cut_lengths = lengths[~is_terminal]
    num_longest = int((cut_lengths == longest).sum())
    return longest if num_longest > 1 and 2 * num_longest > len(cut_lengths) else None


def _cut_at_limit(ends: np.ndarray, limit: int | None) -> np.ndarray:
    """Return the ends, int [K], with more of them where a piece is longer than the limit."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    if limit is None or (ends - starts < limit).all():
        return ends
    cuts = [np.arange(start + limit - 1, end, limit) for start, end in zip(starts, ends, strict=True)]
    return np.sort(np.concatenate([ends, *cuts]))


def begins_inside(physics: Physics, offsets: np.ndarray, *, after_reset: np.ndarray | None = None) -> np.ndarray:
    """Return which pieces begin in mid-episode, bool [K].

    If none of several pieces begins like the task's episodes, resets may put this environment elsewhere; then nothing
    is said unless the environment is known and most pieces do not come after a reset.

    Args:
        after_reset: bool [K], pieces before which an episode ended by itself or at the time limit; None: no such.
    """
    starts = offsets[:-1]
    num_resets = 0 if after_reset is None else int(after_reset.sum())
    resets_differ = not physics.is_standard or 2 * num_resets > len(starts) - 1
    initial = physics.initial
    if initial is None or (len(starts) > 2 and resets_differ and not initial[starts].any()):
        return np.zeros(len(starts), bool)
    inside: np.ndarray = ~initial[starts]
    return inside


def _went_on(fallen: np.ndarray | None, offsets: np.ndarray) -> np.ndarray:
    """Return in which pieces a step led to the last row although an episode ends there, bool [K].

    Their environment does not end episodes so (`terminate_when_unhealthy=False`).
    """
    if fallen is None:
        return np.zeros(len(offsets) - 1, bool)
    there: np.ndarray = fallen[offsets[1:] - 1] & (np.diff(offsets) > 1)
    return there

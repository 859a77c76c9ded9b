"""Cut a stream of rows into episodes and fragments, and say which flags were right."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gq.repair.boundaries import BREAK, UNKNOWN


@dataclass(frozen=True)
class Segments:
    """The K pieces of a stream of N rows; piece k is rows offsets[k] to offsets[k + 1]."""

    offsets: np.ndarray  # int64 [K + 1]
    terminals: np.ndarray  # bool [K]: it ended by itself
    complete: np.ndarray  # bool [K]: it ended by itself or at the time limit
    inside: np.ndarray  # bool [K]: it begins in mid-episode
    limit: int | None  # steps after which an episode is cut; the data's own longest where the task is not known
    # Rows, int [n], that findings name:
    late: np.ndarray  # terminals on the first row of the episode after theirs
    early: np.ndarray  # terminals on the last row but one
    stray: np.ndarray  # terminals after which the episode goes on
    lost_terminals: np.ndarray  # ends that the physics say were terminal, without a terminal
    limit_terminals: np.ndarray  # terminals that mark the time limit
    unmarked: np.ndarray  # other ends, without any flag
    misplaced_timeouts: np.ndarray  # timeouts that are at no time limit

    @property
    def whole(self) -> np.ndarray:
        """Which pieces are whole episodes, bool [K]; the others are fragments."""
        whole: np.ndarray = self.complete & ~self.inside
        return whole

    @property
    def ends(self) -> np.ndarray:
        """The last row of each piece, int64 [K]."""
        return self.offsets[1:] - 1


def cut(
    follows: np.ndarray,
    terminals: np.ndarray,
    timeouts: np.ndarray | None,
    *,
    limit: int | None,
    initial: np.ndarray | None,
    is_standard: bool = False,
    fallen: np.ndarray | None = None,
    ends_by_itself: Callable[[np.ndarray], np.ndarray],
) -> Segments:
    """Cut N rows where the stream breaks and, in pieces that are too long, at the time limit.

    The limit's steps are counted from each episode's own first row: the loops of older readers start every count but
    the first one too high, and cut 1000 steps to 999. What has exactly the limit's length and no terminal counts as cut
    by it, as in D4RL.

    Args:
        follows: int8 [N - 1], whether each row's next one follows from it; where that is UNKNOWN, flags decide.
        terminals: bool [N], as stored.
        timeouts: bool [N], as stored, or None.
        limit: the task's, or None where the task is not known.
        initial: bool [N], whether an observation is one that episodes begin with, or None where that is not known.
        is_standard: whether the data are known to come from the task's own environment, so that `initial` holds.
        fallen: bool [N], whether an episode ends on reaching an observation, or None where that is not known.
        ends_by_itself: tells for rows whether the step from there ends an episode: int8 [n], 1, 0 or -1 not known.
    """
    num_rows = len(terminals)
    flagged = terminals if timeouts is None else terminals | timeouts
    is_end = np.ones(num_rows, bool)
    is_end[:-1] = (follows == BREAK) | ((follows == UNKNOWN) & flagged[:-1])
    late, early, stray = misplaced_terminals(is_end, terminals)
    own = terminals & is_end
    own[late] = False
    own[late - 1] = True
    own[early + 1] = True
    breaks = np.flatnonzero(is_end)
    limit = limit or common_longest(np.diff(breaks, prepend=-1), own[breaks])
    ends = cut_at_limit(breaks, limit)
    offsets = np.concatenate([[0], ends + 1]).astype(np.int64)
    at_limit = np.diff(offsets) == limit if limit else np.zeros(len(ends), bool)
    is_terminal = own[ends]
    after_reset = np.append(False, (is_terminal | (at_limit & is_end[ends]))[:-1])
    inside = begins_inside(initial, offsets, is_standard=is_standard, after_reset=after_reset) & ~at_limit

    asked = np.flatnonzero(is_terminal == at_limit)  # terminals at the limit, and other ends without one
    answers = np.full(len(ends), UNKNOWN, np.int8)
    answers[asked] = ends_by_itself(ends[asked])
    lost = ~is_terminal & ~at_limit & (answers == 1) & ~went_on(fallen, offsets)
    only_limit = is_terminal & at_limit & (answers == 0)
    is_terminal = (is_terminal | lost) & ~only_limit
    marked = np.zeros(num_rows, bool) if timeouts is None else timeouts
    trusted = marked[ends] if limit is None else np.zeros(len(ends), bool)
    is_last = ends == num_rows - 1
    unmarked = ~is_terminal & ~only_limit & ~marked[ends] & (at_limit | ~is_last)
    return Segments(
        offsets=offsets,
        terminals=is_terminal,
        complete=is_terminal | at_limit | trusted,
        inside=inside,
        limit=limit,
        late=late,
        early=early,
        stray=stray,
        lost_terminals=ends[lost],
        limit_terminals=ends[only_limit],
        unmarked=ends[unmarked],
        misplaced_timeouts=wrong_timeouts(marked, ends, right=is_terminal | at_limit | trusted | inside | is_last),
    )


def misplaced_terminals(is_end: np.ndarray, terminals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def common_longest(lengths: np.ndarray, is_terminal: np.ndarray) -> int | None:
    """Return the length of the longest pieces if it is a limit: of two at least, and of most that are not terminal.

    Else they are as long by chance, and what a file marks as timeouts may vary in length.
    """
    longest = int(lengths.max())
    cut_lengths = lengths[~is_terminal]
    num_longest = int((cut_lengths == longest).sum())
    return longest if num_longest > 1 and 2 * num_longest > len(cut_lengths) else None


def cut_at_limit(ends: np.ndarray, limit: int | None) -> np.ndarray:
    """Return the ends, int [K], with more of them where a piece is longer than the limit."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    if limit is None or (ends - starts < limit).all():
        return ends
    cuts = [np.arange(start + limit - 1, end, limit) for start, end in zip(starts, ends, strict=True)]
    return np.sort(np.concatenate([ends, *cuts]))


def begins_inside(
    initial: np.ndarray | None, offsets: np.ndarray, *, is_standard: bool, after_reset: np.ndarray | None = None
) -> np.ndarray:
    """Return which pieces begin in mid-episode, bool [K].

    If none of several pieces begins like the task's episodes, resets may put this environment elsewhere; then nothing
    is said unless the environment is known and most pieces do not come after a reset.

    Args:
        after_reset: bool [K], pieces before which an episode ended by itself or at the time limit; None: no such.
    """
    starts = offsets[:-1]
    num_resets = 0 if after_reset is None else int(after_reset.sum())
    resets_differ = not is_standard or 2 * num_resets > len(starts) - 1
    if initial is None or (len(starts) > 2 and resets_differ and not initial[starts].any()):
        return np.zeros(len(starts), bool)
    inside: np.ndarray = ~initial[starts]
    return inside


def went_on(fallen: np.ndarray | None, offsets: np.ndarray) -> np.ndarray:
    """Return in which pieces a step led to the last row although an episode ends there, bool [K].

    Their environment does not end episodes so (`terminate_when_unhealthy=False`).
    """
    if fallen is None:
        return np.zeros(len(offsets) - 1, bool)
    there: np.ndarray = fallen[offsets[1:] - 1] & (np.diff(offsets) > 1)
    return there


def wrong_timeouts(marked: np.ndarray, ends: np.ndarray, *, right: np.ndarray) -> np.ndarray:
    """Return the rows marked as timeouts, bool [N], but for the ends, int [K], for which that is right, bool [K]."""
    accepted = np.zeros(len(marked), bool)
    accepted[ends[right]] = True
    return np.flatnonzero(marked & ~accepted)

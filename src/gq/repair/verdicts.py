"""Judge steps by their scores and by the flags alone, where neither next observations nor the simulator tell."""

import numpy as np

BREAK, FOLLOWS, UNKNOWN = 0, 1, -1
RESET_SCORE = 2.5  # for a step to an initial state, or one at the time limit
CERTAIN_SCORE, CERTAIN_SCORE_UNKNOWN_ROBOT = 8.0, 5.0  # for any step
MARGIN = 2.75  # above the rarest ordinary steps
AGREEMENT = 0.9  # of the time limits, that must be unusual steps to be believed
SHIFT_SCORE = 2.0  # by which the steps beside the flags are more unusual than those at them


def by_score(scores: np.ndarray, initial: np.ndarray, flagged: np.ndarray) -> np.ndarray:
    """Return FOLLOWS, BREAK or UNKNOWN for the steps of a known robot, int8 [N - 1].

    A step to an initial state is a break if it is at all unusual, any other step if it is very unusual. What is unclear
    is UNKNOWN, so that flags decide; where episodes begin as they should, other flags are wrong.

    Args:
        scores: [N - 1], from `motion.step_scores`.
        initial: bool [N], rows that episodes may begin with.
        flagged: bool [N], rows that a flag ends.
    """
    finite = np.isfinite(scores)
    known = np.nan_to_num(scores, nan=0.0)
    ordinary = known[finite & ~near(flagged)[:-1] & ~initial[1:]]
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
        scores: [N - 1], from `motion.step_scores`.
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
        return verdicts if timeouts is not None and timeouts.any() else with_breaks(verdicts, known)
    starts, ends = long_stretches(verdicts, flagged, limit)
    cuts = [np.arange(start + limit - 1, end, limit) for start, end in zip(starts, ends, strict=True)]
    if not cuts or np.mean(known[np.concatenate(cuts)] >= RESET_SCORE) >= AGREEMENT:
        return verdicts  # whoever cuts at the limit will be right
    return with_breaks(verdicts, np.where(too_long(verdicts, flagged, limit), known, 0.0))


def with_breaks(verdicts: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return verdicts with a BREAK at every very unusual step that no flag marks."""
    return np.where((scores >= CERTAIN_SCORE_UNKNOWN_ROBOT) & (verdicts == FOLLOWS), BREAK, verdicts).astype(np.int8)


def long_stretches(verdicts: np.ndarray, flagged: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last row of stretches that are longer than an episode can be, int [n] each."""
    ends = np.flatnonzero(np.append((verdicts == BREAK) | ((verdicts == UNKNOWN) & flagged[:-1]), True))
    starts = np.concatenate([[0], ends[:-1] + 1])
    is_long = ends - starts + 1 > (limit or np.inf)
    return starts[is_long], ends[is_long]


def too_long(verdicts: np.ndarray, flagged: np.ndarray, limit: int | None) -> np.ndarray:
    """Return which steps are in such stretches, bool [N - 1]."""
    inside = np.zeros(len(flagged), bool)
    for start, end in zip(*long_stretches(verdicts, flagged, limit), strict=True):
        inside[start:end] = True
    return inside[:-1]


def near(flags: np.ndarray) -> np.ndarray:
    """Return flags [N] with the rows before and after each."""
    spread = flags.copy()
    spread[1:] |= flags[:-1]
    spread[:-1] |= flags[1:]
    return spread

"""Put what was found about the ends of episodes into words."""

import numpy as np

from gq.data.rows import Rows
from gq.repair.findings import Finding, at_rows, several
from gq.repair.segments import Segments


def boundary_findings(raw: Rows, segments: Segments, usable: np.ndarray) -> list[Finding]:
    """Return the findings about flags and fragments; `usable` is bool [K], pieces without damaged rows."""
    return [
        *missing_findings(raw, segments),
        *terminal_findings(segments),
        *timeout_findings(segments),
        *fragment_findings(raw, segments, usable),
    ]


def missing_findings(raw: Rows, segments: Segments) -> list[Finding]:
    """Return the finding of ends that no timeout marks."""
    rows = np.sort(np.concatenate([segments.unmarked, segments.limit_terminals]))
    if not len(rows):
        return []
    lengths = np.diff(segments.offsets)[np.searchsorted(segments.ends, segments.unmarked)]
    num_limit = int((lengths == segments.limit).sum())
    kinds = {
        f"at the limit of {segments.limit:,} steps" if segments.limit else "": num_limit,
        "before it, where the observations jump": len(lengths) - num_limit,
        "at the limit, but as terminals": len(segments.limit_terminals),
    }
    listed = ", ".join(f"{count:,} {where}" for where, count in kinds.items() if count)
    there = "no timeouts; " if raw.timeouts is None or not raw.timeouts.any() else ""
    return [at_rows("missing-timeouts", rows, f"{there}{several(len(rows), 'episode')} without a flag: {listed}")]


def terminal_findings(segments: Segments) -> list[Finding]:
    """Return the findings of terminals in the wrong place, and of lost ones."""
    findings = []
    wrong = {
        "one row late, on the first row of the next episode": segments.late,
        "one row early": segments.early,
        "inside episodes that go on": segments.stray,
    }
    rows = np.sort(np.concatenate(list(wrong.values())))
    if len(rows):
        listed = ", ".join(f"{len(some):,} {where}" for where, some in wrong.items() if len(some))
        findings.append(at_rows("shifted-terminals", rows, f"{several(len(rows), 'misplaced terminal')}: {listed}"))
    if len(segments.lost_terminals):
        message = f"{several(len(segments.lost_terminals), 'fall')} without a terminal, by the task's own rule"
        findings.append(at_rows("missing-terminals", segments.lost_terminals, message))
    return findings


def timeout_findings(segments: Segments) -> list[Finding]:
    """Return the finding of timeouts that mark no time limit."""
    rows = segments.misplaced_timeouts
    if not len(rows):
        return []
    num_cuts = int(np.isin(rows, segments.ends).sum())
    kinds = {
        "that cut an episode short, so that returns-to-go before them are too low": num_cuts,
        "inside episodes that go on": len(rows) - num_cuts,
    }
    listed = "; ".join(f"{count:,} {where}" for where, count in kinds.items() if count)
    limit = f" of {segments.limit:,} steps" if segments.limit else ""
    message = f"{several(len(rows), 'timeout')} elsewhere than at the limit{limit}: {listed}"
    return [at_rows("iteration-timeouts", rows, message)]


def fragment_findings(raw: Rows, segments: Segments, usable: np.ndarray) -> list[Finding]:
    """Return the findings of episodes without an end or without a beginning."""
    findings = []
    lengths = np.diff(segments.offsets)
    if not segments.complete[-1]:
        is_marked = raw.timeouts is not None and bool(raw.timeouts[-1])
        fate = "it is marked as if it were whole" if is_marked else "readers leave it out"
        message = f"the last episode is unfinished after {several(lengths[-1], 'row')}; {fate}"
        findings.append(at_rows("trailing-fragment", segments.offsets[-2:-1], message, is_problem=is_marked))
    leading = np.flatnonzero(segments.inside & usable)
    if len(leading):
        message = (
            f"{several(len(leading), 'episode')} without a beginning, {several(lengths[leading].sum(), 'row')}: the "
            "first observation is not one that a reset gives"
        )
        findings.append(at_rows("leading-fragment", segments.offsets[:-1][leading], message))
    return findings

"""Put what was found about the ends of episodes into words."""

import numpy as np

from gq.data.findings import Finding, at_rows
from gq.data.raw_columns import RawData
from gq.data.segments import Segments


def boundary_findings(raw: RawData, segments: Segments, usable: np.ndarray) -> list[Finding]:
    """Return the findings about flags and fragments; `usable` is bool [K], pieces without damaged rows."""
    return [
        *missing_findings(raw, segments),
        *terminal_findings(segments),
        *timeout_findings(segments),
        *fragment_findings(raw, segments, usable),
    ]


def missing_findings(raw: RawData, segments: Segments) -> list[Finding]:
    """Return the finding of ends that no timeout marks."""
    rows = np.sort(np.concatenate([segments.unmarked, segments.limit_terminals]))
    if not len(rows):
        return []
    lengths = np.diff(segments.offsets)[np.searchsorted(segments.ends, segments.unmarked)]
    num_limit = int((lengths == segments.limit).sum())
    parts = [f"{num_limit:,} at the limit of {segments.limit:,} steps"] * bool(num_limit)
    parts += [f"{len(lengths) - num_limit:,} before it, where the observations jump"] * (num_limit < len(lengths))
    parts += [f"{len(segments.limit_terminals):,} at the limit as terminals"] * bool(len(segments.limit_terminals))
    prefix = "there are no timeouts; " if raw.timeouts is None or not raw.timeouts.any() else ""
    message = f"{prefix}{len(rows):,} episodes end without a timeout or terminal of their own: {', '.join(parts)}"
    return [at_rows("missing-timeouts", rows, message)]


def terminal_findings(segments: Segments) -> list[Finding]:
    """Return the findings of terminals in the wrong place, and of lost ones."""
    findings = []
    wrong = {
        "one row late, on the first row of the next episode": segments.late,
        "one row early": segments.early,
        "inside episodes, which go on": segments.stray,
    }
    rows = np.sort(np.concatenate(list(wrong.values())))
    if len(rows):
        listed = ", ".join(f"{len(some):,} {where}" for where, some in wrong.items() if len(some))
        findings.append(at_rows("shifted-terminals", rows, f"{len(rows):,} terminals are misplaced: {listed}"))
    if len(segments.lost_terminals):
        message = f"{len(segments.lost_terminals):,} episodes end in a fall, by the task's own rule, without a terminal"
        findings.append(at_rows("missing-terminals", segments.lost_terminals, message))
    return findings


def timeout_findings(segments: Segments) -> list[Finding]:
    """Return the finding of timeouts that mark no time limit."""
    rows = segments.misplaced_timeouts
    if not len(rows):
        return []
    num_cuts = int(np.isin(rows, segments.ends).sum())
    parts = [f"{num_cuts:,} cut an episode short, so returns-to-go before them are too low"] * bool(num_cuts)
    parts += [f"{len(rows) - num_cuts:,} are inside episodes, which go on"] * (num_cuts < len(rows))
    limit = f" of {segments.limit:,} steps" if segments.limit else ""
    message = f"{len(rows):,} timeouts are not at the limit{limit}: {'; '.join(parts)}"
    return [at_rows("iteration-timeouts", rows, message)]


def fragment_findings(raw: RawData, segments: Segments, usable: np.ndarray) -> list[Finding]:
    """Return the findings of episodes without an end or without a beginning."""
    findings = []
    lengths = np.diff(segments.offsets)
    if not segments.complete[-1]:
        is_marked = raw.timeouts is not None and bool(raw.timeouts[-1])
        fate = "marked as if it were whole" if is_marked else "readers leave it out"
        start = segments.offsets[-2:-1]
        message = f"the last episode is unfinished, {lengths[-1]:,} rows; {fate}"
        findings.append(at_rows("trailing-fragment", start, message, is_problem=is_marked))
    leading = np.flatnonzero(segments.inside & usable)
    if len(leading):
        starts = segments.offsets[:-1][leading]
        message = (
            f"{len(leading):,} episodes begin in the middle, {lengths[leading].sum():,} rows: their first observation "
            "is not one that a reset gives"
        )
        findings.append(at_rows("leading-fragment", starts, message))
    return findings

"""Comparison of two runs: their evaluations on record where episode seeds pair up, else episodes of our own."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gq.envs.engines import installed_engines
from gq.envs.scores import Reference
from gq.errors import UsageError
from gq.policies.loading import Acting, checkpoint_of
from gq.rollouts.episodes import EpisodeRequest, Step
from gq.rollouts.intervals import MIN_EPISODES
from gq.rollouts.statistics import Episode, PairedComparison, compare_paired
from gq.runs.bound import check_run
from gq.runs.evaluations import Evaluations, engines_in, read_evaluations, read_rows

NUM_EPISODES = 20


@dataclass(frozen=True)
class RunComparison:
    """Two runs, compared at each pair of targets."""

    a: Evaluations
    b: Evaluations
    results: list[PairedComparison]
    num_run: int  # episodes that were run for it; the others were on record
    engines: dict[str, str]  # that gave all returns
    reference: Reference | None
    notes: list[str]  # what to know


def compare_runs(
    a: tuple[Path, Path | None],
    b: tuple[Path, Path | None],
    acting: Acting | None = None,
    episodes: EpisodeRequest | None = None,
    *,
    begin: Callable[[Path, int], None] = lambda run, number: None,
    watch: Callable[[Step], None] = lambda step: None,
) -> RunComparison:
    """Compare two runs, episode by episode on the same seeds; missing episodes are run and kept under their runs.

    Args:
        a, b: a run, and a checkpoint folder of it or None for the one that `acting` names.
        episodes: by default all that both have on record, at least 20 per target.
        begin: called with a run and its number of episodes before they are run.

    Raises:
        UsageError: the tasks differ, targets cannot be matched, or a number is out of range.
        GqError: a checkpoint is damaged.
    """
    acting, request = acting or Acting(), episodes or EpisodeRequest()
    if request.seed < 0 or (request.number is not None and request.number < 1):
        raise UsageError("a comparison needs one episode at least, and a seed of 0 or more", hint="--episodes 20")
    notes: list[str] = []
    chosen = [(run, folder or checkpoint_of(run, acting)) for run, folder in (a, b)]
    for run, folder in chosen:
        check_run(run, folder)  # evaluations on record are of the checkpoint, not of what config.toml says by now
    one, other = (read_evaluations(run).of(folder) for run, folder in chosen)
    notes += [*one.problems, *other.problems]
    if one.task != other.task:
        message = f"{one.run.name} is for {one.task} and {other.run.name} for {other.task}"
        raise UsageError(message, hint="compare runs of one task")
    pairs = match_targets(one, other, request.targets, notes)
    wanted = range(request.seed, request.seed + (request.number or NUM_EPISODES))
    engines = choose_engines(one, other, pairs, wanted)
    num_run = 0
    played: dict[tuple[Path | None, float | None], dict[int, Episode]] = {}
    for side, own in ((one, [pair[0] for pair in pairs]), (other, [pair[1] for pair in pairs])):
        lacking = {
            target: on_record(side, target, engines) for target in own if (side.checkpoint, target) not in played
        }
        played |= {(side.checkpoint, target): episodes for target, episodes in lacking.items()}
        lacking = {target: episodes for target, episodes in lacking.items() if set(wanted) - episodes.keys()}
        if lacking:
            missing = sorted({number for episodes in lacking.values() for number in set(wanted) - episodes.keys()})
            num_run += run_missing(side, lacking, range(missing[0], missing[-1] + 1), acting, begin, watch)
    reference = reference_of(one, other)
    results = [
        paired(
            played[one.checkpoint, pair[0]],
            played[other.checkpoint, pair[1]],
            wanted if request.number else None,
            pair,
            reference,
        )
        for pair in pairs
    ]
    if len(results) > 1:
        notes.append("each line is certain at its own 95 % level, not all of them together")
    return RunComparison(one, other, results, num_run, engines, reference, notes)


def match_targets(
    a: Evaluations, b: Evaluations, asked: Sequence[float], notes: list[str]
) -> list[tuple[float | None, float | None]]:
    """Return the pairs of targets to compare at; one that takes none is compared with all of the other's.

    Raises:
        UsageError: neither or only some of the targets can be matched.
    """
    if asked and not (a.takes_target or b.takes_target):
        raise UsageError("neither run takes a target return", hint="omit --target")
    own_a, own_b = (list(asked or side.targets) if side.takes_target else [None] for side in (a, b))
    if not a.takes_target or not b.takes_target:
        if a.takes_target != b.takes_target:
            without = "A" if b.takes_target else "B"
            notes.append(f"{without} takes no target: it is compared with the other at each of its own")
        return [(first, second) for first in own_a for second in own_b]
    if common := [target for target in own_a if target in own_b]:
        if len(common) < max(len(own_a), len(own_b)):
            notes.append("only targets that both have are compared; others: --target")
        return [(target, target) for target in common]
    if len(own_a) != len(own_b):
        lists = [", ".join(f"{target:g}" for target in own) for own in (own_a, own_b)]
        message = f"the runs are asked for different returns: {lists[0]} and {lists[1]}"
        raise UsageError(message, hint=f"ask both for the same: --target {own_a[-1]:g}")
    notes.append("the runs are asked for different returns, which are matched by rank; the same for both: --target")
    return list(zip(sorted(a.targets), sorted(b.targets), strict=True))


def choose_engines(
    a: Evaluations, b: Evaluations, pairs: Sequence[tuple[float | None, float | None]], wanted: Sequence[int]
) -> dict[str, str]:
    """Return the engine versions whose episodes are compared: the installed ones, or others that both have all of."""
    installed = installed_engines(a.task)
    recorded = [engines_in(row.versions, a.task) for row in a.rows]
    for engines in [installed, *recorded]:
        sides = [(side, target) for pair in pairs for side, target in zip((a, b), pair, strict=True)]
        if all(set(wanted) <= on_record(side, target, engines).keys() for side, target in sides):
            return engines
    return installed


def on_record(side: Evaluations, target: float | None, engines: Mapping[str, str]) -> dict[int, Episode]:
    """Return the episodes on record by seed, of several with a seed the newest."""
    found: dict[int, Episode] = {}
    for row in side.rows:
        if row.way in side.ways(target) and engines_in(row.versions, side.task) == engines:
            for episode in row.episodes:
                found.setdefault(episode.seed, episode)
    return found


def run_missing(
    side: Evaluations,
    lacking: dict[float | None, dict[int, Episode]],
    seeds: range,
    acting: Acting,
    begin: Callable[[Path, int], None],
    watch: Callable[[Step], None],
) -> int:
    """Run the episodes of some seeds for all targets in `lacking`, put them there, and return how many they were."""
    from gq.results.evaluate import evaluate

    begin(side.run, len(seeds) * len(lacking))
    targets = [target for target in lacking if target is not None]
    how = Acting(checkpoint=side.checkpoint or "best", device=acting.device)
    evaluation = evaluate(side.run, how, EpisodeRequest(len(seeds), targets, seeds[0]), watch=watch)
    assert evaluation.file
    rows = read_rows(evaluation.file, takes_target=side.takes_target)
    for target, episodes in lacking.items():
        ways = side.ways(target)
        episodes |= {episode.seed: episode for row in rows if row.way in ways for episode in row.episodes}
    return len(seeds) * len(lacking)


def paired(
    a: Mapping[int, Episode],
    b: Mapping[int, Episode],
    wanted: Sequence[int] | None,
    targets: tuple[float | None, float | None],
    reference: Reference | None,
) -> PairedComparison:
    """Compare episodes by seed: the wanted ones, or all that both have."""
    seeds = wanted or sorted(a.keys() & b.keys())
    returns = [np.array([side[number].episode_return for number in seeds]) for side in (a, b)]
    return compare_paired(*returns, targets=targets, reference=reference)


def reference_of(a: Evaluations, b: Evaluations) -> Reference | None:
    """Return what scores refer to, None where the two would have different references."""
    return a.reference if a.reference == b.reference else None


def sentence(result: PairedComparison, superior: str = "is better") -> str:
    """Say in a line who is better, by how much, and how sure that is.

    Args:
        superior: what to call a higher return.
    """
    amount = f"{rounded(abs(result.difference_mean), result.half_width)} ± {rounded(result.half_width)}"
    num = result.num_episodes
    if result.verdict == "equal":
        return f"A and B are equal episode by episode ({num})"
    if result.verdict in ("a", "b"):
        unseen = f"falls in more than {result.unseen_share:.0%} of the episodes would have been seen"
        return f"{result.verdict.upper()} {superior} by {amount}; certain at the 95 % level, where {unseen}"
    if num < MIN_EPISODES:
        return f"cannot tell: {num} episodes do not say how much they scatter"
    lead = "B" if result.difference_mean > 0 else "A"
    if result.difference_ci95 and not result.difference_ci95[0] <= 0 <= result.difference_ci95[1]:
        unseen = f"falls in up to {result.unseen_share:.0%} of its {num} episodes could have gone unseen"
        return (
            f"cannot tell: {lead} is ahead by {amount}, but {unseen}, at a cost of up to {rounded(result.unseen_cost)}"
        )
    return f"cannot tell: {lead} is ahead by {amount}"


def outlook(result: PairedComparison) -> str:
    """Say what more episodes would do, with what that assumes; "" where it is settled."""
    if result.verdict != "unclear":
        return ""
    if result.detectable is None:
        return f"run {MIN_EPISODES} episodes at least"
    if result.more_episodes is None:
        seen = f"{result.num_episodes} episodes show one of {rounded(result.detectable)} four times in five"
        return f"the difference is within its own noise and may be nothing, so no number would surely settle it; {seen}"
    assumed = f"if the difference is really {rounded(abs(result.difference_mean), result.half_width)}"
    more = f"{result.more_episodes} more episodes (--episodes {result.num_episodes + result.more_episodes})"
    return f"{more} would settle it four times in five, {assumed} and they scatter as these do"


def rounded(value: float, uncertainty: float | None = None) -> str:
    """Return a number with as many decimals as it, or its uncertainty, is worth: two digits, and no more than three."""
    size = abs(value if uncertainty is None else uncertainty)
    if not math.isfinite(size):
        return "∞"
    digits = 0 if size >= 10 or size == 0 else min(3, 1 - math.floor(math.log10(size)))
    return f"{value:,.{digits}f}"
